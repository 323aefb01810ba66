//! The transform of filters by the [`points`](super::points) of a form, in f64, and how they are packed.

#![allow(unsafe_code, reason = "streams registers, and packs into raw memory")]

use super::Form;
use super::points::{F2, F2Five, F2Strided, F3, F3Four, F4, MOST_IN, MOST_TAPS, Points, Unstrided};
use crate::kernels::Weights;
use crate::kernels::conv::weights::{Direction, Order, Packing, fill_bias};
use crate::kernels::gemm::Gemm;
use crate::kernels::weights::whole;
use crate::simd::{Simd, Task};
use std::marker::PhantomData;

/// Filters that are transformed side by side.
pub(super) const SIDE: usize = 16;

/// `G·g` in f64: what comes out of one line of a square.
type Line<const N: usize> = [[f64; SIDE]; N];

/// `sum += factor · values`, side by side. Factors are constants, and most are zero in half of the taps.
#[inline(always)]
fn add(sum: &mut [f64; SIDE], factor: f64, values: &[f64; SIDE]) {
    if factor != 0.0 {
        for n in 0..SIDE {
            sum[n] += factor * values[n];
        }
    }
}

/// `G·g` for one line of taps. What two rows of a pair have in common is computed once.
#[inline(always)]
fn spread<P: Points>(g: &Line<MOST_TAPS>) -> Line<MOST_IN> {
    let mut line = [[0.0; SIDE]; MOST_IN];
    for i in 0..P::IN {
        if i == 0 || i > 2 * P::PAIRS {
            for y in 0..P::TAPS {
                add(&mut line[i], P::G[i][y], &g[y]);
            }
        } else if i % 2 == 1 {
            let [mut even, mut odd] = [[0.0; SIDE]; 2];
            for y in 0..P::TAPS {
                add(if y % 2 == 0 { &mut even } else { &mut odd }, P::G[i][y], &g[y]);
            }
            for n in 0..SIDE {
                (line[i][n], line[i + 1][n]) = (even[n] + odd[n], even[n] - odd[n]);
            }
        }
    }
    line
}

/// `G·g·Gᵀ` of up to 16 output channels in f64, rounded once: position `p` of input channel `k` and the `i`-th of the
/// output channels goes to `values[(p · channels + k) · width + first + i]`.
pub(super) struct Spread<'a, P> {
    /// The taps, those of the first output channel first.
    taps: &'a [f32],
    order: Order,
    channels: usize,
    first: usize,
    count: usize,
    width: usize,
    values: &'a mut [f32],
    points: PhantomData<P>,
}

impl<'a, P> Spread<'a, P> {
    /// The filters of `count` output channels, columns `first` and on of a panel of `width`.
    pub(super) fn new(
        taps: &'a [f32],
        order: Order,
        [channels, first, count, width]: [usize; 4],
        values: &'a mut [f32],
    ) -> Self {
        Spread { taps, order, channels, first, count, width, values, points: PhantomData }
    }
}

/// A panel of more floats is written past the caches: its positions lie so far apart that all fall into the same few sets.
const STREAMED: usize = 1 << 15;

