//! The steps of the way forward.

use super::gate::Gated;
use super::on_load::Absent;
use super::sketch::{At, Draft, Sketch};
use crate::error::{Error, Result};
use crate::exec::memory::{Border, Place, Residuals, parts, places};
use crate::exec::mode::{self, Noise, TrainOptions};
use crate::exec::plan::stem_border;
use crate::exec::prepare::geometry;
use crate::exec::program::{Program, Unit};
use crate::graph::{Graph, NodeId, Op, ParamId};
use crate::kernels::conv::{self, ConvSpec, Direction, Learned, LinearSpec, Sampling};
use crate::kernels::norm::train as norm;
use crate::kernels::pool::grad::{self as pool, Before};
use crate::kernels::{Kernel, Map, activation, elementwise, layout, naive, noise, softmax};
use crate::shape::Window;
use crate::simd::Isa;
use std::ops::Range;

/// Numbers of the memory outside the plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    pub(super) outputs: usize,
    pub(super) seeds: usize,
    pub(super) params: usize,
    pub(super) gradients: usize,
    pub(super) streams: usize,
    pub(super) len: usize,
}

/// Floats of a linear layer's weights that are packed at a time: they are read again at once, while they are in the cache,
/// and most of the memory that VGG's would take is never needed.
const PACKED: usize = 2 << 20;

/// The images.
pub(super) const IMAGES: usize = 0;
/// The gradient with respect to the images.
pub(super) const IMAGE_GRADIENT: usize = 1;

impl Outside {
    pub(super) fn new(outputs: usize, params: usize, streams: usize) -> Self {
        let seeds = 2 + outputs;
        let first = seeds + outputs;
        let gradients = first + params;
        let streams_at = gradients + params;
        Outside { outputs: 2, seeds, params: first, gradients, streams: streams_at, len: streams_at + streams }
    }
}

/// A batch norm whose running statistics follow those of the batch.
pub(super) struct Follower {
    pub(super) mean: ParamId,
    pub(super) var: ParamId,
    pub(super) momentum: f32,
    /// Values per channel.
    pub(super) count: usize,
    pub(super) channels: usize,
    /// The buffer of its table.
    pub(super) table: usize,
}

/// What a training step is written from.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) program: &'a Program,
    pub(super) graph: &'a Graph,
    pub(super) options: &'a TrainOptions,
    /// Which parameters get a gradient.
    pub(super) learned: &'a [bool],
    pub(super) isa: Isa,
}

/// Writes the steps of a training step.
pub(super) struct Author<'a> {
    pub(super) program: &'a Program,
    pub(super) graph: &'a Graph,
    pub(super) options: &'a TrainOptions,
    /// Which parameters get a gradient.
    pub(super) learned: &'a [bool],
    pub(super) isa: Isa,
    pub(super) outside: Outside,
    pub(super) sketch: Sketch,
    /// The number of the unit that makes a value.
    producers: Vec<Option<usize>>,
    /// Where every value lies.
    pub(super) values: Vec<Option<Place>>,
    /// The border that the image is packed with for the stem.
    pub(super) border: Option<Border>,
    /// Whether a value's gradient is computed.
    pub(super) needed: Vec<bool>,
    /// Where the gradient of a value will be, and whether something has arrived there.
    pub(super) gradients: Vec<Option<Place>>,
    pub(super) arrived: Vec<bool>,
    /// Values whose gradient is that of what stands before the ReLU that made them: it is zero already where they are.
    pub(super) masked: Vec<bool>,
    /// Values whose gradient the norm that made them computes from that of a product.
    pub(super) gated: Vec<Option<Gated>>,
    /// Values that the way back has to compute again before it reads them.
    pub(super) again: Vec<bool>,
    /// Norms whose output is not in memory: the convolution behind them applies them while it reads.
    pub(super) absent: Vec<bool>,
    /// The buffers of values that have one of their own, there and on the way back.
    pub(super) owners: Vec<(usize, NodeId)>,
    /// The table of a norm, by its output.
    pub(super) tables: Vec<At>,
    /// The means and, a pixel stride further on, the variances of the channels of a buffer, and which values' are known.
    pub(super) measured: Vec<(usize, At)>,
    pub(super) is_measured: Vec<bool>,
    /// What norms have left undone in gradients, by their buffer, and, of values whose gradients lack it, where the values
    /// themselves lie.
    pub(super) undone: Vec<(usize, At)>,
    pub(super) deferred: Vec<Option<Place>>,
    /// The remembered taps of a max-pool, by its output.
    pub(super) indices: Vec<At>,
    /// Where a weight waits for the way back.
    pub(super) kept: Vec<At>,
    /// Where a gradient lies that will be handed on.
    pub(super) streamed: Vec<At>,
    /// Linear layers whose weights' gradients come last.
    pub(super) late: Vec<&'a Unit>,
    pub(super) followers: Vec<Follower>,
    /// The noise layers.
    pub(super) noisy: Vec<NodeId>,
}

