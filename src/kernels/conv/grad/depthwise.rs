//! The way back through a depthwise convolution: every channel by itself.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::super::weights::{Packing, learned_with};
use super::super::{ConvSpec, Learned};
use super::weight::{Gathered, Transposed, WeightGradient};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::weights::whole;
use crate::kernels::{Io, Map, Store, WEIGHTS, Weights};
use crate::shape::{Placed, Window};
use crate::simd::{Isa, Simd};
use std::ops::Range;

/// The gradient of the input, any stride; as [`input_gradient`](super::input_gradient).
pub fn data(spec: ConvSpec, store: Store, isa: Isa) -> Learned {
    let (taps, c) = (spec.window.taps(), spec.input.c);
    let kernel = Data { spec, store, tiling: Tiling::new(spec.input.n * spec.input.h, spec.input.w * c * taps / 2) };
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
    /// Rows of the input.
    tiling: Tiling,
}

/// The output that input `i` reaches through tap `tap`, if there is one.
#[inline(always)]
fn reached(window: &Window, placed: &Placed, axis: usize, i: usize, tap: usize) -> Option<usize> {
    let at = (i + placed.before[axis]).checked_sub(tap * window.dilation[axis])?;
    let o = at / window.stride[axis];
    (o * window.stride[axis] == at && o < placed.output[axis]).then_some(o)
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
        let ConvSpec { input, output, window, placed, .. } = self.spec;
        let c = input.c;
        let terms = scratch.as_mut_ptr().cast::<[*const f32; 2]>();
        for row in self.tiling.range(tile) {
            let (image, y) = (row / input.h, row % input.h);
            for x in 0..input.w {
                // SAFETY: every term lies in the gradient of the output; the scratch has room for one per tap; the mask
                // keeps to the channels.
                unsafe {
                    let mut count = 0;
                    for ky in 0..window.kernel[0] {
                        let Some(oy) = reached(&window, &placed, 0, y, ky) else { continue };
                        for kx in 0..window.kernel[1] {
                            let Some(ox) = reached(&window, &placed, 1, x, kx) else { continue };
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
    let kernel = Weight { spec, slices, block: if c > 64 { 64 } else { c }, lanes: isa.lanes() };
    let gathered = Gathered { slices, rows: c, order: (0..taps).collect() };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: slices * taps * c,
        gather: Some(Box::new(Light { isa, kernel: Transposed(gathered) })),
    }
}

/// `dw[slice][tap][c] = Σ dy[p][c] · x[p + tap][c]`, one register of channels at a time: the input rows that an output row
/// reads are copied there, border included, and every product is then one load and one addition to a sum in a register.
struct Weight {
    spec: ConvSpec,
    slices: usize,
    /// Channels of a tile.
    block: usize,
    lanes: usize,
}

/// What the rows of a slice are summed up for.
#[derive(Clone, Copy)]
struct Column<M> {
    /// The first of its channels, and which exist.
    c: usize,
    mask: M,
    /// Where the sums of its taps go.
    to: *mut f32,
}

impl Weight {
    /// Pixels of a copied row.
    fn width(&self) -> usize {
        let window = self.spec.window;
        (self.spec.output.w - 1) * window.stride[1] + window.span(1)
    }

    /// Copies input row `y` of an image, which may lie outside, to `line`.
    ///
    /// # Safety
    /// `line` has room for it.
    #[inline(always)]
    unsafe fn copy<S: Simd>(&self, image: usize, y: usize, io: &Io, column: &Column<S::M>, line: *mut f32) {
        let Map { h, w, ld, .. } = self.spec.input;
        let before = self.spec.placed.before[1];
        // SAFETY: pixels outside the image are not read.
        unsafe {
            let from = io.inputs[0].wrapping_add((image * h).wrapping_add(y).wrapping_mul(w * ld) + column.c);
            for i in 0..self.width() {
                let x = i.wrapping_sub(before);
                let inside = y < h && x < w;
                let value = if inside { S::load_masked(from.wrapping_add(x * ld), column.mask) } else { S::zero() };
                S::store(line.add(i * S::LANES), value);
            }
        }
    }

    /// All output rows of a slice, for `KH` rows of `KW` taps from row `first` on.
    ///
    /// # Safety
    /// As [`Tiled::compute`]; `lines` has room for `KH` rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const KH: usize, const KW: usize>(
        &self,
        rows: Range<usize>,
        io: &Io,
        column: &Column<S::M>,
        lines: *mut f32,
        first: [usize; 2],
    ) {
        let ConvSpec { output, window, placed, .. } = self.spec;
        let (pitch, step) = (self.width() * S::LANES, window.stride[1] * S::LANES);
        let apart = window.dilation[1] * S::LANES;
        // SAFETY: as demanded.
        unsafe {
            let mut total = [[S::zero(); KW]; KH];
            // Which input row each line holds.
            let mut holds = [usize::MAX; KH];
            for row in rows {
                let (image, oy) = (row / output.h, row % output.h);
                let mut line = [std::ptr::null::<f32>(); KH];
                for ky in 0..KH {
                    // The row, counted from the first one of padding.
                    let y = oy * window.stride[0] + (first[0] + ky) * window.dilation[0];
                    let number = image * (output.h * window.stride[0] + window.span(0)) + y;
                    let slot = y / window.dilation[0] % KH;
                    let at = lines.add(slot * pitch);
                    if holds[slot] != number {
                        holds[slot] = number;
                        self.copy::<S>(image, y.wrapping_sub(placed.before[0]), io, column, at);
                    }
                    line[ky] = at.add(first[1] * apart).cast_const();
                }
                let mut sums = [[S::zero(); KW]; KH];
                let dy = io.inputs[1].add(row * output.w * output.ld + column.c);
                for ox in 0..output.w {
                    let d = S::load_masked(dy.add(ox * output.ld), column.mask);
                    for ky in 0..KH {
                        for kx in 0..KW {
                            let x = S::load(line[ky].add(ox * step + kx * apart));
                            sums[ky][kx] = S::fma(x, d, sums[ky][kx]);
                        }
                    }
                }
                for ky in 0..KH {
                    for kx in 0..KW {
                        total[ky][kx] = S::add(total[ky][kx], sums[ky][kx]);
                    }
                }
            }
            for ky in 0..KH {
                for kx in 0..KW {
                    let tap = (first[0] + ky) * window.kernel[1] + first[1] + kx;
                    S::store_masked(column.to.add(tap * output.c + column.c), total[ky][kx], column.mask);
                }
            }
        }
    }
}

impl Tiled for Weight {
    fn name(&self) -> String {
        format!("weight_gradient_depthwise_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.slices * self.spec.output.c.div_ceil(self.block)
    }

    fn scratch(&self) -> usize {
        self.spec.window.kernel[0] * self.width() * self.lanes
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let channels = self.spec.output.c;
        let (slice, block) = (tile % self.slices, tile / self.slices);
        let rows = self.spec.output.n * self.spec.output.h;
        let rows = slice * rows / self.slices..(slice + 1) * rows / self.slices;
        let until = channels.min((block + 1) * self.block);
        let (lines, [kh, kw]) = (scratch.as_mut_ptr(), self.spec.window.kernel);
        for c in (block * self.block..until).step_by(S::LANES) {
            // SAFETY: the slice has a float for every tap and channel, the scratch room for every row of taps.
            unsafe {
                let to = io.output.add(slice * self.spec.window.taps() * channels);
                let column = Column { c, mask: S::mask(S::LANES.min(until - c)), to };
                match [kh, kw] {
                    [3, 3] => self.rows::<S, 3, 3>(rows.clone(), io, &column, lines, [0, 0]),
                    [5, 5] => self.rows::<S, 5, 5>(rows.clone(), io, &column, lines, [0, 0]),
                    _ => {
                        for tap in 0..kh * kw {
                            self.rows::<S, 1, 1>(rows.clone(), io, &column, lines, [tap / kw, tap % kw]);
                        }
                    }
                }
            }
        }
    }
}
