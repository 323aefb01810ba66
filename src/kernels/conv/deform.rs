//! Deformable convolution (Dai et al. 2017, arXiv:1703.06211; with modulation: Zhu et al. 2018, arXiv:1811.11168).
//!
//! ```text
//! for each tile of output pixels
//!   for each pixel, offset group and tap: where it samples, the four corners and their weights
//!     A[pixel][tap][channels of the group] = Σ corner weight · corner     (whole vectors: channels lie together)
//!   C = activation(A · W + bias + residual)                               (the product every convolution uses)
//! ```
//!
//! The samples of a tile stay in the second cache; the product runs on the matrix unit where that is faster. Corners outside the image are read from a row of zeros, so the loop
//! over channels knows no border.

#![allow(unsafe_code, reason = "gathers from raw maps and runs microkernels on what it gathered")]

use super::ConvSpec;
use super::grid::{Grid, Work};
use super::indirect::target;
use super::weights::{Direction, Form, GemmPacking, Packed, Packing, held};
use crate::kernels::gemm::{Extent, Gemm, Rows};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Weights};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;
use std::ops::Range;

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

/// Where the samples of a convolution lie.
struct Sampler {
    spec: ConvSpec,
    sampling: Sampling,
    /// Channels of one group and one offset group each, in order.
    runs: Vec<Run>,
    /// What lies outside the image: zeros for every channel.
    zero: AlignedBuf,
}

struct Run {
    channels: Range<usize>,
    group: usize,
    steered_by: usize,
}

impl Sampler {
    fn new(spec: ConvSpec, sampling: Sampling) -> Self {
        let (taps, output) = (spec.window.taps(), spec.output);
        assert!(sampling.groups > 0 && spec.input.c.is_multiple_of(sampling.groups));
        let same_pixels = |map: &Map| (map.n, map.h, map.w) == (output.n, output.h, output.w);
        assert!(same_pixels(&sampling.offset) && sampling.offset.c == 2 * sampling.groups * taps);
        assert!(sampling.mask.is_none_or(|mask| same_pixels(&mask) && mask.c == sampling.groups * taps));
        let (inputs, steered) = (spec.group_inputs(), spec.input.c / sampling.groups);
        let mut runs = Vec::new();
        let mut start = 0;
        while start < spec.input.c {
            let (group, steered_by) = (start / inputs, start / steered);
            let end = ((group + 1) * inputs).min((steered_by + 1) * steered);
            runs.push(Run { channels: start..end, group, steered_by });
            start = end;
        }
        Sampler { spec, sampling, runs, zero: AlignedBuf::zeros(spec.input.c) }
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len() + size_of_val(&self.runs[..])
    }

    /// The pixels around `[y, x]` of `image`, their weights multiplied by `factor`.
    #[inline(always)]
    unsafe fn corners(&self, input: *const f32, image: usize, [y, x]: [f32; 2], factor: f32) -> Corners {
        let Map { h, w, ld, .. } = self.spec.input;
        let zero = self.zero.as_ptr();
        // NaN fails these comparisons too. What passes them is small enough for an integer.
        if !(y > -1.0 && y < h as f32 && x > -1.0 && x < w as f32) {
            return Corners { at: [zero; 4], weight: [factor; 4] };
        }
        // SAFETY: v lies between -1 and the side of an image in memory.
        let floor = |v: f32| if v < 0.0 { -1 } else { unsafe { v.to_int_unchecked::<isize>() } };
        let (y0, x0) = (floor(y), floor(x));
        let (below, right) = (y - y0 as f32, x - x0 as f32);
        let (above, left) = ((1.0 - below) * factor, 1.0 - right);
        let below = below * factor;
        let pixel = |y: isize, x: isize| {
            let inside = (y as usize) < h && (x as usize) < w;
            let index = (image * h).wrapping_add_signed(y).wrapping_mul(w).wrapping_add_signed(x);
            if inside { input.wrapping_add(index.wrapping_mul(ld)) } else { zero }
        };
        Corners {
            at: [pixel(y0, x0), pixel(y0, x0 + 1), pixel(y0 + 1, x0), pixel(y0 + 1, x0 + 1)],
            weight: [above * left, above * right, below * left, below * right],
        }
    }
}

