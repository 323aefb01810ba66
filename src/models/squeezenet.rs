//! SqueezeNet. Iandola et al. 2016, *SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5 MB model size*
//! (arXiv 1602.07360).

use super::bounds::{CLASSES, checked};
use crate::activation::Activation::Relu;
use crate::graph::{Layer, Node, concat, layer_fn};
use crate::layers::{Conv2d, Dropout, Flatten, GlobalAvgPool, MaxPool};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// Which release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SqueezeNetVersion {
    /// The paper's.
    V1_0,
    /// A smaller stem and earlier pools: 2.4 times less work.
    V1_1,
}

/// SqueezeNet: fire modules, and a convolution as the classifier.
///
/// Features: `stem` (after the first pool), `stage1` … `stage3` (the last map between pools), `pre_logits` (the mean of
/// the map the classifier reads). Initialised as torchvision does: He's uniform by fan-in, biases zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqueezeNet {
    /// Which release.
    pub version: SqueezeNetVersion,
    /// Padding of the 1×1 that classifies: 0 in torchvision, 1 in the authors' Caffe model.
    pub classifier_padding: usize,
    /// Probability of dropout in front of it.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

/// Squeeze to `[0]` channels by 1×1; expand to `[1]` by 1×1 and as many by 3×3, side by side. Fig. 1.
struct Fire([usize; 2]);

impl Layer for Fire {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let Fire([squeeze, expand]) = *self;
        let x = x.layer("squeeze", start(Conv2d::k1(squeeze))).relu();
        concat([
            x.layer("expand1x1", start(Conv2d::k1(expand))).relu(),
            x.layer("expand3x3", start(Conv2d::k3(expand))).relu(),
        ])
    }
}

fn start(conv: Conv2d) -> Conv2d {
    conv.init(Init::KaimingUniform).bias_init(Init::Constant(0.0))
}

/// Table 1: squeeze and expand widths of the modules between pools.
const V1_0: [&[[usize; 2]]; 3] =
    [&[[16, 64], [16, 64], [32, 128]], &[[32, 128], [48, 192], [48, 192], [64, 256]], &[[64, 256]]];

const V1_1: [&[[usize; 2]]; 3] =
    [&[[16, 64], [16, 64]], &[[32, 128], [32, 128]], &[[48, 192], [48, 192], [64, 256], [64, 256]]];

impl SqueezeNet {
    fn new(version: SqueezeNetVersion) -> Self {
        SqueezeNet { version, classifier_padding: 0, dropout: 0.5, num_classes: 1000 }
    }

    /// Version 1.0.
    pub fn squeezenet1_0() -> Self {
        SqueezeNet::new(SqueezeNetVersion::V1_0)
    }

    /// Version 1.1.
    pub fn squeezenet1_1() -> Self {
        SqueezeNet::new(SqueezeNetVersion::V1_1)
    }

    /// As the authors released it for Caffe: the classifying 1×1 is padded by 1.
    pub fn caffe(self) -> Self {
        SqueezeNet { classifier_padding: 1, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        SqueezeNet { num_classes: n, ..self }
    }

    fn features<'g>(&self, x: Node<'g>) -> Node<'g> {
        let pool = MaxPool::k(3).stride(2).ceil();
        let (stem, table) = match self.version {
            SqueezeNetVersion::V1_0 => (Conv2d::k(7, 96), V1_0),
            SqueezeNetVersion::V1_1 => (Conv2d::k3(64), V1_1),
        };
        let x = x.layer("0", start(stem.stride(2).padding(0))).layer("1", Relu);
        let mut x = x.layer("2", pool).feature("stem");
        let mut index = 3..;
        let mut add = |x: Node<'g>, layer: &dyn Layer| {
            let i: usize = index.next().unwrap_or_default();
            x.layer(&i.to_string(), layer)
        };
        for (stage, fires) in (1..).zip(table) {
            if stage > 1 {
                x = add(x, &pool);
            }
            x = fires.iter().fold(x, |x, widths| add(x, &Fire(*widths))).feature(&format!("stage{stage}"));
        }
        x
    }
}

impl Layer for SqueezeNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        checked(x, [("num_classes", self.num_classes, CLASSES)], |x| {
            let last = Conv2d::k1(self.num_classes).padding(self.classifier_padding);
            let last = last.init(Init::Normal { std: 0.01 }).bias_init(Init::Constant(0.0));
            let x = x.layer("features", layer_fn(|x| self.features(x)));
            x.global_avg_pool().flatten().feature("pre_logits");
            x.layer("classifier", (Dropout::new(self.dropout), last, Relu, GlobalAvgPool)).then(Flatten)
        })
    }
}
