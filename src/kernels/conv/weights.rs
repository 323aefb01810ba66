//! Where a prepared convolution finds its weights: packed once and held, or packed anew for every run.

#![allow(unsafe_code, reason = "packs into raw memory, many tiles at a time")]

use super::ConvSpec;
use crate::kernels::gemm::{Extent, Gemm};
use crate::kernels::weights::{WIDEST, put_row, side_by_side, streams, whole};
use crate::kernels::{Io, Kernel, WEIGHTS, Weights};
use crate::shape::Window;
use crate::simd::{Simd, Task};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Which way weights are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the input of the convolution to its output.
    Forward,
    /// From the gradient of the output to that of the input: taps reversed, channels exchanged. The map read is the
    /// gradient of the output then, the map written that of the input.
    Backward,
}

impl Direction {
    /// Where the weights of one output channel, input channel of its group and tap lie in PyTorch's layout. "Output" and
    /// "input" are those of `spec`, the way the weights are applied.
    pub(super) fn order(self, spec: &ConvSpec) -> Order {
        let (inputs, outputs, taps) = (spec.group_inputs(), spec.group_outputs(), spec.window.taps());
        let [output, input] = match self {
            Direction::Forward => [inputs * taps, taps],
            Direction::Backward => [taps, outputs * taps],
        };
        Order { direction: self, output, input, outputs, inputs, taps, folded: None }
    }
}

/// The window and the channels of a convolution of an image before that is folded; see [`stem`](super::stem).
#[derive(Debug, Clone, Copy)]
pub(super) struct Folded {
    pub(super) window: Window,
    pub(super) channels: usize,
}

impl Folded {
    /// Weights of an output channel.
    pub(super) fn depth(&self) -> usize {
        self.channels * self.window.taps()
    }

    /// The position among them of what the folded convolution multiplies channel `input` with at tap `tap`; none where its
    /// window ends later than the convolution's.
    pub(super) fn at(&self, input: usize, tap: usize) -> Option<usize> {
        let (Window { kernel: [kh, kw], stride: [down, right], .. }, channels) = (self.window, self.channels);
        let (pixel, channel, across) = (input / channels, input % channels, kw.div_ceil(right));
        let y = tap / across * down + pixel / right;
        let x = tap % across * right + pixel % right;
        (y < kh && x < kw).then(|| (channel * kh + y) * kw + x)
    }
}

/// Strides in PyTorch's layout; see [`Direction::order`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) direction: Direction,
    /// From output channel to output channel of a group.
    pub(super) output: usize,
    /// From input channel to input channel of a group.
    pub(super) input: usize,
    outputs: usize,
    inputs: usize,
    pub(super) taps: usize,
    pub(super) folded: Option<Folded>,
}

impl Order {
    /// The same for an image that is folded.
    pub(super) fn folded(self, folded: Folded) -> Self {
        Order { output: folded.depth(), folded: Some(folded), ..self }
    }

    /// Floats of a group.
    pub(super) fn group(&self) -> usize {
        self.outputs * self.inputs * self.taps
    }

    /// Where tap `tap` lies.
    pub(super) fn tap(&self, tap: usize) -> usize {
        match self.direction {
            Direction::Forward => tap,
            Direction::Backward => self.taps - 1 - tap,
        }
    }

    /// Position of the weight of output channel `output` (of all), input channel `input` of its group and tap `tap`.
    pub(super) fn at(&self, output: usize, input: usize, tap: usize) -> usize {
        let (group, output) = (output / self.outputs, output % self.outputs);
        group * self.group() + output * self.output + input * self.input + self.tap(tap)
    }
}

/// The packed weights of a kernel.
pub(super) enum Packed {
    /// Packed when the kernel was prepared.
    Held(AlignedBuf),
    /// Handed in at every run, as `inputs[WEIGHTS]`.
    Given,
}

impl Packed {
    pub(super) fn of(&self, io: &Io) -> *const f32 {
        match self {
            Packed::Held(packed) => packed.as_ptr(),
            Packed::Given => io.inputs[WEIGHTS],
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Packed::Held(packed) => 4 * packed.len(),
            Packed::Given => 0,
        }
    }
}

/// Writes packed weights, in independent pieces.
pub(super) trait Packing: Send + Sync {
    /// Floats packed.
    fn len(&self) -> usize;

    /// Independent pieces.
    fn pieces(&self) -> usize;

    /// Packs one piece of `weight` and `bias`, both as PyTorch stores them, padding included.
    ///
    /// # Safety
    /// `packed` is writable for `len` floats, and nobody else packs the same piece.
    unsafe fn piece(&self, piece: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32);
}

/// A convolution prepared but for its weights.
pub(super) trait Form: Kernel {
    /// What packs its weights, and its bias if it has one.
    fn packing(&self, direction: Direction) -> Box<dyn Packing>;

    /// Holds packed weights from now on.
    fn hold(&mut self, packed: AlignedBuf);

