//! Where the time goes, step by step.
//!
//! ```text
//! cargo run --release --example profile -- --model resnet50 --threads 2
//! cargo run --release --example profile -- --train --model resnet50 --batch 16 --rounds 3
//! ```

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/step.rs"]
#[allow(dead_code, reason = "shared with the example that times whole steps")]
mod step;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use convzoo::exec::{Recompute, StepTime, TrainOptions};
use convzoo::simd::{Isa, peak_gflops};
use convzoo::{Error, Model, PlanOptions, Result, Tensor, models};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Times every step of a network's plan: the shortest of several rounds.
#[derive(Parser)]
struct Args {
    /// Model of the registry.
    #[arg(long)]
    model: String,
    /// Images per run.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Side of the square images [default: the model's].
    #[arg(long)]
    size: Option<usize>,
    /// Rounds to take the shortest time of.
    #[arg(long, default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    rounds: usize,
    /// Choose how convolutions are computed by timing, and keep what was found in this file.
    #[arg(long, conflicts_with = "train")]
    tune: Option<PathBuf>,
    /// Times a training step, forward and back.
    #[arg(long)]
    train: bool,
    /// While training, compute as much again as memory gains by.
    #[arg(long, requires = "train")]
    recompute: bool,
    /// Print the training plan, and what fills its memory, instead of times.
    #[arg(long, requires = "train")]
    explain: bool,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(0);
    if args.train {
        return train(args);
    }
    let side = args.size.unwrap_or(models::get(&args.model)?.input);
    let model = Model::new(&models::build(&args.model, None)?, &mut rng)?;
    let mut options = PlanOptions::new().threads(args.threads);
    if let Some(file) = &args.tune {
        options = options.tuned(file);
    }
    let mut plan = model.plan_with([args.batch, 3, side, side], &options)?;
    drop(model);
    let input = Tensor::from_fn(&[args.batch, 3, side, side], |_| 2.0 * rng.random::<f32>() - 1.0);

    let mut best = plan.profile(&input)?;
    for _ in 1..args.rounds {
        let again = plan.profile(&input)?;
        best.iter_mut().zip(again).for_each(|(b, a)| b.seconds = b.seconds.min(a.seconds));
    }
    print(&best, peak_gflops(Isa::detect(), args.threads));
    Ok(())
}

fn train(args: &Args) -> Result<()> {
    let side =
        args.size.or(step::network(&args.model)?.1).ok_or_else(|| Error::invalid(&args.model, "needs --size"))?;
    let recompute = if args.recompute { Recompute::Thorough } else { Recompute::Cheap };
    let options = TrainOptions::new().threads(args.threads).recompute(recompute);
    let mut at = step::Training::new(step::Training::given(&args.model, [args.batch, side])?, &options)?;
    if args.explain {
        print!("{}", at.plan.explain());
        return Ok(());
    }
    let mut best = at.plan.profile(at.model.params_mut(), &at.images, 0)?;
    for round in 1..args.rounds {
        let again = at.plan.profile(at.model.params_mut(), &at.images, round as u64)?;
        best.iter_mut().zip(again).for_each(|(b, a)| b.seconds = b.seconds.min(a.seconds));
    }
    print(&best, peak_gflops(Isa::detect(), args.threads));
    Ok(())
}

fn print(steps: &[StepTime], peak: f64) {
    let total: f64 = steps.iter().map(|s| s.seconds).sum();
    let width = steps.iter().map(|s| s.path.len()).max().unwrap_or(0);
    let mut kinds: BTreeMap<String, (f64, u64, usize)> = BTreeMap::new();
    println!("{:>9} {:>6} {:>8} {:>6}  layer", "µs", "share", "GFLOP/s", "peak");
    for step in steps {
        let rate = 2e-9 * step.macs as f64 / step.seconds;
        let speed = if step.macs == 0 { " ".repeat(15) } else { format!("{rate:8.1} {:4.0} %", rate / peak * 100.0) };
        let share = step.seconds / total * 100.0;
        println!(
            "{:9.1} {share:5.1}% {speed}  {:width$} {:?}  {}",
            step.seconds * 1e6,
            step.path,
            step.shape,
            step.kernel
        );
        let kind = kinds.entry(family(&step.kernel)).or_default();
        *kind = (kind.0 + step.seconds, kind.1 + step.macs, kind.2 + 1);
    }
    println!("\n{:9.1} µs in {} steps, {peak:.0} GFLOP/s peak", total * 1e6, steps.len());
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0));
    for (kind, (seconds, macs, count)) in kinds {
        let share = seconds / total * 100.0;
        let of_peak = 2e-9 * macs as f64 / seconds / peak * 100.0;
        println!("{:9.1} {share:5.1}%  {of_peak:4.0} % of peak  {count:3} × {kind}", seconds * 1e6);
    }
    println!(
        "\nGFLOP/s count the multiply-adds of plain sums; Winograd's and Strassen's methods, which take fewer, and the matrix \
         unit may exceed the peak."
    );
}

/// A kernel's name without its instruction set, window and register tile: `winograd_4x4_k3s1_6x4 avx512` is `winograd_4x4`.
fn family(kernel: &str) -> String {
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let one = |name: &str| {
        let mut kept: Vec<&str> = Vec::new();
        for word in name.split(' ').next().unwrap_or_default().split('_').filter(|word| !word.is_empty()) {
            let window = word.strip_prefix('k').is_some_and(|rest| digit(rest.chars().next()));
            let tile = digit(word.chars().next()) && kept.last() != Some(&"winograd");
            if !window && !tile {
                kept.push(word);
            }
        }
        kept.join("_")
    };
    kernel.split(" + ").map(one).collect::<Vec<_>>().join(" + ")
}
