//! VGG. Simonyan & Zisserman 2014, *Very deep convolutional networks for large-scale image recognition*
//! (arXiv 1409.1556).

use super::bounds::{CLASSES, DEPTH, WIDTH, checked};
use crate::activation::Activation::Relu;
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{AdaptiveAvgPool, BatchNorm, Conv2d, Dropout, Flatten, Linear, MaxPool};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// VGG: 3×3 convolutions in five stages, each ended by a 2×2 pool that halves the map.
///
/// Features: `stem` (the first convolution), `stage1` … `stage5` (after each pool), `pre_logits` (the second hidden
/// layer). Initialised as torchvision does: He's normal by fan-out, N(0, 0.01) for the linear layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vgg {
    /// Convolutions per stage: the columns of table 1.
    pub convs: [usize; 5],
    /// Channels per stage.
    pub widths: [usize; 5],
    /// Batch norm behind each convolution, which the paper predates.
    pub batch_norm: bool,
    /// Probability of dropout behind the hidden layers.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

impl Vgg {
    fn column(convs: [usize; 5]) -> Self {
        let widths = [64, 128, 256, 512, 512];
        Vgg { convs, widths, batch_norm: false, dropout: 0.5, num_classes: 1000 }
    }

    /// Column A.
    pub fn vgg11() -> Self {
        Vgg::column([1, 1, 2, 2, 2])
    }

    /// Column B.
    pub fn vgg13() -> Self {
        Vgg::column([2, 2, 2, 2, 2])
    }

    /// Column D.
    pub fn vgg16() -> Self {
        Vgg::column([2, 2, 3, 3, 3])
    }

    /// Column E.
    pub fn vgg19() -> Self {
        Vgg::column([2, 2, 4, 4, 4])
    }

    /// With batch norm.
    pub fn batch_norm(self) -> Self {
        Vgg { batch_norm: true, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        Vgg { num_classes: n, ..self }
    }

    fn features<'g>(&self, mut x: Node<'g>) -> Node<'g> {
        let mut index = 0..;
        let mut add = |x: Node<'g>, layer: &dyn Layer| {
            let i: usize = index.next().unwrap_or_default();
            x.layer(&i.to_string(), layer)
        };
        for (stage, (&convs, &width)) in self.convs.iter().zip(&self.widths).enumerate() {
            for i in 0..convs {
                let conv = Conv2d::k3(width).init(Init::KaimingFanOut).bias_init(Init::Constant(0.0));
                x = add(x, &conv);
                if self.batch_norm {
                    x = add(x, &BatchNorm::new());
                }
                x = add(x, &Relu);
                if (stage, i) == (0, 0) {
                    x = x.feature("stem");
                }
            }
            x = add(x, &MaxPool::k(2)).feature(&format!("stage{}", stage + 1));
        }
        x
    }

    fn classifier<'g>(&self, x: Node<'g>) -> Node<'g> {
        let drop = Dropout::new(self.dropout);
        let fc = |out| Linear::new(out).init(Init::Normal { std: 0.01 }).bias_init(Init::Constant(0.0));
        let x = x.layer("0", fc(4096)).layer("1", Relu).layer("2", drop).layer("3", fc(4096)).layer("4", Relu);
        x.feature("pre_logits").layer("5", drop).layer("6", fc(self.num_classes))
    }
}

impl Layer for Vgg {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let convs = self.convs.iter().map(|&n| ("convs", n, DEPTH));
        let widths = self.widths.iter().map(|&w| ("widths", w, WIDTH));
        checked(x, convs.chain(widths).chain([("num_classes", self.num_classes, CLASSES)]), |x| {
            x.layer("features", layer_fn(|x| self.features(x)))
                .layer("avgpool", AdaptiveAvgPool::to(7)) // the identity at 224×224
                .then(Flatten)
                .layer("classifier", layer_fn(|x| self.classifier(x)))
        })
    }
}
