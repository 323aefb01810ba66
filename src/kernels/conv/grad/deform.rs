//! The way back through a deformable convolution.
//!
//! ```text
//! weights   the samples of every pixel are taken again, then dw = dyᵀ · samples
//! the rest  for each image, for each block of its pixels:
//!               ds = dy · W                                    (the gradient of every sample)
//!               for each pixel, tap and offset group: the four corners
//!                   dx[corner] += m · weight · ds              (vectors of channels)
//!                   d factor = Σ ds · sample;  d shift = m · Σ ds · (slope of the sample)
//! ```
//!
//! Where a sample falls is learned, so two pixels of an image may meet anywhere in it: an image is one tile.

#![allow(unsafe_code, reason = "scatters into raw maps and runs microkernels")]

use super::super::deform::{Sampling, samples};
use super::super::indirect::Taps;
use super::super::weights::{GemmPacking, Packing, learned_with};
use super::super::{ConvSpec, Learned};
use super::weight::{WeightGradient, product};
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Epilogue, Io, Kernel, Map, Store, WEIGHTS, Weights};
use crate::shape::{Placed, Window};
use crate::simd::{Isa, Simd};
use std::ops::Range;

/// The gradient of the weights of a deformable convolution.
pub struct DeformWeightGradient {
    /// Takes the samples again: inputs as those of the convolution, output a map of [`Self::samples`].
    pub sample: Box<dyn Kernel>,
    /// The samples, every tap of every channel of a pixel.
    pub samples: Map,
    /// From the samples and the gradient of the output to that of the weights.
    pub product: WeightGradient,
}

/// `spec` is the convolution's own, without its epilogue.
pub fn weight_gradient(spec: ConvSpec, sampling: Sampling, isa: Isa) -> DeformWeightGradient {
    let (taps, output, channels) = (spec.window.taps(), spec.output, spec.group_inputs());
    let c = spec.input.c * taps;
    let ld = c.next_multiple_of(16) + if (c.next_multiple_of(16) * 4).is_multiple_of(4096) { 16 } else { 0 };
    let map = Map::new([output.n, output.h, output.w, c], ld);
    let size = [output.h, output.w];
    let pointwise = ConvSpec {
        input: map,
        output,
        window: Window::square(1),
        placed: Placed { input: size, output: size, before: [0; 2] },
        groups: spec.groups,
        epilogue: Epilogue::default(),
    };
    let order = (0..spec.depth()).map(|i| i % channels * taps + i / channels).collect();
    DeformWeightGradient {
        sample: samples(spec, sampling, map, isa),
        samples: map,
        product: product(pointwise, Taps::of(&pointwise), order, isa),
    }
}

/// The gradients of everything else. `inputs`: the input, the shifts, the factors, the gradient of the output, the packed
/// weights. The output is the gradient of the input; `also` those of the shifts and of the factors; `gradients` are their
/// maps. Each may be null.
/// `store` counts for the gradient of the input.
pub fn data(spec: ConvSpec, sampling: Sampling, gradients: [Map; 3], store: Store, isa: Isa) -> Learned {
    let (taps, inputs, outputs) = (spec.window.taps(), spec.group_inputs(), spec.group_outputs());
    let gemm = Gemm::new(Extent { taps: 1, k: outputs, n: inputs }, None, isa);
    let turned = ConvSpec { input: spec.output, output: spec.input, ..spec };
    let packing = |tap: usize| GemmPacking::of_taps(&gemm, &turned, vec![tap]);
    let packing = EachTap((0..taps).map(packing).collect());
    let segments = segments(&spec, sampling.groups);
    let kernel = Data { spec, sampling, gradients, store, gemm, segments };
    learned_with(Box::new(Light { isa, kernel }), Box::new(packing), spec.output.c * spec.depth(), None)
}

/// Runs of channels of one group and one offset group.
fn segments(spec: &ConvSpec, offset_groups: usize) -> Vec<(usize, Range<usize>)> {
    let steered = spec.input.c / offset_groups;
    (0..offset_groups).map(|g| (g, g * steered..(g + 1) * steered)).collect()
}

/// The weights of every tap by themselves.
struct EachTap(Vec<GemmPacking>);

impl Packing for EachTap {
    fn len(&self) -> usize {
        self.0.len() * self.0[0].len()
    }

