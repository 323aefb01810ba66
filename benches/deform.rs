//! A deformable convolution (version 2, 3×3, one offset group) by itself, forward and both ways.
//!
//! `cargo bench --bench deform [-- --channels C --size S --batch N --threads T] [--worker]`. Times are those of the layer's own
//! steps in a plan, packing of weights that learn included, the convolution that makes the offsets not. Output and gradients are
//! held to the reference executor before any time is taken. `--worker` speaks the protocol of `benches/peers/deform.py`.

use clap::Parser;
use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::exec::{StepTime, TrainOptions, TrainPlan};
use convzoo::graph::{Node, layer_fn};
use convzoo::layers::{Conv2d, DeformConv2d};
use convzoo::{Error, Model, Plan, PlanOptions, Result, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::io::BufRead;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 64)]
    channels: usize,
    #[arg(long, default_value_t = 56)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Runs of each.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// For every line `run K` on the standard input, K times forward and K times both ways, in ms.
    #[arg(long)]
    worker: bool,
    /// As `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The layer that is timed.
const LAYER: &str = "deform";

/// Two plans of a deformable convolution behind a 1×1 convolution, so that its input has a gradient too.
struct Layer {
    model: Model,
    plan: Plan,
    training: TrainPlan,
    images: Tensor,
    dy: Tensor,
}

impl Layer {
    fn new(args: &Args) -> Result<Self> {
        let (channels, shape) = (args.channels, [args.batch, args.channels, args.size, args.size]);
        let network = layer_fn(move |x: Node<'_>| {
            let x = x.layer("stem", Conv2d::k1(channels));
            x.layer(LAYER, DeformConv2d::v2(3, channels))
        });
        let mut rng = StdRng::seed_from_u64(0);
        let mut model = Model::with_channels(channels, &network, &mut rng)?;
        // Offsets start at zero: these reach two pixels and more.
        for (def, values) in model.params_mut().iter_mut().filter(|(def, _)| def.name.contains("conv_offset")) {
            let reach = if def.name.ends_with("bias") { 2.0 } else { 0.1 };
            values.iter_mut().for_each(|v| *v = reach * (2.0 * rng.random::<f32>() - 1.0));
        }
        let plan = model.plan_with(shape, &PlanOptions::new().threads(args.threads))?;
        let options = TrainOptions::new().threads(args.threads);
        let training = TrainPlan::new(model.graph(), model.params(), shape, &options)?;
        let mut noise = || Tensor::from_fn(&shape, |_| 2.0 * rng.random::<f32>() - 1.0);
        Ok(Layer { images: noise(), dy: noise(), model, plan, training })
    }

    /// Refuses to time what is wrong.
    fn check(&mut self) -> Result<f64> {
        let wanted = self.model.reference::<f64>(&self.images)?;
        let mut worst = distance(self.plan.run(&self.images)?.logits().as_slice(), &wanted.data);
        let (graph, params, options) = (self.model.graph().clone(), self.model.params().clone(), TrainOptions::new());
        let of = TrainStep { graph: &graph, params: &params, options: &options, step: 0 };
        let shape = self.training.input_shape();
        let seed = || Value { shape, data: self.dy.as_slice().iter().map(|&v| f64::from(v)).collect() };
        let wanted = train_step::<f64>(&of, &self.images, |_| Ok([("logits".to_owned(), seed())].into()))?;
        let wanted = wanted.rounded(params.defs());
        self.training.forward(self.model.params_mut(), &self.images, 0)?;
        for ((_, found), (_, wanted)) in self.training.backward(&[("logits", &self.dy)])?.iter().zip(wanted.iter()) {
            let wanted: Vec<f64> = wanted.as_slice().iter().map(|&v| f64::from(v)).collect();
            worst = worst.max(distance(found.as_slice(), &wanted));
        }
        if worst.is_nan() || worst > 2e-5 {
            return Err(Error::invalid(LAYER, format!("off the reference by {worst:e}: no time is reported")));
        }
        Ok(worst)
    }

    /// The steps of the layer forward and of both ways.
    fn steps(&mut self) -> Result<[Vec<StepTime>; 2]> {
        let forward = self.plan.profile(&self.images)?;
        let both = self.training.profile(self.model.params_mut(), &self.images, 0)?;
        Ok([forward, both].map(|steps| steps.into_iter().filter(|step| step.path == LAYER).collect()))
    }
}

/// Milliseconds of all.
fn sum(steps: &[StepTime]) -> f64 {
    1e3 * steps.iter().map(|step| step.seconds).sum::<f64>()
}

/// The norm of the difference over that of `wanted`.
fn distance(found: &[f32], wanted: &[f64]) -> f64 {
    let norm = |of: &mut dyn Iterator<Item = f64>| of.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(wanted).map(|(&f, w)| f64::from(f) - w));
    difference / norm(&mut wanted.iter().copied())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut layer = Layer::new(&args)?;
    let error = layer.check()?;
    if args.worker {
        println!("ready 0 {error:e}");
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            let Some(count) = line.strip_prefix("run ").and_then(|count| count.parse().ok()) else { continue };
            let times = (0..count).map(|_| layer.steps()).collect::<Result<Vec<_>>>()?;
            let times = times.iter().flatten().map(|steps| format!("{:.4}", sum(steps)));
            println!("{}", times.collect::<Vec<_>>().join(" "));
        }
        return Ok(());
    }
    println!("{} channels, {} images of {2}×{2}, {3} threads; ms", args.channels, args.batch, args.size, args.threads);
    let mut runs = (0..args.runs.max(1)).map(|_| layer.steps()).collect::<Result<Vec<_>>>()?;
    for (way, name) in ["forward", "both ways"].into_iter().enumerate() {
        runs.sort_by(|a, b| sum(&a[way]).total_cmp(&sum(&b[way])));
        let (least, median) = (&runs[0][way], sum(&runs[runs.len() / 2][way]));
        println!("{name}: least {:.3}, median {median:.3}; the fastest run's steps:", sum(least));
        least.iter().for_each(|step| println!("{:10.3}  {}", 1e3 * step.seconds, step.kernel));
    }
    Ok(())
}
