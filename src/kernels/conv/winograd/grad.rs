//! The gradient of 3×3 weights with a quarter of the multiplications, or with stride 2 with 25 of 36, of 5×5 weights with 36 of
//! 100, and of those of a [stem](super::super::stem()) that folds its image.
//!
//! `Y = Aᵀ[U ⊙ V]A` with `U = G·g·Gᵀ` and `V = Bᵀ·d·B` is linear in the taps `g`, so the way back is the transpose of the way
//! forward:
//!
//! ```text
//! dg = Gᵀ [ Σ over squares of (A·dY·Aᵀ) ⊙ V ] G
//! ```
//!
//! For each of the (m + 2)² positions the sum over squares is an outer product of all output with all input channels, as
//! the sum over pixels is for the plain form, but with m²/(m + 2)² as many terms for nine taps' worth of weights.

#![allow(unsafe_code, reason = "runs transforms and microkernels on raw maps")]

use super::filters::{SIDE, gather};
use super::points::{F2, F2Five, F2Strided, F3Four, F4, MOST_IN, MOST_TAPS, Points, Turned};
use super::transform::{Before, OnLoad, Runs, Squares, Turn};
use super::{Form, Kept, LEAST_CHANNELS, ROOM};
use crate::kernels::conv::grad::{pointwise::Source, weight::WeightGradient};
use crate::kernels::conv::weights::{Direction, Order};
use crate::kernels::conv::{ConvSpec, stem};
use crate::kernels::gemm::outer::{Ahead, Block, Outer, Queue, Right, Side};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Store};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;
use std::marker::PhantomData;
use std::ops::Range;

/// The form that is faster than the plain sum, if one is; by shape alone.
pub fn profitable(spec: &ConvSpec) -> Option<Form> {
    let form = [Form::F4, Form::F2Five, Form::F2Strided].into_iter().find(|form| form.applies(spec))?;
    if spec.input.c.min(spec.output.c) < LEAST_CHANNELS {
        return None;
    }
    let squares = spec.output.n * form.across(spec).iter().product::<usize>();
    (squares >= 32 && form.pays(squares, spec)).then_some(form)
}

/// The gradient of the weights of a convolution that [`winograd`](super::winograd) could compute in this form: F2, F4,
/// F2Five or F2Strided.
pub fn weight_gradient(spec: ConvSpec, form: Form, source: Source, isa: Isa) -> WeightGradient {
    assert!(form.applies(&spec), "{form:?} of {spec:?}");
    let order = Direction::Forward.order(&spec);
    match form {
        Form::F2 => build::<F2>(spec, form, source, order, isa),
        Form::F4 => build::<F4>(spec, form, source, order, isa),
        Form::F2Five => build::<F2Five>(spec, form, source, order, isa),
        Form::F2Strided => build::<F2Strided>(spec, form, source, order, isa),
        other => panic!("{other:?} has no way back to the weights"),
    }
}

/// The same of a [stem](super::super::stem()) whose image it folds, if that is faster: without strides it is not, since what is
/// transformed is mostly the gradient.
pub fn weight_gradient_folded(spec: ConvSpec, isa: Isa) -> Option<WeightGradient> {
    let (of, folded) = stem::folded(&spec).filter(|_| spec.window.stride != [1, 1])?;
    super::profitable(&of, Kept::Learned)?;
    let order = Direction::Forward.order(&of).folded(folded);
    Some(match of.window.kernel {
        [5, _] => build::<F2Five>(of, Form::F2Five, Source::Ready, order, isa),
        [4, _] => build::<F3Four>(of, Form::F3Four, Source::Ready, order, isa),
        _ => build::<F4>(of, Form::F4, Source::Ready, order, isa),
    })
}

fn build<P: Turned>(spec: ConvSpec, form: Form, source: Source, order: Order, isa: Isa) -> WeightGradient {
    let kernel = Gradient::<P>::new(spec, form, source, order, isa);
    let (slices, sums) = (kernel.slices, form.products() * spec.output.c * spec.input.c);
    let gather = Gather::<P> { slices, back: kernel.back, points: PhantomData };
    let kernel = Box::new(Light { isa, kernel });
    match slices {
        1 => WeightGradient { kernel, partial: 0, gather: None },
        _ => WeightGradient { kernel, partial: slices * sums, gather: Some(Box::new(Light { isa, kernel: gather })) },
    }
}

