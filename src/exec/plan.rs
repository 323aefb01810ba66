//! The evaluation planner: from a drawing, its parameters and one input shape to a list of prepared steps.

use super::memory::{Border, Layout};
use super::mode::means;
use super::passes;
use super::portions::Portions;
use super::prepare::{self, Means, Prepared, Step};
use super::program::{Note, Program};
use super::run::{Runner, Sizes, Turns};
use super::tuning::Tuning;
use crate::error::Result;
use crate::graph::{Graph, NodeId, Op, ParamSource, Params, Role, check_same};
use crate::kernels::conv::Precision;
use crate::par::Team;
use crate::simd::Isa;
use crate::tensor::Tensor;
use std::fmt::Write as _;
use std::path::PathBuf;

/// What a plan should compute, and with what.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::{Model, PlanOptions, Tensor, models};
///
/// let model = Model::new(&models::build("resnet20", None)?, &mut Stream::new(0).rng())?;
/// let options = PlanOptions::new().threads(2).feature("stage3").feature("layer1.0.conv1");
/// let mut plan = model.plan_with([1, 3, 32, 32], &options)?;
/// let outputs = plan.run(&Tensor::zeros(&[1, 3, 32, 32]))?;
/// assert_eq!(outputs.get("stage3")?.shape(), [1, 64, 8, 8]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    threads: Option<usize>,
    isa: Option<Isa>,
    precision: Precision,
    features: Vec<String>,
    all_scopes: bool,
    tuned: Option<PathBuf>,
}

impl PlanOptions {
    /// The defaults: as many threads as the scheduler grants, the best instruction set the CPU has, no features.
    pub fn new() -> Self {
        PlanOptions::default()
    }

    /// Workers, the calling thread included, 1 to 4096; 1 never touches a thread pool. Results do not depend on it.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Uses an instruction set other than the best one.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// How far from plain sums convolutions may go for speed: [`Precision::Fast`] by default.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Chooses how convolutions are computed by timing every way on this machine, instead of by what it usually costs, and
    /// keeps what was found in `file`, which is made if it is not there and may serve several networks and machines.
    ///
    /// Planning takes some seconds the first time and nothing more from then on. What is found does not depend on the number
    /// of threads. Another choice changes the last bits of results: who wants the same bits again keeps the file.
    pub fn tuned(mut self, file: impl Into<PathBuf>) -> Self {
        self.tuned = Some(file.into());
        self
    }

    /// Also computes the feature or scope `name` (`stage2`, `layer1.0.conv1`, …). What is asked for is not fused away.
    pub fn feature(mut self, name: impl Into<String>) -> Self {
        self.features.push(name.into());
        self
    }

    /// Also computes what every named scope ends in: slow, for comparing layer by layer with another framework.
    pub fn all_scopes(mut self) -> Self {
        self.all_scopes = true;
        self
    }

    /// Workers and instruction set, or why there can be no such.
    pub(crate) fn resolve(&self) -> Result<(usize, Isa)> {
        means("plan", self.threads, self.isa)
    }
}

/// One network, one input shape, ready to run.
///
/// Auxiliary heads and dead branches are gone, batch norm is folded, activations and residual sums are fused into the
/// convolutions, concatenations are written in place, weights are packed, and every value lies in one arena. Running
/// allocates nothing.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::{Model, Plan, PlanOptions, Tensor, models};
///
/// let (graph, params) = Model::new(&models::build("resnet20", None)?, &mut Stream::new(0).rng())?.into_parts();
/// let mut plan = Plan::new(&graph, &params, [8, 3, 32, 32], &PlanOptions::new())?;
/// for shade in [0.0, 0.5] {
///     let logits = plan.run(&Tensor::from_fn(&[8, 3, 32, 32], |_| shade))?.logits();
///     assert_eq!(logits.shape(), [8, 10]);
/// }
/// print!("{}", plan.explain());
/// # Ok::<(), convzoo::Error>(())
/// ```
pub struct Plan {
    pub(super) input: [usize; 4],
    pub(super) steps: Vec<Step>,
    pub(super) outputs: Vec<(String, Tensor)>,
    pub(super) runner: Runner,
    /// Outputs and scopes of the drawing that are not computed but could be.
    pub(super) taps: Vec<String>,
    notes: Vec<Note>,
    isa: Isa,
    weight_bytes: usize,
}

