//! Inside the networks: what every module yields, against PyTorch's forward hooks, for the reference executor in f64 and
//! for the plan. A golden of the logits says that something is wrong; this says where.
#![cfg(feature = "safetensors")]

mod common;

use common::{filled, golden, golden_json, knobs, recipe, sizes};
use convzoo::exec::{PlanOptions, reference};
use convzoo::graph::NodeId;
use convzoo::models;
use convzoo::weights::StateDict;
use convzoo::{Model, Result, Tensor};
use serde_json::Value;

/// Strided samples per module.
const SAMPLES: usize = 16;
/// The goldens are f64 rounded to f32; the reference computes in f64 with settings (eps, ...) rounded to f32.
const REFERENCE_TOLERANCE: f64 = 5e-7;
const PLAN_TOLERANCE: f64 = 1e-4;
/// Beyond this the naive executor takes too long here; the plan is checked all the same.
const TOO_LARGE: [&str; 1] = ["legacy_senet154"];

/// A module that ran once in PyTorch.
struct Module<'a> {
    name: &'a str,
    shape: Vec<usize>,
    /// Norm, mean, samples.
    stats: &'a [f32],
}

/// How far `values` are from the golden: the largest of the errors of norm, mean and samples, in units of the rms.
fn distance(values: &[f64], module: &Module<'_>) -> f64 {
    let n = values.len();
    assert_eq!(n, module.shape.iter().product::<usize>(), "{}: number of values", module.name);
    let stats: Vec<f64> = module.stats.iter().map(|&v| f64::from(v)).collect();
    let rms = stats[0] / (n as f64).sqrt();
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mean = values.iter().sum::<f64>() / n as f64;
    let samples = (0..SAMPLES).map(|i| (values[i * n / SAMPLES] - stats[2 + i]).powi(2)).sum::<f64>();
    let errors = [(norm - stats[0]).abs() / stats[0], (mean - stats[1]).abs() / rms, {
        (samples / SAMPLES as f64).sqrt() / rms
    }];
    errors.into_iter().fold(0.0, |most, e| if e.is_nan() { f64::NAN } else { most.max(e) })
}

/// The complaint, if some module is too far off.
fn judge(name: &str, who: &str, distances: Vec<(&str, f64)>, tolerance: f64) -> Option<String> {
    let worst = distances.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("some modules");
    println!("{name:24} {who:9} {:4} modules, worst {:.1e} at {}", distances.len(), worst.1, worst.0);
    let first = distances.iter().find(|(_, d)| d.is_nan() || *d > tolerance);
    first.map(|(module, d)| format!("{name}, {who}: {module} is the first module beyond {tolerance:e}, at {d:.1e}"))
}

/// The modules that exist in both drawings. Every module with parameters must.
fn shared<'a>(name: &str, entry: &'a Value, stats: &'a Tensor, model: &Model) -> Vec<(Module<'a>, NodeId)> {
    let mut found = vec![];
    for (module, stats) in entry["layers"].as_array().unwrap().iter().zip(stats.as_slice().chunks(SAMPLES + 2)) {
        let path = module["name"].as_str().unwrap();
        match model.graph().find(path) {
            Ok(node) => found.push((Module { name: path, shape: sizes(&module["shape"]), stats }, node)),
            Err(error) => {
                let own = format!("{path}.weight");
                assert!(model.params().get(&own).is_err(), "{name}: {path} has weights but no scope: {error}");
            }
        }
    }
    found
}

fn check(name: &str, entry: &Value, stats: &Tensor, knobs: &recipe::Knobs) -> Result<Vec<String>> {
    let model = filled(&models::get(name)?.config(), knobs)?;
    let shape: [usize; 4] = sizes(&entry["shape"]).try_into().expect("four extents");
    let image = recipe::image(shape, knobs.input_scale, "input");
    let modules = shared(name, entry, stats, &model);
    let mut wrong = vec![];
    if !TOO_LARGE.contains(&name) {
        let nodes: Vec<NodeId> = modules.iter().map(|(_, node)| *node).collect();
        let values = reference::evaluate::<f64>(model.graph(), model.params(), &image, &nodes)?;
        let distances = modules.iter().zip(&values).map(|((m, _), v)| (m.name, distance(&v.data, m))).collect();
        wrong.extend(judge(name, "reference", distances, REFERENCE_TOLERANCE));
    }
    let mut plan = model.plan_with(shape, &PlanOptions::new().all_scopes())?;
    let out = plan.run(&image)?;
    let mut distances = vec![];
    for (module, _) in &modules {
        let values: Vec<f64> = out.get(module.name)?.as_slice().iter().map(|&v| f64::from(v)).collect();
        distances.push((module.name, distance(&values, module)));
    }
    wrong.extend(judge(name, "plan", distances, PLAN_TOLERANCE));
    Ok(wrong)
}

#[test]
fn every_module_yields_what_pytorchs_does() -> Result<()> {
    let (manifest, layers) = (golden_json("manifest.json"), golden_json("layers.json"));
    let stats = StateDict::read(golden("layers.safetensors"))?;
    let layers = layers.as_object().unwrap();
    assert!(layers.len() >= 7, "only {} networks", layers.len());
    let mut wrong = vec![];
    for (name, entry) in layers {
        match check(name, entry, stats.get(name).expect("stats in the file"), &knobs(&manifest[name])) {
            Ok(failures) => wrong.extend(failures),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
