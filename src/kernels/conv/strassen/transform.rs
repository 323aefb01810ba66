//! The two passes over memory: sums of half pixels, and outputs from products.

use super::StrassenProduct;
use crate::activation::Activation;
use crate::kernels::gemm::{clamp_of, is_clamp};
use crate::kernels::{Epilogue, Io};
use crate::simd::{Simd, Task, apply_activation};
use std::ops::Range;

/// Pairs ahead of use to fetch.
const AHEAD: usize = 4;

/// What is done to an input.
pub(super) enum Change {
    /// Nothing.
    None,
    /// `clamp(scale · x + shift)`.
    Norm { table: [*const f32; 2], range: [f32; 2] },
    /// `gate · x`.
    Gate(*const f32),
}

/// The left sides of the products: `v[product · stride + pair · half + channel]`.
pub(super) struct Sums<'a> {
    pub(super) of: &'a StrassenProduct,
    pub(super) change: Change,
    /// The pixels of each pair.
    pub(super) pixels: *const *const f32,
    /// Pairs.
    pub(super) count: usize,
    pub(super) v: *mut f32,
}

impl Task for Sums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: scale, shift and gate have a value for every channel; the rest is passed on.
        unsafe {
            match self.change {
                Change::None => self.sums::<S, false>(|x, _| x),
                Change::Norm { table: [scale, shift], range } => {
                    let (least, most) = (S::splat(range[0]), S::splat(range[1]));
                    self.sums::<S, true>(|x, k| {
                        let y = S::fma(x, S::load(scale.add(k)), S::load(shift.add(k)));
                        S::min(most, S::max(least, y))
                    });
                }
                Change::Gate(gate) => self.sums::<S, true>(|x, k| S::mul(x, S::load(gate.add(k)))),
            }
        }
    }
}

impl Sums<'_> {
    /// `change(x, k)` of the register of channels from `k` on; whether it `CHANGES` anything.
    #[inline(always)]
    unsafe fn sums<S: Simd, const CHANGES: bool>(&self, change: impl Fn(S::V, usize) -> S::V) {
        let (half, stride) = (self.of.spec.input.c / 2, self.of.stride_v);
        // SAFETY: every pixel has both halves of the channels, a register each or more, and V has room for the sums.
        unsafe {
            let load = |pixel: *const f32, k: usize| change(S::load(pixel.add(k)), k);
            for pair in 0..self.count {
                let [a, b] = [*self.pixels.add(2 * pair), *self.pixels.add(2 * pair + 1)];
                let later = 2 * (pair + AHEAD).min(self.count - 1);
                let later = [*self.pixels.add(later), *self.pixels.add(later + 1)];
                let to = self.v.add(pair * half);
                // The last register of a half that is no multiple of it overlaps the one before.
                for k in (0..half).step_by(S::LANES).map(|k| k.min(half - S::LANES)) {
                    for pixel in later {
                        S::prefetch_far(pixel.wrapping_add(k));
                        S::prefetch_far(pixel.wrapping_add(half + k));
                    }
                    let (a1, a2, b1, b2) = (load(a, k), load(a, half + k), load(b, k), load(b, half + k));
                    let to = to.add(k);
                    S::store(to, S::add(a1, b2));
                    S::store(to.add(stride), S::add(b1, b2));
                    if CHANGES {
                        S::store(to.add(2 * stride), a1);
                        S::store(to.add(3 * stride), b2);
                    }
                    S::store(to.add(4 * stride), S::add(a1, a2));
                    S::store(to.add(5 * stride), S::sub(b1, a1));
                    S::store(to.add(6 * stride), S::sub(a2, b2));
                }
            }
        }
    }
}

/// `y = activation(sums of products + bias + residual)` for the pairs of a block and, of both halves of the output channels,
/// those of a panel.
pub(super) struct Join<'a> {
    pub(super) of: &'a StrassenProduct,
    pub(super) pairs: Range<usize>,
    /// Of the first half.
    pub(super) columns: Range<usize>,
    pub(super) io: &'a Io,
    pub(super) m: *const f32,
}

impl Task for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on.
        unsafe {
            let Epilogue { activation, residual } = self.of.spec.epilogue;
            let smooth = activation.filter(|&a| !is_clamp(a));
            match (residual, smooth) {
                (None, None) => self.join::<S, false>(0, None),
                (Some(ld), None) => self.join::<S, true>(ld, None),
                // A loop of its own for EfficientNet's.
                (None, Some(Activation::Silu)) => self.join::<S, false>(0, Some(Activation::Silu)),
                (None, other) => self.join::<S, false>(0, other),
                (Some(ld), other) => self.join::<S, true>(ld, other),
            }
        }
    }
}

