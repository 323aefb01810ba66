//! Computes a 1×1 expansion and the depthwise convolution behind it together: the wide map between them is never stored.

use super::super::program::{Form, Program};
use crate::graph::Op;
use std::collections::HashSet;

pub(super) fn run(program: &mut Program) {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let unit = &program.units[i];
        let Op::Conv { window, groups, .. } = unit.op else { continue };
        let source = unit.inputs[0];
        let [_, channels, ..] = program.shape(source);
        if groups == 1 || groups != channels || program.shape(unit.output)[1] != channels {
            continue;
        }
        let Some(j) = producers[source.index()].filter(|&j| program.units[j].is_pointwise()) else { continue };
        let first = &program.units[j];
        let reason = if uses[source.index()] > 1 {
            format!("`{}` is read {} times", first.path, uses[source.index()])
        } else if window.dilation != [1, 1] || unit.residual.is_some() {
            "dilated windows and residuals are left to the kernel of its own".to_owned()
        } else if first.residual.is_some() || first.gate.is_some() || first.before.is_some() {
            format!("`{}` does more than expand", first.path)
        } else {
            let first = first.clone();
            let unit = &mut program.units[i];
            unit.inputs.clone_from(&first.inputs);
            unit.form = Form::Expanded(Box::new(first));
            unit.fused.insert(0, "expansion");
            gone.insert(j);
            continue;
        };
        let path = unit.path.clone();
        program.note(&path, format!("expansion stays a step of its own: {reason}"));
    }
    program.remove(&gone);
}
