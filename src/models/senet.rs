//! SENet as its authors released it. Hu et al. 2017, *Squeeze-and-excitation networks* (arXiv 1709.01507).
//!
//! These are the networks of the Caffe release in timm's names (`legacy_…`): the stride of SE-ResNet in the first 1×1, a
//! stem pool that rounds up instead of padding. SE-ResNet in torchvision's layout is
//! [`ResNet::seresnet50`](super::ResNet::seresnet50).

use super::bounds::{CLASSES, DEPTH, WIDTH, checked};
use super::residual::{Bottleneck, Join, Shortcut, StrideIn, conv};
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{BatchNorm, ClassifierHead, MaxPool, SeBlock};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// The bottleneck that carries the squeeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SeNetBlock {
    /// ResNet's, with the stride in the first 1×1.
    ResNet,
    /// ResNeXt's, four channels per group in the first stage, the stride in the 3×3.
    ResNeXt,
    /// SENet-154's: the first 1×1 halved, the 3×3 as wide as the output, 3×3 projections and a stem of three 3×3.
    SeNet154,
}

/// SE-ResNet, SE-ResNeXt and SENet-154.
///
/// Features: `stem`, `stage1` … `stage4`, `pre_logits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeNet {
    /// The bottleneck.
    pub block: SeNetBlock,
    /// Blocks per stage.
    pub blocks: [usize; 4],
    /// Groups of the 3×3.
    pub groups: usize,
    /// The squeeze width is the block's output divided by this.
    pub reduction: usize,
    /// Probability of dropout in front of the classifier.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

impl SeNet {
    fn new(block: SeNetBlock, blocks: [usize; 4], groups: usize) -> Self {
        SeNet { block, blocks, groups, reduction: 16, dropout: 0.0, num_classes: 1000 }
    }

    /// SE-ResNet-50.
    pub fn seresnet50() -> Self {
        SeNet::new(SeNetBlock::ResNet, [3, 4, 6, 3], 1)
    }

    /// SE-ResNet-101.
    pub fn seresnet101() -> Self {
        SeNet::new(SeNetBlock::ResNet, [3, 4, 23, 3], 1)
    }

    /// SE-ResNet-152.
    pub fn seresnet152() -> Self {
        SeNet::new(SeNetBlock::ResNet, [3, 8, 36, 3], 1)
    }

    /// SE-ResNeXt-50 32×4d.
    pub fn seresnext50_32x4d() -> Self {
        SeNet::new(SeNetBlock::ResNeXt, [3, 4, 6, 3], 32)
    }

    /// SE-ResNeXt-101 32×4d.
    pub fn seresnext101_32x4d() -> Self {
        SeNet::new(SeNetBlock::ResNeXt, [3, 4, 23, 3], 32)
    }

    /// SENet-154, winner of ILSVRC 2017.
    pub fn senet154() -> Self {
        SeNet { dropout: 0.2, ..SeNet::new(SeNetBlock::SeNet154, [3, 8, 36, 3], 64) }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        SeNet { num_classes: n, ..self }
    }

    /// Block `i` of stage `stage` (both from 0).
    fn block(&self, stage: usize, i: usize) -> Bottleneck {
        let base = 64 << stage;
        let (reduce, width, stride_in) = match self.block {
            SeNetBlock::ResNet => (base, base, StrideIn::First),
            SeNetBlock::ResNeXt => (base * 4 / 64 * self.groups, base * 4 / 64 * self.groups, StrideIn::Middle),
            SeNetBlock::SeNet154 => (2 * base, 4 * base, StrideIn::Middle),
        };
        let join = Join {
            stride: if stage > 0 && i == 0 { 2 } else { 1 },
            shortcut: match self.block {
                SeNetBlock::SeNet154 if stage > 0 => Shortcut::Projection3x3,
                _ => Shortcut::Projection,
            },
            attention: Some(("se_module", SeBlock::reduction(self.reduction).init(Init::KaimingFanOut))),
            last_scale: 1.0,
        };
        Bottleneck { reduce, width, out: 4 * base, groups: self.groups, stride_in, deform: None, join }
    }

    fn stem<'g>(&self, x: Node<'g>) -> Node<'g> {
        let bn = BatchNorm::new();
        match self.block {
            SeNetBlock::SeNet154 => {
                let x = x.layer("conv1", conv(3, 64).stride(2)).layer("bn1", bn).relu();
                let x = x.layer("conv2", conv(3, 64)).layer("bn2", bn).relu();
                x.layer("conv3", conv(3, 128)).layer("bn3", bn).relu()
            }
            _ => x.layer("conv1", conv(7, 64).stride(2)).layer("bn1", bn).relu(),
        }
    }
}

impl Layer for SeNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let settings = [("groups", self.groups, WIDTH), ("num_classes", self.num_classes, CLASSES)];
        checked(x, settings.into_iter().chain(self.blocks.map(|n| ("blocks", n, DEPTH))), |x| {
            let x = x.layer("layer0", layer_fn(|x| self.stem(x)));
            let x = x.layer("pool0", MaxPool::k(3).stride(2).ceil()).feature("stem");
            let x = self.blocks.iter().enumerate().fold(x, |x, (stage, &depth)| {
                let blocks: Vec<_> = (0..depth).map(|i| self.block(stage, i)).collect();
                x.layer(&format!("layer{}", stage + 1), blocks).feature(&format!("stage{}", stage + 1))
            });
            x.then(ClassifierHead::new(self.num_classes).named("last_linear").dropout(self.dropout))
        })
    }
}
