//! How fast a network runs here, in which share of what the machine could do.
//!
//! ```text
//! cargo run --release --example latency -- --model resnet50 --batch 1 --threads 2
//! cargo run --release --example latency -- --train --model resnet18 --batch 16 --threads 2
//! ```
//!
//! `--runs 10000` measures that many runs instead of a few seconds, and `--steady 1.5` fails if the 99th percentile is more
//! than one and a half times the median: how evenly a plan runs on a quiet machine.
//!
//! The output is held to the reference executor once, before any time is taken. With `--worker` it speaks the line
//! protocol of a benchmark that interleaves several engines: `ready LOAD_MS MAX_ERROR`, then for every line `run K` the
//! times of `K` runs in ms, and `rss PEAK_MIB GROWN_MIB` at the end of the input.
//!
//! With `--train` a run is a training step: forward, cross entropy of all heads, backward, SGD with momentum. The memory it
//! reports is what training adds to a model with its weights and a batch of images. `--recompute` computes more again on the
//! way back, to hold less.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/step.rs"]
#[allow(dead_code, reason = "shared with the example that times every kernel")]
mod step;

use clap::Parser;
use convzoo::exec::{Recompute, TrainOptions};
use convzoo::simd::{Isa, peak_gflops};
use convzoo::weights::{Limits, LoadOptions, StateDict};
use convzoo::{Error, Model, Plan, PlanOptions, Result, Tensor, models};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Times one network.
#[derive(Parser)]
struct Args {
    /// Model of the registry; with `--train`, or a configuration as JSON.
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
    /// How long to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Measure this many runs, however long it takes.
    #[arg(long)]
    runs: Option<usize>,
    /// Fail if the 99th percentile exceeds this many medians.
    #[arg(long)]
    steady: Option<f64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Skip the comparison with the (slow) reference executor.
    #[arg(long)]
    no_check: bool,
    /// Compare a training step with the reference executor and do nothing else.
    #[arg(long, hide = true, requires = "train")]
    only_check: bool,
    /// Weight file [default: random values].
    #[arg(long)]
    weights: Option<PathBuf>,
    /// A safetensors file with `input` and `logits` to compare with.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// Choose how convolutions are computed by timing, and keep what was found in this file.
    #[arg(long, conflicts_with = "train")]
    tune: Option<PathBuf>,
    /// Serve a benchmark over standard input and output.
    #[arg(long)]
    worker: bool,
    /// Time training steps, on random weights and images.
    #[arg(long, conflicts_with_all = ["weights", "reference"])]
    train: bool,
    /// While training, compute as much again as memory gains by.
    #[arg(long, requires = "train")]
    recompute: bool,
}

