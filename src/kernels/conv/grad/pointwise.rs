//! The gradient of 1×1 weights with an eighth of the multiplications less.
//!
//! With pixels in pairs `p`, `q` and the channels of both maps in halves, `dw = dyᵀ·x` is a product of 2×2 blocks, for which
//! seven products of blocks do (see [`strassen`](super::super::strassen())):
//!
//! ```text
//! M0 = (y_p1 + y_q2)ᵀ·(x_p1 + x_q2)    M3 = y_q2ᵀ·(x_q1 − x_p1)            dw11 = M0 + M3 − M4 + M6
//! M1 = (y_p2 + y_q2)ᵀ·x_p1             M4 = (y_p1 + y_q1)ᵀ·x_q2            dw12 = M2 + M4
//! M2 = y_p1ᵀ·(x_p2 − x_q2)             M5 = (y_p2 − y_p1)ᵀ·(x_p1 + x_p2)   dw21 = M1 + M3
//!                                      M6 = (y_q1 − y_q2)ᵀ·(x_q1 + x_q2)   dw22 = M0 − M1 + M2 + M5
//! ```
//!
//! The sides of the gradient are made for a block of pairs in the second cache, those of the input by the microkernel that
//! reads them first; the products add up over all blocks and are put together once, at the end. Every input passes through
//! registers on its way, so a batch norm and a clamp before the convolution are applied there: what they made need not have
//! been kept.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::super::ConvSpec;
use super::super::indirect::Taps;
use super::weight::WeightGradient;
use crate::activation::Activation;
use crate::kernels::gemm::outer::{Ahead, Block, Join, Mixture, Norm, Outer, Queue, RUN, Right, Side};
use crate::kernels::gemm::{clamp_of, is_clamp};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::norm::train::{SCALE, SHIFT};
use crate::kernels::{Io, Store};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// What the convolution reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Its input.
    Ready,
    /// The input of a norm before it, whose table is `inputs[2]`, and the activation behind that norm.
    Norm(Option<Activation>),
}

impl Source {
    /// Whether registers can be led through it on their way: the activation must be a clamp.
    pub(super) fn is_clamped(self) -> bool {
        match self {
            Source::Ready => true,
            Source::Norm(activation) => activation.is_none_or(is_clamp),
        }
    }

    /// What they are led through.
    pub(super) fn norm(self, spec: &ConvSpec, io: &Io) -> Option<Norm> {
        let Source::Norm(activation) = self else { return None };
        let row = |row: usize| io.inputs[2].wrapping_add(row * spec.input.c);
        Some(Norm { scale: row(SCALE), shift: row(SHIFT), range: clamp_of(activation) })
    }

    /// What it adds to the name of a kernel.
    pub(in crate::kernels::conv) fn prefix(self) -> &'static str {
        if self == Source::Ready { "" } else { "norm_" }
    }
}

/// One side of a product, of the quarters of a pair: first and second half of `p`, then of `q`.
type Mix = (Join, [usize; 2]);

const fn one(quarter: usize) -> Mix {
    (Join::One, [quarter; 2])
}

const fn sum(a: usize, b: usize) -> Mix {
    (Join::Sum, [a, b])
}

const fn difference(a: usize, b: usize) -> Mix {
    (Join::Difference, [a, b])
}

/// Products of blocks.
const PRODUCTS: usize = 7;
/// Of the gradient,
const LEFT: [Mix; PRODUCTS] = [sum(0, 3), sum(1, 3), one(0), one(3), sum(0, 2), difference(1, 0), difference(2, 3)];
/// and of the input.
const RIGHT: [Mix; PRODUCTS] = [sum(0, 3), one(0), difference(1, 3), difference(2, 0), one(3), sum(0, 1), sum(2, 3)];

/// Halves of the channels are whole registers of any instruction set.
const CHANNELS: usize = 32;
/// Pairs of a block.
const PAIRS: usize = 64;
/// Multiply-adds of a tile.
const MACS_PER_TILE: usize = 8_000_000;
/// Most output channels of a part of a half,
const ROWS: usize = 128;
/// and most floats of a part of a product.
const SUMS: usize = 1 << 15;

