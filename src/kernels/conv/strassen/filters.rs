//! The right sides of the products: sums of weights.

use crate::kernels::Weights;
use crate::kernels::conv::weights::Packing;
use crate::kernels::gemm::{Extent, Gemm};

/// Packs the sums of weights, a panel at a time.
pub(super) struct StrassenPacking {
    pub(super) gemm: Gemm,
}

/// Output channels of either half, and input channels, that are packed together.
pub(super) const ROWS: usize = 16;

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
        let rows = |start: usize, end: usize| start * 2 * half..end * 2 * half;
        for start in columns.clone().step_by(ROWS) {
            let end = columns.end.min(start + ROWS);
            weight.with(rows(start, end), &mut |first| {
                weight.with(rows(n + start, n + end), &mut |second| {
                    self.pack([first, second], start - columns.start, (width, &mut *values));
                });
            });
        }
    }
}

impl StrassenPacking {
    /// Writes the seven sums of weights of up to 16 columns of a panel from `column` on: those of product `p` and channel `k` to
    /// row `p · half + k`. `halves` are the weights of the output channels in either half. Lanes behind the last column keep what
    /// they hold: they are the upper half of a register of which the lower is multiplied.
    fn pack(&self, halves: [&[f32]; 2], column: usize, (width, values): (usize, &mut [f32])) {
        let half = self.gemm.extent().k;
        let columns = (halves[0].len() / (2 * half)).min(ROWS);
        // The last of a half that is not a multiple overlaps the one before.
        for block in (0..half).step_by(ROWS).map(|block| block.min(half - ROWS)) {
            // Numbered as in the product: input half, then output half.
            let [w11, w12] = halves.map(|weights| self.square(weights, block));
            let [w21, w22] = halves.map(|weights| self.square(weights, half + block));
            for i in 0..ROWS {
                let [a, b, c, d] = [&w11[i], &w12[i], &w21[i], &w22[i]];
                let mut put = |product: usize, sum: [f32; ROWS]| {
                    values[(product * half + block + i) * width + column..][..columns].copy_from_slice(&sum[..columns]);
                };
                put(0, std::array::from_fn(|n| a[n] + d[n]));
                put(1, *a);
                put(2, std::array::from_fn(|n| b[n] - d[n]));
                put(3, std::array::from_fn(|n| c[n] - a[n]));
                put(4, *d);
                put(5, std::array::from_fn(|n| a[n] + b[n]));
                put(6, std::array::from_fn(|n| c[n] + d[n]));
            }
        }
    }

    /// The weights of up to 16 output channels and of 16 input channels from `channel` on, the former side by side.
    fn square(&self, weights: &[f32], channel: usize) -> [[f32; ROWS]; ROWS] {
        let mut rows = [[0.0; ROWS]; ROWS];
        for (row, weights) in rows.iter_mut().zip(weights.chunks_exact(2 * self.gemm.extent().k)) {
            row.copy_from_slice(&weights[channel..][..ROWS]);
        }
        std::array::from_fn(|k| std::array::from_fn(|n| rows[n][k]))
    }
}
