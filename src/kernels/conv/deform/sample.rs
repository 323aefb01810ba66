//! Bilinear samples between the pixels of a map.

use super::super::ConvSpec;
use super::Sampling;
use crate::kernels::{Io, Map};
use crate::simd::{Simd, Task};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Where the samples of a convolution lie.
pub(super) struct Sampler {
    pub(super) spec: ConvSpec,
    pub(super) sampling: Sampling,
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
    pub(super) fn new(spec: ConvSpec, sampling: Sampling) -> Self {
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

    pub(super) fn resident_bytes(&self) -> usize {
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
pub(super) struct Lines {
    pub(super) to: *mut f32,
    pub(super) pixel: usize,
    pub(super) tap: usize,
    pub(super) group: usize,
}

impl Lines {
    /// From the sample of a tap to the first channel of a run.
    #[inline(always)]
    fn of(&self, run: &Run, spec: &ConvSpec) -> usize {
        run.group * self.group + run.channels.start - run.group * spec.group_inputs()
    }
}

/// Samples the input for some output pixels.
pub(super) struct Sample<'a> {
    pub(super) sampler: &'a Sampler,
    pub(super) io: &'a Io,
    pub(super) pixels: Range<usize>,
    pub(super) lines: Lines,
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
                // Offset groups may steer many groups: their corners are found once.
                let mut found: Option<(usize, Corners)> = None;
                for run in runs {
                    let steered = run.steered_by * taps + tap;
                    // SAFETY: one pair of shifts and one factor per pixel, offset group and tap; the corners have all
                    // channels behind them, and there is room for them where they go.
                    unsafe {
                        let corners = match found {
                            Some((by, corners)) if by == run.steered_by => corners,
                            _ => {
                                let shift = self.io.inputs[1].add(pixel * sampling.offset.ld + 2 * steered);
                                let factor = match sampling.mask {
                                    Some(mask) => *self.io.inputs[2].add(pixel * mask.ld + steered),
                                    None => 1.0,
                                };
                                let at = [y + *shift, x + *shift.add(1)];
                                self.sampler.corners(self.io.inputs[0], image, at, factor)
                            }
                        };
                        found = Some((run.steered_by, corners));
                        blend::<S>(&corners, run.channels.clone(), to.add(self.lines.of(run, spec)));
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
