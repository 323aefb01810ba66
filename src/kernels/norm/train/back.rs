//! The passes over maps of the way back through an activation and a batch norm; what lies between them is in
//! [`totals`](super::totals).

use super::gate::{Gate, gate_of, pieces};
use super::{MEAN, RUN, SCALE, SHIFT, ahead, block, blocks, runs};
use crate::activation::Activation;
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Store, Stripes};
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
    /// [`deferred_statistics`](super::deferred_statistics) adds up.
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

/// Whether a pass reads the norm's input.
#[inline(always)]
fn reads_input(through: Through, sums: Sums) -> bool {
    matches!(through, Through::Normalised(_) | Through::Input(_)) || sums == Sums::Norm
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

/// `dT = dy · act'(t)` and its sums over every block of so many pixels. Inputs: the gradient; the norm's input; the table of
/// [`statistics`](super::statistics); the activation's output (see [`Through`] for which are read) or the gate; with a gate
/// as `inputs[5]` the gradient of the means. Output: [`partial_len`](super::partial_len) floats of sums.
/// `also[0]`: `dT`, if it is stored.
pub fn chain(chain: Chain, block: usize, isa: Isa) -> impl Kernel {
    assert!(chain.gate.is_none() || !matches!(chain.through, Through::Output(..)), "{chain:?} reads two maps as one");
    Light { isa, kernel: Chained { chain, blocks: blocks(chain.gradient, block) } }
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
        let (reads_input, centred) = (reads_input(through, chain.sums), chain.sums == Sums::Norm);
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
                            d = S::add(d, load(at.store, v));
                        }
                        if V == 1 { S::store_masked(to, d, mask) } else { S::store(to, d) }
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

    fn stripes(&self) -> Option<Stripes> {
        Some(self.blocks.stripes())
    }

    fn reads(&self) -> [Option<(usize, usize)>; 2] {
        let input = reads_input(self.chain.through, self.chain.sums).then_some((1, self.chain.input));
        let output = if let Through::Output(_, ld) = self.chain.through { Some((3, ld)) } else { None };
        if input.is_none() { [output, None] } else { [input, output] }
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
/// [`Through::Output`], or the gate; with a gate as `inputs[5]` the gradient of the means; the table of [`backward_statistics`](super::backward_statistics) (`inputs[4]`). The output may be the gradient or the norm's input itself.
pub fn backward(backward: Backward, isa: Isa) -> impl Kernel {
    let gated = backward.gate.is_some();
    assert!(!gated || !matches!(backward.through, Through::Output(..)), "{backward:?} reads two maps as one");
    Light { isa, kernel: Back { backward, blocks: blocks(backward.gradient, block(backward.gradient)) } }
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
