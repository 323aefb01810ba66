//! The gradient of 1×1 weights on the matrix unit.
//!
//! ```text
//! for block of pixels:  X = split(x)
//!     for some outputs:  D = dyᵀ;  dw += split(D)·X         (split while it is multiplied)
//! ```
//!
//! The unit sums over what lies side by side in a row, so the gradient of the output is turned first: for a block of pixels and
//! some of its channels, which stay in the second cache. What the next ones are turned from is fetched meanwhile. A batch norm
//! and a clamp before the convolution are applied while its input is split.

#![allow(unsafe_code, reason = "fills pointer tables and multiplies raw maps")]

use super::super::ConvSpec;
use super::super::indirect::Taps;
use super::pointwise::Source;
use super::weight::{Gathered, WeightGradient};
use crate::kernels::Io;
use crate::kernels::gemm::outer::{Ahead, Queue};
use crate::kernels::gemm::{Extent, Gemm, Lay, Rows, Target};
use crate::kernels::light::{Light, Tiled};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Floats of a register.
const LANES: usize = 16;
/// Output channels that are turned together.
const TURNED: usize = 256;
/// Pixels of a block, whose inputs stay in the second cache; fewer where channels are many.
const PIXELS: [usize; 2] = [256, 128];
/// Input channels from which on they are many, and most of a product.
const MANY: usize = 512;
const MOST: usize = 1024;
/// Multiply-adds of a tile.
const MACS_PER_TILE: usize = 24_000_000;
/// Floats of sums, of all slices of the pixels.
const SUMS: usize = 1 << 20;

/// Whether it is faster than multiply-adds, behind a norm or not alike; by shape alone. At every pixel, to turn and split an
/// output takes as long as the unit saves of 64 products, to split an input as of 55, as measured on layers of ResNet-50.
pub(super) fn profitable(spec: &ConvSpec, source: Source, isa: Isa) -> bool {
    let [inputs, outputs] = [spec.input.c, spec.output.c];
    let plain = spec.groups == 1 && spec.window.kernel == [1, 1] && spec.placed.before == [0, 0];
    let whole = inputs.is_multiple_of(LANES) && outputs.is_multiple_of(LANES);
    let shape = 64 * outputs + 55 * inputs < inputs * outputs && spec.output.pixels() >= PIXELS[0];
    isa == Isa::Amx && source.is_clamped() && plain && whole && shape
}

/// The gradient of the weights, as [`weight_gradient`](super::weight::weight_gradient).
pub(super) fn weight_gradient(spec: ConvSpec, source: Source, isa: Isa) -> WeightGradient {
    let order = (0..spec.input.c).collect();
    ordered(spec, source, order, isa)
}

/// The same of inputs in another order: float `i` of a row goes to number `order[i]`.
pub(super) fn ordered(spec: ConvSpec, source: Source, order: Vec<usize>, isa: Isa) -> WeightGradient {
    let [inputs, outputs, pixels] = [spec.input.c, spec.output.c, spec.output.pixels()];
    let columns = inputs.div_ceil(MOST);
    let most = PIXELS[usize::from(inputs / columns > MANY)];
    let deep = pixels.div_ceil(pixels.div_ceil(most)).next_multiple_of(2 * LANES);
    let blocks = pixels.div_ceil(deep);
    let wanted = (inputs * outputs * pixels / MACS_PER_TILE).clamp(1, 8);
    let slices = (SUMS / (inputs * outputs)).clamp(1, wanted).min(blocks);
    let rows = wanted.div_ceil(slices * columns).min(outputs / (TURNED / 2)).max(1);
    let columns = (0..columns).map(|part| {
        let channels = part_of(inputs, part, columns);
        let deep = [deep, pixels - (blocks - 1) * deep];
        let gemms = deep.map(|k| Gemm::split(Extent { taps: 1, k, n: channels.len() }, None));
        Columns { channels, gemms }
    });
    let kernel = Product {
        taps: Taps::of(&spec),
        columns: columns.collect(),
        source,
        deep,
        blocks,
        slices,
        rows,
        zero: AlignedBuf::zeros(inputs),
        spec,
    };
    let direct = slices == 1 && order.is_sorted();
    let gather = Gathered { slices, rows: outputs, order };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: if direct { 0 } else { slices * inputs * outputs },
        gather: (!direct).then(|| Box::new(Light { isa, kernel: gather }) as _),
    }
}

