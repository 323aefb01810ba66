//! The gradient of the weights: `dw[o][tap][i] = Σ over pixels p of dy[p][o] · x[p + tap][i]`.
//!
//! ```text
//! for block of pixels:  pointers to x for every tap
//!     for tap:  C[tap] += dyᵀ · x                  (the outer product of `gemm::outer`)
//! ```
//!
//! Work is split between outputs first and, where these are few, between slices of the pixels, whose sums are added in
//! order afterwards while they are brought into PyTorch's layout. A 1×1 window whose pixels are not split is there already.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::super::indirect::Taps;
use super::super::{ConvSpec, Precision, winograd};
use super::pointwise::{self, Source};
use super::split;
use crate::kernels::gemm::outer::{Ahead, Block, Outer, Queue, Right, Side};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Kernel, Store};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// The gradient of a convolution's weights.
pub struct WeightGradient {
    /// Inputs: the convolution's input, the gradient of its output. Output: `partial` floats or, if these are none, the
    /// gradient as PyTorch lays it out.
    pub kernel: Box<dyn Kernel>,
    /// Floats of partial sums.
    pub partial: usize,
    /// Adds the partial sums up: input those, output the gradient.
    pub gather: Option<Box<dyn Kernel>>,
}

/// For any convolution.
pub fn weight_gradient(spec: ConvSpec, precision: Precision, isa: Isa) -> WeightGradient {
    if let (Precision::Fast, Some(form)) = (precision, winograd::grad::profitable(&spec)) {
        return winograd::grad::weight_gradient(spec, form, Source::Ready, isa);
    }
    if precision == Precision::Fast && split::profitable(&spec, Source::Ready, isa) {
        return split::weight_gradient(spec, Source::Ready, isa);
    }
    if precision == Precision::Fast && pointwise::profitable(&spec, Source::Ready) {
        return pointwise::weight_gradient(spec, Source::Ready, isa);
    }
    if spec.groups == spec.input.c && spec.groups == spec.output.c && spec.groups > 1 {
        return super::depthwise::weight(spec, isa);
    }
    let order = (0..spec.depth()).map(|i| {
        let (tap, channel) = (i / spec.group_inputs(), i % spec.group_inputs());
        channel * spec.window.taps() + tap
    });
    product(spec, Taps::of(&spec), order.collect(), isa)
}

/// For a convolution behind a norm and the clamp of `source`, applied on the way: input 0 is that of the norm, input 2 its
/// table. None where making the norm's output again is faster.
pub fn weight_gradient_norm(spec: ConvSpec, source: Source, isa: Isa) -> Option<WeightGradient> {
    if let Some(form) = winograd::grad::profitable(&spec) {
        return Some(winograd::grad::weight_gradient(spec, form, source, isa));
    }
    if split::profitable(&spec, source, isa) {
        return Some(split::weight_gradient(spec, source, isa));
    }
    pointwise::profitable(&spec, source).then(|| pointwise::weight_gradient(spec, source, isa))
}

/// For a convolution that was prepared by [`stem`](super::super::stem()): its input holds its border.
pub fn weight_gradient_stem(spec: ConvSpec, precision: Precision, isa: Isa) -> WeightGradient {
    if let (Precision::Fast, Some(gradient)) = (precision, winograd::grad::weight_gradient_folded(spec, isa)) {
        return gradient;
    }
    let (channels, [_, kw], taps) = (spec.input.c, spec.window.kernel, spec.window.taps());
    let order = (0..spec.depth()).map(|i| {
        let (ky, kx, channel) = (i / (kw * channels), i / channels % kw, i % channels);
        channel * taps + ky * kw + kx
    });
    product(spec, Taps::of_rows(&spec), order.collect(), isa)
}

/// For a 1×1 convolution whose input channels are given in another order: float `i` of a row goes to number `order[i]`.
pub(super) fn ordered(spec: ConvSpec, order: Vec<usize>, isa: Isa) -> WeightGradient {
    match split::profitable(&spec, Source::Ready, isa) {
        true => split::ordered(spec, Source::Ready, order, isa),
        false => product(spec, Taps::of(&spec), order, isa),
    }
}

