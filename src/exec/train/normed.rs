//! The way back of a batch norm with the activation and the shortcut behind it: a pass that sums, coefficients that follow from the
//! sums, a pass that uses them.

use super::forward::Author;
use super::fuse::cuts_off;
use super::gate::Gated;
use super::sketch::{At, Draft};
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::Op;
use crate::kernels::norm::train::{self as norm, Chain, Gate, Partial, Statistic, Sums, Through};
use crate::kernels::{Map, Store};

/// What both passes of a norm read.
struct Passes {
    /// The gradient of the output, or of the product behind a gate.
    from: Place,
    /// The norm's input.
    x: Place,
    table: At,
    /// The activation's output, or the gate.
    other: At,
    /// The gradient of the means that a gate follows from.
    means: At,
    gate: Option<Gate>,
    through: Through,
}

impl Passes {
    /// As the inputs of either pass.
    fn inputs(&self, coefficients: At) -> [At; 6] {
        [self.from.into(), self.x.into(), self.table, self.other, coefficients, self.means]
    }
}

impl<'a> Author<'a> {
    pub(super) fn norm_backward(&mut self, unit: &Unit) -> Result<()> {
        if self.defers(unit) {
            return self.deferred_norm(unit);
        }
        let gated = self.gated[unit.output.index()].take();
        let passes = self.passes(unit, gated)?;
        let (input, from, alone) = (unit.inputs[0], passes.from, gated.is_none_or(|gated| gated.alone));
        // Where dT goes: to the shortcut's gradient, and there it may be that of the output itself. Without a shortcut it
        // is stored only if it costs more to compute than to read.
        let shortcut = unit.residual.filter(|value| self.needed[value.index()]);
        let shared = shortcut.is_some_and(|value| self.may_share(value) && value != input);
        let in_place = (from, Store::Set);
        let stored = match (shortcut, unit.activation) {
            (Some(_), _) if shared => (passes.through != Through::Nothing).then_some(in_place),
            (Some(value), _) => Some(self.contribute(value)),
            (None, Some(activation)) if !cuts_off(activation) && alone => Some(in_place),
            (None, _) => None,
        };
        let (partial, sums) = match gated.and_then(|gated| self.sums_from_moments(gated, from.map)) {
            Some(sums) => (Partial::Images, sums),
            None => self.sum_pass(&passes, stored),
        };
        let coefficients = self.coefficients(unit, from.map, (partial, sums), passes.table);
        if shared {
            self.share(shortcut.expect("it is shared"), from);
        }
        if !self.needed[input.index()] {
            return Ok(());
        }
        // In the place of the output's gradient, or in that of the norm's input, which nothing else reads.
        let heir = match shared || !alone {
            true => self.bequest(unit, input),
            false => self.may_share(input).then_some(from),
        };
        let to = match heir {
            Some(place) => (place, Store::Set),
            None => self.contribute(input),
        };
        self.last_pass(passes, stored == Some(in_place), coefficients, to);
        if let Some(place) = heir {
            self.share(input, place);
        }
        Ok(())
    }

    /// What the passes of `unit` read.
    fn passes(&mut self, unit: &Unit, gated: Option<Gated>) -> Result<Passes> {
        let (from, x) = (self.arrival(unit.output), self.kept_value(unit.inputs[0])?);
        let [factor, means] = gated.map_or([At::None; 2], |gated| gated.maps());
        let (through, other) = match (unit.activation, unit.residual) {
            (None, _) => (Through::Nothing, factor),
            (Some(activation), None) => (Through::Normalised(activation), factor),
            (Some(activation), Some(_)) => {
                let y = self.kept_value(unit.output)?;
                (Through::Output(activation, y.map.ld), y.into())
            }
        };
        let (table, gate) = (self.tables[unit.output.index()], gated.map(|gated| gated.rule()));
        Ok(Passes { from, x, table, other, means, gate, through })
    }

    /// Writes the pass that sums, and stores dT if it is to; gives its sums.
    fn sum_pass(&mut self, passes: &Passes, stored: Option<(Place, Store)>) -> (Partial, At) {
        let (map, block) = (passes.from.map, self.sketch.block(passes.from));
        let partial = self.sketch.buffer(norm::partial_len(map, block, Sums::Norm.rows()));
        let chain = Chain {
            gradient: map,
            gate: passes.gate,
            input: passes.x.map.ld,
            through: passes.through,
            sums: Sums::Norm,
            store: stored.map(|(place, store)| (place.map.ld, store)),
            scaled: false,
        };
        let to = stored.map_or(At::None, |(place, _)| place.into());
        let draft = Draft::new(norm::chain(chain, block, self.isa), &passes.inputs(At::None), partial);
        self.sketch.push_behind(draft.also([to, At::None]));
        (Partial::Blocks(block), partial)
    }

    /// Writes the step between the passes: the gradients of scale and shift, and what the last pass needs to know.
    fn coefficients(&mut self, unit: &Unit, map: Map, (partial, sums): (Partial, At), table: At) -> At {
        let coefficients = self.sketch.buffer(norm::BACKWARD_ROWS * map.c);
        let kernel = norm::backward_statistics(map, partial, self.statistic(unit), self.isa);
        let affine = self.affine_gradients(unit);
        self.sketch.push(Draft::new(kernel, &[sums, table], coefficients).also(affine));
        coefficients
    }

    /// Writes the pass to the gradient of the norm's input. If `done`, dT lies where the gradient was.
    fn last_pass(&mut self, passes: Passes, done: bool, coefficients: At, (to, store): (Place, Store)) {
        let (gate, through) = if done { (None, Through::Nothing) } else { (passes.gate, passes.through) };
        let last = norm::Backward {
            gradient: passes.from.map,
            gate,
            input: passes.x.map.ld,
            through,
            output: (to.map.ld, store),
            coefficients: passes.from.map.c,
        };
        self.sketch.push(Draft::new(norm::backward(last, self.isa), &passes.inputs(coefficients), to));
    }

    /// Which statistics a norm used.
    pub(super) fn statistic(&self, unit: &Unit) -> Statistic {
        if self.is_fixed(&unit.op) { Statistic::Running } else { Statistic::Batch }
    }

    /// Where the gradients of a norm's scale and shift go.
    pub(super) fn affine_gradients(&mut self, unit: &Unit) -> [At; 2] {
        let Op::BatchNorm { scale, shift, .. } = unit.op else { return [At::None; 2] };
        [scale, shift].map(|id| id.map_or(At::None, |id| self.gradient_of(id)))
    }
}
