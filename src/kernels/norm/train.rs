//! Batch norm while training: statistics of the batch, normalisation, and the way back.
//!
//! ```text
//! forward    per block of pixels: mean and squared deviations      (f32, around the block's first pixel)
//!            their union over the blocks                           (f64, in the order of the blocks)
//!            y = act(x · scale + shift + residual), or act((x · scale + shift) · gate + residual)
//! backward   per block: dT = dy · act'(t), Σ dT, Σ dT · (x − mean)  (f32)
//!            their sums                                            (f64, in the order of the blocks)
//!            dx = scale · (dT − Σ dT / N − x̂ · Σ dT·x̂ / N)
//! ```
//!
//! Blocks are cut by shape, so results do not depend on the number of threads. What one kernel leaves for the next are
//! *tables*: rows of one float per channel, [`Map::c`] apart.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

mod back;
mod gate;
#[cfg(test)]
mod tests;
mod totals;

pub use back::{Backward, Chain, Sums, Through, backward, chain};
pub use gate::{GATED_ROWS, Gate, gate_gradient, gated_moments, gated_sums};
pub use totals::{Partial, Statistic, backward_statistics, deferred_statistics, total};

use crate::activation::Activation;
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Store, Stripes};
use crate::simd::{Isa, Simd, apply_activation};
use std::ops::Range;

/// Rows of the table that [`statistics`] writes.
pub const TABLE_ROWS: usize = 5;
const MEAN: usize = 0;
const DEVIATION: usize = 1;
/// Row of the factors, `γ / √(variance + ε)`,
pub const SCALE: usize = 2;
/// and of the summands: the norm is `x · scale + shift`.
pub const SHIFT: usize = 3;
/// Row of the biased variance; the batch's mean is row 0.
pub const VARIANCE: usize = 4;

/// Rows of the table that [`backward_statistics`] writes: dx = a·dT + b·(x − mean) + c.
pub const BACKWARD_ROWS: usize = 4;

/// Channels whose sums one tile unites.
const CHANNELS: usize = 64;

/// Blocks ahead of use whose sums are fetched: those of a few channels lie too far apart for the hardware to see it.
const BLOCKS_AHEAD: usize = 8;

/// Fetches the sums of a block to come, which lies `apart` floats behind the one before it, of the channels of `row`.
#[inline(always)]
fn fetch_later<S: Simd>(row: &[f32], apart: usize) {
    let later = row.as_ptr().wrapping_add(BLOCKS_AHEAD * apart);
    // SAFETY: prefetching is harmless anywhere.
    (0..row.len()).step_by(16).for_each(|i| unsafe { S::prefetch_far(later.wrapping_add(i)) });
}

/// Pixels summed up before they join the sum of a block: a long sum of squares loses a digit. Four registers of channels at
/// a time are summed over a run, so that a map is read from end to end, and the next run is fetched meanwhile.
const RUN: usize = 16;

/// Pixels in runs.
fn runs(pixels: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    pixels.clone().step_by(RUN).map(move |start| start..pixels.end.min(start + RUN))
}

/// How many pixels ahead of use to fetch: none of a map that is read from end to end, which the hardware sees by itself.
fn ahead(c: usize, ld: usize) -> usize {
    if ld <= c + c / 4 { 0 } else { (AHEAD / c.max(1)).clamp(1, RUN) }
}

/// Whether what is written goes past the caches, because the map is larger than these and no line of it is in them.
fn streams(output: Map, io: &Io, read: [*const f32; 2]) -> bool {
    let lines = output.c.is_multiple_of(16) && output.ld.is_multiple_of(16) && io.output.addr().is_multiple_of(64);
    lines && output.pixels() * output.ld >= STREAMED && !read.contains(&io.output.cast_const())
}

/// Floats of a map that no cache holds until it is read.
const STREAMED: usize = 3 << 20;

/// Floats fetched ahead of use.
const AHEAD: usize = 1 << 11;

/// Pixels of a block of a map, over which sums are taken first, unless the kernel that writes it makes other
/// [units](crate::kernels::Stripes).
pub fn block(map: Map) -> usize {
    Tiling::fill(map.c)
}

/// Blocks of so many pixels.
fn blocks(map: Map, block: usize) -> Tiling {
    Tiling::runs(map.pixels(), block)
}

/// Floats of the sums of `rows` rows per block of so many pixels.
pub fn partial_len(map: Map, block: usize, rows: usize) -> usize {
    blocks(map, block).tiles() * rows * map.c
}