    /// Sums shorter parts by themselves from now on, where that is known to err less: for weights that learn, since the errors
    /// of a step become part of them.
    fn exactly(&mut self, _: Direction) {}

    /// Cuts tiles in blocks of whole [units](crate::kernels::Stripes) of pixels from now on, over which a pass of its own may follow
    /// at once, where that costs nothing.
    fn striped(&mut self) {}
}

/// Packs `weight` and `bias` into `form`, with the threads that the weights bring.
pub(super) fn held(mut form: Box<dyn Form>, weight: &dyn Weights, bias: Option<&[f32]>) -> Box<dyn Kernel> {
    let packing = form.packing(Direction::Forward);
    form.hold(pack(&*packing, weight, bias));
    form
}

/// Packs `weight` and `bias`, with the threads that the weights bring.
pub(super) fn pack(packing: &dyn Packing, weight: &dyn Weights, bias: Option<&[f32]>) -> AlignedBuf {
    let mut packed = AlignedBuf::lasting_zeros(packing.len());
    let to = Shared(packed.as_mut_ptr());
    // SAFETY: the buffer is as long as asked for, and every piece is packed once.
    weight.share(packing.pieces(), &|piece| unsafe { packing.piece(piece, weight, bias, to.get()) });
    packed
}

/// Memory that several threads write to, each its own part.
struct Shared(*mut f32);

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

// SAFETY: only `pack` has it, whose pieces do not overlap.
unsafe impl Sync for Shared {}

/// A convolution whose weights come with every run.
pub struct Learned {
    /// The convolution; its packed weights are `inputs[WEIGHTS]`.
    pub kernel: Box<dyn Kernel>,
    /// Packs them: reads the weights (`inputs[0]`) and, if there is one, the bias (`inputs[1]`) as PyTorch stores them.
    pub packing: Box<dyn Kernel>,
    /// Floats of packed weights.
    pub packed: usize,
}

/// `form` with weights of `weights` floats that come with every run; `bias` is its length.
pub(super) fn learned(mut form: Box<dyn Form>, direction: Direction, weights: usize, bias: Option<usize>) -> Learned {
    form.exactly(direction);
    form.striped();
    let packing = form.packing(direction);
    learned_with(form, packing, weights, bias)
}

/// A kernel and what packs its weights.
pub(super) fn learned_with(
    kernel: Box<dyn Kernel>,
    packing: Box<dyn Packing>,
    weights: usize,
    bias: Option<usize>,
) -> Learned {
    let packed = packing.len();
    Learned { kernel, packing: Box::new(Packer { packing, weights, bias }), packed }
}

/// A [`Packing`] as a kernel.
struct Packer {
    packing: Box<dyn Packing>,
    weights: usize,
    bias: Option<usize>,
}

impl Kernel for Packer {
    fn name(&self) -> String {
        "pack_weights".to_owned()
    }

    fn tiles(&self) -> usize {
        self.packing.pieces()
    }

    unsafe fn run(&self, tile: usize, io: &Io, _: &mut [f32]) {
        // SAFETY: the caller brings the weights and the bias the kernel was prepared for, and room for them packed.
        unsafe {
            let weight = std::slice::from_raw_parts(io.inputs[0], self.weights);
            let bias = self.bias.map(|len| std::slice::from_raw_parts(io.inputs[1], len));
            self.packing.piece(tile, &weight, bias, io.output);
        }
    }
}

/// The weights of a matrix product for each group, a panel at a time.
pub(super) struct GemmPacking {
    gemm: Gemm,
    groups: usize,
    order: Order,
    /// The taps of the product, as numbered on the way forward; all of them, in order, unless it has fewer.
    taps: Vec<usize>,
}

impl GemmPacking {
    /// For products over all taps.
    pub(super) fn boxed(gemm: &Gemm, spec: &ConvSpec, direction: Direction) -> Box<dyn Packing> {
        assert_eq!(gemm.extent().taps * gemm.extent().k, spec.depth());
        let order = direction.order(spec);
        let taps = (0..order.taps).map(|tap| order.tap(tap)).collect();
        Box::new(GemmPacking { gemm: gemm.clone(), groups: spec.groups, order, taps })
    }

    /// For products backward over the given taps only, as they are numbered on the way forward.
    pub(super) fn of_taps(gemm: &Gemm, spec: &ConvSpec, taps: Vec<usize>) -> Self {
        let order = Direction::Backward.order(spec);
        GemmPacking { gemm: gemm.clone(), groups: spec.groups, order, taps }
    }

    /// The way back: rows of the panel lie in rows of the weights, one float of every tap.
    fn columns(&self, weight: &[f32], columns: Range<usize>, (width, panel): (usize, &mut [f32])) {
        let (count, apart) = (columns.len(), self.order.input);
        if self.order.output == 1 {
            let copy = Copied { from: &weight[columns.start..], apart, count, width, rows: panel };
            // SAFETY: the task has no condition of its own.
            return unsafe { self.gemm.isa().run(copy) };
        }
        let rows = self.taps.iter().flat_map(|&tap| (0..self.order.inputs).map(move |k| (tap, k)));
        for (row, (tap, k)) in panel.chunks_exact_mut(width).zip(rows) {
            let from = &weight[k * apart + columns.start * self.order.output + tap..];
            row.iter_mut().zip(from.iter().step_by(self.order.output)).for_each(|(to, &from)| *to = from);
            row[count..].fill(0.0);
        }
    }
}

