//! The training planner.

use super::forward::{Author, Follower, Outside, Task};
use super::sketch::{Arranged, Fill, HandedOn, Held};
use super::{again, fuse};
use crate::error::{Error, Result};
use crate::exec::mode::{RunningStatistics, TrainOptions};
use crate::exec::prepare::Step;
use crate::exec::program::Program;
use crate::exec::run::{Runner, Sizes, Turns};
use crate::exec::{Gradients, Outputs};
use crate::graph::{Graph, NodeId, ParamDef, Params, Role, Size, check_same};
use crate::par::Team;
use crate::random::Stream;
use crate::simd::Isa;
use crate::tensor::Tensor;
use std::collections::HashSet;
use std::fmt::Write as _;

/// One network, one input shape, ready to be trained: [`forward`](TrainPlan::forward) in training mode, a loss of the
/// caller's, [`backward`](TrainPlan::backward).
///
/// Weights live in [`Params`] and are packed anew at every step; the plan keeps what backward reads, the gradients, and
/// memory for everything in between, all of it allocated when it is planned. Results have the same bits for any number of
/// threads.
///
/// ```
/// use convzoo::exec::{TrainOptions, TrainPlan};
/// use convzoo::{Model, Tensor, models::ResNet};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut model = Model::new(&ResNet::resnet18().classes(10), &mut StdRng::seed_from_u64(0))?;
/// let graph = model.graph().clone();
/// let mut plan = TrainPlan::new(&graph, model.params(), [2, 3, 32, 32], &TrainOptions::new())?;
/// let outputs = plan.forward(model.params_mut(), &Tensor::zeros(&[2, 3, 32, 32]), 0)?;
/// // The loss is half the sum of the squared logits here, so that its gradient are the logits.
/// let gradient = outputs.logits().clone();
/// let gradients = plan.backward(&[("logits", &gradient)])?;
/// assert_eq!(gradients.get("conv1.weight")?.shape(), [64, 3, 7, 7]);
/// # Ok::<(), convzoo::Error>(())
/// ```
pub struct TrainPlan {
    pub(super) input: [usize; 4],
    pub(super) steps: Vec<Step>,
    /// Steps of the way forward; the others lead back.
    pub(super) forward_steps: usize,
    pub(super) outputs: Vec<(String, Tensor)>,
    /// Gradients of outputs that were not named: zeros.
    pub(super) zeros: Vec<Tensor>,
    pub(super) gradients: Gradients,
    pub(super) runner: Runner,
    pub(super) outside: Outside,
    pub(super) options: TrainOptions,
    /// The noise layers, and the stream of each at the current step.
    pub(super) noisy: Vec<NodeId>,
    pub(super) streams: Vec<Stream>,
    pub(super) followers: Vec<Follower>,
    /// Where the buffers lie in the arena.
    pub(super) offsets: Vec<usize>,
    pub(super) defs: Vec<ParamDef>,
    /// Gradients that are handed on during the way back, in order.
    pub(super) handed: Vec<HandedOn>,
    /// Whether a way forward waits for its way back.
    pub(super) ready: bool,
    isa: Isa,
    /// Where memory is fullest, and what lies in it then.
    fullest: Fill,
    held: Vec<Held>,
    /// The share of a step's work that is chosen to be done again.
    repeated: f64,
}

impl TrainPlan {
    /// Plans a training step of `graph` for batches of shape `[n, c, h, w]`. Of `params` only the definitions count.
    ///
    /// # Errors
    /// A shape the network cannot take, a batch norm with a single value per channel, parameters of another graph, a frozen
    /// prefix that names nothing, no threads. The layer and both numbers are named.
    pub fn new(graph: &Graph, params: &Params, input: [usize; 4], options: &TrainOptions) -> Result<Self> {
        let (threads, isa) = options.resolve()?;
        let isa = options.precision.limit(isa);
        check_same("training plan", graph.params(), params.defs())?;
        let learned = options.learned(graph.params())?;
        let heads: Vec<_> = graph.outputs().iter().filter(|o| o.role != Role::Feature).collect();
        let ids: Vec<NodeId> = heads.iter().map(|o| o.node).collect();
        let shapes = graph.maps_for(input, ids.iter().copied())?;
        let mut program = Program::lower(graph, shapes, ids)?;
        fuse::run(&mut program, options.noise);
        refuse_shared(&program, graph)?;
        let (author, repeated) = again::choose(Task { program: &program, graph, options, learned: &learned, isa })?;
        let Author { sketch, outside, noisy, followers, .. } = author;
        let forward_steps = sketch.forward_steps;
        let Arranged { steps, offsets, len, fullest, held, handed } = sketch.arrange();

        let shape = |id: NodeId, shape: [usize; 4]| {
            let vector = graph.node(id).drawn.size == Size::Vector;
            if vector { shape[..2].to_vec() } else { shape.to_vec() }
        };
        let shapes: Vec<_> = heads.iter().zip(&program.wanted).map(|(o, &v)| shape(o.node, program.shape(v))).collect();
        let tensors = || shapes.iter().map(|shape| Tensor::try_zeros(shape)).collect::<Result<Vec<_>>>();
        let outputs = heads.iter().map(|o| o.name.clone()).zip(tensors()?).collect();
        let leave: HashSet<&str> = handed.iter().map(|gradient| &*graph.params()[gradient.id.index()].name).collect();
        let gradients =
            Gradients::zeros(graph.params(), |def| !options.is_frozen(&def.name) && !leave.contains(&*def.name));
        let gradients = if options.input_gradient { gradients.with_input(input) } else { gradients };
        Ok(TrainPlan {
            input,
            runner: Runner::new(
                Team::new(threads),
                &steps,
                Turns::once(steps.len()),
                Sizes { arena: len, lane: 0, outside: outside.len },
            )?,
            steps,
            forward_steps,
            outputs,
            zeros: tensors()?,
            gradients,
            outside,
            options: options.clone(),
            streams: vec![Stream::new(0); noisy.len()],
            noisy,
            followers,
            offsets,
            defs: graph.params().to_vec(),
            handed,
            ready: false,
            isa,
            fullest,
            held,
            repeated,
        })
    }

