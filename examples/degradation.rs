//! The degradation problem: deeper plain networks train worse, deeper residual networks do not. He et al. 2015, figures 1
//! and 6, drawn anew.
//!
//! ```text
//! cargo run --release --example degradation -- --data folder --path cifar --epochs 20
//! ```
//!
//! Trains plain-20, plain-56, ResNet-20 and ResNet-56 on the same batches by the same recipe, and draws the errors while
//! training (dashed) and in test (solid), and the norm of the gradient of every 3×3 convolution, before the first step and
//! after the last.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/data.rs"]
mod data;
#[path = "support/figures.rs"]
mod figures;
#[path = "support/watch.rs"]
mod watch;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, value_parser};
use convzoo::graph::{Graph, Params};
use convzoo::inspect::curves::{Curve, Scale, Stroke};
use convzoo::random::Stream;
use convzoo::train::{Batches, Decay, Fit, Groups, Recipe, Schedule, Sgd, Trainer, fit};
use convzoo::vision::{Loader, Preset, data::OnDamage};
use convzoo::{Model, Result, models};
use data::{Data, Taken};
use std::path::PathBuf;

/// Plain networks against residual ones, shallow against deep.
#[derive(Parser)]
struct Args {
    /// The networks, each of the registry.
    #[arg(long, value_delimiter = ',', default_value = "plain20,plain56,resnet20,resnet56")]
    models: Vec<String>,
    /// Data set.
    #[arg(long, value_enum, default_value = "shapes")]
    data: Data,
    /// Folder of the data set.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Epochs of each.
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u64).range(1..))]
    epochs: u64,
    /// Images in a batch.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Learning rate; a tenth of it after half and a hundredth after three quarters of the training.
    #[arg(long, default_value_t = 0.1)]
    rate: f64,
    /// Learn from at most so many images.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Where checkpoints, logs and figures go. What is there is gone on from.
    #[arg(long, default_value = "degradation")]
    out: PathBuf,
    /// Seed of initial weights, order and augmentation.
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
    let taken = Taken { side: None, preset: Preset::cifar10(), damage: OnDamage::Stop, limit: args.limit };
    let sets = args.data.open(args.path.as_deref(), &taken)?;
    let train = Loader::new(sets.train.clone(), sets.train_options(args.batch, args.seed))?;
    let test = Loader::new(sets.test.clone(), sets.test_options(args.batch))?;
    let steps = train.batches() * args.epochs;
    let (mut errors, mut norms) = (Vec::new(), Vec::new());
    for (color, name) in args.models.iter().enumerate() {
        let network = models::build(name, Some(sets.classes()))?;
        let mut rng = Stream::new(args.seed).rng();
        let model = Model::with_channels(sets.input_channels(), &network, &mut rng)?;
        let recipe = || {
            let falls = Decay::MultiStep { at: vec![steps / 2, steps * 3 / 4], factor: 0.1 };
            let sgd = Sgd { decay: 1e-4, ..Sgd::default() };
            let recipe =
                Recipe { seed: args.seed, groups: Groups::new(), ..Recipe::new(sgd, Schedule::new(args.rate, falls)) };
            match args.threads {
                Some(threads) => recipe.threads(threads),
                None => recipe,
            }
        };
        let norm = |when: &str, graph: &Graph, params: &Params, stroke| -> Result<Curve> {
            let points = gradient_norms(graph, params, recipe(), &train)?;
            Ok(Curve { name: format!("{name}, {when}"), color, stroke, points })
        };
        norms.push(norm("before", model.graph(), model.params(), Stroke::Dashed)?);
        let (graph, params) = model.into_parts();
        let mut trainer = Trainer::new(&graph, params, recipe())?;
        let folder = args.out.join(name);
        let plan = Fit { folder: Some(&folder), ..Fit::new(&train, &test, args.epochs) };
        let mut watch = watch::Watch::new(name, &train, args.epochs);
        if !fit(&mut trainer, &plan, &mut watch)? {
            println!("stopped; run again to go on");
            return Ok(());
        }
        norms.push(norm("after", trainer.graph(), trainer.params(), Stroke::Solid)?);
        errors.extend(figures::error_curves(name, color, &folder.join("log.jsonl"))?);
        let title = ("Degradation", "epoch", "error in percent");
        figures::draw(&args.out, "error.svg", title, &errors, Scale::Linear)?;
        let title = ("Gradient by depth", "convolution, from the image on", "norm of the gradient");
        figures::draw(&args.out, "gradients.svg", title, &norms, Scale::Logarithmic)?;
    }
    println!("error.svg and gradients.svg are in {}", args.out.display());
    Ok(())
}

/// The norm of the gradient of every 3×3 convolution over one batch, in the order they are drawn.
fn gradient_norms(graph: &Graph, params: &Params, recipe: Recipe, batches: &dyn Batches) -> Result<Vec<(f64, f64)>> {
    let mut trainer = Trainer::new(graph, params.clone(), recipe)?;
    let mut first = batches.epoch(0, 0);
    if let Some(batch) = first.next() {
        trainer.accumulate(&batch?)?;
    }
    let norms = trainer.gradients().norms(graph.params());
    let convolutions = norms.filter(|(def, _)| def.shape.len() == 4 && def.shape[2] == 3);
    Ok(convolutions.enumerate().map(|(i, (_, norm))| (i as f64 + 1.0, norm)).collect())
}
