//! The loop around a trainer: epochs, evaluation, checkpoints, log.
//!
//! It is short on purpose. Whoever wants another one writes it with the same calls.

use super::{Batch, Batches, Log, Metrics, Step, Trainer};
use crate::error::{Error, Result};
use crate::graph::{Graph, Params};
use crate::weights::{Dtype, StateDict};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// What to train on, for how long, and where to keep it. See [`fit`].
///
/// ```
/// use convzoo::train::{Batch, Fit};
/// use std::path::Path;
///
/// let (train, test): (Vec<Batch>, Vec<Batch>) = (vec![], vec![]);
/// let run = Fit { accumulate: 4, folder: Some(Path::new("runs/a")), ..Fit::new(&train, &test, 90) };
/// assert_eq!(run.last().as_deref(), Some(Path::new("runs/a/last.checkpoint")));
/// ```
#[derive(Clone, Copy)]
pub struct Fit<'a> {
    /// The batches to learn from.
    pub train: &'a dyn Batches,
    /// The batches to be judged by, after every epoch.
    pub test: &'a dyn Batches,
    /// Epochs in all, those before a resume included.
    pub epochs: u64,
    /// Batches whose gradients make one step.
    pub accumulate: u64,
    /// Where checkpoints, weights and the log go: `last.checkpoint` and `best.checkpoint`, `best.safetensors` (weights
    /// alone, for `Model::load`), `log.jsonl`. Without it nothing is written.
    pub folder: Option<&'a Path>,
}

impl<'a> Fit<'a> {
    /// For `epochs` epochs, writing nothing.
    pub fn new(train: &'a dyn Batches, test: &'a dyn Batches, epochs: u64) -> Self {
        Fit { train, test, epochs, accumulate: 1, folder: None }
    }

    /// The checkpoint that training is resumed from.
    pub fn last(&self) -> Option<PathBuf> {
        self.folder.map(|folder| folder.join("last.checkpoint"))
    }
}

/// What an epoch came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u64,
    /// Steps so far.
    pub step: u64,
    /// Learning rate of its last step.
    pub rate: f64,
    /// While learning: weights moving, augmented images, batch statistics.
    pub train: Metrics,
    /// In evaluation, after it.
    pub test: Metrics,
    /// Whether no epoch before was better.
    pub best: bool,
    /// Its wall time.
    pub seconds: f64,
}

/// Somebody who watches, and may call a halt.
pub trait Observer {
    /// After every step. `Break` saves a checkpoint and ends training.
    fn step(&mut self, trainer: &Trainer, step: &Step) -> ControlFlow<()> {
        let _ = (trainer, step);
        ControlFlow::Continue(())
    }

