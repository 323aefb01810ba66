//! What is computed beside the matrix unit: rows are split before they are multiplied, sums finished afterwards.

use super::{Block, COLUMNS, PARTED, Run, SUMS, Together, blocks};
use crate::kernels::gemm::outer::Queue;
use crate::kernels::gemm::{Activate, Extent, Panel, clamp_of, is_clamp};
use crate::simd::Simd;
use crate::simd::tiles::{DEPTH, ROWS, STEPS, TILE, split};
use std::ops::Range;

/// A share of work that is due in every step, in fractions of a piece.
#[derive(Debug, Clone, Copy, Default)]
struct Quota {
    due: u32,
    share: u32,
}

impl Quota {
    const ONE: u32 = 1 << 16;

    /// All of so many pieces in so many steps.
    fn new(pieces: usize, steps: usize) -> Self {
        let share = (pieces * Self::ONE as usize).div_ceil(steps.max(1)).min(1 << 31);
        Quota { due: 0, share: share as u32 }
    }

    /// The next step.
    #[inline(always)]
    fn step(&mut self) {
        self.due += self.share;
    }

    /// The pieces that are due.
    #[inline(always)]
    fn take(&mut self) -> usize {
        let pieces = self.due / Self::ONE;
        self.due %= Self::ONE;
        pieces as usize
    }
}

/// What is computed beside the unit, a little after every step: it keeps a core busy for 64 cycles with eight instructions, and
/// more than some hundred others at once do not find room beside them.
pub(super) struct Beside<'a> {
    run: &'a Run<'a>,
    pub(super) height: usize,
    together: Together,
    /// Blocks of k in all.
    pub(super) blocks: usize,
    /// Two buffers of split rows, and which is made next.
    split: [*mut f32; 2],
    turn: usize,
    /// Two buffers of sums, and which is made next.
    sums: [*mut f32; 2],
    sums_turn: usize,
    /// One row.
    line: *mut f32,
    /// The block whose rows are being split, if there is one, and the row and block of k that come next.
    next: Option<Block>,
    row: usize,
    at: usize,
    /// Blocks of k that lie together from here on, and where they go.
    from: *const f32,
    to: *mut f32,
    count: usize,
    splits: Quota,
    /// Sums that were made, and those that are being made.
    left: Sums,
    coming: Sums,
    finishes: Quota,
    /// Where the next row of those being made will go, and its residual: fetched meanwhile.
    ahead: [*const f32; 2],
    /// What whoever comes next reads.
    later: Queue,
    fetches: Quota,
}

/// Sums that are to be finished.
#[derive(Debug, Clone, Copy)]
struct Sums {
    /// Rows that are left.
    rows: usize,
    /// Where the next of them lies and goes, and where its residual is, if there is one.
    from: *const f32,
    to: *mut f32,
    residual: *const f32,
    /// Columns, and what is added to each; null if the parts of k before are in their place.
    columns: usize,
    bias: *const f32,
    /// What the results are clamped to.
    range: [f32; 2],
    /// Applied to all rows in the end.
    smooth: Option<Activate>,
}

impl Sums {
    const NONE: Sums = Sums {
        rows: 0,
        from: std::ptr::null(),
        to: std::ptr::null_mut(),
        residual: std::ptr::null(),
        columns: 0,
        bias: std::ptr::null(),
        range: [0.0; 2],
        smooth: None,
    };

    /// The first `rows` rows of the columns of a panel for one piece of k.
    fn new(run: &Run<'_>, panel: &Panel, rows: Range<usize>, from: *const f32, piece: &Range<usize>) -> Self {
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
        let smooth = activation.filter(|&activation| !is_clamp(activation)).map(|activation| Activate {
            activation,
            c: to,
            ld: target.ld,
            rows: rows.len(),
            columns: panel.len,
        });
        let range = clamp_of(activation);
        Sums { rows: rows.len(), from, to, residual, columns: panel.len, bias, range, smooth }
    }

