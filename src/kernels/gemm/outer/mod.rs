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

mod ahead;
mod mixture;

pub use self::ahead::{Ahead, Queue};
pub use self::mixture::{Join, Mixture, Norm};

use self::mixture::Mixer;
use super::micro::{Tiles, group, last_steps, max_rows, max_vectors, routine};
use crate::kernels::Store;
use crate::simd::{Isa, Routine, Simd};
use std::marker::PhantomData;

/// What one call of a microkernel works on.
struct Tile {
    /// One pointer per pixel of `A`, behind which `skip_a` floats come before the first channel of the tile.
    a: *const *const f32,
    skip_a: usize,
    /// The same for `B`.
    b: *const *const f32,
    skip: usize,
    /// How `B` is made on the way; not looked at where it lies there.
    mixture: *const Mixture,
    pixels: usize,
    /// Cache lines to fetch for later, at most `pixels`.
    ahead: Ahead,
    c: *mut f32,
    ld_c: usize,
    /// Lanes of the last register that exist.
    last_lanes: usize,
    store: Store,
}

type Micro = unsafe fn(&Tile);

/// Where the registers of `B` come from.
trait Columns {
    /// Whether every register of a tile exists, the last included: whoever asks which lanes do pays for it at every pixel.
    const WHOLE: bool;

    /// Those of one pixel.
    ///
    /// # Safety
    /// The caller vouches for every pointer of the tile.
    unsafe fn of<S: Simd, const NRV: usize>(t: &Tile, pixel: usize, last: S::M) -> [S::V; NRV];

    /// Keeps them, if they will be read again: when they have been multiplied, since what is loaded behind a store must be
    /// loaded after it.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn keep<S: Simd, const NRV: usize>(_: &Tile, _: usize, _: [S::V; NRV]) {}
}

/// From where they lie.
struct Lie<const WHOLE: bool>;

impl<const WHOLE: bool> Columns for Lie<WHOLE> {
    const WHOLE: bool = WHOLE;

    #[inline(always)]
    unsafe fn of<S: Simd, const NRV: usize>(t: &Tile, pixel: usize, last: S::M) -> [S::V; NRV] {
        // SAFETY: passed on.
        unsafe {
            let b = (*t.b.add(pixel)).add(t.skip);
            let mut w = [S::zero(); NRV];
            for v in 0..NRV {
                let from = b.add(v * S::LANES);
                w[v] = if WHOLE || v + 1 < NRV { S::load(from) } else { S::load_masked(from, last) };
            }
            w
        }
    }
}

struct Kernel<const MR: usize, const NRV: usize, B>(PhantomData<B>);

impl<const MR: usize, const NRV: usize, B: Columns> Routine for Kernel<MR, NRV, B> {
    type Args = Tile;

    #[inline(always)]
    unsafe fn run<S: Simd>(t: &Tile) {
        // SAFETY: the caller of the microkernel vouches for every pointer of the tile.
        unsafe {
            let last = S::mask(t.last_lanes);
            let mut acc = [[S::zero(); NRV]; MR];
            let (mut ahead, fetched) = (t.ahead, t.ahead.lines());
            let body = t.pixels - t.pixels.min(last_steps(MR, NRV));
            for pixel in 0..fetched.min(body) {
                S::prefetch_far(ahead.next());
                accumulate::<S, MR, NRV, B>(t, pixel, last, [0, MR], &mut acc);
            }
            for pixel in fetched.min(body)..body {
                accumulate::<S, MR, NRV, B>(t, pixel, last, [0, MR], &mut acc);
            }
            for _ in body..fetched {
                S::prefetch_far(ahead.next());
            }
            finish::<S, MR, NRV, B>(t, body, last, const { group(0, MR, NRV) }, &mut acc);
            finish::<S, MR, NRV, B>(t, body, last, const { group(1, MR, NRV) }, &mut acc);
            finish::<S, MR, NRV, B>(t, body, last, const { group(2, MR, NRV) }, &mut acc);
        }
    }
}

