//! What is computed beside the matrix unit: rows are split before they are multiplied, and memory is fetched.

use super::{Block, PARTED, Run, SUMS, Sums, Together, blocks};
use crate::kernels::gemm::micro::STREAMS;
use crate::kernels::gemm::outer::Queue;
use crate::kernels::gemm::{Extent, LINE};
use crate::simd::Simd;
use crate::simd::tiles::{DEPTH, ROWS, STEPS, TILE, split};

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

    /// The pieces that are due in the next step.
    #[inline(always)]
    fn step(&mut self) -> u32 {
        let due = self.due + self.share;
        self.due = due % Self::ONE;
        due / Self::ONE
    }
}

/// What is computed beside the unit, a little after every step: it keeps a core busy for 64 cycles with eight instructions, and
/// more than some sixty on registers at once do not find room beside them. What it takes to find out what is due finds none at all
/// where another thread shares the core, so that there is little of that.
pub(super) struct Beside<'a> {
    run: &'a Run<'a>,
    pub(super) height: usize,
    together: Together,
    /// Blocks of k in all.
    pub(super) blocks: usize,
    /// Two buffers of split rows, and which is made next.
    split: [*mut f32; 2],
    turn: usize,
    /// Where sums are stored.
    pub(super) sums: *mut f32,
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
    /// Weights to fetch, the rows that the sums go to, and what whoever comes next reads.
    weights: Later,
    rows: [Lines; 2],
    later: Queue,
    fetches: Quota,
}

impl<'a> Beside<'a> {
    pub(super) fn new(run: &'a Run<'a>, height: usize, together: Together) -> Self {
        let size = together.floats();
        let at = |offset: usize| run.scratch.wrapping_add(offset);
        let blocks = blocks(run.gemm.extent);
        let pairs = run.m.div_ceil(2 * height);
        let mut beside = Beside {
            run,
            height,
            together,
            blocks,
            split: [at(0), at(size)],
            turn: 0,
            sums: at(2 * size),
            line: at(2 * size + SUMS),
            next: None,
            row: 0,
            at: 0,
            from: std::ptr::null(),
            to: std::ptr::null_mut(),
            count: 0,
            splits: Quota::default(),
            weights: Later::NONE,
            rows: [Lines::NONE; 2],
            later: run.ahead,
            fetches: Quota::new(run.ahead.lines(), run.panels.len() * pairs * blocks * STEPS),
        };
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
        unsafe { self.split(u32::MAX) };
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

    /// So many lines of weights from `at` on are fetched in so many steps.
    pub(super) fn fetch_weights(&mut self, at: *const f32, lines: usize, steps: usize) {
        self.weights = Later::new(at, lines, steps);
    }

    /// The rows that sums go to and what is added to them are fetched in so many steps.
    pub(super) fn fetch_sums(&mut self, sums: &Sums, steps: usize) {
        let lines = |at: *const f32, ld| match at.is_null() {
            false => Lines { at, ld, left: sums.rows, share: sums.rows.div_ceil(steps), wide: sums.columns > LINE },
            true => Lines::NONE,
        };
        self.rows = [lines(sums.to, sums.lds[0]), lines(sums.residual, sums.lds[1])];
    }

    /// What is due after a step.
    #[inline(always)]
    pub(super) unsafe fn step<S: Simd>(&mut self) {
        let due = self.splits.step();
        // SAFETY: passed on; prefetching is harmless anywhere.
        unsafe {
            self.split(due);
            self.rows.iter_mut().for_each(|rows| rows.step::<S>());
            self.weights.step::<S>();
            for _ in 0..self.fetches.step() {
                let Some(line) = self.later.next() else { break };
                S::prefetch_far(line);
            }
        }
    }

    /// Splits so many blocks of k of rows, if they are left.
    #[inline(always)]
    unsafe fn split(&mut self, blocks: u32) {
        // SAFETY: what `advance` found.
        unsafe {
            for _ in 0..blocks {
                if self.count == 0 && !self.advance() {
                    break;
                }
                for (part, row) in split(&*self.from.cast()).iter().enumerate() {
                    *self.to.add(part * TILE).cast::<[u32; ROWS]>() = *row;
                }
                (self.from, self.to, self.count) = (self.from.add(DEPTH), self.to.add(PARTED), self.count - 1);
            }
        }
    }

    /// Finds the next blocks of k that lie together.
    #[inline(never)]
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

/// Weights to fetch, in [`STREAMS`] that are read in turn.
struct Later {
    at: *const f32,
    /// Floats from stream to stream.
    apart: usize,
    stream: usize,
    /// Lines that are left, and lines for a step.
    left: usize,
    share: usize,
}

impl Later {
    const NONE: Later = Later { at: std::ptr::null(), apart: 0, stream: 0, left: 0, share: 0 };

    /// So many lines from `at` on, in so many steps.
    fn new(at: *const f32, lines: usize, steps: usize) -> Self {
        Later { at, apart: lines / STREAMS * LINE, stream: 0, left: lines, share: lines.div_ceil(steps) }
    }

    #[inline(always)]
    unsafe fn step<S: Simd>(&mut self) {
        let lines = self.share.min(self.left);
        self.left -= lines;
        for _ in 0..lines {
            // SAFETY: prefetching is harmless anywhere.
            unsafe { S::prefetch_far(self.at.wrapping_add(self.stream * self.apart)) };
            self.stream = (self.stream + 1) % STREAMS;
            if self.stream == 0 {
                self.at = self.at.wrapping_add(LINE);
            }
        }
    }
}

/// One or two lines of some rows, to be fetched.
#[derive(Debug, Clone, Copy)]
struct Lines {
    at: *const f32,
    ld: usize,
    /// Rows that are left, and rows for a step.
    left: usize,
    share: usize,
    wide: bool,
}

impl Lines {
    const NONE: Lines = Lines { at: std::ptr::null(), ld: 0, left: 0, share: 0, wide: false };

    #[inline(always)]
    unsafe fn step<S: Simd>(&mut self) {
        let rows = self.share.min(self.left);
        self.left -= rows;
        for _ in 0..rows {
            // SAFETY: prefetching is harmless anywhere.
            unsafe {
                S::prefetch(self.at);
                if self.wide {
                    S::prefetch(self.at.wrapping_add(LINE));
                }
            }
            self.at = self.at.wrapping_add(self.ld);
        }
    }
}
