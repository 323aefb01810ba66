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
//! Sides are made for a block of pairs in the second cache; the products add up over all blocks and are put together once,
//! at the end. Every input passes through registers on its way, so a batch norm and a clamp before the convolution are
//! applied there: what they made need not have been kept.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::super::ConvSpec;
use super::super::indirect::Taps;
use super::weight::WeightGradient;
use crate::activation::Activation;
use crate::kernels::gemm::outer::{Ahead, Block, Outer, Side};
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

/// One side of a product, of the quarters of a pair: first and second half of `p`, then of `q`.
#[derive(Debug, Clone, Copy)]
enum Mix {
    One(usize),
    Sum(usize, usize),
    Difference(usize, usize),
}

/// Products of blocks.
const PRODUCTS: usize = 7;
/// Of the gradient,
const LEFT: [Mix; PRODUCTS] = [
    Mix::Sum(0, 3),
    Mix::Sum(1, 3),
    Mix::One(0),
    Mix::One(3),
    Mix::Sum(0, 2),
    Mix::Difference(1, 0),
    Mix::Difference(2, 3),
];
/// and of the input.
const RIGHT: [Mix; PRODUCTS] = [
    Mix::Sum(0, 3),
    Mix::One(0),
    Mix::Difference(1, 3),
    Mix::Difference(2, 0),
    Mix::One(3),
    Mix::Sum(0, 1),
    Mix::Sum(2, 3),
];

/// Halves of the channels are whole registers of any instruction set.
const CHANNELS: usize = 32;
/// Pairs of a block.
const PAIRS: usize = 64;
/// Multiply-adds of a tile.
const MACS_PER_TILE: usize = 8_000_000;
/// Output channels of either half that pay for the sums of inputs made for them.
const LEAST_ROWS: usize = 64;

/// Whether [`weight_gradient`] can compute this convolution: 1×1, one group, whole registers in each half of the channels.
pub fn applicable(spec: &ConvSpec, source: Source) -> bool {
    let clamp = match source {
        Source::Ready => true,
        Source::Norm(activation) => activation.is_none_or(is_clamp),
    };
    let whole = spec.input.c.is_multiple_of(CHANNELS) && spec.output.c.is_multiple_of(CHANNELS);
    clamp && whole && spec.groups == 1 && spec.window.kernel == [1, 1] && spec.placed.before == [0, 0]
}

/// Whether it is faster than the plain product; by shape alone. Of every hundred multiplications it saves twelve; a register
/// of either side costs as much as five of products, and a norm of its own more.
pub fn profitable(spec: &ConvSpec, source: Source) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    let shape = match source {
        Source::Ready => 105 * (inputs + outputs) <= inputs * outputs,
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
    let parts = (halves[0] / LEAST_ROWS).clamp(1, wanted.min(4));
    let slices = wanted.div_ceil(parts).min(spec.output.pixels().div_ceil(4 * PAIRS)).max(1);
    let kernel = Product {
        taps: Taps::of(&spec),
        spec,
        source,
        outer: Outer::new(isa),
        halves,
        slices,
        parts,
        // An odd number of cache lines: pairs must not fall into the same set of the first cache.
        ld: [halves[0].div_ceil(parts) + 16, halves[1]].map(|c| (c.div_ceil(16) | 1) * 16),
        zero: AlignedBuf::zeros(spec.output.c.max(spec.input.c)),
    };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: slices * PRODUCTS * halves[0] * halves[1],
        gather: Some(Box::new(Light { isa, kernel: Gather { halves, slices } })),
    }
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
    /// Parts of half of the output channels.
    parts: usize,
    /// Floats from pair to pair of the left sides and of the right ones.
    ld: [usize; 2],
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

/// What is done to every value on its way: nothing, or `clamp(x · scale + shift)`.
#[derive(Clone, Copy)]
struct Norm {
    scale: *const f32,
    shift: *const f32,
    range: [f32; 2],
}

impl Pairs {
    /// Writes one side of a product, pair after pair, `ld` floats apart.
    ///
    /// # Safety
    /// All channels are readable behind every pointer, and in the rows of the norm's table; `to` has room.
    #[inline(always)]
    unsafe fn mix<S: Simd, const NORM: bool>(self, mix: Mix, norm: Norm, to: *mut f32, ld: usize) {
        // SAFETY: as demanded.
        unsafe {
            match mix {
                Mix::One(a) => self.each::<S, NORM>([a, a], norm, to, ld, |a, _| a),
                Mix::Sum(a, b) => self.each::<S, NORM>([a, b], norm, to, ld, |a, b| S::add(a, b)),
                Mix::Difference(a, b) => self.each::<S, NORM>([a, b], norm, to, ld, |a, b| S::sub(a, b)),
            }
        }
    }

