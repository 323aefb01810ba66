//! Dropout and stochastic depth: what goes depends on a stream, the element's number and nothing else.

#![allow(unsafe_code, reason = "loops over raw pointers, and reads a stream handed in as memory")]

use super::light::{Light, Tiled, Tiling};
use super::{Io, Kernel, Map, Store};
use crate::random::Stream;
use crate::simd::{Isa, Simd};

/// What is kept or dropped together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Every element, numbered as in contiguous NCHW.
    Element,
    /// Every image.
    Image,
}

/// `y = x / (1 − p)` where number `i` of the stream is at least `p`, else 0. Also the way back: it is its own gradient.
/// Inputs: a map of the output's shape; the [`Stream`].
pub fn drop_out(input: Map, output: Map, p: f32, unit: Unit, store: Store, isa: Isa) -> impl Kernel {
    assert_eq!(Map { ld: 0, ..input }, Map { ld: 0, ..output });
    let tiling = Tiling::new(input.pixels(), input.c * if unit == Unit::Element { 16 } else { 1 });
    Light { isa, kernel: DropOut { input, output, p, unit, store, tiling } }
}

struct DropOut {
    input: Map,
    output: Map,
    p: f32,
    unit: Unit,
    store: Store,
    tiling: Tiling,
}

impl Tiled for DropOut {
    fn name(&self) -> String {
        if self.unit == Unit::Element { "dropout" } else { "stochastic_depth" }.to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let Map { h, w, c, .. } = self.input;
        let p = f64::from(self.p);
        let scale = (1.0 / (1.0 - p)) as f32;
        // SAFETY: the second input is a stream.
        let stream = unsafe { *io.inputs[1].cast::<Stream>() };
        let factor = |i: usize| if stream.uniform(i as u64) >= p { scale } else { 0.0 };
        // The image seen last, and what it is multiplied by.
        let mut last = (usize::MAX, 0.0);
        let add = self.store == Store::Add;
        // SAFETY: the pixels and their channels lie in both maps. What is dropped is zero, whatever it was.
        unsafe {
            for pixel in self.tiling.range(tile) {
                let (image, place) = (pixel / (h * w), pixel % (h * w));
                let (x, y) = (io.inputs[0].add(pixel * self.input.ld), io.output.add(pixel * self.output.ld));
                if self.unit == Unit::Element {
                    for channel in 0..c {
                        let factor = factor((image * c + channel) * h * w + place);
                        let value = if factor == 0.0 { 0.0 } else { factor * *x.add(channel) };
                        *y.add(channel) = value + if add { *y.add(channel) } else { 0.0 };
                    }
                    continue;
                }
                if last.0 != image {
                    last = (image, factor(image));
                }
                for channel in (0..c).step_by(S::LANES) {
                    let mask = S::mask(S::LANES.min(c - channel));
                    let old = if add { S::load_masked(y.add(channel), mask) } else { S::zero() };
                    let kept = last.1 != 0.0;
                    let x = if kept { S::load_masked(x.add(channel), mask) } else { S::zero() };
                    S::store_masked(y.add(channel), S::fma(x, S::splat(last.1), old), mask);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{maps, nchw, run_tiles, spread, values};
    use super::*;

    #[test]
    fn elements_go_by_their_nchw_number_and_images_whole() {
        for map in maps() {
            let (shape, stream, p) = (nchw(map), Stream::new(3).fork(5), 0.4f32);
            let x = values(shape.len(), 1);
            for unit in [Unit::Element, Unit::Image] {
                let number = |i: usize| if unit == Unit::Element { i } else { i / (shape.len() / shape.n) };
                let kept = |i: usize| stream.uniform(number(i) as u64) >= f64::from(p);
                let scale = (1.0 / (1.0 - f64::from(p))) as f32;
                let expected: Vec<f32> =
                    x.iter().enumerate().map(|(i, v)| if kept(i) { scale * v } else { 0.0 }).collect();
                let (memory, expected) = (spread(&x, map), spread(&expected, map));
                let mut y = spread(&vec![0.0; x.len()], map);
                let io = Io::new(&[memory.as_ptr(), std::ptr::from_ref(&stream).cast()], y.as_mut_ptr());
                run_tiles(&drop_out(map, map, p, unit, Store::Set, Isa::detect()), &io);
                assert!(y.iter().zip(&expected).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())), "{unit:?} {map:?}");
                run_tiles(&drop_out(map, map, p, unit, Store::Add, Isa::detect()), &io);
                assert!(y.iter().zip(&expected).all(|(a, b)| *a == 2.0 * b || b.is_nan()), "{unit:?} {map:?}");
            }
        }
    }
}
