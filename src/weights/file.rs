//! [`WeightFile`]: a weight file that gives each weight to the plan that packs it.

use super::load::fit;
use super::stored::{Place, Reader, Stored};
use super::{Dtype, Limits, LoadOptions};
use crate::error::{LoadReport, Result};
use crate::graph::{ParamDef, ParamId, ParamKind, ParamSource, released};
use crate::tensor::Tensor;
use std::path::Path;

/// A weight file opened for a network: checked against its parameters, and a [`ParamSource`] for a plan.
///
/// The weights of convolutions and linear layers stay in a safetensors file until a plan packs them, a few output
/// channels at a time, and never lie in memory as the file has them: a network starts sooner, and needs little more
/// memory than its packed weights. The other formats are read whole, and freed weight by weight.
///
/// ```no_run
/// use convzoo::graph::Graph;
/// use convzoo::weights::{Limits, LoadOptions, WeightFile};
/// use convzoo::{Plan, PlanOptions, models::ResNet};
///
/// let graph = Graph::draw(3, &ResNet::resnet50())?;
/// let (mut file, report) =
///     WeightFile::open(graph.params(), "resnet50.safetensors", &LoadOptions::strict(), &Limits::default())?;
/// println!("{report}");
/// let plan = Plan::from_source(&graph, &mut file, [1, 3, 224, 224], &PlanOptions::new())?;
/// # Ok::<(), convzoo::Error>(())
/// ```
///
/// The file must not change meanwhile: what is read then is what it holds then. If it has become shorter, planning fails.
pub struct WeightFile {
    defs: Vec<ParamDef>,
    values: Vec<Value>,
    reader: Option<Reader>,
}

enum Value {
    Memory(Tensor),
    /// Elements of this type from this byte of the file on.
    File(Dtype, u64),
    Released,
}

impl WeightFile {
    /// Opens a weight file for the parameters `defs` and compares names and shapes as [`load`](super::load) does.
    /// Parameters that find no tensor, where that is allowed, are blank.
    ///
    /// # Errors
    /// As [`load_file`](super::load_file).
    pub fn open(
        defs: &[ParamDef],
        path: impl AsRef<Path>,
        options: &LoadOptions,
        limits: &Limits,
    ) -> Result<(Self, LoadReport)> {
        let mut stored = Stored::open(path.as_ref(), limits)?;
        let (pairs, report) = fit(defs, &mut stored, options)?;
        let blank = defs.iter().map(|def| def.blank().map(Value::Memory));
        let mut values = blank.collect::<Result<Vec<Value>>>()?;
        for (def, tensor) in pairs {
            values[def] = match (&stored.tensors[tensor].place, defs[def].kind) {
                (&Place::File(at), ParamKind::Weight) => Value::File(stored.tensors[tensor].dtype, at),
                _ => Value::Memory(std::mem::replace(stored.fetch(tensor)?, Tensor::zeros(&[0]))),
            };
        }
        Ok((WeightFile { defs: defs.to_vec(), values, reader: stored.into_reader() }, report))
    }
}

impl ParamSource for WeightFile {
    fn defs(&self) -> &[ParamDef] {
        &self.defs
    }

    fn held(&self, id: ParamId) -> Option<&[f32]> {
        match &self.values[id.index()] {
            Value::Memory(tensor) => Some(tensor.as_slice()),
            Value::File(..) | Value::Released => None,
        }
    }

    fn read(&self, id: ParamId, start: usize, into: &mut [f32]) -> Result<()> {
        match (&self.values[id.index()], &self.reader) {
            (Value::File(dtype, at), Some(reader)) => {
                reader.elements(*dtype, at + (start * dtype.size()) as u64, into)?;
            }
            (Value::Memory(tensor), _) => into.copy_from_slice(&tensor.as_slice()[start..][..into.len()]),
            (Value::File(..), None) => unreachable!("tensors in a file come with its reader"),
            (Value::Released, _) => return Err(released(&self.defs[id.index()])),
        }
        Ok(())
    }

    fn release(&mut self, id: ParamId) {
        let value = &mut self.values[id.index()];
        if matches!(value, Value::Memory(_)) {
            *value = Value::Released;
        }
    }
}