fn product(spec: ConvSpec, taps: Taps, order: Vec<usize>, isa: Isa) -> WeightGradient {
    let kernel = Product::new(spec, taps, isa);
    let turned = kernel.rows == Rows::Inputs;
    let direct = !turned && kernel.slices == 1 && order.iter().enumerate().all(|(i, &at)| i == at);
    let partial = if direct { 0 } else { kernel.slices * spec.output.c * spec.depth() };
    let gathered = Gathered { slices: kernel.slices, rows: spec.output.c, order };
    let gather: Box<dyn Kernel> = match turned {
        true => Box::new(Light { isa, kernel: Transposed(gathered) }),
        false => Box::new(Light { isa, kernel: gathered }),
    };
    WeightGradient { kernel: Box::new(Light { isa, kernel }), partial, gather: (!direct).then_some(gather) }
}

/// Which map's channels are the rows of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// The gradient's: a row of the product is a row of the weights.
    Outputs,
    /// The input's: for runs that fill registers badly.
    Inputs,
}

/// The outer products of a convolution.
struct Product {
    spec: ConvSpec,
    taps: Taps,
    outer: Outer,
    rows: Rows,
    /// Slices of the pixels.
    slices: usize,
    /// Parts of a group's output channels.
    parts: usize,
    /// What lies in the padding.
    zero: AlignedBuf,
}

/// Pixels whose rows stay in the second cache while all taps pass over them.
const PIXELS: usize = 256;
/// Floats of sums that stay there beside them.
const SUMS: usize = 64 << 10;
/// Multiply-adds of a tile.
const MACS_PER_TILE: usize = 4_000_000;

impl Product {
    fn new(spec: ConvSpec, taps: Taps, isa: Isa) -> Self {
        let outer = Outer::new(isa);
        let (outputs, depth, pixels) = (spec.group_outputs(), spec.depth(), spec.output.pixels());
        let [plain, turned] = [[outputs, taps.run], [taps.run, outputs]].map(|size| outer.cost(size));
        let turns = spec.groups == 1 && outputs * depth <= SUMS && 10 * turned < 9 * plain && pixels > 1;
        let rows = if turns { Rows::Inputs } else { Rows::Outputs };
        // Whole tiles of rows, and sums that fit.
        let fitting = (SUMS / depth / 6 * 6).clamp(6, outputs.next_multiple_of(6));
        let parts = if turns { 1 } else { outputs.div_ceil(fitting) };
        let wanted = (outputs * spec.groups * depth * pixels / MACS_PER_TILE).clamp(1, 16);
        let slices = wanted.div_ceil(parts * spec.groups).min(pixels.div_ceil(PIXELS)).max(1);
        let zero = AlignedBuf::zeros(spec.input.c.max(taps.run));
        Product { spec, taps, outer, rows, slices, parts, zero }
    }

    fn taps(&self) -> usize {
        self.taps.count[0] * self.taps.count[1]
    }

    /// What the next block will read: the gradient and, if a pixel is read once, the input.
    fn ahead(&self, pixels: Range<usize>, output: usize, outputs: usize, group: usize, io: &Io) -> Queue {
        let ConvSpec { input, output: map, .. } = self.spec;
        let dy = io.inputs[1].wrapping_add(pixels.start * map.ld + output);
        let dy = Ahead::new(dy, pixels.len(), [outputs, map.ld]);
        if !self.spec.window.is_pointwise() {
            return Queue::of([dy]);
        }
        let x = io.inputs[0].wrapping_add(pixels.start * input.ld + group * self.spec.group_inputs());
        Queue::of([dy, Ahead::new(x, pixels.len(), [self.spec.group_inputs(), input.ld])])
    }

    /// The output channels of a part of a group.
    fn part(&self, part: usize) -> Range<usize> {
        let outputs = self.spec.group_outputs();
        part * outputs / self.parts..(part + 1) * outputs / self.parts
    }
}