    /// Adds bias and residual, or what the parts of k before have left, to the next rows, clamps and stores them, and fetches
    /// as many rows of what lies `ahead`.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&mut self, rows: usize, ahead: &mut [*const f32; 2], lds: [usize; 2]) {
        let rows = rows.min(self.rows);
        if rows == 0 {
            return;
        }
        self.rows -= rows;
        // SAFETY: the rows are those that `new` was given, with their biases; masks leave out what is beyond the last column.
        unsafe {
            let last = S::mask((self.columns - 1) % S::LANES + 1);
            match (self.columns > S::LANES, self.columns.is_multiple_of(S::LANES)) {
                (true, true) => self.finish_as::<S, 2>(rows, ahead, lds, None),
                (true, false) => self.finish_as::<S, 2>(rows, ahead, lds, Some(last)),
                (false, _) => self.finish_as::<S, 1>(rows, ahead, lds, Some(last)),
            }
        }
    }

    /// Rows of so many registers, of the last of which lanes may be missing.
    #[inline(always)]
    unsafe fn finish_as<S: Simd, const VECTORS: usize>(
        &mut self,
        rows: usize,
        ahead: &mut [*const f32; 2],
        [ld, ld_residual]: [usize; 2],
        last: Option<S::M>,
    ) {
        // SAFETY: as in `finish`.
        unsafe {
            let load = |from: *const f32, vector: usize| match last {
                Some(mask) if vector + 1 == VECTORS => S::load_masked(from.add(vector * S::LANES), mask),
                _ => S::load(from.add(vector * S::LANES)),
            };
            let (least, most) = (S::splat(self.range[0]), S::splat(self.range[1]));
            let Sums { mut from, mut to, mut residual, bias, .. } = *self;
            for _ in 0..rows {
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
                    S::prefetch(ahead[0].wrapping_add(vector * S::LANES));
                    if !residual.is_null() {
                        S::prefetch(ahead[1].wrapping_add(vector * S::LANES));
                    }
                }
                from = from.add(COLUMNS);
                to = to.wrapping_add(ld);
                ahead[0] = ahead[0].wrapping_add(ld);
                if !residual.is_null() {
                    residual = residual.wrapping_add(ld_residual);
                    ahead[1] = ahead[1].wrapping_add(ld_residual);
                }
            }
            (self.from, self.to, self.residual) = (from, to, residual);
        }
    }
}

impl<'a> Beside<'a> {
    pub(super) fn new(run: &'a Run<'a>, height: usize, together: Together) -> Self {
        let size = together.floats();
        let at = |offset: usize| run.scratch.wrapping_add(offset);
        let mut beside = Beside {
            run,
            height,
            together,
            blocks: blocks(run.gemm.extent),
            split: [at(0), at(size)],
            turn: 0,
            sums: [at(2 * size), at(2 * size + SUMS)],
            sums_turn: 0,
            line: at(2 * (size + SUMS)),
            next: None,
            row: 0,
            at: 0,
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            count: 0,
            splits: Quota::default(),
            left: Sums::NONE,
            coming: Sums::NONE,
            finishes: Quota::default(),
            ahead: [std::ptr::null(); 2],
            later: run.ahead,
            fetches: Quota::default(),
        };
        let pairs = run.m.div_ceil(2 * height);
        beside.fetches = Quota::new(run.ahead.lines(), run.panels.len() * pairs * beside.blocks * STEPS);
        beside.start(0, 0);
        beside
    }

    /// Begins with the block of these first row and block of k.
    fn start(&mut self, row: usize, block: usize) {
        let rows = row..self.run.m.min(row + self.together.tiles * self.height);
        let piece = block..self.blocks.min(block + self.together.blocks);
        (self.row, self.at, self.count) = (rows.start, piece.start, 0);
        self.next = (!rows.is_empty()).then(|| Block { rows, piece, at: self.split[self.turn] });
        self.turn = 1 - self.turn;
    }

    /// The block that comes next, its rows split, and begins with the one behind it.
    #[inline(always)]
    pub(super) unsafe fn next_block(&mut self) -> Option<Block> {
        // SAFETY: passed on.
        unsafe { self.split(usize::MAX) };
        let block = self.next.take()?;
        match block.piece.end < self.blocks {
            true => self.start(block.rows.start, block.piece.end),
            false => self.start(block.rows.end, 0),
        }
        Some(block)
    }

    /// Spreads the rows to split over so many steps.
    pub(super) fn spread(&mut self, steps: usize) {
        let blocks = self.next.as_ref().map_or(0, |block| block.rows.len() * block.piece.len());
        self.splits = Quota::new(blocks, steps);
    }

