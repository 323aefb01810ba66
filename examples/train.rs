//! Trains any network of the zoo.
//!
//! ```text
//! cargo run --release --example train                                       # ResNet-20 on shapes it draws itself
//! cargo run --release --example train -- --data mnist --path data --epochs 8
//! cargo run --release --example train -- --data folder --path cifar --model densenet_bc_100_12 --out runs/densenet
//! cargo run --release --example train -- --config mine.json                 # any `ModelConfig`
//! ```
//!
//! With `--out`, checkpoints, the best weights, a JSON-lines log and the learning curves go there; run again, it goes on
//! where it stopped, bit for bit. Ctrl-C saves and leaves.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/data.rs"]
mod data;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/watch.rs"]
mod watch;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum, value_parser};
use convzoo::exec::{Recompute, TrainOptions};
use convzoo::inspect::curves::Scale;
use convzoo::models::{GoogLeNetPreset, ModelConfig};
use convzoo::random::Stream;
use convzoo::train::{
    AdamW, Batches, Clip, CrossEntropy, Decay, Fit, Groups, Recipe, RmsPropTf, Rule, Schedule, Sgd, Trainer, evaluate,
    fit,
};
use convzoo::vision::augment::{Erase, Mix};
use convzoo::vision::{Loader, LoaderOptions, Preset, data::OnDamage};
use convzoo::weights::{Dtype, Limits, LoadOptions, StateDict};
use convzoo::{Error, Model, PlanOptions, Result};
use data::{Data, Taken};
use std::path::{Path, PathBuf};

/// Trains any network of the zoo on any of the data sets.
#[derive(Parser)]
#[command(version, after_help = "What is not given follows the model: see `recipe` in examples/train.rs.")]
struct Args {
    /// Model of the registry (`cargo run --example zoo` lists them).
    #[arg(long, default_value = "resnet20")]
    model: String,
    /// A network of one's own, a `ModelConfig` as JSON, in place of a model of the registry.
    #[arg(long, conflicts_with = "model")]
    config: Option<PathBuf>,
    /// Data set.
    #[arg(long, value_enum, default_value = "shapes")]
    data: Data,
    /// Folder of the data set.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Where checkpoints, weights, log and curves go. If a checkpoint is there, training goes on from it.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Weights to begin with; a classifier for another number of classes is left as initialised.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Learn nothing: judge `--weights`, which must then fit entirely, by the test images.
    #[arg(long, requires = "weights")]
    eval: bool,
    /// Beside the best weights of `--out` write them in half precision.
    #[arg(long, requires = "out")]
    half: bool,
    /// Epochs in all. Schedules follow from them, so that training cannot go on for another number of epochs unless
    /// the schedule is constant; to learn longer, begin anew with `--weights RUN/best.safetensors` and another `--out`.
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..))]
    epochs: u64,
    /// Images in a batch [default: the model's].
    #[arg(long)]
    batch: Option<usize>,
    /// Batches whose gradients make one step.
    #[arg(long, default_value_t = 1)]
    accumulate: u64,
    /// Highest learning rate [default: the model's].
    #[arg(long)]
    rate: Option<f64>,
    /// How the rate falls [default: the model's].
    #[arg(long, value_enum)]
    schedule: Option<Falls>,
    /// Optimiser [default: the model's].
    #[arg(long, value_enum)]
    optimizer: Option<Optimizer>,
    /// Weight decay [default: the model's].
    #[arg(long)]
    decay: Option<f32>,
    /// Label smoothing.
    #[arg(long, default_value_t = 0.0)]
    smoothing: f32,
    /// Decay of an average of the weights, which then is what is evaluated and kept.
    #[arg(long)]
    ema: Option<f64>,
    /// Largest norm of the gradients.
    #[arg(long)]
    clip: Option<f32>,
    /// Mixup with this alpha (0.2 is usual).
    #[arg(long)]
    mixup: Option<f64>,
    /// CutMix with this alpha (1 is usual).
    #[arg(long)]
    cutmix: Option<f64>,
    /// How often a rectangle is erased from an image (0.25 is usual).
    #[arg(long)]
    erase: Option<f64>,
    /// Show the images as they are, neither cropped nor mirrored.
    #[arg(long)]
    plain: bool,
    /// Side of the images the network sees [default: the data's, or the model's for photographs].
    #[arg(long)]
    side: Option<usize>,
    /// Learn from at most so many images.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Leave out photographs that cannot be decoded, instead of stopping.
    #[arg(long)]
    skip_damaged: bool,
    /// Seed of initial weights, order, augmentation and dropout.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads of the network [default: all].
    #[arg(long)]
    threads: Option<usize>,
    /// Compute more again on the way back, to hold less in memory: up to a quarter more time for much less.
    #[arg(long)]
    recompute: bool,
    /// Threads that prepare images [default: half of all].
    #[arg(long)]
    workers: Option<usize>,
}

