//! Sums, products, scalings and copies of maps: one loop over pixels for all of them.
//!
//! A kernel here is `y = activation(op(x₀, x₁, x₂))` where each `x` is a map of the output's shape, a *gate* with one
//! vector of channels per image, or a table with one vector for all. If nothing but dense maps takes part, the pixels of
//! a tile are run through as one long vector, so that three channels cost no more than sixty-four.

#![allow(unsafe_code, reason = "vector loops over raw pointers, to work in place and beside foreign channels")]

use super::light::{Light, Tiled, Tiling};
use super::{Io, Kernel, Map};
use crate::activation::Activation;
use crate::simd::{Isa, Simd, apply_activation};
use std::marker::PhantomData;

/// `y = activation(a + b)`. Inputs: two maps of the output's shape. The output may be the first input itself.
pub fn add(a: Map, b: Map, output: Map, activation: Option<Activation>, isa: Isa) -> impl Kernel {
    assert!(same_shape(a, output) && same_shape(b, output), "{a:?} + {b:?} -> {output:?}");
    Pixelwise::<Sum>::new("add", [Source::Map(a.ld), Source::Map(b.ld), Source::None], output, activation).on(isa)
}

/// `y = activation(a · b)`. Inputs: a map of the output's shape; a map of the same shape or a gate `[n, 1, 1, c]`, one
/// factor per image and channel. The output may be the first input itself.
pub fn multiply(a: Map, b: Map, output: Map, activation: Option<Activation>, isa: Isa) -> impl Kernel {
    assert!(same_shape(a, output), "{a:?} -> {output:?}");
    let sources = [Source::Map(a.ld), factor(b, output), Source::None];
    Pixelwise::<Product>::new("multiply", sources, output, activation).on(isa)
}

/// `y = activation(a · b + residual)`: squeeze-and-excitation's gate, the shortcut and the ReLU after it in one pass.
/// Inputs: as [`multiply`], then a map of the output's shape. The output may be the first or the last input itself.
pub fn multiply_add(
    a: Map,
    b: Map,
    residual: Map,
    output: Map,
    activation: Option<Activation>,
    isa: Isa,
) -> impl Kernel {
    assert!(same_shape(a, output) && same_shape(residual, output), "{a:?}, {residual:?} -> {output:?}");
    let sources = [Source::Map(a.ld), factor(b, output), Source::Map(residual.ld)];
    Pixelwise::<ProductSum>::new("multiply_add", sources, output, activation).on(isa)
}

/// A factor of the output's shape, or one per image and channel.
fn factor(b: Map, output: Map) -> Source {
    if same_shape(b, output) {
        return Source::Map(b.ld);
    }
    assert_eq!([b.n, b.h, b.w, b.c], [output.n, 1, 1, output.c], "a gate for {output:?}");
    Source::Gate(b.ld)
}

/// `y = x`, from one map to another of the same shape and perhaps another pixel stride: the copy behind a concatenation
/// or a slice that could not be avoided.
pub fn copy(input: Map, output: Map, isa: Isa) -> impl Kernel {
    assert!(same_shape(input, output), "{input:?} -> {output:?}");
    Pixelwise::<Identity>::new("copy", [Source::Map(input.ld), Source::None, Source::None], output, None).on(isa)
}

/// `y = activation(x)` for maps of one shape. The output may be the input itself.
pub(super) fn activate(input: Map, output: Map, activation: Activation, isa: Isa) -> impl Kernel {
    assert!(same_shape(input, output), "{input:?} -> {output:?}");
    let sources = [Source::Map(input.ld), Source::None, Source::None];
    Pixelwise::<Identity>::new(activation.name(), sources, output, Some(activation)).on(isa)
}

