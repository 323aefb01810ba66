//! The planned training step of every family of networks equals the reference's: outputs, every parameter's gradient, the
//! images' gradient and the running statistics, with the same bits for 1, 2 and 3 threads.

mod common;

use common::recipe::{self, Knobs};
use common::training::{Step, keep_from_kinks, planned, values};
use common::{golden_json, knobs};
use convzoo::exec::TrainOptions;
use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::random::Stream;
use convzoo::{Model, Result, Tensor, models};

/// Norm of the difference over norm; f32 stays within 8e-5 of f64 where no unit sits on its kink.
const TOLERANCE: f64 = 1e-4;
/// ReLUs and maxima that lie within rounding of their kink go one way in f32 and the other in f64, and the gradient of
/// everything below with them. Another image has other such units, or none; a fault shows on all of them.
const IMAGES: usize = 16;

/// One network of every family, at a size with at least a few values per channel everywhere. VGG's matrices are too large
/// for the reference: `train_goldens` has it.
const NETWORKS: [(&str, [usize; 4]); 15] = [
    ("alexnet_paper", [2, 3, 67, 71]),
    ("googlenet", [3, 3, 75, 81]),
    ("googlenet_paper", [2, 3, 80, 86]),
    ("googlenet_paper_bn", [3, 3, 80, 97]),
    ("resnet18", [3, 3, 33, 50]),
    ("resnext50_32x4d", [2, 3, 41, 35]),
    ("resnet20", [2, 3, 13, 19]),
    ("plain20", [2, 3, 16, 11]),
    ("densenet121", [2, 3, 64, 64]),
    ("densenet_bc_100_12", [2, 3, 12, 13]),
    ("seresnet50", [2, 3, 41, 35]),
    ("deform_resnet50_v2_c3", [2, 3, 41, 35]),
    ("efficientnet_b0", [3, 3, 33, 50]),
    ("squeezenet1_1", [2, 3, 49, 50]),
    ("mobilenet_v2", [3, 3, 33, 50]),
];

/// The gradient of the loss `Σ factor · output` over all outputs.
fn factors(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::new(3).fork(recipe::fnv1a(name.as_bytes()));
    (0..len as u64).map(|i| (2.0 * stream.uniform(i) - 1.0) as f32).collect()
}

fn plan(model: &Model, images: &Tensor, options: &TrainOptions) -> Result<Step> {
    planned(model, images, options, |outputs| {
        outputs.iter().map(|(name, t)| Tensor::from_slice(t.shape(), &factors(name, t.len()))).collect()
    })
}

/// Name and largest relative error of the worst value of a step.
fn worst(model: &Model, images: &Tensor, options: &TrainOptions, found: &Step) -> Result<(f64, String)> {
    let (graph, params) = (model.graph(), model.params());
    let trained = train_step::<f64>(&TrainStep { graph, params, options, step: 0 }, images, |outputs| {
        let seed = |(name, v): &(String, Value<f64>)| {
            let data = factors(name, v.data.len()).into_iter().map(f64::from).collect();
            (name.clone(), Value { shape: v.shape, data })
        };
        Ok(outputs.iter().map(seed).collect())
    })?;
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (found, wanted) = (values(graph, found), values(graph, &Step::of(model, &trained)?));
    let largest = wanted.iter().map(|(_, w)| norm(&mut w.iter().copied())).fold(0.0, f64::max);
    let mut worst = (0.0, String::new());
    assert_eq!(found.len(), wanted.len());
    for ((name, f), (other, w)) in found.iter().zip(&wanted) {
        assert!(name == other && f.len() == w.len(), "{name} where the reference has {other}");
        let error = norm(&mut f.iter().zip(w).map(|(f, w)| f - w));
        // A bias in front of a batch norm has a gradient of zero: only rounding is left to compare.
        let relative = error / norm(&mut w.iter().copied()).max(1e-3 * largest);
        if relative.is_nan() || relative > worst.0 {
            worst = (relative, name.clone());
        }
    }
    Ok(worst)
}

fn check(name: &str, shape: [usize; 4], knobs: &Knobs) -> Result<Option<String>> {
    // Ten classes: the classifier's width changes nothing that is tested here.
    let mut model = Model::blank(&models::build(name, Some(10))?)?;
    for (def, values) in model.params_mut().iter_mut() {
        recipe::parameter(&def.name, &def.shape, knobs, values);
        keep_from_kinks(def, values, knobs.gain as f32);
    }
    let options = TrainOptions::new().input_gradient().seed(1);
    let mut seen = vec![];
    for image in 0..IMAGES {
        let images = recipe::image(shape, knobs.input_scale, &format!("input{image}"));
        let found = plan(&model, &images, &options.clone().threads(1))?;
        if image == 0 {
            for threads in [2, 3] {
                let other = plan(&model, &images, &options.clone().threads(threads))?;
                let same = values(model.graph(), &found) == values(model.graph(), &other);
                assert!(same, "{name}: {threads} threads give other bits than 1");
            }
        }
        let (error, at) = worst(&model, &images, &options, &found)?;
        if error <= TOLERANCE {
            println!("{name:24} image {image}: {error:.1e} at {at}");
            return Ok(None);
        }
        seen.push(format!("{error:.1e} at {at}"));
    }
    Ok(Some(format!("{name}: {}", seen.join(", "))))
}

/// Splits the networks in two so that both halves run at the same time.
fn check_half(half: usize) -> Result<()> {
    let (manifest, mut wrong) = (golden_json("manifest.json"), vec![]);
    for (name, shape) in NETWORKS.into_iter().skip(half).step_by(2) {
        wrong.extend(check(name, shape, &knobs(&manifest[name]))?);
    }
    assert!(wrong.is_empty(), "beyond {TOLERANCE:e} on every image:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn every_even_family_trains_as_the_reference_does_on_any_number_of_threads() -> Result<()> {
    check_half(0)
}

#[test]
fn every_odd_family_trains_as_the_reference_does_on_any_number_of_threads() -> Result<()> {
    check_half(1)
}
