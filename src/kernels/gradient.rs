//! The way back through what works pixel by pixel: gates, local response norm, softmax, flattening.

#![allow(unsafe_code, reason = "loops over raw pointers")]

use super::light::{Light, Tiled, Tiling};
use super::naive::LocalResponse;
use super::norm::train::{SCALE, SHIFT};
use super::{Io, Kernel, Map, Store};
use crate::activation::Activation;
use crate::simd::{Isa, Simd, apply_activation};
use std::ops::Range;

/// The first factor of a product with a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// It is in memory.
    Kept,
    /// It is what a norm, with this activation behind it, makes of what is in memory, by the table `inputs[2]` of
    /// [`statistics`](super::norm::train::statistics).
    Normalised(Option<Activation>),
}

/// The gradient of a gate, one value per image and channel: `dg[n, c] = Σ over pixels of dy · x`. Inputs: the gradient of
/// the product; its first factor `x`, or what a norm makes it from. Output: the gradient of the gate.
pub fn gate(gradient: Map, input: Map, factor: Factor, output: Map, store: Store, isa: Isa) -> impl Kernel {
    assert_eq!([output.n, output.h, output.w, output.c], [input.n, 1, 1, input.c], "a gate of {input:?}");
    Light { isa, kernel: Gate { gradient, input, factor, output, store } }
}

struct Gate {
    gradient: Map,
    input: Map,
    factor: Factor,
    output: Map,
    store: Store,
}

/// Channels of a tile.
const CHANNELS: usize = 256;
/// Pixels whose products are added up before they meet the others, for four registers of channels after the other: both maps
/// are read from end to end, and the next pixels are fetched meanwhile.
const PIXELS: usize = 16;

impl Tiled for Gate {
    fn name(&self) -> String {
        match self.factor {
            Factor::Kept => "gate_gradient".to_owned(),
            Factor::Normalised(None) => "normalise+gate_gradient".to_owned(),
            Factor::Normalised(Some(activation)) => format!("normalise+{}+gate_gradient", activation.name()),
        }
    }

    fn tiles(&self) -> usize {
        self.input.n * self.input.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        // SAFETY: passed on.
        unsafe {
            match self.factor {
                Factor::Kept => self.tile::<S>(tile, io, Factor::Kept),
                Factor::Normalised(None) => self.tile::<S>(tile, io, Factor::Normalised(None)),
                factor => self.tile::<S>(tile, io, factor),
            }
        }
    }
}

impl Gate {
    /// # Safety
    /// As [`Tiled::compute`].
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, tile: usize, io: &Io, factor: Factor) {
        let (image, c) = (tile % self.input.n, tile / self.input.n * CHANNELS);
        let (until, plane) = (self.input.c.min(c + CHANNELS), self.input.h * self.input.w);
        for first in (0..plane).step_by(PIXELS) {
            let pixels = image * plane + first..image * plane + plane.min(first + PIXELS);
            let store = if first == 0 { self.store } else { Store::Add };
            let mut i = c;
            while i < until {
                // SAFETY: these channels are this tile's alone.
                i += unsafe {
                    let to = (io.output.add(image * self.output.ld + i), store);
                    match i + 4 * S::LANES <= until {
                        true => self.columns::<S, 4>(pixels.clone(), (i, S::LANES), to, io, factor),
                        false => self.columns::<S, 1>(pixels.clone(), (i, S::LANES.min(until - i)), to, io, factor),
                    }
                };
            }
        }
    }

    /// `V` registers of channels from `c` on, of the last of which `lanes` exist; returns the channels done.
    ///
    /// # Safety
    /// As [`Tiled::compute`].
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(
        &self,
        pixels: Range<usize>,
        (c, lanes): (usize, usize),
        (to, store): (*mut f32, Store),
        io: &Io,
        factor: Factor,
    ) -> usize {
        // SAFETY: the pixels and these channels lie in both maps, the gate has the channels, and so has the table.
        unsafe {
            let mask = S::mask(lanes);
            let load = |p: *const f32, v: usize| {
                if V == 1 { S::load_masked(p, mask) } else { S::load(p.add(v * S::LANES)) }
            };
            let (mut scale, mut shift) = ([S::zero(); V], [S::zero(); V]);
            if let Factor::Normalised(_) = factor {
                for v in 0..V {
                    let row = |row: usize| load(io.inputs[2].wrapping_add(row * self.input.c + c), v);
                    (scale[v], shift[v]) = (row(SCALE), row(SHIFT));
                }
            }
            let mut dy = io.inputs[0].add(pixels.start * self.gradient.ld + c);
            let mut x = io.inputs[1].add(pixels.start * self.input.ld + c);
            let mut sums = [S::zero(); V];
            for _ in pixels {
                for v in 0..V {
                    S::prefetch_far(dy.wrapping_add(PIXELS * self.gradient.ld + v * S::LANES));
                    S::prefetch_far(x.wrapping_add(PIXELS * self.input.ld + v * S::LANES));
                    let mut value = load(x, v);
                    if let Factor::Normalised(activation) = factor {
                        value = apply_activation::<S>(activation, S::fma(value, scale[v], shift[v]));
                    }
                    sums[v] = S::fma(load(dy, v), value, sums[v]);
                }
                dy = dy.wrapping_add(self.gradient.ld);
                x = x.wrapping_add(self.input.ld);
            }
            for v in 0..V {
                let to = to.add(v * S::LANES);
                if store == Store::Add {
                    sums[v] = S::add(sums[v], S::load_masked(to, mask));
                }
                S::store_masked(to, sums[v], mask);
            }
        }
        V * S::LANES
    }
}

