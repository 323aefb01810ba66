//! The product on the matrix unit, with every number split into three 16-bit floats ([`tiles`](crate::simd::tiles)).
//!
//! ```text
//! for block of rows:  A' = split(A)                    (copied, a tile behind the other, in the second cache)
//!     for panel of 32 columns:  for 32 rows:  C' = A'·B';  C = activation(C' + bias + residual)
//! ```
//!
//! The products leave most of a core idle: in between, a little after every step, it splits the next rows and fetches what is
//! needed soon ([`Beside`]). Rows are split in blocks of k where they would not stay in the cache; sums wait in `C` then.

mod beside;
mod finish;
mod lay;

pub use self::lay::Lay;

use self::beside::Beside;
use self::finish::Sums;
use super::outer::Queue;
use super::{Extent, Gemm, LINE, Panel, Rows, Target};
use crate::simd::tiles::{DEPTH, PARTS, Pair, ROWS, STEPS, TILE, Unit, split};
use crate::simd::{Simd, Task};
use std::ops::Range;

/// Columns of a panel.
pub(super) const COLUMNS: usize = 32;

/// Weights up to this many bytes stay in the second cache from block of rows to block of rows.
const WEIGHT_BYTES: usize = 1 << 20;

/// Tiles of rows that are split together then, the next ones meanwhile; with more weights it is all of them.
const FEW: usize = 2;

/// Most blocks of k that are split together, few tiles and all: what keeps the rows in the second cache beside the weights in use.
const FEWS_BLOCKS: usize = 32;
const ALLS_BLOCKS: usize = 8;

/// Rows of a product.
const PAIR: usize = 2 * ROWS;

/// Floats of the sums of a product.
const SUMS: usize = PAIR * COLUMNS;

/// Floats that a tile of rows or of columns fills: of all parts, for a block of k.
const PARTED: usize = PARTS * TILE;

/// Blocks of k over all taps.
fn blocks(extent: Extent) -> usize {
    (extent.taps * extent.k).div_ceil(DEPTH)
}

/// Fewer rows than this do not hide the weights they pull in, which are half as large again.
const LEAST_ROWS: usize = 128;

/// Whether so many rows are multiplied faster than with multiply-adds. In cycles, as measured: the products of a tile, what it
/// costs to split a block, and to finish a register of sums.
pub(super) fn profitable(extent: Extent, rows: usize) -> bool {
    let (blocks, columns) = (blocks(extent), extent.n.next_multiple_of(COLUMNS) / ROWS);
    let split = 29 * 6 * blocks * columns * rows / ROWS + 14 * rows * blocks + 6 * rows * columns;
    rows >= LEAST_ROWS && split < extent.taps * extent.k * extent.n * rows / 32
}

/// Floats of the weights of a panel.
pub(super) fn panel_len(extent: Extent, width: usize) -> usize {
    blocks(extent) * width / ROWS * PARTED
}

/// Rows of a tile: nearly the same for all, so that none computes much that is thrown away.
fn height(m: usize) -> usize {
    m.div_ceil(m.div_ceil(ROWS).max(1)).max(1)
}

/// How many tiles of rows, of how many blocks of k, are split together. How k is cut depends on the extent alone, so that sums do
/// not depend on the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Together {
    tiles: usize,
    blocks: usize,
}

impl Together {
    pub(super) fn new(extent: Extent, m: usize) -> Self {
        let blocks = blocks(extent);
        let few = 4 * PARTED * blocks * extent.n.div_ceil(ROWS) <= WEIGHT_BYTES;
        let tiles = if few { FEW } else { m.div_ceil(ROWS) };
        let pieces = blocks.div_ceil(if few { FEWS_BLOCKS } else { ALLS_BLOCKS });
        Together { tiles, blocks: blocks.div_ceil(pieces.max(1)) }
    }

    /// Floats of the split rows.
    fn floats(self) -> usize {
        self.tiles * self.blocks * PARTED
    }
}

