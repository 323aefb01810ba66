//! [`Weights`]: the weights of an operation on their way into the layout of its kernel.

use crate::kernels::gemm::EmptyPanel;
use std::ops::{Deref, Range};
use std::sync::Mutex;

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

/// Fills panels, each by one thread: `pack(values, first, panel)` is called with the weights of up to 16 output channels,
/// `depth` values each, the first of them column `first` of the panel. Column 0 of panel 0 is row `row` of the weights.
pub(super) fn fill(
    weights: &dyn Weights,
    [row, depth]: [usize; 2],
    panels: Vec<EmptyPanel<'_>>,
    pack: impl Fn(&[f32], usize, &mut EmptyPanel<'_>) + Sync,
) {
    let panels: Vec<Mutex<EmptyPanel<'_>>> = panels.into_iter().map(Mutex::new).collect();
    weights.share(panels.len(), &|i| {
        let mut panel = panels[i].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let columns = panel.columns.clone();
        for first in columns.clone().step_by(ROWS) {
            let rows = row + first..row + columns.end.min(first + ROWS);
            weights.with(rows.start * depth..rows.end * depth, &mut |values| {
                pack(values, first - columns.start, &mut panel);
            });
        }
    });
}

/// Writes `values`, rows of `[channels, taps]`, to the columns of a panel from `first` on: element `(c, t)` of a row goes
/// to row `t · channels + c` of the panel. In squares, because neighbours in a row lie together at the source and apart in
/// the panel.
pub(super) fn transpose(values: &[f32], [channels, taps]: [usize; 2], first: usize, panel: &mut EmptyPanel<'_>) {
    let (depth, width) = (channels * taps, panel.width);
    let rows = values.len() / depth;
    for block in (0..depth).step_by(ROWS) {
        let len = ROWS.min(depth - block);
        let mut square = [[0.0; ROWS]; ROWS];
        for (line, row) in square.iter_mut().zip(values.chunks_exact(depth)) {
            line[..len].copy_from_slice(&row[block..][..len]);
        }
        for i in 0..len {
            let (c, t) = ((block + i) / taps, (block + i) % taps);
            let to = &mut panel.values[(t * channels + c) * width + first..][..rows];
            match to.first_chunk_mut::<ROWS>() {
                Some(to) => *to = std::array::from_fn(|row| square[row][i]),
                None => to.iter_mut().zip(&square).for_each(|(to, line)| *to = line[i]),
            }
        }
    }
}