/// Where samples go: that of pixel `p` (from the first one on), tap `t` and channel `c` of group `g` to
/// `to + p · pixel + t · tap + g · group + c`.
#[derive(Clone, Copy)]
struct Lines {
    to: *mut f32,
    pixel: usize,
    tap: usize,
    group: usize,
}

/// Samples the input for some output pixels.
struct Sample<'a> {
    sampler: &'a Sampler,
    io: &'a Io,
    pixels: Range<usize>,
    lines: Lines,
}

/// Four pixels and the weight of each.
#[derive(Clone, Copy)]
struct Corners {
    at: [*const f32; 4],
    weight: [f32; 4],
}

impl Task for Sample<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Sampler { spec, sampling, runs, .. } = self.sampler;
        let (window, [oh, ow], taps) = (spec.window, spec.placed.output, spec.window.taps());
        for (i, pixel) in self.pixels.clone().enumerate() {
            let (image, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let origin = |o: usize, axis: usize| (o * window.stride[axis]) as f32 - spec.placed.before[axis] as f32;
            let (top, left) = (origin(oy, 0), origin(ox, 1));
            let mut to = self.lines.to.wrapping_add(i * self.lines.pixel);
            let (mut ky, mut kx) = (0, 0);
            for tap in 0..taps {
                let y = top + (ky * window.dilation[0]) as f32;
                let x = left + (kx * window.dilation[1]) as f32;
                for run in runs {
                    let steered = run.steered_by * taps + tap;
                    // SAFETY: one pair of shifts and one factor per pixel, offset group and tap; the corners have all
                    // channels behind them, and there is room for them where they go.
                    unsafe {
                        let shift = self.io.inputs[1].add(pixel * sampling.offset.ld + 2 * steered);
                        let factor = match sampling.mask {
                            Some(mask) => *self.io.inputs[2].add(pixel * mask.ld + steered),
                            None => 1.0,
                        };
                        let at = [y + *shift, x + *shift.add(1)];
                        let corners = self.sampler.corners(self.io.inputs[0], image, at, factor);
                        let first = run.group * self.lines.group + run.channels.start - run.group * spec.group_inputs();
                        blend::<S>(&corners, run.channels.clone(), to.add(first));
                    }
                }
                to = to.wrapping_add(self.lines.tap);
                kx += 1;
                if kx == window.kernel[1] {
                    (ky, kx) = (ky + 1, 0);
                }
            }
        }
    }
}