struct Gradient<P> {
    spec: ConvSpec,
    form: Form,
    source: Source,
    back: Back,
    outer: Outer,
    /// Squares down and across an image.
    across: [usize; 2],
    /// Slices of the squares, each with sums of its own. The sums of a single slice are transformed back where they are.
    slices: usize,
    /// Parts of the output channels.
    parts: usize,
    /// Squares of a block.
    block: usize,
    /// Floats from square to square of V and Z, and from position to position.
    ld: [usize; 2],
    stride: [usize; 2],
    /// What lies outside.
    zero: AlignedBuf,
    points: PhantomData<P>,
}

/// Floats of V that stay in the second cache.
const V_FLOATS: usize = 96 << 10;
/// Squares of a block; the more where V does not stay there anyway.
const SQUARES: [usize; 2] = [32, 64];
/// Floats of sums over all slices.
const SUMS: usize = 3 << 20;
/// Floats of the sums of a part.
const SUMS_OF_PART: usize = 3 << 19;
/// Slices for a few threads.
const SLICES: usize = 8;
/// Parts for a few threads. Each transforms all inputs.
const PARTS: usize = 4;
/// Fewer output channels do not pay for the inputs they transform.
const LEAST_OUTPUTS: usize = 48;

impl<P: Turned> Gradient<P> {
    fn new(spec: ConvSpec, form: Form, source: Source, order: Order, isa: Isa) -> Self {
        let across = form.across(&spec);
        let (squares, products) = (spec.output.n * across[0] * across[1], form.products());
        let sums = products * spec.input.c * spec.output.c;
        let slices = (SUMS / sums).clamp(1, SLICES).min(squares.div_ceil(SQUARES[0]));
        let parts = PARTS.div_ceil(slices).max(sums / SUMS_OF_PART).min(spec.output.c / LEAST_OUTPUTS).max(1);
        let fitting = V_FLOATS / (products * spec.input.c);
        let block = if fitting < SQUARES[0] { SQUARES[1] } else { fitting.min(SQUARES[1]) };
        let block = block.min(squares.div_ceil(slices));
        let ld = [spec.input.c, spec.output.c.div_ceil(parts)].map(|c| c.next_multiple_of(16));
        // An odd number of cache lines: positions must not fall into the same set of the first cache.
        let room = order.folded.map_or(0, |_| ROOM);
        let stride = ld.map(|ld| ((block * ld).div_ceil(16) | 1) * 16 + room);
        let zero = AlignedBuf::zeros(Runs::of(spec.input, order.folded).reach().max(spec.output.c));
        let (channels, outer) = ([spec.output.c, spec.input.c], Outer::new(isa));
        let [plain, turned] = [channels, [channels[1], channels[0]]].map(|size| outer.cost(size));
        Gradient {
            spec,
            form,
            source,
            back: Back { order, channels, turned: 10 * turned < 9 * plain },
            outer,
            across,
            slices,
            parts,
            block,
            ld,
            stride,
            zero,
            points: PhantomData,
        }
    }

    /// Floats of the tables of pointers, of V, of Z, and of sums that no other kernel transforms back.
    fn parts_of_scratch(&self) -> [usize; 4] {
        let products = self.form.products();
        let sums = match self.slices {
            1 => products * self.spec.output.c.div_ceil(self.parts) * self.spec.input.c,
            _ => 0,
        };
        let tables = (4 * self.block).next_multiple_of(16);
        [tables, products * self.stride[0], products * self.stride[1], sums]
    }

    fn cut(all: usize, i: usize, parts: usize) -> Range<usize> {
        i * all / parts..(i + 1) * all / parts
    }
}

