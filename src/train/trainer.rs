//! `Trainer`: a network in training, one step at a time.

use super::gradients::shared_squares;
use super::optim::check_rate;
use super::{Batch, Clip, Ema, GradientSum, Loss, Metrics, Optimizer, Recipe, Schedule, evaluate};
use crate::error::{Error, Result};
use crate::exec::{PlanOptions, TrainOptions, TrainPlan};
use crate::graph::{Graph, LOGITS, Params, Role, check_same};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How far training is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Epochs completed.
    pub epoch: u64,
    /// Batches of the next epoch already seen.
    pub batch: u64,
    /// Updates of the weights, which is what schedules count.
    pub step: u64,
    /// Forward passes, which is what dropout counts: more than steps where gradients are accumulated.
    pub forwards: u64,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Number of this step, from 0.
    pub step: u64,
    /// The joined loss of the batch, or the mean of those accumulated.
    pub loss: f64,
    /// Learning rate.
    pub rate: f64,
    /// Euclidean norm of all gradients, before clipping.
    pub norm: f64,
}

/// What a plan was made for: the shape of a batch, and whether its gradients are handed on one by one.
type Key = ([usize; 4], bool);

/// An output that is trained and the weight of its loss.
#[derive(Debug)]
struct Head {
    name: String,
    weight: f64,
}

/// A network in training.
///
/// ```
/// use convzoo::train::{Batch, Recipe, Schedule, Sgd, Targets, Trainer};
/// use convzoo::{Model, Tensor, models};
/// use convzoo::random::Stream;
///
/// let (graph, params) = Model::new(&models::build("resnet20", Some(2))?, &mut Stream::new(0).rng())?.into_parts();
/// let mut trainer = Trainer::new(&graph, params, Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9)))?;
/// let images = Tensor::from_fn(&[4, 3, 8, 8], |i| (i / 192 % 2) as f32);
/// let batch = Batch { images, targets: Targets::Labels(vec![0, 1, 0, 1]) };
/// let losses: Result<Vec<f64>, _> = (0..5).map(|_| Ok(trainer.step(&batch)?.loss)).collect();
/// let losses = losses?;
/// assert!(losses[4] < losses[0]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug)]
pub struct Trainer {
    pub(super) graph: Graph,
    pub(super) params: Params,
    pub(super) optimizer: Optimizer,
    pub(super) ema: Option<Ema>,
    pub(super) progress: Progress,
    pub(super) metrics: Metrics,
    /// The last checkpoint written or read, to name when training breaks down.
    pub(super) checkpoint: Option<PathBuf>,
    /// The recipe in words.
    description: String,
    loss: Box<dyn Loss>,
    schedule: Schedule,
    clip: Option<Clip>,
    training: TrainOptions,
    evaluation: PlanOptions,
    heads: Vec<Head>,
    gradients: GradientSum,
    /// Sum of the losses behind `gradients`, each times its images.
    pending_loss: f64,
    /// The running statistics before the step in progress, in the drawing's order.
    statistics: Vec<f32>,
    /// One plan for the batches, and one for a last batch of another size.
    plans: Vec<(Key, TrainPlan)>,
    diverged: bool,
}

