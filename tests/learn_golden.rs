//! Losses, ten steps of each optimiser, and schedules against PyTorch's and timm's (`goldens/learn.py`).

use convzoo::Tensor;
use convzoo::graph::{ParamDef, ParamKind, Params};
use convzoo::tensor::Init;
use convzoo::train::{
    AdamW, BinaryCrossEntropy, CrossEntropy, Decay, GradientSum, Groups, Loss, Optimizer, RmsPropTf, Rule, Schedule,
    Sgd, Targets,
};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("goldens/learn.json")).expect("the golden is JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// The same numbers as `pattern` in goldens/learn.py.
fn pattern(shape: &[usize], salt: usize) -> Tensor {
    Tensor::from_fn(shape, |i| (((i * 7919 + salt * 104_729 + 13) % 1000) as f64 / 500.0 - 1.0) as f32)
}

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, wanted: &[f64], tolerance: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= tolerance * w.abs().max(1.0), "{what}, {i}: {f} for {w}");
    }
}

fn wide(tensor: &Tensor) -> impl Iterator<Item = f64> {
    tensor.as_slice().iter().map(|&v| f64::from(v))
}

#[test]
fn ten_steps_of_each_optimiser_are_pytorchs() {
    let decay = 0.05;
    let rules: [(&str, Box<dyn Rule>); 5] = [
        ("sgd", Sgd { momentum: 0.0, decay, ..Sgd::default() }.into()),
        ("momentum", Sgd { dampening: 0.3, decay, ..Sgd::default() }.into()),
        ("nesterov", Sgd { nesterov: true, decay, ..Sgd::default() }.into()),
        ("adamw", AdamW { decay, ..AdamW::default() }.into()),
        ("rmsprop_tf", RmsPropTf { decay, ..RmsPropTf::default() }.into()),
    ];
    let def = |name: &str, shape: &[usize], kind| ParamDef {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind,
        init: Init::Constant(0.0),
        auxiliary: false,
    };
    let defs = [def("weight", &[3, 4], ParamKind::Weight), def("bias", &[3], ParamKind::Bias)];
    let golden = golden();
    for (name, rule) in rules {
        let mut params = Params::blank(&defs);
        params.set("weight", pattern(&[3, 4], 1)).unwrap();
        params.set("bias", pattern(&[3], 2)).unwrap();
        let mut optimizer = Optimizer::new(rule, &Groups::new().weights_decay_alone(), &defs).unwrap();
        let steps = golden["optimisers"][name].as_array().unwrap();
        assert_eq!(steps.len(), 10);
        for (step, wanted) in steps.iter().enumerate() {
            let gradient = |name: &str, salt: usize| {
                let weight = params.get(name).unwrap();
                let pattern = pattern(weight.shape(), salt + step);
                Tensor::from_fn(weight.shape(), |i| pattern.as_slice()[i] + 0.1 * weight.as_slice()[i])
            };
            let pairs = [(0, gradient("weight", 10)), (1, gradient("bias", 30))];
            let rate = 0.1 * (step + 1) as f64 / 10.0;
            optimizer.step(&mut params, &GradientSum::from_pairs(pairs).unwrap(), rate).unwrap();
            for param in ["weight", "bias"] {
                let what = format!("{name}, step {step}, {param}");
                assert_close(&what, wide(params.get(param).unwrap()), &numbers(&wanted[param]), 1e-5);
            }
        }
    }
}

#[test]
fn losses_and_their_gradients_are_pytorchs() {
    let golden = golden();
    let output = Tensor::from_fn(&[3, 4], |i| 3.0 * pattern(&[12], 5).as_slice()[i]);
    let labels = Targets::Labels(vec![2, 0, 3]);
    let shares = numbers(&golden["shares"]);
    let shares = Targets::Shares(Tensor::from_fn(&[3, 4], |i| shares[i] as f32));
    let binary = Targets::Shares(Tensor::from_fn(&[3, 4], |i| f32::from(pattern(&[12], 9).as_slice()[i] > 0.0)));
    let weights = vec![0.5, 2.0, 1.0, 1.5];
    let smooth = CrossEntropy::new().smoothing(0.1);
    let weighted = smooth.clone().class_weights(weights.clone());
    let cases: [(&str, &dyn Loss, &Targets); 6] = [
        ("plain", &CrossEntropy::new(), &labels),
        ("smooth", &smooth, &labels),
        ("weighted", &weighted, &labels),
        ("shares", &weighted, &shares),
        ("binary", &BinaryCrossEntropy::new(), &binary),
        ("binary_weighted", &BinaryCrossEntropy::new().positive_weights(weights), &binary),
    ];
    for (name, loss, targets) in cases {
        let found = loss.evaluate(&output, targets).unwrap();
        let wanted = &golden["losses"][name];
        assert_close(name, [found.value], &[wanted["value"].as_f64().unwrap()], 1e-6);
        assert_close(name, wide(&found.gradient), &numbers(&wanted["gradient"]), 1e-6);
    }
}

#[test]
fn schedules_are_pytorchs() {
    let golden = golden();
    let cases = [
        ("one_cycle", Schedule::one_cycle(0.2, 50)),
        ("cosine", Schedule::new(0.2, Decay::Cosine { steps: 30, floor: 0.1 })),
        ("multi_step", Schedule::new(0.2, Decay::MultiStep { at: vec![5, 9], factor: 0.1 })),
        ("step", Schedule::new(0.2, Decay::Step { every: 4.0, factor: 0.5 })),
        ("exponential", Schedule::new(0.2, Decay::Exponential { every: 1.0, factor: 0.9 })),
        ("warm_up", Schedule::cosine(0.2, 20).warm_up(5, 0.1)),
    ];
    for (name, schedule) in cases {
        schedule.check().unwrap();
        let wanted = numbers(&golden["schedules"][name]);
        assert_close(name, (0..wanted.len() as u64).map(|step| schedule.rate(step)), &wanted, 1e-12);
    }
}
