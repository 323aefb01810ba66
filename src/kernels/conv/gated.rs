//! A 1×1 convolution of a map whose channels are scaled per image: the gate of squeeze-and-excitation, and the projection
//! behind it, without storing the scaled map.
//!
//! A block of pixels is scaled into scratch memory that the product reads while it is in the cache.

#![allow(unsafe_code, reason = "copies pixels and runs microkernels on raw maps")]

use super::ConvSpec;
use super::grid::{Grid, Work};
use super::indirect::target;
use super::weights::{Direction, GemmPacking, pack};
use crate::kernels::gemm::{Extent, Gemm, Rows};
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;

/// Prepares `y[p, o] = activation(b[o] + Σ_i w[o, i] · g[n, i] · x[p, i] + residual[p, o])`, `n` being the image of pixel
/// `p`: a pointwise convolution as [`pointwise`](super::pointwise), whose gate `[n, 1, 1, in]`, with `ld` floats from image
/// to image, is `inputs[2]`.
///
/// Panics if the window is not 1×1 with stride 1, the groups are not one, or the slices do not fit.
pub fn gated(spec: ConvSpec, ld: usize, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    assert!(spec.groups == 1 && spec.window.is_pointwise() && ld >= spec.input.c);
    let k = spec.input.c;
    let extent = Extent { taps: 1, k, n: spec.output.c };
    let gemm = Gemm::new(extent, spec.epilogue.activation, isa);
    let packed = pack(&*GemmPacking::boxed(&gemm, &spec, Direction::Forward), weight, bias);
    let rows = spec.output.pixels();
    let work = Work {
        rows,
        panels: gemm.panels(),
        macs: rows * spec.output.c * k,
        weights: gemm.packed_bytes(),
        activations: 4 * k * rows,
        most_rows: rows.max(1),
    };
    let grid = Grid::cut(work);
    // Small weights can be read again for every block, which then stays in the first cache.
    let budget = if gemm.packed_bytes() <= 64 << 10 { 24 << 10 } else { 256 << 10 };
    // Whole tiles of any height that microkernels have.
    let block = (budget / (4 * k) / 36 * 36).clamp(36, 504).min(grid.tile_rows().max(1));
    let stride = k.next_multiple_of(16);
    let stride = if (stride * 4).is_multiple_of(4096) { stride + 16 } else { stride };
    let name = format!("gated_{} {}", gemm.tile_name(), isa.name());
    Box::new(Gated { name, spec, ld, gemm, packed, grid, block, stride, scale: isa.entry::<Scale>() })
}

struct Gated {
    name: String,
    spec: ConvSpec,
    /// Floats from one image's gate to the next.
    ld: usize,
    gemm: Gemm,
    packed: AlignedBuf,
    grid: Grid,
    /// Pixels scaled at a time, and the floats from one to the next in scratch memory.
    block: usize,
    stride: usize,
    scale: unsafe fn(Scale),
}

impl Kernel for Gated {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tiles(&self) -> usize {
        if self.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        // Pointers take two floats each.
        self.block * (self.stride + 2)
    }

    fn resident_bytes(&self) -> usize {
        4 * self.packed.len()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (rows, panels) = self.grid.tile(tile);
        let (scaled, table) = scratch.split_at_mut(self.block * self.stride);
        let (scaled, table) = (scaled.as_mut_ptr(), table.as_mut_ptr().cast::<*const f32>());
        let (input, plane) = (self.spec.input, self.spec.input.h * self.spec.input.w);
        // SAFETY: at most `block` pixels are scaled at a time, each with the gate of its image; the table has an entry for
        // each; `io` fits the maps.
        unsafe {
            (0..self.block).for_each(|i| *table.add(i) = scaled.cast_const().add(i * self.stride));
            let blocks = rows.len().div_ceil(self.block);
            for i in 0..blocks {
                let part = |i: usize| rows.start + i * rows.len() / blocks;
                let (first, end) = (part(i), part(i + 1));
                let mut pixel = first;
                while pixel < end {
                    let image = pixel / plane;
                    let pixels = end.min((image + 1) * plane) - pixel;
                    (self.scale)(Scale {
                        x: io.inputs[0].add(pixel * input.ld),
                        ld: input.ld,
                        gate: io.inputs[2].add(image * self.ld),
                        y: scaled.add((pixel - first) * self.stride),
                        stride: self.stride,
                        pixels,
                        channels: input.c,
                    });
                    pixel += pixels;
                }
                let from = Rows { table, stride: self.block, skip: 0 };
                self.gemm.run(
                    self.packed.as_ptr(),
                    end - first,
                    from,
                    panels.clone(),
                    target(&self.spec, io, first, 0),
                );
            }
        }
    }
}