    /// The input shape `[n, c, h, w]`.
    pub fn input_shape(&self) -> [usize; 4] {
        self.input
    }

    /// Workers.
    pub fn threads(&self) -> usize {
        self.runner.team.threads()
    }

    /// Bytes of the plan's memory, known before it runs: activations, packed weights and gradients of activations in one
    /// arena, what workers need besides, outputs, and the gradients of the parameters that are not handed on.
    pub fn predicted_bytes(&self) -> usize {
        let tensors = self.outputs.iter().map(|(_, tensor)| tensor).chain(&self.zeros).map(Tensor::len);
        let gradients = self.gradients.iter().map(|(_, tensor)| tensor).chain(self.gradients.input()).map(Tensor::len);
        let tables: usize = self.steps.iter().map(|step| step.kernel.resident_bytes()).sum();
        self.runner.arena_bytes() + self.runner.scratch_bytes() + tables + 4 * tensors.chain(gradients).sum::<usize>()
    }

    /// Bytes of the arena alone.
    pub fn arena_bytes(&self) -> usize {
        self.runner.arena_bytes()
    }

    /// Trades the memory of the parameters' gradients with `others`, one per parameter, so that there need not be two.
    pub(crate) fn exchange_gradients(&mut self, others: &mut [Option<Tensor>]) {
        self.gradients.exchange(others);
    }

    /// The outputs of the last way forward.
    pub fn outputs(&self) -> Outputs<'_> {
        Outputs { values: &self.outputs, taps: &[] }
    }

    /// Every step with its shape and kernel, forward and back.
    pub fn explain(&self) -> String {
        let [n, c, h, w] = self.input;
        let mut text = format!(
            "training plan for [{n}, {c}, {h}, {w}] · {} · {} threads · {} steps forward, {} back · {:.1} MiB\n",
            self.isa.name(),
            self.threads(),
            self.forward_steps,
            self.steps.len() - self.forward_steps,
            self.predicted_bytes() as f64 / 1048576.0
        );
        let width = self.steps.iter().map(|s| s.path.len()).max().unwrap_or(0).max(4);
        for (i, step) in self.steps.iter().enumerate() {
            let way = if i < self.forward_steps { "→" } else { "←" };
            let (shape, kernel) = (format!("{:?}", step.shape), step.kernel.name());
            let _ = writeln!(text, "{i:4} {way} {:width$}  {shape:20}  {kernel} ({} tiles)", step.path, step.tiles);
        }
        self.explain_memory(&mut text);
        text
    }

    /// What lies in the arena when it is fullest.
    fn explain_memory(&self, text: &mut String) {
        let mib = |floats: usize| floats as f64 / 262144.0;
        let (Fill { step, floats }, arena) = (self.fullest, self.arena_bytes() / 4);
        let share = 100.0 * self.repeated;
        let _ = writeln!(text, "about {share:.1} % of the work is done again on the way back to save memory");
        let _ = writeln!(text, "arena {:.1} MiB, fullest at step {step}: {:.1} MiB, of them", mib(arena), mib(floats));
        let width = self.held.iter().map(|held| held.path.len()).max().unwrap_or(0);
        for Held { floats, path, kernel, steps: [first, last] } in self.held.iter().take(40) {
            let _ = writeln!(text, "{:8.1} MiB  {first:4} to {last:4}  {path:width$}  {kernel}", mib(*floats));
        }
    }

    /// Moves the running statistics towards those of the batch that has just been run.
    pub(crate) fn follow(&self, params: &mut Params) {
        let mut slots = params.iter_mut();
        let mut next = 0;
        let mut slot = |id: usize| {
            let skipped = id - next;
            next = id + 1;
            slots.nth(skipped).map(|(_, values)| values)
        };
        for follower in &self.followers {
            let table = &self.runner.arena()[self.offsets[follower.table]..];
            let count = follower.count as f32;
            let unbiased = match self.options.statistics {
                RunningStatistics::PyTorch => count / (count - 1.0),
                RunningStatistics::TensorFlow => 1.0,
            };
            let rows = [(follower.mean, 0, 1.0), (follower.var, crate::kernels::norm::train::VARIANCE, unbiased)];
            for (id, row, factor) in rows {
                let batch = &table[row * follower.channels..][..follower.channels];
                let running = slot(id.index()).into_iter().flatten();
                let momentum = follower.momentum;
                running.zip(batch).for_each(|(r, b)| *r = (1.0 - momentum) * *r + momentum * (b * factor));
            }
        }
    }
}

impl std::fmt::Debug for TrainPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrainPlan({:?}, {} steps, {})", self.input, self.steps.len(), self.isa.name())
    }
}

/// A parameter that two layers read would have two gradients.
fn refuse_shared(program: &Program, graph: &Graph) -> Result<()> {
    let mut seen = vec![false; graph.params().len()];
    for unit in &program.units {
        for id in unit.op.params() {
            if std::mem::replace(&mut seen[id.index()], true) {
                let name = &graph.params()[id.index()].name;
                return Err(Error::invalid(&unit.path, format!("`{name}` is read by two layers: train a copy")));
            }
        }
    }
    Ok(())
}
