//! Training as a whole: it learns, it resumes bit for bit, threads change nothing, and it stops with a reason.

use convzoo::exec::TrainOptions;
use convzoo::graph::{Graph, Node, Params, layer_fn};
use convzoo::layers::{BatchNorm, ClassifierHead, Conv2d, GlobalAvgPool};
use convzoo::random::Stream;
use convzoo::train::{
    AdamW, At, Batch, Batches, Clip, Decay, Epoch, Fit, Groups, Loss, LossValue, Observer, Recipe, RmsPropTf, Rule,
    Schedule, Sgd, Silent, Slot, Step, Targets, Trainer, fit, recompute_statistics,
};
use convzoo::vision::augment::Augment;
use convzoo::vision::{Loader, LoaderOptions, Preset, data::PixelSet};
use convzoo::{Error, Model, Tensor};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// Two convolutions with batch norm, dropout, and an auxiliary classifier half-way.
fn net(x: Node<'_>) -> Node<'_> {
    use convzoo::layers::{Flatten, Linear};
    let x = x.layer("conv1", Conv2d::k3(6).no_bias()).layer("bn1", BatchNorm::new()).relu();
    let x = x.aux("aux1", (GlobalAvgPool, Flatten, Linear::new(3)), 0.3);
    let x = x.layer("conv2", Conv2d::k3(8)).layer("bn2", BatchNorm::new()).relu();
    x.then(ClassifierHead::new(3).dropout(0.3))
}

fn model() -> Model {
    Model::new(&layer_fn(net), &mut Stream::new(1).rng()).unwrap()
}

/// Bright, dark and striped pictures of 8×8.
fn set(count: usize) -> PixelSet {
    let noise = Stream::new(7);
    let shade = |i: usize| -> u8 {
        let (image, row) = (i / 192, i / 24 % 8);
        let base = [200.0, 40.0, [30.0, 210.0][row % 2]][image % 3];
        (base + 40.0 * (noise.uniform(i as u64) - 0.5)) as u8
    };
    let labels = (0..count).map(|i| (i % 3) as u8).collect();
    let names = ["bright", "dark", "striped"].map(str::to_owned).to_vec();
    PixelSet::new([8, 8], (0..count * 192).map(shade).collect(), labels, names).unwrap()
}

fn loader(workers: usize) -> Loader {
    let augment = vec![Augment::PadCrop { padding: 1 }, Augment::Flip { p: 0.5 }];
    let options = LoaderOptions { augment, workers, ..LoaderOptions::train(6, Preset::cifar10()) };
    Loader::new(Arc::new(set(26)), options).unwrap()
}

fn judge() -> Loader {
    Loader::new(Arc::new(set(9)), LoaderOptions { workers: 1, ..LoaderOptions::test(4, Preset::cifar10()) }).unwrap()
}

fn recipe(rule: impl Into<Box<dyn Rule>>) -> Recipe {
    Recipe {
        groups: Groups::new().weights_decay_alone(),
        clip: Some(Clip::Norm(5.0)),
        ema: Some(0.9),
        ..Recipe::new(rule, Schedule::one_cycle(0.05, 24))
    }
}

fn trainer(recipe: Recipe) -> Trainer {
    let model = model();
    Trainer::new(model.graph(), model.params().clone(), recipe).unwrap()
}

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("convzoo-training-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn bits(params: &Params) -> Vec<u32> {
    params.iter().flat_map(|(_, value)| value.as_slice()).map(|v| v.to_bits()).collect()
}

/// Calls a halt after so many steps.
struct Halt(u64);

impl Observer for Halt {
    fn step(&mut self, _: &Trainer, step: &Step) -> ControlFlow<()> {
        if step.step + 1 == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Keeps what the epochs came to.
#[derive(Default)]
struct Keep(Vec<Epoch>);

impl Observer for Keep {
    fn epoch(&mut self, _: &Trainer, epoch: &Epoch) {
        self.0.push(Epoch { seconds: 0.0, ..epoch.clone() });
    }
}

#[test]
fn a_small_network_learns_with_its_auxiliary_head() {
    let mut trainer = trainer(Recipe::new(Sgd::default(), Schedule::one_cycle(0.1, 60)));
    let mut keep = Keep::default();
    assert!(fit(&mut trainer, &Fit::new(&loader(1), &judge(), 15), &mut keep).unwrap());
    let (first, last) = (&keep.0[0], &keep.0[14]);
    assert_eq!(first.train.losses().map(|(name, _)| name).collect::<Vec<_>>(), ["logits", "aux1"]);
    assert_eq!(last.test.losses().map(|(name, _)| name).collect::<Vec<_>>(), ["logits"]);
    assert!(last.train.loss() < 0.5 * first.train.loss(), "{} after {}", last.train.loss(), first.train.loss());
    assert_eq!((last.test.top1(), last.test.top5()), (100.0, 100.0));
    let joined: f64 = last.train.losses().zip([1.0, f64::from(0.3f32)]).map(|((_, loss), w)| loss * w).sum();
    assert!((joined - last.train.loss()).abs() < 1e-9, "auxiliary losses are joined with the drawing's weights");
}

#[test]
fn training_stopped_anywhere_resumes_bit_for_bit() {
    let rules: [fn() -> Box<dyn Rule>; 3] = [
        || Sgd { nesterov: true, decay: 1e-3, ..Sgd::default() }.into(),
        || AdamW::default().into(),
        || RmsPropTf::default().into(),
    ];
    for (i, rule) in rules.into_iter().enumerate() {
        // With clipping and without: weights moved on the way back.
        let start = || Recipe { clip: (i > 0).then_some(Clip::Norm(5.0)), ..recipe(rule()) };
        let whole_folder = Folder::new(&format!("whole{i}"));
        let plan = |folder: &'static str| -> (Folder, Loader, Loader) {
            (Folder::new(&format!("{folder}{i}")), loader(0), judge())
        };
        let (train, test) = (loader(2), judge());
        let mut whole = trainer(start());
        let mut seen = Keep::default();
        let fit_whole = Fit { folder: Some(&whole_folder.0), ..Fit::new(&train, &test, 3) };
        assert!(fit(&mut whole, &fit_whole, &mut seen).unwrap());

        // Stopped in the middle of the first epoch, at its end, and in the third; each time by a new process' state.
        let (folder, train, test) = plan("parts");
        let fit_parts = Fit { folder: Some(&folder.0), ..Fit::new(&train, &test, 3) };
        for stop in [2, 4, 5, 11] {
            assert!(!fit(&mut trainer(start()), &fit_parts, &mut Halt(stop)).unwrap());
        }
        let mut last = trainer(start());
        let mut keep = Keep::default();
        assert!(fit(&mut last, &fit_parts, &mut keep).unwrap());
        assert_eq!(bits(last.params()), bits(whole.params()), "rule {i}");
        assert_eq!(bits(last.best_params()), bits(whole.best_params()), "rule {i}");
        assert_eq!(last.progress(), whole.progress());
        assert_eq!(keep.0.last(), seen.0.last(), "metrics of the epoch resumed half-way");
        let log = |folder: &Folder| {
            let lines = convzoo::train::read_log(folder.0.join("log.jsonl")).unwrap();
            let timeless = lines.into_iter().map(|mut line| {
                line.remove("seconds");
                line
            });
            timeless.collect::<Vec<_>>()
        };
        assert_eq!(log(&folder), log(&whole_folder));
    }
}

#[test]
fn threads_and_workers_change_no_bit() {
    for clip in [Some(Clip::Norm(5.0)), None] {
        let run = |threads, workers| {
            let mut trainer = trainer(Recipe { clip, ..recipe(Sgd::default()).threads(threads) });
            fit(&mut trainer, &Fit::new(&loader(workers), &judge(), 2), &mut Silent).unwrap();
            bits(trainer.params())
        };
        let one = run(1, 0);
        assert_eq!(one, run(2, 1));
        assert_eq!(one, run(3, 4));
    }
}

fn batch(n: usize) -> Batch {
    let images = Tensor::from_fn(&[n, 3, 8, 8], |i| ((i * 37 + i / 192 * 11) % 101) as f32 / 50.0 - 1.0);
    Batch { images, targets: Targets::Labels((0..n).map(|i| i % 3).collect()) }
}

/// No batch norm and no dropout: a batch then is the sum of its parts.
fn separable(x: Node<'_>) -> Node<'_> {
    x.layer("conv", Conv2d::k3(5)).relu().then(ClassifierHead::new(3))
}

#[test]
fn accumulated_parts_of_a_batch_make_the_step_of_the_whole() {
    let graph = Graph::draw(3, &layer_fn(separable)).unwrap();
    let params = Params::init(graph.params(), &mut Stream::new(3).rng());
    let trainer =
        || Trainer::new(&graph, params.clone(), Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9))).unwrap();
    let (mut whole, mut parts) = (trainer(), trainer());
    let all = batch(6);
    let step = whole.step(&all).unwrap();
    for (from, to) in [(0, 4), (4, 6)] {
        let images = Tensor::from_slice(&[to - from, 3, 8, 8], &all.images.as_slice()[from * 192..to * 192]).unwrap();
        parts.accumulate(&Batch { images, targets: Targets::Labels((from..to).map(|i| i % 3).collect()) }).unwrap();
    }
    let summed = parts.update().unwrap();
    assert!((step.loss - summed.loss).abs() < 1e-6 && (step.norm / summed.norm - 1.0).abs() < 1e-5);
    for ((def, a), (_, b)) in whole.params().iter().zip(parts.params().iter()) {
        for (a, b) in a.as_slice().iter().zip(b.as_slice()) {
            assert!((a - b).abs() < 1e-6, "{}: {a} and {b}", def.name);
        }
    }
    assert!(parts.update().unwrap_err().to_string().contains("accumulate first"));
}

#[test]
fn weights_moved_on_the_way_back_get_the_bits_of_those_moved_afterwards() {
    let rules: [fn() -> Recipe; 2] = [
        || Recipe { ema: Some(0.9), ..Recipe::new(Sgd { decay: 1e-3, ..Sgd::default() }, Schedule::cosine(0.1, 9)) },
        || Recipe::new(AdamW::default(), Schedule::cosine(0.01, 9)),
    ];
    for recipe in rules {
        let (mut there, mut after) = (trainer(recipe()), trainer(recipe()));
        let all = batch(8);
        for _ in 0..3 {
            let moved = there.step(&all).unwrap();
            assert!(there.gradients().weight() == 0.0);
            after.accumulate(&all).unwrap();
            let wanted = after.update().unwrap();
            assert!(moved.loss == wanted.loss && (moved.norm / wanted.norm - 1.0).abs() < 1e-9);
        }
        assert_eq!(bits(there.params()), bits(after.params()));
        assert_eq!(bits(there.best_params()), bits(after.best_params()));
        assert_eq!(there.progress(), after.progress());
    }
}

/// Moves a parameter by its own share of the norm of its gradient, and so needs all of it.
#[derive(Debug)]
struct Normalised;

impl Rule for Normalised {
    fn slots(&self) -> Vec<Slot> {
        Vec::new()
    }

    fn decay(&self) -> f32 {
        0.0
    }

    fn check(&self) -> convzoo::Result<()> {
        Ok(())
    }

    fn update(&self, at: &At, weight: &mut [f32], gradient: &[f32], _: &mut [&mut [f32]]) {
        let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt().max(1e-12);
        weight.iter_mut().zip(gradient).for_each(|(w, g)| *w -= at.rate * g / norm);
    }
}

#[test]
fn a_large_parameter_moved_by_several_threads_gets_the_bits_of_one_moved_as_a_whole() {
    fn wide(x: Node<'_>) -> Node<'_> {
        use convzoo::layers::{AdaptiveAvgPool, Flatten, Linear};
        // 192·700 weights: two pieces and a rest.
        x.then(AdaptiveAvgPool::to(8)).then(Flatten).layer("fc1", Linear::new(700)).relu().layer("fc2", Linear::new(3))
    }
    let model = Model::new(&layer_fn(wide), &mut Stream::new(1).rng()).unwrap();
    let rules: [fn() -> Box<dyn Rule>; 4] = [
        || Sgd { decay: 1e-3, nesterov: true, ..Sgd::default() }.into(),
        || AdamW::default().into(),
        || RmsPropTf::default().into(),
        || Normalised.into(),
    ];
    let batch = batch(4);
    for rule in rules {
        let moved = |threads: usize, together: bool| {
            let recipe = Recipe::new(rule(), Schedule::one_cycle(0.01, 5)).threads(threads);
            let mut trainer = Trainer::new(model.graph(), model.params().clone(), recipe).unwrap();
            for _ in 0..3 {
                match together {
                    true => drop(trainer.step(&batch).unwrap()),
                    false => {
                        trainer.accumulate(&batch).unwrap();
                        trainer.update().unwrap();
                    }
                }
            }
            bits(trainer.params())
        };
        let whole = moved(1, false);
        for (threads, together) in [(1, true), (2, true), (3, true), (2, false)] {
            assert!(moved(threads, together) == whole, "{:?}, {threads} threads, {together}", rule());
        }
    }
}

#[test]
fn frozen_parts_stay_and_their_batch_norms_with_them() {
    let groups = Groups::new().freeze("").thaw("fc");
    let mut trainer = trainer(Recipe { groups, ..Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9)) });
    let before = trainer.params().clone();
    for _ in 0..3 {
        trainer.step(&batch(6)).unwrap();
    }
    for ((def, old), (_, new)) in before.iter().zip(trainer.params().iter()) {
        assert_eq!(old == new, !def.name.starts_with("fc."), "{}", def.name);
    }
}

