//! Products of few rows, which take as long as their weights take to come from memory.
//!
//! ```text
//! for i:  for stream:  w = B[stream][i];  c0 += A[0][stream][i]·w;  c1 += A[1][stream][i]·w; …
//! ```
//!
//! The sum over `k` is cut into parts that are read side by side, and lines are fetched ahead.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector")]

use super::micro::{LINE, STREAMS};
use super::{Activation, Extent, Gemm, Target};
use crate::simd::{self, Isa, Routine, Simd};
use std::ops::Range;

/// Floats ahead that are fetched.
const AHEAD: usize = 256;

/// Products of each stream that are summed by themselves: weights of that many stay in the first cache from one tile of rows
/// to the next.
const PIECE: usize = 32;

impl Gemm {
    /// Floats of scratch memory for [`run_few`](Self::run_few) with `m` rows.
    pub fn scratch_of_few(&self, m: usize) -> usize {
        m * self.width(0)
    }

    /// As [`run`](Self::run), for products of one tap and few rows that lie `ld` floats behind each other from `a` on, without a
    /// residual. A row's sums are added in an order of their own, the same for any number of rows.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn run_few(
        &self,
        packed: *const f32,
        m: usize,
        (a, ld): (*const f32, usize),
        panels: Range<usize>,
        target: Target,
        scratch: &mut [f32],
    ) {
        let Extent { taps, k, .. } = self.extent;
        assert!(taps == 1 && !self.split && target.residual.is_null() && scratch.len() >= self.scratch_of_few(m));
        for panel in &self.panels[panels] {
            let run = routine(self.isa, panel.vectors);
            // SAFETY: the weights were packed for every panel; the rest is the caller's promise.
            unsafe {
                run(&Tile {
                    rows: m,
                    k,
                    a,
                    ld,
                    b: packed.add(panel.weights),
                    bias: packed.add(self.bias_at() + panel.start),
                    sums: scratch.as_mut_ptr(),
                    c: target.c.add(panel.start),
                    ldc: target.ld,
                    columns: panel.len,
                    activation: self.activation,
                });
            }
        }
    }
}

/// A panel and all rows.
pub(super) struct Tile {
    rows: usize,
    k: usize,
    a: *const f32,
    /// Floats from row to row.
    ld: usize,
    /// `[k][NRV · LANES]` weights.
    b: *const f32,
    /// What the sums start from, `NRV · LANES` floats.
    bias: *const f32,
    /// Room for the sums, `[rows][NRV · LANES]`.
    sums: *mut f32,
    c: *mut f32,
    ldc: usize,
    columns: usize,
    activation: Option<Activation>,
}

/// The routine for a panel of so many registers.
pub(super) fn routine(isa: Isa, vectors: usize) -> unsafe fn(&Tile) {
    match vectors {
        1 => isa.routine::<Few<1>>(),
        2 => isa.routine::<Few<2>>(),
        3 => isa.routine::<Few<3>>(),
        _ => isa.routine::<Few<4>>(),
    }
}

/// Rows of a tile.
pub(super) const fn most_rows(registers: usize) -> usize {
    if registers < 32 { 2 } else { 4 }
}

struct Few<const NRV: usize>;

impl<const NRV: usize> Routine for Few<NRV> {
    type Args = Tile;

    #[inline(always)]
    unsafe fn run<S: Simd>(t: &Tile) {
        if const { NRV > super::micro::max_vectors(S::ISA) } {
            unreachable!("panels are not as wide");
        }
        // SAFETY: the caller vouches for every pointer of the tile.
        unsafe {
            for row in 0..t.rows {
                for i in (0..NRV * S::LANES).step_by(S::LANES) {
                    S::store(t.sums.add(row * NRV * S::LANES + i), S::load(t.bias.add(i)));
                }
            }
            let length = t.k / STREAMS;
            for start in (0..length).step_by(PIECE) {
                sweep::<S, NRV, STREAMS>(t, start, PIECE.min(length - start));
            }
            let rest = t.k % STREAMS;
            if rest > 0 {
                sweep::<S, NRV, 1>(t, t.k - rest, rest);
            }
            for row in 0..t.rows {
                let (sums, c) = (t.sums.add(row * NRV * S::LANES), t.c.add(row * t.ldc));
                for i in (0..t.columns).step_by(S::LANES) {
                    let v = simd::apply_activation::<S>(t.activation, S::load(sums.add(i)));
                    S::store_partial(c.add(i), v, S::LANES.min(t.columns - i));
                }
            }
        }
    }
}

/// Adds the products of all rows over a piece of `k` to their sums: `len` from `start` on in each of `N` streams.
///
/// # Safety
/// As [`Few`]; the streams end where `k` does.
#[inline(always)]
unsafe fn sweep<S: Simd, const NRV: usize, const N: usize>(t: &Tile, start: usize, len: usize) {
    let most = const { most_rows(S::REGISTERS) };
    for row in (0..t.rows).step_by(most) {
        // SAFETY: passed on.
        unsafe {
            match (t.rows - row).min(most) {
                1 => rows::<S, NRV, N, 1>(t, row, start, len),
                2 => rows::<S, NRV, N, 2>(t, row, start, len),
                3 => rows::<S, NRV, N, 3>(t, row, start, len),
                _ => rows::<S, NRV, N, 4>(t, row, start, len),
            }
        }
    }
}

/// The same for `R` rows.
///
/// # Safety
/// As [`sweep`].
#[inline(always)]
unsafe fn rows<S: Simd, const NRV: usize, const N: usize, const R: usize>(
    t: &Tile,
    row: usize,
    start: usize,
    len: usize,
) {
    // SAFETY: the caller vouches for rows, weights and sums; what is fetched may be any address.
    unsafe {
        let mut acc = [[S::zero(); NRV]; R];
        let (mut b, mut a) = (t.b.add(start * NRV * S::LANES), t.a.add(row * t.ld + start));
        let stream = t.k / N;
        for _ in 0..len {
            for n in 0..N {
                let b = b.add(n * stream * NRV * S::LANES);
                if N > 1 {
                    let lines = (0..NRV * S::LANES).step_by(LINE);
                    lines.for_each(|line| S::prefetch_far(b.wrapping_add(AHEAD + line)));
                }
                let mut w = [S::zero(); NRV];
                for v in 0..NRV {
                    w[v] = S::load(b.add(v * S::LANES));
                }
                for r in 0..R {
                    let a = S::splat(*a.add(r * t.ld + n * stream));
                    for v in 0..NRV {
                        acc[r][v] = S::fma(a, w[v], acc[r][v]);
                    }
                }
            }
            (b, a) = (b.add(NRV * S::LANES), a.add(1));
        }
        for r in 0..R {
            for v in 0..NRV {
                let sum = t.sums.add(((row + r) * NRV + v) * S::LANES);
                S::store(sum, S::add(S::load(sum), acc[r][v]));
            }
        }
    }
}
