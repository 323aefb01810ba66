//! ResNet. He et al. 2015, *Deep residual learning for image recognition* (arXiv 1512.03385); ResNeXt, Xie et al. 2016
//! (arXiv 1611.05431); Wide ResNet, Zagoruyko & Komodakis 2016 (arXiv 1605.07146).

use super::bounds::{CLASSES, DEPTH, STAGES, WIDTH, checked};
use super::deform_resnet::Deform;
use super::residual::{Basic, Bottleneck, Join, Shortcut, StrideIn, conv};
use crate::graph::{Layer, Node};
use crate::layers::{BatchNorm, ClassifierHead, MaxPool, SeBlock};
use serde::{Deserialize, Serialize};

/// The building block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResNetBlock {
    /// Two 3×3.
    Basic,
    /// 1×1, 3×3, 1×1 to four times the stage's width.
    Bottleneck,
}

/// What comes before the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResNetStem {
    /// 7×7 with stride 2 and a 3×3 max pool with stride 2.
    ImageNet,
    /// One 3×3.
    Cifar,
}

/// Squeeze-and-excitation on every residual branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Squeeze {
    /// The squeeze width is the block's output divided by this …
    pub reduction: usize,
    /// … rounded to a multiple of this (timm: 8; the paper: 1).
    pub divisor: usize,
}

/// ResNet, and with one argument changed ResNeXt, Wide ResNet, SE-ResNet, the deformable and the plain one.
///
/// Features: `stem`, `stage1` … `stage4` (CIFAR: `stage3`), `pre_logits`. Initialised as torchvision does: He's normal by
/// fan-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet {
    /// What comes before the blocks.
    pub stem: ResNetStem,
    /// The building block.
    pub block: ResNetBlock,
    /// Blocks per stage; each stage doubles the width and, but for the first, halves the map.
    pub blocks: Vec<usize>,
    /// Width of the first stage.
    pub width: usize,
    /// Groups of the 3×3 (ResNeXt's cardinality); bottleneck blocks only.
    pub groups: usize,
    /// Channels per group of the 3×3 in a stage of width 64; bottleneck blocks only.
    pub width_per_group: usize,
    /// Where a bottleneck block has its stride.
    pub stride_in: StrideIn,
    /// What runs beside the blocks.
    pub shortcut: Shortcut,
    /// Squeeze-and-excitation.
    pub squeeze: Option<Squeeze>,
    /// Deformable 3×3; bottleneck blocks only.
    pub deform: Option<Deform>,
    /// Starts every residual branch at zero.
    pub zero_init_residual: bool,
    /// Classes.
    pub num_classes: usize,
}

impl ResNet {
    fn imagenet(block: ResNetBlock, blocks: [usize; 4]) -> Self {
        ResNet {
            stem: ResNetStem::ImageNet,
            block,
            blocks: blocks.to_vec(),
            width: 64,
            groups: 1,
            width_per_group: 64,
            stride_in: StrideIn::Middle,
            shortcut: Shortcut::Projection,
            squeeze: None,
            deform: None,
            zero_init_residual: false,
            num_classes: 1000,
        }
    }

    /// 18 layers: table 1.
    pub fn resnet18() -> Self {
        ResNet::imagenet(ResNetBlock::Basic, [2, 2, 2, 2])
    }

    /// 34 layers.
    pub fn resnet34() -> Self {
        ResNet::imagenet(ResNetBlock::Basic, [3, 4, 6, 3])
    }

    /// 50 layers.
    pub fn resnet50() -> Self {
        ResNet::imagenet(ResNetBlock::Bottleneck, [3, 4, 6, 3])
    }

    /// 101 layers.
    pub fn resnet101() -> Self {
        ResNet::imagenet(ResNetBlock::Bottleneck, [3, 4, 23, 3])
    }

    /// 152 layers.
    pub fn resnet152() -> Self {
        ResNet::imagenet(ResNetBlock::Bottleneck, [3, 8, 36, 3])
    }

    /// ResNeXt: `groups` groups of `width` channels.
    pub fn groups(self, groups: usize, width: usize) -> Self {
        ResNet { groups, width_per_group: width, ..self }
    }

