//! Batch norm while training: statistics of the batch, normalisation, and the way back.
//!
//! ```text
//! forward    per block of pixels: mean and squared deviations      (f32, around the block's first pixel)
//!            their union over the blocks                           (f64, in the order of the blocks)
//!            y = act(x · scale + shift + residual)
//! backward   per block: dT = dy · act'(t), Σ dT, Σ dT · (x − mean)  (f32)
//!            their sums                                            (f64, in the order of the blocks)
//!            dx = scale · (dT − Σ dT / N − x̂ · Σ dT·x̂ / N)
//! ```
//!
//! Blocks are cut by shape, so results do not depend on the number of threads. What one kernel leaves for the next are
//! *tables*: rows of one float per channel, [`Map::c`] apart.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use crate::activation::Activation;
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Store};
use crate::simd::{Isa, Simd, activation_gradient, apply_activation, output_gradient};
use std::ops::Range;

/// Rows of the table that [`statistics`] writes.
pub const TABLE_ROWS: usize = 5;
const MEAN: usize = 0;
const DEVIATION: usize = 1;
const SCALE: usize = 2;
const SHIFT: usize = 3;
/// Row of the biased variance; the batch's mean is row 0.
pub const VARIANCE: usize = 4;

/// Rows of the table that [`backward_statistics`] writes: dx = a·dT + b·(x − mean) + c.
pub const BACKWARD_ROWS: usize = 4;

/// Channels whose sums one tile unites.
const CHANNELS: usize = 64;

/// Pixels summed up before they join the sum of a block: a long sum of squares loses a digit.
const RUN: usize = 16;

/// Blocks of pixels of a map, over which sums are taken first.
fn blocks(map: Map) -> Tiling {
    Tiling::new(map.pixels(), map.c)
}

/// Floats of the sums of `rows` rows per block.
pub fn partial_len(map: Map, rows: usize) -> usize {
    blocks(map).tiles() * rows * map.c
}

/// Mean and squared deviations of every block of pixels of `input`, for [`statistics`]. Input: the map. Output: 2 rows of
/// partial sums, [`partial_len`] floats.
pub fn moments(input: Map, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Moments { input, blocks: blocks(input) } }
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

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (map, pixels) = (self.input, self.blocks.range(tile));
        // SAFETY: the block's pixels lie in the map, its rows among the partial sums.
        unsafe {
            let x = io.inputs[0].add(pixels.start * map.ld);
            let to = io.output.add(tile * 2 * map.c);
            let mut c = 0;
            while c < map.c {
                c += if c + 4 * S::LANES <= map.c {
                    self.columns::<S, 4>(x.add(c), pixels.len(), to.add(c), S::LANES)
                } else {
                    self.columns::<S, 1>(x.add(c), pixels.len(), to.add(c), S::LANES.min(map.c - c))
                };
            }
        }
    }
}

impl Moments {
    /// `V` registers of channels, the last of which has `lanes` that exist; returns the channels done.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(
        &self,
        mut x: *const f32,
        pixels: usize,
        to: *mut f32,
        lanes: usize,
    ) -> usize {
        // SAFETY: passed on; the mask keeps to the channels.
        unsafe {
            let mask = S::mask(lanes);
            let load = |p: *const f32, v: usize| {
                if V == 1 { S::load_masked(p, mask) } else { S::load(p.add(v * S::LANES)) }
            };
            let mut around = [S::zero(); V];
            for v in 0..V {
                around[v] = load(x, v);
            }
            let (mut sum, mut squares) = ([S::zero(); V], [S::zero(); V]);
            for run in (0..pixels).step_by(RUN) {
                let (mut s, mut q) = ([S::zero(); V], [S::zero(); V]);
                for _ in run..pixels.min(run + RUN) {
                    for v in 0..V {
                        let d = S::sub(load(x, v), around[v]);
                        s[v] = S::add(s[v], d);
                        q[v] = S::fma(d, d, q[v]);
                    }
                    x = x.wrapping_add(self.input.ld);
                }
                for v in 0..V {
                    (sum[v], squares[v]) = (S::add(sum[v], s[v]), S::add(squares[v], q[v]));
                }
            }
            let share = S::splat(1.0 / pixels as f32);
            for v in 0..V {
                let mean = S::mul(sum[v], share);
                let deviations = S::sub(squares[v], S::mul(sum[v], mean));
                let to = to.add(v * S::LANES);
                S::store_masked(to, S::add(around[v], mean), mask);
                S::store_masked(to.add(self.input.c), S::max(S::zero(), deviations), mask);
            }
            V * S::LANES
        }
    }
}