/// The channels of a part, whole registers.
fn part_of(channels: usize, part: usize, parts: usize) -> Range<usize> {
    let cut = |part: usize| part * (channels / LANES) / parts * LANES;
    cut(part)..cut(part + 1)
}

struct Product {
    spec: ConvSpec,
    taps: Taps,
    source: Source,
    /// Parts of the input channels.
    columns: Vec<Columns>,
    /// Pixels of a block, and blocks.
    deep: usize,
    blocks: usize,
    /// Slices of the blocks, each with sums of its own.
    slices: usize,
    /// Parts of the output channels.
    rows: usize,
    /// The input of a pixel that does not exist.
    zero: AlignedBuf,
}

/// A part of the input channels.
struct Columns {
    channels: Range<usize>,
    /// The products of a block, and of the last one, which has fewer pixels.
    gemms: [Gemm; 2],
}

/// Where a tile keeps what it needs.
struct Memory<'a> {
    /// Pointers to the inputs of a block, and to turned outputs.
    x: *mut *const f32,
    lines: *mut *const f32,
    packed: *mut f32,
    turned: *mut f32,
    scratch: &'a mut [f32],
}

impl Product {
    /// Floats from turned channel to channel: not as many as would put them all in one set of the first cache.
    fn ld(&self) -> usize {
        self.deep + LANES
    }

    /// Floats of pointers, of split inputs, of turned outputs and of what the product needs.
    fn lens(&self) -> [usize; 4] {
        let most = |of: fn(&Gemm) -> usize| self.columns.iter().map(|part| of(&part.gemms[0])).max().unwrap_or(0);
        let packed = most(Gemm::packed_len).next_multiple_of(LANES);
        [2 * (self.deep + TURNED), packed, TURNED * self.ld(), most(|gemm| gemm.scratch(TURNED))]
    }

    fn memory<'a>(&self, scratch: &'a mut [f32]) -> Memory<'a> {
        let [table, packed, turned, _] = self.lens();
        let (table, rest) = scratch.split_at_mut(table);
        let (packed, rest) = rest.split_at_mut(packed);
        let (turned, scratch) = rest.split_at_mut(turned);
        let x = table.as_mut_ptr().cast::<*const f32>();
        let (packed, turned) = (packed.as_mut_ptr(), turned.as_mut_ptr());
        Memory { x, lines: x.wrapping_add(self.deep), packed, turned, scratch }
    }

    /// The pixels of a block.
    fn pixels(&self, block: usize) -> Range<usize> {
        block * self.deep..self.spec.output.pixels().min((block + 1) * self.deep)
    }

    /// What is turned next: these outputs of these pixels.
    fn outputs(&self, pixels: &Range<usize>, outputs: &Range<usize>, io: &Io) -> Ahead {
        let ld = self.spec.output.ld;
        let at = io.inputs[1].wrapping_add(pixels.start * ld + outputs.start);
        Ahead::new(at, pixels.len(), [outputs.len(), ld])
    }

    /// What is split next: part number `nth` of so many parts of these pixels, if they lie one behind the other.
    fn inputs(&self, pixels: &Range<usize>, channels: &Range<usize>, [nth, parts]: [usize; 2], io: &Io) -> Ahead {
        let cut = |part: usize| pixels.start + part * pixels.len() / parts;
        let (ld, pixels) = (self.spec.input.ld, cut(nth)..cut(nth + 1));
        let at = io.inputs[0].wrapping_add(pixels.start * ld + channels.start);
        match self.spec.window.is_pointwise() {
            true => Ahead::new(at, pixels.len(), [channels.len(), ld]),
            false => Ahead::NONE,
        }
    }
}

