//! Lets a pointwise convolution apply the batch norm and ReLU before it while it reads its input (DenseNet, ResNet v2),
//! instead of a pass over the whole map.

use super::super::program::{Before, Program, Unit};
use super::fold_affine;
use crate::activation::Activation;
use crate::error::Result;
use crate::graph::{NodeId, Op, ParamSource};
use crate::kernels::conv::{self, ConvSpec, Precision};
use crate::kernels::{Epilogue, Map};
use std::collections::HashSet;

pub(super) fn run(program: &mut Program, source: &dyn ParamSource, precision: Precision) -> Result<()> {
    let (uses, producers) = (program.uses(), program.producers());
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let Some(spec) = geometry(program, &program.units[i]) else { continue };
        let read = program.units[i].inputs[0];
        let Some(j) = producers[read.index()] else { continue };
        let norm = &program.units[j];
        let Some(affine) = fold_affine(&norm.op, source)? else { continue };
        let clamps = matches!(norm.activation, None | Some(Activation::Relu | Activation::Relu6));
        let obstacle = if uses[read.index()] > 1 {
            "something else reads what it makes"
        } else if !clamps {
            "its activation is not a clamp"
        } else if !conv::takes_prologue(&spec, precision) {
            "the product is too small, or asked to be exact"
        } else {
            let (input, name) = (norm.inputs[0], norm.activation.map(Activation::name));
            let before = Before { affine, activation: norm.activation };
            let unit = &mut program.units[i];
            unit.before = Some(before);
            unit.inputs[0] = input;
            unit.fused.splice(0..0, std::iter::once("batch_norm first").chain(name));
            gone.insert(j);
            continue;
        };
        let (path, text) = (norm.path.clone(), format!("batch norm is a pass of its own: {obstacle}"));
        program.note(&path, text);
    }
    program.remove(&gone);
    Ok(())
}

/// What a 1×1 convolution of one group looks like to the kernels.
fn geometry(program: &Program, unit: &Unit) -> Option<ConvSpec> {
    let Op::Conv { window, groups: 1, .. } = unit.op else { return None };
    let map = |value: NodeId| {
        let [n, c, h, w] = program.shape(value);
        Map::dense([n, h, w, c])
    };
    let (input, output) = (map(unit.inputs[0]), map(unit.output));
    let placed = window.place([input.h, input.w], &unit.path).ok()?;
    let residual = unit.residual.map(|_| output.ld);
    let epilogue = Epilogue { activation: unit.activation, residual };
    (window.kernel == [1, 1]).then_some(ConvSpec { input, output, window, placed, groups: 1, epilogue })
}