impl<'a> Author<'a> {
    /// An author who has written nothing yet. `again` are the values that are not kept for the way back.
    pub(super) fn new(task: Task<'a>, again: Vec<bool>) -> Self {
        let Task { program, graph, options, learned, isa } = task;
        let border = stem_border(program);
        let (values, buffers) = places(program, border, Residuals::Kept);
        let count = program.shapes.len();
        let mut needed = vec![false; count];
        for unit in &program.units {
            let learns = unit.op.params().iter().any(|id| learned[id.index()]);
            let image = matches!(unit.op, Op::Input { .. }) && options.input_gradient;
            needed[unit.output.index()] = learns || image || unit.reads().any(|v| needed[v.index()]);
        }
        let is_noise = |unit: &&Unit| matches!(unit.op, Op::Dropout { .. } | Op::StochasticDepth { .. });
        let noisy: Vec<NodeId> = program.units.iter().filter(is_noise).map(|unit| unit.output).collect();
        let params = graph.params().len();
        Author {
            program,
            graph,
            options,
            learned,
            isa,
            outside: Outside::new(program.wanted.len(), params, noisy.len()),
            sketch: Sketch::new(&buffers),
            producers: program.producers(),
            values,
            border,
            needed,
            gradients: vec![None; count],
            arrived: vec![false; count],
            masked: vec![false; count],
            gated: vec![None; count],
            again,
            absent: vec![false; count],
            owners: Vec::new(),
            tables: vec![At::None; count],
            measured: Vec::new(),
            is_measured: vec![false; count],
            undone: Vec::new(),
            deferred: vec![None; count],
            indices: vec![At::None; count],
            kept: vec![At::None; params],
            streamed: vec![At::None; params],
            late: Vec::new(),
            followers: Vec::new(),
            noisy,
        }
    }

    /// Writes the whole way forward.
    pub(super) fn forward(&mut self) -> Result<()> {
        let program = self.program;
        for unit in &program.units {
            self.sketch.path.clone_from(&unit.path);
            self.sketch.shape = program.shape(unit.output);
            self.unit_forward(unit)?;
        }
        for (i, &value) in program.wanted.iter().enumerate() {
            self.sketch.path = "output".to_owned();
            self.sketch.shape = program.shape(value);
            let place = self.value(value);
            let kernel = layout::to_nchw(place.map, self.isa);
            self.sketch.push(Draft::new(kernel, &[place.into()], At::Outside(self.outside.outputs + i, 0)));
        }
        self.sketch.forward_steps = self.sketch.len();
        Ok(())
    }

    /// Where a value lies on the way forward.
    pub(super) fn value(&self, value: NodeId) -> Place {
        self.values[value.index()].expect("every value of the program has been placed")
    }

    pub(super) fn param(&self, id: ParamId) -> At {
        At::Outside(self.outside.params + id.index(), 0)
    }

    fn optional_param(&self, id: Option<ParamId>) -> At {
        id.map_or(At::None, |id| self.param(id))
    }

    /// Where a weight or bias can be read: where it was kept on the way back, unless that is given the parameters too.
    pub(super) fn weight(&self, id: ParamId) -> At {
        match self.kept[id.index()] {
            At::None => self.param(id),
            kept => kept,
        }
    }

    pub(super) fn len(&self, id: ParamId) -> usize {
        self.graph.params()[id.index()].len()
    }

    /// The number of the stream that noise layer `unit` reads.
    pub(super) fn stream(&self, unit: &Unit) -> At {
        let number = self.noisy.iter().position(|&id| id == unit.output).expect("every noise layer was counted");
        At::Outside(self.outside.streams + number, 0)
    }

    /// A unit with one input and a kernel without state.
    fn simple(&mut self, unit: &Unit, kernel: impl Kernel + 'static) {
        let inputs: Vec<At> = unit.inputs.iter().map(|&value| self.value(value).into()).collect();
        let output = self.value(unit.output);
        self.sketch.push(Draft::new(kernel, &inputs, output));
    }