impl Join<'_> {
    #[inline(always)]
    unsafe fn join<S: Simd, const RESIDUAL: bool>(&self, ld_residual: usize, smooth: Option<Activation>) {
        let (of, columns) = (self.of, self.columns.len());
        // SAFETY: M has the panel's columns for every pair and product.
        unsafe {
            for pair in self.pairs.clone() {
                let pixels = of.pixels(pair);
                // Where the next pairs will be stored: a store that waits for its line holds up everything behind it.
                let later = (pixels.0 + 2 * AHEAD) * of.ld;
                let later = self.io.output.wrapping_add(later).cast_const();
                let m = self.m.add((pair - self.pairs.start) * of.ld_m);
                let mut n = 0;
                while n + S::LANES <= columns {
                    self.register::<S, RESIDUAL, false>(pixels, n, [m, later], ld_residual, smooth);
                    n += S::LANES;
                }
                if n < columns {
                    self.register::<S, RESIDUAL, true>(pixels, n, [m, later], ld_residual, smooth);
                }
            }
        }
    }

    /// The register of columns from `n` on of both halves, or its first lanes, of two pixels whose products lie at `m`.
    #[inline(always)]
    unsafe fn register<S: Simd, const RESIDUAL: bool, const PARTIAL: bool>(
        &self,
        (a, b): (usize, Option<usize>),
        n: usize,
        [m, later]: [*const f32; 2],
        ld_residual: usize,
        smooth: Option<Activation>,
    ) {
        let (of, channel) = (self.of, self.columns.start + n);
        // SAFETY: the columns are channels of the output, and of the residual, which has the same pixels; M has whole
        // registers.
        unsafe {
            let product = |i: usize| S::load(m.add(i * of.stride_m + n));
            let (m0, m1, m2, m3, m4) = (product(0), product(1), product(2), product(3), product(4));
            for at in [0, of.apart, of.ld, of.ld + of.apart] {
                S::prefetch_far(later.wrapping_add(channel + at));
            }
            let mut sums = [[S::add(S::add(m0, m3), S::sub(product(6), m4)), S::add(m2, m4)], [S::zero(); 2]];
            if b.is_some() {
                sums[1] = [S::add(m1, m3), S::add(S::sub(m0, m1), S::add(m2, product(5)))];
            }
            for (pixel, sums) in [Some(a), b].into_iter().zip(sums) {
                let Some(pixel) = pixel else { break };
                for (half, sum) in sums.into_iter().enumerate() {
                    self.store::<S, RESIDUAL, PARTIAL>(pixel, half, n, sum, ld_residual, smooth);
                }
            }
        }
    }

    /// Finishes and stores what is to be in the columns from `n` on of a pixel's first or second half.
    #[inline(always)]
    unsafe fn store<S: Simd, const RESIDUAL: bool, const PARTIAL: bool>(
        &self,
        pixel: usize,
        half: usize,
        n: usize,
        sum: S::V,
        ld_residual: usize,
        smooth: Option<Activation>,
    ) {
        let (of, column) = (self.of, self.columns.start + n);
        let (channel, at) = (column + half * (of.spec.output.c / 2), column + half * of.apart);
        // SAFETY: as in `register`.
        unsafe {
            let rest = S::mask(self.columns.len() % S::LANES);
            let bias = of.bias.as_ptr().add(channel);
            let mut y = S::add(sum, if PARTIAL { S::load_masked(bias, rest) } else { S::load(bias) });
            if RESIDUAL {
                let add = self.io.inputs[1].add(pixel * ld_residual + channel);
                y = S::add(y, if PARTIAL { S::load_masked(add, rest) } else { S::load(add) });
            }
            let [least, most] = clamp_of(of.spec.epilogue.activation).map(|bound| S::splat(bound));
            y = match smooth {
                // A NaN survives both.
                None => S::min(most, S::max(least, y)),
                smooth => apply_activation::<S>(smooth, y),
            };
            let to = self.io.output.wrapping_add(pixel * of.ld + at);
            if PARTIAL { S::store_masked(to, y, rest) } else { S::store(to, y) }
        }
    }
}
