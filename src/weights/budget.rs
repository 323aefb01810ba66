//! The account of what a file asks for.

use super::Limits;
use super::state_dict::shown;
use crate::error::{Error, Result};
use crate::shape::checked_volume;

/// Counts what a file asks for against the [`Limits`], before anything is allocated for it.
pub(super) struct Budget<'l> {
    limits: &'l Limits,
    tensors: usize,
    elements: u64,
}

impl<'l> Budget<'l> {
    pub(super) fn new(limits: &'l Limits) -> Self {
        Budget { limits, tensors: 0, elements: 0 }
    }

    /// Elements granted so far.
    #[cfg(feature = "pth")]
    pub(super) fn elements(&self) -> u64 {
        self.elements
    }

    /// Grants a tensor of `shape`, returning its number of elements.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<usize> {
        let at = || format!("tensor `{}`", shown(name));
        let elements = checked_volume(shape, &at())?;
        if elements as u64 > self.limits.max_elements {
            return Err(Error::limit(at(), "number of elements", self.limits.max_elements, elements as u64));
        }
        self.tensors += 1;
        if self.tensors > self.limits.max_tensors {
            let (limit, found) = (self.limits.max_tensors as u64, self.tensors as u64);
            return Err(Error::limit(at(), "number of tensors", limit, found));
        }
        self.elements = self.elements.saturating_add(elements as u64);
        let bytes = self.elements.saturating_mul(4);
        if bytes > self.limits.max_bytes {
            return Err(Error::limit(at(), "size of all tensors in bytes", self.limits.max_bytes, bytes));
        }
        Ok(elements)
    }
}
