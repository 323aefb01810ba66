//! Norms that what stands behind them applies while it reads.
//!
//! Strassen's sums (1×1) and Winograd's transform (3×3) pass a convolution's input through registers before it is
//! multiplied, there and on the way back to the weights. A norm with a clamp that only such a convolution reads is applied
//! in passing, and what it makes is never stored. So is one before a max-pool whose windows overlap little, and one
//! without a clamp that a gate follows from and is applied to, as in
//! squeeze-and-excitation: its means are the norm of the means.

use super::forward::Author;
use super::sketch::{At, Draft};
use crate::activation::Activation;
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op};
use crate::kernels::conv::grad::{pointwise::Source, weight};
use crate::kernels::conv::{self, ConvSpec, Precision};
use crate::kernels::norm::train as norm;
use crate::kernels::pool;

/// What stands for the output of a norm that is not in memory.
#[derive(Clone, Copy)]
pub(super) struct Absent {
    /// The input of the norm.
    pub(super) x: Place,
    /// Its table.
    pub(super) table: At,
    /// The clamp behind it.
    pub(super) clamp: Option<Activation>,
}

impl<'a> Author<'a> {
    /// The norm without a shortcut that makes `value`, if one does.
    pub(super) fn norm_of(&self, value: NodeId) -> Option<&'a Unit> {
        let unit = self.producer(value)?;
        (matches!(unit.op, Op::BatchNorm { .. }) && unit.residual.is_none()).then_some(unit)
    }

    /// Whether the only reader of a norm applies it while it reads, or the two that scale it by a gate.
    pub(super) fn reader_normalises(&self, norm: &Unit) -> Result<bool> {
        let value = norm.output;
        if norm.residual.is_none() && norm.activation.is_none() {
            let mut products = self.program.units.iter().filter(|unit| matches!(unit.op, Op::Mul));
            if products.any(|unit| unit.inputs[0] == value && self.follows_from_means(unit)) {
                return Ok(true);
            }
        }
        let mut readers = self.program.units.iter().filter(|unit| unit.reads().any(|read| read == value));
        let (Some(reader), None) = (readers.next(), readers.next()) else { return Ok(false) };
        Ok(!self.program.wanted.contains(&value) && self.normalises(reader)?)
    }

    /// The means of a norm that is not in memory: the norm of the means of what it reads.
    pub(super) fn normalised_means(&mut self, unit: &Unit, Absent { x, table, .. }: Absent) {
        let (to, isa) = (self.value(unit.output), self.isa);
        self.sketch.push(Draft::new(pool::adaptive_average(x.map, to.map, isa), &[x.into()], to));
        self.sketch.push(Draft::new(norm::apply(to.map, to.map, None, None, isa), &[to.into(), table], to));
    }

    /// The product of a norm that is not in memory with a gate.
    pub(super) fn normalised_product(&mut self, unit: &Unit, Absent { x, table, .. }: Absent, gate: Place) {
        let to = self.value(unit.output);
        let residual = unit.residual.map(|value| self.value(value));
        let ld = residual.map(|place| place.map.ld);
        let kernel = norm::apply_gated(x.map, to.map, gate.map.ld, ld, unit.activation, self.isa);
        let inputs = [x.into(), table, residual.map_or(At::None, At::from), gate.into()];
        self.sketch.push(Draft::new(kernel, &inputs, to));
    }

    /// Whether a unit can apply the norm before it while it reads.
    fn normalises(&self, reader: &Unit) -> Result<bool> {
        let norm = reader.inputs.first().and_then(|&value| self.norm_of(value));
        if let (Some(norm), Op::MaxPool { window }) = (norm, &reader.op) {
            return Ok(pool::grad::Before::norm(window, norm.activation).is_some());
        }
        let (Some(norm), Op::Conv { bias: None, .. }) = (norm, &reader.op) else { return Ok(false) };
        let (spec, bordered) = self.spec(reader, self.value(norm.inputs[0]).map)?;
        let able = conv::takes_norm(&spec, norm.activation, self.options.precision);
        Ok(able && !bordered)
    }

    /// On the way back, if a convolution reads a norm's output that is not in memory any more, it applies the norm itself if it
    /// can, whoever else has read that on the way there. Not with a 1×1 window, which it would compute in another form then.
    pub(super) fn leave_to_reader(&mut self, unit: &Unit) -> Result<()> {
        let Op::Conv { window, .. } = unit.op else { return Ok(()) };
        let value = unit.inputs[0];
        if self.again[value.index()] && !self.absent[value.index()] && window.kernel != [1, 1] {
            self.absent[value.index()] = self.normalises(unit)?;
        }
        Ok(())
    }

    /// What to read in place of `value`, if it is the output of a norm and not in memory.
    pub(super) fn absent_norm(&self, value: NodeId) -> Option<Absent> {
        let norm = self.norm_of(value).filter(|_| self.absent[value.index()])?;
        let table = self.tables[value.index()];
        Some(Absent { x: self.value(norm.inputs[0]), table, clamp: norm.activation })
    }

    /// Writes the gradient of a convolution's weights from the input of the norm before it, if what the norm made is not
    /// in memory and this is faster than making it again.
    pub(super) fn weight_gradient_on_load(&mut self, unit: &Unit, from: Place, to: At) -> Result<bool> {
        self.leave_to_reader(unit)?;
        let Some(Absent { x, table, clamp }) = self.absent_norm(unit.inputs[0]) else { return Ok(false) };
        let (spec, bordered) = self.spec(unit, x.map)?;
        let spec = ConvSpec { output: from.map, epilogue: Default::default(), ..spec };
        if bordered || self.options.precision == Precision::Exact {
            return Ok(false);
        }
        let gradient = weight::weight_gradient_norm(spec, Source::Norm(clamp), self.isa);
        let Some(gradient) = gradient else { return Ok(false) };
        let norm = self.norm_of(unit.inputs[0]).expect("it is absent");
        let x = self.kept_value(norm.inputs[0])?;
        let macs = spec.output.pixels() * spec.output.c * spec.depth();
        self.weight_gradient(gradient, &[x.into(), from.into(), table], to, macs);
        Ok(true)
    }
}