/// Stores or adds.
#[inline(always)]
fn meet(to: &mut [f32], values: &[f32], store: Store) {
    match store {
        Store::Set => to.copy_from_slice(values),
        Store::Add => to.iter_mut().zip(values).for_each(|(to, v)| *to += v),
    }
}

/// The gradient of softmax: `dx = y · (dy − Σ y·dy)` over the channels of a pixel. Inputs: the gradient of the output, the
/// output. Output: the gradient of the input.
pub fn softmax([gradient, result]: [Map; 2], output: Map, store: Store, isa: Isa) -> impl Kernel {
    let tiling = Tiling::new(gradient.pixels(), gradient.c);
    Light { isa, kernel: Softmax { gradient, result, output, store, tiling } }
}

struct Softmax {
    gradient: Map,
    result: Map,
    output: Map,
    store: Store,
    tiling: Tiling,
}

impl Tiled for Softmax {
    fn name(&self) -> String {
        "softmax_gradient".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn scratch(&self) -> usize {
        self.gradient.c
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let c = self.gradient.c;
        for pixel in self.tiling.range(tile) {
            // SAFETY: the pixel lies in all maps.
            unsafe {
                let dy = std::slice::from_raw_parts(io.inputs[0].add(pixel * self.gradient.ld), c);
                let y = std::slice::from_raw_parts(io.inputs[1].add(pixel * self.result.ld), c);
                let sum: f32 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
                scratch.iter_mut().zip(dy.iter().zip(y)).for_each(|(to, (dy, y))| *to = y * (dy - sum));
                let to = std::slice::from_raw_parts_mut(io.output.add(pixel * self.output.ld), c);
                meet(to, &scratch[..c], self.store);
            }
        }
    }
}

/// The gradient of [`local_response`](super::norm::local_response):
/// `dx[j] = dy[j]·b[j]^−β − 2αβ/size · x[j] · Σ dy[i]·x[i]·b[i]^(−β−1)` over the channels `i` whose window holds `j`, with
/// `b` the base of the power. Inputs: the gradient of the output, the input. Output: the gradient of the input.
pub fn local_response(
    [gradient, input]: [Map; 2],
    output: Map,
    norm: LocalResponse,
    store: Store,
    isa: Isa,
) -> impl Kernel {
    let tiling = Tiling::new(input.pixels(), input.c * (8 + norm.size.min(input.c)));
    Light { isa, kernel: Response { gradient, input, output, norm, store, tiling } }
}

struct Response {
    gradient: Map,
    input: Map,
    output: Map,
    norm: LocalResponse,
    store: Store,
    tiling: Tiling,
}

impl Tiled for Response {
    fn name(&self) -> String {
        "local_response_gradient".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn scratch(&self) -> usize {
        // Squares, products and sums, with room for the windows at both ends.
        2 * (self.input.c + 2 * self.norm.size) + 2 * self.input.c
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (c, size) = (self.input.c, self.norm.size);
        let (before, after) = (size / 2, (size - 1) / 2);
        let share = (self.norm.alpha / size as f64) as f32;
        let (beta, k) = (self.norm.beta as f32, self.norm.k as f32);
        let padded = c + 2 * size;
        scratch[..self.scratch()].fill(0.0);
        let (squares, rest) = scratch.split_at_mut(padded);
        let (products, rest) = rest.split_at_mut(padded);
        let (direct, sums) = rest.split_at_mut(c);
        for pixel in self.tiling.range(tile) {
            // SAFETY: the pixel lies in all maps.
            let (dy, x, to) = unsafe {
                (
                    std::slice::from_raw_parts(io.inputs[0].add(pixel * self.gradient.ld), c),
                    std::slice::from_raw_parts(io.inputs[1].add(pixel * self.input.ld), c),
                    std::slice::from_raw_parts_mut(io.output.add(pixel * self.output.ld), c),
                )
            };
            squares[size..size + c].iter_mut().zip(x).for_each(|(s, x)| *s = x * x);
            for i in 0..c {
                let window: f32 = squares[size + i - before..=size + i + after].iter().sum();
                let base = k + share * window;
                let power = if beta == 0.75 { 1.0 / (base.sqrt() * base.sqrt().sqrt()) } else { base.powf(-beta) };
                direct[i] = dy[i] * power;
                products[size + i] = dy[i] * x[i] * power / base;
            }
            // Channel `j` lies in the windows of the channels from `j − after` to `j + before`.
            for j in 0..c {
                let window: f32 = products[size + j - after..=size + j + before].iter().sum();
                sums[j] = direct[j] - 2.0 * share * beta * x[j] * window;
            }
            meet(to, &sums[..c], self.store);
        }
    }
}

/// The way back from [`flatten`](super::layout::flatten): vectors in the order `c, h, w` to maps. Input: the vectors'
/// gradient. Output: the map's.
pub fn unflatten(input: Map, output: Map, store: Store, isa: Isa) -> impl Kernel {
    assert_eq!([input.n, input.c], [output.n, output.c * output.h * output.w], "{output:?} flattened");
    let tiling = Tiling::new(output.pixels(), 4 * output.c);
    Light { isa, kernel: Unflatten { input, output, store, tiling } }
}

struct Unflatten {
    input: Map,
    output: Map,
    store: Store,
    tiling: Tiling,
}

impl Tiled for Unflatten {
    fn name(&self) -> String {
        "unflatten".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let plane = self.output.h * self.output.w;
        for pixel in self.tiling.range(tile) {
            for c in 0..self.output.c {
                // SAFETY: the element lies in both maps.
                unsafe {
                    let from = io.inputs[0].add(pixel / plane * self.input.ld + c * plane + pixel % plane);
                    let to = io.output.add(pixel * self.output.ld + c);
                    *to = *from + if self.store == Store::Add { *to } else { 0.0 };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, run_tiles, spread, values};
    use super::super::norm::train::TABLE_ROWS;
    use super::super::{layout, naive};
    use super::*;

    /// Runs a kernel that sets and one that adds, and holds both to `expected`.
    #[track_caller]
    fn check<K: Kernel>(make: impl Fn(Store) -> K, inputs: &[&[f32]], output: Map, expected: &[f32], tolerance: f32) {
        assert_near(&run(&make(Store::Set), inputs, output), expected, tolerance, "set");
        let old = values(expected.len(), 77);
        let mut memory = spread(&old, output);
        let pointers: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
        run_tiles(&make(Store::Add), &Io::new(&pointers, memory.as_mut_ptr()));
        let sum: Vec<f32> = expected.iter().zip(&old).map(|(a, b)| a + b).collect();
        assert_near(&memory, &spread(&sum, output), 2.0 * tolerance, "add");
    }

    #[test]
    fn gradients_agree_with_the_oracle() {
        for map in maps() {
            let (shape, other) = (nchw(map), Map::new([map.n, map.h, map.w, map.c], map.c + 1));
            let [x, dy] = [1, 2].map(|seed| values(shape.len(), seed));
            let (xm, dm) = (spread(&x, map), spread(&dy, other));
            for &isa in Isa::available() {
                let to = Map::new([map.n, 1, 1, map.c], map.c + 2);
                let [_, expected] = naive::backward::multiply(&x, shape, &values(map.n * map.c, 3), &dy);
                if map.h * map.w > 1 {
                    let make = |store| gate(other, map, Factor::Kept, to, store, isa);
                    check(make, &[&dm, &xm], to, &expected, 1e-5);
                    let table: Vec<f32> = values(TABLE_ROWS * map.c, 4);
                    for activation in [None, Some(Activation::Relu), Some(Activation::Silu)] {
                        let row = |row: usize, i: usize| table[row * map.c + i / (map.h * map.w) % map.c];
                        let t: Vec<f32> =
                            x.iter().enumerate().map(|(i, x)| x * row(SCALE, i) + row(SHIFT, i)).collect();
                        let y = activation.map_or(t.clone(), |activation| naive::activation(&t, activation));
                        let [_, expected] = naive::backward::multiply(&y, shape, &values(map.n * map.c, 3), &dy);
                        let make = |store| gate(other, map, Factor::Normalised(activation), to, store, isa);
                        check(make, &[&dm, &xm, &table], to, &expected, 2e-5);
                    }
                }
                let y = naive::softmax(&x, shape);
                let expected = naive::backward::softmax(&y, shape, &dy);
                let ym = spread(&y, map);
                check(|store| softmax([other, map], map, store, isa), &[&dm, &ym], map, &expected, 1e-5);
                for (size, beta) in [(5, 0.75), (4, 0.5), (1, 1.0)] {
                    let norm = LocalResponse { size, alpha: 0.3, beta, k: 2.0 };
                    let expected = naive::backward::local_response_norm(&x, shape, norm, &dy);
                    let make = |store| local_response([other, map], map, norm, store, isa);
                    check(make, &[&dm, &xm], map, &expected, 1e-5);
                }
                let flat = Map::new([map.n, 1, 1, map.c * map.h * map.w], map.c * map.h * map.w + 3);
                let vectors = run(&layout::flatten(map, flat, isa), &[&xm], flat);
                check(|store| unflatten(flat, map, store, isa), &[&spread(&vectors, flat)], map, &x, 1e-6);
            }
        }
    }
}
