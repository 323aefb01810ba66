//! The matrix product under almost every convolution: `C = activation(A · B + bias + residual)`.
//!
//! `A` is never copied: its rows are found through a table of pointers, one per pixel and tap, so that a convolution
//! with any window, stride, dilation and padding is a matrix product over the image where it lies (Dukhan, *The Indirect
//! Convolution Algorithm*, 2019). Pixels in the padding point to a row of zeros. `B`, the weights, is packed once into
//! panels of up to four registers of output channels: `[panel][tap][k][lane]`.
//!
//! ```text
//! for panel:  for piece of k:  for tile of rows:  microkernel
//! ```
//!
//! A piece of a weight panel fits the second cache beside the rows of `A`, so it is read from memory once and then used
//! for every tile of rows. Partial sums wait in `C`. Every element of `C` is summed in the same order whatever the
//! tiling, so results do not depend on how the rows are split among threads.
//!
//! Where the CPU has a matrix unit a product may be laid out for that instead ([`Gemm::split`]).

#![allow(unsafe_code, reason = "drives microkernels on raw pointers")]

mod cut;
mod few;
mod micro;
mod narrow;
pub mod outer;
mod split;
mod sweep;
#[cfg(test)]
mod tests;

pub use self::split::Lay;
use super::Soon;
use super::weights::WIDEST;
use crate::activation::Activation;
use crate::simd::{self, Isa};
use cut::{cut_each, cut_exactly, cut_panels, cut_pieces};
use micro::{LINE, Micro, Tile};
use outer::Queue;
use std::ops::Range;
use sweep::{Activate, Ahead, Next, Smooth, sweep};

/// The extent of a product: rows of `A` are `taps` runs of `k` floats each, rows of `C` have `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Runs per row of `A`.
    pub taps: usize,
    /// Floats per run.
    pub k: usize,
    /// Columns of `C`.
    pub n: usize,
}

/// Where the rows of `A` lie.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// The run of tap `t`, row `m` starts at `table[t · stride + m] + skip`.
    pub table: *const *const f32,
    /// Pointers from one tap to the next.
    pub stride: usize,
    /// Floats skipped behind every pointer.
    pub skip: usize,
}

/// Where the rows of `C` lie: row `m` starts at `c + m · ld`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The first element.
    pub c: *mut f32,
    /// Floats from row to row.
    pub ld: usize,
    /// The first element of what is added before the activation, or null. May equal `c` (with the same stride).
    pub residual: *const f32,
    /// Floats from row to row of the residual.
    pub ld_residual: usize,
    /// What may be fetched of the same rows and columns, for whoever reads it next.
    pub soon: [Soon; 2],
}

impl Target {
    /// Rows that are stored without anything added.
    pub fn plain(c: *mut f32, ld: usize) -> Self {
        Target { c, ld, residual: std::ptr::null(), ld_residual: 0, soon: [Soon::NONE; 2] }
    }
}

/// Where the products of [`Gemm::run_each`] lie.
#[derive(Debug, Clone, Copy)]
pub struct Each {
    /// Floats from row to row of `A`, if the rows of a tap lie behind each other.
    pub apart: Option<usize>,
    /// The first element of the first product.
    pub c: *mut f32,
    /// Floats from row to row.
    pub ld: usize,
    /// Floats from product to product.
    pub stride: usize,
}

/// Neighbouring output channels that are computed together.
#[derive(Debug, Clone, Copy)]
struct Panel {
    /// First output channel.
    start: usize,
    /// Output channels.
    len: usize,
    /// Registers they fill.
    vectors: usize,
    /// First float of the weights.
    weights: usize,
}

/// Part of the sum over taps and k, over which a panel's weights fit in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    taps: Range<usize>,
    k: Range<usize>,
}

/// A product whose right-hand side is packed in panels. It holds the layout, not the values: whoever runs it brings the
/// packed weights, so that they may be packed once or anew for every run:
/// row `tap · k_extent + k` of a panel's weights holds one float per lane, those of its columns first, then zeros.
#[derive(Clone)]
pub struct Gemm {
    isa: Isa,
    extent: Extent,
    panels: Vec<Panel>,
    pieces: Vec<Piece>,
    /// Parts of k for [`run_each`](Gemm::run_each).
    each: Vec<Range<usize>>,
    /// See [`exactly`](Gemm::exactly).
    exact: bool,
    activation: Option<Activation>,
    activate: unsafe fn(Activate),
    /// Microkernels by registers and rows, both counted from one.
    micros: Vec<Vec<Micro>>,
    /// Those of the last panel.
    last: Vec<Micro>,
    /// The tile for [`run_each`](Gemm::run_each), if it is narrow enough.
    narrow: Option<unsafe fn(&narrow::Tile)>,
    /// Whether it is laid out for the matrix unit.
    split: bool,
}

