//! Batch norms that could not be folded into a convolution, and local response normalisation.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

pub mod train;

use super::light::{Light, Tiled, Tiling};
use super::naive::LocalResponse;
use super::{Io, Kernel, Map};
use crate::activation::Activation;
use crate::simd::{Isa, Simd};

/// `y = activation(x · scale[c] + shift[c])`: an evaluated batch norm with no convolution before it, as in DenseNet.
/// Input: a map of the output's shape. The output may be the input itself.
pub fn scale_shift(
    input: Map,
    output: Map,
    scale: &[f32],
    shift: &[f32],
    activation: Option<Activation>,
    isa: Isa,
) -> impl Kernel + use<> {
    super::elementwise::scale_shift(input, output, scale, shift, activation, isa)
}

/// `y[c] = x[c] / (k + α/size · Σ x[j]²)^β` over the `size` channels around `c`; see
/// [`naive::local_response_norm`](super::naive::local_response_norm). Input: a map of the output's shape. The output may
/// be the input itself.
pub fn local_response(input: Map, output: Map, norm: LocalResponse, isa: Isa) -> impl Kernel {
    assert_eq!([input.n, input.h, input.w, input.c], [output.n, output.h, output.w, output.c]);
    assert!(norm.size > 0, "an empty window");
    let tiling = Tiling::new(input.pixels(), input.c * norm.size.min(input.c));
    Light { isa, kernel: Response { input, output, norm, tiling } }
}

struct Response {
    input: Map,
    output: Map,
    norm: LocalResponse,
    tiling: Tiling,
}

impl Response {
    /// Zeros kept before and after the squares, so that no window needs a border.
    const fn halo(&self) -> [usize; 2] {
        [self.norm.size / 2, (self.norm.size - 1) / 2]
    }

    /// One pixel. `squares` has room for the halos and the channels.
    ///
    /// # Safety
    /// `x` is readable and `y` writable for the channels; the CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn pixel<S: Simd>(&self, x: *const f32, y: *mut f32, squares: *mut f32) {
        let c = self.input.c;
        // SAFETY: offsets into `x` and `y` stay below `c`; the windows of channel `i` start at `squares + i` and end
        // before `squares + i + size`, which the halos provide.
        unsafe {
            let centre = squares.add(self.halo()[0]);
            for i in (0..c).step_by(S::LANES) {
                let mask = S::mask(S::LANES.min(c - i));
                let v = S::load_masked(x.add(i), mask);
                S::store_masked(centre.add(i), S::mul(v, v), mask);
            }
            let (scale, k) = (S::splat((self.norm.alpha / self.norm.size as f64) as f32), S::splat(self.norm.k as f32));
            for i in (0..c).step_by(S::LANES) {
                let mask = S::mask(S::LANES.min(c - i));
                let mut sum = S::load_masked(squares.add(i), mask);
                for j in 1..self.norm.size {
                    sum = S::add(sum, S::load_masked(squares.add(i + j), mask));
                }
                let base = S::fma(scale, sum, k);
                let power = self.power::<S>(base);
                S::store_masked(y.add(i), S::div(S::load_masked(x.add(i), mask), power), mask);
            }
        }
    }

    /// `base^β`: by square roots for the exponents in use, else lane by lane.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn power<S: Simd>(&self, base: S::V) -> S::V {
        // SAFETY: no register is wider than the array.
        unsafe {
            if self.norm.beta == 0.75 {
                let root = S::sqrt(base);
                S::mul(root, S::sqrt(root))
            } else if self.norm.beta == 0.5 {
                S::sqrt(base)
            } else if self.norm.beta == 1.0 {
                base
            } else {
                let mut lanes = [0.0f32; 64];
                assert!(S::LANES <= lanes.len());
                S::store(lanes.as_mut_ptr(), base);
                lanes[..S::LANES].iter_mut().for_each(|v| *v = v.powf(self.norm.beta as f32));
                S::load(lanes.as_ptr())
            }
        }
    }
}

impl Tiled for Response {
    fn name(&self) -> String {
        "local_response".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn scratch(&self) -> usize {
        self.input.c + self.norm.size - 1
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        scratch[..self.scratch()].fill(0.0);
        for pixel in self.tiling.range(tile) {
            // SAFETY: `pixel` lies in both maps, which have the same channels.
            unsafe {
                let (x, y) = (io.inputs[0].add(pixel * self.input.ld), io.output.add(pixel * self.output.ld));
                self.pixel::<S>(x, y, scratch.as_mut_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, spread, values};
    use super::super::naive;
    use super::*;

    #[test]
    fn scaled_and_shifted_maps_agree_with_batch_norm() {
        for map in maps() {
            let x = values(nchw(map).len(), 9);
            let [scale, shift] = [10, 11].map(|seed| values(map.c, seed));
            let (mean, variance) = (vec![0.0; map.c], vec![1.0; map.c]);
            let norm =
                naive::BatchNorm { mean: &mean, variance: &variance, affine: Some((&scale, &shift)), epsilon: 0.0 };
            let expected = naive::activation(&naive::batch_norm(&x, nchw(map), norm), Activation::Relu);
            for &isa in Isa::available() {
                let kernel = scale_shift(map, map, &scale, &shift, Some(Activation::Relu), isa);
                assert_eq!(kernel.resident_bytes(), 8 * map.c);
                let y = run(&kernel, &[&spread(&x, map)], map);
                assert_near(&y, &expected, 1e-6, &format!("{map:?} {}", isa.name()));
            }
        }
    }

    #[test]
    fn response_windows_of_every_size_and_exponent_agree_with_the_oracle() {
        for map in maps() {
            let x = values(nchw(map).len(), 12);
            for (size, beta) in [(1, 0.75), (4, 0.5), (5, 0.75), (5, 1.0), (150, 0.6)] {
                let norm = LocalResponse { size, alpha: 0.3, beta, k: 2.0 };
                let expected = naive::local_response_norm(&x, nchw(map), norm);
                for &isa in Isa::available() {
                    let y = run(&local_response(map, map, norm, isa), &[&spread(&x, map)], map);
                    assert_near(&y, &expected, 2e-6, &format!("{norm:?} {map:?} {}", isa.name()));
                }
            }
        }
    }
}