    /// Writes the steps of one unit, there or, once what it reads is there again, on the way back.
    pub(super) fn unit_forward(&mut self, unit: &Unit) -> Result<()> {
        let isa = self.isa;
        let y = self.value(unit.output).map;
        let Some(&input) = unit.inputs.first() else { return self.image(unit) };
        let x = self.value(input).map;
        match &unit.op {
            Op::Input { .. } => return self.image(unit),
            Op::Conv { .. } | Op::DeformConv { .. } | Op::Linear { .. } => return self.weighted(unit),
            Op::BatchNorm { .. } => return self.batch_norm(unit),
            Op::LocalResponseNorm { .. } => {
                let rule = response(&unit.op).expect("the operation is one");
                self.simple(unit, crate::kernels::norm::local_response(x, y, rule, isa));
            }
            Op::MaxPool { window } => return self.max_pool(unit, window),
            Op::AvgPool { window, count_include_pad } => {
                let placed = window.place([x.h, x.w], &unit.path)?;
                self.simple(unit, crate::kernels::pool::average(x, y, *window, placed, *count_include_pad, isa));
            }
            Op::AdaptiveAvgPool { .. } => match self.absent_norm(input) {
                Some(norm) => self.normalised_means(unit, norm),
                None => self.simple(unit, crate::kernels::pool::adaptive_average(x, y, isa)),
            },
            Op::Activation(function) => self.simple(unit, activation::activation(x, y, *function, isa)),
            Op::Softmax => self.simple(unit, softmax::softmax(x, y, isa)),
            Op::Add => {
                let other = self.value(unit.inputs[1]).map;
                self.simple(unit, elementwise::add(x, other, y, unit.activation, isa));
            }
            Op::Mul => {
                let gate = self.value(unit.inputs[1]);
                if let Some(norm) = self.absent_norm(input) {
                    self.normalised_product(unit, norm, gate);
                    return Ok(());
                }
                let Some(shortcut) = unit.residual.map(|value| self.value(value)) else {
                    self.simple(unit, elementwise::multiply(x, gate.map, y, unit.activation, isa));
                    return Ok(());
                };
                let kernel = elementwise::multiply_add(x, gate.map, shortcut.map, y, unit.activation, isa);
                let (from, to) = (self.value(input), self.value(unit.output));
                self.sketch.push(Draft::new(kernel, &[from.into(), gate.into(), shortcut.into()], to));
            }
            Op::Concat => {
                for (value, there) in parts(self.program, self.value(unit.output), &unit.inputs) {
                    let here = self.value(value);
                    if here != there {
                        let kernel = elementwise::copy(here.map, there.map, isa);
                        self.sketch.push(Draft::new(kernel, &[here.into()], there));
                    }
                }
            }
            Op::ChannelPad { before, .. } => self.simple(unit, elementwise::channel_pad(x, y, *before, isa)),
            Op::ChannelSlice { start, len } => {
                let from = slice(self.value(input), *start, *len);
                let to = self.value(unit.output);
                self.sketch.push(Draft::new(elementwise::copy(from.map, y, isa), &[from.into()], to));
            }
            Op::Flatten => self.simple(unit, layout::flatten(x, y, isa)),
            Op::Dropout { .. } | Op::StochasticDepth { .. } => {
                let (p, kind) = noise_of(&unit.op).expect("the operation is noise");
                let kernel = noise::drop_out(x, y, p, kind, crate::kernels::Store::Set, isa);
                let inputs = [self.value(input).into(), self.stream(unit)];
                let to = self.value(unit.output);
                debug_assert!(self.options.noise == Noise::On);
                self.sketch.push(Draft::new(kernel, &inputs, to));
            }
        }
        Ok(())
    }

    /// A max-pool remembers its maxima the first time, and applies the norm before it if that is left to it.
    fn max_pool(&mut self, unit: &Unit, window: &Window) -> Result<()> {
        let (input, to, isa) = (unit.inputs[0], self.value(unit.output), self.isa);
        let Map { h, w, .. } = self.value(input).map;
        let placed = window.place([h, w], &unit.path)?;
        let (norm, known) = (self.absent_norm(input), self.indices[unit.output.index()]);
        if norm.is_none() && (!self.needed[input.index()] || known != At::None) {
            self.simple(unit, crate::kernels::pool::max(self.value(input).map, to.map, *window, placed, isa));
            return Ok(());
        }
        if window.taps() > pool::MOST_TAPS {
            let found = window.taps();
            return Err(Error::mismatch(&unit.path, "taps of a max-pool to be trained", "at most 256", found));
        }
        let indices = if known == At::None { self.sketch.buffer(pool::indices_len(to.map)) } else { known };
        self.indices[unit.output.index()] = indices;
        let before = norm.and_then(|norm| Before::norm(window, norm.clamp)).unwrap_or(Before::Nothing);
        let (x, table) = norm.map_or((self.value(input), At::None), |norm| (norm.x, norm.table));
        let kernel = pool::max([x.map, to.map], *window, placed, before, isa);
        self.sketch.push(Draft::new(kernel, &[x.into(), table], to).also([indices, At::None]));
        Ok(())
    }

