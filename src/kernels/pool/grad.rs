//! Pooling while training: maxima that remember where they were, and the way back.
//!
//! The windows of neighbouring outputs overlap, so an image's channels, in blocks, are one tile: no two tiles write to the
//! same place.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::{Span, regions, windows};
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::{Io, Kernel, Map, Store};
use crate::shape::{Placed, Window};
use crate::simd::{Isa, Simd};

/// Most taps of a window whose maxima can be remembered: their numbers are bytes.
pub const MOST_TAPS: usize = 256;

/// Channels of a tile.
const CHANNELS: usize = 64;

/// Floats that the numbers of a map's maxima take.
pub fn indices_len(output: Map) -> usize {
    (output.pixels() * output.c).div_ceil(4)
}

/// As [`max`](super::max), and remembers which tap it was, the first of equals as in PyTorch: `also[0]` holds one byte per
/// output element, [`indices_len`] floats.
pub fn max(input: Map, output: Map, window: Window, placed: Placed, isa: Isa) -> impl Kernel {
    assert!(window.taps() <= MOST_TAPS, "the taps of {window:?} are counted in bytes");
    let tiling = Tiling::new(output.pixels(), output.c * window.taps());
    let spans = windows(&window, &placed, false);
    Light { isa, kernel: Remembering { input, output, spans, dilation: window.dilation, tiling } }
}

struct Remembering {
    input: Map,
    output: Map,
    spans: [Vec<Span>; 2],
    dilation: [usize; 2],
    tiling: Tiling,
}

impl Tiled for Remembering {
    fn name(&self) -> String {
        "max_pool_indices".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (input, output) = (self.input, self.output);
        for pixel in self.tiling.range(tile) {
            let (image, y, x) = (pixel / (output.h * output.w), pixel / output.w % output.h, pixel % output.w);
            let (rows, columns) = (self.spans[0][y], self.spans[1][x]);
            // SAFETY: the pixel lies in the output, its taps in the input; every element has a byte.
            unsafe {
                let best = std::slice::from_raw_parts_mut(io.output.add(pixel * output.ld), output.c);
                let indices = io.also[0].cast::<u8>().add(pixel * output.c);
                let indices = std::slice::from_raw_parts_mut(indices, output.c);
                best.fill(f32::NEG_INFINITY);
                indices.fill(0);
                for tap in 0..rows.count * columns.count {
                    let row = rows.first + tap / columns.count * self.dilation[0];
                    let column = columns.first + tap % columns.count * self.dilation[1];
                    let from = io.inputs[0].add(((image * input.h + row) * input.w + column) * input.ld);
                    let from = std::slice::from_raw_parts(from, output.c);
                    for ((best, index), &v) in best.iter_mut().zip(indices.iter_mut()).zip(from) {
                        let greater = v > *best || v.is_nan();
                        *best = if greater { v } else { *best };
                        *index = if greater { tap as u8 } else { *index };
                    }
                }
            }
        }
    }
}

/// The gradient of [`max`]. Inputs: the gradient of the output, the bytes. Output: the gradient of the input.
pub fn max_gradient(input: Map, output: Map, window: Window, placed: Placed, store: Store, isa: Isa) -> impl Kernel {
    let spans = windows(&window, &placed, false);
    Light { isa, kernel: Spread { input, output, spans, dilation: window.dilation, share: Share::Index, store } }
}

/// The gradient of [`average`](super::average). Input: that of the output. Output: that of the input.
pub fn average_gradient(
    [input, output]: [Map; 2],
    window: Window,
    placed: Placed,
    count_include_pad: bool,
    store: Store,
    isa: Isa,
) -> impl Kernel {
    let spans = windows(&window, &placed, count_include_pad);
    Light { isa, kernel: Spread { input, output, spans, dilation: window.dilation, share: Share::Equal, store } }
}

/// The gradient of [`adaptive_average`](super::adaptive_average). Input: that of the output. Output: that of the input.
pub fn adaptive_gradient(input: Map, output: Map, store: Store, isa: Isa) -> impl Kernel {
    let spans = regions(input, output);
    Light { isa, kernel: Spread { input, output, spans, dilation: [1; 2], share: Share::Equal, store } }
}

/// Who gets the gradient of a window.
#[derive(Clone, Copy, PartialEq)]
enum Share {
    /// The tap that is remembered.
    Index,
    /// All taps alike.
    Equal,
}

struct Spread {
    input: Map,
    output: Map,
    spans: [Vec<Span>; 2],
    dilation: [usize; 2],
    share: Share,
    store: Store,
}

impl Tiled for Spread {
    fn name(&self) -> String {
        if self.share == Share::Index { "max_pool_gradient" } else { "average_pool_gradient" }.to_owned()
    }

