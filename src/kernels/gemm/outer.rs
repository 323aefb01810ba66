//! The product behind every weight gradient: `C += Aᵀ · B`, summed over pixels.
//!
//! ```text
//! for pixel:  w = B[pixel];  c0 += A[pixel][0]·w;  c1 += A[pixel][1]·w; …
//! ```
//!
//! Both maps lie pixel by pixel, so neither is transposed: a tile of `C`, `rows` channels of `A` × `vectors` registers of
//! channels of `B`, stays in registers while the pixels pass. Pixels are found through pointers, so that the taps of a
//! convolution are no more than other pointers. Sums over a run of pixels short enough for its channels of `B` to stay in
//! the first cache start from zero and are then added to what the runs before have left: short sums err less. What the
//! next block will read is fetched into the second cache meanwhile, a line at every pixel.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector")]

use super::micro::{LINE, Tiles, max_rows, max_vectors, routine};
use crate::kernels::Store;
use crate::simd::{Isa, Routine, Simd};

/// What one call of a microkernel works on.
struct Tile {
    /// One pointer per pixel of `A`, behind which `skip_a` floats come before the first channel of the tile.
    a: *const *const f32,
    skip_a: usize,
    /// The same for `B`.
    b: *const *const f32,
    skip: usize,
    pixels: usize,
    /// Cache lines to fetch for later, at most `pixels`.
    ahead: *const f32,
    fetched: usize,
    c: *mut f32,
    ld_c: usize,
    /// Lanes of the last register that exist.
    last_lanes: usize,
    store: Store,
}

type Micro = unsafe fn(&Tile);

struct Kernel<const MR: usize, const NRV: usize>;

impl<const MR: usize, const NRV: usize> Routine for Kernel<MR, NRV> {
    type Args = Tile;

    #[inline(always)]
    unsafe fn run<S: Simd>(t: &Tile) {
        // SAFETY: the caller of the microkernel vouches for every pointer of the tile.
        unsafe {
            let last = S::mask(t.last_lanes);
            let mut acc = [[S::zero(); NRV]; MR];
            if t.store == Store::Add {
                // What the sums will be added to is on its way while they are made.
                for m in 0..MR {
                    for v in 0..NRV {
                        S::prefetch(t.c.wrapping_add(m * t.ld_c + v * S::LANES));
                    }
                }
            }
            for pixel in 0..t.fetched {
                S::prefetch_far(t.ahead.wrapping_add(pixel * LINE));
                accumulate::<S, MR, NRV>(t, pixel, last, &mut acc);
            }
            for pixel in t.fetched..t.pixels {
                accumulate::<S, MR, NRV>(t, pixel, last, &mut acc);
            }
            for m in 0..MR {
                for v in 0..NRV {
                    let to = t.c.add(m * t.ld_c + v * S::LANES);
                    let mut sum = acc[m][v];
                    if v + 1 < NRV {
                        if t.store == Store::Add {
                            sum = S::add(sum, S::load(to));
                        }
                        S::store(to, sum);
                    } else {
                        if t.store == Store::Add {
                            sum = S::add(sum, S::load_masked(to, last));
                        }
                        S::store_masked(to, sum, last);
                    }
                }
            }
        }
    }
}

/// Adds the products of one pixel.
#[inline(always)]
unsafe fn accumulate<S: Simd, const MR: usize, const NRV: usize>(
    t: &Tile,
    pixel: usize,
    last: S::M,
    acc: &mut [[S::V; NRV]; MR],
) {
    // SAFETY: as in `Kernel::run`.
    unsafe {
        let a = (*t.a.add(pixel)).add(t.skip_a);
        let b = (*t.b.add(pixel)).add(t.skip);
        let mut w = [S::zero(); NRV];
        for v in 0..NRV {
            let from = b.add(v * S::LANES);
            w[v] = if v + 1 < NRV { S::load(from) } else { S::load_masked(from, last) };
        }
        for m in 0..MR {
            let x = S::splat(*a.add(m));
            for v in 0..NRV {
                acc[m][v] = S::fma(x, w[v], acc[m][v]);
            }
        }
    }
}

/// The tiles of the outer product.
struct Outers;

impl Tiles for Outers {
    type Args = Tile;
    type Of<const MR: usize, const NRV: usize> = Kernel<MR, NRV>;
}

/// The product `C (+)= Aᵀ · B` of one instruction set.
#[derive(Clone)]
pub struct Outer {
    isa: Isa,
    /// Microkernels by registers and rows, both counted from one.
    micros: Vec<Vec<Micro>>,
}

/// A map, by its pixels.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    /// One pointer per pixel.
    pub pixels: *const *const f32,
    /// Floats skipped behind every pointer.
    pub skip: usize,
}

