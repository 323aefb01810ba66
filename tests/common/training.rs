//! What the tests of training share: PyTorch's training steps as `goldens/train.py` stores them, and the loss they have.

use super::{filled, golden, golden_json, knobs, recipe, sizes};
use convzoo::exec::reference::{Trained, Value};
use convzoo::exec::{Gradients, Noise, TrainOptions, TrainPlan};
use convzoo::graph::{Graph, ParamDef, ParamKind, Params, Role};
use convzoo::weights::StateDict;
use convzoo::{Model, Result, Tensor, models};
use std::collections::HashMap;

/// Sums per sketch.
const BUCKETS: usize = 32;

/// Sums of the values under pseudo-random signs in pseudo-random buckets: the squared distance of two sketches is, on
/// average, that of what they were made from. `goldens/train.py` has the same.
fn sketch(name: &str, values: &[f64]) -> [f64; BUCKETS] {
    let seed = recipe::fnv1a(format!("{name}.sketch").as_bytes());
    let mut sums = [0.0; BUCKETS];
    for (value, i) in values.iter().zip(0..) {
        let pick = (recipe::unit(seed, i) * 2.0 * BUCKETS as f64) as usize;
        sums[pick / 2] += if pick % 2 == 1 { *value } else { -*value };
    }
    sums
}

/// Norms that lift most of what they give over the corner of a ReLU, and offsets between whole pixels, where the bilinear
/// image has corners: the fewer units lie within rounding of one, the more a comparison says. `goldens/train.py` has the same.
pub(crate) fn keep_from_kinks(def: &ParamDef, values: &mut [f32], gain: f32) {
    let [factor, more] = match def.kind {
        ParamKind::NormShift => [1.0, 2.5 * gain],
        ParamKind::Weight if def.name.contains("conv_offset") => [0.02, 0.0],
        ParamKind::Bias if def.name.contains("conv_offset") => [0.2, 0.5],
        _ => return,
    };
    values.iter_mut().for_each(|v| *v = factor * *v + more);
}

/// What a step leaves behind.
pub(crate) struct Step {
    pub(crate) outputs: Vec<(String, Tensor)>,
    pub(crate) gradients: Gradients,
    /// With the running statistics moved.
    pub(crate) params: Params,
}

impl Step {
    /// What the reference executor's step leaves behind, rounded to f32.
    pub(crate) fn of(model: &Model, trained: &Trained<f64>) -> Result<Step> {
        let mut params = model.params().clone();
        trained.move_statistics(&mut params);
        let round = |v: &Value<f64>| v.data.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let outputs =
            trained.outputs.iter().map(|(n, v)| Ok((n.clone(), Tensor::from_slice(&v.shape[..2], &round(v))?)));
        Ok(Step { outputs: outputs.collect::<Result<_>>()?, gradients: trained.rounded(params.defs()), params })
    }
}

/// Runs step 0 as a plan; `seed` makes the gradient of each output.
pub(crate) fn planned(
    model: &Model,
    images: &Tensor,
    options: &TrainOptions,
    seed: impl FnOnce(&[(String, Tensor)]) -> Result<Vec<Tensor>>,
) -> Result<Step> {
    let mut params = model.params().clone();
    let shape: [usize; 4] = images.shape().try_into().expect("four extents");
    let mut plan = TrainPlan::new(model.graph(), &params, shape, options)?;
    let outputs = plan.forward(&mut params, images, 0)?;
    let outputs: Vec<(String, Tensor)> = outputs.iter().map(|(name, t)| (name.to_owned(), t.clone())).collect();
    let seeds = seed(&outputs)?;
    let named: Vec<(&str, &Tensor)> = outputs.iter().zip(&seeds).map(|((name, _), s)| (name.as_str(), s)).collect();
    let gradients = plan.backward(&named)?.clone();
    Ok(Step { outputs, gradients, params })
}

/// Every value of a step by name: outputs, gradients, the images' as `input`, running statistics.
pub(crate) fn values(graph: &Graph, step: &Step) -> Vec<(String, Vec<f64>)> {
    let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.as_slice().iter().map(|&v| v.into()).collect());
    let mut found: Vec<_> = step.outputs.iter().map(|(name, t)| named(name, t)).collect();
    found.extend(step.gradients.iter().map(|(def, t)| named(&def.name, t)));
    found.extend(step.gradients.input().map(|t| named("input", t)));
    let statistics = step.params.iter().filter(|(def, _)| !def.kind.is_learned());
    found.extend(statistics.map(|(def, t)| named(&def.name, t)));
    assert!(found.len() > graph.params().len(), "a value per parameter, input and output");
    found
}

/// Mean cross entropy of `[n, classes]` and its gradient.
pub(crate) fn cross_entropy(logits: &[f64], labels: &[usize]) -> (f64, Vec<f64>) {
    let (n, classes) = (labels.len() as f64, logits.len() / labels.len());
    let mut loss = 0.0;
    let mut gradient = Vec::with_capacity(logits.len());
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
        loss += (sum.ln() + most - row[label]) / n;
        gradient.extend(
            row.iter().enumerate().map(|(c, v)| ((v - most).exp() / sum - f64::from(u8::from(c == label))) / n),
        );
    }
    (loss, gradient)
}