/// `to[i] = Σ weight · at[c]` for the channels `c`, of which `i` numbers those from the first one on.
#[inline(always)]
unsafe fn blend<S: Simd>(corners: &Corners, channels: Range<usize>, to: *mut f32) {
    // SAFETY: passed on; the mask keeps to the channels.
    unsafe {
        let weight = corners.weight.map(|w| S::splat(w));
        let at = corners.at.map(|at| at.add(channels.start));
        let whole = channels.len() / S::LANES * S::LANES;
        for c in (0..whole).step_by(S::LANES) {
            let mut sum = S::mul(S::load(at[0].add(c)), weight[0]);
            for corner in 1..4 {
                sum = S::fma(S::load(at[corner].add(c)), weight[corner], sum);
            }
            S::store(to.add(c), sum);
        }
        if whole < channels.len() {
            let mask = S::mask(channels.len() - whole);
            let mut sum = S::mul(S::load_masked(at[0].add(whole), mask), weight[0]);
            for corner in 1..4 {
                sum = S::fma(S::load_masked(at[corner].add(whole), mask), weight[corner], sum);
            }
            S::store_masked(to.add(whole), sum, mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SENTINEL, noise, position, to_map};
    use super::*;
    use crate::activation::Activation;
    use crate::kernels::Epilogue;
    use crate::kernels::naive::{self, ConvShape, Nchw};
    use crate::shape::{Padding, Window};

    #[derive(Debug, Clone, Copy)]
    struct Case {
        batch: usize,
        size: [usize; 2],
        channels: [usize; 2],
        /// Weight groups and offset groups.
        groups: [usize; 2],
        window: Window,
        /// How far shifts reach, in pixels.
        reach: f32,
        modulated: bool,
        residual: bool,
        activation: Option<Activation>,
    }

    const BASE: Case = Case {
        batch: 1,
        size: [7, 9],
        channels: [8, 12],
        groups: [1, 1],
        window: Window { padding: Padding::Symmetric([1; 2]), ..Window::square(3) },
        reach: 2.0,
        modulated: true,
        residual: false,
        activation: None,
    };

    /// Spoils some shifts: what is not finite or far away samples outside.
    fn spoil(offset: &mut [f32]) {
        let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e10, -1e10];
        for (i, &v) in wild.iter().enumerate() {
            let at = (i * 37 + 5) % offset.len();
            offset[at] = v;
        }
    }

    fn check(case: Case, gap: usize) {
        let placed = case.window.place(case.size, "test").unwrap();
        let map = |[h, w]: [usize; 2], c: usize| Map::new([case.batch, h, w, c], c + gap);
        let [groups, offset_groups] = case.groups;
        let (taps, [inputs, outputs]) = (case.window.taps(), case.channels);
        let spec = ConvSpec {
            input: map(case.size, inputs),
            output: map(placed.output, outputs),
            window: case.window,
            placed,
            groups,
            epilogue: Epilogue { activation: case.activation, residual: case.residual.then_some(outputs + gap) },
        };
        let offsets = map(placed.output, 2 * offset_groups * taps);
        let masks = map(placed.output, offset_groups * taps);
        let values = |map: Map, seed: u32| noise(map.pixels() * map.c, seed);
        let (x, residual, mask) = (values(spec.input, 1), values(spec.output, 2), values(masks, 3));
        let mut offset: Vec<f32> = values(offsets, 4).iter().map(|v| v * case.reach).collect();
        spoil(&mut offset);
        let (weight, bias) = (noise(outputs * inputs / groups * taps, 5), noise(outputs, 6));

        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let (offset64, mask64) = (wide(&offset), wide(&mask));
        let sampling =
            naive::Sampling { offset: &offset64, mask: case.modulated.then_some(&mask64[..]), groups: offset_groups };
        let input = Nchw::new([case.batch, inputs, case.size[0], case.size[1]]);
        let shape = ConvShape { out_channels: outputs, groups, window: case.window, placed };
        let mut want = naive::deform_conv2d(&wide(&x), input, sampling, &wide(&weight), Some(&wide(&bias)), &shape);
        if case.residual {
            want.iter_mut().zip(&residual).for_each(|(y, &r)| *y += f64::from(r));
        }
        let want = case.activation.map_or(want.clone(), |function| naive::activation(&want, function));

        let sampling = Sampling { offset: offsets, mask: case.modulated.then_some(masks), groups: offset_groups };
        let [x, offset, mask] =
            [(&x, spec.input), (&offset, offsets), (&mask, masks)].map(|(v, m)| to_map(v, m, f32::NAN));
        for &isa in Isa::available() {
            let kernel = deform(spec, sampling, &weight, Some(&bias), isa);
            let mut y = vec![SENTINEL; spec.output.extent()];
            if case.residual {
                y = to_map(&residual, spec.output, SENTINEL);
            }
            let mut scratch = AlignedBuf::zeros(kernel.scratch());
            scratch.fill(f32::NAN);
            let output = y.as_mut_ptr();
            let io = Io::new(&[x.as_ptr(), offset.as_ptr(), mask.as_ptr(), output.cast_const()], output);
            for tile in (0..kernel.tiles()).rev() {
                // SAFETY: all maps have their extent, the residual is the output, tiles run one after the other.
                unsafe { kernel.run(tile, &io, &mut scratch) };
            }
            for (i, &want) in want.iter().enumerate() {
                let got = f64::from(std::mem::replace(&mut y[position(i, spec.output)], SENTINEL));
                let close = (got - want).abs() <= 3e-5 * (1.0 + want.abs());
                assert!(close, "{} {case:?} gap {gap}: [{i}] {got} {want}", kernel.name());
            }
            assert!(y.iter().all(|&v| v == SENTINEL), "{} {case:?} writes between pixels", kernel.name());
        }
    }

    #[test]
    fn deformable_convolutions_agree_with_the_oracle() {
        let window = |kernel: [usize; 2], stride, dilation, padding| Window {
            kernel,
            stride: [stride; 2],
            dilation: [dilation; 2],
            padding,
            ceil: false,
        };
        let cases = [
            BASE,
            Case { modulated: false, ..BASE },
            Case { batch: 2, channels: [32, 48], reach: 0.9, ..BASE },
            Case { channels: [20, 70], groups: [1, 2], batch: 2, ..BASE },
            Case { channels: [12, 6], groups: [3, 4], reach: 10.0, ..BASE },
            Case { channels: [3, 5], reach: 30.0, modulated: false, ..BASE },
            Case { channels: [17, 33], window: window([2, 3], 2, 1, Padding::Same), ..BASE },
            Case { window: window([3, 3], 1, 2, Padding::Symmetric([2; 2])), batch: 2, ..BASE },
            Case { window: window([4, 1], 1, 1, Padding::Symmetric([3, 0])), groups: [2, 2], ..BASE },
            Case { size: [1, 1], ..BASE },
            Case { size: [23, 31], channels: [40, 64], groups: [2, 2], batch: 2, ..BASE },
            Case { residual: true, activation: Some(Activation::Relu), ..BASE },
            // Enough of everything for the matrix unit.
            Case { size: [17, 13], channels: [64, 96], batch: 2, residual: true, ..BASE },
            Case { residual: true, groups: [2, 1], activation: Some(Activation::Silu), ..BASE },
        ];
        for case in cases {
            for gap in [0, 3] {
                check(case, gap);
            }
        }
    }

    #[test]
    fn without_shifts_it_is_a_convolution() {
        let window = Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ..Window::square(3) };
        let placed = window.place([9, 8], "test").unwrap();
        let map = |[h, w]: [usize; 2], c: usize| Map::dense([1, h, w, c]);
        let spec = ConvSpec {
            input: map([9, 8], 16),
            output: map(placed.output, 24),
            window,
            placed,
            groups: 1,
            epilogue: Epilogue::default(),
        };
        let (x, weight) = (noise(spec.input.extent(), 1), noise(24 * 16 * 9, 2));
        let offset = vec![0.0f32; 18 * spec.output.pixels()];
        let sampling = Sampling { offset: map(placed.output, 18), mask: None, groups: 1 };
        let isa = Isa::detect();
        let [plain, deformed] =
            [super::super::indirect(spec, &weight, None, isa), deform(spec, sampling, &weight, None, isa)].map(
                |kernel| {
                    let mut y = vec![0.0f32; spec.output.extent()];
                    let mut scratch = AlignedBuf::zeros(kernel.scratch());
                    let io = Io::new(&[x.as_ptr(), offset.as_ptr()], y.as_mut_ptr());
                    for tile in 0..kernel.tiles() {
                        // SAFETY: dense maps of their extents, no mask and no residual, one tile after the other.
                        unsafe { kernel.run(tile, &io, &mut scratch) };
                    }
                    y
                },
            );
        assert!(plain.iter().zip(&deformed).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
