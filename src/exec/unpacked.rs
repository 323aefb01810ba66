//! Weights between their source and the kernel that packs them: read when asked for, a norm folded in on the way.

use crate::error::{Error, Result};
use crate::graph::{ParamId, ParamSource};
use crate::kernels::Weights;
use crate::par::Team;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Buffers for what is read, used again and again: they stay in the cache.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<f32>>>);

/// The weights of one unit.
pub(super) struct Unpacked<'a> {
    pub(super) source: &'a dyn ParamSource,
    pub(super) id: ParamId,
    /// The factor of every output channel, if a norm is folded in: `s·W` in f64, rounded once.
    pub(super) scale: Option<&'a [f64]>,
    pub(super) team: &'a Team,
    pub(super) buffers: &'a Buffers,
    /// The first refusal of the source. Kernels know no errors and go on with zeros; see [`Unpacked::finish`].
    pub(super) failed: Mutex<Option<Error>>,
}

impl Unpacked<'_> {
    /// What went wrong, if anything did.
    pub(super) fn finish(self) -> Result<()> {
        self.failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn fold(&self, start: usize, values: &mut [f32]) {
        let Some(scale) = self.scale else { return };
        let row = self.count() / scale.len();
        let (mut at, mut rest) = (start, values);
        while !rest.is_empty() {
            let (values, behind) = rest.split_at_mut((row - at % row).min(rest.len()));
            let factor = scale[at / row];
            values.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
            (at, rest) = (at + values.len(), behind);
        }
    }
}

impl Weights for Unpacked<'_> {
    fn count(&self) -> usize {
        self.source.defs()[self.id.index()].len()
    }

    fn with(&self, range: Range<usize>, f: &mut dyn FnMut(&[f32])) {
        if let (Some(held), None) = (self.source.held(self.id), self.scale) {
            return f(&held[range]);
        }
        let stack = || self.buffers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = stack().pop().unwrap_or_default();
        if buffer.len() < range.len() {
            buffer.resize(range.len(), 0.0);
        }
        let values = &mut buffer[..range.len()];
        if let Err(error) = self.source.read(self.id, range.start, values) {
            values.fill(0.0);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        self.fold(range.start, values);
        f(values);
        stack().push(buffer);
    }

    fn share(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        self.team.share(jobs, job);
    }
}