impl Gemm {
    /// The layout for this extent. `activation` is applied last.
    pub fn new(extent: Extent, activation: Option<Activation>, isa: Isa) -> Self {
        assert!(extent.n > 0 && extent.taps > 0);
        let isa = isa.vectors();
        let panels = cut_panels(extent, isa);
        let widest = panels[0].vectors;
        let micros = |vectors, last_lanes| {
            let rows = 1..=micro::max_rows(isa, vectors);
            rows.map(|m| micro::micro(isa, m, vectors, last_lanes)).collect::<Vec<_>>()
        };
        let Panel { len, vectors, .. } = panels[panels.len() - 1];
        let last = micros(vectors, len - (vectors - 1) * isa.lanes());
        let micros = (1..=widest).map(|vectors| micros(vectors, isa.lanes())).collect();
        let pieces = cut_pieces(extent, widest * isa.lanes());
        let each = cut_each(extent.k, 4 * widest * isa.lanes(), simd::first_cache());
        let activate = isa.entry::<Activate>();
        let fits = extent.k == narrow::SIDE && extent.n <= narrow::SIDE;
        let narrow = narrow::routine(isa).filter(|_| fits);
        Gemm {
            isa,
            extent,
            panels,
            pieces,
            each,
            exact: false,
            activation,
            activate,
            micros,
            last,
            narrow,
            split: false,
        }
    }

    /// The same, but its pieces are summed by themselves before they are added up, and those of [`run_each`](Self::run_each) are
    /// shorter. On the matrix unit small products are summed before the large ones, which takes a tenth longer.
    pub fn exactly(self) -> Self {
        // As the widest registers cut it: in a panel of narrow ones, more of the sum fits the cache, which would err more.
        let wide = Isa::Avx512;
        let pieces = cut_pieces(self.extent, cut_panels(self.extent, wide)[0].vectors * wide.lanes());
        Gemm { pieces, each: cut_exactly(self.extent.k), exact: true, ..self }
    }

    /// The layout of a product on the matrix unit ([`Isa::Amx`]). [`run_each`](Self::run_each) cannot use it.
    pub fn split(extent: Extent, activation: Option<Activation>) -> Self {
        let isa = Isa::Amx;
        assert!(Isa::available().contains(&isa) && extent.n > 0 && extent.taps > 0);
        let per_vector = split::panel_len(extent, isa.lanes());
        let panels = (0..extent.n).step_by(split::COLUMNS).map(|start| {
            let len = split::COLUMNS.min(extent.n - start);
            Panel { start, len, vectors: len.div_ceil(isa.lanes()), weights: start / isa.lanes() * per_vector }
        });
        let panels = panels.collect();
        Gemm { isa, panels, split: true, ..Gemm::new(extent, activation, isa) }
    }

    /// The faster layout for so many rows: on the matrix unit if the instruction set has one, and that pays.
    pub fn fastest(extent: Extent, activation: Option<Activation>, rows: usize, isa: Isa) -> Self {
        match isa == Isa::Amx && Gemm::splits(extent, rows) {
            true => Gemm::split(extent, activation),
            false => Gemm::new(extent, activation, isa),
        }
    }

    /// Whether [`split`](Self::split) is faster than [`new`](Self::new) for so many rows.
    pub fn splits(extent: Extent, rows: usize) -> bool {
        split::profitable(extent, rows)
    }

    /// Whether it is a product on the matrix unit.
    pub fn is_split(&self) -> bool {
        self.split
    }

    /// Floats of scratch memory for [`run`](Self::run) with up to `m` rows.
    pub fn scratch(&self, m: usize) -> usize {
        if self.split { split::scratch(self.extent, m) } else { 0 }
    }

    /// Finishes the packed weights of a panel, of which the first `taps · k` rows have been written.
    pub fn seal(&self, panel: usize, values: &mut [f32]) {
        if self.split {
            let (depth, width) = (self.extent.taps * self.extent.k, self.width(panel));
            // SAFETY: the task has no condition of its own.
            unsafe { self.isa.run(split::Seal { panel: values, depth, width }) };
        }
    }

    /// Floats of the packed weights and, behind them, one bias per lane of every panel.
    pub fn packed_len(&self) -> usize {
        self.bias_at() + self.extent.n.next_multiple_of(self.isa.lanes()).next_multiple_of(LINE)
    }