/// Unites the [`moments`] of all blocks. Inputs: the partial sums; γ and β, or null for 1 and 0. Output: the table
/// ([`TABLE_ROWS`] rows): mean, 1/√(variance + ε), scale, shift, biased variance.
pub fn statistics(input: Map, epsilon: f64, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Statistics { input, epsilon, blocks: blocks(input) } }
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
                let share = self.blocks.range(block).len() as f64 / total;
                mean.iter_mut().zip(row(block, 0)).for_each(|(m, &v)| *m += share * f64::from(v));
            }
            for block in 0..self.blocks.tiles() {
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
    Light { isa, kernel: Apply { input, output, residual, activation, blocks: blocks(input) } }
}

struct Apply {
    input: Map,
    output: Map,
    residual: Option<usize>,
    activation: Option<Activation>,
    blocks: Tiling,
}

impl Apply {
    #[inline(always)]
    unsafe fn pixels<S: Simd, const RESIDUAL: bool>(
        &self,
        pixels: Range<usize>,
        io: &Io,
        activation: Option<Activation>,
    ) {
        let c = self.input.c;
        let ld = self.residual.unwrap_or(0);
        // SAFETY: the pixels lie in all maps, the mask keeps to the channels, the table has a float for each.
        unsafe {
            let [scale, shift] = [SCALE, SHIFT].map(|row| io.inputs[1].add(row * c));
            for pixel in pixels {
                let (x, y) = (io.inputs[0].add(pixel * self.input.ld), io.output.add(pixel * self.output.ld));
                let r = io.inputs[2].wrapping_add(pixel * ld);
                let mut i = 0;
                while i + S::LANES <= c {
                    let mut t = S::fma(S::load(x.add(i)), S::load(scale.add(i)), S::load(shift.add(i)));
                    if RESIDUAL {
                        t = S::add(t, S::load(r.add(i)));
                    }
                    S::store(y.add(i), apply_activation::<S>(activation, t));
                    i += S::LANES;
                }
                if i < c {
                    let mask = S::mask(c - i);
                    let [a, b] = [scale, shift].map(|p| S::load_masked(p.add(i), mask));
                    let mut t = S::fma(S::load_masked(x.add(i), mask), a, b);
                    if RESIDUAL {
                        t = S::add(t, S::load_masked(r.add(i), mask));
                    }
                    S::store_masked(y.add(i), apply_activation::<S>(activation, t), mask);
                }
            }
        }
    }
}

impl Tiled for Apply {
    fn name(&self) -> String {
        let residual = if self.residual.is_some() { "+residual" } else { "" };
        let activation = self.activation.map_or(String::new(), |a| format!("+{}", a.name()));
        format!("normalise{residual}{activation}")
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let pixels = self.blocks.range(tile);
        // SAFETY: passed on.
        unsafe {
            match (self.activation, self.residual.is_some()) {
                (Some(Activation::Relu), false) => self.pixels::<S, false>(pixels, io, Some(Activation::Relu)),
                (Some(Activation::Relu), true) => self.pixels::<S, true>(pixels, io, Some(Activation::Relu)),
                (activation, false) => self.pixels::<S, false>(pixels, io, activation),
                (activation, true) => self.pixels::<S, true>(pixels, io, activation),
            }
        }
    }
}