impl Trainer {
    /// Begins training the network `graph` from `params`.
    ///
    /// # Errors
    /// Parameters of another graph; a recipe that cannot work.
    pub fn new(graph: &Graph, params: Params, recipe: Recipe) -> Result<Self> {
        check_same("trainer", graph.params(), params.defs())?;
        recipe.check()?;
        let description = recipe.describe();
        let Recipe { loss, rule, schedule, groups, clip, ema, seed, training, evaluation } = recipe;
        let frozen = groups.frozen(graph.params());
        let training = frozen.into_iter().fold(training.seed(seed), |training, name| training.freeze(name));
        let optimizer = Optimizer::new(rule, &groups, graph.params())?;
        let ema = ema.map(|decay| Ema::new(&params, decay)).transpose()?;
        let heads = graph.outputs().iter().filter_map(|output| {
            let weight = match output.role {
                Role::Primary => 1.0,
                Role::Auxiliary { weight } => f64::from(weight),
                Role::Feature => return None,
            };
            Some((output.role != Role::Primary, Head { name: output.name.clone(), weight }))
        });
        // The primary output first, whatever the drawing's order.
        let (auxiliary, primary): (Vec<_>, Vec<_>) = heads.partition(|(auxiliary, _)| *auxiliary);
        let heads = primary.into_iter().chain(auxiliary).map(|(_, head)| head).collect();
        Ok(Trainer {
            heads,
            gradients: GradientSum::new(graph.params().len()),
            graph: graph.clone(),
            params,
            optimizer,
            ema,
            description,
            loss,
            schedule,
            clip,
            training,
            evaluation,
            progress: Progress::default(),
            metrics: Metrics::default(),
            checkpoint: None,
            pending_loss: 0.0,
            statistics: Vec::new(),
            plans: Vec::new(),
            diverged: false,
        })
    }

    /// The drawing.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The weights as they are now.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights to judge and to keep: the average if there is one, otherwise the present ones.
    pub fn best_params(&self) -> &Params {
        self.ema.as_ref().map_or(&self.params, Ema::params)
    }

    /// The recipe in words: what a checkpoint is resumed by.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// How far training is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What the epoch came to so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The learning rate of the next step.
    pub fn rate(&self) -> f64 {
        self.schedule.rate(self.progress.step)
    }

    /// When which rate.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// What [`Trainer::accumulate`] has gathered since the last update.
    pub fn gradients(&self) -> &GradientSum {
        &self.gradients
    }

    /// The weights, leaving training behind.
    pub fn into_params(self) -> Params {
        self.params
    }

    /// Bytes that [steps](Trainer::step) on batches of `shape`, `[n, c, h, w]`, hold besides the weights, known before the
    /// first: the plan of a step ([`TrainPlan::predicted_bytes`]), what the optimiser remembers, the average of the weights,
    /// and the running statistics as they were before the step.
    ///
    /// Gradients accumulated over several batches take those of the parameters twice more; a last batch of another size, a
    /// plan of its own.
    ///
    /// # Errors
    /// Images the network cannot take.
    pub fn predicted_bytes(&mut self, shape: [usize; 4]) -> Result<usize> {
        let at = self.plan_for((shape, self.clip.is_none()))?;
        let average = self.ema.as_ref().map_or(0, |ema| ema.params().defs().iter().map(|def| def.len()).sum());
        let statistics: usize =
            self.params.defs().iter().filter(|def| !def.kind.is_learned()).map(|def| def.len()).sum();
        Ok(self.plans[at].1.predicted_bytes() + self.optimizer.bytes() + size_of::<f32>() * (average + statistics))
    }

    /// One step: forward, loss, backward, update.
    ///
    /// Without clipping, which needs all gradients at once, every parameter is moved on the way back, as soon as its
    /// gradient is complete: gradients then take no memory of their own, and [`Trainer::gradients`] has none. A gradient
    /// that is not finite moves nothing, but those that were complete before it have moved their parameters already: go on
    /// from a checkpoint then. In every other case a step that fails leaves weights and running statistics as they were.
    ///
    /// # Errors
    /// Those of [`Trainer::accumulate`] and [`Trainer::update`].
    pub fn step(&mut self, batch: &Batch) -> Result<Step> {
        if self.clip.is_some() || self.gradients.weight() != 0.0 {
            self.accumulate(batch)?;
            return self.update();
        }
        let (rate, step) = (self.rate(), self.progress.step);
        check_rate(rate)?;
        let at = self.plan_for((batch.shape()?, true))?;
        let (loss, slopes) = self.forward(at, batch)?;
        let (optimizer, mut sum) = (&mut self.optimizer, 0.0);
        let moved = self.plans[at].1.backward_each(
            &mut self.params,
            &named(&self.heads, &slopes),
            |id, weight, gradient, workers| {
                sum += shared_squares(gradient, workers);
                if sum.is_finite() {
                    optimizer.update(id.index(), weight, gradient, (rate, Some(workers)));
                    return Ok(());
                }
                Err(Error::invalid("gradients", "not finite"))
            },
        );
        if !sum.is_finite() {
            return Err(self.broke_down("gradient norm", sum));
        }
        moved?;
        self.progress.forwards += 1;
        self.progress.batch += 1;
        self.moved(Step { step, loss, rate, norm: sum.sqrt() })
    }

