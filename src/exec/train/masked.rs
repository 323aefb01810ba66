//! ReLUs that are led through on the way: where a value is the output of a ReLU, its gradient is zero where it is zero.
//!
//! The convolution that reads such a value writes the gradient over it, zeros included, so that two maps are there at a time
//! instead of three and a pass over them is saved. A max-pool hands on the greatest of what the ReLU made: the gradient may be
//! masked behind the pool, where the map is smaller, and the map before it is not kept at all.

use super::forward::Author;
use super::sketch::{At, Draft};
use crate::activation::Activation;
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op};
use crate::kernels::conv::grad;

impl<'a> Author<'a> {
    /// Whether `unit` alone reads `value`, and that once.
    fn reads_alone(&self, unit: &Unit, value: NodeId) -> bool {
        let times = |unit: &Unit| unit.reads().filter(|&read| read == value).count();
        let all: usize = self.program.units.iter().map(times).sum();
        [all, times(unit)] == [1; 2] && !self.program.wanted.contains(&value)
    }

    /// Whether `value` is what the ReLU at the end of a convolution or linear layer made.
    fn is_rectified(&self, value: NodeId) -> bool {
        self.producer(value).is_some_and(|unit| unit.has_epilogue() && unit.activation == Some(Activation::Relu))
    }

    /// Whether `unit` is a max-pool that alone reads what a ReLU made.
    fn pools_rectified(&self, unit: &Unit) -> bool {
        matches!(unit.op, Op::MaxPool { .. })
            && unit.inputs.first().is_some_and(|&input| self.is_rectified(input) && self.reads_alone(unit, input))
    }

    /// Before the way back through a max-pool: masks the gradient of what it made, where it lies, for the ReLU before it.
    pub(super) fn mask_behind_pool(&mut self, unit: &Unit) -> Result<()> {
        if !self.pools_rectified(unit) {
            return Ok(());
        }
        if !std::mem::replace(&mut self.masked[unit.output.index()], true) {
            self.through_output(unit.output, Some(Activation::Relu), At::None)?;
        }
        self.masked[unit.inputs[0].index()] = true;
        Ok(())
    }

    /// The way back of a convolution that alone reads what a ReLU made, perhaps through a max-pool: the gradient of the
    /// weights, then that of the input over the input, through the ReLU. False, and nothing done, where that cannot be.
    pub(super) fn masked_backward(&mut self, unit: &Unit, from: Place, kept: At) -> Result<bool> {
        let (Op::Conv { weight, .. }, &[input]) = (&unit.op, &unit.inputs[..]) else { return Ok(false) };
        let rectified = self.is_rectified(input) || self.producer(input).is_some_and(|pool| self.pools_rectified(pool));
        // What is computed again will have a buffer of its own.
        let own = self.again[input.index()] || self.owners.contains(&(self.value(input).buffer, input));
        if !rectified || !own || !self.reads_alone(unit, input) || !self.may_share(input) {
            return Ok(false);
        }
        let (mut spec, _) = self.spec(unit, self.value(input).map)?;
        (spec.epilogue, spec.output) = (Default::default(), from.map);
        let Some(learned) = grad::masked_input_gradient(spec, self.options.precision, self.isa) else {
            return Ok(false);
        };
        // The packed weights wait for the gradient of the weights, and should not cost more than is saved.
        if learned.packed > from.map.extent() {
            return Ok(false);
        }
        let packed = self.sketch.buffer(learned.packed);
        self.sketch.push(Draft::new(learned.packing, &[kept], packed));
        let to = self.gradient_of(*weight);
        self.product_gradient(unit, from, to)?;
        // What was computed again lies elsewhere now.
        let place = self.kept_value(input)?;
        let macs = spec.output.pixels() * spec.output.c * spec.depth();
        let inputs = [from.into(), place.into()];
        self.sketch.push(Draft::new(learned.kernel, &inputs, place).weights(packed).macs(macs));
        self.masked[input.index()] = true;
        self.share(input, place);
        Ok(true)
    }
}
