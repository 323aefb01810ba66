//! 1×1 convolution with an eighth of the multiplications less (Strassen, *Gaussian Elimination is not Optimal*, 1969).
//!
//! Two neighbouring pixels `a` and `b` of an image, each half of their channels, and each half of the output channels
//! make a product of 2×2 blocks, which needs seven products of blocks instead of eight:
//!
//! ```text
//! M0 = (a1 + b2)·(W11 + W22)    M3 = b2·(W21 − W11)          y(a)1 = M0 + M3 − M4 + M6
//! M1 = (b1 + b2)·W11            M4 = (a1 + a2)·W22           y(a)2 = M2 + M4
//! M2 = a1·(W12 − W22)           M5 = (b1 − a1)·(W11 + W12)   y(b)1 = M1 + M3
//!                               M6 = (a2 − b2)·(W21 + W22)   y(b)2 = M0 − M1 + M2 + M5
//! ```
//!
//! The sums of weights are made once. Those of pixels are made for a block of pairs in the second cache, and the
//! products are put together while they are still there, so that only arithmetic is saved and added:
//!
//! ```text
//! for block of pairs:  V = sums(input)
//!     for panel of output channels:  M[p] = V[p] · U[p] for the seven products;  output = join(M)
//! ```
//!
//! Since every input passes through registers on its way to V, a batch norm with ReLU that stands before the convolution
//! (DenseNet) is applied there, or the gate of squeeze-and-excitation (EfficientNet), at no cost.
//!
//! # Accuracy
//!
//! Rounding errors are 1.8 times those of the plain sum, measured at 256 to 2048 channels, and those of one pixel of a
//! pair reach the other. Pairs never cross images: what one image holds, infinities included, cannot reach another.

#![allow(unsafe_code, reason = "runs transforms and microkernels on raw maps")]

mod filters;
#[cfg(test)]
mod tests;
mod transform;

use self::filters::StrassenPacking;
use self::transform::{Change, Join, Sums};
use super::ConvSpec;
use super::grid::Grid;
use super::indirect::Taps;
use super::weights::{Direction, Form, Packed, Packing, held, pack};
use crate::activation::Activation;
use crate::kernels::gemm::{Each, Extent, Gemm, Rows, clamp_of, is_clamp};
use crate::kernels::norm::train::{SCALE, SHIFT};
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::{Isa, adds_apart};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Products of blocks.
const PRODUCTS: usize = 7;
/// Those whose left side is a half pixel as it lies in the input: the first half of `a` and the second of `b`.
const AS_IT_LIES: [usize; 2] = [2, 3];
/// Halves of the channels fill registers of any instruction set, but for half of one of the widest, of which the input has one
/// at least.
const CHANNELS: usize = 16;

/// What is done to the input on its way: `x' = activation(scale · x + shift)` per channel.
#[derive(Debug, Clone)]
pub struct Prologue {
    /// One factor per input channel.
    pub scale: Vec<f32>,
    /// One summand per input channel.
    pub shift: Vec<f32>,
    /// ReLU, ReLU6 or nothing.
    pub activation: Option<Activation>,
}

/// Whether [`strassen`] can compute this convolution: 1×1, one group, whole registers in each half of the channels, but for
/// half of one at the end.
pub(super) fn applicable(spec: &ConvSpec) -> bool {
    spec.groups == 1
        && spec.window.kernel == [1, 1]
        && spec.placed.before == [0, 0]
        && spec.input.c >= 2 * CHANNELS
        && [spec.input.c, spec.output.c].iter().all(|c| c.is_multiple_of(CHANNELS))
}

/// Whether [`strassen`] is faster than the plain product; by shape, and by what the CPU's additions cost.
///
/// Of every hundred multiplications it saves twelve; in the time of one register of products, six cycles of loading,
/// adding and storing for every register of output are lost, and some for every register of input. What is left pays for
/// weights that are 7/4 as large only where many pixels share them, or where a norm would have to pass over the input. A
/// gate's scaling, which the plain product copies pixels for, comes free: fewer of them suffice, and halves of the output that
/// end with half of a register. What is expanded is stored for the next kernel to read at once, so that wide outputs cost less.
pub(super) fn profitable(spec: &ConvSpec, input: Input) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    let pixels = spec.output.h * spec.output.w;
    let (whole, deep) = (outputs.is_multiple_of(32), inputs >= 256 && inputs >= 2 * outputs);
    applicable(spec)
        && match input {
            Input::Ready => adds_apart() && deep && whole && pixels >= 196 && outputs >= 128,
            Input::Gated => adds_apart() && deep && pixels >= 144 && outputs >= 112,
            Input::Raw => pixels >= 40 && inputs >= 96 && outputs >= 64,
            Input::Expanded => adds_apart() && pixels >= 144 && inputs >= 160 && outputs >= inputs,
        }
}

