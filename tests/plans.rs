//! Every network of the registry: its plan equals the reference executor, on every instruction set and at odd sizes, and
//! gives the same bits for 1, 2 and 7 threads.

mod common;

use common::recipe::{self, Knobs};
use common::{golden_json, knobs, relative_error};
use convzoo::simd::Isa;
use convzoo::{Model, PlanOptions, models};

/// Sizes that every network of its kind can take, none of them its own.
fn shapes(info: &models::ModelInfo) -> &'static [[usize; 4]] {
    match info.name {
        _ if info.is_cifar() => &[[2, 3, 13, 21]],
        name if name.starts_with("googlenet") => &[[1, 3, 65, 79]],
        _ if info.macs > 15_000_000_000 => &[[1, 3, 65, 66]],
        _ => &[[1, 3, 67, 81]],
    }
}

fn filled(info: &models::ModelInfo, knobs: &Knobs) -> Model {
    // Ten classes: the classifier's width changes nothing that is tested here.
    let network = models::build(info.name, Some(10)).unwrap();
    let mut model = Model::blank(&network).unwrap();
    for (def, values) in model.params_mut().iter_mut() {
        recipe::parameter(&def.name, &def.shape, knobs, values);
    }
    model
}

fn check(info: &models::ModelInfo, knobs: &Knobs) {
    let model = filled(info, knobs);
    for &shape in shapes(info) {
        let input = recipe::image(shape, knobs.input_scale, "input");
        let wanted = model.reference::<f32>(&input).unwrap_or_else(|e| panic!("{}: {e}", info.name)).data;
        for &isa in Isa::available() {
            let run = |threads| {
                let options = PlanOptions::new().isa(isa).threads(threads);
                let mut plan = model.plan_with(shape, &options).unwrap_or_else(|e| panic!("{}: {e}", info.name));
                plan.run(&input).unwrap().logits().as_slice().to_vec()
            };
            let found = run(2);
            let error = relative_error(&found, &wanted);
            assert!(error < 5e-5, "{} at {shape:?} on {}: {error:e}", info.name, isa.name());
            if isa == Isa::detect() {
                let same = |other: Vec<f32>| other.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same(run(1)) && same(run(7)), "{} depends on the number of threads", info.name);
            }
        }
    }
}

/// Splits the registry in two so that both halves run at the same time.
fn check_half(half: usize) {
    let manifest = golden_json("manifest.json");
    for (i, info) in models::list().enumerate().filter(|(i, _)| i % 2 == half) {
        let entry = &manifest[info.name];
        assert!(!entry.is_null(), "model {i}, {}, has no golden", info.name);
        check(info, &knobs(entry));
    }
}

#[test]
fn every_even_plan_equals_the_reference_on_every_instruction_set_and_thread_count() {
    check_half(0);
}

#[test]
fn every_odd_plan_equals_the_reference_on_every_instruction_set_and_thread_count() {
    check_half(1);
}
