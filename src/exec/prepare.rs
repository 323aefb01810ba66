//! From units to steps: packs weights and prepares the kernel of each unit.

use super::memory::Layout;
use super::passes::fold_affine;
use super::portions::Portions;
use super::program::{Before, Form, Program, Unit};
use super::tuning::Tuning;
use super::unpacked::{Buffers, Unpacked};
use crate::error::{Error, Result};
use crate::graph::{NodeId, Op, ParamId, ParamSource};
use crate::kernels::{
    self, Epilogue, Kernel, MAX_INPUTS, Map, conv,
    conv::{ConvSpec, Precision},
    excite::{ExciteSpec, excite},
    weights::whole,
};
use crate::par::Team;
use crate::shape::Window;
use crate::simd::Isa;
use std::collections::HashMap;
use std::sync::Mutex;

/// Where a kernel's pointer comes from when the plan runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Slot {
    /// Not used.
    None,
    /// Floats from the start of the arena.
    Arena(usize),
    /// The same in the first lane: one portion of a value that no one else knows.
    Lane(usize),
    /// A place in the arena that lies further on for every portion of the batch.
    Portioned {
        /// Floats from the start of the arena.
        offset: usize,
        /// Floats from portion to portion.
        stride: usize,
    },
    /// The caller's images, so many floats further for every portion of the batch.
    Images(usize),
    /// The memory outside the plan of this number, named anew for every run, and so many floats into it.
    Outside(usize, usize),
}

/// Outside a plan: the caller's image, then the output tensors.
pub(super) const IMAGE: usize = 0;

/// A kernel and where it reads and writes.
pub(super) struct Step {
    pub(super) kernel: Box<dyn Kernel>,
    /// `kernel.tiles()`, read at every run.
    pub(super) tiles: usize,
    pub(super) inputs: [Slot; MAX_INPUTS],
    pub(super) output: Slot,
    /// The kernel's further results, if it has any.
    pub(super) also: [Slot; 2],
    pub(super) path: String,
    pub(super) shape: [usize; 4],
    pub(super) fused: Vec<&'static str>,
    /// Multiply-adds of convolutions and linear layers, as the direct form would need them.
    pub(super) macs: u64,
}

/// What the steps are made with.
pub(super) struct Means<'a> {
    pub(super) source: &'a mut dyn ParamSource,
    pub(super) precision: Precision,
    pub(super) isa: Isa,
    /// Packs the weights.
    pub(super) team: &'a Team,
    /// Chooses how convolutions are computed; without it, what they usually cost.
    pub(super) tuning: Option<&'a mut Tuning>,
}

/// The steps of a plan in order.
pub(super) struct Prepared {
    pub(super) steps: Vec<Step>,
    /// So many of them run once for every portion of the batch before the others run.
    pub(super) repeated: usize,
}

/// Prepares every unit of `program`, then the copies of what leaves the plan. Weights are released once they are packed.
pub(super) fn steps(program: &mut Program, layout: &Layout, portions: Portions, means: Means<'_>) -> Result<Prepared> {
    let Means { source, precision, isa, team, tuning } = means;
    let mut asked = HashMap::new();
    program.units.iter().flat_map(weights).for_each(|id| *asked.entry(id).or_insert(0) += 1);
    let (steps, notes, buffers) = (Vec::new(), Vec::new(), Buffers::default());
    let portion = (portions.units > 0).then_some(portions.images);
    let mut maker = Maker { program, layout, portion, source, precision, isa, team, tuning, buffers, steps, notes };
    let mut repeated = 0;
    for (i, unit) in maker.program.units.iter().enumerate() {
        maker.unit(unit)?;
        if i + 1 == portions.units {
            (repeated, maker.portion) = (maker.steps.len(), None);
        }
        for id in weights(unit) {
            let left = asked.get_mut(&id).expect("every weight was counted");
            *left -= 1;
            if *left == 0 {
                maker.source.release(id);
            }
        }
    }
    for (i, &value) in maker.program.wanted.iter().enumerate() {
        let kernel = kernels::layout::to_nchw(layout.place(value).map, isa);
        let mut step = maker.step(Box::new(kernel), "output", value);
        step.inputs[0] = maker.slot(value, 0);
        step.output = Slot::Outside(1 + i, 0);
        maker.steps.push(step);
    }
    let Maker { steps, notes, .. } = maker;
    notes.into_iter().for_each(|(path, text)| program.note(&path, text));
    Ok(Prepared { steps, repeated })
}

