//! A tile for products of one register each way: sixteen of `k` and no more than sixteen columns, as Winograd's method has
//! them for sixteen channels.
//!
//! ```text
//! w0 … w15 = B                                                     (stays in registers for all rows)
//! for eight rows:  for k:  c0 += A[0][k]·wk; …; c7 += A[7][k]·wk
//! ```
//!
//! The tiles of `micro.rs` would load the weights again for every few rows, and run for fewer cycles than their beginning
//! and end take. Sums run in the same order as there.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed")]
#![cfg_attr(not(target_arch = "x86_64"), allow(unused, reason = "there are sixteen lanes nowhere else"))]

use crate::simd::{self, Isa, Routine, Simd};

/// Floats of `k`, and lanes.
pub(super) const SIDE: usize = 16;

/// What one call works on.
pub(super) struct Tile {
    /// `[rows][SIDE]`.
    pub(super) a: *const f32,
    pub(super) rows: usize,
    /// `[SIDE][SIDE]` weights.
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Columns that exist in `c`.
    pub(super) columns: usize,
}

/// Writes out a step for every `k`: the compiler would make a loop of it, and its weights would lie in memory.
macro_rules! sixteen_times {
    ($step:ident) => {
        sixteen_times!($step: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($step:ident: $($k:literal)*) => {
        $($step!($k);)*
    };
}

/// The routine, where registers are wide enough and there are enough of them.
pub(super) fn routine(isa: Isa) -> Option<unsafe fn(&Tile)> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => Some(simd::routine::<simd::Avx512, Narrow>()),
        _ => None,
    }
}

struct Narrow;

impl Routine for Narrow {
    type Args = Tile;

    #[inline(always)]
    unsafe fn run<S: Simd>(t: &Tile) {
        // SAFETY: the caller vouches for `rows` rows of A and C and for all weights.
        unsafe {
            let mut w = [S::zero(); SIDE];
            macro_rules! load {
                ($k:literal) => {
                    w[$k] = S::load(t.b.add($k * S::LANES))
                };
            }
            sixteen_times!(load);
            let last = S::mask(t.columns);
            let mut row = 0;
            while row + 8 <= t.rows {
                rows::<S, 8>(t, row, &w, last);
                row += 8;
            }
            while row < t.rows {
                rows::<S, 1>(t, row, &w, last);
                row += 1;
            }
        }
    }
}

/// `R` rows from `row` on.
#[inline(always)]
unsafe fn rows<S: Simd, const R: usize>(t: &Tile, row: usize, w: &[S::V; SIDE], last: S::M) {
    // SAFETY: as in `Narrow::run`.
    unsafe {
        let a = t.a.add(row * SIDE);
        let mut acc = [S::zero(); R];
        macro_rules! step {
            ($k:literal) => {
                for r in 0..R {
                    acc[r] = S::fma(S::splat(*a.add(r * SIDE + $k)), w[$k], acc[r]);
                }
            };
        }
        sixteen_times!(step);
        for r in 0..R {
            S::store_masked(t.c.add((row + r) * t.ldc), acc[r], last);
        }
    }
}