/// How the rate falls.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Falls {
    /// Up for 30 % of the training and down again, by half cosines.
    OneCycle,
    /// Half a cosine after a short warm-up.
    Cosine,
    /// A tenth after half, and after three quarters of the training: He et al. 2015.
    Step,
    /// Times 0.97 every 1/150 of the training after a short warm-up: EfficientNet's 2.4 of 350 epochs.
    Exponential,
    /// Not at all.
    Constant,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Optimizer {
    /// Stochastic gradient descent with momentum 0.9.
    Sgd,
    /// The same with Nesterov's look ahead.
    Nesterov,
    /// Adam with decoupled weight decay.
    Adamw,
    /// RMSprop as TensorFlow has it.
    Rmsprop,
}

/// What a model is trained with unless told otherwise.
struct Defaults {
    optimizer: Optimizer,
    falls: Falls,
    batch: usize,
    /// For a batch of 128.
    rate: f64,
    decay: f32,
}

/// The papers' optimisers and decays; rates for a batch of 128, and schedules that suit a few dozen epochs.
fn defaults(config: &ModelConfig) -> Defaults {
    let usual = Defaults { optimizer: Optimizer::Sgd, falls: Falls::OneCycle, batch: 128, rate: 0.1, decay: 5e-4 };
    match config {
        ModelConfig::AlexNet(_) | ModelConfig::Vgg(_) | ModelConfig::SqueezeNet(_) => Defaults { rate: 0.01, ..usual },
        // Without batch norm anything faster diverges.
        ModelConfig::GoogLeNet(net) if net.preset == GoogLeNetPreset::Paper => {
            Defaults { rate: 0.01, decay: 2e-4, ..usual }
        }
        ModelConfig::DenseNet(_) => Defaults { optimizer: Optimizer::Nesterov, batch: 64, decay: 1e-4, ..usual },
        ModelConfig::EfficientNet(_) | ModelConfig::MobileNetV2(_) => {
            Defaults { optimizer: Optimizer::Rmsprop, falls: Falls::Cosine, rate: 0.008, decay: 1e-5, ..usual }
        }
        _ => usual,
    }
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let (name, config, preset) = choose(args)?;
    let damage = if args.skip_damaged { OnDamage::Skip } else { OnDamage::Stop };
    let sets = args.data.open(args.path.as_deref(), &Taken { side: args.side, preset, damage, limit: args.limit })?;
    let defaults = defaults(&config);
    let batch = args.batch.unwrap_or(defaults.batch);
    let mut options = LoaderOptions {
        erase: args.erase.map(|p| Erase { p, ..Erase::default() }),
        mix: (args.mixup.is_some() || args.cutmix.is_some()).then_some(Mix { mixup: args.mixup, cutmix: args.cutmix }),
        ..sets.train_options(batch, args.seed)
    };
    if args.plain {
        options.augment.clear();
        options.preset = sets.test_preset.clone();
    }
    let mut judged = sets.test_options(batch.max(64));
    if let Some(workers) = args.workers {
        (options.workers, judged.workers) = (workers, workers);
    }
    let train = Loader::new(sets.train.clone(), options)?;
    let test = Loader::new(sets.test.clone(), judged)?;

    let network = config.classes(sets.classes());
    let mut model = Model::with_channels(sets.input_channels(), &network, &mut Stream::new(args.seed).rng())?;
    if let Some(weights) = &args.weights {
        begin_with(&mut model, weights, args.eval)?;
    }
    if args.eval {
        let options = args.threads.map_or(PlanOptions::new(), |threads| PlanOptions::new().threads(threads));
        let judged = evaluate(model.graph(), model.params(), test.epoch(0, 0), &CrossEntropy::new(), &options)?;
        let top5 = if sets.classes() > 5 { format!(" top-5 {:.2} %", judged.top5()) } else { String::new() };
        println!("{name}: top-1 {:.2} %{top5} of {}", judged.top1(), sets.test.len());
        return Ok(());
    }
    let steps = (train.batches() / args.accumulate.max(1)).max(1) * args.epochs;
    let recipe = recipe(args, &defaults, steps, batch);
    let (graph, params) = model.into_parts();
    let mut trainer = Trainer::new(&graph, params, recipe)?;

    let plan = Fit { accumulate: args.accumulate, folder: args.out.as_deref(), ..Fit::new(&train, &test, args.epochs) };
    println!(
        "{name}: {} parameters; {} images to learn from, {} to be judged by, {} classes, {}×{}; batches of {batch}",
        graph.param_count(true),
        sets.train.len(),
        sets.test.len(),
        sets.classes(),
        sets.size[0],
        sets.size[1],
    );
    if let Some(folder) = &args.out {
        sets.write_labels(folder)?;
    }
    let mut watch = watch::Watch::new(&name, &train, args.epochs);
    let finished = fit(&mut trainer, &plan, &mut watch)?;
    if let Some(folder) = &args.out {
        draw_curves(&name, folder)?;
        let best = folder.join("best.safetensors");
        if args.half && best.is_file() {
            StateDict::read(&best)?.write_safetensors(folder.join("best.f16.safetensors"), Dtype::F16)?;
        }
        println!("{} is in {}", watch.ending(finished), folder.display());
    }
    Ok(())
}

