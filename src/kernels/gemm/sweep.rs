//! One panel of weights and all rows: tile after tile, while what comes next is fetched, and a smooth activation for the tile
//! that was just computed.

use super::micro::{self, LINE, Micro, PARTS, STREAMS, Tile};
use crate::activation::Activation;
use crate::simd::{self, Simd, Task};

/// The rows that come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// None that are not in the cache.
    None,
    /// Those of the next tile.
    Below,
    /// The same rows of the next tap.
    Tap,
}

/// What a sweep fetches into the caches ahead of use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    /// Registers of columns, and lanes of each.
    pub(super) vectors: usize,
    pub(super) lanes: usize,
    /// Activations: worth it when they are met for the first time.
    pub(super) rows: Next,
    /// Floats from the weights in use to those that are fetched, and how many of them are; zero if none.
    pub(super) weights: [usize; 2],
}

/// An activation that is more than a clamp, for the tile just computed while it lies in the first cache.
#[derive(Clone, Copy)]
pub(super) struct Smooth {
    pub(super) activation: Activation,
    pub(super) columns: usize,
    pub(super) run: unsafe fn(Activate),
}

/// Runs the microkernel over `m` rows in tiles of nearly equal height, so that none is too low to hide latencies.
///
/// # Safety
/// As [`Gemm::run`](super::Gemm::run) for the columns of `tile`.
pub(super) unsafe fn sweep(m: usize, mut tile: Tile, micros: &[Micro], ahead: Ahead, smooth: Option<Smooth>) {
    let tiles = m.div_ceil(micros.len());
    let [fours, blocks] = micro::fetches([micros.len(), ahead.vectors], tile.taps, tile.k);
    let work = tile.taps * tile.k * ahead.vectors;
    tile.columns = micro::lines(ahead.vectors, ahead.lanes).div_ceil(blocks.max(1));
    // Weights are fetched evenly, some lines of every stream in every tile.
    let lines = ahead.weights[1].div_ceil(STREAMS * LINE);
    let parts = (STREAMS * PARTS * lines.div_ceil(tiles)).div_ceil(fours.max(1)).min(MOST_LINES * PARTS);
    let fetched = fours * parts / (STREAMS * PARTS);
    tile.later_apart = lines * LINE;
    let mut from = 0;
    for i in 0..tiles {
        let to = (i + 1) * m / tiles;
        let height = to - from;
        tile.later = tile.b.wrapping_add(ahead.weights[0] + i * fetched * LINE);
        tile.later_parts = if i * fetched < lines { parts } else { 0 };
        let below = height * (1 + FETCHED_AFTER / (work * height).max(1));
        tile.below[0] = tile.c.wrapping_add(below * tile.ldc).cast_const();
        if !tile.residual.is_null() {
            tile.below[1] = tile.residual.wrapping_add(below * tile.ld_residual);
        }
        // SAFETY: `from < to ≤ m` and `height ≤ micros.len()`; the next tile may be one row lower than this one, so at the
        // end of the table it is not looked at.
        unsafe {
            let next = tile.rows.add(height);
            tile.next = match ahead.rows {
                Next::Below if to + height <= m => next,
                Next::Tap => tile.rows.add(tile.rows_stride),
                _ => std::ptr::null(),
            };
            micros[height - 1](&tile);
            if let Some(Smooth { activation, columns, run }) = smooth {
                run(Activate { activation, c: tile.c, ld: tile.ldc, rows: height, columns });
            }
            tile.rows = next;
            tile.c = tile.c.add(height * tile.ldc);
            if !tile.soon[0].at.is_null() {
                tile.soon = tile.soon.map(|soon| soon.from(height, 0));
            }
            if !tile.residual.is_null() {
                tile.residual = tile.residual.add(height * tile.ld_residual);
            }
        }
        from = to;
    }
}

/// Most cache lines of weights that are fetched for every four of k: more hold up what is multiplied.
const MOST_LINES: usize = 6;

/// A tile of fewer multiplications of registers than this is over before what it fetches has come: it fetches for a tile
/// further down than the next.
const FETCHED_AFTER: usize = 800;

/// Applies a smooth activation in place: outside the microkernel, where it would be unrolled for every accumulator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activate {
    pub(super) activation: Activation,
    pub(super) c: *mut f32,
    pub(super) ld: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Task for Activate {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on. One loop for what EfficientNet does everywhere, so that its constants stay in registers.
        unsafe {
            match self.activation {
                Activation::Silu => self.apply::<S>(Activation::Silu),
                other => self.apply::<S>(other),
            }
        }
    }
}

impl Activate {
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, activation: Activation) {
        // SAFETY: `sweep` passes elements it has just written.
        unsafe {
            let whole = self.columns / S::LANES * S::LANES;
            let rest = S::mask(self.columns - whole);
            for m in 0..self.rows {
                let row = self.c.add(m * self.ld);
                for i in (0..whole).step_by(S::LANES) {
                    let v = simd::apply_activation::<S>(Some(activation), S::load(row.add(i)));
                    S::store(row.add(i), v);
                }
                if whole < self.columns {
                    let v = S::load_masked(row.add(whole), rest);
                    S::store_masked(row.add(whole), simd::apply_activation::<S>(Some(activation), v), rest);
                }
            }
        }
    }
}