/// The function whose derivative the incoming gradient is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// None: `dT = dy`.
    Nothing,
    /// An activation of `x · scale + shift`, which is computed again.
    Normalised(Activation),
    /// An activation of the map `inputs[1]` itself.
    Input(Activation),
    /// An activation whose output is read (`inputs[3]`, with this pixel stride): what a residual went into.
    Output(Activation, usize),
}

/// The first pass backward through an activation and, perhaps, a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chain {
    /// The gradient of the activation's output, `inputs[0]`.
    pub gradient: Map,
    /// Pixel stride of the norm's input, `inputs[1]`; needed with [`Sums::Norm`] and [`Through::Normalised`].
    pub input: usize,
    /// The activation.
    pub through: Through,
    /// What is summed up.
    pub sums: Sums,
    /// Where `dT` is stored besides, `also[0]`: its pixel stride. It may be the gradient itself.
    pub store: Option<(usize, Store)>,
}

/// Sums over the pixels of a block, per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// None.
    None,
    /// Σ dT: the gradient of a bias. One row.
    Bias,
    /// Σ dT and Σ dT · (x − mean). Two rows.
    Norm,
}

impl Sums {
    /// Rows of partial sums per block.
    pub const fn rows(self) -> usize {
        match self {
            Sums::None => 0,
            Sums::Bias => 1,
            Sums::Norm => 2,
        }
    }
}

/// `dT = dy · act'(t)` and its sums over every block of pixels. Inputs: the gradient; the norm's input; the table of
/// [`statistics`]; the activation's output (see [`Through`] for which are read). Output: [`partial_len`] floats of sums.
/// `also[0]`: `dT`, if it is stored.
pub fn chain(chain: Chain, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Chained { chain, blocks: blocks(chain.gradient) } }
}

struct Chained {
    chain: Chain,
    blocks: Tiling,
}

/// Where the channels of a pixel lie.
#[derive(Clone, Copy)]
struct Pixel {
    gradient: *const f32,
    input: *const f32,
    output: *const f32,
    store: *mut f32,
}

impl Pixel {
    #[inline(always)]
    fn of(chain: &Chain, io: &Io, pixel: usize, c: usize) -> Self {
        let output = if let Through::Output(_, ld) = chain.through { ld } else { 0 };
        Pixel {
            gradient: io.inputs[0].wrapping_add(pixel * chain.gradient.ld + c),
            input: io.inputs[1].wrapping_add(pixel * chain.input + c),
            output: io.inputs[3].wrapping_add(pixel * output + c),
            store: io.also[0].wrapping_add(pixel * chain.store.map_or(0, |(ld, _)| ld) + c),
        }
    }
}

