//! [`ParamSource`]: where a plan takes the values of parameters from.

use super::params::{ParamDef, ParamId, Params};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// Where a plan takes the values of parameters from.
///
/// A plan needs every value only until it has packed it. A source that is told so ([`ParamSource::release`]) can let go of it,
/// and one that leaves weights in a file until they are asked for need never hold them: they are read a few output
/// channels at a time, perhaps by several threads.
///
/// `&Params` keeps everything; [`Params`] gives up what is released; a
/// [`WeightFile`](crate::weights::WeightFile) reads.
pub trait ParamSource: Sync {
    /// The definitions, in order.
    fn defs(&self) -> &[ParamDef];

    /// The values of a parameter, if they lie in memory.
    fn held(&self, id: ParamId) -> Option<&[f32]>;

    /// Copies the elements of a parameter from number `start` on, `into.len()` of them.
    fn read(&self, id: ParamId, start: usize, into: &mut [f32]) -> Result<()>;

    /// Nothing will ask for this parameter again. Whoever does all the same may be told that it is gone.
    fn release(&mut self, id: ParamId) {
        let _ = id;
    }

    /// All values of a parameter: for the small ones, norms and biases.
    fn value(&self, id: ParamId) -> Result<Cow<'_, [f32]>> {
        if let Some(values) = self.held(id) {
            return Ok(Cow::Borrowed(values));
        }
        let mut values = vec![0.0; self.defs()[id.index()].len()];
        self.read(id, 0, &mut values)?;
        Ok(Cow::Owned(values))
    }
}

impl ParamSource for &Params {
    fn defs(&self) -> &[ParamDef] {
        Params::defs(self)
    }

    fn held(&self, id: ParamId) -> Option<&[f32]> {
        Some(Params::value(self, id).as_slice())
    }

    fn read(&self, id: ParamId, start: usize, into: &mut [f32]) -> Result<()> {
        into.copy_from_slice(&Params::value(self, id).as_slice()[start..][..into.len()]);
        Ok(())
    }
}

impl ParamSource for Params {
    fn defs(&self) -> &[ParamDef] {
        Params::defs(self)
    }

    fn held(&self, id: ParamId) -> Option<&[f32]> {
        let values = Params::value(self, id).as_slice();
        (values.len() == self.defs()[id.index()].len()).then_some(values)
    }

    fn read(&self, id: ParamId, start: usize, into: &mut [f32]) -> Result<()> {
        let values = self.held(id).ok_or_else(|| released(&self.defs()[id.index()]))?;
        into.copy_from_slice(&values[start..][..into.len()]);
        Ok(())
    }

    fn release(&mut self, id: ParamId) {
        self.forget(id);
    }
}

/// What asking for a parameter after its release gives.
pub(crate) fn released(def: &ParamDef) -> Error {
    Error::invalid(&def.name, "was given up after a plan had packed it; load it again for another plan")
}
