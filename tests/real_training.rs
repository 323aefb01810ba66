//! Learning on real data: a small network reads handwriting after one short epoch.
//!
//! The files are looked for in `CONVZOO_DATA`, then in `../shared/data`; where neither is there, the test says so and passes.
#![cfg(all(feature = "safetensors", feature = "vision"))]

use convzoo::Model;
use convzoo::PlanOptions;
use convzoo::graph::{Node, layer_fn};
use convzoo::layers::{BatchNorm, ClassifierHead, Conv2d, MaxPool};
use convzoo::random::Stream;
use convzoo::train::CrossEntropy;
use convzoo::train::{Batches, Fit, Recipe, Schedule, Sgd, Silent, Trainer, evaluate, fit};
use convzoo::vision::data::{Dataset, PixelSet, Split};
use convzoo::vision::{Channels, Loader, LoaderOptions, Preset};
use std::path::PathBuf;
use std::sync::Arc;

fn data() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let folder = std::env::var_os("CONVZOO_DATA").map_or_else(beside, PathBuf::from);
    let found = folder.join("mnist-train-images-idx3-ubyte.gz").is_file();
    if !found {
        println!("skipped: {} has no MNIST", folder.display());
    }
    found.then_some(folder)
}

fn net(x: Node<'_>) -> Node<'_> {
    let unit = |width: usize| (Conv2d::k3(width).no_bias(), BatchNorm::new());
    let x = x.layer("conv1", unit(8)).relu().layer("pool1", MaxPool::k(2));
    let x = x.layer("conv2", unit(16)).relu().layer("pool2", MaxPool::k(2));
    x.layer("conv3", unit(32)).relu().then(ClassifierHead::new(10))
}

#[test]
fn a_small_network_reads_mnist_after_one_short_epoch() {
    let Some(folder) = data() else { return };
    let [train, test] = [Split::Train, Split::Test].map(|split| PixelSet::mnist(&folder, split).unwrap());
    assert_eq!((train.len(), test.len(), train.size(), train.channels()), (60_000, 10_000, [28, 28], 1));
    let fives = (0..60_000).filter(|&i| train.label(i) == 5).count();
    assert_eq!(fives, 5421, "as many fives as LeCun counted");

    let preset = Preset { mean: [0.1307; 3], std: [0.3081; 3], ..Preset::cifar10() };
    let grey = |options| LoaderOptions { channels: Channels::Grey, ..options };
    let train = Loader::new(Arc::new(train.first(6400)), grey(LoaderOptions::train(32, preset.clone()))).unwrap();
    let test = Loader::new(Arc::new(test.first(2000)), grey(LoaderOptions::test(100, preset))).unwrap();
    let model = Model::with_channels(1, &layer_fn(net), &mut Stream::new(0).rng()).unwrap();
    let judge = |params| {
        let options = PlanOptions::new();
        evaluate(model.graph(), params, test.epoch(0, 0), &CrossEntropy::new(), &options).unwrap().top1()
    };
    let before = judge(model.params());
    let recipe = Recipe::new(Sgd::default(), Schedule::one_cycle(0.1, train.batches()));
    let mut trainer = Trainer::new(model.graph(), model.params().clone(), recipe).unwrap();
    assert!(fit(&mut trainer, &Fit::new(&train, &test, 1), &mut Silent).unwrap());
    let after = judge(trainer.params());
    println!("top-1 {before:.2} % before, {after:.2} % after 200 steps");
    assert!(before < 30.0 && after > 80.0, "{before} % before, {after} % after");
}
