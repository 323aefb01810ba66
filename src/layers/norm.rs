//! Normalisation.

use crate::graph::{Layer, Node, Op, ParamKind};
use crate::tensor::Init;

/// Batch normalisation per channel: `y = (x − mean) / √(var + eps) · weight + bias`. Ioffe & Szegedy 2015
/// (arXiv 1502.03167).
///
/// Training uses the statistics of the batch and moves the running ones: `running ← (1 − momentum) · running + momentum ·
/// batch`, the variance unbiased. Evaluation uses the running ones. This `momentum` is PyTorch's; TensorFlow's 0.99 is
/// 0.01 here.
///
/// # Shapes
/// Any map or vector, unchanged. Parameters `[c]`: `weight` (starts at 1), `bias` (0), `running_mean` (0),
/// `running_var` (1).
///
/// # Defaults
/// `eps = 1e-5`, `momentum = 0.1`.
///
/// # Errors
/// An `eps` that is not a positive number; a `momentum` outside 0 ..= 1.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::{BatchNorm, Conv2d};
///
/// let graph = Graph::draw(3, &(Conv2d::k3(16).no_bias(), BatchNorm::new().eps(1e-3).momentum(0.01)))?;
/// let names: Vec<_> = graph.params().iter().map(|p| p.name.as_str()).collect();
/// assert_eq!(names, ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    eps: f32,
    momentum: f32,
    scale: f32,
}

impl Default for BatchNorm {
    fn default() -> Self {
        BatchNorm::new()
    }
}

impl BatchNorm {
    /// With PyTorch's defaults.
    pub const fn new() -> Self {
        BatchNorm { eps: 1e-5, momentum: 0.1, scale: 1.0 }
    }

    /// Added to the variance.
    pub const fn eps(self, eps: f32) -> Self {
        BatchNorm { eps, ..self }
    }

    /// Share of the batch statistic in the running one.
    pub const fn momentum(self, momentum: f32) -> Self {
        BatchNorm { momentum, ..self }
    }

    /// Starts `weight` at `scale`: 0 silences a residual branch at first (Goyal et al. 2017, arXiv 1706.02677).
    pub const fn scale(self, scale: f32) -> Self {
        BatchNorm { scale, ..self }
    }
}

impl Layer for BatchNorm {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let BatchNorm { eps, momentum, scale } = *self;
        if !(eps > 0.0 && eps.is_finite()) {
            return x.fail(format!("batch norm needs a positive eps, found {eps}"));
        }
        if !(0.0..=1.0).contains(&momentum) {
            return x.fail(format!("batch norm needs a momentum of 0 to 1, found {momentum}"));
        }
        let param = |name, kind, start| x.param(name, &[x.channels()], kind, Init::Constant(start));
        let scale = Some(param("weight", ParamKind::NormScale, scale));
        let shift = Some(param("bias", ParamKind::NormShift, 0.0));
        let mean = param("running_mean", ParamKind::RunningMean, 0.0);
        let var = param("running_var", ParamKind::RunningVar, 1.0);
        x.apply(Op::BatchNorm { scale, shift, mean, var, eps, momentum }, &[x])
    }
}

/// Local response normalisation over neighbouring channels: `y[c] = x[c] / (k + α/size · Σ x[c']²)^β`, the sum over `size`
/// channels around `c`. Krizhevsky et al. 2012, §3.3 (whose α is this α divided by `size`).
///
/// # Defaults
/// α = 1e-4, β = 0.75, k = 1: PyTorch's, Caffe's and GoogLeNet's. AlexNet has k = 2.
///
/// # Errors
/// A zero `size`; constants that are not finite, or a `k` that is not positive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalResponseNorm {
    size: usize,
    alpha: f32,
    beta: f32,
    k: f32,
}

impl LocalResponseNorm {
    /// Over `size` channels.
    pub const fn new(size: usize) -> Self {
        LocalResponseNorm { size, alpha: 1e-4, beta: 0.75, k: 1.0 }
    }

    /// α.
    pub const fn alpha(self, alpha: f32) -> Self {
        LocalResponseNorm { alpha, ..self }
    }

    /// β.
    pub const fn beta(self, beta: f32) -> Self {
        LocalResponseNorm { beta, ..self }
    }

    /// k.
    pub const fn k(self, k: f32) -> Self {
        LocalResponseNorm { k, ..self }
    }
}

impl Layer for LocalResponseNorm {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let LocalResponseNorm { size, alpha, beta, k } = *self;
        if !(alpha.is_finite() && beta.is_finite() && k.is_finite() && k > 0.0) {
            return x.fail(format!("local response norm with alpha = {alpha}, beta = {beta}, k = {k}"));
        }
        x.apply(Op::LocalResponseNorm { size, alpha, beta, k }, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn parameters_come_in_the_order_of_the_state_dict() {
        let graph = Graph::draw(7, &BatchNorm::new().scale(0.0)).unwrap();
        let names: Vec<_> = graph.params().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["weight", "bias", "running_mean", "running_var"]);
        assert_eq!(graph.params()[0].init, Init::Constant(0.0));
        assert_eq!(graph.param_count(false), 14, "running statistics are not learned");
    }

    #[test]
    fn constants_that_cannot_work_are_errors() {
        for bad in [BatchNorm::new().eps(-1.0), BatchNorm::new().eps(f32::NAN), BatchNorm::new().momentum(1.5)] {
            assert!(Graph::draw(1, &bad).is_err(), "{bad:?}");
        }
        let lrn = LocalResponseNorm::new(5);
        for bad in [LocalResponseNorm::new(0), lrn.k(0.0), lrn.alpha(f32::INFINITY), lrn.beta(f32::NAN)] {
            assert!(Graph::draw(1, &bad).is_err(), "{bad:?}");
        }
    }
}
