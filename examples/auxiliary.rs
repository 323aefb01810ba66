//! What auxiliary classifiers are for: gradient half-way up. Szegedy et al. 2014, §5.
//!
//! ```text
//! cargo run --release --example auxiliary -- --data folder --path cifar --epochs 3
//! ```
//!
//! Trains GoogLeNet in the form of the paper, without batch norm, once with its two auxiliary classifiers and once without,
//! from the same weights on the same batches, and draws the norm of the gradient that reaches the first convolution at
//! every step, and the loss. The loop is written out here, as anybody may who wants another than `convzoo::train::fit`.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/data.rs"]
mod data;
#[path = "support/figures.rs"]
mod figures;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, value_parser};
use convzoo::inspect::curves::{Curve, Scale, Stroke};
use convzoo::models::GoogLeNet;
use convzoo::random::Stream;
use convzoo::train::{Batches, Groups, Recipe, Schedule, Sgd, Trainer};
use convzoo::vision::{Loader, Preset, data::OnDamage};
use convzoo::{Model, Result};
use data::{Data, Taken};
use std::path::PathBuf;

/// GoogLeNet with and without its auxiliary classifiers.
#[derive(Parser)]
struct Args {
    /// Data set.
    #[arg(long, value_enum, default_value = "shapes")]
    data: Data,
    /// Folder of the data set.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Epochs of each.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    epochs: u64,
    /// Images in a batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 0.01)]
    rate: f64,
    /// Side of the images; the auxiliary classifiers' windows need 80 at least.
    #[arg(long, default_value_t = 96)]
    side: usize,
    /// Learn from at most so many images.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Where the figures go.
    #[arg(long, default_value = "auxiliary")]
    out: PathBuf,
    /// Seed of initial weights, order, augmentation and dropout.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads [default: all].
    #[arg(long)]
    threads: Option<usize>,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let taken = Taken { side: Some(args.side), preset: Preset::cifar10(), damage: OnDamage::Stop, limit: args.limit };
    let sets = args.data.open(args.path.as_deref(), &taken)?;
    let train = Loader::new(sets.train.clone(), sets.train_options(args.batch, args.seed))?;
    let test = Loader::new(sets.test.clone(), sets.test_options(args.batch))?;
    let network = GoogLeNet::paper().classes(sets.classes());
    let channels = sets.input_channels();
    let with = Model::with_channels(channels, &network, &mut Stream::new(args.seed).rng())?;
    let mut without = Model::with_channels(channels, &network.clone().no_aux(), &mut Stream::new(0).rng())?;
    for (def, value) in with.params().iter().filter(|(def, _)| !def.auxiliary) {
        without.params_mut().set(&def.name, value.clone())?;
    }

    let (mut norms, mut losses) = (Vec::new(), Vec::new());
    for (color, (name, model)) in [("with auxiliaries", &with), ("without", &without)].into_iter().enumerate() {
        let (norm, loss) = learn(args, name, model, &train, &test)?;
        let curve = |points| Curve { name: name.to_owned(), color, stroke: Stroke::Solid, points };
        norms.push(curve(norm));
        losses.push(curve(loss));
    }
    std::fs::create_dir_all(&args.out).map_err(|e| convzoo::Error::io(&args.out, e))?;
    let title = ("Gradient reaching the stem", "step", "norm of the gradient of conv1");
    figures::draw(&args.out, "gradients.svg", title, &norms, Scale::Logarithmic)?;
    let title = ("Loss of the main classifier", "step", "loss, mean of the epoch so far");
    figures::draw(&args.out, "loss.svg", title, &losses, Scale::Linear)?;
    println!("gradients.svg and loss.svg are in {}", args.out.display());
    Ok(())
}

type Points = Vec<(f64, f64)>;

/// The norm of the stem's gradient and the main classifier's loss, by step.
fn learn(args: &Args, name: &str, model: &Model, train: &Loader, test: &Loader) -> Result<(Points, Points)> {
    let steps = train.batches() * args.epochs;
    let recipe = Recipe {
        groups: Groups::new().weights_decay_alone(),
        seed: args.seed,
        ..Recipe::new(Sgd { decay: 2e-4, ..Sgd::default() }, Schedule::one_cycle(args.rate, steps))
    };
    let recipe = match args.threads {
        Some(threads) => recipe.threads(threads),
        None => recipe,
    };
    let mut trainer = Trainer::new(model.graph(), model.params().clone(), recipe)?;
    let (mut norms, mut losses) = (Points::new(), Points::new());
    for epoch in 0..args.epochs {
        for batch in train.epoch(epoch, 0) {
            trainer.accumulate(&batch?)?;
            let step = trainer.progress().step as f64;
            let stem =
                trainer.gradients().norms(model.graph().params()).find(|(def, _)| def.name == "conv1.conv.weight");
            norms.extend(stem.map(|(_, norm)| (step, norm)));
            losses.extend(trainer.metrics().losses().next().map(|(_, loss)| (step, loss)));
            trainer.update()?;
        }
        let learned = trainer.end_epoch();
        let judged = trainer.evaluate(test.epoch(0, 0))?;
        let heads: Vec<String> = learned.losses().map(|(head, loss)| format!("{head} {loss:.3}")).collect();
        println!("{name}, epoch {}: {}; test top-1 {:.2} %", epoch + 1, heads.join(", "), judged.top1());
    }
    let mean = norms.iter().map(|(_, norm)| norm).sum::<f64>() / norms.len().max(1) as f64;
    println!("{name}: the gradient of the stem has a mean norm of {mean:.3e}");
    Ok((norms, losses))
}
