//! Every network of the zoo as one serialisable type.

use super::{AlexNet, DenseNet, EfficientNet, GoogLeNet, MobileNetV2, ModelInfo, ResNet, SeNet, SqueezeNet, Vgg, get};
use crate::error::Result;
use crate::graph::{Layer, Node};
use serde::{Deserialize, Serialize};

/// The configuration of any network of the zoo: what to keep beside its weights.
///
/// ```
/// use convzoo::models::ModelConfig;
///
/// let config = ModelConfig::named("resnet18")?.classes(10);
/// let text = serde_json::to_string(&config).unwrap();
/// assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), config);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ModelConfig {
    /// AlexNet.
    AlexNet(AlexNet),
    /// VGG.
    Vgg(Vgg),
    /// GoogLeNet.
    GoogLeNet(GoogLeNet),
    /// ResNet, ResNeXt, Wide ResNet, SE-ResNet in torchvision's layout, deformable and plain ones.
    ResNet(ResNet),
    /// DenseNet.
    DenseNet(DenseNet),
    /// SENet as its authors released it.
    SeNet(SeNet),
    /// EfficientNet.
    EfficientNet(EfficientNet),
    /// SqueezeNet.
    SqueezeNet(SqueezeNet),
    /// MobileNetV2.
    MobileNetV2(MobileNetV2),
}

macro_rules! each {
    ($self:expr, $config:ident => $result:expr) => {
        match $self {
            ModelConfig::AlexNet($config) => $result,
            ModelConfig::Vgg($config) => $result,
            ModelConfig::GoogLeNet($config) => $result,
            ModelConfig::ResNet($config) => $result,
            ModelConfig::DenseNet($config) => $result,
            ModelConfig::SeNet($config) => $result,
            ModelConfig::EfficientNet($config) => $result,
            ModelConfig::SqueezeNet($config) => $result,
            ModelConfig::MobileNetV2($config) => $result,
        }
    };
}

macro_rules! into_config {
    ($($family:ident),+) => {
        $(impl From<$family> for ModelConfig {
            fn from(config: $family) -> Self {
                ModelConfig::$family(config)
            }
        })+
    };
}

into_config!(AlexNet, Vgg, GoogLeNet, ResNet, DenseNet, SeNet, EfficientNet, SqueezeNet, MobileNetV2);

impl ModelConfig {
    /// The network of that name in the registry. An unknown name is an error that lists the nearest ones.
    pub fn named(name: &str) -> Result<Self> {
        get(name).map(ModelInfo::config)
    }

    /// For `n` classes.
    pub fn classes(self, n: usize) -> Self {
        each!(self, config => config.classes(n).into())
    }

    /// How many classes it tells apart.
    pub fn num_classes(&self) -> usize {
        each!(self, config => config.num_classes)
    }
}

impl Layer for ModelConfig {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        each!(self, config => config.build(x))
    }
}
