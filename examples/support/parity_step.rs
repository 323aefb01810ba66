//! One training step on given images and labels, with everything PyTorch would show of it.

use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::exec::{Gradients, TrainOptions, TrainPlan};
use convzoo::graph::{Params, Role};
use convzoo::train::{CrossEntropy, Loss, Targets};
use convzoo::weights::StateDict;
use convzoo::{Error, Model, Result, Tensor};

/// A step about to be run.
pub(crate) struct Step<'a> {
    pub(crate) model: &'a Model,
    pub(crate) images: &'a Tensor,
    pub(crate) targets: Targets,
    pub(crate) options: TrainOptions,
    /// Parameters that were not loaded: the auxiliary heads they belong to are left out.
    pub(crate) lacks: Vec<String>,
}

/// The classes in an array `[n]`.
pub(crate) fn classes(labels: &Tensor) -> Result<Targets> {
    let class = |(i, &v): (usize, &f32)| match v {
        v if v >= 0.0 && v.fract() == 0.0 => Ok(v as usize),
        v => Err(Error::invalid(format!("label {i}"), format!("a class is a whole number from 0 on, found {v}"))),
    };
    match labels.shape() {
        [_] => Ok(Targets::Labels(labels.as_slice().iter().enumerate().map(class).collect::<Result<_>>()?)),
        other => Err(Error::mismatch("labels", "shape", "[n], one label per image", format!("{other:?}"))),
    }
}

impl Step<'_> {
    /// Forward and backward by the reference executor in f64.
    pub(crate) fn reference(&self) -> Result<StateDict> {
        let (graph, params, options) = (self.model.graph(), self.model.params(), &self.options);
        let mut out = StateDict::new("parity");
        let trained = train_step::<f64>(&TrainStep { graph, params, options, step: 0 }, self.images, |outputs| {
            let tensor = |v: &Value<f64>| {
                let data: Vec<f32> = v.data.iter().map(|&v| v as f32).collect();
                Tensor::from_slice(&v.shape[..2], &data)
            };
            let outputs = outputs.iter().map(|(name, v)| Ok((name.clone(), tensor(v)?))).collect::<Result<Vec<_>>>()?;
            let value = |g: Tensor| {
                let [n, classes] = [0, 1].map(|axis| g.shape()[axis]);
                Value { shape: [n, classes, 1, 1], data: g.as_slice().iter().map(|&v| v.into()).collect() }
            };
            Ok(self.loss(outputs, &mut out)?.into_iter().map(|(name, g)| (name, value(g))).collect())
        })?;
        let mut after = params.clone();
        trained.move_statistics(&mut after);
        self.insert(&trained.rounded(graph.params()), &after, &mut out)?;
        Ok(out)
    }

    /// Forward and backward by a plan.
    pub(crate) fn planned(&self) -> Result<StateDict> {
        let (mut params, mut out) = (self.model.params().clone(), StateDict::new("parity"));
        let &[n, c, h, w] = self.images.shape() else {
            return Err(Error::mismatch("input", "rank", "4 (n, c, h, w)", self.images.shape().len()));
        };
        let mut plan = TrainPlan::new(self.model.graph(), &params, [n, c, h, w], &self.options)?;
        let outputs = plan.forward(&mut params, self.images, 0)?;
        let outputs = outputs.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let gradients = self.loss(outputs, &mut out)?;
        let named: Vec<(&str, &Tensor)> = gradients.iter().map(|(name, value)| (name.as_str(), value)).collect();
        self.insert(plan.backward(&named)?, &params, &mut out)?;
        Ok(out)
    }

    /// Writes `loss` and the outputs by name, the primary one as `output`; gives back the gradient of each.
    ///
    /// The loss is the cross entropy of every head, the auxiliary ones by the weight they were drawn with.
    fn loss(&self, outputs: Vec<(String, Tensor)>, out: &mut StateDict) -> Result<Vec<(String, Tensor)>> {
        let (mut total, mut gradients) = (0.0, vec![]);
        for head in self.model.graph().outputs().iter().filter(|o| o.role != Role::Feature) {
            let absent = self.lacks.iter().any(|name| name.split('.').next() == Some(&head.name));
            let Some((name, logits)) = outputs.iter().find(|(name, _)| *name == head.name && !absent) else { continue };
            let mut loss = CrossEntropy::new().evaluate(logits, &self.targets)?;
            if let Role::Auxiliary { weight } = head.role {
                loss.value *= f64::from(weight);
                loss.gradient.as_mut_slice().iter_mut().for_each(|g| *g *= weight);
            }
            total += loss.value;
            gradients.push((name.clone(), loss.gradient));
            out.insert(if head.role == Role::Primary { "output" } else { name }, logits.clone())?;
        }
        out.insert("loss", Tensor::from_slice(&[], &[total as f32])?)?;
        Ok(gradients)
    }

    /// Writes `grad.<parameter>`, `grad.input` and `state.<running statistic>`.
    fn insert(&self, gradients: &Gradients, after: &Params, out: &mut StateDict) -> Result<()> {
        for (def, value) in gradients.iter().filter(|(def, _)| !self.lacks.contains(&def.name)) {
            out.insert(format!("grad.{}", def.name), value.clone())?;
        }
        if let Some(value) = gradients.input() {
            out.insert("grad.input", value.clone())?;
        }
        for (def, value) in after.iter().filter(|(d, _)| !d.kind.is_learned() && !self.lacks.contains(&d.name)) {
            out.insert(format!("state.{}", def.name), value.clone())?;
        }
        Ok(())
    }
}