impl Plan {
    /// Plans `graph` with the values `params` for inputs of shape `[n, c, h, w]`.
    ///
    /// # Errors
    /// A shape the network cannot take (the layer and both numbers are named), an unknown feature, no threads, a file of
    /// [`PlanOptions::tuned`] that is none or cannot be written.
    pub fn new(graph: &Graph, mut params: &Params, input: [usize; 4], options: &PlanOptions) -> Result<Self> {
        Plan::from_source(graph, &mut params, input, options)
    }

    /// As [`new`](Self::new), with values from `source`, which is told of every weight that is packed and may let go of
    /// it. Its definitions must be the graph's.
    pub fn from_source(
        graph: &Graph,
        source: &mut dyn ParamSource,
        input: [usize; 4],
        options: &PlanOptions,
    ) -> Result<Self> {
        check_same("plan", graph.params(), source.defs())?;
        let (threads, isa) = options.resolve()?;
        let isa = options.precision.limit(isa);
        let wanted = wanted(graph, options)?;
        let ids: Vec<NodeId> = wanted.iter().map(|(_, id)| *id).collect();
        let shapes = graph.maps_for(input, ids.iter().copied())?;
        let mut program = Program::lower(graph, shapes, ids)?;
        passes::run(&mut program, source, options.precision)?;
        let portions = Portions::of(&program, source.defs());
        let team = Team::new(threads);
        let lanes = portions.lanes(input[0], team.threads());
        let layout = Layout::new(&program, stem_border(&program), portions, lanes);
        let weights = source.defs().iter().map(|def| 4 * def.len()).sum();
        let mut tuning = options.tuned.as_ref().map(|file| Tuning::open(file, weights)).transpose()?;
        let means = Means { source, precision: options.precision, isa, team: &team, tuning: tuning.as_mut() };
        let Prepared { steps, repeated } = prepare::steps(&mut program, &layout, portions, means)?;
        tuning.map_or(Ok(()), Tuning::save)?;
        let turns =
            Turns { steps: steps.len(), repeated, portions: input[0] / portions.images.max(1), lanes: layout.lanes };
        let outputs = wanted.into_iter().zip(&program.wanted);
        let outputs = outputs.map(|((name, id), _)| {
            let vector = graph.node(id).drawn.size == crate::graph::Size::Vector;
            let shape = program.shape(id);
            Ok((name, Tensor::try_zeros(if vector { &shape[..2] } else { &shape })?))
        });
        let outputs = outputs.collect::<Result<Vec<(String, Tensor)>>>()?;
        let named = graph.outputs().iter().map(|o| o.name.as_str()).chain(graph.scopes().map(|(path, _)| path));
        let computed = |name: &str| outputs.iter().any(|(n, _)| n == name);
        let taps = named.filter(|name| !computed(name)).map(str::to_owned).collect();
        let weight_bytes = steps.iter().map(|s| s.kernel.resident_bytes()).sum();
        let runner = Runner::new(
            team,
            &steps,
            turns,
            Sizes { arena: layout.len, lane: layout.lane, outside: 1 + outputs.len() },
        )?;
        Ok(Plan { input, steps, outputs, runner, taps, notes: program.notes, isa, weight_bytes })
    }

    /// The input shape `[n, c, h, w]`.
    pub fn input_shape(&self) -> [usize; 4] {
        self.input
    }

    /// Workers.
    pub fn threads(&self) -> usize {
        self.runner.team.threads()
    }