impl Chained {
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(
        &self,
        pixels: Range<usize>,
        io: &Io,
        (c, lanes): (usize, usize),
        to: *mut f32,
        through: Through,
    ) {
        let chain = &self.chain;
        let channels = chain.gradient.c;
        let (reads_input, centred) = (
            matches!(through, Through::Normalised(_) | Through::Input(_)) || chain.sums == Sums::Norm,
            chain.sums == Sums::Norm,
        );
        // SAFETY: the pixels lie in all maps, the mask keeps to the channels, the table has a float for each.
        unsafe {
            let mask = S::mask(lanes);
            let load = |p: *const f32, v: usize| {
                if V == 1 { S::load_masked(p, mask) } else { S::load(p.add(v * S::LANES)) }
            };
            let row = |row: usize, v: usize| load(io.inputs[2].wrapping_add(row * channels + c), v);
            let (mut mean, mut scale, mut shift) = ([S::zero(); V], [S::zero(); V], [S::zero(); V]);
            for v in 0..V {
                if centred {
                    mean[v] = row(MEAN, v);
                }
                if let Through::Normalised(_) = through {
                    (scale[v], shift[v]) = (row(SCALE, v), row(SHIFT, v));
                }
            }
            let (mut sum, mut product) = ([S::zero(); V], [S::zero(); V]);
            for pixel in pixels {
                let at = Pixel::of(chain, io, pixel, c);
                for v in 0..V {
                    let mut d = load(at.gradient, v);
                    let x = if reads_input { load(at.input, v) } else { S::zero() };
                    match through {
                        Through::Nothing => {}
                        Through::Input(activation) => d = activation_gradient::<S>(activation, x, d),
                        Through::Normalised(activation) => {
                            d = activation_gradient::<S>(activation, S::fma(x, scale[v], shift[v]), d);
                        }
                        Through::Output(activation, _) => d = output_gradient::<S>(activation, load(at.output, v), d),
                    }
                    sum[v] = S::add(sum[v], d);
                    if centred {
                        product[v] = S::fma(d, S::sub(x, mean[v]), product[v]);
                    }
                    if let Some((_, store)) = chain.store {
                        let to = at.store.wrapping_add(v * S::LANES);
                        if store == Store::Add {
                            d = S::add(d, S::load_masked(to, mask));
                        }
                        S::store_masked(to, d, mask);
                    }
                }
            }
            for v in 0..V {
                let to = to.wrapping_add(v * S::LANES);
                if chain.sums != Sums::None {
                    S::store_masked(to, sum[v], mask);
                }
                if centred {
                    S::store_masked(to.add(channels), product[v], mask);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn block<S: Simd>(&self, tile: usize, io: &Io, through: Through) {
        let channels = self.chain.gradient.c;
        let (mut c, rows) = (0, self.chain.sums.rows());
        while c < channels {
            let to = io.output.wrapping_add(tile * rows * channels + c);
            // SAFETY: passed on.
            unsafe {
                if c + 4 * S::LANES <= channels {
                    self.columns::<S, 4>(self.blocks.range(tile), io, (c, S::LANES), to, through);
                    c += 4 * S::LANES;
                } else {
                    let lanes = S::LANES.min(channels - c);
                    self.columns::<S, 1>(self.blocks.range(tile), io, (c, lanes), to, through);
                    c += S::LANES;
                }
            }
        }
    }
}

impl Tiled for Chained {
    fn name(&self) -> String {
        let through = match self.chain.through {
            Through::Nothing => "",
            Through::Input(a) | Through::Normalised(a) | Through::Output(a, _) => a.name(),
        };
        match self.chain.sums {
            Sums::None => format!("backward_{through}"),
            Sums::Bias => format!("backward_{through}_bias"),
            Sums::Norm => format!("backward_{through}_norm_sums"),
        }
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        use Activation::Relu;
        // The common ones become constants of the loop.
        // SAFETY: passed on.
        unsafe {
            match self.chain.through {
                Through::Nothing => self.block::<S>(tile, io, Through::Nothing),
                Through::Normalised(Relu) => self.block::<S>(tile, io, Through::Normalised(Relu)),
                Through::Output(Relu, ld) => self.block::<S>(tile, io, Through::Output(Relu, ld)),
                through => self.block::<S>(tile, io, through),
            }
        }
    }
}

/// Adds up the first row of the partial sums of all blocks of `map`: the gradient of a bias. Input: sums of `rows` rows.
/// Output: one float per channel.
pub fn total(map: Map, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Total { channels: map.c, blocks: blocks(map).tiles() } }
}

struct Total {
    channels: usize,
    blocks: usize,
}

/// The totals of row `row` of `rows` over all blocks, for the channels `range`.
///
/// # Safety
/// `partial` holds `rows` rows of `channels` floats for every block.
#[inline(always)]
unsafe fn totals(
    partial: *const f32,
    [blocks, rows, row]: [usize; 3],
    channels: usize,
    range: Range<usize>,
) -> [f64; CHANNELS] {
    let mut sums = [0.0f64; CHANNELS];
    for block in 0..blocks {
        // SAFETY: passed on.
        let values = unsafe {
            std::slice::from_raw_parts(partial.add((block * rows + row) * channels + range.start), range.len())
        };
        sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    sums
}

impl Tiled for Total {
    fn name(&self) -> String {
        "total".to_owned()
    }

    fn tiles(&self) -> usize {
        self.channels.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let range = tile * CHANNELS..self.channels.min((tile + 1) * CHANNELS);
        // SAFETY: one row for every block; the output has a float per channel.
        unsafe {
            let sums = totals(io.inputs[0], [self.blocks, 1, 0], self.channels, range.clone());
            range.zip(sums).for_each(|(c, sum)| *io.output.add(c) = sum as f32);
        }
    }
}

/// Which statistics a norm used on the way forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Those of the batch: the gradient flows through them too.
    Batch,
    /// The running ones: constants.
    Running,
}

/// Unites the sums of [`chain`]. Inputs: the partial sums ([`Sums::Norm`]), the table of [`statistics`]. Output: the
/// table of [`backward`] ([`BACKWARD_ROWS`] rows). `also`: the gradients of γ and β, or null.
pub fn backward_statistics(map: Map, statistic: Statistic, isa: Isa) -> impl Kernel {
    Light { isa, kernel: BackwardStatistics { map, statistic, blocks: blocks(map).tiles() } }
}

struct BackwardStatistics {
    map: Map,
    statistic: Statistic,
    blocks: usize,
}

impl Tiled for BackwardStatistics {
    fn name(&self) -> String {
        "backward_statistics".to_owned()
    }

    fn tiles(&self) -> usize {
        self.map.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let channels = self.map.c;
        let range = tile * CHANNELS..channels.min((tile + 1) * CHANNELS);
        // SAFETY: two rows for every block, tables of one float per channel and row; the gradients have one per channel.
        unsafe {
            let sums = totals(io.inputs[0], [self.blocks, 2, 0], channels, range.clone());
            let products = totals(io.inputs[0], [self.blocks, 2, 1], channels, range.clone());
            for (i, c) in range.enumerate() {
                let table = |row: usize| f64::from(*io.inputs[1].add(row * channels + c));
                let (mean, deviation, scale) = (table(MEAN), table(DEVIATION), table(SCALE));
                let aligned = products[i] * deviation;
                let share = match self.statistic {
                    Statistic::Batch => 1.0 / self.map.pixels() as f64,
                    Statistic::Running => 0.0,
                };
                let rows = [scale, -scale * deviation * aligned * share, -scale * sums[i] * share, mean];
                for (row, value) in rows.into_iter().enumerate() {
                    *io.output.add(row * channels + c) = value as f32;
                }
                for (gradient, value) in io.also.into_iter().zip([aligned, sums[i]]) {
                    if !gradient.is_null() {
                        *gradient.add(c) = value as f32;
                    }
                }
            }
        }
    }
}

/// The second pass backward through a norm: `dx = a·dT + b·(x − mean) + c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backward {
    /// `dT`, or the gradient it is computed from, `inputs[0]`.
    pub gradient: Map,
    /// Pixel stride of the norm's input, `inputs[1]`.
    pub input: usize,
    /// How `dT` follows from the gradient: [`Through::Nothing`] if it is `dT` already.
    pub through: Through,
    /// Pixel stride of the gradient of the norm's input, and whether it is added to what is there.
    pub output: (usize, Store),
}

/// Inputs: the gradient; the norm's input; the table of [`statistics`]; the activation's output, if [`Through::Output`];
/// the table of [`backward_statistics`] (`inputs[4]`). The output may be the gradient itself.
pub fn backward(backward: Backward, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Back { backward, blocks: blocks(backward.gradient) } }
}

struct Back {
    backward: Backward,
    blocks: Tiling,
}

impl Back {
    #[inline(always)]
    unsafe fn pixels<S: Simd>(&self, pixels: Range<usize>, io: &Io, through: Through) {
        let Backward { gradient, input, output: (ld, store), .. } = self.backward;
        let c = gradient.c;
        let ld_output = if let Through::Output(_, ld) = through { ld } else { 0 };
        for pixel in pixels {
            for i in (0..c).step_by(S::LANES) {
                // SAFETY: the pixels lie in all maps, the mask keeps to the channels, the tables have a float for each.
                unsafe {
                    let mask = S::mask(S::LANES.min(c - i));
                    let table = |input: usize, row: usize| S::load_masked(io.inputs[input].add(row * c + i), mask);
                    let mut d = S::load_masked(io.inputs[0].add(pixel * gradient.ld + i), mask);
                    let x = S::load_masked(io.inputs[1].add(pixel * input + i), mask);
                    match through {
                        Through::Nothing => {}
                        Through::Input(activation) => d = activation_gradient::<S>(activation, x, d),
                        Through::Normalised(activation) => {
                            let t = S::fma(x, table(2, SCALE), table(2, SHIFT));
                            d = activation_gradient::<S>(activation, t, d);
                        }
                        Through::Output(activation, _) => {
                            let y = S::load_masked(io.inputs[3].add(pixel * ld_output + i), mask);
                            d = output_gradient::<S>(activation, y, d);
                        }
                    }
                    let centred = S::sub(x, table(4, 3));
                    let mut dx = S::fma(table(4, 0), d, S::fma(table(4, 1), centred, table(4, 2)));
                    let to = io.output.add(pixel * ld + i);
                    if store == Store::Add {
                        dx = S::add(dx, S::load_masked(to, mask));
                    }
                    S::store_masked(to, dx, mask);
                }
            }
        }
    }
}

impl Tiled for Back {
    fn name(&self) -> String {
        "backward_norm".to_owned()
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let pixels = self.blocks.range(tile);
        // SAFETY: passed on.
        unsafe {
            match self.backward.through {
                Through::Nothing => self.pixels::<S>(pixels, io, Through::Nothing),
                Through::Normalised(Activation::Relu) => {
                    self.pixels::<S>(pixels, io, Through::Normalised(Activation::Relu));
                }
                through => self.pixels::<S>(pixels, io, through),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::light::testing::{assert_near, maps, nchw, run_tiles, spread, values};
    use crate::kernels::naive::{self, BatchNorm, backward::Statistics as Origin};

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&v| f64::from(v)).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&v| v as f32).collect()
    }

