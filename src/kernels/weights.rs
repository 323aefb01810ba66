//! [`Weights`]: the weights of an operation on their way into the layout of its kernel.

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

/// Rows that are packed together: one cache line of every row of a panel.
const ROWS: usize = 16;

/// Writes `values`, rows of `[channels, taps]`, to the columns of a panel of this width from `first` on: element `(c, t)` of a row goes
/// to row `t · channels + c` of the panel. In squares, because neighbours in a row lie together at the source and apart in
/// the panel.
pub(super) fn transpose(
    values: &[f32],
    [channels, taps]: [usize; 2],
    first: usize,
    (width, panel): (usize, &mut [f32]),
) {
    let depth = channels * taps;
    let rows = values.len() / depth;
    for block in (0..depth).step_by(ROWS) {
        let len = ROWS.min(depth - block);
        let mut square = [[0.0; ROWS]; ROWS];
        for (line, row) in square.iter_mut().zip(values.chunks_exact(depth)) {
            line[..len].copy_from_slice(&row[block..][..len]);
        }
        for i in 0..len {
            let (c, t) = ((block + i) / taps, (block + i) % taps);
            let to = &mut panel[(t * channels + c) * width + first..][..rows];
            match to.first_chunk_mut::<ROWS>() {
                Some(to) => *to = std::array::from_fn(|row| square[row][i]),
                None => to.iter_mut().zip(&square).for_each(|(to, line)| *to = line[i]),
            }
        }
    }
}