    /// Bytes of activations: the arena.
    pub fn arena_bytes(&self) -> usize {
        self.runner.arena_bytes()
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Every step with its shape, kernel and what was fused into it; then each rewrite that did not fire, and why.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        let [n, c, h, w] = self.input;
        let _ = writeln!(
            text,
            "plan for [{n}, {c}, {h}, {w}] · {} · {} threads · {} steps · arena {:.1} MiB · packed weights {:.1} MiB",
            self.isa.name(),
            self.threads(),
            self.steps.len(),
            self.arena_bytes() as f64 / 1048576.0,
            self.weight_bytes as f64 / 1048576.0
        );
        let width = self.steps.iter().map(|s| s.path.len()).max().unwrap_or(0).max(4);
        for (i, step) in self.steps.iter().enumerate() {
            let shape = format!("{:?}", step.shape);
            let fused = if step.fused.is_empty() { String::new() } else { format!("  + {}", step.fused.join(", ")) };
            let kernel = step.kernel.name();
            let tiles = step.kernel.tiles();
            let _ = writeln!(text, "{i:4}  {:width$}  {shape:20}  {kernel} ({tiles} tiles){fused}", step.path);
        }
        let Turns { repeated, portions, lanes, .. } = self.runner.turns();
        if repeated > 0 {
            let (last, images) = (repeated - 1, n / portions);
            let how = if lanes > 1 { ", every worker on its own" } else { "" };
            let _ = writeln!(text, "note  steps 0 to {last} run {portions} times, on {images} of the images each{how}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note  {:width$}  {}", note.path, note.text);
        }
        text
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({:?}, {} steps, {})", self.input, self.steps.len(), self.isa.name())
    }
}

/// The primary output, then what the options ask for, without repetition.
fn wanted(graph: &Graph, options: &PlanOptions) -> Result<Vec<(String, NodeId)>> {
    let primary = graph.outputs().iter().filter(|o| o.role == Role::Primary);
    let mut wanted: Vec<(String, NodeId)> = primary.map(|o| (o.name.clone(), o.node)).collect();
    for name in &options.features {
        wanted.push((name.clone(), graph.find(name)?));
    }
    if options.all_scopes {
        let roots = graph.outputs().iter().filter(|o| !matches!(o.role, Role::Auxiliary { .. })).map(|o| o.node);
        let live = graph.reachable(roots);
        wanted.extend(graph.scopes().filter(|(_, id)| live[id.index()]).map(|(path, id)| (path.to_owned(), id)));
    }
    let mut seen = std::collections::HashSet::new();
    wanted.retain(|(name, _)| seen.insert(name.clone()));
    Ok(wanted)
}

/// If the image goes into nothing but one convolution of few channels, the packing step writes that convolution's zero
/// border too.
pub(super) fn stem_border(program: &Program) -> Option<Border> {
    let image = program.units.iter().find(|u| matches!(u.op, Op::Input { .. }))?.output;
    let mut readers = program.units.iter().filter(|u| u.reads().any(|v| v == image));
    let (Some(stem), None) = (readers.next(), readers.next()) else { return None };
    let [_, c, h, w] = program.shape(image);
    let Op::Conv { window, groups: 1, .. } = &stem.op else { return None };
    if c > 4 || window.dilation != [1, 1] || window.is_pointwise() || program.wanted.contains(&image) {
        return None;
    }
    let placed = window.place([h, w], &stem.path).ok()?;
    // Whole strides: the convolution may fold as many pixels into one.
    let reach = |axis: usize| (placed.output[axis] - 1) * window.stride[axis] + window.kernel[axis];
    let size = |axis: usize| reach(axis).max(placed.before[axis] + placed.input[axis]);
    let size = [0, 1].map(|axis| size(axis).next_multiple_of(window.stride[axis]));
    Some(Border { before: placed.before, size })
}
