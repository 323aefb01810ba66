//! Between the user's NCHW and the channels-last maps inside.

#![allow(unsafe_code, reason = "transposes through raw pointers, beside foreign channels")]

use super::light::{Light, Tiled, Tiling};
use super::{Io, Kernel, Map};
use crate::simd::{Isa, Simd};

/// Packs contiguous `[n, c, h, w]` into a map that may be higher and wider: `before` rows and columns of zeros go above
/// and to the left, what is left over below and to the right. So the first convolution finds its padding in place.
/// Input: the NCHW elements.
pub fn from_nchw([n, c, h, w]: [usize; 4], output: Map, before: [usize; 2], isa: Isa) -> impl Kernel {
    assert_eq!((n, c), (output.n, output.c), "images and channels");
    assert!(before[0] + h <= output.h && before[1] + w <= output.w, "{h}×{w} at {before:?} of {output:?}");
    let tiling = Tiling::new(n * output.h, output.w * c);
    Light { isa, kernel: Pack { size: [h, w], output, before, tiling } }
}

/// Unpacks a map into contiguous `[n, c, h, w]`. Input: the map.
pub fn to_nchw(input: Map, isa: Isa) -> impl Kernel {
    flatten(input, Map::dense([input.n, 1, 1, input.c * input.h * input.w]), isa)
}

/// Unpacks each image into one vector in the order `c, h, w`, as `torch.flatten` does; the vectors may lie apart. Input:
/// the map.
pub fn flatten(input: Map, output: Map, isa: Isa) -> impl Kernel {
    let features = input.c * input.h * input.w;
    assert_eq!([output.n, output.h, output.w, output.c], [input.n, 1, 1, features], "{input:?} flattened");
    let blocks = input.c.div_ceil(BLOCK);
    let tiling = Tiling::new(input.n * blocks, BLOCK * input.h * input.w);
    Light { isa, kernel: Unpack { input, image: output.ld, blocks, tiling } }
}

/// Channels and pixels transposed together; a block fits in the first cache.
const BLOCK: usize = 16;

struct Pack {
    size: [usize; 2],
    output: Map,
    before: [usize; 2],
    tiling: Tiling,
}

impl Tiled for Pack {
    fn name(&self) -> String {
        "from_nchw".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (map, [h, w], [above, left]) = (self.output, self.size, self.before);
        for row in self.tiling.range(tile) {
            let (n, oy) = (row / map.h, row % map.h);
            // SAFETY: `row` is a row of the map, `oy − above` one of the image `n` of `c` planes of `h·w`.
            unsafe {
                let y = io.output.add(row * map.w * map.ld);
                if oy < above || oy >= above + h {
                    zero(y, map.w, map);
                    continue;
                }
                let x = io.inputs[0].add((n * map.c * h + oy - above) * w);
                zero(y, left, map);
                let to = y.wrapping_add(left * map.ld);
                match (map.c, map.ld) {
                    (1, 1) => std::ptr::copy_nonoverlapping(x, to, w),
                    (3, 3) => interleave::<3>(x, h * w, to, 3, w),
                    (3, ld) => interleave::<3>(x, h * w, to, ld, w),
                    (4, 4) => interleave::<4>(x, h * w, to, 4, w),
                    _ => interleave_any(x, h * w, to, map, w),
                }
                zero(y.wrapping_add((left + w) * map.ld), map.w - left - w, map);
            }
        }
    }
}

/// Zeros `pixels` pixels.
///
/// # Safety
/// They are pixels of a map with the channels and the stride of `map`, or there are none.
#[inline(always)]
unsafe fn zero(y: *mut f32, pixels: usize, map: Map) {
    for pixel in 0..pixels {
        // SAFETY: passed on.
        unsafe { std::ptr::write_bytes(y.add(pixel * map.ld), 0, map.c) };
    }
}

/// `to[x·ld + c] = from[c·plane + x]` for `x < w` and `C` channels.
///
/// # Safety
/// All of these are valid and do not overlap.
#[inline(always)]
unsafe fn interleave<const C: usize>(from: *const f32, plane: usize, to: *mut f32, ld: usize, w: usize) {
    for x in 0..w {
        for c in 0..C {
            // SAFETY: passed on.
            unsafe { *to.add(x * ld + c) = *from.add(c * plane + x) };
        }
    }
}

