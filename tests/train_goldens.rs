//! Whole training steps against PyTorch: loss, every parameter's gradient, the images' gradient, running statistics and
//! outputs. `goldens/train.py` made the goldens. `CONVZOO_GOLDEN=resnet cargo test --test train_goldens` checks a part.
#![cfg(feature = "safetensors")]

mod common;

use common::training::{Golden, joined_loss, planned, values};
use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::{Result, Tensor};

/// The goldens are f64 rounded to f32, and eps and momentum are f32 here.
const REFERENCE_TOLERANCE: f64 = 3e-7;
/// A thousand million values in f64 would take gigabytes here; the plan is checked all the same.
const TOO_LARGE: [&str; 1] = ["vgg11_bn"];

fn selected() -> Vec<String> {
    let part = std::env::var("CONVZOO_GOLDEN").unwrap_or_default();
    Golden::names().into_iter().filter(|name| name.contains(&part)).collect()
}

/// The complaints about the reference executor's small step of a network.
fn check_reference(name: &str) -> Result<Vec<String>> {
    let golden = Golden::read(name, "small")?;
    let (graph, params, options) = (golden.model.graph(), golden.model.params(), &Golden::options());
    let mut loss = f64::NAN;
    let trained = train_step::<f64>(&TrainStep { graph, params, options, step: 0 }, &golden.images, |outputs| {
        let (value, gradients) = joined_loss(graph, outputs, &golden.labels);
        loss = value;
        Ok(gradients)
    })?;
    let mut values: Named = vec![];
    for (def, gradient) in graph.params().iter().zip(trained.gradients) {
        values.extend(gradient.map(|gradient| (def.name.clone(), gradient)));
    }
    values.extend(trained.statistics.into_iter().map(|(id, v)| (graph.params()[id.index()].name.clone(), v)));
    values.extend(trained.outputs.into_iter().map(|(name, value)| (name, value.data)));
    values.push(("input".to_owned(), trained.input.expect("asked for").data));
    // A bias in front of a batch norm has a gradient of zero, and sums that only come close to it.
    let verdict = golden.judge(values, |norm, _, largest| REFERENCE_TOLERANCE * norm + 1e-12 * largest);
    Ok(golden.complaints(verdict, loss, 1e-7))
}

/// Values by name.
type Named = Vec<(String, Vec<f64>)>;

/// The planned step of a network: what it gives by name, and its loss.
fn planned_step(golden: &Golden) -> Result<(Named, f64)> {
    let (graph, mut loss) = (golden.model.graph(), f64::NAN);
    let step = planned(&golden.model, &golden.images, &Golden::options(), |outputs| {
        let exact = |t: &Tensor| t.as_slice().iter().map(|&v| v.into()).collect();
        let shape = |t: &Tensor| [t.shape()[0], t.shape()[1], 1, 1];
        let outputs: Vec<_> =
            outputs.iter().map(|(n, t)| (n.clone(), Value { shape: shape(t), data: exact(t) })).collect();
        let (value, gradients) = joined_loss(graph, &outputs, &golden.labels);
        loss = value;
        let round = |v: &Value<f64>| v.data.iter().map(|&v| v as f32).collect::<Vec<_>>();
        gradients.iter().map(|(_, v)| Tensor::from_slice(&v.shape[..2], &round(v))).collect()
    })?;
    Ok((values(graph, &step), loss))
}

/// Three times the error of PyTorch's f32, which is at least a unit in the last place; where a gradient is zero, as in
/// front of a batch norm, only the rounding of what it sums is left.
fn as_close_as_pytorch(norm: f64, near: f64, largest: f64) -> f64 {
    3.0 * near.max(f64::from(f32::EPSILON) * norm).max(1e-8 * largest)
}

fn check_plans(case: &str) -> Result<()> {
    let mut wrong = vec![];
    for name in selected() {
        let golden = Golden::read(&name, case)?;
        let (values, loss) = planned_step(&golden)?;
        wrong.extend(golden.complaints(golden.judge(values, as_close_as_pytorch), loss, 1e-5));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn small_planned_steps_are_as_close_to_f64_as_pytorchs_f32() -> Result<()> {
    check_plans("small")
}

#[test]
fn full_planned_steps_are_as_close_to_f64_as_pytorchs_f32() -> Result<()> {
    check_plans("full")
}

fn check_reference_half(half: usize) -> Result<()> {
    let mut wrong = vec![];
    for (_, name) in
        selected().iter().enumerate().filter(|(i, name)| i % 2 == half && !TOO_LARGE.contains(&name.as_str()))
    {
        wrong.extend(check_reference(name)?);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn every_even_small_step_of_the_reference_equals_pytorchs() -> Result<()> {
    check_reference_half(0)
}

#[test]
fn every_odd_small_step_of_the_reference_equals_pytorchs() -> Result<()> {
    check_reference_half(1)
}
