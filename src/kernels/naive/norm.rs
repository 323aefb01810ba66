//! Batch normalisation and local response normalisation.

use super::{Nchw, Real};
use std::ops::Range;

/// The per-channel numbers of a batch norm, each `[C]`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a, T> {
    /// Mean.
    pub mean: &'a [T],
    /// Variance.
    pub variance: &'a [T],
    /// Learned factor γ and summand β; 1 and 0 if absent.
    pub affine: Option<(&'a [T], &'a [T])>,
    /// ε, added to the variance.
    pub epsilon: f64,
}

/// Batch normalisation by given statistics, running ones or those of [`batch_statistics`] (Ioffe and Szegedy 2015,
/// arXiv:1502.03167):
/// `y = (x − mean) / √(variance + ε) · γ + β`, per channel.
///
/// # Shapes
/// `[N, C, H, W]` to the same.
pub fn batch_norm<T: Real>(x: &[T], input: Nchw, norm: BatchNorm<'_, T>) -> Vec<T> {
    input.assert_holds(x);
    assert!(norm.mean.len() == input.c && norm.variance.len() == input.c, "one mean and variance per channel");
    let (ones, zeros) = (vec![T::one(); input.c], vec![T::zero(); input.c]);
    let (gamma, beta) = norm.affine.unwrap_or((&ones, &zeros));
    assert!(gamma.len() == input.c && beta.len() == input.c, "one factor and summand per channel");
    let mut y = vec![T::zero(); x.len()];
    for n in 0..input.n {
        for c in 0..input.c {
            let deviation = (norm.variance[c] + T::of(norm.epsilon)).sqrt();
            for i in input.channel(n, c) {
                y[i] = (x[i] - norm.mean[c]) / deviation * gamma[c] + beta[c];
            }
        }
    }
    y
}

/// Mean and biased variance `Σ(x − mean)² / (N·H·W)` of each channel, over images and pixels: what a batch norm
/// normalises by in training.
///
/// # Shapes
/// `[N, C, H, W]` to twice `[C]`.
pub fn batch_statistics<T: Real>(x: &[T], input: Nchw) -> [Vec<T>; 2] {
    input.assert_holds(x);
    let count = T::of((input.n * input.plane()) as f64);
    let values = |c: usize| (0..input.n).flat_map(move |n| input.channel(n, c)).map(|i| x[i]);
    let mean: Vec<T> = (0..input.c).map(|c| values(c).sum::<T>() / count).collect();
    let variance = (0..input.c).map(|c| values(c).map(|v| (v - mean[c]).powi(2)).sum::<T>() / count).collect();
    [mean, variance]
}

/// The settings of a local response norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalResponse {
    /// Channels in the window: `size / 2` before the channel, itself, and `(size − 1) / 2` after it.
    pub size: usize,
    /// α, divided by `size` as in PyTorch and Caffe (and not in the AlexNet paper).
    pub alpha: f64,
    /// β, the exponent.
    pub beta: f64,
    /// k, the summand that keeps the denominator away from zero.
    pub k: f64,
}

impl LocalResponse {
    /// The channels that count for channel `c` of `channels`.
    pub(super) fn window(&self, c: usize, channels: usize) -> Range<usize> {
        c.saturating_sub(self.size / 2)..(c + (self.size - 1) / 2 + 1).min(channels)
    }
}

/// Local response normalisation across channels (Krizhevsky et al. 2012), `torch.nn.functional.local_response_norm`:
/// `y[c] = x[c] / (k + α/size · Σ x[j]²)^β`, over the channels `j` of the window that exist.
///
/// # Shapes
/// `[N, C, H, W]` to the same.
pub fn local_response_norm<T: Real>(x: &[T], input: Nchw, norm: LocalResponse) -> Vec<T> {
    input.assert_holds(x);
    assert!(norm.size > 0, "an empty window");
    let (scale, beta, k) = (T::of(norm.alpha / norm.size as f64), T::of(norm.beta), T::of(norm.k));
    let mut y = vec![T::zero(); x.len()];
    for n in 0..input.n {
        for c in 0..input.c {
            let window = norm.window(c, input.c);
            for (pixel, i) in input.channel(n, c).enumerate() {
                let squares: T = window.clone().map(|j| x[input.channel(n, j)][pixel]).map(|v| v * v).sum();
                y[i] = x[i] / (k + scale * squares).powf(beta);
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, ramp};
    use super::*;

    #[test]
    fn local_response_windows_lean_backwards_for_even_sizes() {
        let x = ramp::<f64>(12, 5, 17, 8.0);
        // torch.nn.functional.local_response_norm(x, size, alpha=0.5, beta=0.75, k=2)
        let cases: [(usize, [f64; 12]); 2] = [
            (
                5,
                [
                    -0.564133743314,
                    -0.215687095988,
                    0.139137632906,
                    0.489875463847,
                    -0.347099499634,
                    0.0,
                    0.347099499634,
                    -0.485679508358,
                    -0.139137632906,
                    0.21377270366,
                    0.564133743314,
                    -0.285030271547,
                ],
            ),
            (
                4,
                [
                    -0.566611639861,
                    -0.213950493654,
                    0.139268404292,
                    0.499217818527,
                    -0.342438755568,
                    0.0,
                    0.356584156091,
                    -0.482907077034,
                    -0.136975502227,
                    0.211607951699,
                    0.557073617167,
                    -0.282143935599,
                ],
            ),
        ];
        for (size, expected) in cases {
            let norm = LocalResponse { size, alpha: 0.5, beta: 0.75, k: 2.0 };
            assert_close(&local_response_norm(&x, Nchw::new([1, 6, 1, 2]), norm), &expected, 1e-11);
        }
    }

    #[test]
    fn batch_norm_matches_pytorch_and_defaults_to_no_affine() {
        let (x, input) = (ramp::<f64>(12, 5, 17, 8.0), Nchw::new([2, 3, 1, 2]));
        let norm = BatchNorm {
            mean: &[0.1, 0.2, 0.3],
            variance: &[1.0, 0.5, 2.0],
            affine: Some((&[1.0, 2.0, 3.0], &[0.0, 0.5, -0.5])),
            epsilon: 1e-3,
        };
        // torch.nn.functional.batch_norm(..., eps=1e-3)
        let expected = [
            -1.09945041216,
            -0.474762677977,
            0.64128014666,
            2.40728197991,
            -2.46173094634,
            -1.13623706368,
            0.524737696711,
            -0.974512865321,
            -0.771521319942,
            0.994480513311,
            0.984553148585,
            -2.19663216981,
        ];
        assert_close(&batch_norm(&x, input, norm), &expected, 1e-11);
        let plain = BatchNorm { mean: &[1.0; 3], variance: &[4.0; 3], affine: None, epsilon: 0.0 };
        assert_eq!(batch_norm(&[5.0; 12], input, plain), [2.0; 12]);
    }
}
