//! DenseNet. Huang et al. 2016, *Densely connected convolutional networks* (arXiv 1608.06993).

use super::bounds::{CLASSES, DEPTH, STAGES, WIDTH, checked};
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{BatchNorm, ClassifierHead, Conv2d, DenseBlock, DenseLayer, MaxPool, Transition};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// DenseNet-BC: dense blocks with bottlenecks, transitions that compress between them.
///
/// Features: `stem`, `stage1` … (after each dense block, before its transition), `pre_logits`. Initialised as torchvision
/// does: He's normal by fan-in, the classifier's bias zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseNet {
    /// Channels each layer adds (k).
    pub growth: usize,
    /// Layers per dense block.
    pub blocks: Vec<usize>,
    /// Channels of the stem.
    pub stem: usize,
    /// A stem for small images: one 3×3 instead of 7×7 with stride 2, norm and pool.
    pub cifar: bool,
    /// Channels of a layer's 1×1 as a multiple of `growth`.
    pub bottleneck: usize,
    /// Share of the channels a transition keeps (θ).
    pub compression: f64,
    /// Probability of dropout behind each layer; the paper has 0.2 where it does not augment.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

impl DenseNet {
    fn imagenet(growth: usize, blocks: [usize; 4]) -> Self {
        let (stem, cifar) = (2 * growth, false);
        let blocks = blocks.to_vec();
        DenseNet { growth, blocks, stem, cifar, bottleneck: 4, compression: 0.5, dropout: 0.0, num_classes: 1000 }
    }

    /// 121 layers, k = 32: table 1.
    pub fn densenet121() -> Self {
        DenseNet::imagenet(32, [6, 12, 24, 16])
    }

    /// 161 layers, k = 48.
    pub fn densenet161() -> Self {
        DenseNet::imagenet(48, [6, 12, 36, 24])
    }

    /// 169 layers, k = 32.
    pub fn densenet169() -> Self {
        DenseNet::imagenet(32, [6, 12, 32, 32])
    }

    /// 201 layers, k = 32.
    pub fn densenet201() -> Self {
        DenseNet::imagenet(32, [6, 12, 48, 32])
    }

    /// 264 layers, k = 32.
    pub fn densenet264() -> Self {
        DenseNet::imagenet(32, [6, 12, 64, 48])
    }

    /// DenseNet-BC for CIFAR: `depth = 6n + 4` layers in three blocks of n, a stem of 2k channels.
    pub fn cifar(depth: usize, growth: usize) -> Self {
        let blocks = vec![depth.saturating_sub(4) / 6; 3];
        let imagenet = DenseNet::imagenet(growth.min(*WIDTH.end()), [0; 4]);
        DenseNet { growth, blocks, cifar: true, num_classes: 10, ..imagenet }
    }

    /// Dropout with probability `p` behind each layer.
    pub fn dropout(self, p: f32) -> Self {
        DenseNet { dropout: p, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        DenseNet { num_classes: n, ..self }
    }

    fn features<'g>(&self, x: Node<'g>) -> Node<'g> {
        let init = Init::KaimingFanIn;
        let stem = |kernel| Conv2d::k(kernel, self.stem).no_bias().init(init);
        let mut x = if self.cifar {
            x.layer("conv0", stem(3))
        } else {
            let x = x.layer("conv0", stem(7).stride(2)).layer("norm0", BatchNorm::new()).relu();
            x.layer("pool0", MaxPool::k(3).stride(2).padding(1))
        };
        x = x.feature("stem");
        let layer = DenseLayer::new(self.growth).bottleneck(self.bottleneck).dropout(self.dropout).init(init);
        for (i, &layers) in (1..).zip(&self.blocks) {
            x = x.layer(&format!("denseblock{i}"), DenseBlock::new(layers, layer)).feature(&format!("stage{i}"));
            if i < self.blocks.len() {
                x = x.layer(&format!("transition{i}"), Transition::new(self.compression).init(init));
            }
        }
        x.layer("norm5", BatchNorm::new())
    }
}

impl Layer for DenseNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let settings = [
            ("growth", self.growth, WIDTH),
            ("stem", self.stem, WIDTH),
            ("bottleneck", self.bottleneck, WIDTH),
            ("blocks", self.blocks.len(), STAGES),
            ("num_classes", self.num_classes, CLASSES),
        ];
        let layers = self.blocks.iter().map(|&n| ("layers of a block", n, DEPTH));
        checked(x, settings.into_iter().chain(layers), |x| {
            let head = ClassifierHead::new(self.num_classes).named("classifier").bias_init(Init::Constant(0.0));
            x.layer("features", layer_fn(|x| self.features(x))).relu().then(head)
        })
    }
}
