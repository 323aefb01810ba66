//! Gradients that are handed on as soon as they are complete, so that their memory serves again: an optimiser that works
//! during the way back never has them all in memory.

use super::forward::Author;
use super::sketch::At;
use crate::error::Result;
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op, ParamId};

/// Gradients wait for each other until so many floats are complete: handing on interrupts the team of workers.
const TOGETHER: usize = 256 << 10;

impl<'a> Author<'a> {
    /// Where the gradient of a parameter goes: outside, or, if it is handed on, to a buffer of the plan.
    pub(super) fn gradient_of(&mut self, id: ParamId) -> At {
        if !self.learned[id.index()] {
            return At::None;
        }
        if !self.options.streamed {
            return At::Outside(self.outside.gradients + id.index(), 0);
        }
        if self.streamed[id.index()] == At::None {
            self.streamed[id.index()] = self.sketch.buffer(self.len(id));
        }
        self.streamed[id.index()]
    }

    /// Puts the gradient of a linear layer's weights off until the end of the way back, when the maps are gone that it would
    /// outweigh beside; `false` if it is no larger than what it is computed from, which has to wait with it.
    pub(super) fn put_off(&mut self, unit: &'a Unit) -> Result<bool> {
        let Op::Linear { weight, .. } = unit.op else { return Ok(false) };
        let floats = |value: NodeId| self.program.shape(value).iter().product::<usize>();
        let late = self.options.streamed && self.len(weight) > 4 * (floats(unit.inputs[0]) + floats(unit.output));
        if late {
            self.kept_value(unit.inputs[0])?;
            self.late.push(unit);
        }
        Ok(late)
    }

    /// Writes what was put off.
    pub(super) fn late_gradients(&mut self) -> Result<()> {
        for unit in std::mem::take(&mut self.late) {
            let Op::Linear { weight, .. } = unit.op else { continue };
            self.sketch.path.clone_from(&unit.path);
            self.sketch.shape = self.program.shape(unit.output);
            let (from, to) = (self.arrival(unit.output), self.gradient_of(weight));
            self.product_gradient(unit, from, to)?;
            self.complete(unit);
        }
        Ok(())
    }

    /// Notes that gradients of `unit`'s parameters are complete: nothing behind reads the parameters or adds to them.
    pub(super) fn complete(&mut self, unit: &Unit) {
        for id in unit.op.params() {
            if let At::Buffer(buffer, _) = std::mem::replace(&mut self.streamed[id.index()], At::None) {
                self.sketch.waiting.push((id, buffer));
            }
        }
        let floats: usize = self.sketch.waiting.iter().map(|&(_, buffer)| self.sketch.buffers[buffer]).sum();
        if floats >= TOGETHER {
            self.sketch.hand_on();
        }
    }
}
