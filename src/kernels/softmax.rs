//! Softmax over the channels of each pixel.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::light::{Light, Tiled, Tiling};
use super::{Io, Kernel, Map};
use crate::simd::{Isa, Simd, exp};

/// `y[c] = e^(x[c] − max) / Σ e^(x[j] − max)` for each pixel. Input: a map of the output's shape. The output may be the
/// input itself.
pub fn softmax(input: Map, output: Map, isa: Isa) -> impl Kernel {
    assert_eq!([input.n, input.h, input.w, input.c], [output.n, output.h, output.w, output.c]);
    // An exponential costs as much as moving a few floats.
    Light { isa, kernel: Softmax { input, output, tiling: Tiling::new(input.pixels(), 4 * input.c) } }
}

struct Softmax {
    input: Map,
    output: Map,
    tiling: Tiling,
}

impl Tiled for Softmax {
    fn name(&self) -> String {
        "softmax".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        for pixel in self.tiling.range(tile) {
            // SAFETY: `pixel` lies in both maps, which have the same channels.
            unsafe {
                let (x, y) = (io.inputs[0].add(pixel * self.input.ld), io.output.add(pixel * self.output.ld));
                one::<S>(x, y, self.input.c);
            }
        }
    }
}

/// # Safety
/// `x` is readable and `y` writable for `c` floats, the CPU has the instruction set of `S`.
#[inline(always)]
unsafe fn one<S: Simd>(x: *const f32, y: *mut f32, c: usize) {
    // SAFETY: offsets stay below `c`.
    unsafe {
        let whole = c / S::LANES * S::LANES;
        let mut most = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(S::LANES) {
            most = S::max_nan(most, S::load(x.add(i)));
        }
        let mut most = S::hmax(most);
        for i in whole..c {
            let v = *x.add(i);
            most = if v > most || v.is_nan() { v } else { most };
        }
        let shift = S::splat(most);
        let mut sum = S::zero();
        for i in (0..whole).step_by(S::LANES) {
            let v = exp::<S>(S::sub(S::load(x.add(i)), shift));
            S::store(y.add(i), v);
            sum = S::add(sum, v);
        }
        let mut sum = S::hsum(sum);
        if whole < c {
            let mask = S::mask(c - whole);
            S::store_masked(y.add(whole), exp::<S>(S::sub(S::load_masked(x.add(whole), mask), shift)), mask);
            (whole..c).for_each(|i| sum += *y.add(i));
        }
        let sum = S::splat(sum);
        for i in (0..c).step_by(S::LANES) {
            let mask = S::mask(S::LANES.min(c - i));
            S::store_masked(y.add(i), S::div(S::load_masked(y.add(i), mask), sum), mask);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, spread, values};
    use super::super::naive;
    use super::*;

    #[test]
    fn probabilities_agree_with_the_oracle_on_every_isa() {
        for map in maps() {
            for scale in [1.0, 100.0, 1e30] {
                let x: Vec<f32> = values(nchw(map).len(), 15).iter().map(|v| v * scale).collect();
                let expected = naive::softmax(&x, nchw(map));
                for &isa in Isa::available() {
                    let y = run(&softmax(map, map, isa), &[&spread(&x, map)], map);
                    assert_near(&y, &expected, 1e-6, &format!("{map:?} times {scale} {}", isa.name()));
                }
            }
        }
    }

    #[test]
    fn a_nan_poisons_its_pixel_and_no_other() {
        let map = Map::dense([1, 1, 2, 21]);
        for at in 0..21 {
            let mut x = values(42, 16);
            x[at] = f32::NAN;
            for &isa in Isa::available() {
                let mut y = vec![0.0; 42];
                let io = Io::new(&[x.as_ptr()], y.as_mut_ptr());
                super::super::light::testing::run_tiles(&softmax(map, map, isa), &io);
                assert!(y[..21].iter().all(|v| v.is_nan()), "{at} {}", isa.name());
                assert!((y[21..].iter().sum::<f32>() - 1.0).abs() < 1e-6, "{at} {}", isa.name());
            }
        }
    }
}
