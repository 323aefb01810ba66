//! Training takes the memory it says it will. A test binary of its own: what else runs would be counted too.
#![cfg(target_os = "linux")]

use convzoo::exec::{Recompute, TrainOptions};
use convzoo::random::Stream;
use convzoo::train::{Batch, Recipe, Schedule, Sgd, Targets, Trainer};
use convzoo::{Model, Result, Tensor, models};

/// Resident memory in bytes, as Linux counts it.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// In a process of its own: predicts and measures what training the network of this name grows by.
const NETWORK: &str = "CONVZOO_TEST_NETWORK";

fn measure(name: &str) -> Result<()> {
    let (graph, params) = Model::new(&models::build(name, None)?, &mut Stream::new(0).rng())?.into_parts();
    let images = Tensor::from_fn(&[8, 3, 192, 192], |i| (i * 37 % 101) as f32 / 50.0 - 1.0);
    let batch = Batch { images, targets: Targets::Labels((0..8).collect()) };
    let before = resident();
    let training =
        TrainOptions::new().recompute(if name == "resnet50" { Recompute::Thorough } else { Recompute::Cheap });
    let recipe = Recipe { training, ..Recipe::new(Sgd::default(), Schedule::cosine(0.01, 9)) };
    let mut trainer = Trainer::new(&graph, params, recipe)?;
    let predicted = trainer.predicted_bytes([8, 3, 192, 192])?;
    trainer.step(&batch)?;
    println!("\nmeasured {predicted} {}", resident() - before);
    Ok(())
}

#[test]
fn a_trainer_grows_by_what_it_predicts_within_five_percent() -> Result<()> {
    if let Ok(name) = std::env::var(NETWORK) {
        return measure(&name);
    }
    for name in ["densenet121", "efficientnet_b0", "resnet50"] {
        // What another network left behind would be used again and not counted.
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let out = child.arg("--nocapture").env(NETWORK, name).output().unwrap();
        let out = String::from_utf8(out.stdout).unwrap();
        let line = out.lines().find_map(|line| line.strip_prefix("measured "));
        let numbers = line.unwrap_or_else(|| panic!("{name}: {out}")).split(' ').map(|n| n.parse::<f64>().unwrap());
        let [predicted, grown] = numbers.collect::<Vec<_>>()[..] else { panic!("{name}: {out}") };
        println!("{name}: {:.1} MiB predicted, {:.1} grown", predicted / 1048576.0, grown / 1048576.0);
        assert!((predicted / grown - 1.0).abs() < 0.05, "{name}: {predicted} bytes predicted, {grown} grown");
    }
    Ok(())
}
