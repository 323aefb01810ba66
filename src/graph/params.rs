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

    /// Memory for its values, all zero.
    fn room(&self) -> Result<Tensor> {
        Tensor::try_zeros(&self.shape).map_err(|_| {
            let bytes = self.shape.iter().fold(size_of::<f32>() as u128, |bytes, &d| bytes.saturating_mul(d as u128));
            Error::invalid(&self.name, format!("no memory for {bytes} bytes, shape {:?}", self.shape))
        })
    }

    /// A value that means nothing yet: zeros, of running variances ones.
    pub(crate) fn blank(&self) -> Result<Tensor> {
        let mut value = self.room()?;
        if self.kind == ParamKind::RunningVar {
            value.as_mut_slice().fill(1.0);
        }
        Ok(value)
    }
}

/// Fails unless a network drawn with the parameters `drawn` can take values for `found`; `at` is who wants to.
pub(crate) fn check_same(at: &str, drawn: &[ParamDef], found: &[ParamDef]) -> Result<()> {
    let differs = drawn.iter().zip(found).position(|(drawn, found)| drawn != found);
    if differs.is_none() && drawn.len() == found.len() {
        return Ok(());
    }
    let i = differs.unwrap_or(drawn.len().min(found.len()));
    let looks_alike = |a: &ParamDef, b: &ParamDef| a.name == b.name && a.shape == b.shape;
    let alike = differs.is_some_and(|i| looks_alike(&drawn[i], &found[i]));
    let show = |defs: &[ParamDef]| match defs.get(i) {
        None => format!("no more than {}", defs.len()),
        Some(def) if alike => format!("{def:?}"),
        Some(ParamDef { name, shape, .. }) => format!("`{name}` {shape:?}"),
    };
    Err(Error::mismatch(at, "parameters", show(drawn), show(found)))
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
    ///
    /// # Panics
    /// Where [`Params::try_init`] fails.
    pub fn init(defs: &[ParamDef], rng: &mut impl Rng) -> Self {
        Params::try_init(defs, rng).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Params::init`].
    ///
    /// # Errors
    /// Memory that is not to be had; the parameter and its bytes are named.
    pub fn try_init(defs: &[ParamDef], rng: &mut impl Rng) -> Result<Self> {
        Params::from_fn(defs, |def| {
            let mut value = def.room()?;
            def.init.fill(&mut value, rng);
            Ok(value)
        })
    }

    /// Values that mean nothing yet (zeros; running variances one), for a model about to be loaded. Large ones take no
    /// memory before they are written.
    ///
    /// # Panics
    /// Where [`Params::try_blank`] fails.
    pub fn blank(defs: &[ParamDef]) -> Self {
        Params::try_blank(defs).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`Params::blank`].
    ///
    /// # Errors
    /// Those of [`Params::try_init`].
    pub fn try_blank(defs: &[ParamDef]) -> Result<Self> {
        Params::from_fn(defs, ParamDef::blank)
    }

    fn from_fn(defs: &[ParamDef], f: impl FnMut(&ParamDef) -> Result<Tensor>) -> Result<Self> {
        let index = defs.iter().enumerate().map(|(i, def)| (def.name.clone(), i)).collect();
        let values = defs.iter().map(f).collect::<Result<_>>()?;
        Ok(Params { defs: defs.into(), index: Arc::new(index), values })
    }

    /// The definitions, in order.
    pub fn defs(&self) -> &[ParamDef] {
        &self.defs
    }

    /// Definition and value of each parameter, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&ParamDef, &Tensor)> {
        self.defs.iter().zip(&self.values)
    }

    /// Definition and values of each parameter, in order, the values to write to. [`Params::set`] replaces those of a name.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn def(name: &str, shape: &[usize]) -> ParamDef {
        let init = Init::Constant(0.0);
        ParamDef { name: name.to_owned(), shape: shape.to_vec(), kind: ParamKind::Weight, init, auxiliary: false }
    }

    #[test]
    fn memory_that_is_not_to_be_had_is_an_error_that_names_the_parameter_and_its_bytes() {
        for (shape, bytes) in [([1 << 23, 1 << 23], 1u128 << 48), ([1 << 40, 1 << 40], 1 << 82)] {
            let defs = [def("small", &[2]), def("fc.weight", &shape)];
            let refused = [Params::try_blank(&defs), Params::try_init(&defs, &mut rand::rng())];
            for error in refused.map(|params| params.unwrap_err().to_string()) {
                assert!(error.starts_with("fc.weight: ") && error.contains(&format!("{bytes} bytes")), "{error}");
            }
        }
    }

    #[test]
    fn the_first_parameter_that_differs_is_named_with_both_shapes() {
        let fails = |drawn: &[ParamDef], found: &[ParamDef]| check_same("plan", drawn, found).unwrap_err().to_string();
        let drawn = [def("a", &[1]), def("b", &[2, 3])];
        assert!(check_same("plan", &drawn, &drawn.clone()).is_ok());
        assert_eq!(
            fails(&drawn, &[def("a", &[1]), def("b", &[2, 4])]),
            "plan: parameters: expected `b` [2, 3], found `b` [2, 4]"
        );
        assert_eq!(fails(&drawn, &drawn[..1]), "plan: parameters: expected `b` [2, 3], found no more than 1");
        assert_eq!(fails(&drawn[..1], &drawn), "plan: parameters: expected no more than 1, found `b` [2, 3]");
        let other = [ParamDef { init: Init::Constant(1.0), ..def("a", &[1]) }];
        assert!(fails(&drawn[..1], &other).contains("Constant(1.0)"));
    }
}
