//! Folds batch norm into the weighted operation before it: `γ·(Wx + b − μ)/√(σ² + ε) + β` is another `W'x + b'`.
//!
//! The arithmetic is in f64 and rounded once, when the weights are packed.

use super::super::program::{Affine, Program};
use crate::error::Result;
use crate::graph::{Op, ParamId, ParamSource};
use std::collections::HashSet;

pub(super) fn run(program: &mut Program, source: &dyn ParamSource) -> Result<()> {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let Some(norm) = fold_affine(&program.units[i].op, source)? else { continue };
        let before = program.units[i].inputs[0];
        let path = program.units[i].path.clone();
        let Some(j) = producers[before.index()] else { continue };
        if !program.units[j].has_epilogue() {
            let text =
                format!("batch norm stays: {} before it has no weights to fold into", program.units[j].op.name());
            program.note(&path, text);
            continue;
        }
        if uses[before.index()] > 1 {
            let text = format!("batch norm stays: `{}` is read {} times", program.units[j].path, uses[before.index()]);
            program.note(&path, text);
            continue;
        }
        let output = program.units[i].output;
        let unit = &mut program.units[j];
        unit.affine = Some(norm);
        unit.output = output;
        unit.fused.push("batch_norm");
        gone.insert(i);
    }
    program.remove(&gone);
    Ok(())
}

/// A batch norm in evaluation as scale and shift.
pub(in crate::exec) fn fold_affine(op: &Op, source: &dyn ParamSource) -> Result<Option<Affine>> {
    let Op::BatchNorm { scale, shift, mean, var, eps, .. } = *op else { return Ok(None) };
    let (mean, var) = (source.value(mean)?, source.value(var)?);
    let values = |id: Option<ParamId>| id.map(|id| source.value(id)).transpose();
    let (scale, shift) = (values(scale)?, values(shift)?);
    let one = |values: &Option<std::borrow::Cow<[f32]>>, c: usize, default| {
        values.as_ref().map_or(default, |values| f64::from(values[c]))
    };
    let factor = |c: usize| one(&scale, c, 1.0) / (f64::from(var[c]) + f64::from(eps)).sqrt();
    Ok(Some(Affine {
        scale: (0..mean.len()).map(factor).collect(),
        shift: (0..mean.len()).map(|c| one(&shift, c, 0.0) - f64::from(mean[c]) * factor(c)).collect(),
    }))
}
