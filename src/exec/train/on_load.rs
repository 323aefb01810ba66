//! Norms that the convolution behind them applies while it reads.
//!
//! Strassen's sums (1×1) and Winograd's transform (3×3) pass a convolution's input through registers before it is
//! multiplied, there and on the way back to the weights. A norm with a clamp that only such a convolution reads is applied
//! in passing, and what it makes is never stored.

use super::forward::Author;
use super::sketch::At;
use crate::activation::Activation;
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::{NodeId, Op};
use crate::kernels::conv::grad::{pointwise::Source, weight};
use crate::kernels::conv::{self, ConvSpec, Precision};

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

    /// Whether the only reader of a norm applies it while it reads.
    pub(super) fn reader_normalises(&self, norm: &Unit) -> Result<bool> {
        let value = norm.output;
        let mut readers = self.program.units.iter().filter(|unit| unit.reads().any(|read| read == value));
        let (Some(reader), None) = (readers.next(), readers.next()) else { return Ok(false) };
        Ok(!self.program.wanted.contains(&value) && self.normalises(reader)?)
    }

    /// Whether a unit can apply the norm before it while it reads.
    fn normalises(&self, reader: &Unit) -> Result<bool> {
        let norm = reader.inputs.first().and_then(|&value| self.norm_of(value));
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
