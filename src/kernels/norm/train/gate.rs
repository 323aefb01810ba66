//! Squeeze-and-excitation behind a norm, on the way back.

#![allow(unsafe_code, reason = "vector loads from raw pointers")]

use super::{MEAN, RUN, SCALE, SHIFT, runs};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Kernel, Map, Store};
use crate::simd::{Isa, Simd};
use std::ops::Range;

/// What the incoming gradient is made into first where squeeze-and-excitation stands behind the activation: the map was
/// multiplied by a gate, and the gate follows from its means. With `dz` the gradient of the product and `dm` that of the
/// means, both factors one per image and channel, `dy = dz · gate + dm / pixels of an image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Floats from image to image of the gate, `inputs[3]` of a pass.
    pub factor: usize,
    /// Floats from image to image of the gradient of the means, `inputs[5]` of a pass.
    pub means: usize,
}

/// A range of pixels by images, if there is a gate, or else as a whole.
pub(super) fn pieces(
    pixels: Range<usize>,
    map: Map,
    gate: Option<Gate>,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let plane = if gate.is_some() { (map.h * map.w).max(1) } else { usize::MAX };
    let images = pixels.start / plane..pixels.end.div_ceil(plane);
    images.map(move |image| (image, pixels.start.max(image * plane)..pixels.end.min((image + 1) * plane)))
}

/// Factor and summand of `V` registers of channels of an image, from `c` on.
///
/// # Safety
/// Gate and gradient of the means have `lanes` channels there, all if there is more than one register.
#[inline(always)]
pub(super) unsafe fn gate_of<S: Simd, const V: usize>(
    gate: Gate,
    map: Map,
    io: &Io,
    image: usize,
    (c, lanes): (usize, usize),
) -> [[S::V; V]; 2] {
    // SAFETY: as demanded.
    unsafe {
        let (mask, share) = (S::mask(lanes), S::splat(1.0 / (map.h * map.w) as f32));
        let [mut factor, mut summand] = [[S::zero(); V]; 2];
        for v in 0..V {
            let [at, means] = [(3, gate.factor), (5, gate.means)]
                .map(|(input, ld)| io.inputs[input].wrapping_add(image * ld + c + v * S::LANES));
            factor[v] = S::load_masked(at, mask);
            summand[v] = S::mul(S::load_masked(means, mask), share);
        }
        [factor, summand]
    }
}

/// Rows of one float per channel that [`gated_moments`] writes for every image.
pub const GATED_ROWS: usize = 3;

/// What the way back needs of every image where a norm is gated and no function stands between the two: with `dz` the gradient
/// of the product and `x` the norm's input, `Σ dz`, `Σ dz · (x − mean)` and `Σ (x − mean)` over the pixels of the image. The
/// [gradient of the gate](gate_gradient) and the [sums of the norm](gated_sums) follow from these, so that both maps are read
/// once for the two. Inputs: `dz`, `x`, the norm's table. Output: [`GATED_ROWS`] rows for every image.
pub fn gated_moments(gradient: Map, input: Map, isa: Isa) -> impl Kernel {
    assert_eq!(Map { ld: 0, ..gradient }, Map { ld: 0, ..input });
    Light { isa, kernel: GatedMoments { gradient, input } }
}

struct GatedMoments {
    gradient: Map,
    input: Map,
}

/// Channels of a tile.
const CHANNELS: usize = 256;

impl Tiled for GatedMoments {
    fn name(&self) -> String {
        "gated_moments".to_owned()
    }

    fn tiles(&self) -> usize {
        self.input.n * self.input.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let Map { n, h, w, c, .. } = self.input;
        let (image, first) = (tile % n, tile / n * CHANNELS);
        let until = c.min(first + CHANNELS);
        // SAFETY: the image and these channels lie in both maps and in the table; their rows are this tile's alone.
        unsafe {
            let to = io.output.add(image * GATED_ROWS * c);
            for run in runs(0..h * w) {
                let store = if run.start == 0 { Store::Set } else { Store::Add };
                let (pixel, mut i) = (image * h * w + run.start, first);
                while i < until {
                    i += match i + 4 * S::LANES <= until {
                        true => self.columns::<S, 4>(pixel, run.len(), (i, S::LANES), io, (to, store)),
                        false => self.columns::<S, 1>(pixel, run.len(), (i, S::LANES.min(until - i)), io, (to, store)),
                    };
                }
            }
        }
    }
}

