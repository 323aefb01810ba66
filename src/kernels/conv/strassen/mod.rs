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

#[cfg(test)]
mod tests;
mod transform;

use self::transform::{Change, Join, Sums};
use super::ConvSpec;
use super::grid::Grid;
use super::indirect::Taps;
use super::weights::{Direction, Packed, Packing, held};
use crate::activation::Activation;
use crate::kernels::gemm::{Each, Extent, Gemm, Rows, clamp_of, is_clamp};
use crate::kernels::norm::train::{SCALE, SHIFT};
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::{Isa, adds_apart};
use crate::tensor::AlignedBuf;

/// Products of blocks.
const PRODUCTS: usize = 7;
/// Those whose left side is a half pixel as it lies in the input: the first half of `a` and the second of `b`.
const AS_IT_LIES: [usize; 2] = [2, 3];
/// Halves of the input channels are whole registers of any instruction set; those of the output channels may end with half of
/// one of the widest.
const CHANNELS: [usize; 2] = [32, 16];

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
/// half of one behind the output's, and an activation that is a clamp.
pub(super) fn applicable(spec: &ConvSpec) -> bool {
    spec.groups == 1
        && spec.window.kernel == [1, 1]
        && spec.placed.before == [0, 0]
        && spec.input.c.is_multiple_of(CHANNELS[0])
        && spec.output.c.is_multiple_of(CHANNELS[1])
        && spec.epilogue.activation.is_none_or(is_clamp)
}

/// Whether [`strassen`] is faster than the plain product; by shape, and by what the CPU's additions cost.
///
/// Of every hundred multiplications it saves twelve; in the time of one register of products, six cycles of loading,
/// adding and storing for every register of output are lost, and some for every register of input. What is left pays for
/// weights that are 7/4 as large only where many pixels share them, or where a norm would have to pass over the input. A
/// gate's scaling, which the plain product copies pixels for, comes free: fewer of them suffice, and halves of the output that
/// end with half of a register.
pub(super) fn profitable(spec: &ConvSpec, input: Input) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    let pixels = spec.output.h * spec.output.w;
    let (whole, deep) = (outputs.is_multiple_of(32), inputs >= 256 && inputs >= 2 * outputs);
    applicable(spec)
        && match input {
            Input::Ready => adds_apart() && deep && whole && pixels >= 196 && outputs >= 128,
            Input::Gated => adds_apart() && deep && pixels >= 144 && outputs >= 112,
            Input::Raw => pixels >= 40 && inputs >= 96 && outputs >= 64,
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
}

/// A 1×1 convolution of one group whose halves of the channels are whole registers, with a clamp or no activation.
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

/// Packs the sums of weights, a panel at a time.
struct StrassenPacking {
    gemm: Gemm,
}

/// Output channels of either half, and input channels, that are packed together; half of the latter is a multiple of it.
const ROWS: usize = 16;

impl Packing for StrassenPacking {
    fn len(&self) -> usize {
        self.gemm.packed_len()
    }

    fn pieces(&self) -> usize {
        self.gemm.panels()
    }

    unsafe fn piece(&self, panel: usize, weight: &dyn Weights, _: Option<&[f32]>, packed: *mut f32) {
        let (columns, width, range) = (self.gemm.columns(panel), self.gemm.width(panel), self.gemm.weights_of(panel));
        // SAFETY: the panel's weights lie here; pieces do not overlap.
        let values = unsafe { std::slice::from_raw_parts_mut(packed.add(range.start), range.len()) };
        let Extent { k: half, n, .. } = self.gemm.extent();
        let rows = |start: usize, end: usize| start * 2 * half..end * 2 * half;
        for start in columns.clone().step_by(ROWS) {
            let end = columns.end.min(start + ROWS);
            weight.with(rows(start, end), &mut |first| {
                weight.with(rows(n + start, n + end), &mut |second| {
                    self.pack([first, second], start - columns.start, (width, &mut *values));
                });
            });
        }
    }
}