fn main() {
    let started = Instant::now();
    let args = Args::parse();
    let outcome = match (args.train, args.worker) {
        (false, true) => worker(&args, started),
        (false, false) => measure(&args),
        (true, _) => train(&args, started),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn model(args: &Args) -> Result<Model> {
    let network = models::build(&args.model, None)?;
    let Some(weights) = &args.weights else { return Model::new(&network, &mut StdRng::seed_from_u64(0)) };
    let mut model = Model::blank(&network)?;
    model.load_with(weights, &LoadOptions::strict(), &Limits::default())?;
    Ok(model)
}

fn options(args: &Args) -> PlanOptions {
    let options = PlanOptions::new().threads(args.threads);
    match &args.tune {
        Some(file) => options.tuned(file),
        None => options,
    }
}

fn input(args: &Args) -> Result<Tensor> {
    let side = args.size.unwrap_or(models::get(&args.model)?.input);
    let mut rng = StdRng::seed_from_u64(1);
    Ok(Tensor::from_fn(&[args.batch, 3, side, side], |_| 2.0 * rng.random::<f32>() - 1.0))
}

fn shape(input: &Tensor) -> Result<[usize; 4]> {
    let found = format!("{:?}", input.shape());
    input.shape().try_into().map_err(|_| Error::mismatch("input", "rank", 4, found))
}

/// Greatest difference over greatest magnitude.
fn largest_error(found: &[f32], wanted: &[f32]) -> f32 {
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| if v.is_nan() { v } else { m.max(v) });
    let difference = most(&mut found.iter().zip(wanted).map(|(a, b)| (a - b).abs()));
    difference / most(&mut wanted.iter().map(|v| v.abs())).max(1e-12)
}

fn run(plan: &mut Plan, input: &Tensor) -> Result<f64> {
    let started = Instant::now();
    plan.run(input)?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

fn measure(args: &Args) -> Result<()> {
    let info = models::get(&args.model)?;
    let (model, input) = (model(args)?, input(args)?);
    let mut plan = model.plan_with(shape(&input)?, &options(args))?;
    if !args.no_check {
        let wanted: Vec<f32> = model.reference::<f32>(&input)?.data;
        let error = largest_error(plan.run(&input)?.logits().as_slice(), &wanted);
        if error.is_nan() || error > 1e-4 {
            return Err(Error::invalid(&args.model, format!("off the reference by {error:e}: no time is reported")));
        }
        eprintln!("equals the reference within {error:.1e}");
    }
    drop(model);
    let side = input.shape()[3];
    let macs = convzoo::inspect::Summary::of(
        &convzoo::graph::Graph::draw(3, &models::build(&args.model, None)?)?,
        [args.batch, 3, side, side],
    )?
    .macs;
    for _ in 0..3 {
        run(&mut plan, &input)?;
    }
    let until = Instant::now() + Duration::from_secs_f64(args.seconds.max(0.0));
    let mut times = vec![run(&mut plan, &input)?];
    while args.runs.map_or_else(|| Instant::now() < until, |runs| times.len() < runs) {
        times.push(run(&mut plan, &input)?);
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let (median, least, p99) = (at(0.5), times[0], at(0.99));
    let peak = peak_gflops(Isa::detect(), args.threads);
    let share = 2.0 * macs as f64 / (median * 1e6) / peak * 100.0;
    let rate = args.batch as f64 / median * 1e3;
    if args.json {
        let report = serde_json::json!({
            "model": info.name, "batch": args.batch, "threads": args.threads, "size": side, "isa": Isa::detect().name(),
            "runs": times.len(), "median_ms": median, "min_ms": least, "p99_ms": p99, "images_per_s": rate,
            "peak_gflops": peak, "percent_of_peak": share,
            "arena_mib": plan.arena_bytes() as f64 / 1048576.0, "weights_mib": plan.weight_bytes() as f64 / 1048576.0,
        });
        println!("{report}");
    } else {
        println!(
            "{} batch {} at {side}×{side}, {} threads, {}: median {median:.2} ms, min {least:.2}, p99 {p99:.2} \
             ({} runs), {rate:.1} images/s, {share:.0} % of the {peak:.0} GFLOP/s measured",
            info.name,
            args.batch,
            args.threads,
            Isa::detect().name(),
            times.len(),
        );
    }
    match args.steady {
        Some(most) if p99 > most * median => {
            let problem = format!("the 99th percentile is {:.2} medians, more than {most}", p99 / median);
            Err(Error::invalid(&args.model, problem))
        }
        _ => Ok(()),
    }
}

fn tensor(state: &StateDict, name: &str, file: &Path) -> Result<Tensor> {
    let missing = || Error::format(file.display().to_string(), format!("holds no tensor `{name}`"));
    state.get(name).cloned().ok_or_else(missing)
}

fn worker(args: &Args, started: Instant) -> Result<()> {
    let (Some(file), Some(_)) = (args.reference.as_deref(), &args.weights) else {
        return Err(Error::invalid("--worker", "needs --weights and --reference, or --train"));
    };
    let state = StateDict::read(file)?;
    let (input, wanted) = (tensor(&state, "input", file)?, tensor(&state, "logits", file)?);
    let network = models::build(&args.model, None)?;
    let weights = args.weights.as_deref().unwrap_or(Path::new(""));
    let mut plan = Model::plan_file(&network, weights, shape(&input)?, &options(args))?;
    let error = largest_error(plan.run(&input)?.logits().as_slice(), wanted.as_slice());
    serve(started, f64::from(error), 0.0, || run(&mut plan, &input))
}

/// Times training steps, or serves them to a benchmark.
fn train(args: &Args, started: Instant) -> Result<()> {
    let (network, made_for) = step::network(&args.model)?;
    let side = args.size.or(made_for).ok_or_else(|| Error::invalid(&args.model, "needs --size"))?;
    let recompute = if args.recompute { Recompute::Thorough } else { Recompute::Cheap };
    let options = TrainOptions::new().threads(args.threads).recompute(recompute);
    if args.only_check {
        return step::Training::check(&args.model, &options);
    }
    if !args.no_check {
        check_apart()?;
    }
    let given = step::Training::given(&args.model, [args.batch, side])?;
    forget_peak();
    let before = resident_mib("VmRSS:");
    let mut at = step::Training::new(given, &options)?;
    let predicted = at.predicted_bytes() as f64 / 1048576.0;
    let mut timed = || -> Result<f64> {
        let started = Instant::now();
        let loss = at.step()?;
        match loss.is_finite() {
            true => Ok(started.elapsed().as_secs_f64() * 1e3),
            false => Err(Error::invalid(&args.model, format!("the loss is {loss}"))),
        }
    };
    if args.worker {
        return serve(started, 0.0, before, timed);
    }
    (0..2).try_for_each(|_| timed().map(|_| ()))?;
    let until = Instant::now() + Duration::from_secs_f64(args.seconds.max(0.0));
    let mut times = vec![timed()?];
    while times.len() < 3 || Instant::now() < until {
        times.push(timed()?);
    }
    times.sort_by(f64::total_cmp);
    let (median, least) = (times[times.len() / 2], times[0]);
    let grown = resident_mib("VmHWM:") - before;
    let shape = [args.batch, 3, side, side];
    let graph = convzoo::graph::Graph::draw(3, &network)?;
    let macs = convzoo::inspect::Summary::of(&graph, shape)?.macs;
    let peak = peak_gflops(Isa::detect(), args.threads);
    let share = 6.0 * macs as f64 / (median * 1e6) / peak * 100.0;
    if args.json {
        let report = serde_json::json!({
            "model": args.model, "batch": args.batch, "threads": args.threads, "size": side, "isa": Isa::detect().name(),
            "steps": times.len(), "median_ms": median, "min_ms": least, "peak_gflops": peak, "percent_of_peak": share,
            "recompute": args.recompute, "predicted_mib": predicted, "grown_mib": grown,
        });
        println!("{report}");
    } else {
        println!(
            "{} batch {} at {side}×{side}, {} threads, {}: median {median:.1} ms a step, min {least:.1} ({} steps), \
             {share:.0} % of the {peak:.0} GFLOP/s measured, {predicted:.0} MiB planned, {grown:.0} MiB grown",
            args.model,
            args.batch,
            args.threads,
            Isa::detect().name(),
            times.len(),
        );
    }
    Ok(())
}

/// The check, in a process of its own: memory that it leaves behind would be used again by training and not be counted.
fn check_apart() -> Result<()> {
    let failed = |e| Error::io("the process that checks", e);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(std::env::args_os().skip(1)).arg("--only-check").stdin(Stdio::null());
    match command.status().map_err(failed)?.success() {
        true => Ok(()),
        false => Err(Error::invalid("latency", "the check failed: no time is reported")),
    }
}

/// Speaks the protocol: `timed` is one run. The memory is also reported as what came to the MiB `before`.
fn serve(started: Instant, error: f64, before: f64, mut timed: impl FnMut() -> Result<f64>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let pipe = |e| Error::io("standard output", e);
    writeln!(out, "ready {:.1} {error:.3e}", started.elapsed().as_secs_f64() * 1e3)
        .and_then(|()| out.flush())
        .map_err(pipe)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("standard input", e))?;
        let Some(count) = line.strip_prefix("run ").and_then(|k| k.trim().parse::<usize>().ok()) else { continue };
        let times = (0..count).map(|_| Ok(format!("{:.4}", timed()?))).collect::<Result<Vec<_>>>()?;
        writeln!(out, "{}", times.join(" ")).and_then(|()| out.flush()).map_err(pipe)?;
    }
    let peak = resident_mib("VmHWM:");
    writeln!(out, "rss {peak:.1} {:.1}", peak - before).and_then(|()| out.flush()).map_err(pipe)
}

/// Counts the most memory ever held from now on, where Linux can.
fn forget_peak() {
    // It is only a better figure; without, that of the check before is counted too.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The memory this process holds (`VmRSS:`) or the most it ever held (`VmHWM:`), as Linux counts it; 0 where it does not.
fn resident_mib(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}
