//! Removes what does nothing in evaluation: dropout, stochastic depth, and flattening a 1×1 map.

use super::super::program::Program;
use crate::graph::Op;
use std::collections::HashSet;

pub(super) fn run(program: &mut Program) {
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let unit = &program.units[i];
        let nothing = match unit.op {
            Op::Dropout { .. } | Op::StochasticDepth { .. } => true,
            // A vector is a map of one pixel, so the memory is the same.
            Op::Flatten => program.shape(unit.inputs[0])[2..] == [1, 1],
            // A window of one pixel that covers all there is.
            Op::AdaptiveAvgPool { output } => program.shape(unit.inputs[0])[2..] == output,
            _ => false,
        };
        if nothing {
            let (input, output) = (unit.inputs[0], unit.output);
            program.replace(output, input);
            gone.insert(i);
        }
    }
    program.remove(&gone);
}
