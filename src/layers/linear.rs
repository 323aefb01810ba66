//! Flattening and the fully connected layer.

use crate::graph::{Layer, Node, Op, ParamKind, Size};
use crate::tensor::Init;

/// `y = W·x + b` on a vector.
///
/// # Shapes
/// `[n, in]` → `[n, out]`. Parameters: `weight` `[out, in]`, then `bias` `[out]`.
///
/// # Defaults
/// A bias; weight and bias uniform in ±1/√in, as in PyTorch.
///
/// # Errors
/// A zero output width; a map as input (flatten it first).
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::{AdaptiveAvgPool, Flatten, Linear};
///
/// let graph = Graph::draw(16, &(AdaptiveAvgPool::to(2), Flatten, Linear::new(10)))?;
/// assert_eq!(graph.params()[0].shape, [10, 64]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    out: usize,
    bias: bool,
    init: Init,
    bias_init: Option<Init>,
}

impl Linear {
    /// To `out` values.
    pub const fn new(out: usize) -> Self {
        Linear { out, bias: true, init: Init::TorchDefault, bias_init: None }
    }

    /// Without a bias.
    pub const fn no_bias(self) -> Self {
        Linear { bias: false, ..self }
    }

    /// How the weight starts.
    pub const fn init(self, init: Init) -> Self {
        Linear { init, ..self }
    }

    /// How the bias starts.
    pub const fn bias_init(self, init: Init) -> Self {
        Linear { bias_init: Some(init), ..self }
    }
}

impl Layer for Linear {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let (input, out) = (x.channels(), self.out);
        if out == 0 {
            return x.fail("a linear layer needs at least 1 output, found 0");
        }
        if x.size() != Size::Vector {
            return x.fail(format!("a linear layer needs a vector, found a map of {input} channels: flatten it first"));
        }
        let weight = x.param("weight", &[out, input], ParamKind::Weight, self.init);
        let bias_init = self.bias_init.unwrap_or(Init::UniformFan { fan_in: input });
        let bias = self.bias.then(|| x.param("bias", &[out], ParamKind::Bias, bias_init));
        x.apply(Op::Linear { weight, bias }, &[x])
    }
}

/// `[n, c, h, w]` → `[n, c·h·w]`. The map must have a fixed size: pool it adaptively first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flatten;

impl Layer for Flatten {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::layers::GlobalAvgPool;

    #[test]
    fn a_map_and_a_zero_width_are_errors_with_the_path() {
        let error = Graph::draw(3, &(Linear::new(10),)).unwrap_err().to_string();
        assert!(error.starts_with("0: ") && error.contains("flatten"), "{error}");
        assert!(Graph::draw(3, &(Flatten,)).is_err(), "a map that follows the image has no fixed length");
        assert!(Graph::draw(3, &(GlobalAvgPool, Flatten, Linear::new(0))).is_err());
    }
}
