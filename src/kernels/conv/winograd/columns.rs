//! The products of few input channels, and half of the transform of their sums.
//!
//! With a dozen channels a sum is shorter than the way of `M` through the second cache and back. So the sums of a column of
//! positions stay in registers, for a few squares, until the first of the two transforms has made fewer of them:
//!
//! ```text
//! for column j of positions:  H[·][j] = Aᵀ · [ Σ over channels of U[·][j] ⊙ V[·][j] ]
//! ```

#![allow(unsafe_code, reason = "multiplies what lies in the scratch of a convolution")]

use super::Winograd;
use super::points::{MOST_IN, Points};
use crate::simd::{Simd, Task};
use std::marker::PhantomData;

/// Input channels, at most: floats from square to square of V.
pub(super) const FEW: usize = 16;
/// Squares side by side: with six positions of each, what 32 registers hold beside the weights.
pub(super) const SIDE: usize = 4;
/// The same for 16 registers.
const NARROW_SIDE: usize = 2;

/// `H = Aᵀ·M` for the squares of a block and the channels of a panel: `half[(i·IN + j)·stride + square·ld + channel]`, as
/// far apart as M would be.
pub(super) struct Columns<'a, P> {
    pub(super) of: &'a Winograd,
    /// Squares; V has room for whole [`SIDE`]s of them.
    pub(super) count: usize,
    /// Registers of output channels.
    pub(super) registers: usize,
    /// The panel's weights.
    pub(super) u: *const f32,
    pub(super) v: *const f32,
    pub(super) half: *mut f32,
    pub(super) points: PhantomData<P>,
}

impl<P: Points> Task for Columns<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (channels, width) = (self.of.spec.input.c, self.registers * S::LANES);
        for j in 0..P::IN {
            for first in (0..width).step_by(S::LANES) {
                let u = self.u.wrapping_add(j * channels * width + first);
                let v = self.v.wrapping_add(j * self.of.stride_v);
                let to = self.half.wrapping_add(j * self.of.stride_m + first);
                // SAFETY: weights lie at every position for every channel, V and H at every position for every square.
                unsafe {
                    match S::REGISTERS {
                        32.. => self.squares::<S, SIDE>(u, v, to),
                        _ => self.squares::<S, NARROW_SIDE>(u, v, to),
                    }
                }
            }
        }
    }
}

impl<P: Points> Columns<'_, P> {
    /// A register of output channels of one column for all squares.
    #[inline(always)]
    unsafe fn squares<S: Simd, const N: usize>(&self, u: *const f32, v: *const f32, to: *mut f32) {
        let (channels, width, ld) = (self.of.spec.input.c, self.registers * S::LANES, self.of.ld_m);
        // From row to row of a square of positions.
        let [down_u, down_v, down] = [channels * width, self.of.stride_v, self.of.stride_m].map(|apart| P::IN * apart);
        // SAFETY: passed on.
        unsafe {
            for first in (0..self.count).step_by(N) {
                let v = v.add(first * FEW);
                let mut sums = [[S::zero(); MOST_IN]; N];
                for k in 0..channels {
                    for i in 0..P::IN {
                        let weight = S::load(u.add(i * down_u + k * width));
                        for n in 0..N {
                            sums[n][i] = S::fma(S::splat(*v.add(i * down_v + n * FEW + k)), weight, sums[n][i]);
                        }
                    }
                }
                for n in 0..N {
                    let half = P::after::<S>(sums[n]);
                    for i in 0..P::OUT {
                        S::store(to.add(i * down + (first + n) * ld), half[i]);
                    }
                }
            }
        }
    }
}
