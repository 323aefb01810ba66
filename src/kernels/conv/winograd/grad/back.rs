//! From the sums of positions to the gradient of the taps: `dg = Gᵀ·dU·G`.

#![allow(unsafe_code, reason = "reads sums and writes taps in raw memory")]

use super::super::points::{MOST_IN, MOST_TAPS, Points, Turned};
use crate::kernels::Io;
use crate::kernels::conv::weights::Order;
use crate::kernels::light::Tiled;
use crate::simd::Simd;
use std::marker::PhantomData;
use std::ops::Range;

/// Lanes of the widest register.
const SIDE: usize = 16;

/// Adds up the slices and transforms the sums back: `dg = Gᵀ·dU·G`.
pub(super) struct Gather<P> {
    pub(super) slices: usize,
    pub(super) back: Back,
    pub(super) points: PhantomData<P>,
}

impl<P: Turned> Tiled for Gather<P> {
    fn name(&self) -> String {
        "gather_winograd".to_owned()
    }

    fn tiles(&self) -> usize {
        let [rows, across] = self.back.size();
        rows.div_ceil(Self::rows(across))
    }

    fn scratch(&self) -> usize {
        let [_, across] = self.back.size();
        P::IN * P::IN * Self::spread(Self::rows(across) * across)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let [rows, across] = self.back.size();
        let per_tile = Self::rows(across);
        let mine = tile * per_tile..rows.min((tile + 1) * per_tile);
        let (len, spread) = (mine.len() * across, Self::spread(per_tile * across));
        // SAFETY: every slice has a sum for every position and pair of channels, and every pair its taps; the scratch has room
        // for those of the tile.
        unsafe {
            for position in 0..P::IN * P::IN {
                let from = io.inputs[0].add(position * rows * across + mine.start * across);
                self.add_up::<S>(from, rows * across, scratch[position * spread..][..len].as_mut_ptr(), len);
            }
            self.back.taps::<S, P>(mine, 0..across, scratch.as_ptr(), [spread, across], io.output);
        }
    }
}

impl<P: Turned> Gather<P> {
    /// Adds up the slices at a position, which ends `apart` floats behind its beginning, and fetches those of the next. Sums are
    /// read in runs, since positions may be as far apart as what competes for the same places of a cache.
    ///
    /// # Safety
    /// Every slice has `len` sums from `from` on, `to` has room for them, and S is supported.
    #[inline(always)]
    unsafe fn add_up<S: Simd>(&self, from: *const f32, apart: usize, to: *mut f32, len: usize) {
        let slice_apart = P::IN * P::IN * apart;
        for i in (0..len).step_by(S::LANES) {
            // SAFETY: as demanded; prefetching is harmless anywhere.
            unsafe {
                let mask = S::mask(S::LANES.min(len - i));
                let mut sum = S::load_masked(from.add(i), mask);
                S::prefetch_far(from.wrapping_add(apart + i));
                for slice in 1..self.slices {
                    let from = from.add(slice * slice_apart + i);
                    sum = S::add(sum, S::load_masked(from, mask));
                    S::prefetch_far(from.wrapping_add(apart));
                }
                S::store_masked(to.add(i), sum, mask);
            }
        }
    }
}

impl<P> Gather<P> {
    /// Rows of a tile: the second cache holds their sums at all positions.
    fn rows(across: usize) -> usize {
        ((1 << 11) / across).max(1)
    }

    /// Floats from position to position of what is added up: an odd number of cache lines.
    fn spread(floats: usize) -> usize {
        (floats.div_ceil(16) | 1) * 16
    }
}

/// The way from the sums of positions to the gradient.
#[derive(Clone, Copy)]
pub(super) struct Back {
    /// Where taps lie.
    pub(super) order: Order,
    /// Out and in.
    pub(super) channels: [usize; 2],
    /// Whether input channels are the rows of the products: where these are so few that a row of them would leave registers
    /// empty.
    pub(super) turned: bool,
}

impl Back {
    /// Rows and columns of the products.
    pub(super) fn size(&self) -> [usize; 2] {
        let [outputs, inputs] = self.channels;
        if self.turned { [inputs, outputs] } else { [outputs, inputs] }
    }

