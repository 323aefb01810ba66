//! `Gradients`: what a backward pass leaves behind, one gradient per learned parameter.

use crate::error::{Error, Result};
use crate::graph::{ParamDef, ParamId};
use crate::tensor::Tensor;
use std::sync::Arc;

/// The gradient of a loss with respect to the parameters of a graph, and to the images if that was asked for.
///
/// Parameters keep the drawing's order. Running statistics and frozen parameters have no gradient.
#[derive(Debug, Clone)]
pub struct Gradients {
    defs: Arc<[ParamDef]>,
    values: Vec<Option<Tensor>>,
    input: Option<Tensor>,
}

impl Gradients {
    /// Zeros for every learned parameter of `defs` that `wanted` accepts.
    pub fn zeros(defs: &[ParamDef], wanted: impl Fn(&ParamDef) -> bool) -> Self {
        let zeros = |def: &ParamDef| (def.kind.is_learned() && wanted(def)).then(|| Tensor::zeros(&def.shape));
        Gradients { defs: defs.into(), values: defs.iter().map(zeros).collect(), input: None }
    }

    /// The same with a gradient for images of `shape`.
    pub fn with_input(self, shape: [usize; 4]) -> Self {
        Gradients { input: Some(Tensor::zeros(&shape)), ..self }
    }

    /// The gradient of the parameter `name`. Unknown names are errors, and so are parameters without a gradient.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let known = || self.defs.iter().map(|d| d.name.as_str());
        let i = self.defs.iter().position(|d| d.name == name);
        let i = i.ok_or_else(|| Error::unknown("parameter", name, known()))?;
        let why = if self.defs[i].kind.is_learned() { "frozen" } else { "a running statistic" };
        self.values[i].as_ref().ok_or_else(|| Error::invalid(name, format!("no gradient: the parameter is {why}")))
    }

    /// The gradient of a parameter of the same graph, if it has one.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.values[id.index()].as_ref()
    }

    /// The gradient of a parameter of the same graph, if it has one, to write to.
    pub fn of_mut(&mut self, id: ParamId) -> Option<&mut [f32]> {
        self.values[id.index()].as_mut().map(Tensor::as_mut_slice)
    }

    /// Trades memory with `others`, one per parameter: what is in either is then in the other. What is missing there is
    /// taken from here; [`complete`](Self::complete) replaces it.
    pub(super) fn exchange(&mut self, others: &mut [Option<Tensor>]) {
        for (own, other) in self.values.iter_mut().zip(others) {
            if let Some(own) = own {
                let other = other.get_or_insert_with(|| Tensor::zeros(&[0]));
                std::mem::swap(own, other);
            }
        }
    }

    /// Makes room for what others have taken.
    pub(super) fn complete(&mut self) -> Result<()> {
        for (own, def) in self.values.iter_mut().zip(&*self.defs) {
            if let Some(own) = own.as_mut().filter(|own| own.shape() != def.shape) {
                *own = Tensor::try_zeros(&def.shape)?;
            }
        }
        Ok(())
    }

    /// Definition and gradient of every parameter that has one, in the drawing's order.
    pub fn iter(&self) -> impl Iterator<Item = (&ParamDef, &Tensor)> {
        self.defs.iter().zip(&self.values).filter_map(|(def, value)| Some((def, value.as_ref()?)))
    }

    /// Definition and gradient of every parameter that has one, the gradient to write to.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&ParamDef, &mut [f32])> {
        self.defs.iter().zip(&mut self.values).filter_map(|(def, value)| Some((def, value.as_mut()?.as_mut_slice())))
    }

    /// The gradient with respect to the images, if it was asked for.
    pub fn input(&self) -> Option<&Tensor> {
        self.input.as_ref()
    }

    /// The gradient with respect to the images, if it was asked for, to write to.
    pub fn input_mut(&mut self) -> Option<&mut [f32]> {
        self.input.as_mut().map(Tensor::as_mut_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, Layer, Node, Op, ParamKind};
    use crate::tensor::Init;

    struct Norm;

    impl Layer for Norm {
        fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
            let param = |name, kind| x.param(name, &[x.channels()], kind, Init::Constant(0.0));
            let [scale, shift] =
                [("weight", ParamKind::NormScale), ("bias", ParamKind::NormShift)].map(|(n, k)| Some(param(n, k)));
            let [mean, var] =
                [("mean", ParamKind::RunningMean), ("var", ParamKind::RunningVar)].map(|(n, k)| param(n, k));
            x.apply(Op::BatchNorm { scale, shift, mean, var, eps: 1e-5, momentum: 0.1 }, &[x])
        }
    }

    #[test]
    fn statistics_and_frozen_parameters_have_no_gradient_and_say_why() {
        let graph = Graph::draw(3, &Norm).unwrap();
        let mut gradients = Gradients::zeros(graph.params(), |def| def.name != "bias");
        gradients.iter_mut().for_each(|(_, values)| values.fill(2.0));
        assert_eq!(gradients.get("weight").unwrap().as_slice(), [2.0; 3]);
        assert_eq!(gradients.iter().map(|(def, _)| def.name.as_str()).collect::<Vec<_>>(), ["weight"]);
        for (name, why) in [("bias", "frozen"), ("mean", "statistic"), ("wieght", "nearest: weight")] {
            let error = gradients.get(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(why), "{error}");
        }
        assert!(gradients.input().is_none() && gradients.with_input([1, 3, 2, 2]).input().is_some());
    }
}
