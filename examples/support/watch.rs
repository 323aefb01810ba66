//! Watching training: a progress bar, a line per epoch, and a clean end on Ctrl-C.
#![allow(dead_code, reason = "every example uses its part of this file")]

use convzoo::train::{Batches, Epoch, Observer, Step, Trainer};
use convzoo::vision::Loader;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bar for the batches of an epoch, with the rate and the time left.
pub(crate) struct Watch {
    label: String,
    batches: u64,
    epochs: u64,
    images: u64,
    classes: usize,
    bar: Option<ProgressBar>,
    stop: Arc<AtomicBool>,
    losses: Vec<(u64, f64)>,
}

impl Watch {
    /// For `epochs` epochs of what `train` loads.
    pub(crate) fn new(label: impl Into<String>, train: &Loader, epochs: u64) -> Self {
        let (batches, images, classes) = (train.batches(), train.options().batch as u64, train.set().classes().len());
        let (label, stop) = (label.into(), interrupted());
        Watch { label, batches, epochs, images, classes, bar: None, stop, losses: Vec::new() }
    }

    /// What training came to, for a sentence that says where it is.
    pub(crate) fn ending(&self, finished: bool) -> &'static str {
        match (finished, self.losses.is_empty()) {
            (false, _) => "a checkpoint to go on from",
            (true, false) => "everything",
            (true, true) => "nothing was left to do: everything",
        }
    }

    /// Step and loss of every step seen.
    pub(crate) fn losses(&self) -> &[(u64, f64)] {
        &self.losses
    }

    fn bar(&mut self, trainer: &Trainer) -> &ProgressBar {
        self.bar.get_or_insert_with(|| {
            let template = "{prefix} {wide_bar} {pos}/{len} · {msg} · {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(self.batches).with_style(style);
            let epoch = trainer.progress().epoch + 1;
            bar.set_prefix(format!("{} {epoch}/{}", self.label, self.epochs));
            // A resumed epoch begins where it was left; what came before does not count for the rate.
            bar.with_position(trainer.progress().batch.saturating_sub(1))
        })
    }
}

impl Observer for Watch {
    fn step(&mut self, trainer: &Trainer, step: &Step) -> ControlFlow<()> {
        self.losses.push((step.step, step.loss));
        let images = self.images;
        let bar = self.bar(trainer);
        bar.set_position(trainer.progress().batch);
        let rate = bar.per_sec() * images as f64;
        bar.set_message(format!("{rate:.0} images/s · loss {:.4} · rate {:.2e}", trainer.metrics().loss(), step.rate));
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn epoch(&mut self, _: &Trainer, epoch: &Epoch) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let Epoch { epoch: number, train, test, seconds, best, .. } = epoch;
        let aux: String = train.losses().skip(1).map(|(name, loss)| format!(" {name} {loss:.3}")).collect();
        // Of five classes or fewer, the right one is always among the first five.
        let top5 = if self.classes > 5 { format!(" top-5 {:6.2} %", test.top5()) } else { String::new() };
        println!(
            "{} {number:3}/{}  train loss {:.4}{aux} top-1 {:6.2} %   test loss {:.4} top-1 {:6.2} %{top5}  {seconds:.1} s{}",
            self.label,
            self.epochs,
            train.loss(),
            train.top1(),
            test.loss(),
            test.top1(),
            if *best { "  best" } else { "" }
        );
    }
}

/// A flag that Ctrl-C sets. A second Ctrl-C ends the program at once.
fn interrupted() -> Arc<AtomicBool> {
    static FLAG: std::sync::OnceLock<Arc<AtomicBool>> = std::sync::OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = flag.clone();
        let handler = move || {
            if seen.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\nstopping after this step; once more to stop at once");
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            eprintln!("Ctrl-C will end the program at once: {error}");
        }
        flag
    });
    flag.clone()
}