/// Draws the curves of the log in `folder`.
fn draw_curves(name: &str, folder: &Path) -> Result<()> {
    let log = folder.join("log.jsonl");
    let errors = figures::error_curves(name, 0, &log)?;
    if errors.iter().any(|curve| !curve.points.is_empty()) {
        figures::draw(folder, "error.svg", (name, "epoch", "error in percent"), &errors, Scale::Linear)?;
        let losses = figures::loss_curves(name, 0, &log)?;
        figures::draw(folder, "loss.svg", (name, "epoch", "loss"), &losses, Scale::Logarithmic)?;
    }
    Ok(())
}

/// The network, its name, and how it takes photographs.
fn choose(args: &Args) -> Result<(String, ModelConfig, Preset)> {
    let Some(file) = &args.config else {
        let config = ModelConfig::named(&args.model)?;
        let preset = Preset::for_model(&args.model);
        let preset = preset.ok_or_else(|| Error::invalid(&args.model, "no preprocessing is known for it"))?;
        return Ok((args.model.clone(), config, preset));
    };
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
    let config = serde_json::from_str(&text).map_err(|e| Error::format(file.display().to_string(), e.to_string()))?;
    let name = file.file_stem().map_or("network".into(), |stem| stem.to_string_lossy().into_owned());
    Ok((name, config, Preset::cifar10()))
}

fn recipe(args: &Args, defaults: &Defaults, steps: u64, batch: usize) -> Recipe {
    let decay = args.decay.unwrap_or(defaults.decay);
    let rule: Box<dyn Rule> = match args.optimizer.unwrap_or(defaults.optimizer) {
        Optimizer::Sgd => Sgd { decay, ..Sgd::default() }.into(),
        Optimizer::Nesterov => Sgd { nesterov: true, decay, ..Sgd::default() }.into(),
        Optimizer::Adamw => AdamW { decay, ..AdamW::default() }.into(),
        Optimizer::Rmsprop => RmsPropTf { decay, ..RmsPropTf::default() }.into(),
    };
    // The rate grows with the batch (Goyal et al. 2017).
    let images = batch as f64 * args.accumulate as f64;
    let rate = args.rate.unwrap_or(defaults.rate * images / 128.0);
    let warm_up = steps / 20;
    let rest = (steps - warm_up).max(1);
    let schedule = match args.schedule.unwrap_or(defaults.falls) {
        Falls::OneCycle => Schedule::one_cycle(rate, steps),
        Falls::Cosine => Schedule::cosine(rate, rest).warm_up(warm_up, 0.0),
        Falls::Step => Schedule::new(rate, Decay::MultiStep { at: vec![steps / 2, steps * 3 / 4], factor: 0.1 }),
        Falls::Exponential => {
            let every = (rest as f64 / 150.0).max(1.0);
            Schedule::new(rate, Decay::Step { every, factor: 0.97 }).warm_up(warm_up, 0.0)
        }
        Falls::Constant => Schedule::new(rate, Decay::Constant),
    };
    let recipe = Recipe {
        loss: Box::new(CrossEntropy::new().smoothing(args.smoothing)),
        groups: Groups::new().weights_decay_alone(),
        training: TrainOptions::new().recompute(match args.recompute {
            true => Recompute::Thorough,
            false => Recompute::Cheap,
        }),
        clip: args.clip.map(Clip::Norm),
        ema: args.ema,
        seed: args.seed,
        ..Recipe::new(rule, schedule)
    };
    match args.threads {
        Some(threads) => recipe.threads(threads),
        None => recipe,
    }
}

/// Reads `weights` into the model: what fits, or, if `strict`, all that the model has.
fn begin_with(model: &mut Model, weights: &Path, strict: bool) -> Result<()> {
    let options = if strict { LoadOptions::strict() } else { LoadOptions::lenient() };
    let report = model.load_with(weights, &options.renamed(&foreign::rename), &Limits::default())?;
    println!("{report}");
    if report.loaded == 0 {
        return Err(Error::Load(Box::new(report)));
    }
    Ok(())
}
