//! EfficientNet. Tan & Le 2019, *EfficientNet: rethinking model scaling for convolutional neural networks*
//! (arXiv 1905.11946); V2: Tan & Le 2021, *EfficientNetV2: smaller models and faster training* (arXiv 2104.00298).

use super::bounds::{CLASSES, DEPTH, WIDTH, checked};
use crate::activation::Activation::Silu;
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{BatchNorm, Conv2d, ConvNormAct, Dropout, Flatten, GlobalAvgPool, Linear, MbConv, round_channels};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// One row of the paper's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetStage {
    /// Fused-MBConv instead of MBConv.
    pub fused: bool,
    /// Expansion.
    pub expand: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Output channels.
    pub out: usize,
    /// Blocks.
    pub layers: usize,
}

const fn mb([expand, kernel, stride, out, layers]: [usize; 5]) -> EfficientNetStage {
    EfficientNetStage { fused: false, expand, kernel, stride, out, layers }
}

const fn fused(row: [usize; 5]) -> EfficientNetStage {
    EfficientNetStage { fused: true, ..mb(row) }
}

/// Table 1 of the first paper: expansion, kernel, stride, channels, layers.
const B0: [EfficientNetStage; 7] = [
    mb([1, 3, 1, 16, 1]),
    mb([6, 3, 2, 24, 2]),
    mb([6, 5, 2, 40, 2]),
    mb([6, 3, 2, 80, 3]),
    mb([6, 5, 1, 112, 3]),
    mb([6, 5, 2, 192, 4]),
    mb([6, 3, 1, 320, 1]),
];

/// Table 4 of the second paper.
const V2_S: [EfficientNetStage; 6] = [
    fused([1, 3, 1, 24, 2]),
    fused([4, 3, 2, 48, 4]),
    fused([4, 3, 2, 64, 4]),
    mb([4, 3, 2, 128, 6]),
    mb([6, 3, 1, 160, 9]),
    mb([6, 3, 2, 256, 15]),
];

const V2_M: [EfficientNetStage; 7] = [
    fused([1, 3, 1, 24, 3]),
    fused([4, 3, 2, 48, 5]),
    fused([4, 3, 2, 80, 5]),
    mb([4, 3, 2, 160, 7]),
    mb([6, 3, 1, 176, 14]),
    mb([6, 3, 2, 304, 18]),
    mb([6, 3, 1, 512, 5]),
];

const V2_L: [EfficientNetStage; 7] = [
    fused([1, 3, 1, 32, 4]),
    fused([4, 3, 2, 64, 7]),
    fused([4, 3, 2, 96, 7]),
    mb([4, 3, 2, 192, 10]),
    mb([6, 3, 1, 224, 19]),
    mb([6, 3, 2, 384, 25]),
    mb([6, 3, 1, 640, 7]),
];

/// EfficientNet, both versions.
///
/// Features: `stem`, `stage1` … `stage7` (the rows of the table; V2-S has six), `pre_logits`. Initialised as torchvision
/// does: He's normal by fan-out, the classifier uniform in ±1/√classes, biases zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNet {
    /// Channels of the stem.
    pub stem: usize,
    /// The rows of the table.
    pub stages: Vec<EfficientNetStage>,
    /// Channels of the last 1×1.
    pub head: usize,
    /// Batch norm's ε.
    pub bn_eps: f32,
    /// Batch norm's momentum (PyTorch's convention).
    pub bn_momentum: f32,
    /// TensorFlow's padding, which weights trained there need.
    pub same_padding: bool,
    /// Probability of dropping the last block's branch; earlier ones proportionally less.
    pub stochastic_depth: f32,
    /// Probability of dropout in front of the classifier.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

impl EfficientNet {
    /// B0 with its widths and depths multiplied: the scaling rule. Widths are rounded to multiples of 8, depths up.
    pub fn scaled(width: f64, depth: f64) -> Self {
        let channels = |c: usize| round_channels(c as f64 * width, 8, 0.9);
        let layers = |n: usize| (n as f64 * depth).ceil() as usize;
        let stages = B0.map(|s| EfficientNetStage { out: channels(s.out), layers: layers(s.layers), ..s });
        let head = stages[6].out.saturating_mul(4);
        EfficientNet { stem: channels(32), head, ..EfficientNet::v2(&stages) }.norm(1e-5, 0.1)
    }

    fn v2(stages: &[EfficientNetStage]) -> Self {
        EfficientNet {
            stem: stages[0].out,
            stages: stages.to_vec(),
            head: 1280,
            bn_eps: 1e-3,
            bn_momentum: 0.1,
            same_padding: false,
            stochastic_depth: 0.2,
            dropout: 0.2,
            num_classes: 1000,
        }
    }

