//! GoogLeNet. Szegedy et al. 2014, *Going deeper with convolutions* (arXiv 1409.4842).

use super::bounds::{CLASSES, checked};
use crate::graph::{Layer, Node};
use crate::layers::{AuxHead, BatchNorm, ClassifierHead, Conv2d, ConvNormAct, Inception, LocalResponseNorm, MaxPool};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// Which of the three networks that go by the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GoogLeNetPreset {
    /// torchvision's: batch norm, 3×3 where the paper has 5×5 (pytorch/vision#906), adaptive pooling in the auxiliary
    /// heads, a 2×2 fourth pool, 20 % dropout.
    Torchvision,
    /// The paper's, as BVLC trained it: 5×5, biases, local response norm, no batch norm, Xavier's initialisation, 40 %
    /// dropout.
    Paper,
    /// The paper's convolutions with batch norm instead of biases and local response norm: the one that trains easily.
    PaperBn,
}

/// GoogLeNet: nine inception blocks, and two auxiliary classifiers whose losses count 0.3 in training.
///
/// Features: `stem` (after the second pool), `stage1`, `stage2`, `stage3` (after blocks 3b, 4e, 5b), `pre_logits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoogLeNet {
    /// Which network.
    pub preset: GoogLeNetPreset,
    /// Whether to draw the auxiliary classifiers `aux1` (behind 4a) and `aux2` (behind 4d).
    pub aux: bool,
    /// Probability of dropout in front of the classifier.
    pub dropout: f32,
    /// The same in the auxiliary classifiers.
    pub aux_dropout: f32,
    /// A stem for small images: a 3×3 without stride instead of the 7×7, and auxiliary classifiers that pool to 4×4.
    #[serde(default)]
    pub cifar: bool,
    /// Classes.
    pub num_classes: usize,
}

/// Table 1: `#1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj`.
const TABLE: [(&str, [usize; 6]); 9] = [
    ("3a", [64, 96, 128, 16, 32, 32]),
    ("3b", [128, 128, 192, 32, 96, 64]),
    ("4a", [192, 96, 208, 16, 48, 64]),
    ("4b", [160, 112, 224, 24, 64, 64]),
    ("4c", [128, 128, 256, 24, 64, 64]),
    ("4d", [112, 144, 288, 32, 64, 64]),
    ("4e", [256, 160, 320, 32, 128, 128]),
    ("5a", [256, 160, 320, 32, 128, 128]),
    ("5b", [384, 192, 384, 48, 128, 128]),
];

impl GoogLeNet {
    /// One of the presets, with auxiliary classifiers.
    pub fn new(preset: GoogLeNetPreset) -> Self {
        let dropout = if preset == GoogLeNetPreset::Torchvision { 0.2 } else { 0.4 };
        GoogLeNet { preset, aux: true, dropout, aux_dropout: 0.7, cifar: false, num_classes: 1000 }
    }

    /// torchvision's.
    pub fn torchvision() -> Self {
        GoogLeNet::new(GoogLeNetPreset::Torchvision)
    }

    /// The paper's.
    pub fn paper() -> Self {
        GoogLeNet::new(GoogLeNetPreset::Paper)
    }

    /// The paper's with batch norm.
    pub fn paper_bn() -> Self {
        GoogLeNet::new(GoogLeNetPreset::PaperBn)
    }

    /// For 32×32 images: [`GoogLeNet::paper_bn`] with a stem of stride 4, so that the blocks see maps of 8, 4 and 2 pixels.
    pub fn cifar() -> Self {
        GoogLeNet { cifar: true, num_classes: 10, ..GoogLeNet::paper_bn() }
    }

    /// Without auxiliary classifiers.
    pub fn no_aux(self) -> Self {
        GoogLeNet { aux: false, ..self }
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        GoogLeNet { num_classes: n, ..self }
    }

    /// How convolutions and linear layers start.
    fn init(&self) -> Init {
        match self.preset {
            GoogLeNetPreset::Torchvision => Init::TruncatedNormal { std: 0.01, bound: 2.0 },
            GoogLeNetPreset::Paper => Init::Xavier,
            GoogLeNetPreset::PaperBn => Init::KaimingFanIn,
        }
    }

    /// The unit every convolution of the network is.
    fn unit(&self) -> ConvNormAct {
        let unit = ConvNormAct::new(Conv2d::k1(1).init(self.init()).bias_init(Init::Constant(0.2))).named("conv", "bn");
        match self.preset {
            GoogLeNetPreset::Paper => unit.no_norm(),
            GoogLeNetPreset::Torchvision | GoogLeNetPreset::PaperBn => unit.norm(BatchNorm::new().eps(1e-3)),
        }
    }

    fn heads(&self) -> (AuxHead, ClassifierHead) {
        let aux = AuxHead::new(self.num_classes).unit(self.unit()).dropout(self.aux_dropout);
        let pooled = self.cifar || self.preset == GoogLeNetPreset::Torchvision;
        let aux = if pooled { aux } else { aux.windows() };
        let main = ClassifierHead::new(self.num_classes).dropout(self.dropout);
        let [small, zero] = [0.2, 0.0].map(Init::Constant);
        match self.preset {
            GoogLeNetPreset::Torchvision => (aux.init(self.init()), main.init(self.init())),
            GoogLeNetPreset::Paper => {
                (aux.init(self.init()).bias_init([small, zero]), main.init(self.init()).bias_init(zero))
            }
            GoogLeNetPreset::PaperBn => (aux, main),
        }
    }

    fn draw<'g>(&self, x: Node<'g>) -> Node<'g> {
        let torchvision = self.preset == GoogLeNetPreset::Torchvision;
        let unit = |conv| self.unit().around(conv);
        let pool = MaxPool::k(3).stride(2).ceil();
        let lrn = || (self.preset == GoogLeNetPreset::Paper).then_some(LocalResponseNorm::new(5));
        let first = if self.cifar { Conv2d::k3(64) } else { Conv2d::k(7, 64).stride(2) };
        let mut x = x
            .layer("conv1", unit(first))
            .layer("maxpool1", pool)
            .layer("norm1", lrn())
            .layer("conv2", unit(Conv2d::k1(64)))
            .layer("conv3", unit(Conv2d::k3(192)))
            .layer("norm2", lrn())
            .layer("maxpool2", pool)
            .feature("stem");
        let mut taps = vec![];
        for (name, widths) in TABLE {
            let block = Inception::new(widths).unit(self.unit()).five(if torchvision { 3 } else { 5 });
            x = x.layer(&format!("inception{name}"), block);
            match name {
                "3b" => x = x.feature("stage1").layer("maxpool3", pool),
                "4a" | "4d" => taps.push(x),
                "4e" if torchvision => x = x.feature("stage2").layer("maxpool4", MaxPool::k(2).ceil()),
                "4e" => x = x.feature("stage2").layer("maxpool4", pool),
                "5b" => x = x.feature("stage3"),
                _ => {}
            }
        }
        let (aux, main) = self.heads();
        // torchvision's state dict has both auxiliary heads here, behind the blocks.
        for (tap, name) in taps.iter().zip(["aux1", "aux2"]).filter(|_| self.aux) {
            tap.aux(name, aux, 0.3);
        }
        x.then(main)
    }
}

impl Layer for GoogLeNet {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        checked(x, [("num_classes", self.num_classes, CLASSES)], |x| self.draw(x))
    }
}
