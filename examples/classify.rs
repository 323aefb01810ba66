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
#[path = "support/photo.rs"]
mod photo;

use clap::Parser;
use convzoo::graph::Graph;
use convzoo::vision::{Image, labels};
use convzoo::weights::{Limits, LoadOptions, StateDict};
use convzoo::{Error, Model, Plan, PlanOptions, Result, models};
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
    /// Class names, one per line [default: labels.txt beside the weights, as `train` and `finetune` write it; else
    /// ImageNet's or CIFAR-10's].
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
    let preset = photo::preset(name)?;
    let labels = labels_for(args, &weights, classes)?;
    if !args.json {
        eprintln!("{name} from {} in {:.0} ms", weights.display(), started.elapsed().as_secs_f64() * 1e3);
    }

    let options = args.threads.map_or(PlanOptions::new(), |t| PlanOptions::new().threads(t));
    let mut planned: Option<([usize; 4], Plan)> = None;
    for path in &images {
        let named = |error: Error| Error::invalid(path.display().to_string(), error.to_string());
        let input = preset.apply(&Image::open(path)?).map_err(named)?;
        let &[n, c, h, w] = input.shape() else { return Err(Error::invalid(name, "the preset makes no image")) };
        let plan = match &mut planned {
            Some((shape, plan)) if *shape == [n, c, h, w] => plan,
            slot => &mut slot.insert(([n, c, h, w], model.plan_with([n, c, h, w], &options).map_err(named)?)).1,
        };
        let started = Instant::now();
        let logits = plan.run(&input).map_err(named)?.logits().as_slice();
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let probabilities = labels::softmax(logits);
        print(path, &labels::top_k(&probabilities, args.top), &labels, milliseconds, args.json);
    }
    Ok(())
}

/// The number of classes the file's classifier was trained for, or the model's own.
fn classes_in(weights: &Path, name: &str) -> Result<usize> {
    let default = models::get(name)?.classes;
    let drawn = |classes| Graph::draw(3, &models::build(name, Some(classes))?);
    let (graph, wider) = (drawn(default)?, drawn(default + 1)?);
    // The classifier is what depends on the number of classes; auxiliary ones may be missing from the file.
    let mut pairs = graph.params().iter().zip(wider.params());
    let classifier = pairs.find(|(def, wider)| !def.auxiliary && def.shape != wider.shape);
    let mut state = StateDict::read(weights)?;
    state.rename(foreign::rename)?;
    let found = classifier.and_then(|(def, _)| state.get(&def.name)?.shape().first().copied());
    Ok(found.unwrap_or(default))
}

fn labels_for(args: &Args, weights: &Path, classes: usize) -> Result<Vec<String>> {
    if let Some(file) = &args.labels {
        let names = labels::read(file)?;
        if names.len() != classes {
            return Err(Error::mismatch(file.display().to_string(), "labels", classes, names.len()));
        }
        return Ok(names);
    }
    let beside = weights.with_file_name("labels.txt");
    if beside.is_file() {
        let names = labels::read(&beside)?;
        if names.len() == classes {
            return Ok(names);
        }
        eprintln!(
            "{} names {} classes and {name} has {classes}: not used",
            beside.display(),
            names.len(),
            name = weights.display()
        );
    }
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    Ok(match classes {
        1000 => owned(labels::imagenet()),
        10 => owned(labels::cifar10()),
        _ => (0..classes).map(|i| format!("class {i}")).collect(),
    })
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
