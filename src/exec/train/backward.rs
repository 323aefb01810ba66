//! The steps of the way back, unit by unit from the last to the first.
//!
//! A value's gradient is the sum over its readers. The reader that comes last in the drawing arrives first and sets it, the
//! others add to it, in the order of the drawing reversed, whatever the number of threads.

use super::forward::{Author, IMAGE_GRADIENT, noise_of, response, slice};
use super::sketch::{At, Draft};
use crate::activation::Activation;
use crate::error::Result;
use crate::exec::memory::{Place, parts};
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op};
use crate::kernels::norm::train::{self as norm, Chain, Sums, Through};
use crate::kernels::pool::grad as pool;
use crate::kernels::{Store, elementwise, gradient, layout, noise};

impl<'a> Author<'a> {
    /// Writes the whole way back, from the gradients of the outputs on.
    pub(super) fn backward(&mut self) -> Result<()> {
        let program = self.program;
        self.place_slices();
        for (i, &value) in program.wanted.iter().enumerate() {
            self.seed(i, value);
        }
        for unit in program.units.iter().rev() {
            let output = unit.output.index();
            if !self.needed[output] || !self.arrived[output] || unit.inputs.is_empty() {
                continue;
            }
            self.sketch.path.clone_from(&unit.path);
            self.sketch.shape = program.shape(unit.output);
            self.settle(unit);
            self.unit_backward(unit)?;
            self.complete(unit);
        }
        let image = program.units.iter().find(|unit| unit.inputs.is_empty());
        if let Some(unit) = image.filter(|unit| self.options.input_gradient && self.arrived[unit.output.index()]) {
            self.sketch.path = "input".to_owned();
            self.sketch.shape = program.shape(unit.output);
            self.settle(unit);
            let from = self.arrival(unit.output);
            let kernel = layout::to_nchw(from.map, self.isa);
            self.sketch.push(Draft::new(kernel, &[from.into()], At::Outside(IMAGE_GRADIENT, 0)));
        }
        self.late_gradients()?;
        self.sketch.hand_on();
        Ok(())
    }

    /// Lets the gradients of concatenated values be slices of the concatenation's: where no other reader arrives first.
    fn place_slices(&mut self) {
        let program = self.program;
        let mut last_reader = vec![usize::MAX; program.shapes.len()];
        for (i, unit) in program.units.iter().enumerate() {
            unit.reads().for_each(|value| last_reader[value.index()] = i);
        }
        for (i, unit) in program.units.iter().enumerate().rev() {
            if !matches!(unit.op, Op::Concat) || !self.needed[unit.output.index()] {
                continue;
            }
            let whole = match self.gradients[unit.output.index()] {
                Some(place) => place,
                None => self.sketch.map(program.shape(unit.output)),
            };
            self.gradients[unit.output.index()] = Some(whole);
            for (value, there) in parts(program, whole, &unit.inputs) {
                let once = unit.inputs.iter().filter(|&&v| v == value).count() == 1;
                let first = last_reader[value.index()] == i && !program.wanted.contains(&value);
                if once && first && self.needed[value.index()] {
                    self.gradients[value.index()].get_or_insert(there);
                }
            }
        }
    }

    /// Where the gradient of a value that has arrived lies.
    pub(super) fn arrival(&self, value: NodeId) -> Place {
        self.gradients[value.index()].expect("a gradient that has arrived has a place")
    }

    /// Where a contribution to the gradient of `value` goes, and how. It counts as arrived from now on.
    pub(super) fn contribute(&mut self, value: NodeId) -> (Place, Store) {
        let place = match self.gradients[value.index()] {
            Some(place) => place,
            None => self.sketch.map(self.program.shape(value)),
        };
        self.gradients[value.index()] = Some(place);
        let store = if self.arrived[value.index()] { Store::Add } else { Store::Set };
        self.arrived[value.index()] = true;
        (place, store)
    }

    /// Whether the gradient of `value` may share the memory of another one.
    pub(super) fn may_share(&self, value: NodeId) -> bool {
        self.needed[value.index()] && self.gradients[value.index()].is_none()
    }

    /// Makes `place`, which holds it already, the gradient of `value`.
    pub(super) fn share(&mut self, value: NodeId, place: Place) {
        self.gradients[value.index()] = Some(place);
        self.arrived[value.index()] = true;
    }

    /// Adds the gradient at `from` to that of `value`.
    pub(super) fn pass(&mut self, value: NodeId, from: Place) {
        let (to, store) = self.contribute(value);
        self.meet(from, to, store);
    }