/// `y[p, c] = gate[c] · x[p, c]`.
#[derive(Clone, Copy)]
struct Scale {
    x: *const f32,
    ld: usize,
    gate: *const f32,
    y: *mut f32,
    stride: usize,
    pixels: usize,
    channels: usize,
}

impl Task for Scale {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.channels / S::LANES * S::LANES;
        // SAFETY: gate and pixels have `channels` floats.
        unsafe {
            let rest = S::mask(self.channels - whole);
            for pixel in 0..self.pixels {
                let (x, y) = (self.x.add(pixel * self.ld), self.y.add(pixel * self.stride));
                for c in (0..whole).step_by(S::LANES) {
                    S::store(y.add(c), S::mul(S::load(x.add(c)), S::load(self.gate.add(c))));
                }
                if whole < self.channels {
                    let v = S::mul(S::load_masked(x.add(whole), rest), S::load_masked(self.gate.add(whole), rest));
                    S::store_masked(y.add(whole), v, rest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SENTINEL, noise, position, to_map};
    use super::*;
    use crate::activation::Activation;
    use crate::kernels::naive::{self, ConvShape, Nchw};
    use crate::kernels::{Epilogue, Map};
    use crate::shape::{Padding, Window};

    fn check([n, h, w]: [usize; 3], [k, c]: [usize; 2], gap: usize, residual: bool) {
        let window = Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) };
        let placed = window.place([h, w], "test").unwrap();
        let (input, output) = (Map::new([n, h, w, k], k + gap), Map::new([n, h, w, c], c + gap));
        let activation = residual.then_some(Activation::Relu);
        let epilogue = Epilogue { activation, residual: residual.then_some(c + 2) };
        let spec = ConvSpec { input, output, window, placed, groups: 1, epilogue };
        let (x, gate) = (noise(n * h * w * k, 1), noise(n * k, 2));
        let (weight, bias, r) = (noise(c * k, 3), noise(c, 4), noise(n * h * w * c, 5));

        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let shape = Nchw::new([n, k, h, w]);
        let scaled = naive::multiply(&wide(&x), shape, &wide(&gate));
        let conv = ConvShape { out_channels: c, groups: 1, window, placed };
        let mut want = naive::conv2d(&scaled, shape, &wide(&weight), Some(&wide(&bias)), &conv);
        if residual {
            want = naive::activation(&naive::add(&want, &wide(&r)), Activation::Relu);
        }

        let source = to_map(&x, input, f32::NAN);
        let beside = to_map(&r, Map::new([n, h, w, c], c + 2), f32::NAN);
        let gates = to_map(&gate, Map::new([n, 1, 1, k], k + gap), f32::NAN);
        for &isa in Isa::available() {
            let kernel = gated(spec, k + gap, &weight, Some(&bias), isa);
            let mut y = vec![SENTINEL; output.extent()];
            let io = Io::new(&[source.as_ptr(), beside.as_ptr(), gates.as_ptr()], y.as_mut_ptr());
            let mut scratch = AlignedBuf::zeros(kernel.scratch());
            for tile in (0..kernel.tiles()).rev() {
                scratch.fill(f32::NAN);
                // SAFETY: the maps have their extents, and tiles run one after the other.
                unsafe { kernel.run(tile, &io, &mut scratch) };
            }
            let what = format!("{} {n}×{h}×{w}, {k} to {c} channels, gap {gap}", kernel.name());
            for (i, &want) in want.iter().enumerate() {
                let got = f64::from(std::mem::replace(&mut y[position(i, output)], SENTINEL));
                assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{what}: [{i}] {got} {want}");
            }
            assert!(y.iter().all(|&v| v == SENTINEL), "{what}: writes between pixels");
        }
    }

    #[test]
    fn gated_products_agree_with_the_oracle_on_every_isa() {
        let images = [[1, 1, 1], [1, 7, 7], [3, 5, 9], [2, 20, 19]];
        for image in images {
            for channels in [[1, 1], [8, 16], [33, 24], [100, 40], [144, 130]] {
                check(image, channels, 0, false);
                check(image, channels, 5, true);
            }
        }
        // Blocks end inside images, and weights are too large for the first cache.
        check([5, 9, 9], [600, 70], 0, true);
    }
}
