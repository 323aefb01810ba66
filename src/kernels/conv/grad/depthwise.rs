//! The way back through a depthwise convolution: every channel by itself.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::super::weights::{Packing, learned_with};
use super::super::{ConvSpec, Learned};
use super::weight::{Gathered, Transposed, WeightGradient};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::weights::whole;
use crate::kernels::{Io, Map, Store, WEIGHTS, Weights};
use crate::simd::{Isa, Simd};
use std::ops::Range;

/// The gradient of the input, any stride; as [`input_gradient`](super::input_gradient).
pub fn data(spec: ConvSpec, store: Store, isa: Isa) -> Learned {
    let (taps, c) = (spec.window.taps(), spec.input.c);
    let terms = [Terms::new(&spec, 0), Terms::new(&spec, 1)];
    let tiling = Tiling::new(spec.input.n * spec.input.h, spec.input.w * c * taps / 2);
    let kernel = Data { spec, store, terms, tiling };
    learned_with(Box::new(Light { isa, kernel }), Box::new(TapsFirst { taps, c }), taps * c, None)
}

/// `[channel][tap]` to `[tap][channel]`.
struct TapsFirst {
    taps: usize,
    c: usize,
}

impl Packing for TapsFirst {
    fn len(&self) -> usize {
        self.taps * self.c
    }

    fn pieces(&self) -> usize {
        1
    }

    unsafe fn piece(&self, _: usize, weight: &dyn Weights, _: Option<&[f32]>, packed: *mut f32) {
        whole(weight, |weight| {
            for (c, taps) in weight.chunks_exact(self.taps).enumerate() {
                for (tap, &value) in taps.iter().enumerate() {
                    // SAFETY: one float for every tap and channel.
                    unsafe { *packed.add(tap * self.c + c) = value };
                }
            }
        });
    }
}

struct Data {
    spec: ConvSpec,
    store: Store,
    /// Of rows and of columns.
    terms: [Terms; 2],
    /// Rows of the input.
    tiling: Tiling,
}

/// The outputs that every input reaches along an axis.
struct Terms {
    /// Where those of the next input begin.
    ends: Vec<usize>,
    /// An output, and the tap that leads to it.
    all: Vec<[usize; 2]>,
}

impl Terms {
    fn new(spec: &ConvSpec, axis: usize) -> Self {
        let (window, placed) = (spec.window, spec.placed);
        let (mut ends, mut all) = (Vec::new(), Vec::new());
        for i in 0..placed.input[axis] {
            for tap in 0..window.kernel[axis] {
                let Some(at) = (i + placed.before[axis]).checked_sub(tap * window.dilation[axis]) else { continue };
                let o = at / window.stride[axis];
                if o * window.stride[axis] == at && o < placed.output[axis] {
                    all.push([o, tap]);
                }
            }
            ends.push(all.len());
        }
        Terms { ends, all }
    }

    fn of(&self, i: usize) -> &[[usize; 2]] {
        &self.all[if i == 0 { 0 } else { self.ends[i - 1] }..self.ends[i]]
    }
}

impl Tiled for Data {
    fn name(&self) -> String {
        format!("input_gradient_depthwise_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn scratch(&self) -> usize {
        // The address and the tap of every term.
        4 * self.spec.window.taps()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let ConvSpec { input, output, window, .. } = self.spec;
        let c = input.c;
        let terms = scratch.as_mut_ptr().cast::<[*const f32; 2]>();
        for row in self.tiling.range(tile) {
            let (image, y) = (row / input.h, row % input.h);
            for x in 0..input.w {
                // SAFETY: every term lies in the gradient of the output; the scratch has room for one per tap; the mask
                // keeps to the channels.
                unsafe {
                    let mut count = 0;
                    for [oy, ky] in self.terms[0].of(y) {
                        for [ox, kx] in self.terms[1].of(x) {
                            let from = io.inputs[0].add(((image * output.h + oy) * output.w + ox) * output.ld);
                            let taps = io.inputs[WEIGHTS].add((ky * window.kernel[1] + kx) * c);
                            *terms.add(count) = [from, taps];
                            count += 1;
                        }
                    }
                    let to = io.output.add((row * input.w + x) * input.ld);
                    for i in (0..c).step_by(S::LANES) {
                        let mask = S::mask(S::LANES.min(c - i));
                        let add = self.store == Store::Add;
                        let mut sum = if add { S::load_masked(to.add(i), mask) } else { S::zero() };
                        for term in 0..count {
                            let [from, taps] = *terms.add(term);
                            let w = S::load_masked(taps.add(i), mask);
                            sum = S::fma(S::load_masked(from.add(i), mask), w, sum);
                        }
                        S::store_masked(to.add(i), sum, mask);
                    }
                }
            }
        }
    }
}

/// The gradient of the weights; as [`weight_gradient`](super::weight::weight_gradient).
pub(super) fn weight(spec: ConvSpec, isa: Isa) -> WeightGradient {
    let (taps, c) = (spec.window.taps(), spec.output.c);
    let rows = spec.output.n * spec.output.h;
    let slices = (rows * spec.output.w * c * taps / 1_000_000).clamp(1, 16).min(rows.max(1));
    // Whole registers, so that the sums of one do not lie across those of another.
    let block = c.next_multiple_of(isa.lanes()).min(64);
    let kernel = Weight { spec, slices, block, lanes: isa.lanes() };
    let gathered = Gathered { slices, rows: c, order: (0..taps).collect() };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: slices * taps * c,
        gather: Some(Box::new(Light { isa, kernel: Transposed(gathered) })),
    }
}