    fn image(&mut self, unit: &Unit) -> Result<()> {
        let [n, c, h, w] = self.program.shape(unit.output);
        let to = self.value(unit.output);
        let before = self.border.map_or([0; 2], |border| border.before);
        let kernel = layout::from_nchw([n, c, h, w], to.map, before, self.isa);
        self.sketch.push(Draft::new(kernel, &[At::Outside(IMAGES, 0)], to));
        Ok(())
    }

    /// The geometry of a weighted unit without its epilogue's residual, and whether its input holds its border.
    pub(super) fn spec(&self, unit: &Unit, x: Map) -> Result<(ConvSpec, bool)> {
        let (value, y) = (unit.inputs[0], self.value(unit.output).map);
        let [_, _, h, w] = self.program.shape(value);
        let bordered = self.border.is_some() && value.index() == 0 && [x.h, x.w] != [h, w];
        match unit.op {
            Op::Conv { window, groups, .. } | Op::DeformConv { window, groups, .. } => {
                let mut spec = geometry(unit, [x, y], [h, w], window, bordered)?;
                spec.groups = groups;
                Ok((spec, bordered))
            }
            _ => {
                let linear =
                    LinearSpec { n: x.n, input: [x.c, x.ld], output: [y.c, y.ld], activation: unit.activation };
                Ok((linear.convolution(), false))
            }
        }
    }

    /// The samples of a deformable convolution.
    pub(super) fn sampling(&self, unit: &Unit) -> Option<Sampling> {
        let Op::DeformConv { offset_groups, .. } = unit.op else { return None };
        Some(Sampling {
            offset: self.value(unit.inputs[1]).map,
            mask: unit.inputs.get(2).map(|&mask| self.value(mask).map),
            groups: offset_groups,
        })
    }

    fn weighted(&mut self, unit: &Unit) -> Result<()> {
        let (Op::Conv { weight, bias, .. } | Op::DeformConv { weight, bias, .. } | Op::Linear { weight, bias }) =
            unit.op
        else {
            return Ok(());
        };
        let (mut spec, bordered) = self.spec(unit, self.value(unit.inputs[0]).map)?;
        let mut inputs: Vec<At> = unit.inputs.iter().map(|&value| self.value(value).into()).collect();
        let absent = self.absent_norm(unit.inputs[0]);
        if let Some(Absent { x, table, .. }) = absent {
            (spec.input, inputs) = (x.map, vec![x.into(), At::None, table]);
        }
        for rows in self.pieces(unit) {
            let bias_len = bias.map(|_| rows.len());
            let to = slice(self.value(unit.output), rows.start, rows.len());
            spec.output = to.map;
            let behind = |Absent { clamp, .. }| conv::learned_norm(spec, clamp, self.options.precision, self.isa);
            let absent = absent.map(behind);
            let plain = || match (self.sampling(unit), bordered) {
                (Some(sampling), _) => conv::learned_deform(spec, sampling, bias_len, self.isa),
                (None, true) => conv::learned_stem(spec, bias_len, self.isa),
                (None, false) => conv::learned(spec, Direction::Forward, bias_len, self.options.precision, self.isa),
            };
            let Learned { kernel, packing, packed } = absent.unwrap_or_else(plain);
            let packed = self.sketch.buffer(packed);
            let weights = self.weight(weight).at(rows.start * spec.depth());
            let biases = bias.map_or(At::None, |id| self.weight(id).at(rows.start));
            self.sketch.push(Draft::new(packing, &[weights, biases], packed));
            let macs = spec.output.pixels() * spec.output.c * spec.depth();
            self.sketch.push(Draft::new(kernel, &inputs, to).weights(packed).macs(macs));
        }
        let again = self.again[unit.output.index()];
        if again || unit.inputs.iter().any(|value| self.needed[value.index()]) {
            self.keep(weight);
        }
        bias.filter(|_| again).into_iter().for_each(|bias| self.keep(bias));
        Ok(())
    }

    /// The outputs of a weighted unit whose weights are packed together: all of them, or some of a large linear layer's.
    pub(super) fn pieces(&self, unit: &Unit) -> Vec<Range<usize>> {
        let [_, outputs, ..] = self.program.shape(unit.output);
        let most = match unit.op {
            Op::Linear { weight, .. } => {
                let features = self.len(weight) / outputs.max(1);
                (PACKED / features.max(1)).max(64).next_multiple_of(64)
            }
            _ => outputs.max(1),
        };
        (0..outputs).step_by(most).map(|start| start..outputs.min(start + most)).collect()
    }

