//! What remains to be done to a row of sums: residual, activation, and the sum of the row.

use crate::activation::Activation;
use crate::simd::{Simd, Task, apply_activation};

/// `target = activation(sums + residual)` on a run of pixels, while it is in the cache. The target may be the sums or
/// the residual. A task of its own, so that it is compiled once and not for every geometry.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub(super) sums: Pixels,
    pub(super) residual: Option<Pixels>,
    pub(super) target: *mut f32,
    pub(super) ld: usize,
    pub(super) pixels: usize,
    pub(super) channels: usize,
    pub(super) activation: Option<Activation>,
    /// Where the sum over the pixels of the target goes, one float per channel; or null.
    pub(super) total: *mut f32,
}

/// Pixels to read: number `i` starts at `first + i · ld`.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub(super) first: *const f32,
    pub(super) ld: usize,
}

impl Task for Finish {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        macro_rules! columns {
            ($activation:expr) => {
                // SAFETY: passed on.
                unsafe { self.columns::<S>($activation) }
            };
        }
        match self.activation {
            // One loop for what EfficientNet does everywhere, so that its constants stay in registers.
            Some(Activation::Silu) => columns!(Some(Activation::Silu)),
            other => columns!(other),
        }
    }
}

impl Finish {
    #[inline(always)]
    unsafe fn columns<S: Simd>(self, activation: Option<Activation>) {
        let whole = self.channels / S::LANES * S::LANES;
        // SAFETY: sums, residual and target have `channels` floats at every pixel.
        unsafe {
            for c in (0..whole).step_by(S::LANES) {
                self.column::<S, true>(activation, c);
            }
            if whole < self.channels {
                self.column::<S, false>(activation, whole);
            }
        }
    }

    /// One register of channels from `c` on, `FULL` or what is left of them.
    #[inline(always)]
    unsafe fn column<S: Simd, const FULL: bool>(self, activation: Option<Activation>, c: usize) {
        // SAFETY: as in `columns`.
        unsafe {
            let mask = S::mask(if FULL { S::LANES } else { self.channels - c });
            let mut total = S::zero();
            for pixel in 0..self.pixels {
                let mut v = load::<S, FULL>(self.sums.first.add(pixel * self.sums.ld + c), mask);
                if let Some(r) = self.residual {
                    v = S::add(v, load::<S, FULL>(r.first.add(pixel * r.ld + c), mask));
                }
                v = apply_activation::<S>(activation, v);
                store::<S, FULL>(self.target.add(pixel * self.ld + c), v, mask);
                total = S::add(total, v);
            }
            if !self.total.is_null() {
                store::<S, FULL>(self.total.add(c), total, mask);
            }
        }
    }
}

/// A register, or the lanes of `mask` if it is not `FULL`.
#[inline(always)]
unsafe fn load<S: Simd, const FULL: bool>(p: *const f32, mask: S::M) -> S::V {
    // SAFETY: passed on.
    unsafe { if FULL { S::load(p) } else { S::load_masked(p, mask) } }
}

/// The same, stored.
#[inline(always)]
unsafe fn store<S: Simd, const FULL: bool>(p: *mut f32, v: S::V, mask: S::M) {
    // SAFETY: passed on.
    unsafe { if FULL { S::store(p, v) } else { S::store_masked(p, v, mask) } }
}
