//! What several integration tests share. Each test file compiles its own copy and uses a part of it.
#![allow(dead_code, reason = "every test file uses another part")]

pub(crate) mod recipe;
pub(crate) mod training;

use convzoo::graph::Layer;
use convzoo::{Model, Result};
use recipe::Knobs;
use serde_json::Value;
use std::path::PathBuf;

/// A file under `tests/goldens`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// A JSON file under `tests/goldens`.
pub(crate) fn golden_json(name: &str) -> Value {
    let text = std::fs::read_to_string(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The recipe's knobs as the manifest has them.
pub(crate) fn knobs(entry: &Value) -> Knobs {
    Knobs {
        gain: entry["gain"].as_f64().expect("gain"),
        damped: entry["damped"].as_array().expect("damped").iter().map(|s| s.as_str().unwrap().to_owned()).collect(),
        damping: entry["damping"].as_f64().expect("damping"),
        input_scale: entry["input_scale"].as_f64().unwrap_or(1.0),
    }
}

/// A list of sizes.
pub(crate) fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("a size") as usize).collect()
}

/// Norm of the difference over norm of `wanted`, in f64. NaN if either has one.
pub(crate) fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |v: f64| v * v;
    let difference: f64 = found.iter().zip(wanted).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = wanted.iter().map(|v| square(f64::from(*v))).sum();
    (difference / norm).sqrt()
}

/// The network with the recipe's weights.
pub(crate) fn filled(network: &impl Layer, knobs: &Knobs) -> Result<Model> {
    let mut model = Model::blank(network)?;
    for (def, values) in model.params_mut().iter_mut() {
        recipe::parameter(&def.name, &def.shape, knobs, values);
    }
    Ok(model)
}