/// `y = activation(x · scale[c] + shift[c])` for maps of one shape. The output may be the input itself.
pub(super) fn scale_shift(
    input: Map,
    output: Map,
    scale: &[f32],
    shift: &[f32],
    activation: Option<Activation>,
    isa: Isa,
) -> impl Kernel + use<> {
    assert!(same_shape(input, output), "{input:?} -> {output:?}");
    assert!(scale.len() == input.c && shift.len() == input.c, "one factor and summand per channel of {input:?}");
    let sources = [Source::Map(input.ld), Source::Table(scale.to_vec()), Source::Table(shift.to_vec())];
    Pixelwise::<ProductSum>::new("scale_shift", sources, output, activation).on(isa)
}

/// Zeros before and after the channels of a map: `y[.., before..before + c] = x`, zero elsewhere.
pub fn channel_pad(input: Map, output: Map, before: usize, isa: Isa) -> impl Kernel {
    assert_eq!([input.n, input.h, input.w], [output.n, output.h, output.w], "{input:?} -> {output:?}");
    assert!(before + input.c <= output.c, "{} channels at {before} of {}", input.c, output.c);
    Light { isa, kernel: ChannelPad { input, output, before, tiling: Tiling::new(output.pixels(), output.c) } }
}

fn same_shape(a: Map, b: Map) -> bool {
    Map { ld: 0, ..a } == Map { ld: 0, ..b }
}

/// Where an operand comes from; maps and gates are the kernel's inputs in this order.
#[derive(Debug, Clone, PartialEq)]
enum Source {
    /// One vector per pixel, `ld` apart.
    Map(usize),
    /// One vector per image, `ld` apart.
    Gate(usize),
    /// One vector for all pixels.
    Table(Vec<f32>),
    /// The operation does not read it.
    None,
}

/// What happens to the operands of one element.
trait Op: Send + Sync + 'static {
    /// How many operands are read.
    const READS: usize;

    /// # Safety
    /// The CPU has the instruction set of `S`.
    unsafe fn apply<S: Simd>(x: [S::V; 3]) -> S::V;
}

/// x₀
struct Identity;

impl Op for Identity {
    const READS: usize = 1;

    #[inline(always)]
    unsafe fn apply<S: Simd>(x: [S::V; 3]) -> S::V {
        x[0]
    }
}

/// x₀ + x₁
struct Sum;

impl Op for Sum {
    const READS: usize = 2;

    #[inline(always)]
    unsafe fn apply<S: Simd>(x: [S::V; 3]) -> S::V {
        // SAFETY: passed on.
        unsafe { S::add(x[0], x[1]) }
    }
}

/// x₀ · x₁
struct Product;

impl Op for Product {
    const READS: usize = 2;

    #[inline(always)]
    unsafe fn apply<S: Simd>(x: [S::V; 3]) -> S::V {
        // SAFETY: passed on.
        unsafe { S::mul(x[0], x[1]) }
    }
}

/// x₀ · x₁ + x₂
struct ProductSum;

impl Op for ProductSum {
    const READS: usize = 3;

    #[inline(always)]
    unsafe fn apply<S: Simd>(x: [S::V; 3]) -> S::V {
        // SAFETY: passed on.
        unsafe { S::fma(x[0], x[1], x[2]) }
    }
}

/// See the module.
struct Pixelwise<O> {
    name: &'static str,
    sources: [Source; 3],
    output: Map,
    activation: Option<Activation>,
    /// Everything that takes part is a map without gaps.
    dense: bool,
    tiling: Tiling,
    op: PhantomData<O>,
}

impl<O: Op> Pixelwise<O> {
    fn new(name: &'static str, sources: [Source; 3], output: Map, activation: Option<Activation>) -> Self {
        let dense = output.ld == output.c && sources[..O::READS].iter().all(|s| *s == Source::Map(output.c));
        let tiling = Tiling::new(output.pixels(), output.c);
        Pixelwise { name, sources, output, activation, dense, tiling, op: PhantomData }
    }

    fn on(self, isa: Isa) -> impl Kernel {
        Light { isa, kernel: self }
    }