/// Whether [`weight_gradient`] can compute this convolution: 1×1, one group, whole registers in each half of the channels.
pub fn applicable(spec: &ConvSpec, source: Source) -> bool {
    let whole = spec.input.c.is_multiple_of(CHANNELS) && spec.output.c.is_multiple_of(CHANNELS);
    source.is_clamped() && whole && spec.groups == 1 && spec.window.kernel == [1, 1] && spec.placed.before == [0, 0]
}

/// Whether it is faster than the plain product; by shape alone. Of every hundred multiplications it saves twelve; the sides of the
/// gradient, which are made beforehand, cost more than those of the input. A norm of its own costs more again.
pub fn profitable(spec: &ConvSpec, source: Source) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    let shape = match source {
        Source::Ready => 20 * inputs + 70 * outputs <= inputs * outputs,
        Source::Norm(_) => 60 * (inputs + outputs) <= inputs * outputs && 4 * inputs >= 3 * outputs,
    };
    applicable(spec, source) && shape && spec.output.pixels() >= 4 * PAIRS
}

/// The gradient of the weights, as [`weight_gradient`](super::weight::weight_gradient).
pub fn weight_gradient(spec: ConvSpec, source: Source, isa: Isa) -> WeightGradient {
    assert!(applicable(&spec, source), "{source:?}, {spec:?}");
    let halves = [spec.output.c / 2, spec.input.c / 2];
    let macs = 2 * halves[0] * halves[1] * spec.output.pixels();
    let wanted = (macs / MACS_PER_TILE).clamp(1, 8);
    let parts = parts(halves);
    let slices = wanted.div_ceil(parts[0] * parts[1]).min(spec.output.pixels().div_ceil(4 * PAIRS)).max(1);
    let kernel = Product {
        taps: Taps::of(&spec),
        spec,
        source,
        outer: Outer::new(isa),
        halves,
        slices,
        parts,
        // An odd number of cache lines: pairs must not fall into the same set of the first cache.
        ld: ((halves[0].div_ceil(parts[0]) + 16).div_ceil(16) | 1) * 16,
        zero: AlignedBuf::zeros(spec.output.c.max(spec.input.c)),
    };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: slices * PRODUCTS * halves[0] * halves[1],
        gather: Some(Box::new(Light { isa, kernel: Gather { halves, slices } })),
    }
}

/// How many parts either half is cut into: the fewer, the less often is a map read and the left side made; but the sums of a
/// part should stay in the second cache while the blocks pass.
fn parts([outputs, inputs]: [usize; 2]) -> [usize; 2] {
    let rows = outputs.div_ceil(ROWS);
    [rows, inputs.div_ceil(SUMS / outputs.div_ceil(rows))]
}

struct Product {
    spec: ConvSpec,
    taps: Taps,
    source: Source,
    outer: Outer,
    /// Half of the output channels and of the input channels.
    halves: [usize; 2],
    /// Slices of the pixels, each with sums of its own.
    slices: usize,
    /// Parts of half of the output channels and of the input channels.
    parts: [usize; 2],
    /// Floats from pair to pair of the left sides.
    ld: usize,
    /// The gradient of a pixel that does not exist.
    zero: AlignedBuf,
}

/// The pixels of a block: pointers to all `p`, then to all `q`.
#[derive(Clone, Copy)]
struct Pairs {
    pixels: *const *const f32,
    count: usize,
    /// Channels of a half, and those of each half that are read.
    half: usize,
    channels: [usize; 2],
}

impl Pairs {
    /// The pixels of a quarter and where they start.
    fn quarter(self, quarter: usize) -> Side {
        let pixels = self.pixels.wrapping_add(quarter / 2 * self.count);
        Side { pixels, skip: self.channels[0] + quarter % 2 * self.half }
    }