    /// Keeps a copy of a weight or bias for the way back: where its gradient will be, if it gets one. There it stays until
    /// the layer's output has been computed again and the gradient of its input is, which is before its own is.
    fn keep(&mut self, weight: ParamId) {
        if self.options.streamed || self.kept[weight.index()] != At::None {
            return;
        }
        let len = self.len(weight);
        let to = match self.learned[weight.index()] {
            true => self.gradient_of(weight),
            false => self.sketch.buffer(len),
        };
        let rows = self.graph.params()[weight.index()].shape[0];
        let map = Map::dense([1, rows, 1, len / rows]);
        let kernel = elementwise::copy(map, map, self.isa);
        self.sketch.push(Draft::new(kernel, &[self.param(weight)], to));
        self.kept[weight.index()] = to;
    }

    /// The unit that makes `value`.
    pub(super) fn producer(&self, value: NodeId) -> Option<&'a Unit> {
        self.producers[value.index()].map(|unit| &self.program.units[unit]).filter(|unit| unit.output == value)
    }

    /// Whether a batch norm keeps the running statistics it has.
    pub(super) fn is_fixed(&self, op: &Op) -> bool {
        let Op::BatchNorm { mean, .. } = op else { return false };
        self.options.is_frozen(&self.graph.params()[mean.index()].name)
    }

    fn batch_norm(&mut self, unit: &Unit) -> Result<()> {
        let Op::BatchNorm { scale, shift, mean, var, eps, momentum } = unit.op else { return Ok(()) };
        if self.tables[unit.output.index()] != At::None {
            self.normalise(unit); // by the statistics it had on the way there
            return Ok(());
        }
        let (x, eps) = (self.value(unit.inputs[0]), f64::from(eps));
        let affine = [scale, shift].map(|id| self.optional_param(id));
        let table = self.sketch.buffer(norm::TABLE_ROWS * x.map.c);
        self.tables[unit.output.index()] = table;
        if self.is_fixed(&unit.op) {
            let inputs = [self.param(mean), self.param(var), affine[0], affine[1]];
            self.sketch.push(Draft::new(norm::fixed_statistics(x.map, eps, self.isa), &inputs, table));
        } else {
            let [n, _, h, w] = self.program.shape(unit.output);
            let path = &unit.path;
            let place =
                if path.is_empty() { unit.op.name().to_owned() } else { format!("{path} ({})", unit.op.name()) };
            mode::check_batch(&place, [n, x.map.c, h, w])?;
            self.batch_statistics(unit.inputs[0], eps, affine, table);
            if let At::Buffer(table, _) = table {
                let (count, channels) = (x.map.pixels(), x.map.c);
                self.followers.push(Follower { mean, var, momentum, count, channels, table });
            }
        }
        match self.reader_normalises(unit)? {
            true => (self.again[unit.output.index()], self.absent[unit.output.index()]) = (true, true),
            false => self.normalise(unit),
        }
        Ok(())
    }

    /// The last step of a norm: `y = activation(x · scale + shift + residual)`.
    fn normalise(&mut self, unit: &Unit) {
        let [x, y] = [unit.inputs[0], unit.output].map(|value| self.value(value));
        let residual = unit.residual.map(|value| self.value(value));
        let kernel = norm::apply(x.map, y.map, residual.map(|place| place.map.ld), unit.activation, self.isa);
        let inputs = [x.into(), self.tables[unit.output.index()], residual.map_or(At::None, At::from)];
        self.sketch.push(Draft::new(kernel, &inputs, y));
    }
}

/// Channels `start .. start + len` of a map.
pub(super) fn slice(place: Place, start: usize, len: usize) -> Place {
    let Map { n, h, w, ld, .. } = place.map;
    Place { offset: place.offset + start, map: Map::new([n, h, w, len], ld), ..place }
}

/// The settings of a local response norm.
pub(super) fn response(op: &Op) -> Option<naive::LocalResponse> {
    let Op::LocalResponseNorm { size, alpha, beta, k } = *op else { return None };
    let [alpha, beta, k] = [alpha, beta, k].map(f64::from);
    Some(naive::LocalResponse { size, alpha, beta, k })
}

/// What noise drops, with which probability.
pub(super) fn noise_of(op: &Op) -> Option<(f32, noise::Unit)> {
    match *op {
        Op::Dropout { p } => Some((p, noise::Unit::Element)),
        Op::StochasticDepth { p } => Some((p, noise::Unit::Image)),
        _ => None,
    }
}
