//! Takes squeeze-and-excitation apart where it costs passes over a map: a depthwise convolution adds up what it writes,
//! one small step makes the gate of the sums, and the projection behind the gate scales what it reads.

use super::super::program::{Form, Program, Unit};
use crate::graph::{NodeId, Op};
use std::collections::HashSet;

/// Most weights of a product that one worker reads alone.
const MOST_WEIGHTS: usize = 1 << 19;

pub(super) fn run(program: &mut Program) {
    let mut gone = HashSet::new();
    for i in 0..program.units.len() {
        let unit = &program.units[i];
        let (Op::Mul, &[map, gate]) = (&unit.op, &unit.inputs[..]) else { continue };
        let path = unit.path.clone();
        let Some(chain) = Chain::before(program, map, gate) else { continue };
        if let Err(reason) = chain.fuse(program, map, &mut gone) {
            program.note(&path, format!("the squeeze stays as it is: {reason}"));
        }
        if let Err(reason) = fold_gate(program, i, &mut gone) {
            program.note(&path, format!("the gate stays a step of its own: {reason}"));
        }
    }
    program.remove(&gone);
}

/// The units between a map and its gate.
struct Chain {
    pool: usize,
    squeeze: usize,
    excite: usize,
}

impl Chain {
    /// Global mean → 1×1 → 1×1, each read by the next alone.
    fn before(program: &Program, map: NodeId, gate: NodeId) -> Option<Chain> {
        let (uses, producers) = (program.uses(), program.producers());
        let alone = |value: NodeId| producers[value.index()].filter(|_| uses[value.index()] == 1);
        let product = |value: NodeId| {
            let [_, _, h, w] = program.shape(value);
            let plain = |u: &Unit| u.is_pointwise() && u.residual.is_none() && u.gate.is_none();
            alone(value).filter(|&j| [h, w] == [1, 1] && plain(&program.units[j]))
        };
        let excite = product(gate)?;
        let squeeze = product(program.units[excite].inputs[0])?;
        let pool = alone(program.units[squeeze].inputs[0])?;
        let Unit { op: Op::AdaptiveAvgPool { output: [1, 1] }, inputs, .. } = &program.units[pool] else { return None };
        (inputs[..] == [map]).then_some(Chain { pool, squeeze, excite })
    }

    /// Makes one unit of the products and, if the map's producer can add it up, of the mean.
    fn fuse(&self, program: &mut Program, map: NodeId, gone: &mut HashSet<usize>) -> Result<(), String> {
        let [n, c, h, w] = program.shape(map);
        let squeezed = program.shape(program.units[self.squeeze].output)[1];
        let adds = |u: &Unit| matches!(u.op, Op::Conv { groups, .. } if groups == c && c > 1) && u.residual.is_none();
        let Some(producer) = program.producers()[map.index()].filter(|&j| adds(&program.units[j])) else {
            return Err("its map is not made by a depthwise convolution, which would add it up".to_owned());
        };
        if c * squeezed > MOST_WEIGHTS {
            return Err(format!("products of {c} × {squeezed} weights are shared out among the workers"));
        }
        let mean = program.units[self.pool].output;
        program.shapes[mean.index()] = [n, c, h, 1];
        program.units[producer].sums = Some(mean);
        program.units[producer].fused.push("row sums");
        let first = program.units[self.squeeze].clone();
        let unit = &mut program.units[self.excite];
        unit.inputs = vec![mean];
        unit.fused.splice(0..0, ["mean", "squeeze"]);
        unit.form = Form::Excite(Box::new(first), h * w);
        gone.extend([self.pool, self.squeeze]);
        Ok(())
    }
}

/// Lets the convolution that alone reads the product `i` of a map and its gate scale the map itself.
fn fold_gate(program: &mut Program, i: usize, gone: &mut HashSet<usize>) -> Result<(), String> {
    let Unit { ref inputs, output, residual, activation, .. } = program.units[i];
    let (map, gate) = (inputs[0], inputs[1]);
    if residual.is_some() || activation.is_some() {
        return Err("a residual or an activation follows it".to_owned());
    }
    let reads = program.uses()[output.index()];
    // A norm applied on load must see the product, gate included.
    let takes = |u: &Unit| u.is_pointwise() && u.inputs == [output] && u.gate.is_none() && u.before.is_none();
    let reader = program.units.iter().position(takes);
    let Some(reader) = reader.filter(|_| reads == 1) else {
        return Err("what it makes is not read by one 1×1 convolution alone".to_owned());
    };
    let unit = &mut program.units[reader];
    unit.inputs = vec![map];
    unit.gate = Some(gate);
    unit.fused.insert(0, "gate");
    gone.insert(i);
    Ok(())
}
