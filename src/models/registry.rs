//! The networks that have a name, what they cost and what they reached.

use super::ModelConfig;
use super::catalog::MODELS;
use crate::error::{Error, Result};
use crate::graph::Layer;

/// Where a network was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paper {
    /// Title.
    pub title: &'static str,
    /// Authors.
    pub authors: &'static str,
    /// Year it first appeared.
    pub year: u16,
    /// Number on arXiv.
    pub arxiv: Option<&'static str>,
}

/// What is known of a named network. The counts are tested against the drawing.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ModelInfo {
    /// torchvision's name; for SE networks timm's.
    pub name: &'static str,
    /// Family, for grouping: `ResNet`, `DenseNet`, …
    pub family: &'static str,
    /// Where it was published.
    pub paper: &'static Paper,
    /// Side of the square image its figures hold for.
    pub input: usize,
    /// Classes of the published network: 1000, or 10 for CIFAR-10.
    pub classes: usize,
    /// Learned values, auxiliary classifiers left out.
    pub params: u64,
    /// Learned values, auxiliary classifiers included.
    pub params_with_aux: u64,
    /// Multiply-adds of convolutions and linear layers for one image in evaluation (torchvision's convention: norms,
    /// activations and pooling do not count).
    pub macs: u64,
    /// Share of images classified right, in percent.
    pub top1: Option<f32>,
    /// Share of images with the right class among the first five, in percent.
    pub top5: Option<f32>,
    /// Who measured that; empty if nobody did.
    pub source: &'static str,
    /// File name of the weights that reach it, as published.
    pub weights: Option<&'static str>,
    /// The configuration.
    pub(super) config: fn() -> ModelConfig,
}

impl ModelInfo {
    /// The configuration behind the name.
    pub fn config(&self) -> ModelConfig {
        (self.config)()
    }

    /// Multiply-adds in units of 10⁹.
    pub fn gmacs(&self) -> f64 {
        self.macs as f64 / 1e9
    }

    /// Whether it is made for images of 32×32.
    pub fn is_cifar(&self) -> bool {
        self.input == 32
    }
}

/// Every named network, family by family.
///
/// ```
/// let light: Vec<_> = convzoo::models::list().filter(|m| m.params < 2_000_000 && !m.is_cifar()).collect();
/// assert_eq!(light[0].name, "squeezenet1_0");
/// ```
pub fn list() -> impl ExactSizeIterator<Item = &'static ModelInfo> {
    MODELS.iter()
}

/// The network of that name. An unknown name is an error that lists the nearest ones.
///
/// ```
/// use convzoo::models;
///
/// assert_eq!(models::get("resnet50")?.params, 25_557_032);
/// let error = models::get("resnet5").unwrap_err().to_string();
/// assert!(error.contains("nearest: resnet50"));
/// # Ok::<(), convzoo::Error>(())
/// ```
pub fn get(name: &str) -> Result<&'static ModelInfo> {
    let known = || MODELS.iter().map(|m| m.name);
    list().find(|m| m.name == name).ok_or_else(|| Error::unknown("model", name, known()))
}

/// The network of that name as a layer, for `num_classes` classes if given.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::models;
///
/// let graph = Graph::draw(3, &models::build("resnet20", Some(100))?)?;
/// assert_eq!(graph.params().last().unwrap().shape, [100]);
/// assert_eq!(Graph::draw(3, &models::build("resnet20", None)?)?.params().last().unwrap().shape, [10]);
/// # Ok::<(), convzoo::Error>(())
/// ```
///
/// # Errors
/// An unknown name, with the nearest ones. A number of classes that cannot be is an error of drawing it.
pub fn build(name: &str, num_classes: Option<usize>) -> Result<Box<dyn Layer>> {
    let config = ModelConfig::named(name)?;
    Ok(Box::new(match num_classes {
        Some(n) => config.classes(n),
        None => config,
    }))
}
