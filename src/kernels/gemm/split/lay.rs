//! The right side of a product on the matrix unit, of rows that lie somewhere: for sums over pixels.

use super::{PARTED, Run, blocks};
use crate::kernels::gemm::outer::{Norm, Queue};
use crate::kernels::gemm::{Extent, Gemm, LINE, Rows, Target};
use crate::simd::Simd;
use crate::simd::tiles::{DEPTH, ROWS, TILE, split};

/// Splits rows of the right side straight into their packed form.
#[derive(Debug, Clone, Copy)]
pub struct Lay {
    /// Pointers to the rows.
    pub rows: *const *const f32,
    /// Floats skipped behind every pointer.
    pub skip: usize,
    /// How many there are; what is missing to the k of the product is zero.
    pub depth: usize,
    /// What is done to every value before.
    pub norm: Option<Norm>,
}

impl Gemm {
    /// Packs rows that lie somewhere as the right side of a product on the matrix unit, all of whose columns are whole registers.
    /// There are no biases.
    ///
    /// # Safety
    /// `rows.depth` pointers are readable, and behind them all columns; those of the norm are too; `packed` are the
    /// [`packed_len`](Self::packed_len) floats of this layout; the CPU has the instruction set of `S`.
    #[inline(always)]
    pub unsafe fn lay<S: Simd>(&self, rows: Lay, packed: *mut f32) {
        let Extent { taps, k, n } = self.extent;
        assert!(self.split && taps == 1 && rows.depth <= k && n.is_multiple_of(S::LANES) && S::LANES == LINE);
        // SAFETY: the caller's promise.
        unsafe {
            rows.run::<S>(self, packed);
            std::slice::from_raw_parts_mut(packed.add(self.bias_at()), self.packed_len() - self.bias_at()).fill(0.0);
        }
    }

    /// As [`run`](Self::run) with all panels, on the matrix unit; `ahead` is fetched meanwhile.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub unsafe fn run_laid(
        &self,
        packed: *const f32,
        m: usize,
        rows: Rows,
        target: Target,
        scratch: &mut [f32],
        ahead: Queue,
    ) {
        assert!(self.split && scratch.len() >= self.scratch(m));
        let (panels, scratch) = (0..self.panels.len(), scratch.as_mut_ptr());
        // SAFETY: the caller's promises.
        unsafe { self.isa.run(Run { gemm: self, packed, m, rows, panels, target, scratch, ahead }) }
    }
}

impl Lay {
    /// Packs all columns for `gemm`.
    ///
    /// # Safety
    /// As [`Gemm::lay`].
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, gemm: &Gemm, packed: *mut f32) {
        for block in 0..blocks(gemm.extent) {
            for panel in &gemm.panels {
                for tile in 0..panel.vectors {
                    let column = self.skip + panel.start + tile * ROWS;
                    // SAFETY: every panel has room for its blocks.
                    unsafe {
                        let at = panel.weights + block * panel.vectors * PARTED + tile * TILE;
                        let to = (packed.add(at).cast(), panel.vectors * TILE);
                        match (self.norm, (block + 1) * DEPTH <= self.depth) {
                            (None, true) => self.tile::<S, false, true>(block, column, to),
                            (Some(_), true) => self.tile::<S, true, true>(block, column, to),
                            (None, false) => self.tile::<S, false, false>(block, column, to),
                            (Some(_), false) => self.tile::<S, true, false>(block, column, to),
                        }
                    }
                }
            }
        }
    }

    /// One tile of a block, whose parts go so many words apart.
    #[inline(always)]
    unsafe fn tile<S: Simd, const NORM: bool, const WHOLE: bool>(
        &self,
        block: usize,
        column: usize,
        (to, apart): (*mut u32, usize),
    ) {
        // SAFETY: rows from the last on are zero; the rest as in `run`.
        unsafe {
            for pair in 0..ROWS {
                let mut numbers = [0.0; DEPTH];
                for half in [0, ROWS] {
                    let row = block * DEPTH + half + pair;
                    if WHOLE || row < self.depth {
                        S::store(numbers.as_mut_ptr().add(half), self.value::<S, NORM>(row, column));
                    }
                }
                for (part, words) in split(&numbers).iter().enumerate() {
                    *to.add(part * apart + pair * ROWS).cast::<[u32; ROWS]>() = *words;
                }
            }
        }
    }

    /// A register of a row.
    #[inline(always)]
    unsafe fn value<S: Simd, const NORM: bool>(&self, row: usize, column: usize) -> S::V {
        // SAFETY: as in `run`.
        unsafe {
            let x = S::load((*self.rows.add(row)).add(column));
            match &self.norm {
                Some(norm) if NORM => norm.apply::<S>(x, column),
                _ => x,
            }
        }
    }
}
