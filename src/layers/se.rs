//! Squeeze and excitation.

use super::{Conv2d, GlobalAvgPool, round_channels};
use crate::activation::Activation;
use crate::graph::{Layer, Node};
use crate::tensor::Init;

/// Squeeze-and-excitation: `y = x · gate(fc2(activation(fc1(mean(x)))))`, one factor per image and channel. Hu et al. 2017
/// (arXiv 1709.01507).
///
/// # Shapes
/// `[n, c, h, w]` unchanged. `fc1` and `fc2` are 1×1 convolutions with biases, `[s, c, 1, 1]` and `[c, s, 1, 1]`, as in
/// torchvision and timm; `s` is the squeeze width.
///
/// # Defaults
/// ReLU inside, sigmoid as the gate.
///
/// # Errors
/// A squeeze width of zero, which a reduction by more than `c` gives too.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::SeBlock;
///
/// let graph = Graph::draw(64, &SeBlock::reduction(16))?;
/// assert_eq!(graph.params()[0].shape, [4, 64, 1, 1]);
/// assert_eq!(Graph::draw(64, &SeBlock::reduction(16).divisor(8))?.params()[0].shape, [8, 64, 1, 1]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeBlock {
    squeeze: Squeeze,
    activation: Activation,
    gate: Activation,
    init: Init,
    bias_init: Option<Init>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Squeeze {
    Width(usize),
    Reduction { by: usize, divisor: usize },
}

impl SeBlock {
    /// Squeezes `c` channels to `⌊c / by⌋`.
    pub const fn reduction(by: usize) -> Self {
        let squeeze = Squeeze::Reduction { by, divisor: 1 };
        SeBlock {
            squeeze,
            activation: Activation::Relu,
            gate: Activation::Sigmoid,
            init: Init::TorchDefault,
            bias_init: None,
        }
    }

    /// Squeezes to exactly `width` channels.
    pub const fn width(width: usize) -> Self {
        SeBlock { squeeze: Squeeze::Width(width), ..SeBlock::reduction(1) }
    }

    /// Rounds the reduced width to a multiple of `divisor`, at least one of it: timm's rule, with 8. Without effect on an
    /// explicit width.
    pub const fn divisor(self, divisor: usize) -> Self {
        match self.squeeze {
            Squeeze::Reduction { by, .. } => SeBlock { squeeze: Squeeze::Reduction { by, divisor }, ..self },
            Squeeze::Width(_) => self,
        }
    }

    /// The function between the two layers.
    pub const fn activation(self, activation: Activation) -> Self {
        SeBlock { activation, ..self }
    }

    /// The function that makes the factor: sigmoid, or hard sigmoid in MobileNetV3.
    pub const fn gate(self, gate: Activation) -> Self {
        SeBlock { gate, ..self }
    }

    /// How the weights start.
    pub const fn init(self, init: Init) -> Self {
        SeBlock { init, ..self }
    }

    /// How the biases start.
    pub const fn bias_init(self, init: Init) -> Self {
        SeBlock { bias_init: Some(init), ..self }
    }

    fn squeezed(&self, channels: usize) -> usize {
        match self.squeeze {
            Squeeze::Width(width) => width,
            Squeeze::Reduction { by: 0, .. } => 0,
            Squeeze::Reduction { by, divisor: 0 | 1 } => channels / by,
            Squeeze::Reduction { by, divisor } => round_channels(channels as f64 / by as f64, divisor, 0.0),
        }
    }
}

impl Layer for SeBlock {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let channels = x.channels();
        let squeezed = self.squeezed(channels);
        if squeezed == 0 {
            let how = match self.squeeze {
                Squeeze::Width(width) => format!("a width of {width}"),
                Squeeze::Reduction { by, .. } => format!("a reduction by {by}"),
            };
            return x.fail(format!("{channels} channels squeezed to 0: {how}"));
        }
        let fc = |out| {
            let conv = Conv2d::k1(out).init(self.init);
            self.bias_init.map_or(conv, |init| conv.bias_init(init))
        };
        let gate = x
            .layer("avgpool", GlobalAvgPool)
            .layer("fc1", fc(squeezed))
            .activation(self.activation)
            .layer("fc2", fc(channels))
            .activation(self.gate);
        x * gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn squeezing_to_nothing_is_an_error() {
        for (se, how) in [
            (SeBlock::reduction(16), "a reduction by 16"),
            (SeBlock::reduction(0), "a reduction by 0"),
            (SeBlock::width(0), "a width of 0"),
        ] {
            let error = Graph::draw(8, &(se,)).unwrap_err().to_string();
            assert_eq!(error, format!("0: 8 channels squeezed to 0: {how}"));
        }
        assert!(Graph::draw(8, &SeBlock::reduction(16).divisor(8)).is_ok());
    }
}
