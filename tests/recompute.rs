//! What a training step computes again instead of keeping it: the same bits, in less memory.

mod common;

use common::recipe::{self, Knobs};
use common::training::{keep_from_kinks, planned, values};
use common::{golden_json, knobs};
use convzoo::exec::{Recompute, TrainOptions, TrainPlan};
use convzoo::{Error, Model, Result, Tensor, models, models::ModelConfig};

/// One network of every family.
const NETWORKS: [(&str, [usize; 4]); 12] = [
    ("alexnet_paper", [2, 3, 67, 71]),
    ("googlenet", [3, 3, 75, 81]),
    ("resnet18", [3, 3, 33, 50]),
    ("resnext50_32x4d", [2, 3, 41, 35]),
    ("resnet20", [2, 3, 13, 19]),
    ("densenet121", [2, 3, 64, 64]),
    ("seresnet50", [2, 3, 41, 35]),
    ("deform_resnet50_v2_c3", [2, 3, 41, 35]),
    ("efficientnet_b0", [3, 3, 33, 50]),
    ("squeezenet1_1", [2, 3, 49, 50]),
    ("mobilenet_v2", [3, 3, 33, 50]),
    ("vgg11", [1, 3, 64, 70]),
];

fn model(name: &str, knobs: &Knobs) -> Result<Model> {
    let mut model = Model::blank(&models::build(name, Some(10))?)?;
    for (def, values) in model.params_mut().iter_mut() {
        recipe::parameter(&def.name, &def.shape, knobs, values);
        keep_from_kinks(def, values, knobs.gain as f32);
    }
    Ok(model)
}

#[test]
fn recomputing_changes_no_bit_of_outputs_gradients_and_running_statistics() -> Result<()> {
    let manifest = golden_json("manifest.json");
    for (name, shape) in NETWORKS {
        let knobs = knobs(&manifest[name]);
        let model = model(name, &knobs)?;
        let images = recipe::image(shape, knobs.input_scale, "input");
        let [some, much] = [(Recompute::Cheap, 1), (Recompute::Thorough, 2)].map(|(recompute, threads)| {
            let options = TrainOptions::new().input_gradient().seed(1).threads(threads).recompute(recompute);
            let step = planned(&model, &images, &options, |outputs| {
                let slope = |(_, t): &(String, Tensor)| Ok(Tensor::from_fn(t.shape(), |i| (i % 7) as f32 - 3.0));
                outputs.iter().map(slope).collect()
            });
            step.map(|step| values(model.graph(), &step))
        });
        let (some, much) = (some?, much?);
        assert!(some.iter().any(|(_, v)| v.iter().any(|&v| v != 0.0)), "{name}: nothing but zeros");
        for ((value, a), (other, b)) in some.iter().zip(&much) {
            assert!(value == other && a == b, "{name}: {value} depends on what is computed again");
        }
    }
    Ok(())
}

/// Bytes that are there to compute in, for networks as they are trained.
fn arena(name: &str, recompute: Recompute) -> Result<usize> {
    let model = Model::blank(&models::build(name, Some(10))?)?;
    let options = TrainOptions::new().threads(1).recompute(recompute);
    Ok(TrainPlan::new(model.graph(), model.params(), [16, 3, 224, 224], &options)?.arena_bytes())
}

/// What a plan keeps, and the kernels of its steps.
fn explained(config: &ModelConfig, shape: [usize; 4], recompute: Recompute) -> Result<String> {
    let model = Model::blank(config)?;
    let options = TrainOptions::new().threads(1).recompute(recompute);
    Ok(TrainPlan::new(model.graph(), model.params(), shape, &options)?.explain())
}

#[test]
fn a_norm_computed_again_for_convolutions_alone_is_applied_by_them() -> Result<()> {
    // The stem's norm is read by the first block's convolution and by its shortcut, which the way back does not read.
    let config: ModelConfig = serde_json::from_str(include_str!("../examples/configs/resnet18_cifar.json"))
        .map_err(|e| Error::invalid("resnet18_cifar", e.to_string()))?;
    let steps = |text: &str, way: char, what: &str| {
        let of_conv1 = |line: &&str| line.contains("layer1.0.conv1 ") && line.contains(way) && line.contains(what);
        text.lines().filter(of_conv1).count()
    };
    let [some, much] = [Recompute::Cheap, Recompute::Thorough].map(|r| explained(&config, [128, 3, 32, 32], r));
    let (some, much) = (some?, much?);
    for plan in [&some, &much] {
        assert_eq!([steps(plan, '→', " winograd"), steps(plan, '→', "norm_winograd")], [1, 0], "{plan}");
    }
    assert_eq!([steps(&much, '←', " norm_winograd"), steps(&much, '←', "gradient_norm_winograd")], [1, 1], "{much}");
    Ok(())
}

#[test]
fn nothing_more_is_computed_again_where_half_of_what_all_layers_make_is_enough() -> Result<()> {
    let share = |name: &str| -> Result<String> {
        let text = explained(&ModelConfig::named(name)?, [16, 3, 224, 224], Recompute::Cheap)?;
        let line = text.lines().find(|line| line.contains("of the work is done again"));
        Ok(line.expect("a plan says what it computes again").to_owned())
    };
    // A dense block's layers read one growing map, which is there once; a residual network's maps are all there.
    let (dense, residual) = (share("densenet121")?, share("resnet50")?);
    assert!(dense.starts_with("about 0.0 %"), "{dense}");
    assert!(!residual.starts_with("about 0.0 %"), "{residual}");
    Ok(())
}

#[test]
fn recomputing_thoroughly_saves_a_quarter_of_the_memory_of_deep_networks_or_more() -> Result<()> {
    for name in ["resnet50", "resnet152"] {
        let (some, much) = (arena(name, Recompute::Cheap)?, arena(name, Recompute::Thorough)?);
        assert!(4 * much <= 3 * some, "{name}: {much} of {some} bytes");
    }
    Ok(())
}
