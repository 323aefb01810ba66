//! The gradient of one sample on its way to the corners it was taken from.

use super::SUMS;
use crate::kernels::Map;
use crate::simd::Simd;

/// Where a sample lies: the corners' pixels of the image (none outside), their weights without the factor, and the
/// distance from the first.
pub(super) struct Place {
    pub(super) at: [Option<usize>; 4],
    pub(super) weight: [f32; 4],
    pub(super) below: f32,
    pub(super) right: f32,
}

impl Place {
    /// None if the sample and its slopes are zero.
    #[inline(always)]
    pub(super) fn new([y, x]: [f32; 2], Map { h, w, .. }: Map) -> Option<Place> {
        // One pixel outside the value is zero, but its slope is not.
        if !(y >= -1.0 && y < h as f32 && x >= -1.0 && x < w as f32) {
            return None;
        }
        let (top, left) = (y.floor(), x.floor());
        let (below, right) = (y - top, x - left);
        let (y, x) = (top as isize, left as isize);
        let pixel = |y: isize, x: isize| {
            let inside = (0..h as isize).contains(&y) && (0..w as isize).contains(&x);
            inside.then(|| y as usize * w + x as usize)
        };
        Some(Place {
            at: [pixel(y, x), pixel(y, x + 1), pixel(y + 1, x), pixel(y + 1, x + 1)],
            weight: [(1.0 - below) * (1.0 - right), (1.0 - below) * right, below * (1.0 - right), below * right],
            below,
            right,
        })
    }
}

/// The gradient of one sample on its way: a run of channels of it, of the corners and of their gradients.
pub(super) struct Scatter<S: Simd> {
    pub(super) ds: *const f32,
    pub(super) x: [*const f32; 4],
    pub(super) dx: [*mut f32; 4],
    pub(super) weights: [S::V; 4],
    pub(super) factor: S::V,
    pub(super) below: S::V,
    pub(super) right: S::V,
    /// Σ ds·sample, Σ ds·∂sample/∂y and Σ ds·∂sample/∂x, all without the factor.
    pub(super) sums: [S::V; SUMS],
}

impl<S: Simd> Scatter<S> {
    /// All of so many channels.
    #[inline(always)]
    pub(super) unsafe fn run(mut self, channels: usize) -> [f32; SUMS] {
        // SAFETY: the mask keeps to the channels.
        unsafe {
            let whole = channels / S::LANES * S::LANES;
            for c in (0..whole).step_by(S::LANES) {
                self.register::<true>(c, S::mask(S::LANES));
            }
            if whole < channels {
                self.register::<false>(whole, S::mask(channels - whole));
            }
            [S::hsum(self.sums[0]), S::hsum(self.sums[1]), S::hsum(self.sums[2])]
        }
    }

    /// A register of channels, of which the mask leaves some out unless it is `WHOLE`.
    #[inline(always)]
    unsafe fn register<const WHOLE: bool>(&mut self, c: usize, mask: S::M) {
        // SAFETY: passed on.
        unsafe {
            let d = if WHOLE { S::load(self.ds.add(c)) } else { S::load_masked(self.ds.add(c), mask) };
            let scaled = S::mul(d, self.factor);
            let mut v = [S::zero(); 4];
            for corner in 0..4 {
                let (from, to) = (self.x[corner].add(c), self.dx[corner].add(c));
                if WHOLE {
                    v[corner] = S::load(from);
                    S::store(to, S::fma(scaled, self.weights[corner], S::load(to)));
                } else {
                    v[corner] = S::load_masked(from, mask);
                    S::store_masked(to, S::fma(scaled, self.weights[corner], S::load_masked(to, mask)), mask);
                }
            }
            let mut value = S::mul(v[0], self.weights[0]);
            for corner in 1..4 {
                value = S::fma(v[corner], self.weights[corner], value);
            }
            let (down_left, down_right) = (S::sub(v[2], v[0]), S::sub(v[3], v[1]));
            let down = S::fma(self.right, S::sub(down_right, down_left), down_left);
            let (above, under) = (S::sub(v[1], v[0]), S::sub(v[3], v[2]));
            let across = S::fma(self.below, S::sub(under, above), above);
            self.sums[0] = S::fma(d, value, self.sums[0]);
            self.sums[1] = S::fma(d, down, self.sums[1]);
            self.sums[2] = S::fma(d, across, self.sums[2]);
        }
    }
}
