//! What the norms of a dense block leave undone until all of them have come.
//!
//! A norm of a concatenation adds `scale · dT + b·(x − mean) + c` to the gradient of what it reads, with `b` and `c` known only
//! when `dT` has been summed over all pixels. Layer after layer would pass over the whole map twice. But only `scale · dT`
//! differs from pixel to pixel in a way of its own; what is left is the same function of `x` for every norm that reads the
//! channel, with other numbers. So `scale · dT` is added in the pass that sums `dT`, `b` and `c` are summed up by channel, and
//! the gradient of a layer's own channels is completed once, before it is read.

use super::forward::{Author, slice};
use super::sketch::{At, Draft};
use crate::error::Result;
use crate::exec::memory::{Place, parts};
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op};
use crate::kernels::Store;
use crate::kernels::norm::train::{self as norm, Chain, Sums, Through};

impl Author<'_> {
    /// Whether a norm leaves something undone: others read the same concatenation, or a part of it, or have left something
    /// undone there already.
    pub(super) fn defers(&self, unit: &Unit) -> bool {
        let input = unit.inputs[0];
        let concat = |value: NodeId| self.producer(value).filter(|unit| matches!(unit.op, Op::Concat));
        let shared = self.deferred[input.index()].is_some()
            || concat(input).is_some_and(|whole| {
                self.arrived[input.index()] || whole.inputs.iter().any(|&part| concat(part).is_some())
            });
        let within = self.gradients[input.index()].is_some_and(|place| place.offset + place.map.c <= place.map.ld);
        let plain = unit.residual.is_none() && self.gated[unit.output.index()].is_none();
        shared && within && plain && self.needed[input.index()]
    }

    /// The way back through a norm that [`defers`](Self::defers).
    pub(super) fn deferred_norm(&mut self, unit: &Unit) -> Result<()> {
        let (input, from) = (unit.inputs[0], self.arrival(unit.output));
        let (x, table) = (self.kept_value(input)?, self.tables[unit.output.index()]);
        let (to, store) = self.contribute(input);
        let through = unit.activation.map_or(Through::Nothing, Through::Normalised);
        let block = self.sketch.block(from);
        let partial = self.sketch.buffer(norm::partial_len(from.map, block, Sums::Norm.rows()));
        let store = Some((to.map.ld, store));
        let chain =
            Chain { gradient: from.map, gate: None, input: x.map.ld, through, sums: Sums::Norm, store, scaled: true };
        let inputs = [from.into(), x.into(), table];
        let draft = Draft::new(norm::chain(chain, block, self.isa), &inputs, partial);
        self.sketch.push_behind(draft.also([to.into(), At::None]));

        let before = self.deferred[input.index()].replace(x);
        let rows = (to.map.ld, if before.is_some() { Store::Add } else { Store::Set });
        let kernel = norm::deferred_statistics(from.map, block, self.statistic(unit), rows, self.isa);
        let (undone, affine) = (self.undone(to), self.affine_gradients(unit));
        self.sketch.push(Draft::new(kernel, &[partial, table], undone).also(affine));
        Ok(())
    }

    /// What has been left undone in the gradient at `place`.
    fn undone(&mut self, place: Place) -> At {
        let known = self.undone.iter().find(|(buffer, _)| *buffer == place.buffer).map(|&(_, rows)| rows);
        let rows = known.unwrap_or_else(|| {
            let rows = self.sketch.buffer(norm::BACKWARD_ROWS * place.map.ld);
            self.undone.push((place.buffer, rows));
            rows
        });
        rows.at(place.offset)
    }

    /// Completes the gradient of what `unit` has made, before it is read; that of a concatenation is left to its parts, where
    /// theirs are slices of it.
    pub(super) fn settle(&mut self, unit: &Unit) {
        let Some(x) = self.deferred[unit.output.index()].take() else { return };
        let place = self.arrival(unit.output);
        if matches!(unit.op, Op::Concat) {
            let parts = parts(self.program, place, &unit.inputs);
            let in_place = |&(value, there): &(NodeId, Place)| {
                self.gradients[value.index()] == Some(there)
                    && self.needed[value.index()]
                    && self.deferred[value.index()].is_none()
            };
            if parts.iter().all(in_place) {
                for (value, there) in parts {
                    self.deferred[value.index()] = Some(slice(x, there.offset - place.offset, there.map.c));
                }
                return;
            }
        }
        let last = norm::Backward {
            gradient: place.map,
            gate: None,
            input: x.map.ld,
            through: Through::Nothing,
            output: (place.map.ld, Store::Set),
            coefficients: place.map.ld,
        };
        let undone = self.undone(place);
        let inputs = [place.into(), x.into(), At::None, At::None, undone];
        self.sketch.push(Draft::new(norm::backward(last, self.isa), &inputs, place));
    }
}