    fn tiles(&self) -> usize {
        self.input.n * self.input.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (input, output) = (self.input, self.output);
        let (image, c) = (tile % input.n, tile / input.n * CHANNELS);
        let len = CHANNELS.min(input.c - c);
        // SAFETY: these channels of this image belong to this tile; spans lie in the image.
        unsafe {
            let dx = |row: usize, column: usize| {
                let at = io.output.add(((image * input.h + row) * input.w + column) * input.ld + c);
                std::slice::from_raw_parts_mut(at, len)
            };
            if self.store == Store::Set {
                (0..input.h * input.w).for_each(|p| dx(p / input.w, p % input.w).fill(0.0));
            }
            for (y, rows) in self.spans[0].iter().enumerate() {
                for (x, columns) in self.spans[1].iter().enumerate() {
                    let pixel = (image * output.h + y) * output.w + x;
                    let dy = std::slice::from_raw_parts(io.inputs[0].add(pixel * output.ld + c), len);
                    let divisor = rows.divisor * columns.divisor;
                    let weight = if divisor == 0 { 0.0 } else { 1.0 / divisor as f32 };
                    for tap in 0..rows.count * columns.count {
                        let row = rows.first + tap / columns.count * self.dilation[0];
                        let to = dx(row, columns.first + tap % columns.count * self.dilation[1]);
                        match self.share {
                            Share::Equal => to.iter_mut().zip(dy).for_each(|(to, d)| *to += weight * d),
                            Share::Index => {
                                let indices = io.inputs[1].cast::<u8>().add(pixel * output.c + c);
                                let indices = std::slice::from_raw_parts(indices, len);
                                for ((to, &d), &index) in to.iter_mut().zip(dy).zip(indices) {
                                    *to += if index == tap as u8 { d } else { 0.0 };
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::light::testing::{assert_near, maps, nchw, run, run_tiles, spread, values};
    use super::super::super::naive;
    use super::*;
    use crate::shape::Padding;

    #[test]
    fn gradients_of_pools_agree_with_the_oracle_and_add_to_what_is_there() {
        let windows = [
            Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ceil: true, ..Window::square(3) },
            Window { kernel: [2, 3], stride: [1, 2], padding: Padding::Symmetric([0, 1]), ..Window::square(2) },
            Window { dilation: [2, 1], padding: Padding::Symmetric([1, 1]), ..Window::square(2) },
        ];
        let mut checked = 0;
        for map in maps() {
            // Many ties: the first of equals gets the gradient.
            let x: Vec<f32> = values(nchw(map).len(), 1).iter().map(|v| v.round()).collect();
            let old = values(nchw(map).len(), 2);
            let sum = |dx: &[f32]| -> Vec<f32> { dx.iter().zip(&old).map(|(a, b)| a + b).collect() };
            for window in windows {
                let Ok(placed) = window.place([map.h, map.w], "test") else { continue };
                checked += 1;
                let output = Map::new([map.n, placed.output[0], placed.output[1], map.c], map.c + 2);
                let dy = values(nchw(output).len(), 3);
                for &isa in Isa::available() {
                    let what = format!("{window:?} {map:?} {}", isa.name());
                    let mut indices = vec![0.0f32; indices_len(output)];
                    let mut y = vec![f32::NAN; output.extent()];
                    let memory = spread(&x, map);
                    let mut io = Io::new(&[memory.as_ptr()], y.as_mut_ptr());
                    io.also[0] = indices.as_mut_ptr();
                    run_tiles(&max(map, output, window, placed, isa), &io);
                    let most = naive::max_pool(&x, nchw(map), &window, &placed);
                    let expected = spread(&most, output);
                    assert!(y.iter().zip(&expected).all(|(a, b)| a == b || b.is_nan()), "{what}");
                    let expected = naive::backward::max_pool(&x, nchw(map), &window, &placed, &dy);
                    let dy = spread(&dy, output);
                    let kernel = max_gradient(map, output, window, placed, Store::Set, isa);
                    assert_near(&run(&kernel, &[&dy, &indices], map), &expected, 1e-6, &what);
                    let mut dx = spread(&old, map);
                    let kernel = max_gradient(map, output, window, placed, Store::Add, isa);
                    run_tiles(&kernel, &Io::new(&[dy.as_ptr(), indices.as_ptr()], dx.as_mut_ptr()));
                    assert_near(&dx, &spread(&sum(&expected), map), 1e-5, &what);
                }
                for include in [false, true] {
                    let expected = naive::backward::avg_pool(nchw(map), &window, &placed, include, &dy);
                    for &isa in Isa::available() {
                        let kernel = average_gradient([map, output], window, placed, include, Store::Set, isa);
                        let found = run(&kernel, &[&spread(&dy, output)], map);
                        assert_near(&found, &expected, 1e-6, &format!("{window:?} {map:?} {}", isa.name()));
                    }
                }
            }
            for size in [[1, 1], [2, 3]] {
                let output = Map::new([map.n, size[0], size[1], map.c], map.c);
                let dy = values(nchw(output).len(), 4);
                let expected = naive::backward::adaptive_avg_pool(nchw(map), size, &dy);
                for &isa in Isa::available() {
                    let kernel = adaptive_gradient(map, output, Store::Set, isa);
                    assert_near(&run(&kernel, &[&spread(&dy, output)], map), &expected, 1e-6, &format!("{map:?}"));
                }
            }
        }
        assert!(checked > 40, "{checked} windows fit");
    }
}