/// Multiplies the pixels from `body` on by the rows between `first` and `end`, and stores their sums: a [`group`] of them.
#[inline(always)]
unsafe fn finish<S: Simd, const MR: usize, const NRV: usize, B: Columns>(
    t: &Tile,
    body: usize,
    last: S::M,
    [first, end]: [usize; 2],
    acc: &mut [[S::V; NRV]; MR],
) {
    if first == end {
        return;
    }
    // SAFETY: as in `Kernel::run`.
    unsafe {
        for pixel in body..t.pixels {
            accumulate::<S, MR, NRV, B>(t, pixel, last, [first, end], acc);
        }
        let adds = t.store == Store::Add;
        for m in first..end {
            for v in 0..NRV {
                let (to, mut sum) = (t.c.add(m * t.ld_c + v * S::LANES), acc[m][v]);
                if B::WHOLE || v + 1 < NRV {
                    if adds {
                        sum = S::add(sum, S::load(to));
                    }
                    S::store(to, sum);
                } else {
                    if adds {
                        sum = S::add(sum, S::load_masked(to, last));
                    }
                    S::store_masked(to, sum, last);
                }
            }
        }
    }
}

/// Adds the products of one pixel and some of the rows.
#[inline(always)]
unsafe fn accumulate<S: Simd, const MR: usize, const NRV: usize, B: Columns>(
    t: &Tile,
    pixel: usize,
    last: S::M,
    [first, end]: [usize; 2],
    acc: &mut [[S::V; NRV]; MR],
) {
    // SAFETY: as in `Kernel::run`.
    unsafe {
        let a = (*t.a.add(pixel)).add(t.skip_a);
        let w = B::of::<S, NRV>(t, pixel, last);
        for m in first..end {
            let x = S::splat(*a.add(m));
            for v in 0..NRV {
                acc[m][v] = S::fma(x, w[v], acc[m][v]);
            }
        }
        B::keep::<S, NRV>(t, pixel, w);
    }
}

/// The tiles of the outer product.
struct Outers<B>(PhantomData<B>);

impl<B: Columns> Tiles for Outers<B> {
    type Args = Tile;
    type Of<const MR: usize, const NRV: usize> = Kernel<MR, NRV, B>;
}

/// The product `C (+)= Aᵀ · B` of one instruction set.
#[derive(Clone)]
pub struct Outer {
    isa: Isa,
    /// Microkernels by registers and rows, both counted from one.
    micros: Vec<Vec<Micro>>,
    /// Those for tiles whose last register is not whole.
    ragged: Vec<Vec<Micro>>,
    /// Those that mix what they read, by [`Mixture::kind`] and registers.
    mixers: [Vec<Mixer>; mixture::KINDS],
}

/// Microkernels by registers and rows.
fn micros<B: Columns>(isa: Isa) -> Vec<Vec<Micro>> {
    let of =
        |vectors: usize| (1..=max_rows(isa, vectors)).map(|rows| routine::<Outers<B>>(isa, rows, vectors)).collect();
    (1..=max_vectors(isa)).map(of).collect()
}

/// A map, by its pixels.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    /// One pointer per pixel.
    pub pixels: *const *const f32,
    /// Floats skipped behind every pointer.
    pub skip: usize,
}

impl Side {
    /// The map from a pixel and a channel on.
    ///
    /// # Safety
    /// The pixel exists.
    unsafe fn from(self, pixel: usize, channel: usize) -> Self {
        // SAFETY: as demanded.
        Side { pixels: unsafe { self.pixels.add(pixel) }, skip: self.skip + channel }
    }
}

/// The map that has the columns of a product.
#[derive(Debug, Clone, Copy)]
pub enum Right {
    /// As it lies.
    Lies(Side),
    /// Made of two others, by the first tile of rows.
    Mixed(Mixture),
}

/// A block of pixels and where its product goes.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Whose channels are the rows of the product.
    pub a: Side,
    /// Whose channels are its columns.
    pub b: Right,
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
    pub ahead: Queue,
}

/// Most pixels of a run: four registers of each take half of the first cache.
pub const RUN: usize = 64;

