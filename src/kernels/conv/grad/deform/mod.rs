//! The way back through a deformable convolution.
//!
//! ```text
//! weights   the samples of every pixel are taken again, then dw = dyᵀ · samples
//! the rest  for each image and some of its channels, for each block of its pixels:
//!               ds = dy · W                                    (the gradient of every sample)
//!               for each pixel, tap and offset group: the four corners
//!                   dx[corner] += m · weight · ds              (vectors of channels)
//!                   sums: Σ ds · sample,  Σ ds · (slope of the sample)
//!           d factor and d shift = m · slope, of these sums over all channels of the offset group
//! ```
//!
//! Where a sample falls is learned, so two pixels of an image may meet anywhere in it: the channels are shared out, so few that
//! their weights and their part of the image stay in the second cache.

#![allow(unsafe_code, reason = "scatters into raw maps and runs microkernels")]

mod parts;
mod scatter;

use self::parts::{Part, PartPacking, Parts, Run};
use self::scatter::{Place, Scatter};
use super::super::deform::{Sampling, samples};
use super::super::weights::learned_with;
use super::super::{ConvSpec, Learned};
use super::weight::{WeightGradient, ordered};
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Epilogue, Io, Kernel, Map, Store, WEIGHTS};
use crate::shape::{Placed, Window};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
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
        product: ordered(pointwise, order, isa),
    }
}

/// The gradients of everything else.
pub struct DeformDataGradient {
    /// That of the input, and what the others follow from. Inputs: the input, the shifts, the factors, the gradient of the
    /// output, the packed weights. Output: the gradient of the input; `also[0]`: `sums` floats. Either may be null.
    pub input: Learned,
    /// Floats of sums.
    pub sums: usize,
    /// Inputs: the sums and the factors. Output: the gradient of the shifts; `also[0]`: that of the factors. Either may be null.
    pub steering: Box<dyn Kernel>,
}

/// `gradients` are the maps of those of the input, the shifts and the factors; `store` counts for the first.
pub fn data(spec: ConvSpec, sampling: Sampling, gradients: [Map; 3], store: Store, isa: Isa) -> DeformDataGradient {
    let (taps, [d_input, d_offset, d_mask]) = (spec.window.taps(), gradients);
    let parts = Parts::new(&spec, sampling.groups);
    let extent = Extent { taps: 1, k: spec.group_outputs(), n: taps * parts.width };
    let gemm = Gemm::fastest(extent, None, spec.output.h * spec.output.w, isa);
    let packing = PartPacking { gemm: gemm.clone(), spec, parts: parts.clone() };
    let (by, pixels) = (parts.by_offset_group(sampling.groups), spec.output.pixels());
    let runs = by[sampling.groups - 1].end;
    let steering =
        Steering { taps, d_offset, d_mask, mask: sampling.mask, by, tiling: Tiling::new(pixels, 4 * taps * runs) };
    let zero = AlignedBuf::zeros(parts.width);
    let block = if gemm.is_split() { UNIT_PIXELS } else { PIXELS };
    let kernel = Data { spec, sampling, d_input, store, gemm, parts, zero, block };
    let weights = spec.output.c * spec.depth();
    DeformDataGradient {
        input: learned_with(Box::new(Light { isa, kernel }), Box::new(packing), weights, None),
        sums: runs * pixels * taps * SUMS,
        steering: Box::new(Light { isa, kernel: steering }),
    }
}

/// Pixels of a block, on the matrix unit more.
const PIXELS: usize = 48;
const UNIT_PIXELS: usize = 128;
/// Sums of a sample: with its value, and with its slopes downwards and to the right.
const SUMS: usize = 3;

struct Data {
    spec: ConvSpec,
    sampling: Sampling,
    /// The map of the gradient of the input.
    d_input: Map,
    store: Store,
    /// From outputs to the samples of a part.
    gemm: Gemm,
    parts: Parts,
    /// What lies outside the image.
    zero: AlignedBuf,
    /// Pixels of a block.
    block: usize,
}

impl Data {
    /// Floats of the pointers to a block of pixels, of the gradients of its samples, and of a part of a pixel that nobody reads.
    fn lens(&self) -> [usize; 3] {
        let (taps, width) = (self.spec.window.taps(), self.parts.width);
        [(2 * self.block).next_multiple_of(16), self.block * taps * width, width]
    }

