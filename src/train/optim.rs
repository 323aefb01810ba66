//! Optimisers: how gradients move weights.
//!
//! A [`Rule`] is the formula and its constants; [`Optimizer`] holds the memory the formula needs per parameter and applies it
//! group by group. The learning rate comes from outside with every step.

use super::gradients::GradientSum;
use super::groups::Groups;
use super::rule::{At, Rule, Slot, update_shared};
use crate::error::{Error, Result};
use crate::exec::Workers;
use crate::graph::{ParamDef, Params};
use crate::tensor::Tensor;

/// Fails for a learning rate that cannot be one.
pub(super) fn check_rate(rate: f64) -> Result<()> {
    match rate.is_finite() && rate >= 0.0 {
        true => Ok(()),
        false => Err(Error::mismatch("optimiser", "learning rate", "a finite number from 0 on", rate)),
    }
}

/// What a group says of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) rate: f32,
    pub(super) decay: f32,
    pub(super) learns: bool,
}

/// A rule, the groups of its parameters, and what it remembers of each.
///
/// ```
/// use convzoo::graph::{Graph, Params};
/// use convzoo::layers::Conv2d;
/// use convzoo::train::{GradientSum, Groups, Optimizer, Sgd};
/// use convzoo::Tensor;
///
/// let graph = Graph::draw(1, &Conv2d::k1(1).no_bias())?;
/// let mut params = Params::blank(graph.params());
/// let mut optimizer = Optimizer::new(Sgd::default(), &Groups::new(), graph.params())?;
/// let gradients = GradientSum::from_pairs([(0, Tensor::from_slice(&[1, 1, 1, 1], &[2.0])?)])?;
/// optimizer.step(&mut params, &gradients, 0.1)?;
/// assert_eq!(params.get("weight")?.as_slice(), [-0.2]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    rule: Box<dyn Rule>,
    shares: Vec<Share>,
    slots: Vec<Slot>,
    /// Per parameter: how often it was updated, and a tensor per slot, none for what does not learn.
    memory: Vec<(u64, Vec<Tensor>)>,
}

impl Optimizer {
    /// An optimiser for the parameters `defs` that has seen nothing yet.
    ///
    /// # Errors
    /// A constant of the rule that cannot work; a group that covers no parameter.
    pub fn new(rule: impl Into<Box<dyn Rule>>, groups: &Groups, defs: &[ParamDef]) -> Result<Self> {
        let rule = rule.into();
        rule.check()?;
        let shares = groups.resolve(defs)?;
        let slots = rule.slots();
        let fresh = |def: &ParamDef| slots.iter().map(|slot| Tensor::from_fn(&def.shape, |_| slot.start)).collect();
        let memory = defs.iter().zip(&shares);
        let memory = memory.map(|(def, share)| (0, if share.learns { fresh(def) } else { Vec::new() })).collect();
        Ok(Optimizer { rule, shares, slots, memory })
    }

    /// Moves every parameter that learns and has a gradient.
    ///
    /// # Errors
    /// A rate that is negative or not finite; parameters or gradients of another graph. Nothing is changed then.
    pub fn step(&mut self, params: &mut Params, gradients: &GradientSum, rate: f64) -> Result<()> {
        self.step_shared(params, gradients, rate, None)
    }

    /// As [`step`](Self::step), with the help of workers, if there are any.
    pub(super) fn step_shared(
        &mut self,
        params: &mut Params,
        gradients: &GradientSum,
        rate: f64,
        workers: Option<Workers<'_>>,
    ) -> Result<()> {
        check_rate(rate)?;
        self.fits(params, gradients)?;
        for (i, (_, weight)) in params.iter_mut().enumerate() {
            if let Some(gradient) = gradients.at(i) {
                self.update(i, weight, gradient.as_slice(), (rate, workers));
            }
        }
        Ok(())
    }

