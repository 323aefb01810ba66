//! Teaches a trained network two new classes.
//!
//! ```text
//! cargo run --release --example finetune -- --path ants_and_bees
//! ```
//!
//! The folder holds `train/CLASS` and `val/CLASS` (the classic exercise is ants and bees, 244 and 153 photographs). The
//! network is the GoogLeNet of the paper with BVLC's ImageNet weights, which are in the repository: its classifier of 1000
//! classes is replaced by a new one, which learns at the full rate; the last blocks follow at a tenth of it, and
//! everything below keeps what ImageNet taught it.

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

use clap::{Parser, ValueEnum, value_parser};
use convzoo::inspect::curves::Scale;
use convzoo::models::GoogLeNet;
use convzoo::random::Stream;
use convzoo::train::{Batches, Fit, Groups, Recipe, Schedule, Sgd, Trainer, fit};
use convzoo::vision::{Loader, Preset, data::OnDamage};
use convzoo::weights::{Limits, LoadOptions};
use convzoo::{Error, Model, Result};
use data::{Data, Taken};
use std::path::{Path, PathBuf};

/// Teaches the bundled GoogLeNet new classes.
#[derive(Parser)]
struct Args {
    /// Folder with train/CLASS and val/CLASS.
    #[arg(long)]
    path: PathBuf,
    /// What learns.
    #[arg(long, value_enum, default_value = "top")]
    learns: Learns,
    /// Epochs in all. The schedule follows from them, so that training cannot go on for another number of epochs.
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u64).range(1..))]
    epochs: u64,
    /// Images in a batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Highest learning rate of the new classifier.
    #[arg(long, default_value_t = 0.01)]
    rate: f64,
    /// Rate of what was trained before, as a share of the classifier's.
    #[arg(long, default_value_t = 0.1)]
    below: f32,
    /// Leave out photographs that cannot be decoded, instead of stopping.
    #[arg(long)]
    skip_damaged: bool,
    /// Where checkpoints, weights, log and curves go.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Seed of the new classifier, order and augmentation.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Worker threads [default: all].
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Learns {
    /// The new classifier alone.
    Classifier,
    /// The classifier, and blocks 5a and 5b below it.
    Top,
    /// Everything.
    All,
}

impl Learns {
    /// The classifier at the full rate, what else learns at the share `below`.
    fn groups(self, below: f32) -> Groups {
        let groups = Groups::new().weights_decay_alone();
        match self {
            Learns::Classifier => groups.freeze("").thaw("fc"),
            Learns::Top => {
                groups.freeze("").thaw("inception5a").thaw("inception5b").thaw("fc").rate("", below).rate("fc", 1.0)
            }
            Learns::All => groups.rate("", below).rate("fc", 1.0),
        }
    }
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let preset = Preset::for_model("googlenet_paper").ok_or_else(|| Error::invalid("googlenet_paper", "no preset"))?;
    let damage = if args.skip_damaged { OnDamage::Skip } else { OnDamage::Stop };
    let sets = Data::Folder.open(Some(&args.path), &Taken { side: None, preset, damage, limit: None })?;
    let train = Loader::new(sets.train.clone(), sets.train_options(args.batch, args.seed))?;
    let test = Loader::new(sets.test.clone(), sets.test_options(args.batch))?;
    println!(
        "{} photographs to learn from, {} to be judged by: {}",
        sets.train.len(),
        sets.test.len(),
        sets.train.classes().join(", ")
    );

    let model = pretrained(sets.classes(), args.seed)?;
    let sgd = Sgd { decay: 2e-4, ..Sgd::default() };
    let recipe = Recipe {
        groups: args.learns.groups(args.below),
        seed: args.seed,
        ..Recipe::new(sgd, Schedule::one_cycle(args.rate, train.batches() * args.epochs))
    };
    let recipe = match args.threads {
        Some(threads) => recipe.threads(threads),
        None => recipe,
    };
    let (graph, params) = model.into_parts();
    let mut trainer = Trainer::new(&graph, params, recipe)?;
    let plan = Fit { folder: args.out.as_deref(), ..Fit::new(&train, &test, args.epochs) };
    if let Some(folder) = &args.out {
        sets.write_labels(folder)?;
    }
    let mut watch = watch::Watch::new("googlenet_paper", &train, args.epochs);
    let finished = fit(&mut trainer, &plan, &mut watch)?;
    if let Some(folder) = &args.out {
        let curves = figures::error_curves("GoogLeNet", 0, &folder.join("log.jsonl"))?;
        figures::draw(folder, "error.svg", ("Fine-tuning", "epoch", "error in percent"), &curves, Scale::Linear)?;
        println!("{} is in {}", watch.ending(finished), folder.display());
        let best = folder.join("best.safetensors");
        if best.is_file() {
            let command = "cargo run --release --example classify -- --model googlenet_paper --weights";
            println!("to name what is in a photograph: {command} {} PHOTO", best.display());
        }
    }
    Ok(())
}

/// BVLC's GoogLeNet with a new classifier.
fn pretrained(classes: usize, seed: u64) -> Result<Model> {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/googlenet_bvlc.safetensors");
    let mut model = Model::new(&GoogLeNet::paper().no_aux().classes(classes), &mut Stream::new(seed).rng())?;
    let options = LoadOptions::lenient().renamed(&foreign::rename);
    let report = model.load_with(weights, &options, &Limits::default())?;
    // The old classifier does not fit and stays out; anything else that does not is a mistake.
    let other = report.misshapen.iter().find(|(name, ..)| !name.starts_with("fc."));
    if other.is_some() || !report.missing.is_empty() || !report.unexpected.is_empty() {
        return Err(Error::Load(Box::new(report)));
    }
    Ok(model)
}