    fn pieces(&self) -> usize {
        self.0.len() * self.0[0].pieces()
    }

    unsafe fn piece(&self, piece: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32) {
        let (tap, piece) = (piece / self.0[0].pieces(), piece % self.0[0].pieces());
        // SAFETY: every tap has its own part.
        unsafe { self.0[tap].piece(piece, weight, bias, packed.add(tap * self.0[0].len())) }
    }
}

/// Pixels of a block.
const PIXELS: usize = 24;

struct Data {
    spec: ConvSpec,
    sampling: Sampling,
    /// Maps of the gradients of input, shifts and factors.
    gradients: [Map; 3],
    store: Store,
    /// From outputs to inputs, one tap.
    gemm: Gemm,
    segments: Vec<(usize, Range<usize>)>,
}

/// Where a sample lies: the corners' pixels of the image (none outside), their weights without the factor, and the
/// distance from the first.
struct Place {
    at: [Option<usize>; 4],
    weight: [f32; 4],
    below: f32,
    right: f32,
}

impl Data {
    /// Floats from sample to sample.
    fn ld(&self) -> usize {
        self.spec.input.c.next_multiple_of(16)
    }

    /// None if the sample and its slopes are zero.
    #[inline(always)]
    fn place(&self, [y, x]: [f32; 2]) -> Option<Place> {
        let Map { h, w, .. } = self.spec.input;
        // One pixel outside the value is zero, but its slope is not.
        if !(y >= -1.0 && y < h as f32 && x >= -1.0 && x < w as f32) {
            return None;
        }
        let (top, left) = (y.floor(), x.floor());
        let (below, right) = (y - top, x - left);
        let (y, x) = (top as isize, left as isize);
        let pixel = |y: isize, x: isize| {
            let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
            inside.then(|| y as usize * w + x as usize)
        };
        Some(Place {
            at: [pixel(y, x), pixel(y, x + 1), pixel(y + 1, x), pixel(y + 1, x + 1)],
            weight: [(1.0 - below) * (1.0 - right), (1.0 - below) * right, below * (1.0 - right), below * right],
            below,
            right,
        })
    }

    /// Sends `ds` of a run of channels through one sample. Returns Σ ds·sample, Σ ds·∂sample/∂y and Σ ds·∂sample/∂x, all
    /// without the factor.
    #[inline(always)]
    unsafe fn sample<S: Simd>(
        &self,
        place: &Place,
        factor: f32,
        ds: *const f32,
        channels: Range<usize>,
        [x, dx]: [*mut f32; 2],
    ) -> [f32; 3] {
        // SAFETY: corners lie in the image; the mask keeps to the channels.
        unsafe {
            let (ld, ld_dx) = (self.spec.input.ld, self.gradients[0].ld);
            let weights = place.weight.map(|w| S::splat(w));
            let factor = S::splat(factor);
            let (below, right) = (S::splat(place.below), S::splat(place.right));
            let mut sums = [S::zero(); 3];
            for c in channels.clone().step_by(S::LANES) {
                let mask = S::mask(S::LANES.min(channels.end - c));
                let d = S::load_masked(ds.add(c), mask);
                let scaled = S::mul(d, factor);
                let mut v = [S::zero(); 4];
                for corner in 0..4 {
                    if let Some(at) = place.at[corner] {
                        v[corner] = S::load_masked(x.add(at * ld + c), mask);
                        if !dx.is_null() {
                            let to = dx.add(at * ld_dx + c);
                            S::store_masked(to, S::fma(scaled, weights[corner], S::load_masked(to, mask)), mask);
                        }
                    }
                }
                let mut value = S::mul(v[0], weights[0]);
                for corner in 1..4 {
                    value = S::fma(v[corner], weights[corner], value);
                }
                let (down_left, down_right) = (S::sub(v[2], v[0]), S::sub(v[3], v[1]));
                let down = S::fma(right, S::sub(down_right, down_left), down_left);
                let (above, under) = (S::sub(v[1], v[0]), S::sub(v[3], v[2]));
                let across = S::fma(below, S::sub(under, above), above);
                for (sum, slope) in sums.iter_mut().zip([value, down, across]) {
                    *sum = S::fma(d, slope, *sum);
                }
            }
            [S::hsum(sums[0]), S::hsum(sums[1]), S::hsum(sums[2])]
        }
    }

