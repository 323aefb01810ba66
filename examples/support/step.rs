//! One training step on given images and labels, with everything PyTorch would show of it.

use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::exec::{Gradients, TrainOptions};
use convzoo::graph::Role;
use convzoo::weights::StateDict;
use convzoo::{Error, Model, Result, Tensor};

/// The images of a step and the class of each.
pub(crate) struct Batch {
    pub(crate) images: Tensor,
    pub(crate) labels: Vec<usize>,
}

impl Batch {
    /// Labels `[n]`, one per image.
    pub(crate) fn new(images: Tensor, labels: &Tensor) -> Result<Self> {
        let (n, found) = (images.shape().first().copied().unwrap_or(0), labels.shape());
        if found != [n] {
            return Err(Error::mismatch(
                "labels",
                "shape",
                format!("[{n}], one label per image"),
                format!("{found:?}"),
            ));
        }
        let class = |(i, &v): (usize, &f32)| match v {
            v if v >= 0.0 && v.fract() == 0.0 => Ok(v as usize),
            v => Err(Error::invalid(format!("label {i}"), format!("a class is a whole number from 0 on, found {v}"))),
        };
        let labels = labels.as_slice().iter().enumerate().map(class).collect::<Result<_>>()?;
        Ok(Batch { images, labels })
    }
}

/// Forward and backward by the reference executor in f64: `loss`, the outputs by name (the primary one as `output`),
/// `grad.<parameter>`, `grad.input`, `state.<running statistic>`.
///
/// The loss is the cross entropy of every head, the auxiliary ones by the weight they were drawn with; those whose
/// parameters `lacks` names are left out.
pub(crate) fn reference(model: &Model, batch: &Batch, options: &TrainOptions, lacks: &[String]) -> Result<StateDict> {
    let (graph, params) = (model.graph(), model.params());
    let absent = |head: &str| lacks.iter().any(|name| name.split('.').next() == Some(head));
    let mut loss = 0.0;
    let trained = train_step::<f64>(&TrainStep { graph, params, options, step: 0 }, &batch.images, |outputs| {
        let mut gradients = vec![];
        for (name, value) in outputs.iter().filter(|(name, _)| !absent(name)) {
            let role = graph.outputs().iter().find(|o| o.name == *name).map(|o| o.role);
            let weight = if let Some(Role::Auxiliary { weight }) = role { f64::from(weight) } else { 1.0 };
            let (value_of_loss, gradient) = cross_entropy(value, &batch.labels, weight)?;
            loss += value_of_loss;
            gradients.push((name.clone(), gradient));
        }
        Ok(gradients)
    })?;
    let mut out = StateDict::new("parity");
    out.insert("loss", Tensor::from_slice(&[], &[loss as f32])?)?;
    for (name, value) in trained.outputs.iter().filter(|(name, _)| !absent(name)) {
        let name = if name == "logits" { "output" } else { name };
        let data: Vec<f32> = value.data.iter().map(|&v| v as f32).collect();
        out.insert(name, Tensor::from_slice(&value.shape[..2], &data)?)?;
    }
    insert_gradients(&mut out, &trained.rounded(graph.params()), lacks)?;
    let mut after = params.clone();
    trained.move_statistics(&mut after);
    for (def, value) in after.iter().filter(|(def, _)| !def.kind.is_learned() && !lacks.contains(&def.name)) {
        out.insert(format!("state.{}", def.name), value.clone())?;
    }
    Ok(out)
}

fn insert_gradients(out: &mut StateDict, gradients: &Gradients, lacks: &[String]) -> Result<()> {
    for (def, value) in gradients.iter().filter(|(def, _)| !lacks.contains(&def.name)) {
        out.insert(format!("grad.{}", def.name), value.clone())?;
    }
    gradients.input().map_or(Ok(()), |value| out.insert("grad.input", value.clone()))
}

/// `weight` times the mean cross entropy of logits `[n, classes, 1, 1]`, and its gradient.
fn cross_entropy(logits: &Value<f64>, labels: &[usize], weight: f64) -> Result<(f64, Value<f64>)> {
    let [n, classes, _, _] = logits.shape;
    let (mut loss, mut data) = (0.0, vec![]);
    for (i, (row, &label)) in logits.data.chunks_exact(classes).zip(labels).enumerate() {
        if label >= classes {
            return Err(Error::mismatch(format!("label {i}"), "class", format!("below {classes}"), label));
        }
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
        loss += weight * (sum.ln() + most - row[label]) / n as f64;
        let wanted = |c| if c == label { 1.0 } else { 0.0 };
        data.extend(row.iter().enumerate().map(|(c, v)| weight * ((v - most).exp() / sum - wanted(c)) / n as f64));
    }
    Ok((loss, Value { shape: logits.shape, data }))
}