impl Packing for GemmPacking {
    fn len(&self) -> usize {
        self.groups * self.gemm.packed_len()
    }

    fn pieces(&self) -> usize {
        self.groups * self.gemm.panels()
    }

    unsafe fn piece(&self, piece: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32) {
        let (group, panel) = (piece / self.gemm.panels(), piece % self.gemm.panels());
        let (columns, width) = (self.gemm.columns(panel), self.gemm.width(panel));
        // SAFETY: the group's packed weights start here, the panel's among them; pieces do not overlap.
        let (values, biases) = unsafe {
            let packed = packed.add(group * self.gemm.packed_len());
            let values = self.gemm.weights_of(panel);
            (
                std::slice::from_raw_parts_mut(packed.add(values.start), values.len()),
                std::slice::from_raw_parts_mut(packed.add(self.gemm.bias_at() + columns.start), width),
            )
        };
        let Extent { taps, k, .. } = self.gemm.extent();
        let rows = &mut values[..taps * k * width];
        match self.order.direction {
            Direction::Forward => {
                let (first, depth) = (group * self.order.outputs, taps * k);
                let of = (first + columns.start) * depth..(first + columns.end) * depth;
                let order = [self.order.inputs, self.order.taps];
                weight.with(of, &mut |values| {
                    let turn = Turn { values, order, count: columns.len(), width, rows: &mut *rows };
                    // SAFETY: the task has no condition of its own.
                    unsafe { self.gemm.isa().run(turn) };
                });
            }
            Direction::Backward => whole(weight, |weight| {
                self.columns(&weight[group * self.order.group()..], columns.clone(), (width, rows));
            }),
        }
        self.gemm.seal(panel, values);
        fill_bias(bias.map(|bias| &bias[group * self.gemm.extent().n..]), columns, biases);
    }
}

/// Packs the way forward: rows of the weights, `[channels, taps]`, are columns of a panel, whose rows are in the order of taps, then
/// channels.
struct Turn<'a> {
    values: &'a [f32],
    /// Channels and taps.
    order: [usize; 2],
    /// Columns.
    count: usize,
    width: usize,
    rows: &'a mut [f32],
}

/// Packs the way back of a window of one: the rows of a panel are parts of rows of the weights.
struct Copied<'a> {
    from: &'a [f32],
    /// Floats from row to row.
    apart: usize,
    /// Columns.
    count: usize,
    width: usize,
    rows: &'a mut [f32],
}

/// Rows ahead that are fetched: they lie on other pages.
const FETCHED: usize = 16;

impl Task for Copied<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Copied { from, apart, count, width, rows } = self;
        let (mut partial, past) = ([0.0; WIDEST], streams::<S>(rows));
        for (k, row) in rows.chunks_exact_mut(width).enumerate() {
            let from = &from[k * apart..][..count];
            for line in (0..count).step_by(S::LANES) {
                // SAFETY: it may be any address.
                unsafe { S::prefetch(from.as_ptr().wrapping_add(FETCHED * apart + line)) };
            }
            let whole = count == width;
            if !whole {
                partial[..count].copy_from_slice(from);
            }
            // SAFETY: rows of a panel are whole registers.
            unsafe { put_row::<S>(row, if whole { from } else { &partial[..width] }, past) };
        }
        // SAFETY: it has no condition.
        unsafe { S::streamed() };
    }
}

/// Weights of each output channel that are brought side by side at once.
const TURNED: usize = 64;

impl Task for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Turn { values, order: [channels, taps], count, width, rows } = self;
        let depth = channels * taps;
        let (mut turned, past) = ([[0.0; WIDEST]; TURNED], streams::<S>(rows));
        for start in (0..depth).step_by(TURNED) {
            let len = TURNED.min(depth - start);
            // SAFETY: the caller vouches for the instruction set; rows of a panel are whole registers.
            unsafe {
                side_by_side::<S>(&values[start..], [depth, TURNED], [count, len], &mut turned);
                for (i, from) in turned[..len].iter().enumerate() {
                    let (channel, tap) = ((start + i) / taps, (start + i) % taps);
                    put_row::<S>(&mut rows[(tap * channels + channel) * width..], &from[..width], past);
                }
            }
        }
        // SAFETY: it has no condition.
        unsafe { S::streamed() };
    }
}

/// Writes the biases of `columns`, or zeros, and zeros behind them.
pub(super) fn fill_bias(bias: Option<&[f32]>, columns: Range<usize>, into: &mut [f32]) {
    into.fill(0.0);
    if let Some(bias) = bias {
        let len = columns.len();
        into[..len].copy_from_slice(&bias[columns]);
    }
}
