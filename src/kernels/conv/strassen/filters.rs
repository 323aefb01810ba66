//! The right sides of the products: sums of weights.

#![allow(unsafe_code, reason = "adds and streams registers, and packs into raw memory")]

use crate::kernels::Weights;
use crate::kernels::conv::weights::Packing;
use crate::kernels::gemm::{Extent, Gemm};
use crate::kernels::weights::{WIDEST, put, side_by_side, streams};
use crate::simd::{Simd, Task};

/// Packs the sums of weights, a panel at a time.
pub(super) struct StrassenPacking {
    pub(super) gemm: Gemm,
}

/// Input channels that are packed together.
const ROWS: usize = 16;

impl Packing for StrassenPacking {
    fn len(&self) -> usize {
        self.gemm.packed_len()
    }

    fn pieces(&self) -> usize {
        self.gemm.panels()
    }

    unsafe fn piece(&self, panel: usize, weight: &dyn Weights, _: Option<&[f32]>, packed: *mut f32) {
        let (columns, width, range) = (self.gemm.columns(panel), self.gemm.width(panel), self.gemm.weights_of(panel));
        // SAFETY: the panel's weights lie here; pieces do not overlap.
        let values = unsafe { std::slice::from_raw_parts_mut(packed.add(range.start), range.len()) };
        let Extent { k: half, n, .. } = self.gemm.extent();
        let rows = |first: usize| (first + columns.start) * 2 * half..(first + columns.end) * 2 * half;
        weight.with(rows(0), &mut |first| {
            weight.with(rows(n), &mut |second| {
                let sums = Sums { halves: [first, second], half, count: columns.len(), width, values: &mut *values };
                // SAFETY: the task has no condition of its own.
                unsafe { self.gemm.isa().run(sums) };
            });
        });
    }
}

/// Makes the seven sums of weights of a panel: those of product `p` and channel `k` go to row `p · half + k`. Lanes behind the
/// last column are zero.
struct Sums<'a> {
    /// The weights of the output channels in either half.
    halves: [&'a [f32]; 2],
    /// Half of the input channels.
    half: usize,
    /// Columns.
    count: usize,
    width: usize,
    values: &'a mut [f32],
}

impl Task for Sums<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Sums { halves, half, count, width, values } = self;
        let values = &mut values[..7 * half * width];
        let past = streams::<S>(values);
        // Numbered as in the product: input half, then output half.
        let mut quarters = [[[0.0; WIDEST]; ROWS]; 4];
        for block in (0..half).step_by(ROWS) {
            let len = ROWS.min(half - block);
            for (quarter, to) in quarters.iter_mut().enumerate() {
                let from = &halves[quarter % 2][quarter / 2 * half + block..];
                // SAFETY: the caller vouches for the instruction set.
                unsafe { side_by_side::<S>(from, [2 * half, ROWS], [count, len], to) };
            }
            for k in 0..len {
                for column in (0..width).step_by(S::LANES) {
                    // SAFETY: there are `7 · half` rows of whole registers.
                    unsafe {
                        let [a, b, c, d] = [0, 1, 2, 3].map(|i| S::load(quarters[i][k].as_ptr().add(column)));
                        let sums = [S::add(a, d), a, S::sub(b, d), S::sub(c, a), d, S::add(a, b), S::add(c, d)];
                        for (product, sum) in sums.into_iter().enumerate() {
                            let row = product * half + block + k;
                            put::<S>(values.as_mut_ptr().add(row * width + column), sum, past);
                        }
                    }
                }
            }
        }
        // SAFETY: it has no condition.
        unsafe { S::streamed() };
    }
}
