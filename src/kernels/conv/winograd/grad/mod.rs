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

mod back;

use self::back::{Back, Gather};
use super::points::{F2, F2Five, F2Strided, F3Four, F4, Turned};
use super::squares::{Cut, Kinds, Runs, Squares};
use super::transform::{Before, OnLoad, Turn};
use super::{Form, Kept, LEAST_CHANNELS, ROOM};
use crate::kernels::conv::grad::{pointwise::Source, weight::WeightGradient};
use crate::kernels::conv::weights::{Direction, Order};
use crate::kernels::conv::{ConvSpec, stem};
use crate::kernels::gemm::outer::{Ahead, Block, Outer, Queue, Right, Side};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Store};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
use std::marker::PhantomData;
use std::ops::Range;

/// The form that is faster than the plain sum, if one is; by shape alone.
pub fn profitable(spec: &ConvSpec) -> Option<Form> {
    let form = [Form::F4, Form::F2Five, Form::F2Strided].into_iter().find(|form| form.applies(spec))?;
    if spec.input.c.min(spec.output.c) < LEAST_CHANNELS {
        return None;
    }
    let cut = Cut::fitting(form, spec);
    (spec.output.n * cut.squares() >= 32 && Form::pays(cut, spec)).then_some(form)
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
    cut: Cut,
    /// Slices of the squares, each with sums of its own. The sums of a single slice are transformed back where they are.
    slices: usize,
    /// Parts of the output and of the input channels.
    parts: [usize; 2],
    /// Squares of a block.
    block: usize,
    /// Rows and columns of the products that are summed at all positions before the next.
    strip: [usize; 2],
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
/// Floats of V and Z of which a single slice is made at once.
const AT_ONCE: usize = 5 << 18;
/// Rows and columns of sums that stay in the second cache from their products until they are transformed back.
const STRIP: [usize; 2] = [48, 64];
/// Floats of sums over all slices.
const SUMS: usize = 3 << 20;
/// Floats of the sums of a part.
const SUMS_OF_PART: usize = 3 << 19;
/// Slices for a few threads.
const SLICES: usize = 8;
/// Parts for a few threads. Each transforms all that its channels meet.
const PARTS: usize = 4;
/// Fewer channels do not pay for what they make others transform again.
const LEAST_OF_PART: usize = 48;

impl<P: Turned> Gradient<P> {
    fn new(spec: ConvSpec, form: Form, source: Source, order: Order, isa: Isa) -> Self {
        let cut = Cut::fitting(form, &spec);
        let (squares, products) = (spec.output.n * cut.squares(), form.products());
        let (channels, outer) = ([spec.output.c, spec.input.c], Outer::new(isa));
        let sums = products * channels[0] * channels[1];
        let slices = (SUMS / sums).clamp(1, SLICES).min(squares.div_ceil(SQUARES[0]));
        let mut parts = [1, 1];
        let of_part = |parts: [usize; 2]| [0, 1].map(|side| channels[side].div_ceil(parts[side]));
        let at_once = |parts| slices == 1 && products * squares * of_part(parts).iter().sum::<usize>() <= AT_ONCE;
        let enough = |parts: [usize; 2]| {
            let count = parts[0] * parts[1];
            count >= PARTS.div_ceil(slices) && (count >= sums / SUMS_OF_PART || at_once(parts))
        };
        while !enough(parts) {
            let of_part = of_part(parts);
            let side = usize::from(of_part[1] > of_part[0] && order.folded.is_none());
            if of_part[side] < 2 * LEAST_OF_PART {
                break;
            }
            parts[side] *= 2;
        }
        let (at_once, of_part) = (at_once(parts), of_part(parts));
        let fitting = V_FLOATS / (products * of_part[1]);
        let block = if fitting < SQUARES[0] { SQUARES[1] } else { fitting.min(SQUARES[1]) };
        let block = if at_once { squares } else { block.min(squares.div_ceil(slices)) };
        let ld = [of_part[1], of_part[0]].map(|c| c.next_multiple_of(16));
        // An odd number of cache lines: positions must not fall into the same set of the first cache.
        let room = order.folded.map_or(0, |_| ROOM);
        let stride = ld.map(|ld| ((block * ld).div_ceil(16) | 1) * 16 + room);
        let zero = AlignedBuf::zeros(Runs::of(spec.input, order.folded).reach().max(spec.output.c));
        let [plain, turned] = [channels, [channels[1], channels[0]]].map(|size| outer.cost(size));
        let back = Back { order, channels, turned: 10 * turned < 9 * plain };
        let [rows, columns] = if back.turned { [of_part[1], of_part[0]] } else { of_part };
        let strip = if at_once { [rows.min(STRIP[0]), columns.min(STRIP[1])] } else { [rows, columns] };
        Gradient {
            spec,
            form,
            source,
            back,
            outer,
            cut,
            slices,
            parts,
            block,
            strip,
            ld,
            stride,
            zero,
            points: PhantomData,
        }
    }

    /// Floats of the order of squares, of the tables of pointers, of V, of Z, and of sums that no other kernel transforms back.
    fn parts_of_scratch(&self) -> [usize; 5] {
        let products = self.form.products();
        let sums = if self.slices == 1 { products * self.strip[0] * self.strip[1] } else { 0 };
        let [order, tables] = [1, 4].map(|floats| (floats * self.block).next_multiple_of(16));
        [order, tables, products * self.stride[0], products * self.stride[1], sums]
    }

    fn part(all: usize, i: usize, parts: usize) -> Range<usize> {
        i * all / parts..(i + 1) * all / parts
    }
}

impl<P: Turned> Tiled for Gradient<P> {
    fn name(&self) -> String {
        let m = self.form.outputs();
        let norm = self.source.prefix();
        let folded = if self.back.order.folded.is_some() { "folded_" } else { "" };
        format!("weight_gradient_{norm}{folded}winograd_{m}x{m}_{}", self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts[0] * self.parts[1]
    }

    fn scratch(&self) -> usize {
        self.parts_of_scratch().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        4 * self.zero.len()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let [of_outputs, of_inputs] = self.parts;
        let slice = tile / (of_outputs * of_inputs);
        let outputs = Self::part(self.spec.output.c, tile / of_inputs % of_outputs, of_outputs);
        let inputs = Self::part(self.spec.input.c, tile % of_inputs, of_inputs);
        let all = Self::part(self.spec.output.n * self.cut.squares(), slice, self.slices);
        let [order, table, v, z, _] = self.parts_of_scratch();
        let (order, rest) = scratch.split_at_mut(order);
        let (table, rest) = rest.split_at_mut(table);
        let (v, rest) = rest.split_at_mut(v);
        let (z, sums) = rest.split_at_mut(z);
        let (tables, v, z) = (table.as_mut_ptr().cast::<*const f32>(), v.as_mut_ptr(), z.as_mut_ptr());
        let sides = Sides { tables: [tables, tables.wrapping_add(self.block)], v, z };
        let (rows, columns) =
            if self.back.turned { (inputs.clone(), outputs.clone()) } else { (outputs.clone(), inputs.clone()) };
        let blocks = all.len().div_ceil(self.block).max(1);
        for block in 0..blocks {
            let tiles = all.start + block * all.len() / blocks..all.start + (block + 1) * all.len() / blocks;
            // SAFETY: the scratch has room for the order of a block.
            let order = unsafe { std::slice::from_raw_parts_mut(order.as_mut_ptr().cast::<u32>(), tiles.len()) };
            let kinds = self.cut.arrange(tiles, order);
            // SAFETY: V and Z have room for a block of squares at every position.
            unsafe {
                for (part, short) in kinds.parts().into_iter().filter(|(part, _)| !part.is_empty()) {
                    let (v, z) = (v.add(part.start * self.ld[0]), z.add(part.start * self.ld[1]));
                    let channels = [outputs.clone(), inputs.clone()];
                    with_sides!(short, P, self.transform(channels, &order[part], io, [v, z]));
                }
            }
            let store = if block == 0 { Store::Set } else { Store::Add };
            for row in rows.clone().step_by(self.strip[0]) {
                let down = row..rows.end.min(row + self.strip[0]);
                for column in columns.clone().step_by(self.strip[1]) {
                    let along = column..columns.end.min(column + self.strip[1]);
                    let from = [row - rows.start, column - columns.start];
                    let size = [down.len(), along.len()];
                    // SAFETY: the sums of this slice and these channels are this tile's alone, in the scratch if there is one
                    // slice, and so are the taps; the sums are complete behind the last block.
                    unsafe {
                        let sums = match self.slices {
                            1 => Sums { at: sums.as_mut_ptr(), apart: size[0] * size[1], ld: size[1] },
                            _ => self.sums_of(slice, [row, column], io),
                        };
                        self.multiply(&sides, kinds, from, size, sums, store);
                        if self.slices == 1 && block + 1 == blocks {
                            let strides = [sums.apart, sums.ld];
                            self.back.taps::<S, P>(down.clone(), along, sums.at, strides, io.output);
                        }
                    }
                }
            }
        }
    }
}

/// The factors of a block, and room for the pointers to their pixels.
struct Sides {
    tables: [*mut *const f32; 2],
    v: *mut f32,
    z: *mut f32,
}

/// Where a product goes: from position to position and from row to row there are so many floats.
#[derive(Clone, Copy)]
struct Sums {
    at: *mut f32,
    apart: usize,
    ld: usize,
}

impl<P: Turned> Gradient<P> {
    /// Where one of several slices has its sums, from a row and a column of the products on.
    fn sums_of(&self, slice: usize, [row, column]: [usize; 2], io: &Io) -> Sums {
        let [rows, ld] = self.back.size();
        let apart = rows * ld;
        let at = io.output.wrapping_add(slice * self.form.products() * apart + row * ld + column);
        Sums { at, apart, ld }
    }

    /// Makes V and Z of squares of one kind and some output and input channels.
    ///
    /// # Safety
    /// There is room for them, and the maps are those of the convolution.
    unsafe fn transform<Y: Turned, X: Turned>(
        &self,
        [outputs, inputs]: [Range<usize>; 2],
        tiles: &[u32],
        io: &Io,
        [v, z]: [*mut f32; 2],
    ) {
        let (ld, stride, folded) = (self.ld, self.stride, self.back.order.folded);
        let mut spec = self.spec;
        spec.input.c = inputs.len();
        let squares = Squares { spec: &spec, cut: self.cut, zero: self.zero.as_ptr(), folded };
        let norm = match self.source {
            Source::Ready => None,
            Source::Norm(clamp) => Some(OnLoad::new(io.inputs[2], self.spec.input.c, clamp).from(inputs.start)),
        };
        let input = io.inputs[0].wrapping_add(inputs.start);
        // SAFETY: passed on.
        unsafe {
            let v =
                Before::<Y, X> { squares, tiles, input, norm, v, ld: ld[0], stride: stride[0], points: PhantomData };
            self.outer.isa().run(v);
            let (gradient, columns) = (io.inputs[1], outputs);
            let z = Turn::<Y, X> {
                squares,
                tiles,
                columns,
                gradient,
                z,
                ld: ld[1],
                stride: stride[1],
                points: PhantomData,
            };
            self.outer.isa().run(z);
        }
    }

    /// The products of a strip at all positions, from these rows and columns of the tile's on.
    ///
    /// # Safety
    /// V and Z hold these squares, and the sums are writable.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        sides: &Sides,
        kinds: Kinds,
        from: [usize; 2],
        size: [usize; 2],
        sums: Sums,
        store: Store,
    ) {
        let ([ld_v, ld_z], [v_apart, z_apart]) = (self.ld, self.stride);
        // The rows and the columns: where they lie, from square to square and from position to position.
        let [v, z] = [(sides.v, ld_v, v_apart), (sides.z, ld_z, z_apart)];
        let sources = if self.back.turned { [v, z] } else { [z, v] };
        for position in 0..self.form.products() {
            let squares = kinds.having::<P>(position);
            // SAFETY: passed on.
            unsafe {
                for (table, (at, ld, apart)) in sides.tables.into_iter().zip(sources) {
                    for (i, square) in squares.clone().enumerate() {
                        *table.add(i) = at.add(position * apart + square * ld);
                    }
                }
                let [a, b] = [0, 1].map(|side| Side { pixels: sides.tables[side].cast_const(), skip: from[side] });
                // The next position's sides have left the second cache since they were made.
                let next = |side: usize| match position + 1 < self.form.products() {
                    true => {
                        let (at, ld, apart) = sources[side];
                        let squares = kinds.having::<P>(position + 1);
                        let at = at.wrapping_add((position + 1) * apart + squares.start * ld + from[side]);
                        Ahead::new(at, squares.len(), [size[side], ld])
                    }
                    false => Ahead::NONE,
                };
                self.outer.run(&Block {
                    a,
                    b: Right::Lies(b),
                    pixels: squares.len(),
                    c: sums.at.add(position * sums.apart),
                    ld_c: sums.ld,
                    size,
                    store,
                    ahead: Queue::of([next(1), next(0)]),
                });
            }
        }
    }
}
