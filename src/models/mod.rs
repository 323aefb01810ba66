//! The zoo: one file per family, each the paper's table and the paper's figure.
//!
//! A model is a configuration that draws itself ([`Layer`](crate::graph::Layer)): a plain value, comparable, and
//! serialisable with serde. Start from a named one and change what you like:
//!
//! ```
//! use convzoo::graph::Graph;
//! use convzoo::models::ResNet;
//!
//! let graph = Graph::draw(3, &ResNet::resnet50().classes(10))?;
//! assert_eq!(graph.params().last().unwrap().shape, [10]);
//! # Ok::<(), convzoo::Error>(())
//! ```
//!
//! The named ones are listed by [`list`] with what they cost and reached, and drawn by [`build`].
//!
//! Parameter names, shapes and order are torchvision's (for the SE networks timm's), so that checkpoints load as they
//! are. Every family names the same features: `stem` (the first layers), `stage1`, `stage2`, … (the last map
//! of each resolution or table row) and `pre_logits` (the vector the last layer reads, before dropout).

mod alexnet;
mod bounds;
mod catalog;
mod config;
mod deform_resnet;
mod densenet;
mod efficientnet;
mod googlenet;
mod mobilenet_v2;
mod registry;
mod residual;
mod resnet;
mod senet;
mod squeezenet;
mod vgg;

pub use alexnet::AlexNet;
pub use config::ModelConfig;
pub use deform_resnet::{Deform, DeformVersion};
pub use densenet::DenseNet;
pub use efficientnet::{EfficientNet, EfficientNetStage};
pub use googlenet::{GoogLeNet, GoogLeNetPreset};
pub use mobilenet_v2::MobileNetV2;
pub use registry::{ModelInfo, Paper, build, get, list};
pub use residual::{Shortcut, StrideIn};
pub use resnet::{ResNet, ResNetBlock, ResNetStem, Squeeze};
pub use senet::{SeNet, SeNetBlock};
pub use squeezenet::{SqueezeNet, SqueezeNetVersion};
pub use vgg::Vgg;
