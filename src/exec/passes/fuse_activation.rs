//! Applies an activation where its argument is made instead of in a pass of its own.

use super::super::program::Program;
use crate::graph::Op;
use std::collections::HashSet;

pub(super) fn run(program: &mut Program) {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let Op::Activation(activation) = program.units[i].op else { continue };
        let source = program.units[i].inputs[0];
        let path = program.units[i].path.clone();
        let Some(j) = producers[source.index()] else { continue };
        let before = &program.units[j];
        let fits = before.has_epilogue() || matches!(before.op, Op::BatchNorm { .. } | Op::Add | Op::Mul);
        if !fits || before.activation.is_some() {
            let text = format!("{} stays: {} before it takes no activation", activation.name(), before.op.name());
            program.note(&path, text);
            continue;
        }
        if uses[source.index()] > 1 {
            let text = format!("{} stays: `{}` is read {} times", activation.name(), before.path, uses[source.index()]);
            program.note(&path, text);
            continue;
        }
        let output = program.units[i].output;
        let unit = &mut program.units[j];
        unit.activation = Some(activation);
        unit.output = output;
        unit.fused.push(activation.name());
        gone.insert(i);
    }
    program.remove(&gone);
}
