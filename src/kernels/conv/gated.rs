//! A 1×1 convolution of a map whose channels are scaled per image: the gate of squeeze-and-excitation, and the projection
//! behind it, without storing the scaled map.
//!
//! Where an image has many more pixels than the convolution has output channels, the weights are scaled, into scratch
//! memory, once for every tile of its pixels. Elsewhere a block of pixels is, which the product reads while it is in the
//! cache; Strassen's product does so on the way to its sums.

#![allow(unsafe_code, reason = "copies pixels and runs microkernels on raw maps")]

use super::ConvSpec;
use super::algorithm::Precision;
use super::grid::Grid;
use super::indirect::target;
use super::strassen::{self, Input};
use super::weights::{Direction, GemmPacking, pack};
use crate::kernels::gemm::{Extent, Gemm, Rows};
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Prepares `y[p, o] = activation(b[o] + Σ_i w[o, i] · g[n, i] · x[p, i] + residual[p, o])`, `n` being the image of pixel
/// `p`: a pointwise convolution as [`pointwise`](super::pointwise), whose gate `[n, 1, 1, in]`, with `ld` floats from image
/// to image, is `inputs[2]`; the residual, `inputs[1]`, may be the output itself.
///
/// By [`strassen`](super::strassen())'s product where that is faster and the precision allows it.
///
/// Panics if the window is not 1×1 with stride 1, the groups are not one, or the slices do not fit.
pub fn gated(
    spec: ConvSpec,
    ld: usize,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    precision: Precision,
    isa: Isa,
) -> Box<dyn Kernel> {
    if precision == Precision::Fast && strassen::profitable(&spec, Input::Gated) {
        return strassen::gated(spec, ld, weight, bias, isa);
    }
    plain(spec, ld, weight, bias, isa)
}

fn plain(spec: ConvSpec, ld: usize, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    assert!(spec.groups == 1 && spec.window.is_pointwise() && ld >= spec.input.c);
    let k = spec.input.c;
    let extent = Extent { taps: 1, k, n: spec.output.c };
    let gemm = Gemm::new(extent, spec.epilogue.activation, isa);
    let packed = pack(&*GemmPacking::boxed(&gemm, &spec, Direction::Forward), weight, bias);
    let side = match by_weights(&spec, &gemm) {
        Some(parts) => Side::Weights { parts },
        None => {
            let grid = cut(&spec, &gemm);
            // Whole tiles of any height that microkernels have.
            let block = (PIXEL_BYTES / (4 * k) / 36 * 36).clamp(36, 504).min(grid.tile_rows().max(1));
            let stride = k.next_multiple_of(16);
            let stride = if (stride * 4).is_multiple_of(4096) { stride + 16 } else { stride };
            Side::Pixels { grid, block, stride }
        }
    };
    let name = format!("gated_{} {}", gemm.tile_name(), gemm.isa().name());
    Box::new(Gated { name, spec, ld, gemm, packed, side, scale: isa.entry::<Scale>(), weigh: isa.entry::<Weigh>() })
}

/// Bytes of scaled pixels that stay in the second cache beside the weights in use.
const PIXEL_BYTES: usize = 384 << 10;

/// Bytes of scaled weights that stay there beside the pixels in use.
const WEIGHT_BYTES: usize = 128 << 10;

/// About 20 µs of one core.
const MACS_PER_TILE: usize = 2_500_000;

/// Fewer pixels than this do not pay for the weights they pull in.
const LEAST_ROWS: usize = 36;

/// Cuts pixels and panels into tiles, no fewer than a few threads need and an even number of them. Of the ways to do so,
/// the one that moves the least: every block of pixels reads all weights, every group of panels scales all pixels, which
/// takes three times as long as reading them.
fn cut(spec: &ConvSpec, gemm: &Gemm) -> Grid {
    let (rows, k) = (spec.output.pixels(), spec.input.c);
    let (weights, activations) = (gemm.packed_bytes(), 4 * k * rows);
    let wanted = (rows * spec.output.c * k / MACS_PER_TILE).clamp(1, 8 * spec.output.n.clamp(1, 4));
    let cost = |&[blocks, groups]: &[usize; 2]| {
        let tiles = blocks * groups;
        let odd = if tiles > 1 && tiles < 16 { tiles % 2 } else { 0 };
        (wanted.saturating_sub(tiles), odd, blocks * weights + 3 * groups * activations)
    };
    let blocks = 1..=(rows / LEAST_ROWS).clamp(1, wanted);
    let cuts = blocks.flat_map(|blocks| (1..=gemm.panels().min(wanted)).map(move |groups| [blocks, groups]));
    Grid::of([rows, gemm.panels()], cuts.min_by_key(cost).expect("at least one block"))
}