/// Floats of scratch memory for `m` rows or fewer: split rows twice, so that some are made while others are read, sums, and one row.
pub(super) fn scratch(extent: Extent, m: usize) -> usize {
    2 * Together::new(extent, m).floats() + SUMS + blocks(extent) * DEPTH
}

/// Splits the weights of a panel in place: `[row][width]` floats, of which the rows from `depth` on are not there yet, become
/// blocks of [`DEPTH`] rows as the unit reads them.
pub(super) struct Seal<'a> {
    pub(super) panel: &'a mut [f32],
    pub(super) depth: usize,
    pub(super) width: usize,
}

impl Task for Seal<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        of_unit::<S>();
        seal(self.panel, self.depth, self.width);
    }
}

#[inline(always)]
fn seal(panel: &mut [f32], depth: usize, width: usize) {
    let blocks = depth.div_ceil(DEPTH);
    assert_eq!(panel.len(), blocks * width / ROWS * PARTED);
    let tiles = width / ROWS;
    // What is written lies behind what is still to be read, but for the block itself.
    for block in (0..blocks).rev() {
        let mut rows = [0.0; DEPTH * COLUMNS];
        let (first, last) = (block * DEPTH, depth.min((block + 1) * DEPTH));
        rows[..(last - first) * width].copy_from_slice(&panel[first * width..last * width]);
        let to = &mut panel[block * tiles * PARTED..][..tiles * PARTED];
        for tile in 0..tiles {
            for pair in 0..ROWS {
                // Row `i` of the first half is followed by row `i` of the second.
                let mut numbers = [0.0; DEPTH];
                numbers[..ROWS].copy_from_slice(&rows[pair * width + tile * ROWS..][..ROWS]);
                numbers[ROWS..].copy_from_slice(&rows[(ROWS + pair) * width + tile * ROWS..][..ROWS]);
                for (part, words) in split(&numbers).iter().enumerate() {
                    let to = &mut to[(part * tiles + tile) * TILE + pair * ROWS..][..ROWS];
                    to.iter_mut().zip(words).for_each(|(to, &bits)| *to = f32::from_bits(bits));
                }
            }
        }
    }
}

/// The unit comes with registers of so many lanes alone: nothing of what follows is compiled for others.
#[inline(always)]
fn of_unit<S: Simd>() {
    assert_eq!(S::LANES, LINE, "the matrix unit");
}

/// A call of [`Gemm::run`].
pub(super) struct Run<'a> {
    pub(super) gemm: &'a Gemm,
    pub(super) packed: *const f32,
    pub(super) m: usize,
    pub(super) rows: Rows,
    pub(super) panels: Range<usize>,
    pub(super) target: Target,
    pub(super) scratch: *mut f32,
    /// What is fetched meanwhile, for whoever comes next.
    pub(super) ahead: Queue,
}

impl Task for Run<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        of_unit::<S>();
        if self.m == 0 || self.panels.is_empty() {
            return;
        }
        let height = height(self.m);
        let together = Together::new(self.gemm.extent, self.m);
        // SAFETY: the unit is there, or the product would not be laid out for it; the rest is the caller's promise.
        unsafe {
            let unit = Unit::shape(height);
            let mut beside = Beside::new(&self, height, together);
            while let Some(block) = beside.next_block() {
                self.multiply::<S>(unit, &block, &mut beside);
            }
            unit.release();
        }
    }
}

/// Rows and a part of k that are split and multiplied together.
#[derive(Debug, Clone)]
struct Block {
    rows: Range<usize>,
    piece: Range<usize>,
    /// Where the split rows lie.
    at: *mut f32,
}