    fn io(inputs: &[&[f32]], output: &mut [f32], also: [&mut [f32]; 2]) -> Io {
        let pointers: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
        let mut io = Io::new(&pointers, output.as_mut_ptr());
        io.also = also.map(|values| if values.is_empty() { std::ptr::null_mut() } else { values.as_mut_ptr() });
        io
    }

    /// A norm, its activation and residual, and everything the oracle says about them.
    struct Case {
        map: Map,
        x: Vec<f32>,
        residual: Vec<f32>,
        dy: Vec<f32>,
        gamma: Vec<f32>,
        beta: Vec<f32>,
        activation: Option<Activation>,
        with_residual: bool,
    }

    impl Case {
        fn new(map: Map, activation: Option<Activation>, with_residual: bool) -> Self {
            let len = nchw(map).len();
            // Far from zero, where squares would cancel.
            let x = values(len, 1).iter().map(|v| v + 50.0).collect();
            let [residual, dy] = [2, 3].map(|seed| values(len, seed));
            let [gamma, beta] = [4, 5].map(|seed| values(map.c, seed));
            Case { map, x, residual, dy, gamma, beta, activation, with_residual }
        }

        /// y, dT, dx, dγ, dβ in f64.
        fn expected(&self) -> [Vec<f64>; 5] {
            let (shape, x) = (nchw(self.map), wide(&self.x));
            let [mean, variance] = naive::batch_statistics(&x, shape);
            let (gamma, beta) = (wide(&self.gamma), wide(&self.beta));
            let norm = BatchNorm { mean: &mean, variance: &variance, affine: Some((&gamma, &beta)), epsilon: 1e-5 };
            let mut t = naive::batch_norm(&x, shape, norm);
            if self.with_residual {
                t = naive::add(&t, &wide(&self.residual));
            }
            let y = self.activation.map_or(t.clone(), |a| naive::activation(&t, a));
            let dy = wide(&self.dy);
            let dt = self.activation.map_or(dy.clone(), |a| naive::backward::activation(&t, a, &dy));
            let back = naive::backward::batch_norm(&x, shape, norm, &dt, Origin::Batch);
            [y, dt, back.input, back.scale, back.shift]
        }