/// Tiles of each image if its weights are to be scaled: where that is a fraction of the work of scaling the pixels.
fn by_weights(spec: &ConvSpec, gemm: &Gemm) -> Option<usize> {
    let plane = spec.output.h * spec.output.w;
    let lanes: usize = (0..gemm.panels()).map(|panel| gemm.width(panel)).sum();
    let most = plane / (4 * lanes);
    let wanted = (plane * spec.output.c * spec.input.c / MACS_PER_TILE).clamp(1, 32);
    (most >= wanted.min(4) && gemm.packed_bytes() <= WEIGHT_BYTES).then(|| wanted.min(most))
}

struct Gated {
    name: String,
    spec: ConvSpec,
    /// Floats from one image's gate to the next.
    ld: usize,
    gemm: Gemm,
    packed: AlignedBuf,
    side: Side,
    scale: unsafe fn(Scale),
    weigh: unsafe fn(Weigh),
}

/// What is scaled, and how the work is cut.
enum Side {
    /// Blocks of pixels in tiles of the grid, a pixel every `stride` floats of scratch memory.
    Pixels { grid: Grid, block: usize, stride: usize },
    /// The weights, for each of the parts of every image.
    Weights { parts: usize },
}

impl Kernel for Gated {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tiles(&self) -> usize {
        match &self.side {
            _ if self.spec.output.pixels() == 0 => 0,
            Side::Pixels { grid, .. } => grid.tiles(),
            Side::Weights { parts } => self.spec.output.n * parts,
        }
    }

    fn scratch(&self) -> usize {
        // Pointers take two floats each.
        match self.side {
            Side::Pixels { block, stride, .. } => block * (stride + 2),
            Side::Weights { parts } => self.gemm.packed_len() + 2 * self.plane().div_ceil(parts),
        }
    }

    fn resident_bytes(&self) -> usize {
        4 * self.packed.len()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        // SAFETY: passed on.
        unsafe {
            match &self.side {
                Side::Pixels { grid, block, stride } => self.pixels(grid.tile(tile), io, scratch, [*block, *stride]),
                Side::Weights { parts } => {
                    let (image, part) = (tile / parts, tile % parts);
                    let plane = self.plane();
                    self.weights(image, part * plane / parts..(part + 1) * plane / parts, io, scratch);
                }
            }
        }
    }
}

impl Gated {
    /// Pixels of an image.
    fn plane(&self) -> usize {
        self.spec.input.h * self.spec.input.w
    }

    /// Scales pixels, at most `block` at a time, and multiplies them.
    ///
    /// # Safety
    /// As [`Kernel::run`] for these rows and panels.
    unsafe fn pixels(
        &self,
        (rows, panels): (Range<usize>, Range<usize>),
        io: &Io,
        scratch: &mut [f32],
        [block, stride]: [usize; 2],
    ) {
        let (scaled, table) = scratch.split_at_mut(block * stride);
        let (scaled, table) = (scaled.as_mut_ptr(), table.as_mut_ptr().cast::<*const f32>());
        let (input, plane) = (self.spec.input, self.plane());
        // SAFETY: at most `block` pixels are scaled at a time, each with the gate of its image; the table has an entry for
        // each; `io` fits the maps.
        unsafe {
            (0..block).for_each(|i| *table.add(i) = scaled.cast_const().add(i * stride));
            let blocks = rows.len().div_ceil(block);
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
                        y: scaled.add((pixel - first) * stride),
                        stride,
                        pixels,
                        channels: input.c,
                    });
                    pixel += pixels;
                }
                let from = Rows { table, stride: block, skip: 0 };
                let to = target(&self.spec, io, first, 0);
                self.gemm.run(self.packed.as_ptr(), end - first, from, panels.clone(), to, &mut []);
            }
        }
    }

    /// Scales the weights for an image and multiplies some of its pixels.
    ///
    /// # Safety
    /// As [`Kernel::run`] for these pixels.
    unsafe fn weights(&self, image: usize, pixels: Range<usize>, io: &Io, scratch: &mut [f32]) {
        let (gemm, input, first) = (&self.gemm, self.spec.input, image * self.plane() + pixels.start);
        let (scaled, table) = scratch.split_at_mut(gemm.packed_len());
        let table = table.as_mut_ptr().cast::<*const f32>();
        scaled[gemm.bias_at()..].copy_from_slice(&self.packed[gemm.bias_at()..]);
        // SAFETY: the gate has a factor for every row of a panel's weights, and the table an entry for every pixel; `io`
        // fits the maps.
        unsafe {
            let gate = io.inputs[2].add(image * self.ld);
            for panel in 0..gemm.panels() {
                let from = gemm.weights_of(panel).start;
                let (x, y, width) = (self.packed.as_ptr().add(from), scaled.as_mut_ptr().add(from), gemm.width(panel));
                (self.weigh)(Weigh { x, gate, y, rows: input.c, width });
            }
            let x = io.inputs[0].add(first * input.ld);
            (0..pixels.len()).for_each(|i| *table.add(i) = x.add(i * input.ld));
            let rows = Rows { table, stride: pixels.len(), skip: 0 };
            gemm.run(scaled.as_ptr(), pixels.len(), rows, 0..gemm.panels(), target(&self.spec, io, first, 0), &mut []);
        }
    }
}