#[test]
fn a_loss_that_is_none_stops_with_step_rate_and_checkpoint_and_saves_nothing_worse() {
    let folder = Folder::new("diverged");
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("good.checkpoint");
    let mut trainer = trainer(Recipe::new(Sgd::default(), Schedule::new(0.25, Decay::Constant)));
    trainer.step(&batch(6)).unwrap();
    trainer.save(&path, "").unwrap();
    let before = trainer.params().get("fc.weight").unwrap().clone();
    let mut bad = batch(6);
    bad.images.as_mut_slice()[5] = f32::NAN;
    let error = trainer.step(&bad).unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 1, rate: 0.25, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("step 1") && text.contains("2.500e-1") && text.contains("good.checkpoint"), "{text}");
    assert_eq!(trainer.params().get("fc.weight").unwrap(), &before, "no weight is touched");
    assert!(trainer.save(&path, "").unwrap_err().to_string().contains("diverged"));
    trainer.resume(&path).unwrap();
    trainer.step(&batch(6)).unwrap();
}

/// A finite loss whose gradient is none.
#[derive(Debug)]
struct Cliff;

impl Loss for Cliff {
    fn evaluate(&self, output: &Tensor, _: &Targets) -> convzoo::Result<LossValue> {
        Ok(LossValue { value: 1.0, gradient: Tensor::from_fn(output.shape(), |_| f32::NAN) })
    }
}