    /// The paper's layout: the stride in the first 1×1.
    pub fn v1(self) -> Self {
        ResNet { stride_in: StrideIn::First, ..self }
    }

    /// timm's `seresnet50`: ResNet-50 with squeeze-and-excitation, residual branches starting at zero.
    pub fn seresnet50() -> Self {
        ResNet { squeeze: Some(Squeeze { reduction: 16, divisor: 8 }), zero_init_residual: true, ..ResNet::resnet50() }
    }

    /// The CIFAR network of `6n + 2` layers (§4.2): three stages of `n` blocks, widths 16, 32, 64, shortcuts without
    /// parameters.
    pub fn cifar(n: usize) -> Self {
        let imagenet = ResNet::imagenet(ResNetBlock::Basic, [n; 4]);
        let (stem, shortcut) = (ResNetStem::Cifar, Shortcut::ZeroPad);
        ResNet { stem, blocks: vec![n; 3], width: 16, shortcut, num_classes: 10, ..imagenet }
    }

    /// The same network without shortcuts: its *training* error grows with its depth (fig. 1 and 6).
    pub fn plain(self) -> Self {
        ResNet { shortcut: Shortcut::Absent, ..self }
    }

    /// Starts every residual branch at zero (Goyal et al. 2017).
    pub fn zero_init_residual(self) -> Self {
        ResNet { zero_init_residual: true, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        ResNet { num_classes: n, ..self }
    }

    /// Block `i` of stage `stage` (both from 0).
    fn block(&self, stage: usize, i: usize) -> Box<dyn Layer> {
        let width = self.width << stage;
        let se = self.squeeze.map(|s| SeBlock::reduction(s.reduction).divisor(s.divisor));
        let join = Join {
            stride: if stage > 0 && i == 0 { 2 } else { 1 },
            shortcut: self.shortcut,
            attention: se.map(|se| ("se", se.init(crate::tensor::Init::KaimingFanOut))),
            last_scale: if self.zero_init_residual { 0.0 } else { 1.0 },
        };
        match self.block {
            ResNetBlock::Basic => Box::new(Basic { width, join }),
            ResNetBlock::Bottleneck => {
                let inner = (width * self.width_per_group / 64).saturating_mul(self.groups);
                let deform = self.deform.filter(|d| stage + 1 >= d.from_stage);
                let (stride_in, groups) = (self.stride_in, self.groups);
                Box::new(Bottleneck { reduce: inner, width: inner, out: 4 * width, groups, stride_in, deform, join })
            }
        }
    }

    fn draw<'g>(&self, x: Node<'g>) -> Node<'g> {
        let bottleneck_only = self.groups != 1 || self.width_per_group != 64 || self.deform.is_some();
        if self.block == ResNetBlock::Basic && bottleneck_only {
            return x.fail("groups, a width per group and deformable 3×3 need bottleneck blocks");
        }
        let stem = match self.stem {
            ResNetStem::ImageNet => conv(7, self.width).stride(2),
            ResNetStem::Cifar => conv(3, self.width),
        };
        let pool = (self.stem == ResNetStem::ImageNet).then_some(MaxPool::k(3).stride(2).padding(1));
        let x = x.layer("conv1", stem).layer("bn1", BatchNorm::new()).relu().layer("maxpool", pool).feature("stem");
        let x = self.blocks.iter().enumerate().fold(x, |x, (stage, &depth)| {
            let blocks: Vec<_> = (0..depth).map(|i| self.block(stage, i)).collect();
            x.layer(&format!("layer{}", stage + 1), blocks).feature(&format!("stage{}", stage + 1))
        });
        x.then(ClassifierHead::new(self.num_classes))
    }
}

impl Layer for ResNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let settings = [
            ("stages", self.blocks.len(), STAGES),
            ("width", self.width, WIDTH),
            ("width_per_group", self.width_per_group, WIDTH),
            ("groups", self.groups, WIDTH),
            ("num_classes", self.num_classes, CLASSES),
        ];
        let blocks = self.blocks.iter().map(|&n| ("blocks", n, DEPTH));
        checked(x, settings.into_iter().chain(blocks), |x| self.draw(x))
    }
}
