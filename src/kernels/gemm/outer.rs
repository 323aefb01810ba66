//! The product behind every weight gradient: `C += Aᵀ · B`, summed over pixels.
//!
//! ```text
//! for pixel:  w = B[pixel];  c0 += A[pixel][0]·w;  c1 += A[pixel][1]·w; …
//! ```
//!
//! Both maps lie pixel by pixel, so neither is transposed: a tile of `C`, `rows` channels of `A` × `vectors` registers of
//! channels of `B`, stays in registers while the pixels pass. Those of `B` are found through pointers, so that the taps of
//! a convolution are no more than other pointers. Sums over a block of pixels start from zero and are then added to what
//! the blocks before have left: short sums err less.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by row and vector")]

use super::micro::{Tiles, max_rows, max_vectors, routine};
use crate::kernels::Store;
use crate::simd::{Isa, Routine, Simd};

/// What one call of a microkernel works on.
struct Tile {
    /// The first of the tile's channels of the first pixel of `A`, and floats from pixel to pixel.
    a: *const f32,
    ld_a: usize,
    /// One pointer per pixel, behind which `skip` floats come first.
    b: *const *const f32,
    skip: usize,
    pixels: usize,
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
            let mut a = t.a;
            for pixel in 0..t.pixels {
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
                a = a.wrapping_add(t.ld_a);
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

/// A block of pixels and where its product goes.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// The first channel of `A`, its pixels `ld_a` floats apart.
    pub a: *const f32,
    /// Floats from pixel to pixel of `A`.
    pub ld_a: usize,
    /// One pointer per pixel of `B`.
    pub b: *const *const f32,
    /// Floats skipped behind every pointer.
    pub skip: usize,
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
}

impl Outer {
    /// For one instruction set.
    pub fn new(isa: Isa) -> Self {
        let micros = (1..=max_vectors(isa))
            .map(|vectors| (1..=max_rows(isa, vectors)).map(|m| routine::<Outers>(isa, m, vectors)).collect())
            .collect();
        Outer { isa, micros }
    }

    /// Columns of the widest tile.
    pub fn width(&self) -> usize {
        self.micros.len() * self.isa.lanes()
    }

    /// `6x4`: rows and registers of the tile most work is done by.
    pub fn tile_name(&self) -> String {
        format!("{}x{}", self.micros[self.micros.len() - 1].len(), self.micros.len())
    }

    /// Computes one block.
    ///
    /// # Safety
    /// `size[0]` floats are readable at every pixel of `A`, `skip + size[1]` behind every pointer of `B`, and the product
    /// is writable and overlaps neither.
    pub unsafe fn run(&self, block: &Block) {
        let (lanes, [rows, columns]) = (self.isa.lanes(), block.size);
        let registers = columns.div_ceil(lanes);
        let panels = registers.div_ceil(self.micros.len());
        for panel in 0..panels {
            let (from, to) = (panel * registers / panels, (panel + 1) * registers / panels);
            let (column, vectors) = (from * lanes, to - from);
            let micros = &self.micros[vectors - 1];
            let tiles = rows.div_ceil(micros.len());
            for i in 0..tiles {
                let (row, end) = (i * rows / tiles, (i + 1) * rows / tiles);
                // SAFETY: rows and columns lie within the block's.
                unsafe {
                    micros[end - row - 1](&Tile {
                        a: block.a.add(row),
                        ld_a: block.ld_a,
                        b: block.b,
                        skip: block.skip + column,
                        pixels: block.pixels,
                        c: block.c.add(row * block.ld_c + column),
                        ld_c: block.ld_c,
                        last_lanes: (columns - column).min(vectors * lanes) - (vectors - 1) * lanes,
                        store: block.store,
                    });
                }
            }
        }
    }
}
