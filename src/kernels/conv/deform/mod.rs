//! Deformable convolution (Dai et al. 2017, arXiv:1703.06211; with modulation: Zhu et al. 2018, arXiv:1811.11168).
//!
//! ```text
//! for each tile of output pixels
//!   for each pixel, offset group and tap: where it samples, the four corners and their weights
//!     A[pixel][tap][channels of the group] = Σ corner weight · corner     (whole vectors: channels lie together)
//!   C = activation(A · W + bias + residual)                               (the product every convolution uses)
//! ```
//!
//! The samples of a tile stay in the second cache; the product runs on the matrix unit where that is faster. Corners outside the
//! image are read from a row of zeros, so the loop over channels knows no border.

#![allow(unsafe_code, reason = "gathers from raw maps and runs microkernels on what it gathered")]

mod sample;

use self::sample::{Lines, Sample, Sampler};
use super::ConvSpec;
use super::grid::{Grid, Work};
use super::indirect::target;
use super::weights::{Direction, Form, GemmPacking, Packed, Packing, held};
use crate::kernels::gemm::{Extent, Gemm, Rows};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Weights};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;

/// Where a deformable convolution finds its shifts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// `inputs[1]`, of `2 · groups · kh · kw` channels: for each offset group and tap a vertical, then a horizontal shift
    /// in pixels.
    pub offset: Map,
    /// `inputs[2]`, of `groups · kh · kw` channels: a factor for each sample (version 2); 1 if absent.
    pub mask: Option<Map>,
    /// Offset groups; each steers `in / groups` consecutive input channels.
    pub groups: usize,
}

/// Prepares `y[p, o] = activation(b[o] + Σ_{i,t} w[o, i, t] · m_t(p) · x(p·s + t·d + Δ_t(p), i) + residual[p, o])`, `x`
/// interpolated bilinearly between pixels, zero outside the image and for the whole sample at or beyond one pixel
/// outside it. A shift that is not finite samples outside.
///
/// `weight` is `[out, in / spec.groups, kh, kw]`, `bias` is `[out]`. The maps read are `x`, the shifts and the factors;
/// the residual is `inputs[3]`, and may be the output itself.
///
/// Panics if sizes disagree.
pub fn deform(
    spec: ConvSpec,
    sampling: Sampling,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    isa: Isa,
) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Deform::new(spec, sampling, isa)), weight, bias)
}

/// Floats of samples per tile, so that they stay in the second cache,
const SAMPLES: usize = 128 << 10;
/// and the rows that they may be; on the matrix unit, which makes up for samples that do not stay there.
const ROWS: [usize; 2] = [24, 256];
const UNIT_ROWS: [usize; 2] = [128, 256];

/// A prepared deformable convolution.
pub(super) struct Deform {
    sampler: Sampler,
    /// The product of every group.
    gemm: Gemm,
    /// Group after group.
    weights: Packed,
    /// Floats from the samples of one tap to those of the next.
    ld: usize,
    grid: Grid,
}

impl Deform {
    /// See [`deform`].
    pub(super) fn new(spec: ConvSpec, sampling: Sampling, isa: Isa) -> Self {
        let (taps, output) = (spec.window.taps(), spec.output);
        let extent = Extent { taps, k: spec.group_inputs(), n: spec.group_outputs() };
        let gemm = Gemm::fastest(extent, spec.epilogue.activation, output.pixels(), isa);
        // Rows of samples start on a cache line.
        let ld = spec.input.c.next_multiple_of(16);
        let [least, most] = if gemm.is_split() { UNIT_ROWS } else { ROWS };
        let grid = Grid::cut(Work {
            rows: output.pixels(),
            panels: 1,
            macs: output.pixels() * output.c * spec.depth(),
            weights: spec.groups * gemm.packed_bytes(),
            activations: 4 * spec.input.c * spec.input.pixels(),
            prepared: 0,
            most_rows: (SAMPLES / (taps * ld)).clamp(least, most),
            unit: 1,
        });
        Deform { sampler: Sampler::new(spec, sampling), gemm, weights: Packed::Given, ld, grid }
    }