/// Mean and squared deviations of every block of pixels of `input`, for [`statistics`]. Input: the map. Output: 2 rows of
/// partial sums, [`partial_len`] floats.
pub fn moments(input: Map, block: usize, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Moments { input, blocks: blocks(input, block) } }
}

struct Moments {
    input: Map,
    blocks: Tiling,
}

impl Tiled for Moments {
    fn name(&self) -> String {
        "batch_moments".to_owned()
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    fn stripes(&self) -> Option<Stripes> {
        Some(self.blocks.stripes())
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (map, pixels) = (self.input, self.blocks.range(tile));
        // SAFETY: the block's pixels lie in the map, its rows among the partial sums.
        unsafe {
            let x = io.inputs[0].add(pixels.start * map.ld);
            let to = io.output.add(tile * 2 * map.c);
            for run in runs(0..pixels.len()) {
                let store = if run.start == 0 { Store::Set } else { Store::Add };
                let mut c = 0;
                while c < map.c {
                    let from = [x.add(c), x.add(run.start * map.ld + c)];
                    c += if c + 4 * S::LANES <= map.c {
                        self.columns::<S, 4>(from, run.len(), (to.add(c), store), S::LANES)
                    } else {
                        self.columns::<S, 1>(from, run.len(), (to.add(c), store), S::LANES.min(map.c - c))
                    };
                }
            }
            let share = S::splat(1.0 / pixels.len() as f32);
            for c in (0..map.c).step_by(S::LANES) {
                let (mask, to) = (S::mask(S::LANES.min(map.c - c)), to.add(c));
                let [sum, squares] = [0, map.c].map(|row| S::load_masked(to.add(row), mask));
                let mean = S::mul(sum, share);
                let deviations = S::sub(squares, S::mul(sum, mean));
                S::store_masked(to, S::add(S::load_masked(x.add(c), mask), mean), mask);
                S::store_masked(to.add(map.c), S::max(S::zero(), deviations), mask);
            }
        }
    }
}

impl Moments {
    /// Sums of the deviations from the first pixel, and of their squares, over a run of pixels: of `V` registers of channels,
    /// the last of which has `lanes` that exist. `from` are the first pixel of the block and of the run. Returns the channels
    /// done.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(
        &self,
        from: [*const f32; 2],
        pixels: usize,
        (to, store): (*mut f32, Store),
        lanes: usize,
    ) -> usize {
        // SAFETY: passed on; the mask keeps to the channels.
        unsafe {
            let mask = S::mask(lanes);
            let load = |p: *const f32, v: usize| {
                if V == 1 { S::load_masked(p, mask) } else { S::load(p.add(v * S::LANES)) }
            };
            let [first, mut x] = from;
            let mut around = [S::zero(); V];
            for v in 0..V {
                around[v] = load(first, v);
            }
            let (mut sum, mut squares) = ([S::zero(); V], [S::zero(); V]);
            for _ in 0..pixels {
                for v in 0..V {
                    S::prefetch_far(x.wrapping_add(RUN * self.input.ld + v * S::LANES));
                    let d = S::sub(load(x, v), around[v]);
                    sum[v] = S::add(sum[v], d);
                    squares[v] = S::fma(d, d, squares[v]);
                }
                x = x.wrapping_add(self.input.ld);
            }
            for v in 0..V {
                let to = to.add(v * S::LANES);
                for (to, mut sum) in [(to, sum[v]), (to.add(self.input.c), squares[v])] {
                    if store == Store::Add {
                        sum = S::add(sum, S::load_masked(to, mask));
                    }
                    S::store_masked(to, sum, mask);
                }
            }
            V * S::LANES
        }
    }
}

/// Unites the [`moments`] of all blocks of so many pixels. Inputs: the partial sums; γ and β, or null for 1 and 0. Output: the table
/// ([`TABLE_ROWS`] rows): mean, 1/√(variance + ε), scale, shift, biased variance.
pub fn statistics(input: Map, block: usize, epsilon: f64, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Statistics { input, epsilon, blocks: blocks(input, block) } }
}

/// The table of a batch norm that normalises by its running statistics. Inputs: running mean, running variance; γ and β,
/// or null. Output: as [`statistics`].
pub fn fixed_statistics(input: Map, epsilon: f64, isa: Isa) -> impl Kernel {
    Light { isa, kernel: FixedStatistics { channels: input.c, epsilon } }
}