    /// After every epoch, its checkpoint already written.
    fn epoch(&mut self, trainer: &Trainer, epoch: &Epoch) {
        let _ = (trainer, epoch);
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Trains until `fit.epochs` are completed, or the observer calls a halt; `false` in that case.
///
/// With a folder, training goes on from `last.checkpoint` if that is there.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::train::{Batch, Fit, Recipe, Schedule, Sgd, Silent, Targets, Trainer, fit};
/// use convzoo::{Model, Tensor, models};
///
/// let (graph, params) = Model::new(&models::build("resnet20", Some(2))?, &mut Stream::new(0).rng())?.into_parts();
/// let images = Tensor::from_fn(&[4, 3, 8, 8], |i| (i / 192 % 2) as f32);
/// let batches = vec![Batch { images, targets: Targets::Labels(vec![0, 1, 0, 1]) }];
/// let mut trainer = Trainer::new(&graph, params, Recipe::new(Sgd::default(), Schedule::cosine(0.1, 2)))?;
/// assert!(fit(&mut trainer, &Fit::new(&batches, &batches, 2), &mut Silent)?);
/// assert_eq!((trainer.progress().epoch, trainer.progress().step), (2, 2));
/// # Ok::<(), convzoo::Error>(())
/// ```
///
/// # Errors
/// No batch to learn from or to be judged by; those of the batches, of steps, and of writing;
/// [`Error::Diverged`] if the test loss is not finite. What was saved before stays.
pub fn fit(trainer: &mut Trainer, fit: &Fit, observer: &mut dyn Observer) -> Result<bool> {
    if fit.train.batches() == 0 || fit.accumulate == 0 {
        return Err(Error::invalid("training", "there must be at least one batch in an epoch, and in a step"));
    }
    if fit.test.batches() == 0 {
        return Err(nothing_to_judge_by());
    }
    let mut book = Book::open(trainer, fit)?;
    while trainer.progress().epoch < fit.epochs {
        let started = std::time::Instant::now();
        let progress = trainer.progress();
        let mut batches = fit.train.epoch(progress.epoch, progress.batch).peekable();
        while batches.peek().is_some() {
            let step = one_step(trainer, &mut batches, fit.accumulate)?;
            if observer.step(trainer, &step).is_break() {
                book.save_last(trainer)?;
                return Ok(false);
            }
        }
        drop(batches);
        let train = trainer.end_epoch();
        let test = trainer.evaluate(fit.test.epoch(0, 0))?;
        if test.images() == 0 {
            return Err(nothing_to_judge_by());
        }
        if !test.loss().is_finite() {
            return Err(trainer.diverged("test loss", test.loss()));
        }
        let (number, step) = (trainer.progress().epoch, trainer.progress().step);
        let rate = trainer.schedule().rate(step.saturating_sub(1));
        let best = book.best.is_none_or(|best| test.top1() > best);
        let epoch = Epoch { epoch: number, step, rate, train, test, best, seconds: started.elapsed().as_secs_f64() };
        book.enter(trainer, &epoch)?;
        observer.epoch(trainer, &epoch);
    }
    Ok(true)
}

fn nothing_to_judge_by() -> Error {
    Error::invalid("training", "there must be at least one batch to be judged by after an epoch")
}

fn one_step(trainer: &mut Trainer, batches: &mut dyn Iterator<Item = Result<Batch>>, accumulate: u64) -> Result<Step> {
    if accumulate == 1
        && let Some(batch) = batches.next()
    {
        return trainer.step(&batch?);
    }
    for batch in batches.take(accumulate as usize) {
        trainer.accumulate(&batch?)?;
    }
    trainer.update()
}

/// What is written as training goes.
struct Book<'a> {
    folder: Option<&'a Path>,
    log: Option<Log>,
    /// The best top-1 so far.
    best: Option<f64>,
}

impl<'a> Book<'a> {
    fn open(trainer: &mut Trainer, fit: &Fit<'a>) -> Result<Self> {
        let Some(folder) = fit.folder else { return Ok(Book { folder: None, log: None, best: None }) };
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let mut best = None;
        if let Some(last) = fit.last().filter(|last| last.exists()) {
            let note = trainer.resume(last)?;
            best = note.parse().ok().map(f64::from_bits);
        }
        let log = Log::resume(folder.join("log.jsonl"), trainer.progress().step)?;
        Ok(Book { folder: Some(folder), log: Some(log), best })
    }

    /// The best result in the note is written as its bits.
    fn save(&self, trainer: &mut Trainer, name: &str) -> Result<()> {
        let note = self.best.map_or(String::new(), |best| best.to_bits().to_string());
        self.folder.map_or(Ok(()), |folder| trainer.save(folder.join(name), &note))
    }

    fn save_last(&self, trainer: &mut Trainer) -> Result<()> {
        self.save(trainer, "last.checkpoint")
    }

    fn enter(&mut self, trainer: &mut Trainer, epoch: &Epoch) -> Result<()> {
        if epoch.best {
            self.best = Some(epoch.test.top1());
            self.save(trainer, "best.checkpoint")?;
            if let Some(folder) = self.folder {
                write_weights(trainer.graph(), trainer.best_params(), &folder.join("best.safetensors"))?;
            }
        }
        // The log first: if writing the checkpoint fails, resuming drops the line again.
        if let Some(log) = &mut self.log {
            log.write(line(epoch))?;
        }
        self.save_last(trainer)
    }
}

fn write_weights(graph: &Graph, params: &Params, path: &Path) -> Result<()> {
    debug_assert_eq!(graph.params(), params.defs());
    StateDict::from_params(params, "model")?.write_safetensors(path, Dtype::F32)
}

fn line(epoch: &Epoch) -> Map<String, Value> {
    let metrics = |metrics: &Metrics| {
        let heads: Map<String, Value> = metrics.losses().map(|(name, loss)| (name.to_owned(), json!(loss))).collect();
        json!({ "loss": metrics.loss(), "heads": heads, "top1": metrics.top1(), "top5": metrics.top5() })
    };
    let Epoch { epoch: number, step, rate, train, test, best, seconds } = epoch;
    let line = json!({
        "epoch": number, "step": step, "rate": rate, "train": metrics(train), "test": metrics(test), "best": best,
        "seconds": seconds
    });
    match line {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
