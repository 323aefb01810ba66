//! Every network of the registry, at full size, against PyTorch: names, counts and logits.
//!
//! Weights and inputs follow `common::recipe`; what PyTorch answered in f64 stands in `tests/goldens`, made by
//! `goldens/make.py`. `CONVZOO_GOLDEN=vgg cargo test --test goldens` checks the networks whose names contain `vgg`.
#![cfg(feature = "safetensors")]

mod common;

use common::{filled, golden, golden_json, knobs, recipe, relative_error, sizes};
use convzoo::models::{self, ModelInfo};
use convzoo::weights::StateDict;
use convzoo::{Model, PlanOptions, Precision, Result, graph::ParamDef};
use serde_json::Value;
use std::time::Instant;

/// Norm of the difference over norm; PyTorch's own f32 stays within 1e-5 of the f64 here.
const TOLERANCE: f64 = 1e-4;

/// The same without Winograd's transforms.
const EXACT_TOLERANCE: f64 = 2e-5;

fn selected() -> impl Iterator<Item = &'static ModelInfo> {
    let part = std::env::var("CONVZOO_GOLDEN").unwrap_or_default();
    models::list().filter(move |m| m.name.contains(&part))
}

#[test]
fn every_registered_network_has_goldens_and_every_golden_a_network() {
    let manifest = golden_json("manifest.json");
    let known: Vec<&str> = manifest.as_object().unwrap().keys().map(String::as_str).collect();
    let listed: Vec<&str> = models::list().map(|m| m.name).collect();
    let lacking: Vec<_> = listed.iter().filter(|name| !known.contains(name)).collect();
    let orphaned: Vec<_> = known.iter().filter(|name| !listed.contains(name)).collect();
    assert!(lacking.is_empty() && orphaned.is_empty(), "no goldens for {lacking:?}, no network for {orphaned:?}");
}

fn listing(defs: &[ParamDef]) -> String {
    let line = |d: &ParamDef| d.shape.iter().fold(d.name.clone(), |line, extent| format!("{line} {extent}"));
    defs.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn parameters_have_pytorchs_names_shapes_and_order() -> Result<()> {
    let manifest = golden_json("manifest.json");
    let mut wrong = vec![];
    for info in models::list() {
        let model = Model::blank(&info.config())?;
        let (lines, entry) = (listing(model.graph().params()), &manifest[info.name]);
        let counts = [model.params().iter().count(), model.graph().param_count(true)].map(|n| n as u64);
        let wanted = [&entry["tensors"], &entry["params"]].map(|v| v.as_u64().unwrap_or(0));
        let same = format!("{:016x}", recipe::fnv1a(lines.as_bytes())) == entry["names_fnv"].as_str().unwrap_or("");
        let macs = entry["macs"].as_u64() == Some(info.macs);
        if !same || counts != wanted || !macs {
            wrong.push(format!(
                "{}: names {same}, tensors and values {counts:?} for {wanted:?}, MACs {} for {}{}",
                info.name,
                info.macs,
                entry["macs"],
                first_difference(info.name, &lines)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// For the networks whose full list is kept: the first line that differs.
fn first_difference(name: &str, lines: &str) -> String {
    let Ok(wanted) = std::fs::read_to_string(golden(&format!("names/{name}.txt"))) else { return String::new() };
    let differs = lines.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    differs.map_or_else(String::new, |(found, wanted)| format!("; `{found}` where PyTorch has `{wanted}`"))
}

/// Checks all cases of one network; gives back the failures.
fn check(info: &ModelInfo, entry: &Value, logits: &StateDict) -> Result<Vec<String>> {
    let start = Instant::now();
    let knobs = knobs(entry);
    let model = filled(&info.config(), &knobs)?;
    let mut wrong = vec![];
    for (case, facts) in entry["cases"].as_object().expect("cases") {
        let shape: [usize; 4] = sizes(&facts["shape"]).try_into().expect("four extents");
        let wanted = logits.get(&format!("{}/{case}", info.name)).expect("logits in the file");
        let mut plan = model.plan(shape)?;
        let out = plan.run(&recipe::image(shape, knobs.input_scale, "input"))?;
        assert_eq!(out.logits().shape(), wanted.shape(), "{}/{case}", info.name);
        let error = relative_error(out.logits().as_slice(), wanted.as_slice());
        let line = format!("{:28} {case:6} {shape:?}: {error:.1e}, PyTorch's f32 {:.1e}", info.name, {
            facts["f32_error"].as_f64().unwrap_or(f64::NAN)
        });
        println!("{line}");
        if error.is_nan() || error > TOLERANCE {
            wrong.push(line);
        }
    }
    println!("{:28} {:.1} s", info.name, start.elapsed().as_secs_f64());
    Ok(wrong)
}

#[test]
fn plain_sums_stay_closer_to_pytorch_than_fast_ones_must() -> Result<()> {
    let manifest = golden_json("manifest.json");
    let logits = StateDict::read(golden("logits.safetensors"))?;
    let mut wrong = vec![];
    // One network of each family that has 3×3 convolutions to transform, at its own size.
    for name in
        ["alexnet", "vgg16", "googlenet", "resnet18", "resnet152", "densenet121", "seresnet50", "efficientnet_v2_s"]
    {
        let (info, entry) = (models::get(name)?, &manifest[name]);
        let (knobs, shape) = (knobs(entry), sizes(&entry["cases"]["own"]["shape"]).try_into().expect("four extents"));
        let model = filled(&info.config(), &knobs)?;
        let mut plan = model.plan_with(shape, &PlanOptions::new().precision(Precision::Exact))?;
        assert!(!plan.explain().contains("winograd"), "{name} transforms under the exact policy");
        let out = plan.run(&recipe::image(shape, knobs.input_scale, "input"))?;
        let wanted = logits.get(&format!("{name}/own")).expect("logits in the file");
        let error = relative_error(out.logits().as_slice(), wanted.as_slice());
        println!("{name:28} exact {error:.1e}");
        if error.is_nan() || error > EXACT_TOLERANCE {
            wrong.push(format!("{name} {error:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "beyond {EXACT_TOLERANCE:e}: {wrong:?}");
    Ok(())
}

#[test]
fn logits_equal_pytorchs() -> Result<()> {
    let manifest = golden_json("manifest.json");
    let logits = StateDict::read(golden("logits.safetensors"))?;
    let mut wrong = vec![];
    for info in selected() {
        match check(info, &manifest[info.name], &logits) {
            Ok(failures) => wrong.extend(failures),
            Err(error) => wrong.push(format!("{}: {error}", info.name)),
        }
    }
    assert!(wrong.is_empty(), "beyond {TOLERANCE:e}:\n{}", wrong.join("\n"));
    Ok(())
}