impl<P: Turned> Tiled for Gradient<P> {
    fn name(&self) -> String {
        let m = self.form.outputs();
        let norm = if self.source == Source::Ready { "" } else { "norm_" };
        let folded = if self.back.order.folded.is_some() { "folded_" } else { "" };
        format!("weight_gradient_{norm}{folded}winograd_{m}x{m}_{}", self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts
    }

    fn scratch(&self) -> usize {
        self.parts_of_scratch().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (slice, part) = (tile / self.parts, tile % self.parts);
        let (inputs, outputs, products) = (self.spec.input.c, self.spec.output.c, self.form.products());
        let columns = Self::cut(outputs, part, self.parts);
        let all = Self::cut(self.spec.output.n * self.across[0] * self.across[1], slice, self.slices);
        let [table, v, z, _] = self.parts_of_scratch();
        let (table, rest) = scratch.split_at_mut(table);
        let (v, rest) = rest.split_at_mut(v);
        let (z, sums) = rest.split_at_mut(z);
        let (tables, v, z) = (table.as_mut_ptr().cast::<*const f32>(), v.as_mut_ptr(), z.as_mut_ptr());
        let tables = [tables, tables.wrapping_add(self.block)];
        // Sums of this tile's output channels lie in the scratch, or with those of the other parts; from position to position
        // and from row to row of the product there are so many floats.
        let all_outputs = if self.slices == 1 { columns.len() } else { outputs };
        let (apart, ld_c) = (all_outputs * inputs, if self.back.turned { all_outputs } else { inputs });
        let first = columns.start * if self.back.turned { 1 } else { inputs };
        let sums = match self.slices {
            1 => sums.as_mut_ptr(),
            _ => io.output.wrapping_add(slice * products * apart + first),
        };
        let squares =
            Squares { spec: &self.spec, across: self.across, zero: self.zero.as_ptr(), folded: self.back.order.folded };
        let blocks = all.len().div_ceil(self.block).max(1);
        for block in 0..blocks {
            let tiles = all.start + block * all.len() / blocks..all.start + (block + 1) * all.len() / blocks;
            let count = tiles.len();
            // SAFETY: V and Z have room for a block of squares at every position; the sums of this slice and these output
            // channels are this tile's alone.
            unsafe {
                let [ld, ld_z] = self.ld;
                let [stride, stride_z] = self.stride;
                let input = io.inputs[0];
                let norm = match self.source {
                    Source::Ready => None,
                    Source::Norm(clamp) => Some(OnLoad::new(io.inputs[2], inputs, clamp)),
                };
                let seen = tiles.clone();
                Before::<P> { squares, tiles: seen, input, norm, v, ld, stride, points: PhantomData }.run::<S>();
                let gradient = io.inputs[1];
                let turn = Turn::<P> {
                    squares,
                    tiles,
                    columns: columns.clone(),
                    gradient,
                    z,
                    ld: ld_z,
                    stride: stride_z,
                    points: PhantomData,
                };
                turn.run::<S>();
                for position in 0..products {
                    for square in 0..count {
                        *tables[0].add(square) = z.add(position * stride_z + square * ld_z);
                        *tables[1].add(square) = v.add(position * stride + square * ld);
                    }
                    let [z_side, v_side] = tables.map(|table| Side { pixels: table.cast_const(), skip: 0 });
                    let (a, b, size) = match self.back.turned {
                        true => (v_side, z_side, [inputs, columns.len()]),
                        false => (z_side, v_side, [columns.len(), inputs]),
                    };
                    // The next position's sides have left the second cache since they were made.
                    let next = |of: *const f32, c: usize, ld: usize, stride: usize| match position + 1 < products {
                        true => Ahead::new(of.wrapping_add((position + 1) * stride), count, [c, ld]),
                        false => Ahead::NONE,
                    };
                    self.outer.run(&Block {
                        a,
                        b: Right::Lies(b),
                        pixels: count,
                        c: sums.wrapping_add(position * apart),
                        ld_c,
                        size,
                        store: if block == 0 { Store::Set } else { Store::Add },
                        ahead: Queue::of([next(v, inputs, ld, stride), next(z, columns.len(), ld_z, stride_z)]),
                    });
                }
            }
        }
        if self.slices == 1 {
            let inputs = 0..inputs;
            let (rows, across) = if self.back.turned { (inputs, columns) } else { (columns, inputs) };
            // SAFETY: sums for every input channel lie at every position; the taps of these output channels are this tile's
            // alone.
            unsafe { self.back.taps::<P>(rows, across, sums, [1, 0, apart, ld_c], io.output) };
        }
    }
}

/// Adds up the slices and transforms the sums back: `dg = Gᵀ·dU·G`.
struct Gather<P> {
    slices: usize,
    back: Back,
    points: PhantomData<P>,
}

impl<P: Turned> Tiled for Gather<P> {
    fn name(&self) -> String {
        "gather_winograd".to_owned()
    }

