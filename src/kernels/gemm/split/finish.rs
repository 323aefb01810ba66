//! What becomes of the sums of a product.

use super::{COLUMNS, Run, blocks};
use crate::kernels::gemm::{Activate, Panel, clamp_of, is_clamp};
use crate::simd::Simd;
use std::ops::Range;

/// Where the sums of some rows and the columns of a panel go, and what is added to them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    /// How many rows.
    pub(super) rows: usize,
    /// Their columns.
    pub(super) columns: usize,
    /// Where the first goes, and its residual, if there is one; floats from row to row of each.
    pub(super) to: *mut f32,
    pub(super) residual: *const f32,
    pub(super) lds: [usize; 2],
    /// What is added to each column; null if the parts of k before are in their place.
    bias: *const f32,
    /// What the results are clamped to.
    range: [f32; 2],
    /// Applied to all rows in the end.
    smooth: Option<Smooth>,
}

/// An activation that is no clamp.
#[derive(Debug, Clone, Copy)]
struct Smooth {
    of: Activate,
    run: unsafe fn(Activate),
}

impl Sums {
    /// The sums of a piece of k.
    pub(super) fn new(run: &Run<'_>, panel: &Panel, rows: Range<usize>, piece: &Range<usize>) -> Self {
        let target = &run.target;
        let activation = run.gemm.activation.filter(|_| piece.end == blocks(run.gemm.extent));
        let to = target.c.wrapping_add(rows.start * target.ld + panel.start);
        let (residual, bias) = match piece.start {
            0 => {
                let at = if target.residual.is_null() { 0 } else { rows.start * target.ld_residual + panel.start };
                (target.residual.wrapping_add(at), run.packed.wrapping_add(run.gemm.bias_at() + panel.start))
            }
            _ => (std::ptr::null(), std::ptr::null()),
        };
        let smooth = activation.filter(|&activation| !is_clamp(activation)).map(|activation| Smooth {
            of: Activate { activation, c: to, ld: target.ld, rows: rows.len(), columns: panel.len },
            run: run.gemm.activate,
        });
        let (lds, range) = ([target.ld, target.ld_residual], clamp_of(activation));
        Sums { rows: rows.len(), columns: panel.len, to, residual, lds, bias, range, smooth }
    }

    /// Adds bias and residual, or what the parts of k before have left, to the sums at `from`, [`COLUMNS`] floats from row to row,
    /// clamps and stores them.
    ///
    /// # Safety
    /// `from` holds the sums of all rows; the rest is what [`Gemm::run`](crate::kernels::gemm::Gemm::run) asks.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, from: *const f32) {
        // SAFETY: the caller's promise; masks leave out what is beyond the last column.
        unsafe {
            let last = S::mask((self.columns - 1) % S::LANES + 1);
            match (self.columns > S::LANES, self.columns.is_multiple_of(S::LANES)) {
                (true, true) => self.finish_as::<S, 2>(from, None),
                (true, false) => self.finish_as::<S, 2>(from, Some(last)),
                (false, _) => self.finish_as::<S, 1>(from, Some(last)),
            }
            if let Some(smooth) = self.smooth {
                (smooth.run)(smooth.of);
            }
        }
    }

    /// Rows of so many registers, of the last of which lanes may be missing.
    #[inline(always)]
    unsafe fn finish_as<S: Simd, const VECTORS: usize>(&self, mut from: *const f32, last: Option<S::M>) {
        // SAFETY: as in `finish`.
        unsafe {
            let load = |from: *const f32, vector: usize| match last {
                Some(mask) if vector + 1 == VECTORS => S::load_masked(from.add(vector * S::LANES), mask),
                _ => S::load(from.add(vector * S::LANES)),
            };
            let (least, most) = (S::splat(self.range[0]), S::splat(self.range[1]));
            let Sums { mut to, mut residual, bias, lds: [ld, ld_residual], .. } = *self;
            for _ in 0..self.rows {
                for vector in 0..VECTORS {
                    let mut sum = S::load(from.add(vector * S::LANES));
                    if bias.is_null() {
                        sum = S::add(sum, load(to, vector));
                    } else {
                        sum = S::add(sum, S::load(bias.add(vector * S::LANES)));
                        if !residual.is_null() {
                            sum = S::add(sum, load(residual, vector));
                        }
                    }
                    sum = S::min(most, S::max(least, sum));
                    let at = to.add(vector * S::LANES);
                    match last {
                        Some(mask) if vector + 1 == VECTORS => S::store_masked(at, sum, mask),
                        _ => S::store(at, sum),
                    }
                }
                from = from.add(COLUMNS);
                to = to.wrapping_add(ld);
                residual = residual.wrapping_add(ld_residual);
            }
        }
    }
}