impl Run<'_> {
    /// Multiplies the rows of `block` with all panels and finishes the sums. Beside it, the rows of the next block are split, and what
    /// is needed later fetched.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(&self, unit: Unit, block: &Block, beside: &mut Beside<'_>) {
        let (rows, piece, height) = (&block.rows, &block.piece, beside.height);
        let tile = piece.len() * PARTED;
        let pairs = rows.len().div_ceil(2 * height);
        let panels = &self.gemm.panels[self.panels.clone()];
        let weights = |panel: &Panel, block: usize| {
            let at = panel.weights + block * panel.vectors * PARTED;
            self.packed.wrapping_add(at)
        };
        // What is used after the last panel: the next piece of the first, or what lies behind the last, which is somebody else's.
        let last = match piece.end < beside.blocks {
            true => weights(&panels[0], piece.end),
            false => weights(&panels[panels.len() - 1], beside.blocks),
        };
        beside.spread(panels.len() * pairs * piece.len() * STEPS);
        let sums = beside.sums;
        for (nth, panel) in panels.iter().enumerate() {
            let b = weights(panel, piece.start);
            // Weights that have not been used yet, a share in every step.
            let lines = if rows.start == 0 { panel.vectors * PARTED / LINE * piece.len() } else { 0 };
            let at = panels.get(nth + 1).map_or(last, |p| weights(p, piece.start));
            beside.fetch_weights(at, lines, pairs * piece.len() * STEPS);
            for pair in 0..pairs {
                let from = rows.start + pair * 2 * height;
                let of_pair = from..rows.end.min(from + 2 * height);
                let shape = Pair { tall: of_pair.len() > height, wide: panel.vectors == 2 };
                let to = Sums::new(self, panel, of_pair, piece);
                beside.fetch_sums(&to, piece.len() * STEPS);
                // SAFETY: the rows have been split; the rest is the caller's promise.
                unsafe {
                    let a = block.at.add(2 * pair * tile);
                    let a = [a, a.wrapping_add(tile)];
                    // Most products are of the largest shape: it is not chosen within them.
                    let (product, exact) = (Product { unit, shape, a, b, blocks: piece.len() }, self.gemm.exact);
                    match shape {
                        Pair::LARGEST => Product { shape: Pair::LARGEST, ..product }.sum::<S>(exact, beside),
                        _ => product.sum::<S>(exact, beside),
                    }
                    unit.store(shape, sums, COLUMNS);
                    to.finish::<S>(sums);
                }
            }
        }
    }
}

/// Steps of a product, and what is due beside them.
macro_rules! steps {
    ($product:ident $block:ident $beside:ident $($n:literal)*) => {{
        let (a, b) = $product.tiles($block);
        $(
            $product.unit.step::<$n>($product.shape, a, b);
            $beside.step::<S>();
        )*
    }};
}

/// A product of one or two tiles of rows and of columns, so many blocks long.
#[derive(Clone, Copy)]
struct Product {
    unit: Unit,
    shape: Pair,
    a: [*mut f32; 2],
    b: *const f32,
    blocks: usize,
}

impl Product {
    /// The tiles of a block.
    #[inline(always)]
    fn tiles(&self, block: usize) -> ([*const u32; 2], *const u32) {
        let columns = 1 + usize::from(self.shape.wide);
        let a = self.a.map(|a| a.wrapping_add(block * PARTED).cast::<u32>().cast_const());
        (a, self.b.wrapping_add(block * columns * PARTED).cast())
    }

    /// Sums all products, those of a block after each other. `exact`: the small ones of all blocks come first. As long as sums are
    /// small they are rounded less, and what is added to large ones is a sixth.
    #[inline(always)]
    unsafe fn sum<S: Simd>(self, exact: bool, beside: &mut Beside<'_>) {
        // SAFETY: the caller's promise.
        unsafe {
            self.unit.clear();
            for i in 0..self.blocks {
                steps!(self i beside 0 1 2 3 4);
                if !exact {
                    steps!(self i beside 5);
                }
            }
            if exact {
                for i in 0..self.blocks {
                    steps!(self i beside 6);
                }
            }
        }
    }
}