    /// Writes one side of a product, pair after pair, `ld` floats apart.
    ///
    /// # Safety
    /// All channels are readable behind every pointer; `to` has room.
    #[inline(always)]
    unsafe fn mix<S: Simd>(self, (join, quarters): Mix, to: *mut f32, ld: usize) {
        // SAFETY: as demanded.
        unsafe {
            match join {
                Join::One => self.each::<S>(quarters, to, ld, |a, _| a),
                Join::Sum => self.each::<S>(quarters, to, ld, |a, b| S::add(a, b)),
                Join::Difference => self.each::<S>(quarters, to, ld, |a, b| S::sub(a, b)),
            }
        }
    }

    #[inline(always)]
    unsafe fn each<S: Simd>(self, quarters: [usize; 2], to: *mut f32, ld: usize, join: impl Fn(S::V, S::V) -> S::V) {
        // SAFETY: as demanded.
        unsafe {
            let quarters = quarters.map(|quarter| self.quarter(quarter));
            for pair in 0..self.count {
                let [a, b] = quarters.map(|side| (*side.pixels.add(pair)).add(side.skip));
                let to = to.add(pair * ld);
                for k in (0..self.channels[1]).step_by(S::LANES) {
                    S::store(to.add(k), join(S::load(a.add(k)), S::load(b.add(k))));
                }
            }
        }
    }
}

impl Product {
    /// The channels of part number `part` of a half: whole registers of output channels (`of` is 0) or input channels (1).
    fn channels(&self, of: usize, part: usize) -> Range<usize> {
        let (registers, parts) = (self.halves[of] / 16, self.parts[of]);
        16 * (part * registers / parts)..16 * ((part + 1) * registers / parts)
    }

    /// Floats of the tables of pointers, of the left sides, and of what is kept of the right ones.
    fn lens(&self) -> [usize; 3] {
        [2 * (5 * PAIRS + RUN), PAIRS * self.ld, Mixture::len(self.outer.isa())]
    }

    /// What product number `product` fetches of the pixels of the next block: a seventh of them, whose pointers are not
    /// known yet, so the input's only if it lies pixel by pixel. Of their channels, those of the part in both halves.
    fn ahead(&self, next: Range<usize>, product: usize, part: [Range<usize>; 2], io: &Io) -> Queue {
        let cut = |i: usize| next.start + i * next.len() / PRODUCTS;
        let pixels = cut(product)..cut(product + 1);
        let ConvSpec { input, output, .. } = self.spec;
        let [rows, columns] = part;
        // Of both halves; as one if they lie side by side.
        let of = |map: *const f32, channels: &Range<usize>, half: usize, ld: usize| {
            let first = map.wrapping_add(pixels.start * ld + channels.start);
            match channels.len() == half {
                true => [Ahead::new(first, pixels.len(), [2 * half, ld]), Ahead::NONE],
                false => [0, half].map(|half| Ahead::new(first.wrapping_add(half), pixels.len(), [channels.len(), ld])),
            }
        };
        let [y1, y2] = of(io.inputs[1], &rows, self.halves[0], output.ld);
        let [x1, x2] = of(io.inputs[0], &columns, self.halves[1], input.ld);
        if self.spec.window.is_pointwise() { Queue::of([x1, x2, y1, y2]) } else { Queue::of([y1, y2]) }
    }
}

