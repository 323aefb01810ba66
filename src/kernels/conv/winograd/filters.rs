//! The transform of filters by the [`points`](super::points) of a form, in f64, and how they are packed.

#![allow(unsafe_code, reason = "streams registers, and packs into raw memory")]

use super::Form;
use super::points::{F2, F2Five, F2Strided, F3, F3Four, F4, MOST_IN, MOST_TAPS, Points, Unstrided};
use crate::kernels::Weights;
use crate::kernels::conv::weights::{Direction, Order, Packing, fill_bias};
use crate::kernels::gemm::Gemm;
use crate::kernels::weights::{WIDEST, put_row, side_by_side, streams, whole};
use crate::simd::{Doubles, Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;

/// `sum + factor · values`. Factors are constants, and most are zero in half of the taps.
#[inline(always)]
unsafe fn add<D: Doubles>(sum: Option<D>, factor: f64, values: D) -> Option<D> {
    // SAFETY: passed on.
    unsafe {
        if factor == 0.0 {
            return sum;
        }
        let term = if factor == 1.0 { values } else { values.mul(D::splat(factor)) };
        Some(sum.map_or(term, |sum| sum.add(term)))
    }
}

/// `G·g` for one line of taps. What two rows of a pair have in common is computed once.
#[inline(always)]
unsafe fn spread<P: Points, D: Doubles>(g: &[D; MOST_TAPS]) -> [D; MOST_IN] {
    // SAFETY: passed on.
    unsafe {
        let zero = D::splat(0.0);
        let mut line = [zero; MOST_IN];
        for i in 0..P::IN {
            if i == 0 || i > 2 * P::PAIRS {
                let mut sum = None;
                for y in 0..P::TAPS {
                    sum = add(sum, P::G[i][y], g[y]);
                }
                line[i] = sum.unwrap_or(zero);
            } else if i % 2 == 1 {
                let [mut even, mut odd] = [None; 2];
                for y in 0..P::TAPS {
                    let sum = if y % 2 == 0 { &mut even } else { &mut odd };
                    *sum = add(*sum, P::G[i][y], g[y]);
                }
                let [even, odd] = [even, odd].map(|sum| sum.unwrap_or(zero));
                (line[i], line[i + 1]) = (even.add(odd), even.sub(odd));
            }
        }
        line
    }
}

/// Input channels whose filters are brought side by side at once.
const BLOCK: usize = 4;
/// Rows of taps of so many, and of what squares hold beyond them.
const ROOM: usize = BLOCK * MOST_TAPS * MOST_TAPS + 16;
/// What the filters of a panel's output channels are transformed to, side by side.
type Sums = [[f32; WIDEST]; MOST_IN * MOST_IN];

/// `G·g·Gᵀ` of the output channels of a panel in f64, rounded once: position `p` of input channel `k` and the `i`-th of the
/// output channels goes to `values[(p · channels + k) · width + i]`.
pub(super) struct Spread<'a, P> {
    /// The taps, those of the first output channel first.
    taps: &'a [f32],
    order: Order,
    channels: usize,
    count: usize,
    width: usize,
    values: &'a mut [f32],
    points: PhantomData<P>,
}

impl<P: Points> Task for Spread<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Spread { channels, count, width, .. } = self;
        let past = streams::<S>(self.values);
        let (mut taps, mut sums) = ([[0.0; WIDEST]; ROOM], [[[0.0; WIDEST]; MOST_IN * MOST_IN]; 2]);
        let (positions, parts) = (P::IN * P::IN, count.div_ceil(S::D::LANES));
        // What the channel before gave is written a part at a time, in between: memory takes as long as the arithmetic.
        for k in 0..=channels {
            if k < channels && k % BLOCK == 0 {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { self.gather::<S>(k..channels.min(k + BLOCK), &mut taps) };
            }
            for part in 0..parts {
                if k < channels {
                    let (taps, sums) = (&taps[k % BLOCK * P::TAPS * P::TAPS..], &mut sums[k % 2]);
                    // SAFETY: the rows hold whole registers.
                    unsafe {
                        match self.order.direction {
                            Direction::Forward => square::<P, S::D, false>(taps, part * S::D::LANES, sums),
                            Direction::Backward => square::<P, S::D, true>(taps, part * S::D::LANES, sums),
                        }
                    }
                }
                let Some(before) = k.checked_sub(1) else { continue };
                for position in part * positions / parts..(part + 1) * positions / parts {
                    let from = &sums[before % 2][position][..width];
                    let to = &mut self.values[(position * channels + before) * width..][..width];
                    // SAFETY: packed rows are whole registers.
                    unsafe { put_row::<S>(to, from, past) };
                }
            }
        }
        // SAFETY: it has no condition.
        unsafe { S::streamed() };
    }
}