/// The same for any number of channels, in blocks that keep both sides in cache.
///
/// # Safety
/// As [`interleave`], with the channels and the stride of `map`.
#[inline(always)]
unsafe fn interleave_any(from: *const f32, plane: usize, to: *mut f32, map: Map, w: usize) {
    for first in (0..map.c).step_by(BLOCK) {
        for start in (0..w).step_by(BLOCK) {
            for x in start..w.min(start + BLOCK) {
                for c in first..map.c.min(first + BLOCK) {
                    // SAFETY: passed on.
                    unsafe { *to.add(x * map.ld + c) = *from.add(c * plane + x) };
                }
            }
        }
    }
}

struct Unpack {
    input: Map,
    /// Floats from one image's vector to the next.
    image: usize,
    /// Blocks of channels in an image.
    blocks: usize,
    tiling: Tiling,
}

impl Tiled for Unpack {
    fn name(&self) -> String {
        "to_nchw".to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let map = self.input;
        let plane = map.h * map.w;
        for item in self.tiling.range(tile) {
            let (n, first) = (item / self.blocks, item % self.blocks * BLOCK);
            let count = BLOCK.min(map.c - first);
            for start in (0..plane).step_by(BLOCK) {
                let pixels = BLOCK.min(plane - start);
                // SAFETY: `n`, the pixels and the channels lie in the map, whose images have `c · plane` elements.
                unsafe {
                    let x = io.inputs[0].add((n * plane + start) * map.ld + first);
                    let y = io.output.add(n * self.image + first * plane + start);
                    transpose(x, map.ld, y, plane, [pixels, count]);
                }
            }
        }
    }
}

/// `y[c·plane + p] = x[p·ld + c]` for `p < pixels`, `c < channels`, both at most [`BLOCK`]. The block passes through the
/// stack, so that both maps are touched along their contiguous side.
///
/// # Safety
/// All of these are valid and do not overlap.
#[inline(always)]
unsafe fn transpose(x: *const f32, ld: usize, y: *mut f32, plane: usize, [pixels, channels]: [usize; 2]) {
    let mut block = [[0.0f32; BLOCK]; BLOCK];
    for (p, row) in block.iter_mut().enumerate().take(pixels) {
        // SAFETY: passed on.
        unsafe { std::ptr::copy_nonoverlapping(x.add(p * ld), row.as_mut_ptr(), channels) };
    }
    for c in 0..channels {
        let column: [f32; BLOCK] = std::array::from_fn(|p| block[p][c]);
        // SAFETY: passed on.
        unsafe { std::ptr::copy_nonoverlapping(column.as_ptr(), y.add(c * plane), pixels) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{maps, nchw, run, spread, values};
    use super::*;

    /// Four channels as well, which have a loop of their own.
    fn all_maps() -> impl Iterator<Item = Map> {
        maps().chain([Map::dense([2, 5, 20, 4]), Map::new([1, 2, 3, 4], 7)])
    }

    #[test]
    fn packing_keeps_every_pixel_and_unpacking_returns_it() {
        for map in all_maps() {
            let x = values(nchw(map).len(), 17);
            for &isa in Isa::available() {
                let packed = run(&from_nchw([map.n, map.c, map.h, map.w], map, [0; 2], isa), &[&x], map);
                assert_eq!(packed, x, "{map:?} {}", isa.name());
                let flat = Map::dense([1, 1, 1, x.len()]);
                assert_eq!(run(&to_nchw(map, isa), &[&spread(&x, map)], flat), x, "{map:?} {}", isa.name());
            }
        }
    }

    #[test]
    fn flattened_images_may_lie_apart() {
        for map in all_maps() {
            let x = values(nchw(map).len(), 18);
            let features = map.c * map.h * map.w;
            let output = Map::new([map.n, 1, 1, features], features + 6);
            for &isa in Isa::available() {
                assert_eq!(run(&flatten(map, output, isa), &[&spread(&x, map)], output), x, "{map:?} {}", isa.name());
            }
        }
    }

    #[test]
    fn the_border_is_zero_on_all_four_sides() {
        for map in all_maps() {
            let x = values(nchw(map).len(), 19);
            let [above, left, below, right] = [2, 3, 1, 4];
            let output = Map::new([map.n, above + map.h + below, left + map.w + right, map.c], map.ld);
            let mut expected = vec![0.0; nchw(output).len()];
            for (i, &v) in x.iter().enumerate() {
                let (column, row, plane) = (i % map.w, i / map.w % map.h, i / (map.w * map.h));
                expected[(plane * output.h + above + row) * output.w + left + column] = v;
            }
            for &isa in Isa::available() {
                let kernel = from_nchw([map.n, map.c, map.h, map.w], output, [above, left], isa);
                assert_eq!(run(&kernel, &[&x], output), expected, "{map:?} {}", isa.name());
            }
        }
    }
}