impl Outer {
    /// For one instruction set.
    pub fn new(isa: Isa) -> Self {
        let (micros, ragged) = (micros::<Lie<true>>(isa), micros::<Lie<false>>(isa));
        Outer { isa, micros, ragged, mixers: mixture::mixers(isa) }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
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
    /// overlaps neither. What is mixed has whole registers of columns, and 12 rows or more are multiplied by it.
    pub unsafe fn run(&self, block: &Block) {
        let (lanes, [rows, columns]) = (self.isa.lanes(), block.size);
        let registers = columns.div_ceil(lanes);
        let panels = registers.div_ceil(self.most_vectors());
        let runs = block.pixels.div_ceil(RUN).max(1);
        let mut queue = block.ahead;
        for panel in 0..panels {
            let (from, to) = (panel * registers / panels, (panel + 1) * registers / panels);
            let (column, vectors) = (from * lanes, to - from);
            let last_lanes = (columns - column).min(vectors * lanes) - (vectors - 1) * lanes;
            let micros = if last_lanes == lanes { &self.micros } else { &self.ragged };
            let micros = &micros[vectors - 1];
            let mixer = match block.b {
                Right::Lies(_) => None,
                Right::Mixed(mixture) => Some(self.mixers[mixture.kind()][vectors - 1]),
            };
            // The rows of the tile that mixes, and how the others are cut.
            let mixed = mixer.map_or(0, |mixer| mixer.rows);
            assert!(mixed <= rows && (mixed == 0 || columns.is_multiple_of(lanes)), "{rows}×{columns}");
            let others = (rows - mixed).div_ceil(micros.len());
            let cut = |i: usize| mixed + i * (rows - mixed) / others.max(1);
            for run in 0..runs {
                let (first, end) = (run * block.pixels / runs, (run + 1) * block.pixels / runs);
                // SAFETY: the pixels of this run exist.
                let (b, mixture) = unsafe {
                    match block.b {
                        Right::Lies(b) => (b.from(first, column), Mixture::NONE),
                        Right::Mixed(mixture) => (Side { pixels: mixture.rows, skip: 0 }, mixture.from(first, column)),
                    }
                };
                let mut compute = |micro: Micro, row: usize| {
                    let tile = Tile {
                        // SAFETY: as above.
                        a: unsafe { block.a.pixels.add(first) },
                        skip_a: block.a.skip + row,
                        b: b.pixels,
                        skip: b.skip,
                        mixture: &raw const mixture,
                        pixels: end - first,
                        ahead: queue.take(end - first),
                        c: block.c.wrapping_add(row * block.ld_c + column),
                        ld_c: block.ld_c,
                        last_lanes,
                        store: if run == 0 { block.store } else { Store::Add },
                    };
                    // SAFETY: rows and columns lie within the block's, and so do the pixels of this run.
                    unsafe { micro(&tile) }
                };
                if let Some(mixer) = mixer {
                    compute(mixer.micro, 0);
                }
                for i in 0..others {
                    compute(micros[cut(i + 1) - cut(i) - 1], cut(i));
                }
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;
    use crate::simd::codegen;

    #[test]
    fn machine_code_of_outer_products_multiplies_in_registers_alone() {
        let check = |micro: Micro, isa: Isa, products: usize, what: &str| {
            let loops = codegen::loops(micro as *const ());
            // Pixels of small tiles are written out several times.
            let lanes = usize::from(isa.lanes() == 8);
            assert!(loops.iter().any(|l| l.fma[lanes] > 0 && l.fma[lanes] % products == 0), "{what}: {loops:?}");
            loops.iter().for_each(|l| l.assert_in_registers(what, 0));
        };
        for &isa in Isa::available().iter().filter(|isa| isa.lanes() >= 8) {
            let outer = Outer::new(isa);
            for all in [&outer.micros, &outer.ragged] {
                for (micros, vectors) in all.iter().zip(1..) {
                    for (&micro, rows) in micros.iter().zip(1..) {
                        check(micro, isa, rows * vectors, &format!("{rows}×{vectors} {}", isa.name()));
                    }
                }
            }
            for (mixers, kind) in outer.mixers.iter().zip(0..) {
                // A norm multiplies every register that it reads: one, or two to be put together.
                let normed = [0, 1, 0, 2, 0, 2][kind];
                for (mixer, vectors) in mixers.iter().zip(1..) {
                    let what = format!("mixing {}×{vectors}, kind {kind}, {}", mixer.rows, isa.name());
                    check(mixer.micro, isa, (mixer.rows + normed) * vectors, &what);
                }
            }
        }
    }
}