/// `y[k, n] = gate[k] · x[k, n]` for rows of whole registers.
#[derive(Clone, Copy)]
struct Weigh {
    x: *const f32,
    gate: *const f32,
    y: *mut f32,
    rows: usize,
    width: usize,
}

impl Task for Weigh {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the gate has a factor for each of the rows, which are whole registers long.
        unsafe {
            for k in 0..self.rows {
                let factor = S::splat(*self.gate.add(k));
                for at in (k * self.width..(k + 1) * self.width).step_by(S::LANES) {
                    S::store(self.y.add(at), S::mul(factor, S::load(self.x.add(at))));
                }
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

    type Prepare = fn(ConvSpec, usize, &dyn Weights, Option<&[f32]>, Isa) -> Box<dyn Kernel>;

    fn check([n, h, w]: [usize; 3], [k, c]: [usize; 2], gap: usize, residual: bool) {
        let window = Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) };
        let placed = window.place([h, w], "test").unwrap();
        let (input, output) = (Map::new([n, h, w, k], k + gap), Map::new([n, h, w, c], c + gap));
        let activation = residual.then_some(Activation::Relu);
        let epilogue = Epilogue { activation, residual: residual.then_some(c + gap) };
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
        let gates = to_map(&gate, Map::new([n, 1, 1, k], k + gap), f32::NAN);
        let plain: Prepare = plain;
        let ways = [(true, plain), (strassen::applicable(&spec), strassen::gated)];
        let ways = ways.into_iter().filter(|(able, _)| *able).map(|(_, prepare)| prepare);
        for (&isa, prepare) in Isa::available().iter().flat_map(|isa| ways.clone().map(move |way| (isa, way))) {
            let kernel = prepare(spec, k + gap, &weight, Some(&bias), isa);
            let mut y = if residual { to_map(&r, output, SENTINEL) } else { vec![SENTINEL; output.extent()] };
            let io = Io::new(&[source.as_ptr(), y.as_ptr(), gates.as_ptr()], y.as_mut_ptr());
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
            for channels in [[1, 1], [8, 16], [33, 24], [100, 40], [144, 130], [96, 64]] {
                check(image, channels, 0, false);
                check(image, channels, 5, true);
            }
        }
        // Blocks end inside images, and weights are too large for the first cache.
        check([5, 9, 9], [600, 70], 0, true);
        // Several tiles of every image scale its weights.
        check([2, 60, 60], [100, 40], 5, true);
    }

    #[test]
    fn the_exact_precision_takes_plain_sums_behind_a_gate_too() {
        let (window, maps) = (Window::square(1), [512, 128].map(|c| Map::dense([1, 24, 24, c])));
        let placed = window.place([24; 2], "test").unwrap();
        let [input, output] = maps;
        let spec = ConvSpec { input, output, window, placed, groups: 1, epilogue: Epilogue::default() };
        let weight = noise(512 * 128, 1);
        let name = |precision| gated(spec, 512, &weight, None, precision, Isa::Scalar).name();
        assert!(!name(Precision::Exact).contains("strassen"), "{}", name(Precision::Exact));
        let fast = name(Precision::Fast);
        assert_eq!(fast.contains("strassen"), crate::simd::adds_apart(), "{fast}");
    }
}