impl Tiled for Product {
    fn name(&self) -> String {
        let turned = if self.rows == Rows::Inputs { "_turned" } else { "" };
        format!("weight_gradient_{}{turned}_{}", self.spec.label(), self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts * self.spec.groups
    }

    fn scratch(&self) -> usize {
        2 * (self.taps() + 1) * PIXELS
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (slice, rest) = (tile / (self.parts * self.spec.groups), tile % (self.parts * self.spec.groups));
        let (group, part) = (rest / self.parts, self.part(rest % self.parts));
        let (pixels, run, outputs) = (self.spec.output.pixels(), self.taps.run, self.spec.output.c);
        let cut = |i: usize| i * pixels / self.slices;
        let range = cut(slice)..cut(slice + 1);
        let first_output = group * self.spec.group_outputs() + part.start;
        let gradient = scratch.as_mut_ptr().cast::<*const f32>();
        let table = gradient.wrapping_add(PIXELS);
        let blocks = range.len().div_ceil(PIXELS).max(1);
        for block in 0..blocks {
            let start = range.start + block * range.len() / blocks;
            let end = range.start + (block + 1) * range.len() / blocks;
            // SAFETY: the table has room for every tap of a block of pixels, and before it for the gradient's pixels; the
            // channels of the group lie behind every pointer; the sums of this slice, these outputs and each tap are this
            // tile's alone.
            unsafe {
                for (i, pixel) in (start..end).enumerate() {
                    *gradient.add(i) = io.inputs[1].add(pixel * self.spec.output.ld);
                }
                self.taps.fill(start..end, io.inputs[0], self.zero.as_ptr(), table, end - start);
                let dy = Side { pixels: gradient.cast_const(), skip: first_output };
                let next = (range.end - end).min(end - start);
                let ahead = self.ahead(end..end + next, first_output, part.len(), group, io);
                for tap in 0..self.taps() {
                    let pixels = table.add(tap * (end - start)).cast_const();
                    let x = Side { pixels, skip: group * self.spec.group_inputs() };
                    let store = if block == 0 { Store::Set } else { Store::Add };
                    let ahead = if tap == 0 { ahead } else { Queue::NONE };
                    self.outer.run(&match self.rows {
                        Rows::Outputs => Block {
                            a: dy,
                            b: Right::Lies(x),
                            pixels: end - start,
                            c: io.output.add(((slice * outputs + first_output) * self.taps() + tap) * run),
                            ld_c: self.taps() * run,
                            size: [part.len(), run],
                            store,
                            ahead,
                        },
                        Rows::Inputs => Block {
                            a: x,
                            b: Right::Lies(dy),
                            pixels: end - start,
                            c: io.output.add((slice * self.taps() + tap) * run * outputs),
                            ld_c: outputs,
                            size: [run, outputs],
                            store,
                            ahead,
                        },
                    });
                }
            }
        }
    }
}

/// Adds up the slices of `[slice][row][depth]` and puts each row in PyTorch's order.
pub(super) struct Gathered {
    pub(super) slices: usize,
    pub(super) rows: usize,
    /// Position within the row of each of `depth`.
    pub(super) order: Vec<usize>,
}

impl Gathered {
    /// Rows of a tile.
    fn per_tile(&self) -> usize {
        (1 << 15) / (self.slices * self.order.len()).max(1) + 1
    }
}

impl Tiled for Gathered {
    fn name(&self) -> String {
        "gather_slices".to_owned()
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.per_tile())
    }

    fn scratch(&self) -> usize {
        self.order.len()
    }

    fn resident_bytes(&self) -> usize {
        size_of_val(&self.order[..])
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let len = self.order.len();
        let sums = &mut scratch[..len];
        for row in tile * self.per_tile()..self.rows.min((tile + 1) * self.per_tile()) {
            // SAFETY: every slice holds every row; the gradient has as many rows.
            let of = |slice: usize| unsafe {
                std::slice::from_raw_parts(io.inputs[0].add((slice * self.rows + row) * len), len)
            };
            // SAFETY: as above, and rows belong to one tile each.
            let to = unsafe { std::slice::from_raw_parts_mut(io.output.add(row * len), len) };
            sums.copy_from_slice(of(0));
            for slice in 1..self.slices {
                sums.iter_mut().zip(of(slice)).for_each(|(sum, v)| *sum += v);
            }
            for (&at, &sum) in self.order.iter().zip(sums.iter()) {
                to[at] = sum;
            }
        }
    }
}

/// The same of `[slice][depth][row]`.
pub(super) struct Transposed(pub(super) Gathered);

/// Rows side by side.
const SIDE: usize = 16;

impl Tiled for Transposed {
    fn name(&self) -> String {
        "gather_turned".to_owned()
    }

    fn tiles(&self) -> usize {
        self.0.rows.div_ceil(SIDE)
    }

    fn resident_bytes(&self) -> usize {
        self.0.resident_bytes()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let Gathered { slices, rows, ref order } = self.0;
        let first = tile * SIDE;
        let count = SIDE.min(rows - first);
        for (i, &at) in order.iter().enumerate() {
            let mut sums = [0.0f32; SIDE];
            for slice in 0..slices {
                let from = ((slice * order.len()) + i) * rows + first;
                // SAFETY: one float for every slice, depth and row.
                let from = unsafe { std::slice::from_raw_parts(io.inputs[0].add(from), count) };
                sums.iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
            }
            for (row, &sum) in sums[..count].iter().enumerate() {
                // SAFETY: one float for every row and depth.
                unsafe { *io.output.add((first + row) * order.len() + at) = sum };
            }
        }
    }
}