impl Tiled for Product {
    fn name(&self) -> String {
        let norm = self.source.prefix();
        format!("weight_gradient_{norm}strassen_{}_{}", self.spec.label(), self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts[0] * self.parts[1]
    }

    fn scratch(&self) -> usize {
        self.lens().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let [row_parts, column_parts] = self.parts;
        let (slice, part) = (tile / (row_parts * column_parts), tile % (row_parts * column_parts));
        let (rows, columns) = (self.channels(0, part / column_parts), self.channels(1, part % column_parts));
        let [half_out, half_in] = self.halves;
        let all = self.spec.output.pixels();
        let all = slice * all / self.slices..(slice + 1) * all / self.slices;
        let [table, left, _] = self.lens();
        let (table, rest) = scratch.split_at_mut(table);
        let (left, kept) = rest.split_at_mut(left);
        let table = table.as_mut_ptr().cast::<*const f32>();
        let (left, kept) = (left.as_mut_ptr(), kept.as_mut_ptr());
        let [x, y, sides, rows_kept] = [0, 2, 4, 5].map(|part| table.wrapping_add(part * PAIRS));
        let blocks = all.len().div_ceil(2 * PAIRS).max(1);
        let cut = |block: usize| all.start + block * all.len() / blocks;
        let norm = self.source.norm(&self.spec, io);
        // SAFETY: the tables have room for the pixels of a block, the left side of every pair and the rows that are kept, the
        // memory behind them for what they point to; whole registers of channels lie behind every pointer; the products of
        // this slice and these rows are this tile's.
        unsafe {
            for i in 0..PAIRS {
                *sides.add(i) = left.add(i * self.ld);
            }
            for i in 0..RUN {
                *rows_kept.add(i) = kept.add(i * Mixture::row(self.outer.isa()));
            }
            for block in 0..blocks {
                let pixels = cut(block)..cut(block + 1);
                let (count, next) = (pixels.len().div_ceil(2), pixels.end..cut((block + 2).min(blocks)));
                self.taps.fill(pixels.clone(), io.inputs[0], self.zero.as_ptr(), x, 1);
                for (i, pixel) in pixels.clone().enumerate() {
                    *y.add(i) = io.inputs[1].add(pixel * self.spec.output.ld);
                }
                if pixels.len() < 2 * count {
                    // Nothing reaches the sums through a gradient of zero.
                    (*x.add(2 * count - 1), *y.add(2 * count - 1)) = (*x, self.zero.as_ptr());
                }
                let gradient = Pairs { pixels: y, count, half: half_out, channels: [rows.start, rows.len()] };
                let input = Pairs { pixels: x, count, half: half_in, channels: [columns.start, columns.len()] };
                for product in 0..PRODUCTS {
                    gradient.mix::<S>(LEFT[product], left, self.ld);
                    let (join, quarters) = RIGHT[product];
                    let of = quarters.map(|quarter| input.quarter(quarter));
                    self.outer.run(&Block {
                        a: Side { pixels: sides, skip: 0 },
                        b: Right::Mixed(Mixture { of, join, norm, rows: rows_kept }),
                        pixels: count,
                        c: io
                            .output
                            .add(((slice * PRODUCTS + product) * half_out + rows.start) * half_in + columns.start),
                        ld_c: half_in,
                        size: [rows.len(), columns.len()],
                        store: if block == 0 { Store::Set } else { Store::Add },
                        ahead: self.ahead(next.clone(), product, [rows.clone(), columns.clone()], io),
                    });
                }
            }
        }
    }
}

/// Adds up the slices of the products and puts the weights' gradient together.
struct Gather {
    halves: [usize; 2],
    slices: usize,
}

impl Gather {
    /// Rows of a tile.
    fn per_tile(&self) -> usize {
        (1 << 12) / (self.slices * self.halves[1]) + 1
    }
}

impl Tiled for Gather {
    fn name(&self) -> String {
        "gather_strassen".to_owned()
    }

    fn tiles(&self) -> usize {
        self.halves[0].div_ceil(self.per_tile())
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let [half_out, half_in] = self.halves;
        for row in tile * self.per_tile()..half_out.min((tile + 1) * self.per_tile()) {
            for i in (0..half_in).step_by(S::LANES) {
                // SAFETY: every slice has whole registers of every product's row; the gradient has rows for both halves.
                unsafe {
                    let mut m = [S::zero(); PRODUCTS];
                    for slice in 0..self.slices {
                        for product in 0..PRODUCTS {
                            let at = ((slice * PRODUCTS + product) * half_out + row) * half_in + i;
                            m[product] = S::add(m[product], S::load(io.inputs[0].add(at)));
                        }
                    }
                    let [first, second] = [row, half_out + row].map(|row| io.output.add(row * 2 * half_in + i));
                    S::store(first, S::add(S::add(m[0], m[3]), S::sub(m[6], m[4])));
                    S::store(first.add(half_in), S::add(m[2], m[4]));
                    S::store(second, S::add(m[1], m[3]));
                    S::store(second.add(half_in), S::add(S::sub(m[0], m[1]), S::add(m[2], m[5])));
                }
            }
        }
    }
}
