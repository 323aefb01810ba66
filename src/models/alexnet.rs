//! AlexNet. Krizhevsky, Sutskever & Hinton 2012, *ImageNet classification with deep convolutional neural networks*; the
//! narrower one without groups and norms: Krizhevsky 2014, *One weird trick for parallelizing convolutional neural
//! networks* (arXiv 1404.5997).

use super::bounds::{CLASSES, WIDTH, checked};
use crate::activation::Activation::Relu;
use crate::graph::{Layer, Node, layer_fn};
use crate::layers::{AdaptiveAvgPool, Conv2d, Dropout, Flatten, Linear, LocalResponseNorm, MaxPool};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// AlexNet: five convolutions, three fully connected layers.
///
/// Features: `stem` (after the first pool), `stage1`, `stage2` (after the second and third), `pre_logits` (the second
/// hidden layer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlexNet {
    /// Channels of the five convolutions.
    pub widths: [usize; 5],
    /// As in 2012: convolutions 2, 4 and 5 in two groups, local response norm after the first two, 11×11 unpadded (for
    /// 227×227 images), dropout after the hidden layers, the paper's initialisation.
    pub paper: bool,
    /// Probability of dropout around the hidden layers.
    pub dropout: f32,
    /// Classes.
    pub num_classes: usize,
}

impl AlexNet {
    /// torchvision's `alexnet`, from the paper of 2014.
    pub fn torchvision() -> Self {
        AlexNet { widths: [64, 192, 384, 256, 256], paper: false, dropout: 0.5, num_classes: 1000 }
    }

    /// The network of 2012 on one device.
    pub fn paper() -> Self {
        AlexNet { widths: [96, 256, 384, 384, 256], paper: true, ..AlexNet::torchvision() }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        AlexNet { num_classes: n, ..self }
    }

    /// Convolution `i` (from 0) of figure 2.
    fn conv(&self, i: usize) -> Conv2d {
        let out = self.widths[i];
        let conv = match i {
            // 224 in the paper's text; its 55×55 maps need 227 unpadded, or torchvision's padding.
            0 => Conv2d::k(11, out).stride(4).padding(if self.paper { 0 } else { 2 }),
            1 => Conv2d::k(5, out),
            _ => Conv2d::k3(out),
        };
        if !self.paper {
            return conv;
        }
        let split = [1, 3, 4].contains(&i);
        conv.groups(if split { 2 } else { 1 }).init(Init::Normal { std: 0.01 }).bias_init(Init::Constant(if split {
            1.0
        } else {
            0.0
        }))
    }

    fn features<'g>(&self, x: Node<'g>) -> Node<'g> {
        let norm = self.paper.then_some(LocalResponseNorm::new(5).k(2.0));
        let pool = MaxPool::k(3).stride(2); // overlapping
        let mut layers: Vec<(Box<dyn Layer>, &str)> = vec![];
        for i in 0..5 {
            layers.extend([(Box::new(self.conv(i)) as Box<dyn Layer>, ""), (Box::new(Relu), "")]);
            if let (0 | 1, Some(norm)) = (i, norm) {
                layers.push((Box::new(norm), ""));
            }
            if let Some(feature) = ["stem", "stage1", "", "", "stage2"].get(i).filter(|f| !f.is_empty()) {
                layers.push((Box::new(pool), feature));
            }
        }
        layers.iter().enumerate().fold(x, |x, (i, (layer, feature))| {
            let x = x.layer(&i.to_string(), layer);
            if feature.is_empty() { x } else { x.feature(feature) }
        })
    }

    fn classifier<'g>(&self, x: Node<'g>) -> Node<'g> {
        let drop = Dropout::new(self.dropout);
        let fc = |out, bias| match self.paper {
            true => Linear::new(out).init(Init::Normal { std: 0.01 }).bias_init(Init::Constant(bias)),
            false => Linear::new(out),
        };
        let (one, two, last) = (fc(4096, 1.0), fc(4096, 1.0), fc(self.num_classes, 0.0));
        if self.paper {
            let x = x.layer("0", one).layer("1", Relu).layer("2", drop).layer("3", two).layer("4", Relu);
            return x.feature("pre_logits").layer("5", drop).layer("6", last);
        }
        let x = x.layer("0", drop).layer("1", one).layer("2", Relu).layer("3", drop).layer("4", two).layer("5", Relu);
        x.feature("pre_logits").layer("6", last)
    }
}

impl Layer for AlexNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let widths = self.widths.iter().map(|&w| ("widths", w, WIDTH));
        checked(x, widths.chain([("num_classes", self.num_classes, CLASSES)]), |x| {
            x.layer("features", layer_fn(|x| self.features(x)))
                .layer("avgpool", AdaptiveAvgPool::to(6)) // the identity at the paper's image size
                .then(Flatten)
                .layer("classifier", layer_fn(|x| self.classifier(x)))
        })
    }
}