/// Turns pixels of channels: float `pixel` of line `channel` of what is written, whole squares of them.
///
/// # Safety
/// The channels are readable behind every pixel, and the lines writable up to whole squares.
#[inline(always)]
unsafe fn turn<S: Simd>(
    (from, ld): (*const f32, usize),
    [pixels, channels]: [usize; 2],
    (to, ld_to): (*mut f32, usize),
) {
    for first in (0..pixels).step_by(LANES) {
        let left = pixels - first;
        let mut last = [0.0; LANES * LANES];
        for channel in (0..channels).step_by(LANES) {
            // SAFETY: as demanded; of the last square the rows that exist are copied.
            unsafe {
                let (mut from, mut ld) = (from.add(first * ld + channel), ld);
                if left < LANES {
                    for row in 0..left {
                        std::ptr::copy_nonoverlapping(from.add(row * ld), last.as_mut_ptr().add(row * LANES), LANES);
                    }
                    (from, ld) = (last.as_ptr(), LANES);
                }
                S::transpose((from, ld), (to.add(channel * ld_to + first), ld_to));
            }
        }
    }
}

impl Tiled for Product {
    fn name(&self) -> String {
        let norm = self.source.prefix();
        format!("weight_gradient_{norm}split_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.slices * self.rows * self.columns.len()
    }

    fn scratch(&self) -> usize {
        self.lens().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert_eq!(S::LANES, LANES);
        let (slice, part) = (tile / (self.rows * self.columns.len()), tile % (self.rows * self.columns.len()));
        let ConvSpec { input, output, .. } = self.spec;
        let outputs = part_of(output.c, part / self.columns.len(), self.rows);
        let Columns { channels, gemms } = &self.columns[part % self.columns.len()];
        let blocks = slice * self.blocks / self.slices..(slice + 1) * self.blocks / self.slices;
        let Memory { x, lines, packed, turned, scratch } = self.memory(scratch);
        let norm = self.source.norm(&self.spec, io);
        let turns = outputs.len().div_ceil(TURNED);
        let of = |turn: usize| {
            let part = part_of(outputs.len(), turn, turns);
            outputs.start + part.start..outputs.start + part.end
        };
        // SAFETY: the memory has room for the pointers of a block, its split inputs and turned outputs; whole registers of channels
        // lie behind every pointer; the sums of this slice, these outputs and inputs are this tile's.
        unsafe {
            (0..TURNED).for_each(|i| *lines.add(i) = turned.add(i * self.ld()));
            for block in blocks.clone() {
                let (pixels, next) = (self.pixels(block), self.pixels((block + 1).min(blocks.end - 1)));
                let gemm = &gemms[usize::from(block + 1 == self.blocks)];
                self.taps.fill(pixels.clone(), io.inputs[0], self.zero.as_ptr(), x, 1);
                gemm.lay::<S>(Lay { rows: x, skip: channels.start, depth: pixels.len(), norm }, packed);
                for nth in 0..turns {
                    let rows = of(nth);
                    let from = io.inputs[1].add(pixels.start * output.ld + rows.start);
                    turn::<S>((from, output.ld), [pixels.len(), rows.len()], (turned, self.ld()));
                    let dy = if nth + 1 < turns {
                        self.outputs(&pixels, &of(nth + 1), io)
                    } else {
                        self.outputs(&next, &of(0), io)
                    };
                    let ahead = Queue::of([dy, self.inputs(&next, channels, [nth, turns], io)]);
                    let c = io.output.add((slice * output.c + rows.start) * input.c + channels.start);
                    let mut target = Target::plain(c, input.c);
                    if block > blocks.start {
                        (target.residual, target.ld_residual) = (c, input.c);
                    }
                    let m = rows.len();
                    gemm.run_laid(packed, m, Rows { table: lines, stride: m, skip: 0 }, target, scratch, ahead);
                }
            }
        }
    }
}