    /// Runs the tile's pixels. The activation is an argument so that the common ones become constants of the loop.
    #[inline(always)]
    unsafe fn pixels<S: Simd>(&self, tile: usize, io: &Io, activation: Option<Activation>) {
        let map = self.output;
        let plane = map.h * map.w;
        let range = self.tiling.range(tile);
        let mut pixel = range.start;
        while pixel < range.end {
            let image = pixel / plane;
            let count = range.end.min((image + 1) * plane) - pixel;
            let mut x = [std::ptr::null(); 3];
            let mut strides = [0; 3];
            let mut inputs = io.inputs.iter();
            for (i, source) in self.sources.iter().enumerate().take(O::READS) {
                (x[i], strides[i]) = match source {
                    Source::Map(ld) => (next(&mut inputs).wrapping_add(pixel * ld), *ld),
                    Source::Gate(ld) => (next(&mut inputs).wrapping_add(image * ld), 0),
                    Source::Table(values) => (values.as_ptr(), 0),
                    Source::None => (std::ptr::null(), 0),
                };
            }
            let y = io.output.wrapping_add(pixel * map.ld);
            // SAFETY: `pixel..pixel + count` are pixels of the output and of every map read; gates hold one vector of
            // `c` floats for `image`, tables one for all (checked when preparing).
            unsafe {
                if self.dense {
                    row::<S, O>(x, y, count * map.c, activation);
                } else {
                    for p in 0..count {
                        let x = [0, 1, 2].map(|i| x[i].wrapping_add(p * strides[i]));
                        row::<S, O>(x, y.wrapping_add(p * map.ld), map.c, activation);
                    }
                }
            }
            pixel += count;
        }
    }
}

#[inline(always)]
fn next(inputs: &mut std::slice::Iter<'_, *const f32>) -> *const f32 {
    inputs.next().copied().unwrap_or(std::ptr::null())
}

/// `y[i] = activation(op(x₀[i], x₁[i], x₂[i]))` for `i < len`; `y` may be any of the operands.
///
/// # Safety
/// The operands that `O` reads and `y` are valid for `len` floats; the CPU has the instruction set of `S`.
#[inline(always)]
unsafe fn row<S: Simd, O: Op>(x: [*const f32; 3], y: *mut f32, len: usize, activation: Option<Activation>) {
    // SAFETY: offsets stay below `len`, and operands that are not read are not touched.
    unsafe {
        let mut i = 0;
        let mut operands = [S::zero(); 3];
        while i + S::LANES <= len {
            for k in 0..O::READS {
                operands[k] = S::load(x[k].add(i));
            }
            S::store(y.add(i), apply_activation::<S>(activation, O::apply::<S>(operands)));
            i += S::LANES;
        }
        if i < len {
            let mask = S::mask(len - i);
            for k in 0..O::READS {
                operands[k] = S::load_masked(x[k].add(i), mask);
            }
            S::store_masked(y.add(i), apply_activation::<S>(activation, O::apply::<S>(operands)), mask);
        }
    }
}