    /// Forward, loss and backward: adds the gradients of a batch to those waiting for [`Trainer::update`], and gives its
    /// joined loss.
    ///
    /// # Errors
    /// Images the network cannot take; a label out of range, naming the sample: the batch then counts for nothing.
    /// [`Error::Diverged`] if the loss or a running statistic is not finite: gradients accumulated before are dropped, and
    /// the running statistics are as before the first of them.
    pub fn accumulate(&mut self, batch: &Batch) -> Result<f64> {
        let at = self.plan_for((batch.shape()?, false))?;
        // The first gradients of a sum are written where the sum is.
        let first = self.gradients.weight() == 0.0;
        if first && self.gradients.has_memory() {
            self.plans[at].1.exchange_gradients(self.gradients.memory());
        }
        let (loss, slopes) = self.forward(at, batch)?;
        let plan = &mut self.plans[at].1;
        let gradients = plan.backward(&named(&self.heads, &slopes))?;
        if first {
            plan.exchange_gradients(self.gradients.memory());
            self.gradients.begin(batch.len() as f64);
        } else {
            self.gradients.add(gradients, batch.len() as f64)?;
        }
        self.pending_loss += loss * batch.len() as f64;
        self.progress.forwards += 1;
        self.progress.batch += 1;
        Ok(loss)
    }

    /// Forward and loss: the joined loss, and its gradient with respect to every head.
    fn forward(&mut self, at: usize, batch: &Batch) -> Result<(f64, Vec<Tensor>)> {
        if self.gradients.weight() == 0.0 {
            let kept = || self.params.iter().filter(|(def, _)| !def.kind.is_learned()).map(|(_, v)| v.as_slice());
            self.statistics.clear();
            self.statistics.reserve_exact(kept().map(<[f32]>::len).sum());
            kept().for_each(|values| self.statistics.extend_from_slice(values));
        }
        self.plans[at].1.forward_still(&mut self.params, &batch.images, self.progress.forwards)?;
        let outputs = self.plans[at].1.outputs();
        let mut values = Vec::with_capacity(self.heads.len());
        let mut slopes = Vec::with_capacity(self.heads.len());
        for head in &self.heads {
            let mut loss = self.loss.evaluate(outputs.get(&head.name)?, &batch.targets)?;
            if head.weight != 1.0 {
                loss.gradient.as_mut_slice().iter_mut().for_each(|g| *g *= head.weight as f32);
            }
            values.push((head.name.as_str(), loss.value, head.weight));
            slopes.push(loss.gradient);
        }
        let loss: f64 = values.iter().map(|(_, value, weight)| value * weight).sum();
        if !loss.is_finite() {
            return Err(self.broke_down("loss", loss));
        }
        self.plans[at].1.follow(&mut self.params);
        let statistics = self.params.iter().filter(|(def, _)| !def.kind.is_learned());
        let odd = statistics.flat_map(|(_, value)| value.as_slice()).find(|v| !v.is_finite());
        if let Some(odd) = odd.map(|&odd| f64::from(odd)) {
            return Err(self.broke_down("running statistic", odd));
        }
        let outputs = self.plans[at].1.outputs();
        self.metrics.add(&values, outputs.get(LOGITS)?, &batch.targets);
        Ok((loss, slopes))
    }

