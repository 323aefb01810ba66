//! Names what is in a photograph.
//!
//! ```text
//! cargo run --release --example classify
//! cargo run --release --example classify -- --model resnet50 --weights resnet50-0676ba61.pth photo.jpg
//! ```
//!
//! Without arguments: BVLC's GoogLeNet, the network of the paper, on the photographs in `examples/data/photos`.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/foreign.rs"]
mod foreign;

use clap::Parser;
use convzoo::vision::{Image, Preset, labels};
use convzoo::weights::{Limits, LoadOptions};
use convzoo::{Error, Model, PlanOptions, Result, models};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Names what is in a photograph.
#[derive(Parser)]
struct Args {
    /// Model of the registry (`zoo` lists them).
    #[arg(long, requires = "weights")]
    model: Option<String>,
    /// Weight file: .safetensors, .pth or .npz.
    #[arg(long, requires = "model")]
    weights: Option<PathBuf>,
    /// Class names, one per line [default: ImageNet's or CIFAR-10's].
    #[arg(long)]
    labels: Option<PathBuf>,
    /// How many classes to print.
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Print one JSON object per image.
    #[arg(long)]
    json: bool,
    /// Worker threads [default: all].
    #[arg(long)]
    threads: Option<usize>,
    /// Photographs, PNG or JPEG [default: the bundled ones].
    images: Vec<PathBuf>,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let name = args.model.as_deref().unwrap_or("googlenet_paper");
    let weights = args.weights.clone().unwrap_or_else(|| data.join("googlenet_bvlc.safetensors"));
    let images = if args.images.is_empty() {
        ["chelsea.png", "coffee.png", "camera.png", "rocket.jpg"].map(|photo| data.join("photos").join(photo)).to_vec()
    } else {
        args.images.clone()
    };

    let started = Instant::now();
    let classes = classes_in(&weights, name)?;
    let mut model = Model::blank(&models::build(name, Some(classes))?)?;
    model.load_with(&weights, &LoadOptions::strict().renamed(&foreign::rename), &Limits::default())?;
    let preset = Preset::for_model(name).ok_or_else(|| Error::invalid(name, "no preprocessing is known for it"))?;
    let labels = labels_for(args, classes)?;
    if !args.json {
        eprintln!("{name} from {} in {:.0} ms", weights.display(), started.elapsed().as_secs_f64() * 1e3);
    }

    let mut plan = None;
    for path in &images {
        let input = preset.apply(&Image::open(path)?)?;
        let &[n, c, h, w] = input.shape() else { return Err(Error::invalid(name, "the preset makes no image")) };
        let plan = match &mut plan {
            Some(plan) => plan,
            slot => {
                let options = args.threads.map_or(PlanOptions::new(), |t| PlanOptions::new().threads(t));
                slot.insert(model.plan_with([n, c, h, w], &options)?)
            }
        };
        let started = Instant::now();
        let logits = plan.run(&input)?.logits().as_slice();
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let probabilities = labels::softmax(logits);
        print(path, &labels::top_k(&probabilities, args.top), &labels, milliseconds, args.json);
    }
    Ok(())
}

/// The number of classes the file's classifier was trained for, or the model's own.
fn classes_in(weights: &Path, name: &str) -> Result<usize> {
    let default = models::get(name)?.classes;
    let state = convzoo::weights::StateDict::read(weights)?;
    let last = state.iter().filter(|(n, t)| n.ends_with(".weight") && t.shape().len() >= 2).last();
    // DenseNet, VGG, … all end in the classifier; only GoogLeNet's auxiliary heads come close, and they do not end it.
    Ok(last.map_or(default, |(_, tensor)| tensor.shape()[0]))
}

fn labels_for(args: &Args, classes: usize) -> Result<Vec<String>> {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    match (&args.labels, classes) {
        (Some(file), _) => {
            let names = labels::read(file)?;
            if names.len() != classes {
                return Err(Error::mismatch(file.display().to_string(), "labels", classes, names.len()));
            }
            Ok(names)
        }
        (None, 1000) => Ok(owned(labels::imagenet())),
        (None, 10) => Ok(owned(labels::cifar10())),
        (None, _) => Ok((0..classes).map(|i| format!("class {i}")).collect()),
    }
}

fn print(path: &Path, top: &[(usize, f32)], labels: &[String], milliseconds: f64, json: bool) {
    if json {
        let top: Vec<_> = top
            .iter()
            .map(|&(class, p)| serde_json::json!({ "class": class, "label": labels[class], "probability": p }))
            .collect();
        println!("{}", serde_json::json!({ "image": path, "milliseconds": milliseconds, "top": top }));
        return;
    }
    println!("\n{}  ({milliseconds:.1} ms)", path.file_name().unwrap_or(path.as_os_str()).display());
    for &(class, probability) in top {
        println!("  {:5.1} %  {}", 100.0 * probability, labels[class]);
    }
}