#[test]
fn a_gradient_that_is_none_stops_training_with_clipping_and_without() {
    for clip in [None, Some(Clip::Norm(1.0))] {
        let recipe = Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9));
        let mut trainer = trainer(Recipe { loss: Box::new(Cliff), clip, ..recipe });
        let error = trainer.step(&batch(6)).unwrap_err();
        assert!(matches!(error, Error::Diverged { what: "gradient norm", step: 0, .. }), "{error:?}");
        let finite = trainer.params().iter().all(|(_, value)| value.as_slice().iter().all(|v| v.is_finite()));
        assert!(finite, "no weight is moved by what is no number");
    }
}

#[test]
fn a_step_that_fails_moves_no_running_statistic_and_drops_what_was_accumulated() {
    let changed = |value: f32| {
        let mut bad = batch(6);
        bad.images.as_mut_slice()[5] = value;
        bad
    };
    for clip in [None, Some(Clip::Norm(1.0))] {
        let mut trainer = trainer(Recipe { clip, ..Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9)) });
        trainer.step(&batch(6)).unwrap();
        let before = bits(trainer.params());
        // The second makes a variance overflow, whatever becomes of the loss.
        for bad in [f32::NAN, 1e30] {
            assert!(matches!(trainer.step(&changed(bad)).unwrap_err(), Error::Diverged { .. }));
            assert_eq!(bits(trainer.params()), before, "{bad} with {clip:?}");
            trainer.accumulate(&batch(6)).unwrap();
            assert_ne!(bits(trainer.params()), before, "the statistics follow every batch");
            assert!(matches!(trainer.accumulate(&changed(bad)).unwrap_err(), Error::Diverged { .. }));
            assert_eq!((bits(trainer.params()), trainer.gradients().weight()), (before.clone(), 0.0));
        }
        trainer.accumulate(&batch(6)).unwrap();
        let half = bits(trainer.params());
        trainer.accumulate(&Batch { targets: Targets::Labels(vec![7; 6]), ..batch(6) }).unwrap_err();
        assert_eq!((bits(trainer.params()), trainer.gradients().weight()), (half, 6.0));
        trainer.update().unwrap();
        trainer.step(&batch(6)).unwrap();
        assert!(trainer.params().iter().all(|(_, value)| value.as_slice().iter().all(|v| v.is_finite())));
    }
}