impl StrassenPacking {
    /// Writes the seven sums of weights of up to 16 columns of a panel from `column` on: those of product `p` and channel `k` to
    /// row `p · half + k`. `halves` are the weights of the output channels in either half. Lanes behind the last column keep what
    /// they hold: they are the upper half of a register of which the lower is multiplied.
    fn pack(&self, halves: [&[f32]; 2], column: usize, (width, values): (usize, &mut [f32])) {
        let half = self.gemm.extent().k;
        let columns = (halves[0].len() / (2 * half)).min(ROWS);
        for block in (0..half).step_by(ROWS) {
            // Numbered as in the product: input half, then output half.
            let [w11, w12] = halves.map(|weights| self.square(weights, block));
            let [w21, w22] = halves.map(|weights| self.square(weights, half + block));
            for i in 0..ROWS {
                let [a, b, c, d] = [&w11[i], &w12[i], &w21[i], &w22[i]];
                let mut put = |product: usize, sum: [f32; ROWS]| {
                    values[(product * half + block + i) * width + column..][..columns].copy_from_slice(&sum[..columns]);
                };
                put(0, std::array::from_fn(|n| a[n] + d[n]));
                put(1, *a);
                put(2, std::array::from_fn(|n| b[n] - d[n]));
                put(3, std::array::from_fn(|n| c[n] - a[n]));
                put(4, *d);
                put(5, std::array::from_fn(|n| a[n] + b[n]));
                put(6, std::array::from_fn(|n| c[n] + d[n]));
            }
        }
    }

    /// The weights of up to 16 output channels and of 16 input channels from `channel` on, the former side by side.
    fn square(&self, weights: &[f32], channel: usize) -> [[f32; ROWS]; ROWS] {
        let mut rows = [[0.0; ROWS]; ROWS];
        for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(2 * self.gemm.extent().k)) {
            row.copy_from_slice(&weights[channel..][..ROWS]);
        }
        std::array::from_fn(|k| std::array::from_fn(|n| rows[n][k]))
    }
}

impl super::weights::Form for StrassenProduct {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        assert_eq!(direction, Direction::Forward, "no sums of weights for the way back");
        Box::new(StrassenPacking { gemm: self.gemm.clone() })
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }
}

/// Bytes of V that stay in the second cache beside M and the weights in use.
const V_BYTES: usize = 384 << 10;
/// More pairs than this do not save more of the weights' traffic than they cost, fewer do not pay for it.
const PAIRS: [usize; 2] = [24, 128];
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
    /// What outputs are clamped to.
    range: [f32; 2],
    /// The partner of the last pixel of an image with an odd number of them.
    zero: AlignedBuf,
    /// Pixels and pairs of an image.
    image: usize,
    per_image: usize,
    /// Tiles of pairs and panels.
    grid: Grid,
    /// Floats of V from product to product; pairs follow each other without gaps.
    stride_v: usize,
    /// Floats of M from pair to pair and from product to product.
    ld_m: usize,
    stride_m: usize,
}

impl StrassenProduct {
    /// See [`strassen`]; without a bias, and with weights that come with every run.
    pub(super) fn new(spec: ConvSpec, before: Before, isa: Isa) -> Self {
        assert!(applicable(&spec));
        let [inputs, outputs] = [spec.input.c, spec.output.c];
        let half = inputs / 2;
        let gemm = Gemm::new(Extent { taps: PRODUCTS, k: half, n: outputs / 2 }, None, isa);
        let image = spec.output.h * spec.output.w;
        let per_image = image.div_ceil(2);
        let grid = cut(spec.output.n * per_image, &gemm);
        // An odd number of cache lines: products must not fall into the same set of the first cache.
        let spread = |floats: usize| (floats.div_ceil(16) | 1) * 16;
        let ld_m = gemm.columns(0).len().next_multiple_of(isa.lanes());
        StrassenProduct {
            taps: Taps::of(&spec),
            bias: AlignedBuf::zeros(outputs),
            range: clamp_of(spec.epilogue.activation),
            zero: AlignedBuf::zeros(inputs),
            image,
            per_image,
            stride_v: spread(grid.tile_rows() * half),
            ld_m,
            stride_m: spread(grid.tile_rows() * ld_m),
            spec,
            before,
            gemm,
            weights: Packed::Given,
            grid,
        }
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
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (pairs, panels) = self.grid.tile(tile);
        let [table, v, _] = self.parts();
        let (table, rest) = scratch.split_at_mut(table);
        let (v, m) = rest.split_at_mut(v);
        let (pixels, v, m) = (table.as_mut_ptr().cast::<*const f32>(), v.as_mut_ptr(), m.as_mut_ptr());
        let (isa, count, half) = (self.gemm.isa(), pairs.len(), self.spec.input.c / 2);
        let packed = self.weights.of(io);
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
            for panel in panels {
                let columns = self.gemm.columns(panel);
                let rows = Rows { table: sides, stride: count, skip: 0 };
                let each = Each { apart: None, c: m, ld: self.ld_m, stride: self.stride_m };
                self.gemm.run_each(packed, count, rows, panel, each);
                isa.run(Join { of: self, pairs: pairs.clone(), columns, io, m });
            }
        }
    }
}