        fn check(&self, isa: Isa) {
            let map = self.map;
            let other = Map::new([map.n, map.h, map.w, map.c], map.c + 1);
            let [y64, dt64, dx64, scale64, shift64] = self.expected();
            let what = format!("{map:?} {:?} {}", self.activation, isa.name());
            let (x, residual, dy) = (spread(&self.x, map), spread(&self.residual, other), spread(&self.dy, other));
            let mut partial = vec![f32::NAN; partial_len(map, 2)];
            let mut table = vec![f32::NAN; TABLE_ROWS * map.c];
            run_tiles(&moments(map, isa), &io(&[&x], &mut partial, [&mut [], &mut []]));
            let inputs = [&partial, &self.gamma, &self.beta].map(|v| &v[..]);
            run_tiles(&statistics(map, 1e-5, isa), &io(&inputs, &mut table, [&mut [], &mut []]));
            let ld = self.with_residual.then_some(other.ld);
            let mut y = vec![f32::NAN; map.extent()];
            let kernel = apply(map, map, ld, self.activation, isa);
            run_tiles(&kernel, &io(&[&x, &table, &residual], &mut y, [&mut [], &mut []]));
            assert_near(&y, &spread(&narrow(&y64), map), 2e-4, &what);

            let through = match self.activation {
                None => Through::Nothing,
                Some(activation) if self.with_residual => Through::Output(activation, map.ld),
                Some(activation) => Through::Normalised(activation),
            };
            let mut dt = spread(&values(nchw(map).len(), 9), map);
            let old = dt.clone();
            let back =
                Chain { gradient: other, input: map.ld, through, sums: Sums::Norm, store: Some((map.ld, Store::Add)) };
            let mut partial = vec![f32::NAN; partial_len(map, 2)];
            run_tiles(&chain(back, isa), &io(&[&dy, &x, &table, &y], &mut partial, [&mut dt, &mut []]));
            let wanted = spread(&narrow(&dt64), map);
            let sum: Vec<f32> = wanted.iter().zip(&old).map(|(a, b)| a + b).collect();
            assert_near(&dt, &sum, 2e-4, &what);

            let mut coefficients = vec![f32::NAN; BACKWARD_ROWS * map.c];
            let [mut scale, mut shift] = [0.0, 0.0].map(|v| vec![v; map.c]);
            let kernel = backward_statistics(map, Statistic::Batch, isa);
            run_tiles(&kernel, &io(&[&partial, &table], &mut coefficients, [&mut scale, &mut shift]));
            let size = 1e-5 * (map.pixels() as f32).max(1.0);
            assert_near(&scale, &narrow(&scale64), 2e-4 + size, &what);
            assert_near(&shift, &narrow(&shift64), 2e-4 + size, &what);
            let mut dx = vec![f32::NAN; map.extent()];
            let kernel =
                backward(Backward { gradient: other, input: map.ld, through, output: (map.ld, Store::Set) }, isa);
            run_tiles(&kernel, &io(&[&dy, &x, &table, &y, &coefficients], &mut dx, [&mut [], &mut []]));
            assert_near(&dx, &spread(&narrow(&dx64), map), 1e-3, &what);
        }
    }