struct Statistics {
    input: Map,
    epsilon: f64,
    blocks: Tiling,
}

/// Writes the table of channel `c` from its mean and variance.
///
/// # Safety
/// `scale` and `shift` are null or readable at `c`, the table is writable.
#[inline(always)]
unsafe fn write_table(
    table: *mut f32,
    [channels, c]: [usize; 2],
    [mean, variance, epsilon]: [f64; 3],
    [scale, shift]: [*const f32; 2],
) {
    // SAFETY: passed on.
    unsafe {
        let one = |p: *const f32, default: f64| if p.is_null() { default } else { f64::from(*p.add(c)) };
        let deviation = 1.0 / (variance + epsilon).sqrt();
        let factor = one(scale, 1.0) * deviation;
        let values = [mean, deviation, factor, one(shift, 0.0) - mean * factor, variance];
        for (row, value) in values.into_iter().enumerate() {
            *table.add(row * channels + c) = value as f32;
        }
    }
}

impl Tiled for Statistics {
    fn name(&self) -> String {
        "batch_statistics".to_owned()
    }

    fn tiles(&self) -> usize {
        self.input.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let channels = self.input.c;
        let range = tile * CHANNELS..channels.min((tile + 1) * CHANNELS);
        let (mut mean, mut squares) = ([0.0f64; CHANNELS], [0.0f64; CHANNELS]);
        let total = self.input.pixels() as f64;
        // SAFETY: the partial sums hold two rows for every block.
        unsafe {
            let row = |block: usize, row: usize| {
                let at = io.inputs[0].add((block * 2 + row) * channels + range.start);
                std::slice::from_raw_parts(at, range.len())
            };
            for block in 0..self.blocks.tiles() {
                fetch_later::<S>(row(block, 0), 2 * channels);
                let share = self.blocks.range(block).len() as f64 / total;
                mean.iter_mut().zip(row(block, 0)).for_each(|(m, &v)| *m += share * f64::from(v));
            }
            for block in 0..self.blocks.tiles() {
                fetch_later::<S>(row(block, 0), 2 * channels);
                fetch_later::<S>(row(block, 1), 2 * channels);
                let count = self.blocks.range(block).len() as f64;
                for (i, (&m, &q)) in row(block, 0).iter().zip(row(block, 1)).enumerate() {
                    let d = f64::from(m) - mean[i];
                    squares[i] += f64::from(q) + count * d * d;
                }
            }
            for (i, c) in range.enumerate() {
                let numbers = [mean[i], squares[i] / total, self.epsilon];
                write_table(io.output, [channels, c], numbers, [io.inputs[1], io.inputs[2]]);
            }
        }
    }
}

struct FixedStatistics {
    channels: usize,
    epsilon: f64,
}

impl Tiled for FixedStatistics {
    fn name(&self) -> String {
        "running_statistics".to_owned()
    }

    fn tiles(&self) -> usize {
        1
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, _: usize, io: &Io, _: &mut [f32]) {
        for c in 0..self.channels {
            // SAFETY: every input holds a float per channel.
            unsafe {
                let [mean, variance] = [0, 1].map(|i| f64::from(*io.inputs[i].add(c)));
                write_table(
                    io.output,
                    [self.channels, c],
                    [mean, variance, self.epsilon],
                    [io.inputs[2], io.inputs[3]],
                );
            }
        }
    }
}

/// `y = activation(x · scale + shift + residual)`. Inputs: the map, the table of [`statistics`] and, with `residual` its
/// pixel stride, a map of the same shape. The output may be the map or the residual itself.
pub fn apply(
    input: Map,
    output: Map,
    residual: Option<usize>,
    activation: Option<Activation>,
    isa: Isa,
) -> impl Kernel {
    assert_eq!(Map { ld: 0, ..input }, Map { ld: 0, ..output });
    Light {
        isa,
        kernel: Apply { input, output, gate: None, residual, activation, blocks: blocks(input, block(input)) },
    }
}

/// `y = activation((x · scale + shift) · gate + residual)`. Inputs as with [`apply`], then the gate, one factor per image and
/// channel, `gate` floats from image to image.
pub fn apply_gated(
    input: Map,
    output: Map,
    gate: usize,
    residual: Option<usize>,
    activation: Option<Activation>,
    isa: Isa,
) -> impl Kernel {
    assert_eq!(Map { ld: 0, ..input }, Map { ld: 0, ..output });
    Light {
        isa,
        kernel: Apply { input, output, gate: Some(gate), residual, activation, blocks: blocks(input, block(input)) },
    }
}

