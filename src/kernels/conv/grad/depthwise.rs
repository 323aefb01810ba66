//! The way back through a depthwise convolution: every channel by itself.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::super::weights::{Packing, learned_with};
use super::super::{ConvSpec, Learned};
use super::weight::{Gathered, WeightGradient};
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
    let kernel = Weight { spec, slices, block: if c > 64 { 64 } else { c } };
    let gathered = Gathered { slices, rows: c, taps, run: 1, order: (0..taps).collect() };
    WeightGradient {
        kernel: Box::new(Light { isa, kernel }),
        partial: slices * taps * c,
        gather: Some(Box::new(Light { isa, kernel: Transposed(gathered) })),
    }
}

/// `dw[slice][tap][c] = Σ dy[p][c] · x[p + tap][c]`.
struct Weight {
    spec: ConvSpec,
    slices: usize,
    /// Channels of a tile.
    block: usize,
}

/// Taps whose sums are kept in registers together.
const TAPS: usize = 9;

impl Weight {
    /// Sums of up to `TAPS` taps from `first` on, for one register of channels.
    #[inline(always)]
    unsafe fn taps<S: Simd>(&self, rows: Range<usize>, io: &Io, (c, mask): (usize, S::M), first: usize, to: *mut f32) {
        let ConvSpec { input, output, window, placed, .. } = self.spec;
        let count = TAPS.min(window.taps() - first);
        let Map { ld, .. } = input;
        // SAFETY: pixels outside the image are not read; the mask keeps to the channels.
        unsafe {
            let mut total = [S::zero(); TAPS];
            for row in rows {
                let (image, oy) = (row / output.h, row % output.h);
                let mut sums = [S::zero(); TAPS];
                for ox in 0..output.w {
                    let dy = S::load_masked(io.inputs[1].add((row * output.w + ox) * output.ld + c), mask);
                    for t in 0..TAPS {
                        if t >= count {
                            break;
                        }
                        let (ky, kx) = ((first + t) / window.kernel[1], (first + t) % window.kernel[1]);
                        let y = (oy * window.stride[0] + ky * window.dilation[0]).wrapping_sub(placed.before[0]);
                        let x = (ox * window.stride[1] + kx * window.dilation[1]).wrapping_sub(placed.before[1]);
                        if y < input.h && x < input.w {
                            let from = io.inputs[0].add(((image * input.h + y) * input.w + x) * ld + c);
                            sums[t] = S::fma(S::load_masked(from, mask), dy, sums[t]);
                        }
                    }
                }
                for t in 0..TAPS {
                    total[t] = S::add(total[t], sums[t]);
                }
            }
            for t in 0..count {
                S::store_masked(to.add((first + t) * output.c + c), total[t], mask);
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

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let channels = self.spec.output.c;
        let (slice, block) = (tile % self.slices, tile / self.slices);
        let rows = self.spec.output.n * self.spec.output.h;
        let rows = slice * rows / self.slices..(slice + 1) * rows / self.slices;
        let until = channels.min((block + 1) * self.block);
        for c in (block * self.block..until).step_by(S::LANES) {
            for first in (0..self.spec.window.taps()).step_by(TAPS) {
                // SAFETY: the slice has a float for every tap and channel.
                unsafe {
                    let mask = S::mask(S::LANES.min(until - c));
                    let to = io.output.add(slice * self.spec.window.taps() * channels);
                    self.taps::<S>(rows.clone(), io, (c, mask), first, to);
                }
            }
        }
    }
}

/// Adds up the slices and puts the taps of each channel together.
struct Transposed(Gathered);

impl Tiled for Transposed {
    fn name(&self) -> String {
        "gather_slices".to_owned()
    }

    fn tiles(&self) -> usize {
        1
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, _: usize, io: &Io, _: &mut [f32]) {
        let Gathered { slices, rows: c, taps, .. } = self.0;
        for tap in 0..taps {
            for channel in 0..c {
                let mut sum = 0.0;
                for slice in 0..slices {
                    // SAFETY: one float for every slice, tap and channel.
                    sum += unsafe { *io.inputs[0].add((slice * taps + tap) * c + channel) };
                }
                // SAFETY: one float for every channel and tap.
                unsafe { *io.output.add(channel * taps + tap) = sum };
            }
        }
    }
}
