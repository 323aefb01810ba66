//! Maps with something between the pixels, for the tests of this room.

use crate::kernels::Map;

/// What the gaps between output pixels hold before and after.
pub(super) const SENTINEL: f32 = 12345.0;

/// Numbers in [-1, 1), the same ones every time.
pub(super) fn noise(len: usize, mut seed: u32) -> Vec<f32> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
    .take(len)
    .collect()
}

/// A contiguous NCHW batch as a map, with `gap` between pixels.
pub(super) fn to_map(nchw: &[f32], map: Map, gap: f32) -> Vec<f32> {
    let mut data = vec![gap; map.extent()];
    for (i, &v) in nchw.iter().enumerate() {
        data[position(i, map)] = v;
    }
    data
}

/// Where element `i` of the NCHW batch lies in the map.
pub(super) fn position(i: usize, map: Map) -> usize {
    let (pixel, plane) = (i % (map.h * map.w), i / (map.h * map.w));
    ((plane / map.c) * map.h * map.w + pixel) * map.ld + plane % map.c
}
