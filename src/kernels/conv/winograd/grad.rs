//! The gradient of 3×3 weights with a quarter of the multiplications.
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

use super::transform::{Before, F2, F4, MOST_IN, Squares, Turn, Turned};
use super::{Form, LEAST_CHANNELS};
use crate::kernels::conv::ConvSpec;
use crate::kernels::conv::grad::weight::WeightGradient;
use crate::kernels::gemm::outer::{Block, Outer};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Store};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;
use std::marker::PhantomData;
use std::ops::Range;

/// The form that is faster than the plain sum, if one is; by shape alone.
pub fn profitable(spec: &ConvSpec) -> Option<Form> {
    let (channels, form) = (spec.input.c.min(spec.output.c), Form::F4);
    if !form.applies(spec) || channels < 2 * LEAST_CHANNELS {
        return None;
    }
    let squares = spec.output.n * form.across(spec).iter().product::<usize>();
    // A third more than the products, for the transforms and for sums that do not fit the cache.
    (squares >= 32 && 4 * form.products() * squares < 3 * 9 * spec.output.pixels()).then_some(form)
}

/// The gradient of the weights of a convolution that [`winograd`](super::winograd) could compute in this form: F2 or F4.
pub fn weight_gradient(spec: ConvSpec, form: Form, isa: Isa) -> WeightGradient {
    assert!(form.applies(&spec), "{form:?} of {spec:?}");
    match form {
        Form::F2 => build::<F2>(spec, form, isa),
        Form::F4 => build::<F4>(spec, form, isa),
        other => panic!("{other:?} has no way back to the weights"),
    }
}

fn build<P: Turned>(spec: ConvSpec, form: Form, isa: Isa) -> WeightGradient {
    let kernel = Gradient::<P>::new(spec, form, isa);
    let sums = form.products() * spec.output.c * spec.input.c;
    let gather = Gather::<P> { slices: kernel.slices, channels: [spec.output.c, spec.input.c], points: PhantomData };
    WeightGradient {
        partial: kernel.slices * sums,
        kernel: Box::new(Light { isa, kernel }),
        gather: Some(Box::new(Light { isa, kernel: gather })),
    }
}

struct Gradient<P> {
    spec: ConvSpec,
    form: Form,
    outer: Outer,
    /// Squares down and across an image.
    across: [usize; 2],
    /// Slices of the squares, each with sums of its own.
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
/// Floats of sums over all slices.
const SUMS: usize = 3 << 20;
/// Tiles for a few threads.
const TILES: usize = 8;
/// Fewer output channels do not pay for the inputs they transform.
const LEAST_OUTPUTS: usize = 48;

impl<P: Turned> Gradient<P> {
    fn new(spec: ConvSpec, form: Form, isa: Isa) -> Self {
        let across = form.across(&spec);
        let (squares, products) = (spec.output.n * across[0] * across[1], form.products());
        let slices = (SUMS / (products * spec.input.c * spec.output.c)).clamp(1, TILES).min(squares.div_ceil(32));
        let parts = TILES.div_ceil(slices).min(spec.output.c / LEAST_OUTPUTS).max(1);
        let block = (V_FLOATS / (products * spec.input.c)).clamp(32, 64).min(squares.div_ceil(slices));
        let ld = [spec.input.c, spec.output.c.div_ceil(parts)].map(|c| c.next_multiple_of(16));
        // An odd number of cache lines: positions must not fall into the same set of the first cache.
        let stride = ld.map(|ld| ((block * ld).div_ceil(16) | 1) * 16);
        let zero = AlignedBuf::zeros(spec.input.c.max(spec.output.c));
        Gradient {
            spec,
            form,
            outer: Outer::new(isa),
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

    /// Floats of the table of pointers, of V and of Z.
    fn parts_of_scratch(&self) -> [usize; 3] {
        let products = self.form.products();
        [(2 * products * self.block).next_multiple_of(16), products * self.stride[0], products * self.stride[1]]
    }

    fn cut(all: usize, i: usize, parts: usize) -> Range<usize> {
        i * all / parts..(i + 1) * all / parts
    }
}

impl<P: Turned> Tiled for Gradient<P> {
    fn name(&self) -> String {
        let m = self.form.outputs();
        format!("weight_gradient_winograd_{m}x{m}_{}", self.outer.tile_name())
    }

    fn tiles(&self) -> usize {
        self.slices * self.parts
    }

    fn scratch(&self) -> usize {
        self.parts_of_scratch().iter().sum()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (slice, part) = (tile / self.parts, tile % self.parts);
        let (inputs, outputs, products) = (self.spec.input.c, self.spec.output.c, self.form.products());
        let columns = Self::cut(outputs, part, self.parts);
        let all = Self::cut(self.spec.output.n * self.across[0] * self.across[1], slice, self.slices);
        let [table, v, _] = self.parts_of_scratch();
        let (table, rest) = scratch.split_at_mut(table);
        let (v, z) = rest.split_at_mut(v);
        let (table, v, z) = (table.as_mut_ptr().cast::<*const f32>(), v.as_mut_ptr(), z.as_mut_ptr());
        let squares = Squares { spec: &self.spec, across: self.across, zero: self.zero.as_ptr() };
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
                Before::<P> { squares, tiles: tiles.clone(), input, v, ld, stride, points: PhantomData }.run::<S>();
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
                        *table.add(square) = v.add(position * stride + square * ld);
                    }
                    self.outer.run(&Block {
                        a: z.add(position * stride_z),
                        ld_a: ld_z,
                        b: table,
                        skip: 0,
                        pixels: count,
                        c: io.output.add(((slice * products + position) * outputs + columns.start) * inputs),
                        ld_c: inputs,
                        size: [columns.len(), inputs],
                        store: if block == 0 { Store::Set } else { Store::Add },
                    });
                }
            }
        }
    }
}