/// The weight of a unit that has one.
fn weight(unit: &Unit) -> Option<ParamId> {
    match unit.op {
        Op::Conv { weight, .. } | Op::DeformConv { weight, .. } | Op::Linear { weight, .. } => Some(weight),
        _ => None,
    }
}

/// The geometry of a convolution of one group that reads and writes `maps`, the first of which shows an image of `size`
/// and, if it is `bordered`, the padding around it.
pub(super) fn geometry(
    unit: &Unit,
    [input, output]: [Map; 2],
    size: [usize; 2],
    window: Window,
    bordered: bool,
) -> Result<ConvSpec> {
    let mut placed = window.place(size, &unit.path)?;
    if bordered {
        placed.before = [0; 2];
        placed.input = [input.h, input.w];
    }
    let epilogue = Epilogue { activation: unit.activation, residual: None };
    Ok(ConvSpec { input, output, window, placed, groups: 1, epilogue })
}

/// The convolution computed together with `unit`, before it.
fn first(unit: &Unit) -> Option<&Unit> {
    match &unit.form {
        Form::Plain => None,
        Form::Expanded(first) | Form::Excite(first, _) => Some(first),
    }
}

/// The weights of everything a unit computes.
fn weights(unit: &Unit) -> impl Iterator<Item = ParamId> + use<> {
    weight(unit).into_iter().chain(first(unit).and_then(weight))
}

struct Maker<'a> {
    program: &'a Program,
    layout: &'a Layout,
    /// Images of a portion, while the units that run on one are prepared.
    portion: Option<usize>,
    source: &'a mut dyn ParamSource,
    precision: Precision,
    isa: Isa,
    team: &'a Team,
    tuning: Option<&'a mut Tuning>,
    buffers: Buffers,
    steps: Vec<Step>,
    notes: Vec<(String, String)>,
}