impl<P: Points> Task for Spread<'_, P> {
    type Output = ();

    // Plain loops over fixed lengths: the compiler makes vectors of whatever the instruction set has.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Spread { taps, order, channels, first, count, width, values, .. } = self;
        let window = P::TAPS * P::TAPS;
        let streamed = values.len() >= STREAMED && count == SIDE;
        // Columns of taps, and rows of G·g.
        let mut g = [[[0.0; SIDE]; MOST_TAPS]; MOST_TAPS];
        let mut rows = [[[0.0; SIDE]; MOST_TAPS]; MOST_IN];
        for k in 0..channels {
            for n in 0..count {
                let of_output = &taps[n * order.output..];
                match &order.folded {
                    None => {
                        let from = &of_output[k * order.input..][..window];
                        for tap in 0..window {
                            g[tap % P::TAPS][tap / P::TAPS][n] = f64::from(from[order.tap(tap)]);
                        }
                    }
                    Some(folded) => {
                        for tap in 0..window {
                            let value = folded.at(k, tap).map_or(0.0, |at| of_output[at]);
                            g[tap % P::TAPS][tap / P::TAPS][n] = f64::from(value);
                        }
                    }
                }
            }
            for x in 0..P::TAPS {
                let column = spread::<P>(&g[x]);
                (0..P::IN).for_each(|i| rows[i][x] = column[i]);
            }
            for i in 0..P::IN {
                let row = spread::<P>(&rows[i]);
                for j in 0..P::IN {
                    let to = &mut values[((i * P::IN + j) * channels + k) * width + first..][..count];
                    let sums = row[j].map(|sum| sum as f32);
                    if streamed {
                        // SAFETY: there are `SIDE` floats here, and packed columns start on a whole register's boundary.
                        unsafe { stream::<S>(&sums, to.as_mut_ptr()) };
                        continue;
                    }
                    match to.first_chunk_mut::<SIDE>() {
                        Some(to) => *to = sums,
                        None => to.copy_from_slice(&sums[..count]),
                    }
                }
            }
        }
        if streamed {
            // SAFETY: it has no condition.
            unsafe { S::streamed() };
        }
    }
}

/// Writes past the caches.
///
/// # Safety
/// `to` is writable for `SIDE` floats and lies on a cache line's boundary.
#[inline(always)]
unsafe fn stream<S: Simd>(values: &[f32; SIDE], to: *mut f32) {
    for i in (0..SIDE).step_by(S::LANES) {
        // SAFETY: passed on.
        unsafe { S::stream(to.add(i), S::load(values.as_ptr().add(i))) };
    }
}

/// Packs the transformed weights of a panel at a time.
pub(super) struct WinogradPacking {
    pub(super) form: Form,
    pub(super) gemm: Gemm,
    pub(super) order: Order,
}

impl WinogradPacking {
    /// Transforms the filters of up to 16 columns of a panel, from column `first` on; `taps` starts with theirs.
    fn spread(&self, taps: &[f32], [first, count, width]: [usize; 3], values: &mut [f32]) {
        let (order, channels, isa) = (self.order, self.gemm.extent().k, self.gemm.isa());
        let task = [channels, first, count, width];
        // SAFETY: the task has no condition of its own.
        unsafe { with_points!(self.form, P => isa.run(Spread::<P>::new(taps, order, task, values))) }
    }
}

impl Packing for WinogradPacking {
    fn len(&self) -> usize {
        self.gemm.packed_len()
    }

    fn pieces(&self) -> usize {
        self.gemm.panels()
    }

    unsafe fn piece(&self, panel: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32) {
        let (columns, width) = (self.gemm.columns(panel), self.gemm.width(panel));
        let range = self.gemm.weights_of(panel);
        // SAFETY: the panel's weights and biases lie here; pieces share neither.
        let (values, biases) = unsafe {
            (
                std::slice::from_raw_parts_mut(packed.add(range.start), range.len()),
                std::slice::from_raw_parts_mut(packed.add(self.gemm.bias_at() + columns.start), width),
            )
        };
        if !columns.len().is_multiple_of(SIDE) {
            values.fill(0.0);
        }
        let depth = self.order.output;
        for start in columns.clone().step_by(SIDE) {
            let end = columns.end.min(start + SIDE);
            let part = [start - columns.start, end - start, width];
            match self.order.direction {
                Direction::Forward => {
                    weight.with(start * depth..end * depth, &mut |taps| self.spread(taps, part, values));
                }
                Direction::Backward => whole(weight, |all| {
                    self.spread(&all[start * self.order.output..], part, values);
                }),
            }
        }
        fill_bias(bias, columns, biases);
    }
}