    fn tiles(&self) -> usize {
        let [rows, across] = self.back.size();
        rows.div_ceil(Self::rows(across))
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let [rows, across] = self.back.size();
        let (per_tile, apart) = (Self::rows(across), rows * across);
        let mine = tile * per_tile..rows.min((tile + 1) * per_tile);
        // SAFETY: every slice has a sum for every position and pair of channels, and every pair its taps.
        unsafe {
            let sums = io.inputs[0].add(mine.start * across);
            let strides = [self.slices, P::IN * P::IN * apart, apart, across];
            self.back.taps::<P>(mine, 0..across, sums, strides, io.output);
        }
    }
}

impl<P> Gather<P> {
    /// Rows of a tile.
    fn rows(across: usize) -> usize {
        ((1 << 12) / across).max(1)
    }
}

/// The way from the sums of positions to the gradient.
#[derive(Clone, Copy)]
struct Back {
    /// Where taps lie.
    order: Order,
    /// Out and in.
    channels: [usize; 2],
    /// Whether input channels are the rows of the products: where these are so few that a row of them would leave registers
    /// empty.
    turned: bool,
}

impl Back {
    /// Rows and columns of the products.
    fn size(&self) -> [usize; 2] {
        let [outputs, inputs] = self.channels;
        if self.turned { [inputs, outputs] } else { [outputs, inputs] }
    }

    /// The taps of the given rows and columns of the products, whose sums begin at `sums`; there are so many slices, and so
    /// many floats from slice to slice, from position to position and from row to row. `to` is the whole gradient.
    ///
    /// # Safety
    /// All these sums are readable, the taps writable.
    #[inline(always)]
    unsafe fn taps<P: Turned>(
        &self,
        rows: Range<usize>,
        across: Range<usize>,
        sums: *const f32,
        [slices, slice_apart, apart, ld]: [usize; 4],
        to: *mut f32,
    ) {
        for (i, row) in rows.enumerate() {
            for first in across.clone().step_by(SIDE) {
                let count = SIDE.min(across.end - first);
                let mut square = [[0.0f32; SIDE]; MOST_IN * MOST_IN];
                for slice in 0..slices {
                    for (position, square) in square.iter_mut().enumerate().take(P::IN * P::IN) {
                        // SAFETY: passed on.
                        let from = unsafe {
                            let at = slice * slice_apart + position * apart + i * ld + first - across.start;
                            std::slice::from_raw_parts(sums.add(at), count)
                        };
                        square.iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
                    }
                }
                let taps = back::<P>(&square);
                // SAFETY: passed on.
                unsafe {
                    match self.order.folded {
                        None if !self.turned => {
                            let to = to.add(row * self.order.output + first * self.order.input);
                            let to = std::slice::from_raw_parts_mut(to, count * P::TAPS * P::TAPS);
                            for (n, to) in to.chunks_exact_mut(P::TAPS * P::TAPS).enumerate() {
                                to.iter_mut().zip(&taps).for_each(|(to, tap)| *to = tap[n]);
                            }
                        }
                        _ => self.scatter::<P>(&taps, [row, first, count], to),
                    }
                }
            }
        }
    }

    /// Writes taps that do not lie together: those of `count` pairs from column `first` of a row on.
    ///
    /// # Safety
    /// The taps of these pairs are writable; `to` is the whole gradient.
    unsafe fn scatter<P: Points>(
        &self,
        taps: &[[f32; SIDE]; MOST_TAPS * MOST_TAPS],
        [row, first, count]: [usize; 3],
        to: *mut f32,
    ) {
        for n in 0..count {
            let (output, input) = if self.turned { (first + n, row) } else { (row, first + n) };
            for tap in 0..P::TAPS * P::TAPS {
                let at = match self.order.folded {
                    None => Some(input * self.order.input + tap),
                    Some(folded) => folded.at(input, tap),
                };
                if let Some(at) = at {
                    // SAFETY: passed on.
                    unsafe { *to.add(output * self.order.output + at) = taps[tap][n] };
                }
            }
        }
    }
}

/// `Gᵀ·dU·G` of up to 16 pairs.
#[inline(always)]
fn back<P: Turned>(sums: &[[f32; SIDE]; MOST_IN * MOST_IN]) -> [[f32; SIDE]; MOST_TAPS * MOST_TAPS] {
    // Rows of Gᵀ·dU.
    let mut rows = [[[0.0; SIDE]; MOST_IN]; MOST_TAPS];
    for j in 0..P::IN {
        let mut column = [[0.0; SIDE]; MOST_IN];
        (0..P::IN).for_each(|i| column[i] = sums[i * P::IN + j]);
        let column = gather::<P>(&column);
        (0..P::TAPS).for_each(|a| rows[a][j] = column[a]);
    }
    let mut taps = [[0.0f32; SIDE]; MOST_TAPS * MOST_TAPS];
    for a in 0..P::TAPS {
        let row = gather::<P>(&rows[a]);
        (0..P::TAPS).for_each(|b| taps[a * P::TAPS + b] = row[b]);
    }
    taps
}
