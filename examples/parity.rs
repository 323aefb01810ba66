//! Runs one evaluation or one training step on an array, so that anyone can compare with another framework.
//!
//! ```text
//! cargo run --release --example parity -- --model resnet50 --weights resnet50.pth --input x.npy --out y.safetensors --taps
//! cargo run --release --example parity -- --model googlenet --weights googlenet.pth --input x.npy --out y.safetensors \
//!     --train --labels y.npy --no-dropout
//! ```
//!
//! No preprocessing happens: the array is what a PyTorch module's `forward` would be given. Writes the tensor `output`
//! and, with `--taps`, `features.<name>` for every named layer, under the names PyTorch's modules have.
//!
//! `--train` runs one step in training mode without an optimiser: the loss is the mean cross entropy, plus those of the
//! auxiliary heads by their weights (0.3). Writes `loss`, `output`, `aux1`, `aux2`, `grad.<parameter>`, `grad.input` and
//! `state.<running statistic>` as it is after the step.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/parity_step.rs"]
mod step;

use clap::Parser;
use convzoo::exec::{Noise, TrainOptions};
use convzoo::simd::Isa;
use convzoo::weights::{Dtype, Limits, LoadOptions, StateDict, read_npy};
use convzoo::{Error, Model, PlanOptions, Result, Tensor, models};
use std::path::PathBuf;

/// Runs one evaluation, or one training step, on an NCHW f32 array and writes what comes out.
#[derive(Parser)]
struct Args {
    /// Model of the registry.
    #[arg(long)]
    model: String,
    /// Weight file: .safetensors, .pth or .npz.
    #[arg(long)]
    weights: PathBuf,
    /// NCHW f32 array.
    #[arg(long)]
    input: PathBuf,
    /// Where to write `output`, as safetensors.
    #[arg(long)]
    out: PathBuf,
    /// Classes of the classifier [default: the model's].
    #[arg(long)]
    num_classes: Option<usize>,
    /// Also write `features.<name>` for the layers named (comma-separated), or for every layer.
    #[arg(long, num_args = 0..=1, default_missing_value = "*", value_delimiter = ',')]
    taps: Vec<String>,
    /// Run one training step instead: loss, outputs, gradients and running statistics.
    #[arg(long, requires = "labels", conflicts_with_all = ["taps", "explain"])]
    train: bool,
    /// Integer array [n], the class of every image.
    #[arg(long, requires = "train")]
    labels: Option<PathBuf>,
    /// Train with dropout and stochastic depth off.
    #[arg(long, requires = "train")]
    no_dropout: bool,
    /// Seed of dropout and stochastic depth.
    #[arg(long, requires = "train", default_value_t = 0)]
    seed: u64,
    /// Compute with the naive reference executor in f64 instead of a plan.
    #[arg(long)]
    reference: bool,
    /// Worker threads [default: all].
    #[arg(long)]
    threads: Option<usize>,
    /// Print every step of the plan.
    #[arg(long)]
    explain: bool,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let network = models::build(&args.model, args.num_classes)?;
    let input = read_npy(&args.input)?;
    let &[n, c, h, w] = input.shape() else {
        let found = format!("{:?}", input.shape());
        return Err(Error::mismatch(args.input.display().to_string(), "rank", "4 (n, c, h, w)", found));
    };
    let mut model = Model::blank_with_channels(c, &network)?;
    let report =
        model.load_with(&args.weights, &LoadOptions::strict().renamed(&foreign::rename), &Limits::default())?;
    eprintln!("{} tensors loaded, {} ignored, isa {}", report.loaded, report.ignored.len(), Isa::detect().name());

    if let Some(labels) = &args.labels {
        let noise = if args.no_dropout { Noise::Off } else { Noise::On };
        let options = TrainOptions::new().seed(args.seed).noise(noise).input_gradient();
        let options = args.threads.map_or(options.clone(), |threads| options.threads(threads));
        let targets = step::classes(&read_npy(labels)?)?;
        // A checkpoint may lack the auxiliary heads.
        let names = report.ignored.into_iter().map(|(name, _)| name);
        let lacks = names.filter(|name| model.params().get(name).is_ok()).collect();
        let step = step::Step { model: &model, images: &input, targets, options, lacks };
        let out = if args.reference { step.reference() } else { step.planned() };
        return out?.write_safetensors(&args.out, Dtype::F32);
    }
    let mut out = StateDict::new("parity");
    if args.reference {
        let value = model.reference::<f64>(&input)?;
        let data: Vec<f32> = value.data.iter().map(|&v| v as f32).collect();
        out.insert("output", Tensor::from_slice(&value.shape[..2], &data)?)?;
    } else {
        let mut options = args.threads.map_or(PlanOptions::new(), |t| PlanOptions::new().threads(t));
        options = match args.taps.as_slice() {
            [all] if all == "*" => options.all_scopes(),
            names => names.iter().fold(options, PlanOptions::feature),
        };
        let mut plan = model.plan_with([n, c, h, w], &options)?;
        if args.explain {
            print!("{}", plan.explain());
        }
        for (i, (name, value)) in plan.run(&input)?.iter().enumerate() {
            let name = if i == 0 { "output".to_owned() } else { format!("features.{name}") };
            out.insert(name, value.clone())?;
        }
    }
    out.write_safetensors(&args.out, Dtype::F32)
}