/// Batches that are announced and do not come.
struct Absent;

impl Batches for Absent {
    fn batches(&self) -> u64 {
        1
    }

    fn epoch(&self, _: u64, _: u64) -> Box<dyn Iterator<Item = convzoo::Result<Batch>> + '_> {
        Box::new(std::iter::empty())
    }
}

#[test]
fn a_test_loss_that_is_none_or_no_test_at_all_is_never_the_best() {
    let folder = Folder::new("nothing-best");
    let train = vec![batch(6)];
    let mut trainer = trainer(recipe(Sgd::default()));
    let mut run = |test: &dyn Batches| {
        let plan = Fit { folder: Some(&folder.0), ..Fit::new(&train, test, trainer.progress().epoch + 1) };
        fit(&mut trainer, &plan, &mut Silent).unwrap_err()
    };
    for test in [&Vec::<Batch>::new() as &dyn Batches, &Absent] {
        assert!(run(test).to_string().contains("at least one batch to be judged by"));
    }
    let mut dark = batch(3);
    dark.images.as_mut_slice().fill(f32::NAN);
    let error = run(&vec![batch(3), dark]);
    assert!(matches!(error, Error::Diverged { what: "test loss", value, .. } if value.is_nan()), "{error}");
    assert!(!folder.0.join("best.safetensors").exists() && !folder.0.join("best.checkpoint").exists());
}