/// `dw[slice][tap][c] = Σ dy[p][c] · x[p + tap][c]`, row by row: for each register of channels the input rows that an output
/// row reads are copied together, border included, and every product is then one load and one addition to a sum in a
/// register. Neighbouring registers take turns at a row, so that memory is read in whole stretches, and what the next row
/// needs is fetched meanwhile.
struct Weight {
    spec: ConvSpec,
    slices: usize,
    /// Channels of a tile.
    block: usize,
    lanes: usize,
}

/// A register of channels.
#[derive(Clone, Copy)]
struct Column<M> {
    /// The first of its channels, and which exist.
    c: usize,
    mask: M,
    /// Its copied rows.
    lines: *mut f32,
    /// The sum of its first tap, `Weight::block` floats before that of the next.
    totals: *mut f32,
}

/// An output row, and the input rows that its taps read.
#[derive(Clone, Copy)]
struct Row<const KH: usize> {
    /// Its number among those of all images.
    number: usize,
    image: usize,
    /// The input row of every row of taps, counted from the first one of padding; where its copy goes, and whether it has
    /// to be made.
    reads: [(usize, usize, bool); KH],
    /// The first tap.
    first: [usize; 2],
}

impl Weight {
    /// Pixels of a copied row.
    fn width(&self) -> usize {
        let window = self.spec.window;
        (self.spec.output.w - 1) * window.stride[1] + window.span(1)
    }

    /// Floats of the copied rows of a register.
    fn lines(&self) -> usize {
        self.spec.window.kernel[0] * self.width() * self.lanes
    }

