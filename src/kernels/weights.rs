//! [`Weights`]: the weights of an operation on their way into the layout of its kernel.

#![allow(unsafe_code, reason = "transposes squares of floats")]

use crate::simd::Simd;
use std::ops::{Deref, Range};

/// The weights of an operation as PyTorch stores them, `[out, …]`, and the threads to pack them with.
///
/// They need not lie in memory: a kernel asks for the output channels it packs next, and what it was given is gone when
/// its function returns. Floats in memory are the simplest form.
pub trait Weights: Sync {
    /// Number of values.
    fn count(&self) -> usize;

    /// Calls `f` with the values of a range.
    fn with(&self, range: Range<usize>, f: &mut dyn FnMut(&[f32]));

    /// Calls `job` with every number below `jobs`, in any order and perhaps from several threads.
    fn share(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..jobs).for_each(job);
    }
}

impl<T: Deref<Target = [f32]> + Sync> Weights for T {
    fn count(&self) -> usize {
        self.len()
    }

    fn with(&self, range: Range<usize>, f: &mut dyn FnMut(&[f32])) {
        f(&self[range]);
    }
}

/// Calls `f` with all values and returns what it makes of them: for kernels whose weights are few.
pub fn whole<T>(weights: &dyn Weights, f: impl FnOnce(&[f32]) -> T) -> T {
    let (mut f, mut made) = (Some(f), None);
    weights.with(0..weights.count(), &mut |values| made = f.take().map(|f| f(values)));
    made.expect("`with` calls its function")
}

/// Columns of the widest panel of packed weights.
pub const WIDEST: usize = 64;

/// Brings the weights of output channels side by side: the `i`-th of the `len` floats from `taps[n · apart]` on goes to
/// `to[i][n]`, for every `n` below `count`. Rows of `to` from `len` on hold anything afterwards. Fetches what
/// lies `ahead` floats behind the weights.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn side_by_side<S: Simd>(
    taps: &[f32],
    [apart, ahead]: [usize; 2],
    [count, len]: [usize; 2],
    to: &mut [[f32; WIDEST]],
) {
    assert!(count <= WIDEST && to.len() >= len.max(S::LANES) && taps.len() >= count.saturating_sub(1) * apart + len);
    for n in 0..count {
        for line in (0..len).step_by(LINE) {
            // SAFETY: it may be any address.
            unsafe { S::prefetch_far(taps.as_ptr().wrapping_add(n * apart + ahead + line)) };
        }
    }
    let mut first = 0;
    // Squares may reach over the end of what is asked for, but not of what is there; the last overlaps the one before.
    while first + S::LANES <= count && (first + S::LANES - 1) * apart + len.max(S::LANES) <= taps.len() {
        for i in (0..len).step_by(S::LANES).map(|i| i.min(len.saturating_sub(S::LANES))) {
            // SAFETY: rows and columns of the square are inside, as was just looked at.
            unsafe {
                let (from, to) = (taps.as_ptr().add(first * apart + i), to[i..].as_mut_ptr().cast::<f32>().add(first));
                S::transpose((from, apart), (to, WIDEST));
            }
        }
        first += S::LANES;
    }
    for n in first..count {
        to.iter_mut().zip(&taps[n * apart..][..len]).for_each(|(to, &tap)| to[n] = tap);
    }
}

/// Floats of a cache line.
const LINE: usize = 16;

/// A panel of more floats is written past the caches: its rows are read much later, and where they are written far apart they
/// would all fall into the same few sets.
const STREAMED: usize = 1 << 15;

/// Whether a panel is written past the caches.
pub(super) fn streams<S: Simd>(panel: &[f32]) -> bool {
    panel.len() >= STREAMED && panel.as_ptr().cast::<S::V>().is_aligned()
}

/// Writes a register of packed weights, past the caches or not.
///
/// # Safety
/// As [`Simd::store`] or, if `past`, as [`Simd::stream`], after which [`Simd::streamed`] is due.
#[inline(always)]
pub(super) unsafe fn put<S: Simd>(to: *mut f32, weights: S::V, past: bool) {
    // SAFETY: passed on.
    unsafe { if past { S::stream(to, weights) } else { S::store(to, weights) } }
}

/// Writes a row of packed weights, whole registers, past the caches or not.
///
/// # Safety
/// As [`put`], for every register of the row.
#[inline(always)]
pub(super) unsafe fn put_row<S: Simd>(to: &mut [f32], row: &[f32], past: bool) {
    let to = &mut to[..row.len()];
    for i in (0..row.len()).step_by(S::LANES) {
        // SAFETY: passed on.
        unsafe { put::<S>(to.as_mut_ptr().add(i), S::load(row.as_ptr().add(i)), past) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Task};
    use crate::tensor::AlignedBuf;

    #[derive(Clone, Copy)]
    struct Beside<'a>(&'a [f32], [usize; 3]);

    impl Task for Beside<'_> {
        type Output = [[f32; WIDEST]; 160];

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Self::Output {
            let Beside(taps, [apart, count, len]) = self;
            let mut to = [[-1.0; WIDEST]; 160];
            // SAFETY: passed on.
            unsafe { side_by_side::<S>(taps, [apart, 1 << 40], [count, len], &mut to) };
            to
        }
    }

    #[test]
    fn weights_of_any_number_lie_side_by_side_and_columns_behind_them_stay() {
        for &isa in Isa::available() {
            for [apart, count, len] in [[9, 64, 9], [9, 33, 9], [40, 64, 36], [40, 17, 36], [3, 5, 1], [144, 16, 144]] {
                let taps: Vec<f32> = (0..(count - 1) * apart + len).map(|i| i as f32).collect();
                // SAFETY: the task has no condition of its own.
                let to = unsafe { isa.run(Beside(&taps, [apart, count, len])) };
                for (i, row) in to[..len].iter().enumerate() {
                    for (n, &v) in row.iter().enumerate() {
                        let wanted = if n < count { taps[n * apart + i] } else { -1.0 };
                        assert_eq!(v, wanted, "{} {apart} {count} {len}: float {i} of {n}", isa.name());
                    }
                }
            }
        }
    }

    struct Written<'a>(&'a mut [f32]);

    impl Task for Written<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let row: [f32; WIDEST] = std::array::from_fn(|i| i as f32);
            let past = streams::<S>(self.0);
            for to in self.0.chunks_exact_mut(WIDEST) {
                // SAFETY: the row is whole registers of any instruction set.
                unsafe { put_row::<S>(to, &row, past) };
            }
            // SAFETY: it has no condition.
            unsafe { S::streamed() };
        }
    }

    #[test]
    fn a_large_panel_may_lie_anywhere() {
        for &isa in Isa::available() {
            for offset in [0, 1] {
                let mut panel = AlignedBuf::zeros(STREAMED + 16);
                let panel = &mut panel[offset..][..STREAMED];
                // SAFETY: the task has no condition of its own.
                unsafe { isa.run(Written(panel)) };
                assert!(panel.iter().enumerate().all(|(i, &v)| v == (i % WIDEST) as f32), "{} {offset}", isa.name());
            }
        }
    }
}