/// Adds up the slices and transforms the sums back: `dg = Gᵀ·dU·G`.
struct Gather<P> {
    slices: usize,
    /// Out and in.
    channels: [usize; 2],
    points: PhantomData<P>,
}

/// Input channels side by side.
const SIDE: usize = 16;

impl<P: Turned> Tiled for Gather<P> {
    fn name(&self) -> String {
        "gather_winograd".to_owned()
    }

    fn tiles(&self) -> usize {
        self.channels[0].div_ceil(self.rows())
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let [outputs, inputs] = self.channels;
        for o in tile * self.rows()..outputs.min((tile + 1) * self.rows()) {
            for first in (0..inputs).step_by(SIDE) {
                let count = SIDE.min(inputs - first);
                let mut sums = [[0.0f32; SIDE]; MOST_IN * MOST_IN];
                for slice in 0..self.slices {
                    for (position, sums) in sums.iter_mut().enumerate().take(P::IN * P::IN) {
                        let at = ((slice * P::IN * P::IN + position) * outputs + o) * inputs + first;
                        // SAFETY: every slice has a sum for every position and pair of channels.
                        let from = unsafe { std::slice::from_raw_parts(io.inputs[0].add(at), count) };
                        sums.iter_mut().zip(from).for_each(|(sum, v)| *sum += v);
                    }
                }
                // SAFETY: nine taps for each of these pairs.
                let to = unsafe { std::slice::from_raw_parts_mut(io.output.add((o * inputs + first) * 9), 9 * count) };
                back::<P>(&sums, to);
            }
        }
    }
}

impl<P> Gather<P> {
    /// Output channels of a tile.
    fn rows(&self) -> usize {
        ((1 << 12) / self.channels[1]).max(1)
    }
}

/// `Gᵀ·dU·G` of up to 16 pairs, in f64, as the weights go.
#[inline(always)]
fn back<P: Turned>(sums: &[[f32; SIDE]; MOST_IN * MOST_IN], to: &mut [f32]) {
    let mut taps = [[0.0f32; SIDE]; 9];
    for a in 0..3 {
        let mut row = [[0.0f64; SIDE]; MOST_IN];
        for j in 0..P::IN {
            for i in 0..P::IN {
                for n in 0..SIDE {
                    row[j][n] += P::G[i][a] * f64::from(sums[i * P::IN + j][n]);
                }
            }
        }
        for b in 0..3 {
            let mut sum = [0.0f64; SIDE];
            for j in 0..P::IN {
                for n in 0..SIDE {
                    sum[n] += P::G[j][b] * row[j][n];
                }
            }
            (0..SIDE).for_each(|n| taps[a * 3 + b][n] = sum[n] as f32);
        }
    }
    for (n, to) in to.chunks_exact_mut(9).enumerate() {
        (0..9).for_each(|tap| to[tap] = taps[tap][n]);
    }
}