    #[test]
    fn norms_agree_with_the_oracle_forward_and_back() {
        use Activation::{HardSwish, Relu, Relu6, Silu};
        for map in maps().filter(|map| map.pixels() > 2) {
            for &isa in Isa::available() {
                for activation in [None, Some(Relu), Some(Silu), Some(HardSwish), Some(Relu6)] {
                    Case::new(map, activation, false).check(isa);
                }
                for activation in [None, Some(Relu), Some(Relu6)] {
                    Case::new(map, activation, true).check(isa);
                }
            }
        }
    }

    #[test]
    fn running_statistics_are_constants_on_the_way_back() {
        let map = Map::new([2, 3, 4, 21], 24);
        let case = Case::new(map, None, false);
        let (mean, variance) = (values(21, 6), values(21, 7).iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>());
        let (mean64, variance64, gamma64, beta64) = (wide(&mean), wide(&variance), wide(&case.gamma), wide(&case.beta));
        let norm = BatchNorm { mean: &mean64, variance: &variance64, affine: Some((&gamma64, &beta64)), epsilon: 1e-3 };
        let back = naive::backward::batch_norm(&wide(&case.x), nchw(map), norm, &wide(&case.dy), Origin::Running);
        let (x, dy) = (spread(&case.x, map), spread(&case.dy, map));
        for &isa in Isa::available() {
            let mut table = vec![f32::NAN; TABLE_ROWS * 21];
            let inputs = [&mean, &variance, &case.gamma, &case.beta].map(|v| &v[..]);
            run_tiles(&fixed_statistics(map, 1e-3, isa), &io(&inputs, &mut table, [&mut [], &mut []]));
            let mut partial = vec![f32::NAN; partial_len(map, 2)];
            let through = Through::Nothing;
            let sums = Chain { gradient: map, input: map.ld, through, sums: Sums::Norm, store: None };
            run_tiles(&chain(sums, isa), &io(&[&dy, &x, &table], &mut partial, [&mut [], &mut []]));
            let mut coefficients = vec![f32::NAN; BACKWARD_ROWS * 21];
            let kernel = backward_statistics(map, Statistic::Running, isa);
            run_tiles(&kernel, &io(&[&partial, &table], &mut coefficients, [&mut [], &mut []]));
            let mut dx = vec![f32::NAN; map.extent()];
            let last = Backward { gradient: map, input: map.ld, through, output: (map.ld, Store::Set) };
            run_tiles(&backward(last, isa), &io(&[&dy, &x, &table, &[], &coefficients], &mut dx, [&mut [], &mut []]));
            assert_near(&dx, &spread(&narrow(&back.input), map), 1e-5, isa.name());
        }
    }