#[test]
fn checkpoints_of_another_network_or_recipe_are_refused_and_change_nothing() {
    let folder = Folder::new("foreign");
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("a.checkpoint");
    trainer(recipe(Sgd::default())).save(&path, "note").unwrap();
    let graph = Graph::draw(3, &layer_fn(separable)).unwrap();
    let params = Params::init(graph.params(), &mut Stream::new(3).rng());
    let mut other = Trainer::new(&graph, params, recipe(Sgd::default())).unwrap();
    let before = bits(other.params());
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(error.contains("missing     conv.weight") && error.contains("unexpected  bn1.weight"), "{error}");
    assert_eq!(bits(other.params()), before);
    let error = trainer(recipe(Sgd { momentum: 0.5, ..Sgd::default() })).resume(&path).unwrap_err().to_string();
    assert!(error.contains("momentum: 0.5") && error.contains("momentum: 0.9"), "{error}");
    let weights = folder.0.join("weights.safetensors");
    model().save(&weights).unwrap();
    assert!(trainer(recipe(Sgd::default())).resume(&weights).unwrap_err().to_string().contains("no training state"));
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(trainer(recipe(Sgd::default())).resume(&path).is_err(), "{len}");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(trainer(recipe(Sgd::default())).resume(&path).unwrap(), "note");
}