    /// Copies input row `y` of an image, which may lie outside, to `line`.
    ///
    /// # Safety
    /// `line` has room for it.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self, image: usize, y: usize, io: &Io, column: &Column<S::M>, line: *mut f32) {
        let Map { h, w, ld, .. } = self.spec.input;
        let before = self.spec.placed.before[1];
        let next = self.spec.window.stride[0] * w * ld;
        // SAFETY: pixels outside the image are not read.
        unsafe {
            let from = io.inputs[0].wrapping_add((image * h).wrapping_add(y).wrapping_mul(w * ld) + column.c);
            for i in 0..self.width() {
                let x = i.wrapping_sub(before);
                let inside = y < h && x < w;
                let at = from.wrapping_add(x.wrapping_mul(ld));
                let value = if inside { S::load_masked(at, column.mask) } else { S::zero() };
                S::prefetch_far(at.wrapping_add(next));
                S::store(line.add(i * S::LANES), value);
            }
        }
    }

    /// The sums of one output row over `KH` rows of `KW` taps, for one register of channels.
    ///
    /// # Safety
    /// As [`Tiled::compute`]; the column has room for `KH` rows and as many sums as there are taps.
    #[inline(always)]
    unsafe fn row<S: Simd, const KH: usize, const KW: usize>(&self, row: &Row<KH>, io: &Io, column: &Column<S::M>) {
        let ConvSpec { output, window, placed, .. } = self.spec;
        let (pitch, step) = (self.width() * S::LANES, window.stride[1] * S::LANES);
        let apart = window.dilation[1] * S::LANES;
        // SAFETY: as demanded.
        unsafe {
            let mut line = [std::ptr::null::<f32>(); KH];
            for ky in 0..KH {
                let (y, slot, missing) = row.reads[ky];
                let at = column.lines.add(slot * pitch);
                if missing {
                    self.copy::<S>(row.image, y.wrapping_sub(placed.before[0]), io, column, at);
                }
                line[ky] = at.add(row.first[1] * apart).cast_const();
            }
            let mut sums = [[S::zero(); KW]; KH];
            let dy = io.inputs[1].add(row.number * output.w * output.ld + column.c);
            let next = output.w * output.ld;
            for ox in 0..output.w {
                let at = dy.add(ox * output.ld);
                let d = S::load_masked(at, column.mask);
                S::prefetch_far(at.wrapping_add(next));
                for ky in 0..KH {
                    for kx in 0..KW {
                        let x = S::load(line[ky].add(ox * step + kx * apart));
                        sums[ky][kx] = S::fma(x, d, sums[ky][kx]);
                    }
                }
            }
            for ky in 0..KH {
                for kx in 0..KW {
                    let tap = (row.first[0] + ky) * window.kernel[1] + row.first[1] + kx;
                    let total = column.totals.add(tap * self.block);
                    S::store(total, S::add(S::load(total), sums[ky][kx]));
                }
            }
        }
    }

    /// All output rows of a slice, for `KH` rows of `KW` taps from tap `first` on and the channels of a block.
    ///
    /// # Safety
    /// As [`Tiled::compute`]; every column has room for `KH` rows and as many sums as there are taps.
    #[inline(always)]
    unsafe fn rows<S: Simd, const KH: usize, const KW: usize>(
        &self,
        rows: Range<usize>,
        io: &Io,
        columns: &[Column<S::M>],
        first: [usize; 2],
    ) {
        let ConvSpec { output, window, .. } = self.spec;
        // Which input row each line holds.
        let mut holds = [usize::MAX; KH];
        for number in rows {
            let (image, oy) = (number / output.h, number % output.h);
            let mut reads = [(0, 0, false); KH];
            for (ky, read) in reads.iter_mut().enumerate() {
                let y = oy * window.stride[0] + (first[0] + ky) * window.dilation[0];
                let of_all = image * (output.h * window.stride[0] + window.span(0)) + y;
                let slot = y / window.dilation[0] % KH;
                *read = (y, slot, holds[slot] != of_all);
                holds[slot] = of_all;
            }
            let row = Row { number, image, reads, first };
            for column in columns {
                // SAFETY: as demanded.
                unsafe { self.row::<S, KH, KW>(&row, io, column) };
            }
        }
    }
}

/// Most registers of a block: of sixteen lanes, four make 64 channels; narrower ones have as many channels in more.
const MOST_COLUMNS: usize = 16;

impl Tiled for Weight {
    fn name(&self) -> String {
        format!("weight_gradient_depthwise_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.slices * self.spec.output.c.div_ceil(self.block)
    }

    fn scratch(&self) -> usize {
        self.block.div_ceil(self.lanes) * self.lines() + self.spec.window.taps() * self.block
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (channels, taps) = (self.spec.output.c, self.spec.window.taps());
        let (slice, block) = (tile % self.slices, tile / self.slices);
        let rows = self.spec.output.n * self.spec.output.h;
        let rows = slice * rows / self.slices..(slice + 1) * rows / self.slices;
        let start = block * self.block;
        let count = self.block.min(channels - start);
        let (totals, lines) = scratch.split_at_mut(taps * self.block);
        totals.fill(0.0);
        let column = |i: usize| Column {
            c: start + i * S::LANES,
            // SAFETY: the instruction set is there.
            mask: unsafe { S::mask(S::LANES.min(count - (i * S::LANES).min(count))) },
            lines: lines.as_mut_ptr().wrapping_add(i * self.lines()),
            totals: totals.as_mut_ptr().wrapping_add(i * S::LANES),
        };
        let columns: [_; MOST_COLUMNS] = std::array::from_fn(column);
        let columns = &columns[..count.div_ceil(S::LANES)];
        let [kh, kw] = self.spec.window.kernel;
        // SAFETY: every column has room for every row of taps and a sum for every tap.
        unsafe {
            match [kh, kw] {
                [3, 3] => self.rows::<S, 3, 3>(rows, io, columns, [0, 0]),
                [5, 5] => self.rows::<S, 5, 5>(rows, io, columns, [0, 0]),
                _ => {
                    for tap in 0..kh * kw {
                        self.rows::<S, 1, 1>(rows.clone(), io, columns, [tap / kw, tap % kw]);
                    }
                }
            }
        }
        for (tap, totals) in totals.chunks_exact(self.block).enumerate() {
            // SAFETY: the slice has a float for every tap and channel.
            let to = unsafe {
                let at = io.output.add((slice * taps + tap) * channels + start);
                std::slice::from_raw_parts_mut(at, count)
            };
            to.copy_from_slice(&totals[..count]);
        }
    }
}