    /// Copies or adds a map to another one.
    pub(super) fn meet(&mut self, from: Place, to: Place, store: Store) {
        let draft = match store {
            Store::Set => Draft::new(elementwise::copy(from.map, to.map, self.isa), &[from.into()], to),
            Store::Add => {
                let kernel = elementwise::add(to.map, from.map, to.map, None, self.isa);
                Draft::new(kernel, &[to.into(), from.into()], to)
            }
        };
        self.sketch.push(draft);
    }

    /// The gradient of output number `i`.
    fn seed(&mut self, i: usize, value: NodeId) {
        if !self.needed[value.index()] {
            return;
        }
        self.sketch.path = "output".to_owned();
        self.sketch.shape = self.program.shape(value);
        let (to, store) = self.contribute(value);
        let seed = At::Outside(self.outside.seeds + i, 0);
        let place = if store == Store::Set { to } else { self.sketch.map(self.sketch.shape) };
        let kernel = layout::from_nchw(self.sketch.shape, place.map, [0; 2], self.isa);
        self.sketch.push(Draft::new(kernel, &[seed], place));
        if store == Store::Add {
            self.meet(place, to, store);
        }
    }

    fn unit_backward(&mut self, unit: &'a Unit) -> Result<()> {
        let (isa, input) = (self.isa, unit.inputs[0]);
        match &unit.op {
            Op::Input { .. } => {}
            Op::Conv { .. } | Op::Linear { .. } | Op::DeformConv { .. } => self.weighted_backward(unit)?,
            Op::BatchNorm { .. } => self.norm_backward(unit)?,
            Op::Activation(function) => {
                let kept = self.kept_for_activation(unit)?;
                let through = match crate::simd::has_output_gradient(*function) {
                    true => Through::Output(*function, kept.map.ld),
                    false => Through::Input(*function),
                };
                self.through(unit, through, kept);
            }
            Op::Add => self.add_backward(unit)?,
            Op::Mul => self.multiply_backward(unit)?,
            Op::AdaptiveAvgPool { .. } if self.gated[input.index()].is_some() => self.means_backward(unit),
            Op::Concat => {
                let whole = self.arrival(unit.output);
                for (value, there) in parts(self.program, whole, &unit.inputs) {
                    match self.gradients[value.index()] == Some(there) && self.needed[value.index()] {
                        true => self.arrived[value.index()] = true,
                        false if self.needed[value.index()] => self.pass(value, there),
                        false => {}
                    }
                }
            }
            Op::ChannelPad { before, .. } => {
                let [_, c, ..] = self.program.shape(input);
                let from = slice(self.arrival(unit.output), *before, c);
                self.pass(input, from);
            }
            Op::ChannelSlice { start, len } => {
                let from = self.arrival(unit.output);
                let (to, store) = self.contribute(input);
                match store {
                    Store::Set => {
                        let kernel = elementwise::channel_pad(from.map, to.map, *start, isa);
                        self.sketch.push(Draft::new(kernel, &[from.into()], to));
                    }
                    Store::Add => self.meet(from, slice(to, *start, *len), store),
                }
            }
            Op::Dropout { .. } | Op::StochasticDepth { .. } => {
                let (p, kind) = noise_of(&unit.op).expect("the operation is noise");
                let (from, stream) = (self.arrival(unit.output), self.stream(unit));
                let (to, store) = self.contribute(input);
                let kernel = noise::drop_out(from.map, to.map, p, kind, store, isa);
                self.sketch.push(Draft::new(kernel, &[from.into(), stream], to));
            }
            _ => self.plain_backward(unit)?,
        }
        Ok(())
    }

    /// What the derivative of an activation of its own is computed from.
    fn kept_for_activation(&mut self, unit: &Unit) -> Result<Place> {
        match unit.op {
            Op::Activation(function) if crate::simd::has_output_gradient(function) => self.kept_value(unit.output),
            _ => self.kept_value(unit.inputs[0]),
        }
    }