impl<O: Op> Tiled for Pixelwise<O> {
    fn name(&self) -> String {
        match self.activation {
            Some(activation) if activation.name() != self.name => format!("{}+{}", self.name, activation.name()),
            _ => self.name.to_owned(),
        }
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn resident_bytes(&self) -> usize {
        self.sources.iter().map(|s| if let Source::Table(values) = s { size_of_val(&values[..]) } else { 0 }).sum()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        // SAFETY: the caller keeps the contract.
        unsafe {
            match self.activation {
                None => self.pixels::<S>(tile, io, None),
                Some(Activation::Relu) => self.pixels::<S>(tile, io, Some(Activation::Relu)),
                other => self.pixels::<S>(tile, io, other),
            }
        }
    }
}

struct ChannelPad {
    input: Map,
    output: Map,
    before: usize,
    tiling: Tiling,
}

impl Tiled for ChannelPad {
    fn name(&self) -> String {
        "channel_pad".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let after = self.before + self.input.c;
        for pixel in self.tiling.range(tile) {
            // SAFETY: `pixel` lies in both maps, and `before + input.c ≤ output.c` was checked when preparing.
            unsafe {
                let y = io.output.add(pixel * self.output.ld);
                std::ptr::write_bytes(y, 0, self.before);
                let x = [io.inputs[0].add(pixel * self.input.ld), std::ptr::null(), std::ptr::null()];
                row::<S, Identity>(x, y.add(self.before), self.input.c, None);
                std::ptr::write_bytes(y.add(after), 0, self.output.c - after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, run_tiles, spread, values};
    use super::super::{MAX_INPUTS, naive};
    use super::*;

    fn relued(x: Vec<f32>) -> Vec<f32> {
        naive::activation(&x, Activation::Relu)
    }

    #[test]
    fn sums_and_products_agree_with_the_oracle_on_every_isa() {
        for map in maps() {
            let shape = nchw(map);
            let other = Map::new([map.n, map.h, map.w, map.c], map.c + 1);
            let gate = Map::new([map.n, 1, 1, map.c], map.c + 2);
            let [a, b, r] = [1, 2, 3].map(|seed| values(shape.len(), seed));
            let g = values(map.n * map.c, 4);
            let (am, bm, rm, gm) = (spread(&a, map), spread(&b, other), spread(&r, other), spread(&g, gate));
            for &isa in Isa::available() {
                let what = format!("{map:?} {}", isa.name());
                let relu = Some(Activation::Relu);
                let sum = naive::add(&a, &b);
                assert_eq!(run(&add(map, other, map, None, isa), &[&am, &bm], map), sum, "{what}");
                assert_eq!(run(&add(map, other, other, relu, isa), &[&am, &bm], other), relued(sum), "{what}");

                let product = naive::multiply(&a, shape, &b);
                assert_eq!(run(&multiply(map, other, map, None, isa), &[&am, &bm], map), product, "{what}");
                let gated = naive::multiply(&a, shape, &g);
                assert_eq!(run(&multiply(map, gate, other, None, isa), &[&am, &gm], other), gated, "{what}");
                let y = run(&multiply_add(map, gate, other, map, relu, isa), &[&am, &gm, &rm], map);
                assert_near(&y, &relued(naive::add(&gated, &r)), 1e-6, &what);
                let y = run(&multiply_add(map, other, other, map, None, isa), &[&am, &bm, &rm], map);
                assert_near(&y, &naive::add(&product, &r), 1e-6, &what);
            }
        }
    }

    #[test]
    fn copies_and_channel_pads_move_every_bit_and_no_other() {
        for map in maps() {
            let shape = nchw(map);
            let x = values(shape.len(), 5);
            let memory = spread(&x, map);
            for &isa in Isa::available() {
                let output = Map::new([map.n, map.h, map.w, map.c], map.c + 3);
                assert_eq!(run(&copy(map, output, isa), &[&memory], output), x);
                let wide = Map::new([map.n, map.h, map.w, map.c + 9], map.c + 11);
                let expected = naive::channel_pad(&x, shape, [4, 5]);
                assert_eq!(run(&channel_pad(map, wide, 4, isa), &[&memory], wide), expected, "{map:?}");
            }
        }
    }

    #[test]
    fn the_output_may_be_the_first_input() {
        for map in maps() {
            let (a, b) = (values(nchw(map).len(), 6), values(nchw(map).len(), 7));
            for &isa in Isa::available() {
                let (mut memory, other) = (spread(&a, map), spread(&b, map));
                let mut inputs = [std::ptr::null(); MAX_INPUTS];
                (inputs[0], inputs[1]) = (memory.as_mut_ptr().cast_const(), other.as_ptr());
                run_tiles(&add(map, map, map, None, isa), &Io::new(&inputs, memory.as_mut_ptr()));
                let expected = spread(&naive::add(&a, &b), map);
                assert_near(&memory, &expected, 0.0, &format!("{map:?} {}", isa.name()));
            }
        }
    }

    #[test]
    fn names_say_what_runs() {
        let map = Map::dense([1, 2, 2, 4]);
        assert_eq!(add(map, map, map, Some(Activation::Relu), Isa::Scalar).name(), "add+relu scalar");
        assert_eq!(activate(map, map, Activation::Silu, Isa::Scalar).name(), "silu scalar");
    }
}
