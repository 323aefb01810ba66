//! Lets the last convolution of a block add the shortcut while it stores.

use super::super::program::Program;
use crate::graph::Op;
use std::collections::HashSet;

pub(super) fn run(program: &mut Program) {
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        if !matches!(program.units[i].op, Op::Add) {
            continue;
        }
        let (uses, producers) = (program.uses(), program.producers());
        let inputs = program.units[i].inputs.clone();
        let [a, b] = [inputs[0], inputs[1]];
        let able = |value: crate::graph::NodeId| {
            let j = producers[value.index()]?;
            let unit = &program.units[j];
            let adds = matches!(unit.op, Op::Conv { .. } | Op::DeformConv { .. } | Op::Mul);
            (adds && uses[value.index()] == 1 && unit.residual.is_none() && unit.activation.is_none()).then_some(j)
        };
        // The later of two candidates: the branch is drawn before the shortcut's projection, but either will do.
        let pick = match (able(a), able(b)) {
            _ if a == b => None,
            (Some(x), Some(y)) if y > x => Some((y, a)),
            (Some(x), _) => Some((x, b)),
            (None, Some(y)) => Some((y, a)),
            (None, None) => None,
        };
        let path = program.units[i].path.clone();
        let Some((j, other)) = pick else {
            program.note(&path, "add stays: neither side is a convolution that nothing else reads");
            continue;
        };
        // The fused unit takes the place of the add, where both sides are ready.
        let mut unit = program.units[j].clone();
        unit.residual = Some(other);
        unit.output = program.units[i].output;
        unit.fused.push("add");
        program.units[i] = unit;
        program.units[j].output = inputs[usize::from(other == a)];
        program.units[j].inputs.clear();
        gone.insert(j);
    }
    program.remove(&gone);
}