impl GatedMoments {
    /// Sums over `count` pixels of `V` registers of channels from `c` on, of the last of which `lanes` exist; returns the
    /// channels done.
    ///
    /// # Safety
    /// The pixels and the channels lie in both maps, the channels in the table and the rows at `to`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(
        &self,
        pixel: usize,
        count: usize,
        (c, lanes): (usize, usize),
        io: &Io,
        (to, store): (*mut f32, Store),
    ) -> usize {
        let Map { c: channels, ld, .. } = self.input;
        // SAFETY: as demanded; the mask keeps to the channels.
        unsafe {
            let mask = S::mask(lanes);
            let load = |p: *const f32, v: usize| {
                if V == 1 { S::load_masked(p, mask) } else { S::load(p.add(v * S::LANES)) }
            };
            let mut mean = [S::zero(); V];
            for v in 0..V {
                mean[v] = load(io.inputs[2].add(MEAN * channels + c), v);
            }
            let mut dz = io.inputs[0].add(pixel * self.gradient.ld + c);
            let mut x = io.inputs[1].add(pixel * ld + c);
            let mut sums = [[S::zero(); V]; GATED_ROWS];
            for _ in 0..count {
                for v in 0..V {
                    S::prefetch_far(dz.wrapping_add(RUN * self.gradient.ld + v * S::LANES));
                    S::prefetch_far(x.wrapping_add(RUN * ld + v * S::LANES));
                    let (d, centred) = (load(dz, v), S::sub(load(x, v), mean[v]));
                    sums[0][v] = S::add(sums[0][v], d);
                    sums[1][v] = S::fma(d, centred, sums[1][v]);
                    sums[2][v] = S::add(sums[2][v], centred);
                }
                dz = dz.wrapping_add(self.gradient.ld);
                x = x.wrapping_add(ld);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (v, mut sum) in sums.into_iter().enumerate() {
                    let to = to.add(row * channels + c + v * S::LANES);
                    if store == Store::Add {
                        sum = S::add(sum, S::load_masked(to, mask));
                    }
                    S::store_masked(to, sum, mask);
                }
            }
        }
        V * S::LANES
    }
}

/// The gradient of the gate, `dg[n, c] = Σ dz · norm(x)`, from the [`gated_moments`] of `input`. Inputs: these, the norm's table.
/// Output: the gradient of the gate.
pub fn gate_gradient(input: Map, output: Map, store: Store, isa: Isa) -> impl Kernel {
    assert_eq!([output.n, output.h, output.w, output.c], [input.n, 1, 1, input.c], "a gate of {input:?}");
    Light { isa, kernel: GateGradient { output, store } }
}

struct GateGradient {
    output: Map,
    store: Store,
}

impl Tiled for GateGradient {
    fn name(&self) -> String {
        "gather_gate_gradient".to_owned()
    }

    fn tiles(&self) -> usize {
        self.output.n
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, image: usize, io: &Io, _: &mut [f32]) {
        let c = self.output.c;
        for i in 0..c {
            // SAFETY: the image has its rows, the table a float for every channel, the gradient one for each of the image's.
            unsafe {
                let moment = |row: usize| f64::from(*io.inputs[0].add((image * GATED_ROWS + row) * c + i));
                let table = |row: usize| f64::from(*io.inputs[1].add(row * c + i));
                let at_mean = table(MEAN) * table(SCALE) + table(SHIFT);
                let sum = (moment(1) * table(SCALE) + moment(0) * at_mean) as f32;
                let to = io.output.add(image * self.output.ld + i);
                *to = if self.store == Store::Add { *to + sum } else { sum };
            }
        }
    }
}

/// The sums of a norm behind which `gate` stands, for [`backward_statistics`](super::backward_statistics) by
/// [images](super::Partial::Images): of `dT = dz · gate + dm / pixels` and of `dT · (x − mean)`. Inputs: the [`gated_moments`] of
/// `input`, the gate, the gradient of the means. Output: two rows for every image.
pub fn gated_sums(input: Map, gate: Gate, isa: Isa) -> impl Kernel {
    Light { isa, kernel: GatedSums { input, gate } }
}

struct GatedSums {
    input: Map,
    gate: Gate,
}

impl Tiled for GatedSums {
    fn name(&self) -> String {
        "gated_norm_sums".to_owned()
    }

    fn tiles(&self) -> usize {
        self.input.n
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, image: usize, io: &Io, _: &mut [f32]) {
        let Map { c, h, w, .. } = self.input;
        for i in 0..c {
            // SAFETY: the image has its rows, and every map a float for each of its channels.
            unsafe {
                let moment = |row: usize| *io.inputs[0].add((image * GATED_ROWS + row) * c + i);
                let factor = *io.inputs[1].add(image * self.gate.factor + i);
                let means = *io.inputs[2].add(image * self.gate.means + i);
                let to = io.output.add(2 * image * c + i);
                *to = factor * moment(0) + means;
                *to.add(c) = factor * moment(1) + means / (h * w) as f32 * moment(2);
            }
        }
    }
}