/// The loss of a network with auxiliary heads, each by its weight, and the gradient with respect to every output.
pub(crate) fn joined_loss(
    graph: &Graph,
    outputs: &[(String, Value<f64>)],
    labels: &[usize],
) -> (f64, Vec<(String, Value<f64>)>) {
    let mut total = 0.0;
    let mut gradients = vec![];
    for (name, value) in outputs {
        let role = graph.outputs().iter().find(|o| o.name == *name).expect("an output of the graph").role;
        let weight = if let Role::Auxiliary { weight } = role { f64::from(weight) } else { 1.0 };
        let (loss, gradient) = cross_entropy(&value.data, labels);
        total += weight * loss;
        let data = gradient.into_iter().map(|g| weight * g).collect();
        gradients.push((name.clone(), Value { shape: value.shape, data }));
    }
    (total, gradients)
}

/// One training step of a whole network, and what PyTorch answered.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) images: Tensor,
    pub(crate) labels: Vec<usize>,
    pub(crate) loss: f64,
    /// By name: norm, error of PyTorch's f32, sketch.
    rows: HashMap<String, Vec<f64>>,
}

/// Where a step and PyTorch's disagree.
pub(crate) struct Verdict {
    pub(crate) wrong: Vec<String>,
    /// The largest error relative to what is allowed, and whose it is.
    pub(crate) worst: (f64, String),
}

impl Golden {
    /// The networks that have one.
    pub(crate) fn names() -> Vec<String> {
        golden_json("train.json").as_object().expect("networks").keys().cloned().collect()
    }

    /// The step `case` (`full`, `small`) of a network.
    pub(crate) fn read(name: &str, case: &str) -> Result<Golden> {
        let facts = &golden_json("train.json")[name][case];
        let knobs = knobs(&golden_json("manifest.json")[name]);
        let mut model = filled(&models::get(name)?.config(), &knobs)?;
        model.params_mut().iter_mut().for_each(|(def, values)| keep_from_kinks(def, values, knobs.gain as f32));
        let shape: [usize; 4] = sizes(&facts["shape"]).try_into().expect("four extents");
        let images = recipe::image(shape, knobs.input_scale, facts["image"].as_str().expect("an image's name"));
        let tables = StateDict::read(golden("train.safetensors"))?;
        let table = tables.get(&format!("{name}/{case}")).expect("a table per case");
        let names =
            model.graph().params().iter().map(|def| def.name.as_str()).chain(["input", "logits", "aux1", "aux2"]);
        let rows = table.as_slice().chunks_exact(2 + BUCKETS).map(|row| row.iter().map(|&v| v.into()).collect());
        assert!(table.shape()[0] > model.graph().params().len() + 1, "{name}: a row per parameter, input and output");
        let rows = names.map(str::to_owned).zip(rows).collect();
        let (labels, loss) = (sizes(&facts["labels"]), facts["loss"].as_f64().expect("a loss"));
        Ok(Golden { name: name.to_owned(), model, images, labels, loss, rows })
    }

    /// The options PyTorch's step had.
    pub(crate) fn options() -> TrainOptions {
        TrainOptions::new().noise(Noise::Off).input_gradient().threads(1)
    }

    /// Compares every gradient, updated statistic and output. `allowed` makes a bound of the golden's norm, the error of
    /// PyTorch's f32 and the largest norm of a gradient.
    pub(crate) fn judge(&self, values: Vec<(String, Vec<f64>)>, allowed: impl Fn(f64, f64, f64) -> f64) -> Verdict {
        let defs = self.model.graph().params();
        let largest = defs.iter().filter(|d| d.kind.is_learned()).map(|d| self.rows[&d.name][0]).fold(0.0, f64::max);
        let mut verdict = Verdict { wrong: vec![], worst: (0.0, String::new()) };
        let mut judged = 0;
        for (name, values) in values {
            let row = self.rows.get(&name).unwrap_or_else(|| panic!("{}: no golden for {name}", self.name));
            let square: f64 = sketch(&name, &values).iter().zip(&row[2..]).map(|(f, w)| (f - w).powi(2)).sum();
            let (error, limit) = (square.sqrt(), allowed(row[0], row[1], largest));
            let ratio = error / limit;
            if ratio > verdict.worst.0 {
                verdict.worst = (ratio, name.clone());
            }
            if ratio.is_nan() || ratio > 1.0 {
                let (norm, near) = (row[0], row[1]);
                verdict.wrong.push(format!(
                    "{} {name}: off by {error:.1e} of {norm:.1e}, PyTorch's f32 by {near:.1e}",
                    self.name
                ));
            }
            judged += 1;
        }
        assert_eq!(judged, self.rows.len(), "{}: everything in the golden is compared", self.name);
        verdict
    }

    /// All complaints about a step, its loss included; prints how it went.
    pub(crate) fn complaints(&self, mut verdict: Verdict, loss: f64, tolerance: f64) -> Vec<String> {
        if (loss - self.loss).is_nan() || (loss - self.loss).abs() > tolerance * self.loss {
            verdict.wrong.push(format!("{}: loss {loss}, PyTorch's {}", self.name, self.loss));
        }
        println!(
            "{:24} {:?}: {:.2} of what is allowed, {}",
            self.name,
            self.images.shape(),
            verdict.worst.0,
            verdict.worst.1
        );
        verdict.wrong
    }
}