struct Apply {
    input: Map,
    output: Map,
    gate: Option<usize>,
    residual: Option<usize>,
    activation: Option<Activation>,
    blocks: Tiling,
}

impl Apply {
    #[inline(always)]
    unsafe fn pixels<S: Simd, const RESIDUAL: bool, const GATE: bool>(
        &self,
        pixels: Range<usize>,
        io: &Io,
        activation: Option<Activation>,
    ) {
        let (c, plane) = (self.input.c, self.input.h * self.input.w);
        let (ld, ahead) = (self.residual.unwrap_or(0), ahead(c, self.input.ld));
        let stream = streams(self.output, io, [io.inputs[0], io.inputs[2]]);
        // SAFETY: the pixels lie in all maps, the mask keeps to the channels, the table has a float for each.
        unsafe {
            let [scale, shift] = [SCALE, SHIFT].map(|row| io.inputs[1].add(row * c));
            for pixel in pixels {
                let (x, y) = (io.inputs[0].add(pixel * self.input.ld), io.output.add(pixel * self.output.ld));
                let r = io.inputs[2].wrapping_add(pixel * ld);
                let gate = io.inputs[3].wrapping_add(pixel / plane * self.gate.unwrap_or(0));
                let mut i = 0;
                while i + S::LANES <= c {
                    if ahead > 0 {
                        S::prefetch_far(x.wrapping_add(ahead * self.input.ld + i));
                    }
                    let mut t = S::fma(S::load(x.add(i)), S::load(scale.add(i)), S::load(shift.add(i)));
                    t = match (GATE, RESIDUAL) {
                        (false, false) => t,
                        (false, true) => S::add(t, S::load(r.add(i))),
                        (true, false) => S::mul(t, S::load(gate.add(i))),
                        (true, true) => S::fma(t, S::load(gate.add(i)), S::load(r.add(i))),
                    };
                    t = apply_activation::<S>(activation, t);
                    match stream {
                        true => S::stream(y.add(i), t),
                        false => S::store(y.add(i), t),
                    }
                    i += S::LANES;
                }
                if i < c {
                    let mask = S::mask(c - i);
                    let [a, b] = [scale, shift].map(|p| S::load_masked(p.add(i), mask));
                    let mut t = S::fma(S::load_masked(x.add(i), mask), a, b);
                    t = match (GATE, RESIDUAL) {
                        (false, false) => t,
                        (false, true) => S::add(t, S::load_masked(r.add(i), mask)),
                        (true, false) => S::mul(t, S::load_masked(gate.add(i), mask)),
                        (true, true) => S::fma(t, S::load_masked(gate.add(i), mask), S::load_masked(r.add(i), mask)),
                    };
                    S::store_masked(y.add(i), apply_activation::<S>(activation, t), mask);
                }
            }
            if stream {
                S::streamed();
            }
        }
    }
}

impl Tiled for Apply {
    fn name(&self) -> String {
        let gate = if self.gate.is_some() { "+gate" } else { "" };
        let residual = if self.residual.is_some() { "+residual" } else { "" };
        let activation = self.activation.map_or(String::new(), |a| format!("+{}", a.name()));
        format!("normalise{gate}{residual}{activation}")
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        use Activation::{Relu, Silu};
        let pixels = self.blocks.range(tile);
        // SAFETY: passed on.
        unsafe {
            match (self.gate.is_some(), self.residual.is_some(), self.activation) {
                (false, false, Some(Relu)) => self.pixels::<S, false, false>(pixels, io, Some(Relu)),
                (false, true, Some(Relu)) => self.pixels::<S, true, false>(pixels, io, Some(Relu)),
                (true, true, Some(Relu)) => self.pixels::<S, true, true>(pixels, io, Some(Relu)),
                (false, false, Some(Silu)) => self.pixels::<S, false, false>(pixels, io, Some(Silu)),
                (false, false, other) => self.pixels::<S, false, false>(pixels, io, other),
                (false, true, other) => self.pixels::<S, true, false>(pixels, io, other),
                (true, false, other) => self.pixels::<S, false, true>(pixels, io, other),
                (true, true, other) => self.pixels::<S, true, true>(pixels, io, other),
            }
        }
    }
}
