//! MobileNetV2. Sandler et al. 2018, *MobileNetV2: inverted residuals and linear bottlenecks* (arXiv 1801.04381).

use super::bounds::{CLASSES, checked};
use crate::activation::Activation::Relu6;
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{Conv2d, ConvNormAct, Dropout, Flatten, GlobalAvgPool, Linear, MbConv, round_channels};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// MobileNetV2.
///
/// Features: `stem`, `stage1` … `stage7` (the rows of the table), `pre_logits`. Initialised as torchvision does: He's
/// normal by fan-out, N(0, 0.01) for the classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MobileNetV2 {
    /// Factor on every width, rounded to multiples of 8; the last 1×1 only grows.
    pub width: f64,
    /// Probability of dropout in front of the classifier.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

/// Table 2: expansion, channels, blocks, stride.
const TABLE: [[usize; 4]; 7] =
    [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]];

impl MobileNetV2 {
    /// Width 1: torchvision's `mobilenet_v2`.
    pub fn torchvision() -> Self {
        MobileNetV2 { width: 1.0, dropout: 0.2, num_classes: 1000 }
    }

    /// All widths multiplied by `width`.
    pub fn width(self, width: f64) -> Self {
        MobileNetV2 { width, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        MobileNetV2 { num_classes: n, ..self }
    }

    fn features<'g>(&self, x: Node<'g>) -> Node<'g> {
        let channels = |c: usize, width| round_channels(c as f64 * width, 8, 0.9);
        let unit = |conv: Conv2d| ConvNormAct::new(conv.init(Init::KaimingFanOut)).activation(Relu6);
        let mut x = x.layer("0", unit(Conv2d::k3(channels(32, self.width)).stride(2))).feature("stem");
        let mut index = 1..;
        for (row, [expand, out, blocks, stride]) in (1..).zip(TABLE) {
            let block = MbConv::new(channels(out, self.width)).expand(expand).no_squeeze().activation(Relu6);
            let block = block.init(Init::KaimingFanOut).mobilenet_names();
            for (i, index) in (0..blocks).zip(&mut index) {
                x = x.layer(&format!("{index}"), block.stride(if i == 0 { stride } else { 1 }));
            }
            x = x.feature(&format!("stage{row}"));
        }
        x.layer("18", unit(Conv2d::k1(channels(1280, self.width.max(1.0)))))
    }
}

impl Layer for MobileNetV2 {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        if !(self.width > 0.0 && self.width <= 64.0) {
            return x.fail(format!("MobileNetV2 needs a width over 0 and at most 64, found {}", self.width));
        }
        checked(x, [("num_classes", self.num_classes, CLASSES)], |x| {
            let fc = Linear::new(self.num_classes).init(Init::Normal { std: 0.01 }).bias_init(Init::Constant(0.0));
            x.layer("features", layer_fn(|x| self.features(x)))
                .then(GlobalAvgPool)
                .then(Flatten)
                .feature("pre_logits")
                .layer("classifier", (Dropout::new(self.dropout), fc))
        })
    }
}
