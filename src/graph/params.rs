//! Named parameters: what a drawing asks for ([`ParamDef`]) and the values a model holds ([`Params`]).

use crate::error::{Error, Result};
use crate::tensor::{Init, Tensor};
use rand::Rng;
use std::collections::HashMap;
use std::sync::Arc;

/// Index of a parameter within its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    /// Position in [`Params`] and in the order of definition.
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a parameter is for: decides whether it is learned and whether it decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Weight of a convolution or linear layer.
    Weight,
    /// Bias of a convolution or linear layer.
    Bias,
    /// γ of a norm.
    NormScale,
    /// β of a norm.
    NormShift,
    /// Running mean of a batch norm: a statistic, not learned.
    RunningMean,
    /// Running variance of a batch norm: a statistic, not learned.
    RunningVar,
}

impl ParamKind {
    /// False for running statistics.
    pub const fn is_learned(self) -> bool {
        !matches!(self, ParamKind::RunningMean | ParamKind::RunningVar)
    }
}

/// A parameter as drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamDef {
    /// State-dict name, for example `layer1.0.conv1.weight`.
    pub name: String,
    /// Extents, output channels first.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: ParamKind,
    /// How it starts.
    pub init: Init,
    /// True if only auxiliary outputs read it, so that evaluation never does.
    pub auxiliary: bool,
}

impl ParamDef {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if some extent is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A value that means nothing yet: zeros, of running variances ones.
    pub(crate) fn blank(&self) -> Tensor {
        match self.kind {
            ParamKind::RunningVar => Tensor::from_fn(&self.shape, |_| 1.0),
            _ => Tensor::zeros(&self.shape),
        }
    }
}

/// The values of all parameters of a graph, in the order of definition.
#[derive(Debug, Clone)]
pub struct Params {
    defs: Arc<[ParamDef]>,
    index: Arc<HashMap<String, usize>>,
    values: Vec<Tensor>,
}

impl Params {
    /// Draws fresh values as each definition's [`Init`] says.
    pub fn init(defs: &[ParamDef], rng: &mut impl Rng) -> Self {
        Params::from_fn(defs, |def| def.init.draw(&def.shape, rng))
    }

    /// Values that mean nothing yet (zeros; running variances one), for a model about to be loaded. Large ones take no
    /// memory before they are written.
    pub fn blank(defs: &[ParamDef]) -> Self {
        Params::from_fn(defs, ParamDef::blank)
    }

    fn from_fn(defs: &[ParamDef], f: impl FnMut(&ParamDef) -> Tensor) -> Self {
        let index = defs.iter().enumerate().map(|(i, def)| (def.name.clone(), i)).collect();
        Params { defs: defs.into(), index: Arc::new(index), values: defs.iter().map(f).collect() }
    }

    /// The definitions, in order.
    pub fn defs(&self) -> &[ParamDef] {
        &self.defs
    }

    /// Definition and value of each parameter, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ParamDef, &Tensor)> {
        self.defs.iter().zip(&self.values)
    }

    /// Definition and value of each parameter, the value to write to. Shapes must stay as they are: write through
    /// [`Tensor::as_mut_slice`], or use [`Params::set`], which checks.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (&ParamDef, &mut [f32])> {
        self.defs.iter().zip(self.values.iter_mut().map(Tensor::as_mut_slice))
    }

    /// The value of a parameter of the same graph.
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.values[id.0]
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.position(name).map(|i| &self.values[i])
    }

    /// Replaces the value of a name; the shape must be the parameter's.
    pub fn set(&mut self, name: &str, value: Tensor) -> Result<()> {
        let i = self.position(name)?;
        let wanted = &self.defs[i].shape;
        if value.shape() != wanted {
            return Err(Error::mismatch(name, "shape", format!("{wanted:?}"), format!("{:?}", value.shape())));
        }
        self.values[i] = value;
        Ok(())
    }

    /// Frees the value of a parameter that nothing will read again.
    pub(super) fn forget(&mut self, id: ParamId) {
        self.values[id.0] = Tensor::zeros(&[0]);
    }

    fn position(&self, name: &str) -> Result<usize> {
        let known = || self.defs.iter().map(|d| d.name.as_str());
        self.index.get(name).copied().ok_or_else(|| Error::unknown("parameter", name, known()))
    }
}