    #[inline(always)]
    unsafe fn each<S: Simd, const NORM: bool>(
        self,
        quarters: [usize; 2],
        norm: Norm,
        to: *mut f32,
        ld: usize,
        join: impl Fn(S::V, S::V) -> S::V,
    ) {
        // SAFETY: as demanded.
        unsafe {
            let (least, most) = (S::splat(norm.range[0]), S::splat(norm.range[1]));
            let value = |pixel: *const f32, channel: usize| {
                let x = S::load(pixel.add(channel));
                if !NORM {
                    return x;
                }
                let y = S::fma(x, S::load(norm.scale.add(channel)), S::load(norm.shift.add(channel)));
                S::min(most, S::max(least, y))
            };
            let from = quarters.map(|quarter| self.channels[0] + quarter % 2 * self.half);
            for pair in 0..self.count {
                let [a, b] = quarters.map(|quarter| *self.pixels.add(quarter / 2 * self.count + pair));
                let to = to.add(pair * ld);
                let mut k = 0;
                while k < self.channels[1] {
                    S::store(to.add(k), join(value(a, from[0] + k), value(b, from[1] + k)));
                    k += S::LANES;
                }
            }
        }
    }
}

impl Product {
    /// The rows of a part: whole registers of half of the output channels.
    fn rows(&self, part: usize) -> Range<usize> {
        let registers = self.halves[0] / 16;
        16 * (part * registers / self.parts)..16 * ((part + 1) * registers / self.parts)
    }

    /// Floats of the tables of pointers and of either side.
    fn lens(&self) -> [usize; 3] {
        [2 * 6 * PAIRS, PAIRS * self.ld[0], PAIRS * self.ld[1]]
    }

    /// What product number `product` fetches of the pixels of the next block: a seventh of them, whose pointers are not
    /// known yet, so the input's only if it lies pixel by pixel.
    fn ahead(&self, next: Range<usize>, product: usize, io: &Io) -> [Ahead; 2] {
        let cut = |i: usize| next.start + i * next.len() / PRODUCTS;
        let pixels = cut(product)..cut(product + 1);
        let ConvSpec { input, output, .. } = self.spec;
        let of = |map: *const f32, c: usize, ld: usize| {
            Ahead::new(map.wrapping_add(pixels.start * ld), pixels.len(), [c, ld])
        };
        let dy = of(io.inputs[1], output.c, output.ld);
        match self.spec.window.is_pointwise() {
            true => [of(io.inputs[0], input.c, input.ld), dy],
            false => [dy, Ahead::NONE],
        }
    }
}

impl Tiled for Product {
    fn name(&self) -> String {
        let norm = if self.source == Source::Ready { "" } else { "norm_" };
        format!("weight_gradient_{norm}strassen_{}_{}", self.spec.label(), self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts
    }

    fn scratch(&self) -> usize {
        self.lens().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (slice, rows) = (tile / self.parts, self.rows(tile % self.parts));
        let [half_out, half_in] = self.halves;
        let all = self.spec.output.pixels();
        let all = slice * all / self.slices..(slice + 1) * all / self.slices;
        let [table, left, _] = self.lens();
        let (table, rest) = scratch.split_at_mut(table);
        let (left, right) = rest.split_at_mut(left);
        let table = table.as_mut_ptr().cast::<*const f32>();
        let (left, right) = (left.as_mut_ptr(), right.as_mut_ptr());
        let [x, y, sides] = [0, 2, 4].map(|part| table.wrapping_add(part * PAIRS));
        let blocks = all.len().div_ceil(2 * PAIRS).max(1);
        let cut = |block: usize| all.start + block * all.len() / blocks;
        let (c_in, norm) = (self.spec.input.c, matches!(self.source, Source::Norm(_)));
        let row = |row: usize| io.inputs[2].wrapping_add(row * c_in);
        let range = if let Source::Norm(activation) = self.source { clamp_of(activation) } else { [0.0; 2] };
        let table_of_norm = Norm { scale: row(SCALE), shift: row(SHIFT), range };
        // SAFETY: the tables have room for the pixels of a block and for either side of every pair, the sides for the pairs;
        // whole registers of channels lie behind every pointer; the products of this slice and these rows are this tile's.
        unsafe {
            for i in 0..PAIRS {
                *sides.add(i) = left.add(i * self.ld[0]);
                *sides.add(PAIRS + i) = right.add(i * self.ld[1]);
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
                let input = Pairs { pixels: x, count, half: half_in, channels: [0, half_in] };
                for product in 0..PRODUCTS {
                    gradient.mix::<S, false>(LEFT[product], table_of_norm, left, self.ld[0]);
                    match norm {
                        true => input.mix::<S, true>(RIGHT[product], table_of_norm, right, self.ld[1]),
                        false => input.mix::<S, false>(RIGHT[product], table_of_norm, right, self.ld[1]),
                    }
                    self.outer.run(&Block {
                        a: Side { pixels: sides, skip: 0 },
                        b: Side { pixels: sides.add(PAIRS), skip: 0 },
                        pixels: count,
                        c: io.output.add(((slice * PRODUCTS + product) * half_out + rows.start) * half_in),
                        ld_c: half_in,
                        size: [rows.len(), half_in],
                        store: if block == 0 { Store::Set } else { Store::Add },
                        ahead: self.ahead(next.clone(), product, io),
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