/// Whether it is faster in a training step than a norm that passes over the map and the plain product; by shape alone. Weights
/// are packed at every step there, so that without a norm it does not pay.
pub(super) fn trains(spec: &ConvSpec) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    applicable(spec) && inputs >= 96 && outputs >= 64 && 4 * inputs >= 3 * outputs && spec.output.pixels() >= 512
}

/// What a convolution finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Its input.
    Ready,
    /// What a norm before it reads; see [`Prologue`].
    Raw,
    /// What is to be scaled by a gate; see [`gated`](super::gated()).
    Gated,
    /// What is expanded for a depthwise convolution; see [`expand_depthwise`](super::expand_depthwise).
    Expanded,
}

/// A 1×1 convolution of one group whose halves of the channels are whole registers, but for half of one.
pub fn strassen(
    spec: ConvSpec,
    prologue: Option<Prologue>,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    isa: Isa,
) -> Box<dyn Kernel> {
    let inputs = spec.input.c;
    let before = match prologue {
        None => Before::Nothing,
        Some(prologue) => {
            assert!([prologue.scale.len(), prologue.shift.len()] == [inputs; 2]);
            assert!(prologue.activation.is_none_or(is_clamp));
            Before::Held(prologue)
        }
    };
    hold(spec, before, weight, bias, isa)
}

/// As [`gated`](super::gated()), for the shapes of [`strassen`].
pub(super) fn gated(
    spec: ConvSpec,
    ld: usize,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    isa: Isa,
) -> Box<dyn Kernel> {
    assert!(ld >= spec.input.c);
    hold(spec, Before::Gate { ld }, weight, bias, isa)
}

fn hold(spec: ConvSpec, before: Before, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    let mut product = StrassenProduct::new(spec, before, isa);
    if let Some(bias) = bias {
        product.bias.copy_from_slice(bias);
    }
    held(Box::new(product), weight, None)
}

/// What is done to the input on its way, and where that is written.
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// What was known when the kernel was prepared.
    Held(Prologue),
    /// A batch norm whose table comes with every run, as `inputs[2]`, and the clamp behind it.
    Table(Option<Activation>),
    /// It is multiplied by the gate of its image, which comes with every run, as `inputs[2]`, `ld` floats from image to image.
    Gate { ld: usize },
}

impl Form for StrassenProduct {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        assert_eq!(direction, Direction::Forward, "no sums of weights for the way back");
        Box::new(StrassenPacking { gemm: self.gemm.clone() })
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }

    fn exactly(&mut self, _: Direction) {
        self.gemm = self.gemm.clone().exactly();
    }
}

/// Bytes of V that stay in the second cache beside M and the weights in use.
const V_BYTES: usize = 384 << 10;
/// More pairs than this do not save more of the weights' traffic than they cost, fewer do not pay for it.
const PAIRS: [usize; 2] = [24, 128];
/// Pairs whose products are put together at a time, near the first cache; of an image, where 12 to 144 take as long.
const BLOCK: usize = 24;
/// About 20 µs of one core.
const MACS_PER_TILE: usize = 2_500_000;

/// Cuts pairs and panels into tiles: blocks of pairs that fit the cache, and no fewer tiles than a few threads need. Of
/// the ways to do so, the one that moves the least: every block reads all weights, every group of panels sums all inputs.
fn cut(pairs: usize, gemm: &Gemm) -> Grid {
    let Extent { taps, k, n } = gemm.extent();
    let fitting = (V_BYTES / (4 * PRODUCTS * k)).clamp(PAIRS[0], PAIRS[1]);
    let least = pairs.div_ceil(fitting).max(1);
    let most = (pairs / PAIRS[0]).max(least);
    let wanted = (pairs * taps * k * n / MACS_PER_TILE).clamp(1, 8);
    let cost = |[blocks, groups]: &[usize; 2]| {
        let tiles = blocks * groups;
        let uneven = if tiles > 1 && tiles < 16 { tiles % 2 } else { 0 };
        // In cycles: weights at 16 bytes each, a register of sums at 2.
        let moved = blocks * taps * k * n / 4 + groups * pairs * k / 16 * taps * 2;
        (wanted.saturating_sub(tiles), uneven, moved)
    };
    let cuts = (1..=gemm.panels().min(8)).flat_map(|groups| (least..=most.min(least + 8)).map(move |b| [b, groups]));
    Grid::of([pairs, gemm.panels()], cuts.min_by_key(cost).expect("at least one block"))
}

