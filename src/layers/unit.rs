//! Convolution, norm, activation: the atom of most networks.

use super::{BatchNorm, Conv2d};
use crate::activation::Activation;
use crate::graph::{Layer, Node};

/// `activation(norm(conv(x)))`.
///
/// # Defaults
/// Batch norm, ReLU, parameters under `0` (convolution) and `1` (norm) as in torchvision's `Conv2dNormActivation`. In
/// front of a norm the convolution has no bias, whatever it was given: the norm's shift would absorb it.
///
/// ```
/// use convzoo::Activation;
/// use convzoo::graph::Graph;
/// use convzoo::layers::{Conv2d, ConvNormAct};
///
/// let unit = ConvNormAct::new(Conv2d::k3(8).stride(2)).activation(Activation::Silu).named("conv", "bn");
/// let graph = Graph::draw(3, &unit)?;
/// assert_eq!(graph.params()[1].name, "bn.weight");
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConvNormAct {
    conv: Conv2d,
    norm: Option<BatchNorm>,
    activation: Option<Activation>,
    names: [&'static str; 2],
}

impl ConvNormAct {
    /// `conv`, batch norm, ReLU.
    pub const fn new(conv: Conv2d) -> Self {
        ConvNormAct { conv, norm: Some(BatchNorm::new()), activation: Some(Activation::Relu), names: ["0", "1"] }
    }

    /// With this norm.
    pub const fn norm(self, norm: BatchNorm) -> Self {
        ConvNormAct { norm: Some(norm), ..self }
    }

    /// Without a norm; the convolution keeps its bias.
    pub const fn no_norm(self) -> Self {
        ConvNormAct { norm: None, ..self }
    }

    /// With this activation.
    pub const fn activation(self, activation: Activation) -> Self {
        ConvNormAct { activation: Some(activation), ..self }
    }

    /// Without an activation, as in front of a sum.
    pub const fn linear(self) -> Self {
        ConvNormAct { activation: None, ..self }
    }

    /// Calls the convolution and the norm by these names.
    pub const fn named(self, conv: &'static str, norm: &'static str) -> Self {
        ConvNormAct { names: [conv, norm], ..self }
    }

    /// The same unit around another convolution: norm, activation, names and initialisers stay.
    pub const fn around(self, conv: Conv2d) -> Self {
        ConvNormAct { conv: conv.init_of(&self.conv), ..self }
    }
}

impl Layer for ConvNormAct {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let [conv, norm] = self.names;
        let y = match self.norm {
            Some(layer) => x.layer(conv, self.conv.no_bias()).layer(norm, layer),
            None => x.layer(conv, self.conv),
        };
        y.then(self.activation)
    }
}