    /// Moves one parameter, if it learns, with the help of workers, if there are any. The rate has been checked, and
    /// gradient and weight have one shape.
    pub(super) fn update(
        &mut self,
        parameter: usize,
        weight: &mut [f32],
        gradient: &[f32],
        (rate, workers): (f64, Option<Workers<'_>>),
    ) {
        let (share, (updates, slots)) = (self.shares[parameter], &mut self.memory[parameter]);
        if !share.learns {
            return;
        }
        *updates += 1;
        let (rate, decay) = ((rate * f64::from(share.rate)) as f32, self.rule.decay() * share.decay);
        let mut slots: Vec<&mut [f32]> = slots.iter_mut().map(Tensor::as_mut_slice).collect();
        let at = At { rate, decay, update: *updates };
        match workers {
            Some(workers) => update_shared(&*self.rule, &at, weight, gradient, &mut slots, workers),
            None => self.rule.update(&at, weight, gradient, &mut slots),
        }
    }

    fn fits(&self, params: &Params, gradients: &GradientSum) -> Result<()> {
        if params.defs().len() != self.memory.len() {
            return Err(Error::mismatch("optimiser", "parameters", self.memory.len(), params.defs().len()));
        }
        for (i, def) in params.defs().iter().enumerate() {
            if let Some(gradient) = gradients.at(i)
                && gradient.shape() != def.shape
            {
                let found = format!("{:?}", gradient.shape());
                return Err(Error::mismatch(&def.name, "shape of the gradient", format!("{:?}", def.shape), found));
            }
        }
        Ok(())
    }

    /// The formula and its constants.
    pub fn describe(&self) -> String {
        self.rule.describe()
    }

    /// How often each parameter was updated, in the drawing's order.
    pub fn updates(&self) -> impl ExactSizeIterator<Item = u64> {
        self.memory.iter().map(|(updates, _)| *updates)
    }

    /// What is remembered: index of the parameter, name of the slot, values.
    pub fn remembered(&self) -> impl Iterator<Item = (usize, &'static str, &Tensor)> {
        let memory = self.memory.iter().enumerate();
        memory.flat_map(|(i, (_, tensors))| self.slots.iter().zip(tensors).map(move |(s, t)| (i, s.name, t)))
    }

    /// Bytes of what is remembered.
    pub fn bytes(&self) -> usize {
        self.remembered().map(|(.., tensor)| size_of::<f32>() * tensor.len()).sum()
    }

    /// Takes up where another optimiser of the same kind left off: its [`Optimizer::updates`], and its
    /// [`Optimizer::remembered`] values, asked for by index and slot.
    ///
    /// # Errors
    /// Counts that are not one per parameter; what `values` cannot give; another shape. Nothing is changed then.
    pub fn restore(&mut self, updates: &[u64], mut values: impl FnMut(usize, &str) -> Result<Tensor>) -> Result<()> {
        if updates.len() != self.memory.len() {
            return Err(Error::mismatch("optimiser", "counts of updates", self.memory.len(), updates.len()));
        }
        let mut memory = Vec::with_capacity(self.memory.len());
        for (i, ((_, old), &count)) in self.memory.iter().zip(updates).enumerate() {
            let mut tensors = Vec::with_capacity(old.len());
            for (slot, old) in self.slots.iter().zip(old) {
                let value = values(i, slot.name)?;
                if value.shape() != old.shape() {
                    let (expected, found) = (format!("{:?}", old.shape()), format!("{:?}", value.shape()));
                    return Err(Error::mismatch(format!("{} of parameter {i}", slot.name), "shape", expected, found));
                }
                tensors.push(value);
            }
            memory.push((count, tensors));
        }
        self.memory = memory;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ParamKind;
    use crate::tensor::Init;
    use crate::train::{AdamW, RmsPropTf, Sgd};

    fn defs() -> Vec<ParamDef> {
        let def = |name: &str, kind| ParamDef {
            name: name.to_owned(),
            shape: vec![2],
            kind,
            init: Init::Constant(1.0),
            auxiliary: false,
        };
        vec![def("weight", ParamKind::Weight), def("bias", ParamKind::Bias), def("mean", ParamKind::RunningMean)]
    }

    fn gradients() -> GradientSum {
        let tensor = || Tensor::from_slice(&[2], &[0.5, -0.5]).unwrap();
        GradientSum::from_pairs([(0, tensor()), (1, tensor())]).unwrap()
    }

    #[test]
    fn groups_scale_rate_and_decay_and_freeze() {
        let rule = Sgd { momentum: 0.0, decay: 0.5, ..Sgd::default() };
        let mut params = Params::init(&defs(), &mut rand::rng());
        let groups = Groups::new().weights_decay_alone().rate("bias", 10.0);
        Optimizer::new(rule, &groups, &defs()).unwrap().step(&mut params, &gradients(), 0.1).unwrap();
        assert_eq!(params.get("weight").unwrap().as_slice(), [0.9, 1.0]);
        assert_eq!(params.get("bias").unwrap().as_slice(), [0.5, 1.5]);
        assert_eq!(params.get("mean").unwrap().as_slice(), [1.0, 1.0]);

        let mut params = Params::init(&defs(), &mut rand::rng());
        let frozen = Groups::new().freeze("weight");
        Optimizer::new(rule, &frozen, &defs()).unwrap().step(&mut params, &gradients(), 0.1).unwrap();
        assert_eq!(params.get("weight").unwrap().as_slice(), [1.0, 1.0]);
    }

    #[test]
    fn settings_that_cannot_work_are_errors_and_change_nothing() {
        let mut params = Params::init(&defs(), &mut rand::rng());
        let mut optimizer = Optimizer::new(Sgd::default(), &Groups::new(), &defs()).unwrap();
        for rate in [f64::NAN, f64::INFINITY, -0.1] {
            let error = optimizer.step(&mut params, &gradients(), rate).unwrap_err().to_string();
            assert!(error.contains("learning rate") && error.contains(&rate.to_string()), "{error}");
        }
        let odd = GradientSum::from_pairs([(1, Tensor::zeros(&[3]))]).unwrap();
        let error = optimizer.step(&mut params, &odd, 0.1).unwrap_err().to_string();
        assert!(error.contains("bias") && error.contains("[2]") && error.contains("[3]"), "{error}");
        assert!(params.iter().all(|(_, value)| value.as_slice() == [1.0, 1.0]));
        let bad: [Box<dyn Rule>; 5] = [
            Box::new(Sgd { momentum: f32::NAN, ..Sgd::default() }),
            Box::new(Sgd { nesterov: true, dampening: 0.1, ..Sgd::default() }),
            Box::new(Sgd { decay: -1.0, ..Sgd::default() }),
            Box::new(AdamW { betas: [0.9, 1.0], ..AdamW::default() }),
            Box::new(RmsPropTf { epsilon: 0.0, ..RmsPropTf::default() }),
        ];
        for rule in bad {
            let text = format!("{rule:?}");
            assert!(Optimizer::new(rule, &Groups::new(), &defs()).is_err(), "{text}");
        }
    }
}