impl<P: Points> Spread<'_, P> {
    /// Brings the taps of input channels side by side, in the order they lie in.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, block: Range<usize>, taps: &mut [[f32; WIDEST]; ROOM]) {
        let (order, window) = (&self.order, P::TAPS * P::TAPS);
        let (from, channels) = (&self.taps[block.start * order.input..], block.len());
        // SAFETY: passed on.
        unsafe {
            match (&order.folded, order.direction) {
                (Some(folded), _) => {
                    for (k, taps) in block.zip(taps.chunks_exact_mut(window)) {
                        for n in 0..self.count {
                            let of_output = &self.taps[n * order.output..];
                            (0..window)
                                .for_each(|tap| taps[tap][n] = folded.at(k, tap).map_or(0.0, |at| of_output[at]));
                        }
                    }
                }
                // Those of neighbouring input channels lie behind each other,
                (None, Direction::Forward) => {
                    side_by_side::<S>(from, [order.output, BLOCK * window], [self.count, channels * window], taps);
                }
                // those of neighbouring output channels do.
                (None, Direction::Backward) => {
                    for k in 0..channels {
                        let (from, apart) = (&from[k * order.input..], [order.output, BLOCK * order.input]);
                        side_by_side::<S>(from, apart, [self.count, window], &mut taps[k * window..]);
                    }
                }
            }
        }
    }
}

/// `G·g·Gᵀ` of as many filters as a register has doubles, from `part` on; their taps are in order or `TURNED` around.
///
/// # Safety
/// The CPU has the instruction set of `D`; there are so many filters.
#[inline(always)]
unsafe fn square<P: Points, D: Doubles, const TURNED: bool>(taps: &[[f32; WIDEST]], part: usize, sums: &mut Sums) {
    let taps = &taps[..P::TAPS * P::TAPS];
    // SAFETY: passed on.
    unsafe {
        // Rows of G·g.
        let mut rows = [[D::splat(0.0); MOST_TAPS]; MOST_IN];
        for x in 0..P::TAPS {
            let mut g = [D::splat(0.0); MOST_TAPS];
            for y in 0..P::TAPS {
                let tap = y * P::TAPS + x;
                let tap = if TURNED { P::TAPS * P::TAPS - 1 - tap } else { tap };
                g[y] = D::widen(taps[tap].as_ptr().add(part));
            }
            let column = spread::<P, D>(&g);
            (0..P::IN).for_each(|i| rows[i][x] = column[i]);
        }
        for i in 0..P::IN {
            let row = spread::<P, D>(&rows[i]);
            (0..P::IN).for_each(|j| row[j].narrow(sums[i * P::IN + j].as_mut_ptr().add(part)));
        }
    }
}

/// Packs the transformed weights of a panel at a time.
pub(super) struct WinogradPacking {
    pub(super) form: Form,
    pub(super) gemm: Gemm,
    pub(super) order: Order,
}

impl WinogradPacking {
    /// Transforms the filters of the columns of a panel; `taps` starts with theirs.
    fn spread(&self, taps: &[f32], [count, width]: [usize; 2], values: &mut [f32]) {
        let (order, channels, isa) = (self.order, self.gemm.extent().k, self.gemm.isa());
        with_points!(self.form, P => {
            let spread = Spread::<P> { taps, order, channels, count, width, values, points: PhantomData };
            // SAFETY: the task has no condition of its own.
            unsafe { isa.run(spread) }
        })
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
        let (depth, size) = (self.order.output, [columns.len(), width]);
        match self.order.direction {
            Direction::Forward => {
                weight.with(columns.start * depth..columns.end * depth, &mut |taps| self.spread(taps, size, values));
            }
            Direction::Backward => whole(weight, |all| self.spread(&all[columns.start * depth..], size, values)),
        }
        fill_bias(bias, columns, biases);
    }
}