impl Maker<'_> {
    /// What the kernels of the unit in preparation see of a value.
    fn map(&self, value: NodeId) -> Map {
        let map = self.layout.place(value).map;
        Map { n: self.portion.unwrap_or(map.n), ..map }
    }

    /// Where they find it, from a channel on.
    fn slot(&self, value: NodeId, channel: usize) -> Slot {
        let offset = self.layout.address(value) + channel;
        match self.portion {
            None => Slot::Arena(offset),
            Some(_) if self.layout.in_lanes(value) => Slot::Lane(offset),
            Some(images) => Slot::Portioned { offset, stride: self.layout.portion_stride(value, images) },
        }
    }

    /// A step that writes `value`; its inputs are still to be set.
    fn step(&self, kernel: Box<dyn Kernel>, path: &str, value: NodeId) -> Step {
        Step {
            tiles: kernel.tiles(),
            kernel,
            inputs: [Slot::None; MAX_INPUTS],
            output: self.slot(value, 0),
            also: [Slot::None; 2],
            path: path.to_owned(),
            shape: self.program.shape(value),
            fused: Vec::new(),
            macs: 0,
        }
    }

    /// Adds the step of `unit`: `kernel` reads the unit's inputs in order and, at `residual`, its residual; behind that
    /// its gate.
    fn push(&mut self, unit: &Unit, kernel: Box<dyn Kernel>, residual: usize) {
        let mut step = self.step(kernel, &unit.path, unit.output);
        for (slot, &value) in step.inputs.iter_mut().zip(&unit.inputs) {
            *slot = self.slot(value, 0);
        }
        if let Some(value) = unit.residual {
            step.inputs[residual] = self.slot(value, 0);
        }
        if let Some(value) = unit.gate {
            step.inputs[residual + 1] = self.slot(value, 0);
        }
        if let Some(value) = unit.sums {
            step.also[0] = self.slot(value, 0);
        }
        step.fused.clone_from(&unit.fused);
        step.macs = self.macs(unit);
        if let Some(first) = first(unit) {
            step.macs += self.macs(first);
        }
        self.steps.push(step);
    }

    fn macs(&self, unit: &Unit) -> u64 {
        let Some(weight) = weight(unit) else { return 0 };
        let [n, _, h, w] = self.program.shape(unit.output);
        (n * h * w * self.source.defs()[weight.index()].len()) as u64
    }

    fn unit(&mut self, unit: &Unit) -> Result<()> {
        let isa = self.isa;
        let y = self.map(unit.output);
        let Some(&input) = unit.inputs.first() else { return self.image(unit) };
        let x = self.map(input);
        let place = |window: &Window| window.place([x.h, x.w], &unit.path);
        let kernel: Box<dyn Kernel> = match &unit.op {
            Op::Input { .. } => return self.image(unit),
            Op::Conv { .. } => return self.conv(unit),
            Op::DeformConv { .. } => return self.deform(unit),
            Op::Linear { weight, bias } => {
                let (weight, bias) = self.weights(unit, *weight, *bias)?;
                let spec =
                    conv::LinearSpec { n: x.n, input: [x.c, x.ld], output: [y.c, y.ld], activation: unit.activation };
                let kernel = conv::linear(&spec, &weight, bias.as_deref(), isa);
                weight.finish()?;
                kernel
            }
            Op::BatchNorm { .. } => {
                let affine = fold_affine(&unit.op, self.source)?.expect("the operation is a batch norm");
                let [scale, shift] = [affine.scale, affine.shift].map(rounded);
                Box::new(kernels::norm::scale_shift(x, y, &scale, &shift, unit.activation, isa))
            }
            Op::LocalResponseNorm { size, alpha, beta, k } => {
                let [alpha, beta, k] = [*alpha, *beta, *k].map(f64::from);
                let norm = kernels::naive::LocalResponse { size: *size, alpha, beta, k };
                Box::new(kernels::norm::local_response(x, y, norm, isa))
            }
            Op::MaxPool { window } => Box::new(kernels::pool::max(x, y, *window, place(window)?, isa)),
            Op::AvgPool { window, count_include_pad } => {
                Box::new(kernels::pool::average(x, y, *window, place(window)?, *count_include_pad, isa))
            }
            Op::AdaptiveAvgPool { .. } => Box::new(kernels::pool::adaptive_average(x, y, isa)),
            Op::Activation(function) => Box::new(kernels::activation::activation(x, y, *function, isa)),
            Op::Softmax => Box::new(kernels::softmax::softmax(x, y, isa)),
            Op::Add => Box::new(kernels::elementwise::add(x, self.map(unit.inputs[1]), y, unit.activation, isa)),
            Op::Mul => {
                let gate = self.map(unit.inputs[1]);
                match unit.residual.map(|value| self.map(value)) {
                    None => Box::new(kernels::elementwise::multiply(x, gate, y, unit.activation, isa)),
                    Some(r) => Box::new(kernels::elementwise::multiply_add(x, gate, r, y, unit.activation, isa)),
                }
            }
            Op::Concat => return self.concat(unit),
            Op::ChannelPad { before, .. } => Box::new(kernels::elementwise::channel_pad(x, y, *before, isa)),
            Op::ChannelSlice { start, len } => {
                let part = Map::new([x.n, x.h, x.w, *len], x.ld);
                self.push(unit, Box::new(kernels::elementwise::copy(part, y, isa)), 0);
                let slot = self.slot(input, *start);
                self.steps.last_mut().expect("a step was just added").inputs[0] = slot;
                return Ok(());
            }
            Op::Flatten => Box::new(kernels::layout::flatten(x, y, isa)),
            Op::Dropout { .. } | Op::StochasticDepth { .. } => {
                return Err(Error::invalid(&unit.path, "an identity was left in the program"));
            }
        };
        self.push(unit, kernel, 2);
        Ok(())
    }

    /// Packs the caller's NCHW image into channels-last memory, with the stem's border if it asked for one.
    fn image(&mut self, unit: &Unit) -> Result<()> {
        let ([_, c, h, w], n) = (self.program.shape(unit.output), self.map(unit.output).n);
        let before = self.layout.border.map_or([0; 2], |border| border.before);
        let kernel = kernels::layout::from_nchw([n, c, h, w], self.map(unit.output), before, self.isa);
        let mut step = self.step(Box::new(kernel), "input", unit.output);
        step.inputs[0] = Slot::Images(n * c * h * w);
        self.steps.push(step);
        Ok(())
    }

    fn conv(&mut self, unit: &Unit) -> Result<()> {
        match &unit.form {
            Form::Plain => {}
            Form::Expanded(first) => return self.expand(unit, first),
            Form::Excite(first, pixels) => return self.excite(unit, first, *pixels),
        }
        let Op::Conv { weight, bias, window, groups } = unit.op else { unreachable!("called for convolutions only") };
        let (spec, padded) = self.spec(unit, window, groups)?;
        let special = padded || unit.before.is_some() || unit.sums.is_some() || unit.gate.is_some();
        let way = match &mut self.tuning {
            Some(tuning) if !special => tuning.choose(spec, self.precision, self.isa),
            _ => conv::Algorithm::usual(&spec, self.precision, self.isa),
        };
        let (weight, bias) = self.weights(unit, weight, bias)?;
        let sums = unit.sums.map(|value| self.map(value).ld);
        let gate = unit.gate.map(|value| self.map(value).ld);
        let bias = bias.as_deref();
        let kernel = match (&unit.before, sums, gate) {
            (Some(before), ..) => conv::strassen(spec, Some(prologue(before)), &weight, bias, self.isa),
            _ if padded => conv::stem(spec, &weight, bias, self.precision, self.isa),
            (_, Some(ld), _) => conv::depthwise_sums(spec, ld, &weight, bias, self.isa),
            (_, _, Some(ld)) => conv::gated(spec, ld, &weight, bias, self.precision, self.isa),
            _ => way.prepare(spec, &weight, bias, self.isa),
        };
        weight.finish()?;
        self.push(unit, kernel, 1);
        Ok(())
    }

    /// A depthwise convolution together with the expansion `first`.
    fn expand(&mut self, unit: &Unit, first: &Unit) -> Result<()> {
        let (Op::Conv { weight, bias, window, groups }, Op::Conv { weight: wide, bias: wide_bias, .. }) =
            (&unit.op, &first.op)
        else {
            unreachable!("both are convolutions")
        };
        let ([_, c, h, w], n) = (self.program.shape(first.output), self.map(unit.output).n);
        let depthwise = ConvSpec {
            input: Map::dense([n, h, w, c]),
            output: self.map(unit.output),
            window: *window,
            placed: window.place([h, w], &unit.path)?,
            groups: *groups,
            epilogue: Epilogue { activation: unit.activation, residual: None },
        };
        let sums = unit.sums.map(|value| self.map(value).ld);
        let spec = conv::ExpandSpec { input: self.map(unit.inputs[0]), activation: first.activation, depthwise, sums };
        let (weight, bias) = self.weights(unit, *weight, *bias)?;
        let (wide, wide_bias) = self.weights(first, *wide, *wide_bias)?;
        let weights =
            conv::ExpandWeights { expand: (&wide, wide_bias.as_deref()), depthwise: (&weight, bias.as_deref()) };
        let kernel = conv::expand_depthwise(&spec, weights, self.precision, self.team.threads(), self.isa);
        weight.finish()?;
        wide.finish()?;
        self.push(unit, kernel, 1);
        Ok(())
    }

    /// Both products of squeeze-and-excitation.
    fn excite(&mut self, unit: &Unit, first: &Unit, pixels: usize) -> Result<()> {
        let (Op::Conv { weight, bias, .. }, Op::Conv { weight: squeeze, bias: squeeze_bias, .. }) =
            (&unit.op, &first.op)
        else {
            unreachable!("both are convolutions")
        };
        let spec = ExciteSpec {
            sums: self.map(unit.inputs[0]),
            pixels,
            squeezed: self.program.shape(first.output)[1],
            activations: [first.activation, unit.activation],
            output: self.map(unit.output),
        };
        let (squeeze, squeeze_bias) = self.weights(first, *squeeze, *squeeze_bias)?;
        let (weight, bias) = self.weights(unit, *weight, *bias)?;
        let kernel = whole(&squeeze, |squeeze| {
            let squeeze = (squeeze, squeeze_bias.as_deref());
            whole(&weight, |weight| excite(spec, squeeze, (weight, bias.as_deref()), self.isa))
        });
        squeeze.finish()?;
        weight.finish()?;
        self.push(unit, Box::new(kernel), 1);
        Ok(())
    }

    fn deform(&mut self, unit: &Unit) -> Result<()> {
        let Op::DeformConv { weight, bias, window, groups, offset_groups } = unit.op else {
            unreachable!("called for deformable convolutions only")
        };
        let (spec, _) = self.spec(unit, window, groups)?;
        let (weight, bias) = self.weights(unit, weight, bias)?;
        let sampling = conv::Sampling {
            offset: self.map(unit.inputs[1]),
            mask: unit.inputs.get(2).map(|&mask| self.map(mask)),
            groups: offset_groups,
        };
        let kernel = conv::deform(spec, sampling, &weight, bias.as_deref(), self.isa);
        weight.finish()?;
        self.push(unit, kernel, 3);
        Ok(())
    }

    /// The geometry of a convolution, and whether its input carries the border already.
    fn spec(&self, unit: &Unit, window: Window, groups: usize) -> Result<(ConvSpec, bool)> {
        let value = unit.inputs[0];
        let [_, _, h, w] = self.program.shape(value);
        let bordered = self.layout.border.is_some() && self.is_image(value);
        let mut spec = geometry(unit, [self.map(value), self.map(unit.output)], [h, w], window, bordered)?;
        spec.groups = groups;
        spec.epilogue.residual = unit.residual.map(|value| self.map(value).ld);
        Ok((spec, bordered))
    }

    fn is_image(&self, value: NodeId) -> bool {
        self.program.units.iter().any(|u| u.output == value && matches!(u.op, Op::Input { .. }))
    }

    /// Weight and bias with a folded norm worked in: `s·(Wx + b) + t = (s·W)x + (s·b + t)`, in f64, rounded once.
    fn weights<'u>(
        &'u self,
        unit: &'u Unit,
        id: ParamId,
        bias: Option<ParamId>,
    ) -> Result<(Unpacked<'u>, Option<Vec<f32>>)> {
        let bias = bias.map(|id| self.source.value(id)).transpose()?;
        let scale = unit.affine.as_ref().map(|affine| affine.scale.as_slice());
        let failed = Mutex::new(None);
        let weight = Unpacked { source: self.source, id, scale, team: self.team, buffers: &self.buffers, failed };
        let Some(affine) = &unit.affine else { return Ok((weight, bias.map(|b| b.into_owned()))) };
        let per_channel = affine.scale.iter().zip(&affine.shift).enumerate();
        let shift = per_channel.map(|(c, (s, t))| (bias.as_ref().map_or(0.0, |b| f64::from(b[c])) * s + t) as f32);
        Ok((weight, Some(shift.collect())))
    }

    /// Copies the inputs that could not be written in place; usually none.
    fn concat(&mut self, unit: &Unit) -> Result<()> {
        for (value, channel, map) in self.layout.copies(self.program, &unit.inputs, unit.output) {
            let map = Map { n: self.portion.unwrap_or(map.n), ..map };
            let kernel = kernels::elementwise::copy(self.map(value), map, self.isa);
            let mut step = self.step(Box::new(kernel), &unit.path, unit.output);
            step.inputs[0] = self.slot(value, 0);
            step.output = self.slot(unit.output, channel);
            self.steps.push(step);
            self.notes
                .push((unit.path.clone(), format!("concat copies {} channels: they already live elsewhere", map.c)));
        }
        Ok(())
    }
}

fn rounded(values: Vec<f64>) -> Vec<f32> {
    values.into_iter().map(|v| v as f32).collect()
}

/// What a kernel applies while it reads.
fn prologue(Before { affine, activation }: &Before) -> conv::Prologue {
    let [scale, shift] = [&affine.scale, &affine.shift].map(|v| rounded(v.clone()));
    conv::Prologue { scale, shift, activation: *activation }
}
