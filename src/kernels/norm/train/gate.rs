//! Squeeze-and-excitation behind a norm, on the way back.

#![allow(unsafe_code, reason = "vector loads from raw pointers")]

use crate::kernels::{Io, Map};
use crate::simd::Simd;
use std::ops::Range;

/// What the incoming gradient is made into first where squeeze-and-excitation stands behind the activation: the map was
/// multiplied by a gate, and the gate follows from its means. With `dz` the gradient of the product and `dm` that of the
/// means, both factors one per image and channel, `dy = dz · gate + dm / pixels of an image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Floats from image to image of the gate, `inputs[3]`.
    pub factor: usize,
    /// Floats from image to image of the gradient of the means, `inputs[5]`.
    pub means: usize,
}

/// A range of pixels by images, if there is a gate, or else as a whole.
pub(super) fn pieces(
    pixels: Range<usize>,
    map: Map,
    gate: Option<Gate>,
) -> impl Iterator<Item = (usize, Range<usize>)> {
    let plane = if gate.is_some() { (map.h * map.w).max(1) } else { usize::MAX };
    let images = pixels.start / plane..pixels.end.div_ceil(plane);
    images.map(move |image| (image, pixels.start.max(image * plane)..pixels.end.min((image + 1) * plane)))
}

/// Factor and summand of `V` registers of channels of an image, from `c` on.
///
/// # Safety
/// Gate and gradient of the means have `lanes` channels there, all if there is more than one register.
#[inline(always)]
pub(super) unsafe fn gate_of<S: Simd, const V: usize>(
    gate: Gate,
    map: Map,
    io: &Io,
    image: usize,
    (c, lanes): (usize, usize),
) -> [[S::V; V]; 2] {
    // SAFETY: as demanded.
    unsafe {
        let (mask, share) = (S::mask(lanes), S::splat(1.0 / (map.h * map.w) as f32));
        let [mut factor, mut summand] = [[S::zero(); V]; 2];
        for v in 0..V {
            let [at, means] = [(3, gate.factor), (5, gate.means)]
                .map(|(input, ld)| io.inputs[input].wrapping_add(image * ld + c + v * S::LANES));
            factor[v] = S::load_masked(at, mask);
            summand[v] = S::mul(S::load_masked(means, mask), share);
        }
        [factor, summand]
    }
}