    /// Moves the weights by the mean of the gradients accumulated.
    ///
    /// # Errors
    /// Nothing accumulated; [`Error::Diverged`] if the gradients are not finite: they are dropped, and the running
    /// statistics are as before the first of them.
    pub fn update(&mut self) -> Result<Step> {
        if self.gradients.weight() == 0.0 {
            return Err(Error::invalid("trainer", "there is no gradient to update the weights by: accumulate first"));
        }
        let loss = self.pending_loss / self.gradients.weight();
        self.gradients.average();
        let norm = self.gradients.clip(self.clip)?;
        if !norm.is_finite() {
            return Err(self.broke_down("gradient norm", norm));
        }
        let (rate, step) = (self.rate(), self.progress.step);
        let workers = self.plans.first().map(|(_, plan)| plan.workers());
        self.optimizer.step_shared(&mut self.params, &self.gradients, rate, workers)?;
        self.gradients.clear();
        self.pending_loss = 0.0;
        self.moved(Step { step, loss, rate, norm })
    }

    /// The weights have moved: the average follows.
    fn moved(&mut self, step: Step) -> Result<Step> {
        if let Some(ema) = &mut self.ema {
            ema.update(&self.params);
        }
        self.progress.step += 1;
        Ok(step)
    }

    /// Ends the epoch: the next step is the first of another. Gives what this one came to.
    pub fn end_epoch(&mut self) -> Metrics {
        self.progress.epoch += 1;
        self.progress.batch = 0;
        std::mem::take(&mut self.metrics)
    }

    /// Judges [`Trainer::best_params`] with the recipe's loss. See [`evaluate`].
    pub fn evaluate(&self, batches: impl IntoIterator<Item = Result<Batch>>) -> Result<Metrics> {
        evaluate(&self.graph, self.best_params(), batches, &*self.loss, &self.evaluation)
    }

    /// Fails between [`Trainer::accumulate`] and [`Trainer::update`], and after a breakdown: there is no state then that
    /// could be gone on from.
    #[cfg(feature = "safetensors")]
    pub(super) fn check_settled(&self) -> Result<()> {
        let problem = match (self.diverged, self.gradients.weight() != 0.0) {
            (true, _) => "training has diverged: what is in memory is not worth keeping",
            (_, true) => "gradients are accumulated and not applied: update first",
            _ => return Ok(()),
        };
        Err(Error::invalid("checkpoint", problem))
    }

    /// Drops what was accumulated, and a breakdown with it: after the state was replaced.
    #[cfg(feature = "safetensors")]
    pub(super) fn forget(&mut self) {
        self.gradients.clear();
        (self.pending_loss, self.diverged) = (0.0, false);
    }

    fn plan_for(&mut self, key: Key) -> Result<usize> {
        if let Some(at) = self.plans.iter().position(|(planned, _)| *planned == key) {
            return Ok(at);
        }
        self.plans.retain(|(planned, _)| planned.1 == key.1);
        self.plans.truncate(1);
        let options = if key.1 { self.training.clone().stream_gradients() } else { self.training.clone() };
        let plan = TrainPlan::new(&self.graph, &self.params, key.0, &options)?;
        self.plans.push((key, plan));
        Ok(self.plans.len() - 1)
    }

    /// Ends the step in progress as if it had not begun, as far as that is in the trainer's hands.
    fn broke_down(&mut self, what: &'static str, value: f64) -> Error {
        let mut kept = self.statistics.as_slice();
        for (_, values) in self.params.iter_mut().filter(|(def, _)| !def.kind.is_learned()) {
            let before = kept.split_off(..values.len()).unwrap_or_default();
            values.iter_mut().zip(before).for_each(|(value, &before)| *value = before);
        }
        self.gradients.clear();
        self.pending_loss = 0.0;
        self.diverged(what, value)
    }

    /// Training has arrived at `value`, which is no number.
    pub(super) fn diverged(&mut self, what: &'static str, value: f64) -> Error {
        self.diverged = true;
        let (step, rate, checkpoint) = (self.progress.step, self.rate(), self.checkpoint.clone());
        Error::Diverged { what, value, step, rate, checkpoint }
    }
}

/// The gradients of the heads as a plan takes them.
fn named<'a>(heads: &'a [Head], slopes: &'a [Tensor]) -> Vec<(&'a str, &'a Tensor)> {
    heads.iter().map(|head| head.name.as_str()).zip(slopes).collect()
}