#[test]
fn bad_batches_and_recipes_are_errors_naming_the_sample_and_both_numbers() {
    let mut plain = trainer(recipe(Sgd::default()));
    let fails = |trainer: &mut Trainer, batch: &Batch| trainer.step(batch).unwrap_err().to_string();
    let wrong = Batch { targets: Targets::Labels(vec![0, 1, 7, 0, 1, 2]), ..batch(6) };
    let error = fails(&mut plain, &wrong);
    assert!(error.contains("sample 2") && error.contains("found 7"), "{error}");
    let error = fails(&mut plain, &Batch { targets: Targets::Labels(vec![0; 5]), ..batch(6) });
    assert!(error.contains("expected 6, found 5"), "{error}");
    let none = Batch { images: Tensor::zeros(&[0, 3, 8, 8]), targets: Targets::Labels(vec![]) };
    assert!(fails(&mut plain, &none).contains("no image"));
    let grey = Batch { images: Tensor::zeros(&[2, 1, 8, 8]), targets: Targets::Labels(vec![0, 1]) };
    assert!(fails(&mut plain, &grey).contains("channels"));
    let model = model();
    let start = |recipe| Trainer::new(model.graph(), model.params().clone(), recipe).map(drop).unwrap_err().to_string();
    assert!(start(Recipe::new(Sgd::default(), Schedule::cosine(f64::NAN, 9))).contains("NaN"));
    assert!(start(Recipe { ema: Some(2.0), ..recipe(Sgd::default()) }).contains("0 to 1"));
    assert!(
        start(Recipe { groups: Groups::new().freeze("conv3"), ..recipe(Sgd::default()) }).contains("nearest: conv1")
    );
    let empty: &[Batch] = &[];
    let error = fit(&mut plain, &Fit::new(&empty.to_vec(), &judge(), 1), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("at least one batch"), "{error}");
}

#[test]
fn recomputed_statistics_are_the_mean_of_the_batches_own() {
    // One batch norm right behind the images: its statistics can be computed by hand.
    fn norm(x: Node<'_>) -> Node<'_> {
        x.layer("bn", BatchNorm::new()).then(ClassifierHead::new(2))
    }
    let graph = Graph::draw(1, &layer_fn(norm)).unwrap();
    let mut params = Params::init(graph.params(), &mut Stream::new(0).rng());
    let batches = [[0.0, 2.0, 4.0, 6.0], [10.0, 10.0, 10.0, 14.0]];
    let images = || batches.iter().map(|values| Ok(Tensor::from_slice(&[2, 1, 1, 2], values).unwrap()));
    let counted = recompute_statistics(&graph, &mut params, images(), &TrainOptions::new()).unwrap();
    assert_eq!(counted, 2);
    let value = |name: &str| params.get(name).unwrap().as_slice()[0];
    assert!((value("bn.running_mean") - (3.0 + 11.0) / 2.0).abs() < 1e-5);
    assert!((value("bn.running_var") - (20.0 / 3.0 + 4.0) / 2.0).abs() < 1e-4);
    let error = recompute_statistics(&graph, &mut params, [], &TrainOptions::new()).unwrap_err().to_string();
    assert!(error.contains("no batch"), "{error}");
}

#[test]
fn best_and_last_are_kept_and_the_best_weights_load() {
    let folder = Folder::new("kept");
    let (train, test) = (loader(1), judge());
    let mut trainer = trainer(recipe(Sgd::default()));
    let plan = Fit { folder: Some(&folder.0), accumulate: 2, ..Fit::new(&train, &test, 2) };
    assert!(fit(&mut trainer, &plan, &mut Silent).unwrap());
    assert_eq!((train.batches(), trainer.progress().step, trainer.progress().forwards), (4, 4, 8));
    let mut names: Vec<_> =
        std::fs::read_dir(&folder.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["best.checkpoint", "best.safetensors", "last.checkpoint", "log.jsonl"]);
    let mut best = model();
    best.load(folder.0.join("best.safetensors")).unwrap();
}