    /// Where the biases begin, in floats: that of column `n` is the `n`-th.
    pub fn bias_at(&self) -> usize {
        self.panels.len().checked_sub(1).map_or(0, |last| self.weights_of(last).end).next_multiple_of(LINE)
    }

    /// Where the weights of a panel lie among the packed floats.
    pub fn weights_of(&self, panel: usize) -> Range<usize> {
        let (start, width) = (self.panels[panel].weights, self.width(panel));
        let len = match self.split {
            true => split::panel_len(self.extent, width),
            false => self.extent.taps * self.extent.k * width,
        };
        start..start + len
    }

    /// Lanes of a panel, at least as many as its columns.
    pub fn width(&self, panel: usize) -> usize {
        self.panels[panel].vectors * self.isa.lanes()
    }

    /// Whether [`run_each`](Gemm::run_each) has a tile of its own for so few channels in and out.
    pub fn is_narrow(&self) -> bool {
        self.narrow.is_some()
    }

    /// Number of panels: the finest grain at which columns of `C` can be computed separately.
    pub fn panels(&self) -> usize {
        self.panels.len()
    }

    /// The columns of a panel.
    pub fn columns(&self, panel: usize) -> Range<usize> {
        let Panel { start, len, .. } = self.panels[panel];
        start..start + len
    }

    /// Taps, k and columns.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The instruction set it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Bytes of packed weights and biases.
    pub fn packed_bytes(&self) -> usize {
        4 * self.packed_len()
    }

    /// The tile of the microkernel most work is done by, for example `6x4`.
    pub fn tile_name(&self) -> String {
        let vectors = self.panels[0].vectors;
        if self.split {
            return "split".to_owned();
        }
        format!("{}x{vectors}", micro::max_rows(self.isa, vectors))
    }

    /// The microkernels of a panel, by rows.
    fn micros(&self, panel: usize) -> &[Micro] {
        if panel + 1 == self.panels.len() { &self.last } else { &self.micros[self.panels[panel].vectors - 1] }
    }

    /// Computes `m` rows of the columns of `panels`.
    ///
    /// # Safety
    /// - `packed` are the [`packed_len`](Self::packed_len) floats of this layout, on a 64-byte boundary;
    /// - all `taps · m` pointers of `rows` are readable for `skip + k` floats;
    /// - the columns of `panels` are writable in the `m` rows at `target.c`, and readable at the residual if there is one;
    /// - they do not overlap what `rows` points to;
    /// - `scratch` is on a 64-byte boundary and as long as [`scratch`](Self::scratch) says.
    pub unsafe fn run(
        &self,
        packed: *const f32,
        m: usize,
        rows: Rows,
        panels: Range<usize>,
        target: Target,
        scratch: &mut [f32],
    ) {
        assert!(scratch.len() >= self.scratch(m));
        if self.split {
            let (scratch, ahead) = (scratch.as_mut_ptr(), Queue::NONE);
            // SAFETY: the caller's promises.
            return unsafe { self.isa.run(split::Run { gemm: self, packed, m, rows, panels, target, scratch, ahead }) };
        }
        let lanes = self.isa.lanes();
        // With a row or two all of it streams, and the hardware's own prefetching is best left alone.
        let streamed = m > 2 && self.packed_bytes() > STREAMED_BYTES;
        let (bias_at, zero) = (self.bias_at(), [0.0; WIDEST]);
        for (nth, at) in panels.enumerate() {
            let panel = &self.panels[at];
            let width = panel.vectors * lanes;
            let micros = self.micros(at);
            for (i, piece) in self.pieces.iter().enumerate() {
                let (first, last) = (i == 0, i + 1 == self.pieces.len());
                let weights = if streamed { piece.taps.len() * piece.k.len() * width } else { 0 };
                // SAFETY: the weights were packed for every tap, k and panel; `panel.start` is a column.
                let tile = unsafe {
                    let at = panel.weights + (piece.taps.start * self.extent.k + piece.k.start) * width;
                    Tile {
                        rows: rows.table.add(piece.taps.start * rows.stride),
                        rows_stride: rows.stride,
                        soon: if last { target.soon.map(|soon| soon.from(0, panel.start)) } else { [Soon::NONE; 2] },
                        skip: rows.skip + piece.k.start,
                        taps: piece.taps.len(),
                        k: piece.k.len(),
                        b: packed.add(at),
                        c: target.c.wrapping_add(panel.start),
                        ldc: target.ld,
                        last_lanes: panel.len - (panel.vectors - 1) * lanes,
                        bias: match first {
                            true => packed.add(bias_at + panel.start),
                            false if self.exact => zero.as_ptr(),
                            false => std::ptr::null(),
                        },
                        adds: self.exact && !first,
                        residual: match first && !target.residual.is_null() {
                            true => target.residual.wrapping_add(panel.start),
                            false => std::ptr::null(),
                        },
                        ld_residual: target.ld_residual,
                        range: if last { clamp_of(self.activation) } else { Tile::BLANK.range },
                        ..Tile::BLANK
                    }
                };
                // All of the next piece while this one is multiplied.
                let next = if nth == 0 && self.extent.taps == 1 { Next::Below } else { Next::None };
                let ahead = Ahead { vectors: panel.vectors, lanes, rows: next, weights: [weights; 2] };
                let smooth = self.activation.filter(|&a| last && !is_clamp(a));
                let smooth = smooth.map(|activation| Smooth { activation, columns: panel.len, run: self.activate });
                // SAFETY: the caller's promise, and the tiles below stay within `m` rows.
                unsafe { sweep(m, tile, micros, ahead, smooth) };
            }
        }
    }