    /// The taps of the given rows and columns of the products, whose sums begin at `sums` and are so many floats apart from
    /// position to position and from row to row. `to` is the whole gradient.
    ///
    /// # Safety
    /// All these sums are readable, the taps writable.
    #[inline(always)]
    pub(super) unsafe fn taps<S: Simd, P: Turned>(
        &self,
        rows: Range<usize>,
        across: Range<usize>,
        sums: *const f32,
        [apart, ld]: [usize; 2],
        to: *mut f32,
    ) {
        for (i, row) in rows.enumerate() {
            for first in across.clone().step_by(S::LANES) {
                let count = S::LANES.min(across.end - first);
                let mut taps = [[0.0f32; SIDE]; MOST_TAPS * MOST_TAPS];
                // SAFETY: passed on; an array of taps has room for a register.
                unsafe {
                    let mask = S::mask(count);
                    let from = sums.add(i * ld + first - across.start);
                    let sum = |position: usize| S::load_masked(from.add(position * apart), mask);
                    back::<S, P>(sum, &mut taps);
                    match self.order.folded {
                        None if !self.turned => {
                            let to = to.add(row * self.order.output + first * self.order.input);
                            let to = std::slice::from_raw_parts_mut(to, count * P::TAPS * P::TAPS);
                            for (n, to) in to.chunks_exact_mut(P::TAPS * P::TAPS).enumerate() {
                                to.iter_mut().zip(&taps).for_each(|(to, tap)| *to = tap[n]);
                            }
                        }
                        _ => self.scatter::<P>(&taps, [row, first, count], to),
                    }
                }
            }
        }
    }

    /// Writes taps that do not lie together: those of `count` pairs from column `first` of a row on.
    ///
    /// # Safety
    /// The taps of these pairs are writable; `to` is the whole gradient.
    unsafe fn scatter<P: Points>(
        &self,
        taps: &[[f32; SIDE]; MOST_TAPS * MOST_TAPS],
        [row, first, count]: [usize; 3],
        to: *mut f32,
    ) {
        for n in 0..count {
            let (output, input) = if self.turned { (first + n, row) } else { (row, first + n) };
            for tap in 0..P::TAPS * P::TAPS {
                let at = match self.order.folded {
                    None => Some(input * self.order.input + tap),
                    Some(folded) => folded.at(input, tap),
                };
                if let Some(at) = at {
                    // SAFETY: passed on.
                    unsafe { *to.add(output * self.order.output + at) = taps[tap][n] };
                }
            }
        }
    }
}

/// `Gᵀ·dU·G` of a register of pairs, the sums of every position by `sum`.
///
/// # Safety
/// The sums may be asked for, and S is supported.
#[inline(always)]
unsafe fn back<S: Simd, P: Turned>(sum: impl Fn(usize) -> S::V, taps: &mut [[f32; SIDE]; MOST_TAPS * MOST_TAPS]) {
    // SAFETY: as demanded.
    unsafe {
        // Rows of Gᵀ·dU.
        let mut rows = [[S::zero(); MOST_IN]; MOST_TAPS];
        for j in 0..P::IN {
            let mut column = [S::zero(); MOST_IN];
            for i in 0..P::IN {
                column[i] = sum(i * P::IN + j);
            }
            let column = gather::<S, P>(column);
            for a in 0..P::TAPS {
                rows[a][j] = column[a];
            }
        }
        for a in 0..P::TAPS {
            let row = gather::<S, P>(rows[a]);
            for b in 0..P::TAPS {
                S::store(taps[a * P::TAPS + b].as_mut_ptr(), row[b]);
            }
        }
    }
}

/// `Gᵀ·s`, the way back through the transform of filters, in f32: of what comes in, every sum is rounded already.
#[inline(always)]
unsafe fn gather<S: Simd, P: Points>(s: [S::V; MOST_IN]) -> [S::V; MOST_TAPS] {
    // SAFETY: arithmetic in registers of a supported set.
    unsafe {
        let mut line = [S::zero(); MOST_TAPS];
        for i in 0..P::IN {
            let alone = i == 0 || i > 2 * P::PAIRS;
            if !alone && i % 2 == 0 {
                continue;
            }
            // What two rows of a pair have in common is computed once.
            let [even, odd] = if alone { [s[i]; 2] } else { [S::add(s[i], s[i + 1]), S::sub(s[i], s[i + 1])] };
            for y in 0..P::TAPS {
                let (factor, values) = (P::G[i][y] as f32, if y % 2 == 0 { even } else { odd });
                if factor != 0.0 {
                    line[y] = S::fma(S::splat(factor), values, line[y]);
                }
            }
        }
        line
    }
}