    /// Everything that output pixel `pixel` of `image` sends back.
    #[inline(always)]
    unsafe fn pixel<S: Simd>(&self, image: usize, pixel: usize, io: &Io, ds: *const f32) {
        let ConvSpec { input, output, window, placed, .. } = self.spec;
        let Sampling { offset, mask, .. } = self.sampling;
        let [d_input, d_offset, d_mask] = self.gradients;
        let taps = window.taps();
        let origin = |o: usize, axis: usize| (o * window.stride[axis]) as f32 - placed.before[axis] as f32;
        let (top, left) = (origin(pixel / output.w, 0), origin(pixel % output.w, 1));
        let number = image * output.h * output.w + pixel;
        let start = image * input.h * input.w;
        let dx = if io.output.is_null() { io.output } else { io.output.wrapping_add(start * d_input.ld) };
        for tap in 0..taps {
            let y = top + (tap / window.kernel[1] * window.dilation[0]) as f32;
            let x = left + (tap % window.kernel[1] * window.dilation[1]) as f32;
            for (group, channels) in &self.segments {
                let steered = group * taps + tap;
                // SAFETY: one pair of shifts and one factor per pixel, offset group and tap, and as many gradients.
                unsafe {
                    let shift = io.inputs[1].add(number * offset.ld + 2 * steered);
                    let factor = mask.map_or(1.0, |mask| *io.inputs[2].add(number * mask.ld + steered));
                    let sums = match self.place([y + *shift, x + *shift.add(1)]) {
                        None => [0.0; 3],
                        Some(place) => {
                            let image = io.inputs[0].add(start * input.ld).cast_mut();
                            let ds = ds.add(tap * self.ld());
                            self.sample::<S>(&place, factor, ds, channels.clone(), [image, dx])
                        }
                    };
                    if !io.also[0].is_null() {
                        let to = io.also[0].add(number * d_offset.ld + 2 * steered);
                        (*to, *to.add(1)) = (factor * sums[1], factor * sums[2]);
                    }
                    if !io.also[1].is_null() {
                        *io.also[1].add(number * d_mask.ld + steered) = sums[0];
                    }
                }
            }
        }
    }
}

impl Tiled for Data {
    fn name(&self) -> String {
        format!("input_gradient_deform_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.spec.input.n
    }

    fn scratch(&self) -> usize {
        2 * PIXELS + PIXELS * self.spec.window.taps() * self.ld()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, image: usize, io: &Io, scratch: &mut [f32]) {
        let ConvSpec { input, output, groups, .. } = self.spec;
        let (taps, ld, plane) = (self.spec.window.taps(), self.ld(), output.h * output.w);
        let (table, ds) = scratch.split_at_mut(2 * PIXELS);
        let (table, ds) = (table.as_mut_ptr().cast::<*const f32>(), ds.as_mut_ptr());
        // SAFETY: the scratch holds a pointer and the gradients of all samples for each pixel of a block; the image's
        // gradients are this tile's alone.
        unsafe {
            if self.store == Store::Set && !io.output.is_null() {
                for pixel in image * input.h * input.w..(image + 1) * input.h * input.w {
                    std::ptr::write_bytes(io.output.add(pixel * self.gradients[0].ld), 0, input.c);
                }
            }
            for first in (0..plane).step_by(PIXELS) {
                let m = PIXELS.min(plane - first);
                for i in 0..m {
                    *table.add(i) = io.inputs[3].add((image * plane + first + i) * output.ld);
                }
                for tap in 0..taps {
                    for group in 0..groups {
                        let rows = Rows { table, stride: m, skip: group * self.spec.group_outputs() };
                        let packed = io.inputs[WEIGHTS].add((tap * groups + group) * self.gemm.packed_len());
                        let to = ds.add(tap * ld + group * self.spec.group_inputs());
                        self.gemm.run(packed, m, rows, 0..self.gemm.panels(), Target::plain(to, taps * ld), &mut []);
                    }
                }
                for i in 0..m {
                    self.pixel::<S>(image, first + i, io, ds.add(i * taps * ld));
                }
            }
        }
    }
}
