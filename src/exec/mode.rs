//! How a training step runs: what both executors, the naive and the planned one, are told alike.

#![allow(dead_code, reason = "read by the training executors")]

use crate::error::{Error, Result};
use crate::graph::{NodeId, ParamDef};
use crate::kernels::conv::Precision;
use crate::par::default_threads;
use crate::random::Stream;
use crate::simd::Isa;

/// Whether dropout and stochastic depth drop anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Noise {
    /// As drawn.
    #[default]
    On,
    /// Never: they are identities, as in evaluation. For comparing with another framework.
    Off,
}

/// Which variance of the batch the running variance moves towards. Batches are normalised by the biased one either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunningStatistics {
    /// PyTorch's: the unbiased one, `Σ(x − mean)² / (n − 1)`.
    #[default]
    PyTorch,
    /// TensorFlow's, outside its fused kernel: the biased one, `Σ(x − mean)² / n`.
    TensorFlow,
}

/// What a training step computes again on the way back, instead of keeping it in memory since the way forward.
///
/// The output of a norm is never kept: it is computed again in the pass that needs it. What else is given up is chosen from
/// the graph, shape by shape: of what lies idle where memory is fullest, whatever frees most for the least work, until that
/// costs the share of a step named below or memory is as low as is said there. Only what the way back reads is computed again,
/// each value once, and none of it changes a bit of losses, gradients or running statistics.
///
/// Chen et al. 2016, *Training deep nets with sublinear memory cost*, with segments found instead of given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// What costs next to nothing, at most about 3 % of a step: sums of residual blocks, activations, some narrow convolutions;
    /// until a step needs no more than half of what the outputs of all layers would take, activations and sums in place.
    #[default]
    Cheap,
    /// As much as memory gains by, for up to about a fifth more time: convolutions too.
    Thorough,
}

/// Options of a training step.
///
/// ```
/// use convzoo::exec::{Noise, TrainOptions};
///
/// let options = TrainOptions::new().seed(7).freeze("features").noise(Noise::Off);
/// assert!(options.is_frozen("features.0.weight") && !options.is_frozen("features2.weight"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct TrainOptions {
    pub(super) threads: Option<usize>,
    pub(super) isa: Option<Isa>,
    pub(super) precision: Precision,
    pub(super) seed: u64,
    pub(super) input_gradient: bool,
    pub(super) noise: Noise,
    pub(super) statistics: RunningStatistics,
    pub(super) recompute: Recompute,
    pub(super) streamed: bool,
    frozen: Vec<String>,
}

impl TrainOptions {
    /// The defaults: as many threads as the scheduler grants, the best instruction set, seed 0, everything learns.
    pub fn new() -> Self {
        TrainOptions::default()
    }

    /// Workers of a plan, the calling thread included, 1 to 4096. Results do not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Uses an instruction set other than the best one.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// How far from plain sums convolutions may go for speed.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Seed of dropout and stochastic depth. What is dropped depends on the seed, the step and the layer alone.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Also computes the gradient with respect to the images.
    pub fn input_gradient(mut self) -> Self {
        self.input_gradient = true;
        self
    }

    /// Whether dropout and stochastic depth drop anything.
    pub fn noise(mut self, noise: Noise) -> Self {
        self.noise = noise;
        self
    }

    /// Which variance the running one moves towards.
    pub fn statistics(mut self, statistics: RunningStatistics) -> Self {
        self.statistics = statistics;
        self
    }

    /// How much is computed again on the way back to save memory. Default [`Recompute::Cheap`]. Results do not depend on it.
    pub fn recompute(mut self, recompute: Recompute) -> Self {
        self.recompute = recompute;
        self
    }

    /// Hands each gradient on as soon as it is complete and uses its memory again, so that they never lie in memory all
    /// together: what PyTorch calls fusing the optimiser step into the backward pass. Gradients are then had from
    /// [`TrainPlan::backward_each`](super::TrainPlan::backward_each) alone.
    pub fn stream_gradients(mut self) -> Self {
        self.streamed = true;
        self
    }

    /// Freezes the parameter `prefix`, or all parameters of the scope of that name: they get no gradient. A batch norm
    /// whose running statistics are frozen normalises by them and leaves them alone, as in evaluation.
    pub fn freeze(mut self, prefix: impl Into<String>) -> Self {
        self.frozen.push(prefix.into());
        self
    }

    /// Workers and instruction set, or why there can be no such.
    pub(crate) fn resolve(&self) -> Result<(usize, Isa)> {
        means("training plan", self.threads, self.isa)
    }

    /// Whether the parameter `name` is frozen.
    pub fn is_frozen(&self, name: &str) -> bool {
        self.frozen.iter().any(|prefix| covers(prefix, name))
    }

    /// Which parameters get a gradient. A frozen prefix that matches nothing is an error.
    pub(super) fn learned(&self, defs: &[ParamDef]) -> Result<Vec<bool>> {
        for prefix in &self.frozen {
            if !defs.iter().any(|def| covers(prefix, &def.name)) {
                return Err(Error::unknown("parameter to freeze", prefix, defs.iter().map(|def| def.name.as_str())));
            }
        }
        Ok(defs.iter().map(|def| def.kind.is_learned() && !self.is_frozen(&def.name)).collect())
    }

    /// What the noise layer `node` drops at `step`: number `i` is below `p` where element (or image) `i` goes.
    pub(super) fn stream(&self, step: u64, node: NodeId) -> Stream {
        Stream::new(self.seed).fork(step).fork(node.index() as u64)
    }
}

/// The workers and the instruction set of a plan, `at`, as asked for or as found.
pub(super) fn means(at: &str, threads: Option<usize>, isa: Option<Isa>) -> Result<(usize, Isa)> {
    let threads = threads.unwrap_or_else(default_threads);
    if !(1..=4096).contains(&threads) {
        return Err(Error::mismatch(at, "threads", "1 to 4096", threads));
    }
    let isa = isa.unwrap_or_else(Isa::detect);
    if !Isa::available().contains(&isa) {
        return Err(Error::invalid(at, format!("this CPU does not have {}", isa.name())));
    }
    Ok((threads, isa))
}

/// Refuses to normalise a channel by itself: `place` is the batch norm, `shape` the `[n, c, h, w]` it reads.
pub(super) fn check_batch(place: &str, [n, _, h, w]: [usize; 4]) -> Result<()> {
    match n * h * w {
        1 => Err(Error::mismatch(place, "values per channel to normalise in training", "at least 2", 1)),
        _ => Ok(()),
    }
}

/// Whether `prefix` is `name` or a scope around it.
fn covers(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || prefix.is_empty())
}
