//! The middle of squeeze-and-excitation as one kernel: means, two small products and the functions behind them.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::light::{Light, Tiled};
use super::{Io, Kernel, Map};
use crate::activation::Activation;
use crate::simd::{Isa, Simd, apply_activation};
use crate::tensor::AlignedBuf;

/// The geometry of an excitation.
#[derive(Debug, Clone, Copy)]
pub struct ExciteSpec {
    /// What the means are made of, `[n, rows, 1, c]`: sums over some of an image's pixels each.
    pub sums: Map,
    /// Pixels of an image.
    pub pixels: usize,
    /// Channels between the products.
    pub squeezed: usize,
    /// Applied after the first and after the second product.
    pub activations: [Option<Activation>; 2],
    /// The gate written, `[n, 1, 1, c]`.
    pub output: Map,
}

/// Weights and biases of a product as PyTorch stores them: `[out, in]` and `[out]`.
pub type Weights<'a> = (&'a [f32], Option<&'a [f32]>);

/// Prepares `g[n] = f₂(W₂ · f₁(W₁ · m[n] + b₁) + b₂)`, where `m[n, c]` is the sum over the rows of `sums[n, .., c]`
/// divided by the pixels. Panics if the slices do not fit the geometry.
pub fn excite(spec: ExciteSpec, first: Weights<'_>, second: Weights<'_>, isa: Isa) -> impl Kernel + use<> {
    let (c, s, lanes) = (spec.sums.c, spec.squeezed, isa.lanes());
    assert!(spec.sums.w == 1 && c > 0 && s > 0 && spec.pixels > 0);
    assert_eq!([spec.output.n, spec.output.h, spec.output.w, spec.output.c], [spec.sums.n, 1, 1, c]);
    assert!(first.0.len() == s * c && second.0.len() == s * c);
    let bias = |bias: Option<&[f32]>, len: usize| {
        assert!(bias.is_none_or(|b| b.len() == len));
        let mut padded = AlignedBuf::zeros(len.next_multiple_of(ABREAST * lanes));
        if let Some(bias) = bias {
            padded[..len].copy_from_slice(bias);
        }
        padded
    };
    let biases = [bias(first.1, s), bias(second.1, c)];
    let stride = c.next_multiple_of(lanes);
    let mut rows = AlignedBuf::lasting_zeros(s.next_multiple_of(ABREAST) * stride);
    for (row, values) in rows.chunks_exact_mut(stride).zip(first.0.chunks_exact(c)) {
        row[..c].copy_from_slice(values);
    }
    let width = ABREAST * lanes;
    let mut columns = AlignedBuf::lasting_zeros(c.next_multiple_of(width) * s);
    for (channel, values) in second.0.chunks_exact(s).enumerate() {
        for (j, &value) in values.iter().enumerate() {
            columns[(channel / width * s + j) * width + channel % width] = value;
        }
    }
    Light { isa, kernel: Excite { spec, stride, rows, columns, biases } }
}

/// Sums carried side by side, so that one need not wait for the other.
const ABREAST: usize = 4;

/// Floats of the second weights fetched ahead: four pages.
const AHEAD: usize = 4096;

struct Excite {
    spec: ExciteSpec,
    /// Floats of a row of the first weights.
    stride: usize,
    /// `[squeezed][channel]`, whole registers and a multiple of [`ABREAST`] rows.
    rows: AlignedBuf,
    /// `[block of channels][squeezed][channel in the block]`.
    columns: AlignedBuf,
    biases: [AlignedBuf; 2],
}

impl Excite {
    /// The means of image `n`; zeros up to a whole register.
    #[inline(always)]
    unsafe fn means<S: Simd>(&self, n: usize, sums: *const f32, means: *mut f32) {
        let Map { h, c, ld, .. } = self.spec.sums;
        // SAFETY: `n` is an image of the sums; `means` has room for whole registers.
        unsafe {
            let share = S::splat(1.0 / self.spec.pixels as f32);
            for at in (0..c).step_by(S::LANES) {
                let mask = S::mask(S::LANES.min(c - at));
                let mut total = S::zero();
                for row in 0..h {
                    total = S::add(total, S::load_masked(sums.add((n * h + row) * ld + at), mask));
                }
                S::store(means.add(at), S::mul(total, share));
            }
        }
    }

    /// `hidden = f₁(W₁ · means + b₁)`; whatever beyond `squeezed`.
    #[inline(always)]
    unsafe fn squeeze<S: Simd>(&self, means: *const f32, hidden: *mut f32) {
        // SAFETY: the rows are padded to whole registers and to a multiple of `ABREAST`, as `hidden` is.
        unsafe {
            for j in (0..self.spec.squeezed).step_by(ABREAST) {
                let rows = self.rows.as_ptr().add(j * self.stride);
                let mut sums = [S::zero(); ABREAST];
                for at in (0..self.stride).step_by(S::LANES) {
                    let mean = S::load(means.add(at));
                    for r in 0..ABREAST {
                        let weights = rows.add(r * self.stride + at);
                        // The rows that follow lie behind these: a whole page or more, where the hardware stops looking.
                        S::prefetch_far(weights.wrapping_add(ABREAST * self.stride));
                        sums[r] = S::fma(mean, S::load(weights), sums[r]);
                    }
                }
                for r in 0..ABREAST {
                    *hidden.add(j + r) = S::hsum(sums[r]) + self.biases[0][j + r];
                }
            }
            for j in (0..self.spec.squeezed).step_by(S::LANES) {
                let v = S::load(hidden.add(j));
                S::store(hidden.add(j), apply_activation::<S>(self.spec.activations[0], v));
            }
        }
    }