    #[test]
    fn sums_of_biases_and_plain_activations_agree_with_the_oracle() {
        use Activation::*;
        for map in maps() {
            let shape = nchw(map);
            let (x, dy) = (values(shape.len(), 1), values(shape.len(), 2));
            let (xm, dm) = (spread(&x, map), spread(&dy, map));
            for function in [Relu, Relu6, Silu, Sigmoid, HardSwish, HardSigmoid] {
                let expected = naive::backward::activation(&x, function, &dy);
                let total_expected = naive::backward::channel_sums(&wide(&expected), shape);
                let y = spread(&naive::activation(&x, function), map);
                for &isa in Isa::available() {
                    let what = format!("{function:?} {map:?} {}", isa.name());
                    let mut ways = vec![Through::Input(function)];
                    if crate::simd::has_output_gradient(function) {
                        ways.push(Through::Output(function, map.ld));
                    }
                    for through in ways {
                        let store = Some((map.ld, Store::Set));
                        let back = Chain { gradient: map, input: map.ld, through, sums: Sums::Bias, store };
                        let mut partial = vec![f32::NAN; partial_len(map, 1)];
                        let mut dt = vec![f32::NAN; map.extent()];
                        run_tiles(&chain(back, isa), &io(&[&dm, &xm, &[], &y], &mut partial, [&mut dt, &mut []]));
                        assert_near(&dt, &spread(&expected, map), 2e-6, &what);
                        let mut sums = vec![f32::NAN; map.c];
                        run_tiles(&total(map, isa), &io(&[&partial], &mut sums, [&mut [], &mut []]));
                        assert_near(&sums, &narrow(&total_expected), 1e-5, &what);
                    }
                }
            }
        }
    }
}