    /// The units that one kernel leads through, from the gradient of the output to that of the only input.
    fn plain_backward(&mut self, unit: &Unit) -> Result<()> {
        let (isa, input) = (self.isa, unit.inputs[0]);
        self.mask_behind_pool(unit)?;
        let from = self.arrival(unit.output);
        let also = match unit.op {
            Op::LocalResponseNorm { .. } => self.kept_value(input)?.into(),
            Op::Softmax => self.kept_value(unit.output)?.into(),
            Op::MaxPool { .. } => self.indices[unit.output.index()],
            _ => At::None,
        };
        let kept = match unit.op {
            Op::LocalResponseNorm { .. } => self.value(input).map,
            _ => self.value(unit.output).map,
        };
        let (to, store) = self.contribute(input);
        let (x, y) = (to.map, from.map);
        let kernel: Box<dyn crate::kernels::Kernel> = match &unit.op {
            Op::LocalResponseNorm { .. } => {
                let rule = response(&unit.op).expect("the operation is one");
                gradient::local_response([y, kept], x, rule, store, isa).into()
            }
            Op::Softmax => gradient::softmax([y, kept], x, store, isa).into(),
            Op::MaxPool { window } => {
                pool::max_gradient(x, y, *window, window.place([x.h, x.w], &unit.path)?, store, isa).into()
            }
            Op::AvgPool { window, count_include_pad } => {
                let placed = window.place([x.h, x.w], &unit.path)?;
                pool::average_gradient([x, y], *window, placed, *count_include_pad, store, isa).into()
            }
            Op::AdaptiveAvgPool { .. } => pool::adaptive_gradient(x, y, store, isa).into(),
            _ => gradient::unflatten(y, x, store, isa).into(),
        };
        self.sketch.push(Draft::new(kernel, &[from.into(), also], to));
        Ok(())
    }

    /// Leads the gradient of `unit`'s output through an activation of one input; in its place, if it may stay there.
    fn through(&mut self, unit: &Unit, through: Through, kept: Place) {
        let (from, input) = (self.arrival(unit.output), unit.inputs[0]);
        let (to, store) = match self.may_share(input) {
            true => (from, Store::Set),
            false => self.contribute(input),
        };
        let chain = Chain {
            gradient: from.map,
            gate: None,
            input: kept.map.ld,
            through,
            sums: Sums::None,
            store: Some((to.map.ld, store)),
            scaled: false,
        };
        let inputs = [from.into(), kept.into(), At::None, kept.into()];
        let kernel = norm::chain(chain, norm::block(from.map), self.isa);
        self.sketch.push(Draft::new(kernel, &inputs, At::None).also([to.into(), At::None]));
        if !self.arrived[input.index()] {
            self.share(input, to);
        }
    }

    /// Leads the gradient of `unit`'s output through the activation that was fused into it, where it lies, and computes the
    /// gradient of its bias.
    pub(super) fn activation_and_bias(&mut self, unit: &Unit, bias: At) -> Result<()> {
        let activation = unit.activation.filter(|_| !self.masked[unit.output.index()]);
        self.through_output(unit.output, activation, bias)
    }

    /// Leads the gradient of `value` through the activation that made it, where it lies, and sums it up to that of a bias.
    pub(super) fn through_output(&mut self, value: NodeId, activation: Option<Activation>, bias: At) -> Result<()> {
        let from = self.arrival(value);
        let sums = if bias == At::None { Sums::None } else { Sums::Bias };
        let (through, output) = match activation {
            None => (Through::Nothing, At::None),
            Some(activation) => {
                let output = self.kept_value(value)?;
                (Through::Output(activation, output.map.ld), output.into())
            }
        };
        if sums == Sums::None && through == Through::Nothing {
            return Ok(());
        }
        let store = (through != Through::Nothing).then_some((from.map.ld, Store::Set));
        let chain = Chain { gradient: from.map, gate: None, input: 0, through, sums, store, scaled: false };
        let block = self.sketch.block(from);
        let partial = match sums {
            Sums::None => At::None,
            _ => self.sketch.buffer(norm::partial_len(from.map, block, sums.rows())),
        };
        let to = if store.is_some() { from.into() } else { At::None };
        let inputs = [from.into(), At::None, At::None, output];
        let draft = Draft::new(norm::chain(chain, block, self.isa), &inputs, partial);
        self.sketch.push_behind(draft.also([to, At::None]));
        if sums == Sums::Bias {
            self.sketch.push(Draft::new(norm::total(from.map, block, self.isa), &[partial], bias));
        }
        Ok(())
    }

    fn add_backward(&mut self, unit: &Unit) -> Result<()> {
        self.activation_and_bias(unit, At::None)?;
        let from = self.arrival(unit.output);
        let wanted: Vec<NodeId> = unit.inputs.iter().copied().filter(|v| self.needed[v.index()]).collect();
        // One summand may have the sum's gradient for its own, after the others have taken theirs.
        let heir = wanted.iter().copied().find(|&value| self.may_share(value));
        let mut inherited = false;
        for &value in wanted.iter().filter(|&&value| Some(value) != heir) {
            self.pass(value, from);
        }
        for &value in wanted.iter().filter(|&&value| Some(value) == heir) {
            if inherited {
                self.pass(value, from);
            } else {
                self.share(value, from);
                inherited = true;
            }
        }
        Ok(())
    }
}