/// A prepared convolution.
pub(super) struct StrassenProduct {
    spec: ConvSpec,
    taps: Taps,
    before: Before,
    /// One tap per product, half of the channels each way.
    gemm: Gemm,
    weights: Packed,
    bias: AlignedBuf,
    /// The partner of the last pixel of an image with an odd number of them.
    zero: AlignedBuf,
    /// Pixels and pairs of an image.
    image: usize,
    per_image: usize,
    /// Tiles of pairs and panels.
    grid: Grid,
    /// Most pairs whose products are put together at a time.
    block: usize,
    /// Floats of the output from pixel to pixel, and from a channel of the first half to its like in the second.
    ld: usize,
    apart: usize,
    /// Floats of V from product to product; pairs follow each other without gaps.
    stride_v: usize,
    /// Floats of M from pair to pair and from product to product.
    ld_m: usize,
    stride_m: usize,
}

impl StrassenProduct {
    /// See [`strassen`]; without a bias, and with weights that come with every run.
    pub(super) fn new(spec: ConvSpec, before: Before, isa: Isa) -> Self {
        let gemm = product(&spec, isa);
        let grid = cut(spec.output.n * pairs(&spec), &gemm);
        let (ld, apart) = (spec.output.ld, spec.output.c / 2);
        Self::with(spec, before, gemm, (grid, grid.tile_rows()), [ld, apart])
    }