    /// B0, for images of 224×224.
    pub fn b0() -> Self {
        EfficientNet::scaled(1.0, 1.0)
    }

    /// B1, 240×240.
    pub fn b1() -> Self {
        EfficientNet::scaled(1.0, 1.1)
    }

    /// B2, 260×260 (torchvision: 288).
    pub fn b2() -> Self {
        EfficientNet::scaled(1.1, 1.2).dropout(0.3)
    }

    /// B3, 300×300.
    pub fn b3() -> Self {
        EfficientNet::scaled(1.2, 1.4).dropout(0.3)
    }

    /// B4, 380×380.
    pub fn b4() -> Self {
        EfficientNet::scaled(1.4, 1.8).dropout(0.4)
    }

    /// B5, 456×456. From here on torchvision has the authors' batch norm.
    pub fn b5() -> Self {
        EfficientNet::scaled(1.6, 2.2).dropout(0.4).norm(1e-3, 0.01)
    }

    /// B6, 528×528.
    pub fn b6() -> Self {
        EfficientNet::scaled(1.8, 2.6).dropout(0.5).norm(1e-3, 0.01)
    }

    /// B7, 600×600.
    pub fn b7() -> Self {
        EfficientNet::scaled(2.0, 3.1).dropout(0.5).norm(1e-3, 0.01)
    }

    /// V2-S, 384×384.
    pub fn v2_s() -> Self {
        EfficientNet::v2(&V2_S)
    }

    /// V2-M, 480×480.
    pub fn v2_m() -> Self {
        EfficientNet::v2(&V2_M).dropout(0.3)
    }

    /// V2-L, 480×480.
    pub fn v2_l() -> Self {
        EfficientNet::v2(&V2_L).dropout(0.4)
    }

    /// Batch norm's ε and momentum.
    pub fn norm(self, eps: f32, momentum: f32) -> Self {
        EfficientNet { bn_eps: eps, bn_momentum: momentum, ..self }
    }

    /// Dropout with probability `p` in front of the classifier.
    pub fn dropout(self, p: f32) -> Self {
        EfficientNet { dropout: p, ..self }
    }

    /// TensorFlow's padding.
    pub fn same_padding(self) -> Self {
        EfficientNet { same_padding: true, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        EfficientNet { num_classes: n, ..self }
    }

    fn unit(&self, conv: Conv2d) -> ConvNormAct {
        let conv = if self.same_padding { conv.same() } else { conv };
        ConvNormAct::new(conv.init(Init::KaimingFanOut)).norm(self.batch_norm()).activation(Silu)
    }

    fn batch_norm(&self) -> BatchNorm {
        BatchNorm::new().eps(self.bn_eps).momentum(self.bn_momentum)
    }

    /// Block `i` of row `s`, which is number `id` of `total`.
    fn block(&self, s: &EfficientNetStage, i: usize, id: usize, total: usize) -> MbConv {
        let block = if s.fused { MbConv::fused(s.out) } else { MbConv::new(s.out) };
        let block = if self.same_padding { block.same() } else { block };
        block
            .expand(s.expand)
            .kernel(s.kernel)
            .stride(if i == 0 { s.stride } else { 1 })
            .norm(self.batch_norm())
            .init(Init::KaimingFanOut)
            .drop(self.stochastic_depth * id as f32 / total as f32)
    }

    fn features<'g>(&self, x: Node<'g>) -> Node<'g> {
        let total = self.stages.iter().map(|s| s.layers).sum();
        let mut id = 0..;
        let mut x = x.layer("0", self.unit(Conv2d::k3(self.stem).stride(2))).feature("stem");
        for (row, s) in (1..).zip(&self.stages) {
            let blocks: Vec<_> = (0..s.layers).zip(&mut id).map(|(i, id)| self.block(s, i, id, total)).collect();
            x = x.layer(&row.to_string(), blocks).feature(&format!("stage{row}"));
        }
        x.layer(&(self.stages.len() + 1).to_string(), self.unit(Conv2d::k1(self.head)))
    }
}

impl Layer for EfficientNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let settings = [
            ("stem", self.stem, WIDTH),
            ("head", self.head, WIDTH),
            ("stages", self.stages.len(), DEPTH),
            ("num_classes", self.num_classes, CLASSES),
        ];
        let rows = self.stages.iter().flat_map(|s| [("out", s.out, WIDTH), ("layers", s.layers, DEPTH)]);
        checked(x, settings.into_iter().chain(rows), |x| {
            let fc = Linear::new(self.num_classes).init(Init::UniformFanOut).bias_init(Init::Constant(0.0));
            x.layer("features", layer_fn(|x| self.features(x)))
                .layer("avgpool", GlobalAvgPool)
                .then(Flatten)
                .feature("pre_logits")
                .layer("classifier", (Dropout::new(self.dropout), fc))
        })
    }
}
