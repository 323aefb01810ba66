//! The table of all networks, one network layer by layer, or the closing chart.
//!
//! ```text
//! cargo run --release --example zoo
//! cargo run --release --example zoo -- --model googlenet --size 224
//! cargo run --release --example zoo -- --svg zoo.svg
//! ```

#[macro_use]
#[path = "support/output.rs"]
mod output;

use clap::Parser;
use convzoo::graph::Graph;
use convzoo::inspect::{Summary, scatter};
use convzoo::models::{self, ModelInfo};
use convzoo::{Model, Result};
use std::path::PathBuf;

/// The networks of the zoo.
#[derive(Parser)]
struct Args {
    /// Print this network layer by layer.
    #[arg(long)]
    model: Option<String>,
    /// Side of the square image of the summary [default: the model's].
    #[arg(long)]
    size: Option<usize>,
    /// Images in the summary's batch.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Print the plan that evaluation would run instead of the summary.
    #[arg(long, requires = "model")]
    explain: bool,
    /// Draw accuracy against compute, circles as large as the model, into this file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.svg {
        let points: Vec<_> = models::list().filter_map(point).collect();
        scatter::write_svg(path, &points)?;
        println!("{} networks drawn into {}", points.len(), path.display());
        return Ok(());
    }
    let Some(name) = &args.model else {
        table();
        return Ok(());
    };
    let size = args.size.unwrap_or(models::get(name)?.input);
    let shape = [args.batch, 3, size, size];
    let network = models::build(name, None)?;
    if args.explain {
        print!("{}", Model::blank(&network)?.plan(shape)?.explain());
    } else {
        println!("{}", Summary::of(&Graph::draw(3, &network)?, shape)?);
    }
    Ok(())
}

fn table() {
    let percent = |value: Option<f32>| value.map_or("–".to_owned(), |v| format!("{v:.2}"));
    println!("{:26} {:>5} {:>13} {:>9} {:>6} {:>6}  source", "model", "input", "parameters", "GMACs", "top-1", "top-5");
    for info in models::list() {
        let ModelInfo { name, input, params, source, .. } = info;
        let (top1, top5) = (percent(info.top1), percent(info.top5));
        println!("{name:26} {input:>5} {params:>13} {:>9.3} {top1:>6} {top5:>6}  {source}", info.gmacs());
    }
}

/// ImageNet networks whose accuracy is known.
fn point(info: &ModelInfo) -> Option<scatter::Point> {
    let top1 = info.top1.filter(|_| !info.is_cifar())?;
    Some(scatter::Point {
        name: info.name.to_owned(),
        family: info.family.to_owned(),
        gmacs: info.gmacs(),
        params: info.params,
        top1: f64::from(top1),
    })
}