    /// Of one image, for [`sum`](Self::sum) and [`panel`](Self::panel) of all its pairs, with its weights and biases. A panel's
    /// channels of either half go to runs as long as its registers, behind each other.
    pub(super) fn of_image(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Self {
        assert!(spec.output.n == 1 && spec.epilogue.residual.is_none());
        let gemm = product(&spec, isa);
        let width = gemm.width(0);
        let grid = Grid::of([pairs(&spec), gemm.panels()], [1, 1]);
        let mut product = Self::with(spec, Before::Nothing, gemm, (grid, BLOCK), [2 * width, width]);
        product.bias.copy_from_slice(bias.unwrap_or(&vec![0.0; spec.output.c]));
        product.hold(pack(&*product.packing(Direction::Forward), weight, None));
        product
    }

    fn with(spec: ConvSpec, before: Before, gemm: Gemm, (grid, block): (Grid, usize), [ld, apart]: [usize; 2]) -> Self {
        assert!(applicable(&spec));
        // An odd number of cache lines: products must not fall into the same set of the first cache.
        let spread = |floats: usize| (floats.div_ceil(16) | 1) * 16;
        let ld_m = gemm.columns(0).len().next_multiple_of(gemm.isa().lanes());
        let block = block.min(grid.tile_rows());
        StrassenProduct {
            taps: Taps::of(&spec),
            bias: AlignedBuf::zeros(spec.output.c),
            zero: AlignedBuf::zeros(spec.input.c),
            image: spec.output.h * spec.output.w,
            per_image: pairs(&spec),
            stride_v: spread(grid.tile_rows() * (spec.input.c / 2)),
            ld_m,
            stride_m: spread(block * ld_m),
            spec,
            before,
            gemm,
            weights: Packed::Given,
            grid,
            block,
            ld,
            apart,
        }
    }

    /// One tap per product, half of the channels each way.
    pub(super) fn gemm(&self) -> &Gemm {
        &self.gemm
    }

    /// The pairs of the first image.
    pub(super) fn first_image(&self) -> Range<usize> {
        0..self.per_image
    }

    /// What is done to the pixels of an image on their way.
    fn prologue(&self, image: usize, io: &Io) -> Change {
        match &self.before {
            Before::Nothing => Change::None,
            Before::Held(Prologue { scale, shift, activation }) => {
                Change::Norm { table: [scale.as_ptr(), shift.as_ptr()], range: clamp_of(*activation) }
            }
            Before::Table(activation) => {
                let row = |row: usize| io.inputs[2].wrapping_add(row * self.spec.input.c);
                Change::Norm { table: [row(SCALE), row(SHIFT)], range: clamp_of(*activation) }
            }
            Before::Gate { ld } => Change::Gate(io.inputs[2].wrapping_add(image * ld)),
        }
    }

    /// The two pixels of a pair; the second does not exist at the end of an image with an odd number of them.
    fn pixels(&self, pair: usize) -> (usize, Option<usize>) {
        let (image, at) = (pair / self.per_image, pair % self.per_image * 2);
        let first = image * self.image + at;
        (first, (at + 1 < self.image).then_some(first + 1))
    }

    /// Floats of the tables of pointers to pixels and to left sides, of V and of M.
    fn parts(&self) -> [usize; 3] {
        let table = (2 * (2 + PRODUCTS) * self.grid.tile_rows()).next_multiple_of(16);
        [table, PRODUCTS * self.stride_v, PRODUCTS * self.stride_m]
    }

    /// Those parts of the scratch memory: the table, V and M.
    fn split(&self, scratch: &mut [f32]) -> (*mut *const f32, *mut f32, *mut f32) {
        assert!(scratch.len() >= self.parts().iter().sum());
        let [table, v, _] = self.parts();
        let (table, rest) = scratch.split_at_mut(table);
        let (v, m) = rest.split_at_mut(v);
        (table.as_mut_ptr().cast(), v.as_mut_ptr(), m.as_mut_ptr())
    }

    /// Makes the left sides of `pairs`, no more than a tile has, in the scratch memory.
    ///
    /// # Safety
    /// As [`Kernel::run`] for these pairs.
    pub(super) unsafe fn sum(&self, pairs: Range<usize>, io: &Io, scratch: &mut [f32]) {
        let (pixels, v, _) = self.split(scratch);
        let (isa, count, half) = (self.gemm.isa(), pairs.len(), self.spec.input.c / 2);
        assert!(count <= self.grid.tile_rows());
        // SAFETY: the parts of the scratch hold what `parts` says for at most `tile_rows` pairs; `io` fits.
        unsafe {
            for (i, pair) in pairs.clone().enumerate() {
                let (first, second) = self.pixels(pair);
                let zero = self.zero.as_ptr();
                *pixels.add(2 * i + 1) = zero;
                let rows = first..second.map_or(first, |p| p) + 1;
                self.taps.fill(rows, io.inputs[0], zero, pixels.add(2 * i), 2);
            }
            let sides = pixels.add(2 * count);
            for product in 0..PRODUCTS {
                for i in 0..count {
                    *sides.add(product * count + i) = v.add(product * self.stride_v + i * half);
                }
            }
            if let Before::Nothing = self.before {
                for i in 0..count {
                    *sides.add(AS_IT_LIES[0] * count + i) = *pixels.add(2 * i);
                    *sides.add(AS_IT_LIES[1] * count + i) = (*pixels.add(2 * i + 1)).add(half);
                }
            }
            let mut start = pairs.start;
            while start < pairs.end {
                let image = start / self.per_image;
                let end = pairs.end.min((image + 1) * self.per_image);
                let (change, first, count) = (self.prologue(image, io), start - pairs.start, end - start);
                let (pixels, v) = (pixels.cast_const().add(2 * first), v.add(first * half));
                isa.run(Sums { of: self, change, pixels, count, v });
                start = end;
            }
        }
    }

    /// Multiplies them by the weights of a panel and puts the products together, at the panel's channels of `io.output`.
    ///
    /// # Safety
    /// As [`Kernel::run`] for these pairs, of which [`sum`](Self::sum) made the left sides.
    pub(super) unsafe fn panel(&self, pairs: Range<usize>, panel: usize, io: &Io, scratch: &mut [f32]) {
        let (table, _, m) = self.split(scratch);
        let (count, blocks) = (pairs.len(), pairs.len().div_ceil(self.block.max(1)));
        let columns = self.gemm.columns(panel);
        for block in 0..blocks {
            let block = block * count / blocks..(block + 1) * count / blocks;
            // SAFETY: the left sides of every product follow the pixels in the table; M has room for a block.
            unsafe {
                let sides = table.cast_const().add(2 * count + block.start);
                let rows = Rows { table: sides, stride: count, skip: 0 };
                let each = Each { apart: None, c: m, ld: self.ld_m, stride: self.stride_m };
                self.gemm.run_each(self.weights.of(io), |_| 0..block.len(), rows, panel, each);
                let pairs = pairs.start + block.start..pairs.start + block.end;
                self.gemm.isa().run(Join { of: self, pairs, columns: columns.clone(), io, m });
            }
        }
    }
}

/// The seven products of a convolution.
pub(super) fn product(spec: &ConvSpec, isa: Isa) -> Gemm {
    Gemm::new(Extent { taps: PRODUCTS, k: spec.input.c / 2, n: spec.output.c / 2 }, None, isa)
}

/// Pairs of an image.
fn pairs(spec: &ConvSpec) -> usize {
    (spec.output.h * spec.output.w).div_ceil(2)
}

impl Kernel for StrassenProduct {
    fn name(&self) -> String {
        let before = match self.before {
            Before::Nothing => "",
            Before::Held(_) | Before::Table(_) => "norm_",
            Before::Gate { .. } => "gated_",
        };
        format!("{before}strassen_{} {}", self.gemm.tile_name(), self.gemm.isa().name())
    }

    fn tiles(&self) -> usize {
        if self.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.parts().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        let prologue = if let Before::Held(p) = &self.before { p.scale.len() + p.shift.len() } else { 0 };
        self.weights.bytes() + 4 * (self.bias.len() + self.zero.len() + prologue)
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles());
        let (pairs, panels) = self.grid.tile(tile);
        // SAFETY: passed on.
        unsafe {
            self.sum(pairs.clone(), io, scratch);
            panels.for_each(|panel| self.panel(pairs.clone(), panel, io, scratch));
        }
    }
}