    /// Everything that output pixel `pixel` of `image` sends back to a part of the channels. The gradients of its samples lie at
    /// `ds`; where `waste` is goes what is sent outside the image.
    #[inline(always)]
    unsafe fn pixel<S: Simd>(&self, [image, pixel]: [usize; 2], part: &Part, io: &Io, ds: *const f32, waste: *mut f32) {
        let ConvSpec { input, output, window, placed, .. } = self.spec;
        let Sampling { offset, mask, .. } = self.sampling;
        let taps = window.taps();
        let origin = |o: usize, axis: usize| (o * window.stride[axis]) as f32 - placed.before[axis] as f32;
        let (top, left) = (origin(pixel / output.w, 0), origin(pixel % output.w, 1));
        let number = image * output.h * output.w + pixel;
        let start = image * input.h * input.w;
        for tap in 0..taps {
            let y = top + (tap / window.kernel[1] * window.dilation[0]) as f32;
            let x = left + (tap % window.kernel[1] * window.dilation[1]) as f32;
            for Run { channels, steered_by, nth } in &part.runs {
                let steered = steered_by * taps + tap;
                // SAFETY: one pair of shifts and one factor per pixel, offset group and tap; corners lie in the image, or are
                // rows of zeros and of what nobody reads; every run has its sums.
                unsafe {
                    let shift = io.inputs[1].add(number * offset.ld + 2 * steered);
                    let factor = mask.map_or(1.0, |mask| *io.inputs[2].add(number * mask.ld + steered));
                    let sums = match Place::new([y + *shift, x + *shift.add(1)], input) {
                        None => [0.0; SUMS],
                        Some(Place { at, weight, below, right }) => {
                            let of = |at: usize| io.inputs[0].wrapping_add((start + at) * input.ld + channels.start);
                            let to =
                                |at: usize| io.output.wrapping_add((start + at) * self.d_input.ld + channels.start);
                            let scatter = Scatter::<S> {
                                ds: ds.add(tap * self.parts.width + channels.start - part.channels.start),
                                x: at.map(|at| at.map_or(self.zero.as_ptr(), of)),
                                dx: at.map(|at| at.filter(|_| !io.output.is_null()).map_or(waste, to)),
                                weights: weight.map(|w| S::splat(w)),
                                factor: S::splat(factor),
                                below: S::splat(below),
                                right: S::splat(right),
                                sums: [S::zero(); SUMS],
                            };
                            scatter.run(channels.len())
                        }
                    };
                    if !io.also[0].is_null() {
                        let at = ((nth * output.pixels() + number) * taps + tap) * SUMS;
                        *io.also[0].add(at).cast::<[f32; SUMS]>() = sums;
                    }
                }
            }
        }
    }
}

impl Tiled for Data {
    fn name(&self) -> String {
        format!("input_gradient_deform_{}_{}", self.spec.label(), self.gemm.tile_name())
    }

    fn tiles(&self) -> usize {
        self.spec.input.n * self.parts.all.len()
    }

    fn scratch(&self) -> usize {
        self.lens().iter().sum::<usize>() + self.gemm.scratch(self.block)
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (image, nth) = (tile / self.parts.all.len(), tile % self.parts.all.len());
        let part @ Part { group, channels, .. } = &self.parts.all[nth];
        let ConvSpec { input, output, .. } = self.spec;
        let (plane, ld) = (output.h * output.w, self.gemm.extent().n);
        let [table, ds, waste] = self.lens();
        let (table, rest) = scratch.split_at_mut(table);
        let (ds, rest) = rest.split_at_mut(ds);
        let (waste, scratch) = rest.split_at_mut(waste);
        let (table, ds, waste) = (table.as_mut_ptr().cast::<*const f32>(), ds.as_mut_ptr(), waste.as_mut_ptr());
        // SAFETY: the scratch holds a pointer and the gradients of all samples for each pixel of a block; these channels of the
        // image's gradients, and their sums, are this tile's alone.
        unsafe {
            if self.store == Store::Set && !io.output.is_null() {
                for pixel in image * input.h * input.w..(image + 1) * input.h * input.w {
                    std::ptr::write_bytes(io.output.add(pixel * self.d_input.ld + channels.start), 0, channels.len());
                }
            }
            let packed = io.inputs[WEIGHTS].add(nth * self.gemm.packed_len());
            for first in (0..plane).step_by(self.block) {
                let m = self.block.min(plane - first);
                for i in 0..m {
                    *table.add(i) = io.inputs[3].add((image * plane + first + i) * output.ld);
                }
                let rows = Rows { table, stride: m, skip: group * self.spec.group_outputs() };
                self.gemm.run(packed, m, rows, 0..self.gemm.panels(), Target::plain(ds, ld), scratch);
                for i in 0..m {
                    self.pixel::<S>([image, first + i], part, io, ds.add(i * ld), waste);
                }
            }
        }
    }
}

/// The gradients of shifts and factors, from the sums of all runs.
struct Steering {
    taps: usize,
    d_offset: Map,
    d_mask: Map,
    mask: Option<Map>,
    /// The runs that each offset group steers.
    by: Vec<Range<usize>>,
    /// The pixels.
    tiling: Tiling,
}

impl Tiled for Steering {
    fn name(&self) -> String {
        "steering_gradient".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let pixels = self.d_offset.pixels();
        for pixel in self.tiling.range(tile) {
            for (group, runs) in self.by.iter().enumerate() {
                for tap in 0..self.taps {
                    let steered = group * self.taps + tap;
                    // SAFETY: every run has sums for every pixel and tap; the gradients have a pair of shifts and a factor for each.
                    unsafe {
                        let mut sums = [0.0; SUMS];
                        for run in runs.clone() {
                            let at = ((run * pixels + pixel) * self.taps + tap) * SUMS;
                            let of_run = *io.inputs[0].add(at).cast::<[f32; SUMS]>();
                            sums.iter_mut().zip(of_run).for_each(|(sum, more)| *sum += more);
                        }
                        let factor = self.mask.map_or(1.0, |mask| *io.inputs[1].add(pixel * mask.ld + steered));
                        if !io.output.is_null() {
                            let to = io.output.add(pixel * self.d_offset.ld + 2 * steered);
                            *to.cast::<[f32; 2]>() = [factor * sums[1], factor * sums[2]];
                        }
                        if !io.also[0].is_null() {
                            *io.also[0].add(pixel * self.d_mask.ld + steered) = sums[0];
                        }
                    }
                }
            }
        }
    }
}