    /// Computes a product for every tap by itself instead of their sum: `C_t = A_t · B_t`, for the columns of one panel,
    /// which come first in `C_t`; `C_t` starts at `c + t · stride`. Bias and activation are left out.
    ///
    /// # Safety
    /// As [`run`](Self::run), with the rows that `of` says of a tap, which alone are computed, of the panel's columns writable in
    /// its `C_t`, and the rows of every tap behind each other as `to` says.
    pub unsafe fn run_each(
        &self,
        packed: *const f32,
        of: impl Fn(usize) -> Range<usize>,
        rows: Rows,
        panel: usize,
        to: Each,
    ) {
        assert!(!self.split);
        let Panel { len, vectors, weights, .. } = self.panels[panel];
        let (Extent { taps, k, .. }, lanes) = (self.extent, self.isa.lanes());
        let taps_of_rows = (0..taps).map(|tap| (tap, of(tap))).filter(|(_, of)| !of.is_empty());
        if let Some(narrow) = self.narrow.filter(|_| to.apart == Some(narrow::SIDE)) {
            for (tap, of) in taps_of_rows {
                // SAFETY: the rows of a tap lie behind each other from the first pointer on; the rest as below.
                unsafe {
                    let a = (*rows.table.add(tap * rows.stride + of.start)).add(rows.skip);
                    let b = packed.add(weights + tap * k * lanes);
                    let c = to.c.add(tap * to.stride + of.start * to.ld);
                    narrow(&narrow::Tile { a, rows: of.len(), b, c, ldc: to.ld, columns: len });
                }
            }
            return;
        }
        let zero = [0.0; WIDEST];
        let micros = self.micros(panel);
        for (tap, of) in taps_of_rows {
            let m = of.len();
            for piece in &self.each {
                let k_len = piece.len();
                // The weights of the next tap lie behind those of this one, and behind those of the last the next panel's:
                // as many of them as this piece has, while it is multiplied.
                let follows = tap + 1 < taps || panel + 1 < self.panels.len();
                let later = if follows { [k, k_len].map(|k| k * vectors * lanes) } else { [0; 2] };
                let next = if panel == 0 && tap + 1 < taps { Next::Tap } else { Next::None };
                // SAFETY: the weights were packed for every tap of the panel; every tap has its rows and its product.
                unsafe {
                    let c = to.c.add(tap * to.stride + of.start * to.ld);
                    let tile = Tile {
                        rows: rows.table.add(tap * rows.stride + of.start),
                        rows_stride: rows.stride,
                        skip: rows.skip + piece.start,
                        k: k_len,
                        b: packed.add(weights + (tap * k + piece.start) * vectors * lanes),
                        c,
                        ldc: to.ld,
                        last_lanes: len - (vectors - 1) * lanes,
                        bias: zero.as_ptr(),
                        adds: piece.start > 0,
                        ..Tile::BLANK
                    };
                    sweep(m, tile, micros, Ahead { vectors, lanes, rows: next, weights: later }, None);
                }
            }
        }
    }
}

/// Whether the microkernel itself can apply it.
pub(in crate::kernels) const fn is_clamp(activation: Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::Relu6)
}

/// The range an activation clamps to.
pub(super) const fn clamp_of(activation: Option<Activation>) -> [f32; 2] {
    match activation {
        Some(Activation::Relu) => [0.0, f32::INFINITY],
        Some(Activation::Relu6) => [0.0, 6.0],
        _ => [f32::NEG_INFINITY, f32::INFINITY],
    }
}

/// Weights larger than this do not wait in the second cache until the next run, when those of all other layers have
/// passed through it.
const STREAMED_BYTES: usize = 128 << 10;
