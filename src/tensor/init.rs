//! Initialisers: how a parameter starts, as the papers and torchvision do it.

use super::Tensor;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// The distribution a parameter is drawn from.
///
/// `fan_in` is the number of inputs that meet in one output (`in/groups × taps`), `fan_out` is `out × taps`, both as
/// PyTorch computes them from the weight's shape alone (so grouped convolutions use `out`, not `out/groups`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Init {
    /// Every value the same.
    Constant(f32),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
    /// Normal with mean 0, redrawn until within `bound` of it (GoogLeNet: std 0.01, bound 2 in absolute terms).
    TruncatedNormal {
        /// Standard deviation before truncation.
        std: f32,
        /// Absolute bound.
        bound: f32,
    },
    /// He et al. 2015: normal with std √(2 / fan_in).
    KaimingFanIn,
    /// He et al. 2015, backward form: normal with std √(2 / fan_out).
    KaimingFanOut,
    /// PyTorch's default for convolution and linear weights: uniform in ±1/√fan_in (kaiming_uniform with a = √5).
    TorchDefault,
    /// PyTorch's default bias: uniform in ±1/√fan_in of the weight beside it.
    UniformFan {
        /// `fan_in` of the weight.
        fan_in: usize,
    },
    /// Glorot & Bengio 2010: uniform in ±√(6 / (fan_in + fan_out)).
    Xavier,
    /// Uniform in ±1/√fan_out, the linear layers of EfficientNet.
    UniformFanOut,
    /// He et al. uniform: ±√(6 / fan_in) (SqueezeNet).
    KaimingUniform,
}

impl Init {
    /// Draws a tensor of `shape` (output channels first).
    ///
    /// # Panics
    /// As [`Tensor::zeros`].
    pub fn draw(self, shape: &[usize], rng: &mut impl Rng) -> Tensor {
        let mut tensor = Tensor::zeros(shape);
        self.fill(&mut tensor, rng);
        tensor
    }

    /// Draws every value of `tensor`, from the first to the last.
    pub fn fill(self, tensor: &mut Tensor, rng: &mut impl Rng) {
        let shape = tensor.shape();
        let receptive = shape.iter().skip(2).fold(1usize, |taps, &d| taps.saturating_mul(d));
        let fan_in = shape.get(1).copied().unwrap_or(1).saturating_mul(receptive).max(1) as f32;
        let fan_out = shape.first().copied().unwrap_or(1).saturating_mul(receptive).max(1) as f32;
        let values = tensor.as_mut_slice();
        let mut normal = |std: f32| values.iter_mut().for_each(|v| *v = std * standard_normal(rng));
        let bound = match self {
            Init::Constant(value) => return values.fill(value),
            Init::Normal { std } => return normal(std),
            Init::KaimingFanIn => return normal((2.0 / fan_in).sqrt()),
            Init::KaimingFanOut => return normal((2.0 / fan_out).sqrt()),
            Init::TruncatedNormal { std, bound } => {
                return values.iter_mut().for_each(|v| {
                    // Resampling terminates quickly for any bound worth asking for; the clamp covers the rest.
                    let draw = (0..64).map(|_| std * standard_normal(rng)).find(|v| v.abs() <= bound);
                    *v = draw.unwrap_or(0.0);
                });
            }
            Init::TorchDefault => 1.0 / fan_in.sqrt(),
            Init::UniformFan { fan_in } => 1.0 / (fan_in.max(1) as f32).sqrt(),
            Init::Xavier => (6.0 / (fan_in + fan_out)).sqrt(),
            Init::UniformFanOut => 1.0 / fan_out.sqrt(),
            Init::KaimingUniform => (6.0 / fan_in).sqrt(),
        };
        values.iter_mut().for_each(|v| *v = bound * (2.0 * rng.random::<f32>() - 1.0));
    }
}

/// Box-Muller.
fn standard_normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn moments(init: Init, shape: &[usize]) -> (f32, f32, f32) {
        let tensor = init.draw(shape, &mut StdRng::seed_from_u64(7));
        let n = tensor.len() as f32;
        let mean = tensor.as_slice().iter().sum::<f32>() / n;
        let var = tensor.as_slice().iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        let most = tensor.as_slice().iter().fold(0f32, |m, v| m.max(v.abs()));
        (mean, var.sqrt(), most)
    }

    #[test]
    fn spread_follows_the_formula_of_each_distribution() {
        let shape = [64, 32, 3, 3]; // fan_in 288, fan_out 576
        let close = |found: f32, wanted: f32| assert!((found / wanted - 1.0).abs() < 0.03, "{found} for {wanted}");
        close(moments(Init::KaimingFanIn, &shape).1, (2f32 / 288.0).sqrt());
        close(moments(Init::KaimingFanOut, &shape).1, (2f32 / 576.0).sqrt());
        close(moments(Init::TorchDefault, &shape).2, 1.0 / 288f32.sqrt());
        close(moments(Init::Xavier, &shape).2, (6f32 / 864.0).sqrt());
        close(moments(Init::KaimingUniform, &shape).1, (2f32 / 288.0).sqrt());
        assert!(moments(Init::TruncatedNormal { std: 1.0, bound: 0.5 }, &shape).2 <= 0.5);
    }
}