    /// Floats that the pointers of a tile take, and its samples, a whole number of cache lines each.
    fn lens(&self) -> [usize; 2] {
        let (rows, taps) = (self.grid.tile_rows(), self.sampler.spec.window.taps());
        [(2 * taps * rows).next_multiple_of(16), rows * taps * self.ld]
    }
}

impl Form for Deform {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        GemmPacking::boxed(&self.gemm, &self.sampler.spec, direction)
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }
}

impl Kernel for Deform {
    fn name(&self) -> String {
        let Sampler { spec, sampling, .. } = &self.sampler;
        let version = if sampling.mask.is_some() { 2 } else { 1 };
        format!("deform_v{version}_{}_{} {}", spec.label(), self.gemm.tile_name(), self.gemm.isa().name())
    }

    fn tiles(&self) -> usize {
        if self.sampler.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.lens().iter().sum::<usize>() + self.gemm.scratch(self.grid.tile_rows())
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes() + self.sampler.resident_bytes()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (rows, _) = self.grid.tile(tile);
        let spec = &self.sampler.spec;
        let (first, m, taps) = (rows.start, rows.len(), spec.window.taps());
        let [table, samples] = self.lens();
        let (table, rest) = scratch.split_at_mut(table);
        let (samples, scratch) = rest.split_at_mut(samples);
        let (table, samples) = (table.as_mut_ptr().cast::<*const f32>(), samples.as_mut_ptr());
        let lines = Lines { to: samples, pixel: taps * self.ld, tap: self.ld, group: spec.group_inputs() };
        // SAFETY: the table has room for a pointer per tap and row, the samples for `ld` floats for each; `io` fits.
        unsafe {
            self.gemm.isa().run(Sample { sampler: &self.sampler, io, pixels: rows, lines });
            for row in 0..m {
                for tap in 0..taps {
                    *table.add(tap * m + row) = samples.add((row * taps + tap) * self.ld);
                }
            }
            // The shared part of convolutions finds the residual behind the one other input they have.
            let mut outer = *io;
            outer.inputs[1] = io.inputs[3];
            for group in 0..spec.groups {
                let (gemm, packed) = (&self.gemm, self.weights.of(io).add(group * self.gemm.packed_len()));
                let rows = Rows { table, stride: m, skip: group * spec.group_inputs() };
                gemm.run(packed, m, rows, 0..gemm.panels(), target(spec, &outer, first, group), scratch);
            }
        }
    }
}

/// The samples a deformable convolution takes, as a map: those of tap `t` and channel `i` of group `g` at
/// `g · taps · channels + t · channels + i`, where a group has `channels` of them. Inputs as [`deform`].
pub(super) fn samples(spec: ConvSpec, sampling: Sampling, output: Map, isa: Isa) -> Box<dyn Kernel> {
    let cost = output.c + spec.input.c;
    let kernel = Samples { sampler: Sampler::new(spec, sampling), output, tiling: Tiling::new(output.pixels(), cost) };
    Box::new(Light { isa, kernel })
}

struct Samples {
    sampler: Sampler,
    output: Map,
    /// The pixels.
    tiling: Tiling,
}

impl Tiled for Samples {
    fn name(&self) -> String {
        "samples".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn resident_bytes(&self) -> usize {
        self.sampler.resident_bytes()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (pixels, spec) = (self.tiling.range(tile), &self.sampler.spec);
        let (taps, channels, pixel) = (spec.window.taps(), spec.group_inputs(), self.output.ld);
        let to = io.output.wrapping_add(pixels.start * pixel);
        let lines = Lines { to, pixel, tap: channels, group: taps * channels };
        // SAFETY: the pixels are those of the output, which has a place for every sample; the rest is the caller's promise.
        unsafe { Sample { sampler: &self.sampler, io, pixels, lines }.run::<S>() }
    }
}

#[cfg(test)]
mod tests;