    #[inline(always)]
    pub(super) unsafe fn step<S: Simd>(&mut self) {
        self.splits.step();
        self.finishes.step();
        self.fetches.step();
        for _ in 0..self.fetches.take() {
            let Some(line) = self.later.next() else { break };
            // SAFETY: prefetching is harmless anywhere.
            unsafe { S::prefetch_far(line) };
        }
        // SAFETY: passed on.
        unsafe {
            match self.splits.take() {
                0 => {}
                blocks => self.split(blocks),
            }
            match self.finishes.take() {
                0 => {}
                rows => self.finish::<S>(rows),
            }
        }
    }

    /// Where the next sums go.
    pub(super) fn sums(&self) -> *mut f32 {
        self.sums[self.sums_turn]
    }

    /// The sums of these rows are being made.
    #[inline(always)]
    pub(super) fn making(&mut self, panel: &Panel, rows: Range<usize>, piece: &Range<usize>) {
        self.coming = Sums::new(self.run, panel, rows, self.sums(), piece);
        self.ahead = [self.coming.to.cast_const(), self.coming.residual];
        self.finishes = Quota::new(self.left.rows, piece.len() * STEPS);
    }

    /// They have been made.
    #[inline(always)]
    pub(super) fn made(&mut self) {
        self.left = self.coming;
        self.sums_turn = 1 - self.sums_turn;
    }

    /// Finishes up to `rows` rows.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&mut self, rows: usize) {
        // SAFETY: these sums were stored last.
        unsafe {
            let lds = [self.run.target.ld, self.run.target.ld_residual];
            self.left.finish::<S>(rows, &mut self.ahead, lds);
        }
    }

    /// Finishes what is left.
    #[inline(always)]
    pub(super) unsafe fn finish_rest<S: Simd>(&mut self) {
        // SAFETY: the activation is applied to what has just been stored.
        unsafe {
            self.finish::<S>(self.left.rows);
            if let Some(smooth) = self.left.smooth.take() {
                (self.run.gemm.activate)(smooth);
            }
        }
    }

    /// Splits so many blocks of k of rows, if they are left.
    #[inline(always)]
    unsafe fn split(&mut self, mut blocks: usize) {
        // SAFETY: what `advance` found.
        unsafe {
            while blocks > 0 && (self.count > 0 || self.advance()) {
                let count = blocks.min(self.count);
                let (mut from, mut to) = (self.from, self.to);
                for _ in 0..count {
                    for (part, row) in split(&*from.cast()).iter().enumerate() {
                        *to.add(part * TILE).cast::<[u32; ROWS]>() = *row;
                    }
                    (from, to) = (from.add(DEPTH), to.add(PARTED));
                }
                (self.from, self.to, self.count) = (from, to, self.count - count);
                blocks -= count;
            }
        }
    }

    /// Finds the next blocks of k that lie together.
    unsafe fn advance(&mut self) -> bool {
        let Some(Block { rows, piece, at }) = &self.next else { return false };
        if self.at == piece.end {
            (self.row, self.at) = (self.row + 1, piece.start);
        }
        if self.row == rows.end {
            return false;
        }
        let Extent { taps, k, .. } = self.run.gemm.extent;
        let (i, table) = (self.row - rows.start, &self.run.rows);
        let tile = i / self.height * piece.len() + self.at - piece.start;
        // SAFETY: every pointer of a row has `k` floats behind it; the line holds a row and what fills its last block; the buffer
        // holds the tiles.
        unsafe {
            self.to = at.add(tile * PARTED + i % self.height * ROWS);
            let run = |tap: usize| (*table.table.add(tap * table.stride + self.row)).add(table.skip);
            if k.is_multiple_of(DEPTH) {
                let per_tap = k / DEPTH;
                let (tap, within) = (self.at / per_tap, self.at % per_tap);
                self.count = (per_tap - within).min(piece.end - self.at);
                self.from = run(tap).add(within * DEPTH);
            } else {
                for tap in 0..taps {
                    std::ptr::copy_nonoverlapping(run(tap), self.line.add(tap * k), k);
                }
                (taps * k..piece.end * DEPTH).for_each(|i| *self.line.add(i) = 0.0);
                self.count = piece.len();
                self.from = self.line.add(piece.start * DEPTH);
            }
        }
        self.at += self.count;
        true
    }
}
