//! The way back through an activation and a batch norm.

use super::gate::{Gate, gate_of, pieces};
use super::{CHANNELS, DEVIATION, MEAN, RUN, SCALE, SHIFT, ahead, blocks, runs};
use crate::activation::Activation;
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Store};
use crate::simd::{Isa, Simd, activation_gradient, output_gradient};
use std::ops::Range;

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
    /// The gradient of the activation's output, `inputs[0]`, or of what a gate made of that.
    pub gradient: Map,
    /// The gate behind the activation; not with [`Through::Output`], whose input it takes.
    pub gate: Option<Gate>,
    /// Pixel stride of the norm's input, `inputs[1]`; needed with [`Sums::Norm`] and [`Through::Normalised`].
    pub input: usize,
    /// The activation.
    pub through: Through,
    /// What is summed up.
    pub sums: Sums,
    /// Where `dT` is stored besides, `also[0]`: its pixel stride. It may be the gradient itself.
    pub store: Option<(usize, Store)>,
    /// Whether what is stored is `scale · dT`: what a norm's input gets but for a function of its channel and value, which
    /// [`deferred_statistics`] adds up.
    pub scaled: bool,
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
/// [`statistics`](super::statistics); the activation's output (see [`Through`] for which are read) or the gate; with a gate
/// as `inputs[5]` the gradient of the means. Output: [`partial_len`](super::partial_len) floats of sums.
/// `also[0]`: `dT`, if it is stored.
pub fn chain(chain: Chain, isa: Isa) -> impl Kernel {
    assert!(chain.gate.is_none() || !matches!(chain.through, Through::Output(..)), "{chain:?} reads two maps as one");
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
        (image, pixels): (usize, Range<usize>),
        io: &Io,
        (c, lanes): (usize, usize),
        (to, sums): (*mut f32, Store),
        (gate, through): (Option<Gate>, Through),
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
                } else if chain.scaled {
                    scale[v] = row(SCALE, v);
                }
            }
            let [factor, summand] = match gate {
                Some(gate) => gate_of::<S, V>(gate, chain.gradient, io, image, (c, lanes)),
                None => [[S::zero(); V]; 2],
            };
            let (mut sum, mut product) = ([S::zero(); V], [S::zero(); V]);
            for pixel in pixels {
                let at = Pixel::of(chain, io, pixel, c);
                let next = Pixel::of(chain, io, pixel + RUN, c);
                for v in 0..V {
                    S::prefetch_far(next.gradient.wrapping_add(v * S::LANES));
                    if reads_input {
                        S::prefetch_far(next.input.wrapping_add(v * S::LANES));
                    }
                    if let Through::Output(..) = through {
                        S::prefetch_far(next.output.wrapping_add(v * S::LANES));
                    }
                    let mut d = load(at.gradient, v);
                    if gate.is_some() {
                        d = S::fma(d, factor[v], summand[v]);
                    }
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
                        if chain.scaled {
                            d = S::mul(d, scale[v]);
                        }
                        if store == Store::Add {
                            S::prefetch_far(next.store.wrapping_add(v * S::LANES));
                            d = S::add(d, S::load_masked(to, mask));
                        }
                        S::store_masked(to, d, mask);
                    }
                }
            }
            for v in 0..V {
                let to = to.wrapping_add(v * S::LANES);
                let rows = [(chain.sums != Sums::None, to, sum[v]), (centred, to.wrapping_add(channels), product[v])];
                for (_, to, mut sum) in rows.into_iter().filter(|(wanted, ..)| *wanted) {
                    if sums == Store::Add {
                        sum = S::add(sum, S::load_masked(to, mask));
                    }
                    S::store_masked(to, sum, mask);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn block<S: Simd>(&self, tile: usize, io: &Io, gate: Option<Gate>, through: Through) {
        let map = self.chain.gradient;
        let (pixels, to) = (self.blocks.range(tile), tile * self.chain.sums.rows() * map.c);
        for piece in runs(pixels.clone()).flat_map(|run| pieces(run, map, gate)) {
            let sums = if piece.1.start == pixels.start { Store::Set } else { Store::Add };
            let mut c = 0;
            while c < map.c {
                let to = (io.output.wrapping_add(to + c), sums);
                // SAFETY: passed on.
                unsafe {
                    if c + 4 * S::LANES <= map.c {
                        self.columns::<S, 4>(piece.clone(), io, (c, S::LANES), to, (gate, through));
                        c += 4 * S::LANES;
                    } else {
                        let lanes = S::LANES.min(map.c - c);
                        self.columns::<S, 1>(piece.clone(), io, (c, lanes), to, (gate, through));
                        c += S::LANES;
                    }
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
        let gate = if self.chain.gate.is_some() { "gate_" } else { "" };
        match self.chain.sums {
            Sums::None => format!("backward_{gate}{through}"),
            Sums::Bias => format!("backward_{gate}{through}_bias"),
            Sums::Norm => format!("backward_{gate}{through}_norm_sums"),
        }
    }

    fn tiles(&self) -> usize {
        self.blocks.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        use Activation::{Relu, Silu};
        // The common ones become constants of the loop.
        // SAFETY: passed on.
        unsafe {
            match (self.chain.gate, self.chain.through) {
                (None, Through::Nothing) => self.block::<S>(tile, io, None, Through::Nothing),
                (None, Through::Normalised(Relu)) => self.block::<S>(tile, io, None, Through::Normalised(Relu)),
                (None, Through::Normalised(Silu)) => self.block::<S>(tile, io, None, Through::Normalised(Silu)),
                (None, Through::Output(Relu, ld)) => self.block::<S>(tile, io, None, Through::Output(Relu, ld)),
                (Some(gate), Through::Nothing) => self.block::<S>(tile, io, Some(gate), Through::Nothing),
                (Some(gate), Through::Normalised(Silu)) => {
                    self.block::<S>(tile, io, Some(gate), Through::Normalised(Silu));
                }
                (gate, through) => self.block::<S>(tile, io, gate, through),
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

/// Unites the sums of [`chain`]. Inputs: the partial sums ([`Sums::Norm`]), the table of [`statistics`](super::statistics). Output: the
/// table of [`backward`] ([`BACKWARD_ROWS`](super::BACKWARD_ROWS) rows). `also`: the gradients of γ and β, or null.
pub fn backward_statistics(map: Map, statistic: Statistic, isa: Isa) -> impl Kernel {
    let to = Coefficients::Own;
    Light { isa, kernel: BackwardStatistics { map, statistic, blocks: blocks(map).tiles(), to } }
}

/// As [`backward_statistics`] for a [`scaled`](Chain::scaled) chain: what is left for the gradient of the norm's input,
/// `b·(x − mean) + c`, in the form of a table of [`backward`] whose `a` is 1 and whose rows are `ld` apart. It is set, or added
/// to what norms of the same map have left before.
pub fn deferred_statistics(map: Map, statistic: Statistic, (ld, store): (usize, Store), isa: Isa) -> impl Kernel {
    let to = Coefficients::Deferred(ld, store);
    Light { isa, kernel: BackwardStatistics { map, statistic, blocks: blocks(map).tiles(), to } }
}

/// Where the coefficients go.
#[derive(Clone, Copy)]
enum Coefficients {
    /// To a table of the norm's own.
    Own,
    /// To one that norms of the same map share, with rows so far apart.
    Deferred(usize, Store),
}

struct BackwardStatistics {
    map: Map,
    statistic: Statistic,
    blocks: usize,
    to: Coefficients,
}

impl Tiled for BackwardStatistics {
    fn name(&self) -> String {
        match self.to {
            Coefficients::Own => "backward_statistics".to_owned(),
            Coefficients::Deferred(..) => "deferred_statistics".to_owned(),
        }
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
                let [slope, summand] = [-scale * deviation * aligned * share, -scale * sums[i] * share];
                let (apart, rows) = match self.to {
                    Coefficients::Own => (channels, [scale, slope, summand, mean]),
                    Coefficients::Deferred(ld, Store::Set) => (ld, [1.0, slope, summand, mean]),
                    Coefficients::Deferred(ld, Store::Add) => {
                        let before = |row: usize| f64::from(*io.output.add(row * ld + c));
                        // Running statistics have another mean, but no slope.
                        let mean = if self.statistic == Statistic::Batch { mean } else { before(3) };
                        (ld, [1.0, before(1) + slope, before(2) + summand, mean])
                    }
                };
                for (row, value) in rows.into_iter().enumerate() {
                    *io.output.add(row * apart + c) = value as f32;
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
    /// As in [`Chain`]; none if the gradient is `dT` already.
    pub gate: Option<Gate>,
    /// Pixel stride of the norm's input, `inputs[1]`.
    pub input: usize,
    /// How `dT` follows from the gradient: [`Through::Nothing`] if it is `dT` already.
    pub through: Through,
    /// Pixel stride of the gradient of the norm's input, and whether it is added to what is there.
    pub output: (usize, Store),
    /// Floats from row to row of the table of coefficients.
    pub coefficients: usize,
}

/// Inputs: the gradient; the norm's input; the table of [`statistics`](super::statistics); the activation's output, if
/// [`Through::Output`], or the gate; with a gate as `inputs[5]` the gradient of the means; the table of [`backward_statistics`] (`inputs[4]`). The output may be the gradient or the norm's input itself.
pub fn backward(backward: Backward, isa: Isa) -> impl Kernel {
    let gated = backward.gate.is_some();
    assert!(!gated || !matches!(backward.through, Through::Output(..)), "{backward:?} reads two maps as one");
    Light { isa, kernel: Back { backward, blocks: blocks(backward.gradient) } }
}

struct Back {
    backward: Backward,
    blocks: Tiling,
}

impl Back {
    #[inline(always)]
    unsafe fn pixels<S: Simd>(
        &self,
        (image, pixels): (usize, Range<usize>),
        io: &Io,
        gate: Option<Gate>,
        through: Through,
    ) {
        let Backward { gradient, input, output: (ld, store), coefficients, .. } = self.backward;
        let c = gradient.c;
        let ld_output = if let Through::Output(_, ld) = through { ld } else { 0 };
        let ahead = ahead(c, input);
        for pixel in pixels {
            for i in (0..c).step_by(S::LANES) {
                // SAFETY: the pixels lie in all maps, the mask keeps to the channels, the tables have a float for each.
                unsafe {
                    let lanes = S::LANES.min(c - i);
                    let mask = S::mask(lanes);
                    let norm = |row: usize| S::load_masked(io.inputs[2].add(row * c + i), mask);
                    let table = |row: usize| S::load_masked(io.inputs[4].add(row * coefficients + i), mask);
                    if ahead > 0 {
                        let far = pixel + ahead;
                        S::prefetch_far(io.inputs[0].wrapping_add(far * gradient.ld + i));
                        S::prefetch_far(io.inputs[1].wrapping_add(far * input + i));
                        S::prefetch_far(io.output.wrapping_add(far * ld + i));
                    }
                    let mut d = S::load_masked(io.inputs[0].add(pixel * gradient.ld + i), mask);
                    if let Some(gate) = gate {
                        let [[factor], [summand]] = gate_of::<S, 1>(gate, gradient, io, image, (i, lanes));
                        d = S::fma(d, factor, summand);
                    }
                    let x = S::load_masked(io.inputs[1].add(pixel * input + i), mask);
                    match through {
                        Through::Nothing => {}
                        Through::Input(activation) => d = activation_gradient::<S>(activation, x, d),
                        Through::Normalised(activation) => {
                            let t = S::fma(x, norm(SCALE), norm(SHIFT));
                            d = activation_gradient::<S>(activation, t, d);
                        }
                        Through::Output(activation, _) => {
                            let y = S::load_masked(io.inputs[3].add(pixel * ld_output + i), mask);
                            d = output_gradient::<S>(activation, y, d);
                        }
                    }
                    let centred = S::sub(x, table(3));
                    let mut dx = S::fma(table(0), d, S::fma(table(1), centred, table(2)));
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
        use Activation::Relu;
        let Backward { gradient, gate, through, .. } = self.backward;
        for piece in pieces(self.blocks.range(tile), gradient, gate) {
            // SAFETY: passed on.
            unsafe {
                match (gate, through) {
                    (None, Through::Nothing) => self.pixels::<S>(piece, io, None, Through::Nothing),
                    (None, Through::Normalised(Relu)) => self.pixels::<S>(piece, io, None, Through::Normalised(Relu)),
                    (Some(gate), Through::Nothing) => self.pixels::<S>(piece, io, Some(gate), Through::Nothing),
                    (gate, through) => self.pixels::<S>(piece, io, gate, through),
                }
            }
        }
    }
}