    /// `gate = f₂(W₂ · hidden + b₂)`.
    #[inline(always)]
    unsafe fn excite<S: Simd>(&self, hidden: *const f32, gate: *mut f32) {
        let (c, s, width) = (self.spec.sums.c, self.spec.squeezed, ABREAST * S::LANES);
        // SAFETY: weights and bias are padded to whole blocks; the masks keep to the channels of the gate.
        unsafe {
            for block in (0..c).step_by(width) {
                let mut weights = self.columns.as_ptr().add(block * s);
                let mut sums = [S::zero(); ABREAST];
                for v in 0..ABREAST {
                    sums[v] = S::load(self.biases[1].as_ptr().add(block + v * S::LANES));
                }
                for j in 0..s {
                    let h = S::splat(*hidden.add(j));
                    for v in 0..ABREAST {
                        S::prefetch_far(weights.wrapping_add(AHEAD + v * S::LANES));
                        sums[v] = S::fma(h, S::load(weights.add(v * S::LANES)), sums[v]);
                    }
                    weights = weights.add(width);
                }
                for v in 0..ABREAST {
                    let at = block + v * S::LANES;
                    if at < c {
                        let y = apply_activation::<S>(self.spec.activations[1], sums[v]);
                        S::store_partial(gate.add(at), y, S::LANES.min(c - at));
                    }
                }
            }
        }
    }
}

impl Tiled for Excite {
    fn name(&self) -> String {
        "excite".to_owned()
    }

    fn tiles(&self) -> usize {
        self.spec.output.n
    }

    fn scratch(&self) -> usize {
        // Room for whole registers of any instruction set.
        self.stride.next_multiple_of(16) + self.biases[0].len().next_multiple_of(16)
    }

    fn resident_bytes(&self) -> usize {
        4 * (self.rows.len() + self.columns.len() + self.biases[0].len() + self.biases[1].len())
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (means, hidden) = scratch.split_at_mut(self.stride.next_multiple_of(16));
        let (means, hidden) = (means.as_mut_ptr(), hidden.as_mut_ptr());
        // SAFETY: the scratch has room for means and squeezed channels; tiles are images.
        unsafe {
            self.means::<S>(tile, io.inputs[0], means);
            self.squeeze::<S>(means, hidden);
            self.excite::<S>(hidden, io.output.add(tile * self.spec.output.ld));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, nchw, run, spread, values};
    use super::super::naive;
    use super::*;

    #[test]
    fn gates_agree_with_the_oracle_on_every_isa() {
        for (n, rows, c, s) in
            [(1, 1, 1, 1), (2, 7, 33, 5), (1, 14, 144, 6), (3, 4, 70, 17), (1, 56, 16, 4), (2, 1, 200, 32)]
        {
            let pixels = 3 * rows;
            let sums = Map::new([n, rows, 1, c], c + 3);
            let output = Map::new([n, 1, 1, c], c + 2);
            let x = values(nchw(sums).len(), 1);
            let weights = |seed| values(s * c, seed).iter().map(|v| v / 16.0).collect::<Vec<f32>>();
            let (w1, b1, w2, b2) = (weights(2), values(s, 3), weights(4), values(c, 5));
            let mean: Vec<f64> =
                x.chunks(rows).map(|v| v.iter().map(|&v| f64::from(v)).sum::<f64>() / pixels as f64).collect();
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let want = |biases: bool, functions: [Activation; 2]| {
                let bias = |b: &[f32]| biases.then(|| wide(b));
                let hidden = naive::linear(&mean, &wide(&w1), bias(&b1).as_deref(), s);
                let hidden = naive::activation(&hidden, functions[0]);
                let gate = naive::linear(&hidden, &wide(&w2), bias(&b2).as_deref(), c);
                naive::activation(&gate, functions[1]).iter().map(|&v| v as f32).collect::<Vec<_>>()
            };
            for &isa in Isa::available() {
                for functions in [[Activation::Silu, Activation::Sigmoid], [Activation::Relu, Activation::HardSigmoid]]
                {
                    for biases in [true, false] {
                        let activations = functions.map(Some);
                        let spec = ExciteSpec { sums, pixels, squeezed: s, activations, output };
                        let kernel = excite(spec, (&w1, biases.then_some(&b1)), (&w2, biases.then_some(&b2)), isa);
                        let y = run(&kernel, &[&spread(&x, sums)], output);
                        assert_near(&y, &want(biases, functions), 1e-5, &format!("{spec:?} {}", isa.name()));
                    }
                }
            }
        }
    }
}
