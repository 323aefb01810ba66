//! What is computed in one pass while training: `activation(norm(x) + shortcut)`, `activation(x · gate + shortcut)`, and
//! activations that are known by their output behind what computes their argument.

use crate::activation::Activation;
use crate::exec::mode::Noise;
use crate::exec::program::Program;
use crate::graph::Op;
use crate::simd::has_output_gradient;
use std::collections::HashSet;

/// Rewrites `program`, whose values named in `wanted` stay as they are.
pub(super) fn run(program: &mut Program, noise: Noise) {
    identities(program, noise);
    residuals(program);
    pools_first(program);
    activations(program);
}

/// Removes what does nothing.
fn identities(program: &mut Program, noise: Noise) {
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let unit = &program.units[i];
        let nothing = match unit.op {
            Op::Dropout { .. } | Op::StochasticDepth { .. } => noise == Noise::Off,
            Op::Flatten => program.shape(unit.inputs[0])[2..] == [1, 1],
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

/// Lets a norm, or else a gate, add the shortcut while it stores.
fn residuals(program: &mut Program) {
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        if !matches!(program.units[i].op, Op::Add) {
            continue;
        }
        let (uses, producers) = (program.uses(), program.producers());
        let inputs = program.units[i].inputs.clone();
        let able = |k: usize| {
            let j = producers[inputs[k].index()]?;
            let unit = &program.units[j];
            let alone = uses[inputs[k].index()] == 1 && unit.residual.is_none() && unit.activation.is_none();
            let rank = match unit.op {
                Op::BatchNorm { .. } => 1,
                Op::Mul => 0,
                _ => return None,
            };
            (alone && inputs[0] != inputs[1]).then_some((rank, j, inputs[1 - k]))
        };
        // The later of two: the other one is then ready.
        let Some((_, j, other)) = able(0).into_iter().chain(able(1)).max_by_key(|&(rank, j, _)| (rank, j)) else {
            continue;
        };
        let mut unit = program.units[j].clone();
        unit.residual = Some(other);
        unit.output = program.units[i].output;
        unit.fused.push("add");
        program.units[i] = unit;
        program.units[j].inputs.clear();
        gone.insert(j);
    }
    program.remove(&gone);
}

/// Takes maxima of what a convolution gives before the function behind it, which grows with its argument: they are the same,
/// the map that the way back reads is the smaller one, and the larger one is not kept. A norm keeps what it reads anyway.
fn pools_first(program: &mut Program) {
    let (uses, producers) = (program.uses(), program.producers());
    for i in 0..program.units.len() {
        if !matches!(program.units[i].op, Op::MaxPool { .. }) {
            continue;
        }
        let shown = program.units[i].inputs[0];
        let Some(j) = producers[shown.index()].filter(|_| uses[shown.index()] == 1) else { continue };
        let Op::Activation(activation) = program.units[j].op else { continue };
        let argument = program.units[j].inputs[0];
        let weighted = |k: usize| program.units[k].has_epilogue();
        if !cuts_off(activation) || !producers[argument.index()].is_some_and(weighted) || uses[argument.index()] != 1 {
            continue;
        }
        program.shapes[shown.index()] = program.shape(program.units[i].output);
        program.units.swap(i, j);
        let output = std::mem::replace(&mut program.units[j].output, shown);
        program.units[j].inputs = vec![argument];
        (program.units[i].inputs, program.units[i].output) = (vec![shown], output);
    }
}

/// Applies an activation where its argument is made.
fn activations(program: &mut Program) {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let Op::Activation(activation) = program.units[i].op else { continue };
        let source = program.units[i].inputs[0];
        let Some(j) = producers[source.index()] else { continue };
        let before = &program.units[j];
        let fits = match before.op {
            // Computed again from the norm's input, or told by the output.
            Op::BatchNorm { .. } => before.residual.is_none() || cuts_off(activation),
            Op::Conv { .. } | Op::DeformConv { .. } | Op::Linear { .. } | Op::Add => has_output_gradient(activation),
            Op::Mul => before.residual.is_some() && has_output_gradient(activation),
            _ => false,
        };
        if !fits || before.activation.is_some() || uses[source.index()] > 1 {
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

/// Whether an activation is the identity where it is not constant.
pub(super) fn cuts_off(activation: Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::Relu6)
}
