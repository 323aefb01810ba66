//! Averages before a pointwise convolution instead of behind it: both are linear and work on different axes, so
//! `mean(W·x + b) = W·mean(x) + b`, and the product has fewer pixels (a quarter in DenseNet's transitions).

use super::super::program::{Program, Unit};
use crate::graph::Op;
use crate::shape::Padding;

pub(super) fn run(program: &mut Program) {
    for i in 0..program.units.len() {
        let pool = &program.units[i];
        // Padding that counts as zeros would dilute the bias.
        let undiluted = match &pool.op {
            Op::AvgPool { window, .. } => window.padding == Padding::Symmetric([0, 0]),
            Op::AdaptiveAvgPool { .. } => true,
            _ => continue,
        };
        let (source, path) = (pool.inputs[0], pool.path.clone());
        let Some(j) = program.producers()[source.index()] else { continue };
        let conv = &program.units[j];
        if !matches!(&conv.op, Op::Conv { window, .. } if window.is_pointwise()) {
            continue;
        }
        let pixels = |value| program.shape(value)[2..].iter().product::<usize>();
        let obstacle = if !is_linear(conv) {
            "more than a linear map is between them"
        } else if !undiluted {
            "it pads"
        } else if program.uses()[source.index()] > 1 {
            "something else reads what is averaged"
        } else if 2 * pixels(pool.output) > pixels(source) {
            "it leaves most pixels"
        } else {
            // The value between them is now the mean of the convolution's input.
            let (input, output) = (conv.inputs[0], pool.output);
            let [n, _, h, w] = program.shape(output);
            program.shapes[source.index()] = [n, program.shape(input)[1], h, w];
            program.units.swap(i, j);
            (program.units[j].inputs[0], program.units[j].output) = (input, source);
            (program.units[i].inputs[0], program.units[i].output) = (source, output);
            program.units[i].fused.push("average pool first");
            continue;
        };
        let text = format!("average pool stays behind `{}`: {obstacle}", conv.path);
        program.note(&path, text);
    }
}

/// Whether the unit is its operation and an affine map per channel, nothing more.
fn is_linear(unit: &Unit) -> bool {
    unit.residual.is_none() && unit.activation.is_none()
}
