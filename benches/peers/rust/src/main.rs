//! One Rust engine as a process: `peers ENGINE FOLDER MODEL BATCH THREADS`, in the protocol of `../worker.py`.

#[cfg(feature = "burn")]
mod burn;
#[cfg(feature = "candle")]
mod candle;
#[cfg(feature = "rten")]
mod rten;
#[cfg(feature = "tract")]
mod tract;

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Runs the network once and returns the logits.
type Run = Box<dyn FnMut() -> Outcome<Vec<f32>>>;

/// What is to be run.
struct Case {
    folder: PathBuf,
    model: String,
    batch: usize,
    #[cfg_attr(not(feature = "tract"), allow(dead_code, reason = "the others read an environment variable"))]
    threads: usize,
    shape: Vec<usize>,
    input: Vec<f32>,
}

impl Case {
    fn onnx(&self) -> PathBuf {
        self.folder.join(format!("{}_b{}.onnx", self.model, self.batch))
    }
}

fn prepare(engine: &str, case: &Case) -> Outcome<Run> {
    match engine {
        #[cfg(feature = "burn")]
        "burn" => burn::prepare(case),
        #[cfg(feature = "candle")]
        "candle" => candle::prepare(case),
        #[cfg(feature = "rten")]
        "rten" => rten::prepare(case),
        #[cfg(feature = "tract")]
        "tract" => tract::prepare(case),
        _ => Err(format!("{engine} is not built in, so {} cannot run", case.onnx().display()).into()),
    }
}

/// Shape and values of a tensor of f32.
fn tensor(file: &safetensors::SafeTensors<'_>, name: &str) -> Outcome<(Vec<usize>, Vec<f32>)> {
    let view = file.tensor(name)?;
    let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    Ok((view.shape().to_vec(), values.collect()))
}

/// Greatest difference over greatest magnitude; NaN if anything is.
fn error(found: &[f32], wanted: &[f32]) -> f32 {
    let most =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m: f32, v| if v > m || v.is_nan() { v } else { m });
    most(&mut found.iter().zip(wanted).map(|(f, w)| (f - w).abs())) / most(&mut wanted.iter().map(|w| w.abs()))
}

/// The most memory this process ever held in MiB, as Linux counts it.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn main() -> Outcome<()> {
    let started = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [engine, folder, model, batch, threads] = &words[..] else {
        return Err("usage: peers ENGINE FOLDER MODEL BATCH THREADS".into());
    };
    let bytes = std::fs::read(Path::new(folder).join(format!("{model}_b{batch}.reference.safetensors")))?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let ((shape, input), wanted) = (tensor(&file, "input")?, tensor(&file, "logits")?.1);
    let (batch, threads) = (batch.parse()?, threads.parse()?);
    let mut run = prepare(engine, &Case { folder: folder.into(), model: model.clone(), batch, threads, shape, input })?;
    let found = run()?;
    if found.len() != wanted.len() {
        return Err(format!("{} logits, not {}", found.len(), wanted.len()).into());
    }
    let mut out = std::io::stdout();
    writeln!(out, "ready {:.1} {:.3e}", started.elapsed().as_secs_f64() * 1e3, error(&found, &wanted))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let count: usize = line.strip_prefix("run ").ok_or("unknown request")?.trim().parse()?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            std::hint::black_box(run()?);
            times.push(format!("{:.4}", began.elapsed().as_secs_f64() * 1e3));
        }
        writeln!(out, "{}", times.join(" "))?;
    }
    writeln!(out, "rss {:.1}", peak_mib())?;
    Ok(())
}
