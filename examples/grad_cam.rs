//! Where a network looks: a heat map over the photograph for its answer. Selvaraju et al. 2016.
//!
//! ```text
//! cargo run --release --example grad_cam
//! cargo run --release --example grad_cam -- --class 967 --out . photo.jpg
//! ```
//!
//! With the GoogLeNet of the paper and BVLC's ImageNet weights, or with `--model` and `--weights` of one's own.

#[macro_use]
#[path = "support/output.rs"]
mod output;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/photo.rs"]
mod photo;

use clap::Parser;
use convzoo::inspect::{GradCam, grad_cam};
use convzoo::vision::{Image, Interpolation, labels, softmax};
use convzoo::weights::{Limits, LoadOptions};
use convzoo::{Error, Model, Result, models};
use std::path::{Path, PathBuf};

/// Heat maps of what speaks for a class.
#[derive(Parser)]
struct Args {
    /// Model of the registry.
    #[arg(long, requires = "weights")]
    model: Option<String>,
    /// Its weights.
    #[arg(long, requires = "model")]
    weights: Option<PathBuf>,
    /// Feature or layer whose map is explained [default: the last feature that is a map].
    #[arg(long)]
    feature: Option<String>,
    /// Class to explain [default: the network's answer].
    #[arg(long)]
    class: Option<usize>,
    /// Folder for the heat maps.
    #[arg(long, default_value = "grad_cam")]
    out: PathBuf,
    /// Photographs [default: the bundled ones].
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
    let mut images = args.images.clone();
    if images.is_empty() {
        images =
            ["chelsea.png", "coffee.png", "camera.png", "rocket.jpg"].map(|p| data.join("photos").join(p)).to_vec();
    }
    let mut model = Model::blank(&models::build(name, None)?)?;
    model.load_with(weights, &LoadOptions::strict().renamed(&foreign::rename), &Limits::default())?;
    let preset = photo::preset(name)?;
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io(&args.out, e))?;
    for path in &images {
        let photo = Image::open(path)?;
        let cam = grad_cam(model.graph(), model.params(), &preset.apply(&photo)?, args.feature.as_deref(), args.class)?;
        let heat = overlay(&preset.prepare(&photo)?, &cam)?;
        let stem = path.file_stem().map_or("image".into(), |stem| stem.to_string_lossy());
        let file = args.out.join(format!("{stem}.png"));
        heat.write_png(&file)?;
        let label = match cam.logits.len() {
            1000 => labels::imagenet()[cam.class].to_owned(),
            _ => format!("class {}", cam.class),
        };
        let share = 100.0 * softmax(&cam.logits)[cam.class];
        println!("{}: {label} ({share:.1} %): {}", path.display(), file.display());
    }
    Ok(())
}

/// The map stretched over what the network saw, from blue (nothing) over green to red, half transparent.
fn overlay(seen: &Image, cam: &GradCam) -> Result<Image> {
    let &[h, w] = cam.map.shape() else { return Err(Error::invalid("map", "is not [h, w]")) };
    let grey = cam.map.as_slice().iter().flat_map(|&v| [(255.0 * v) as u8; 3]).collect();
    let heat = Image::from_rgb(w, h, grey)?.resize(seen.size(), Interpolation::Bicubic)?;
    let pairs = seen.pixels().as_chunks::<3>().0.iter().zip(heat.pixels().as_chunks::<3>().0);
    let mixed = pairs.flat_map(|(pixel, &[heat, ..])| {
        let t = f32::from(heat) / 255.0;
        let ramp = |peak: f32| (1.5 - (4.0 * (t - peak)).abs()).clamp(0.0, 1.0) * 255.0;
        let color = [ramp(0.75), ramp(0.5), ramp(0.25)];
        let share = 0.25 + 0.4 * t;
        [0, 1, 2].map(|c| ((1.0 - share) * f32::from(pixel[c]) + share * color[c]) as u8)
    });
    Image::from_rgb(seen.width(), seen.height(), mixed.collect())
}