/// Pixels that will be read after these: `lines` cache lines at each of so many rows, `ld` floats apart.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    at: *const f32,
    ld: usize,
    lines: usize,
    rows: usize,
    /// Lines of the first row that have been fetched.
    done: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { at: std::ptr::null(), ld: 0, lines: 0, rows: 0, done: 0 };

    /// The pixels of a map from `at` on, of `c` channels and `ld` floats apart.
    pub fn new(at: *const f32, pixels: usize, [c, ld]: [usize; 2]) -> Self {
        match 4 * ld <= 5 * c {
            true => Ahead { at, ld: 0, lines: (pixels * ld).div_ceil(LINE), rows: 1, done: 0 },
            false => Ahead { at, ld, lines: c.div_ceil(LINE), rows: pixels, done: 0 },
        }
    }

    /// Up to `most` lines that follow each other.
    fn take(&mut self, most: usize) -> (*const f32, usize) {
        let (at, lines) = (self.at.wrapping_add(self.done * LINE), most.min(self.lines - self.done));
        self.done += lines;
        if self.done == self.lines && self.rows > 1 {
            (self.at, self.rows, self.done) = (self.at.wrapping_add(self.ld), self.rows - 1, 0);
        }
        (at, lines)
    }
}

/// A block of pixels and where its product goes.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Whose channels are the rows of the product.
    pub a: Side,
    /// Whose channels are its columns.
    pub b: Side,
    /// Pixels.
    pub pixels: usize,
    /// Where row 0 of the product starts.
    pub c: *mut f32,
    /// Floats from row to row.
    pub ld_c: usize,
    /// Rows (channels of `A`) and columns (channels of `B`).
    pub size: [usize; 2],
    /// Whether the product is added to what is there.
    pub store: Store,
    /// What comes next.
    pub ahead: [Ahead; 2],
}

/// Most pixels of a run: four registers of each take half of the first cache.
const RUN: usize = 64;

impl Outer {
    /// For one instruction set.
    pub fn new(isa: Isa) -> Self {
        let micros = (1..=max_vectors(isa))
            .map(|vectors| (1..=max_rows(isa, vectors)).map(|m| routine::<Outers>(isa, m, vectors)).collect())
            .collect();
        Outer { isa, micros }
    }

    /// Registers of the widest tile.
    fn most_vectors(&self) -> usize {
        self.micros.len()
    }

    /// `6x4`: rows and registers of the tile most work is done by.
    pub fn tile_name(&self) -> String {
        format!("{}x{}", self.micros[self.micros.len() - 1].len(), self.micros.len())
    }

    /// What a product of this size costs for every pixel, in multiply-adds of one register: a tile of few registers waits
    /// for its rows to be loaded.
    pub fn cost(&self, [rows, columns]: [usize; 2]) -> usize {
        let registers = columns.div_ceil(self.isa.lanes());
        let panels = registers.div_ceil(self.most_vectors());
        let loads = if registers / panels == 1 { rows * panels } else { 0 };
        rows * registers + loads
    }

    /// Computes one block.
    ///
    /// # Safety
    /// `size[0]` floats are readable at every pixel of `A`, `size[1]` at those of `B`, and the product is writable and
    /// overlaps neither.
    pub unsafe fn run(&self, block: &Block) {
        let (lanes, [rows, columns]) = (self.isa.lanes(), block.size);
        let registers = columns.div_ceil(lanes);
        let panels = registers.div_ceil(self.most_vectors());
        let runs = block.pixels.div_ceil(RUN).max(1);
        let [mut first_ahead, mut then_ahead] = block.ahead;
        for panel in 0..panels {
            let (from, to) = (panel * registers / panels, (panel + 1) * registers / panels);
            let (column, vectors) = (from * lanes, to - from);
            let micros = &self.micros[vectors - 1];
            let tiles = rows.div_ceil(micros.len());
            for run in 0..runs {
                let (first, end) = (run * block.pixels / runs, (run + 1) * block.pixels / runs);
                for i in 0..tiles {
                    let (row, until) = (i * rows / tiles, (i + 1) * rows / tiles);
                    let (ahead, fetched) = match first_ahead.take(end - first) {
                        (_, 0) => then_ahead.take(end - first),
                        lines => lines,
                    };
                    // SAFETY: rows and columns lie within the block's, and so do the pixels of this run.
                    unsafe {
                        micros[until - row - 1](&Tile {
                            a: block.a.pixels.add(first),
                            skip_a: block.a.skip + row,
                            b: block.b.pixels.add(first),
                            skip: block.b.skip + column,
                            pixels: end - first,
                            ahead,
                            fetched,
                            c: block.c.add(row * block.ld_c + column),
                            ld_c: block.ld_c,
                            last_lanes: (columns - column).min(vectors * lanes) - (vectors - 1) * lanes,
                            store: if run == 0 { block.store } else { Store::Add },
                        });
                    }
                }
            }
        }
    }
}
