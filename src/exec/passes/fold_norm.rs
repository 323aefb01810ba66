//! Folds batch norm into the weighted operation before it: `γ·(Wx + b − μ)/√(σ² + ε) + β` is another `W'x + b'`.
//!
//! The arithmetic is in f64 and rounded once, when the weights are packed.

use super::super::program::{Affine, Program};
use crate::graph::{Op, Params};
use std::collections::HashSet;

pub(super) fn run(program: &mut Program, params: &Params) {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let Some(norm) = fold_affine(&program.units[i].op, params) else { continue };
        let source = program.units[i].inputs[0];
        let path = program.units[i].path.clone();
        let Some(j) = producers[source.index()] else { continue };
        if !program.units[j].has_epilogue() {
            let text =
                format!("batch norm stays: {} before it has no weights to fold into", program.units[j].op.name());
            program.note(&path, text);
            continue;
        }
        if uses[source.index()] > 1 {
            let text = format!("batch norm stays: `{}` is read {} times", program.units[j].path, uses[source.index()]);
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
}

/// A batch norm in evaluation as scale and shift.
pub(in crate::exec) fn fold_affine(op: &Op, params: &Params) -> Option<Affine> {
    let Op::BatchNorm { scale, shift, mean, var, eps, .. } = *op else { return None };
    let values = |id| params.value(id).as_slice();
    let channels = values(mean).len();
    let one = |id: Option<_>, c: usize, default: f64| id.map_or(default, |id| f64::from(values(id)[c]));
    let factor = |c: usize| one(scale, c, 1.0) / (f64::from(values(var)[c]) + f64::from(eps)).sqrt();
    Some(Affine {
        scale: (0..channels).map(factor).collect(),
        shift: (0..channels).map(|c| one(shift, c, 0.0) - f64::from(values(mean)[c]) * factor(c)).collect(),
    })
}
