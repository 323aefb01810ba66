//! The lowered form that passes rewrite: a list of units, each of which will become one step.

use crate::activation::Activation;
use crate::error::Result;
use crate::graph::{Graph, NodeId, Op};
use std::collections::HashSet;

/// `y = scale · x + shift` per output channel, kept in f64 until weights are packed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affine {
    pub(super) scale: Vec<f64>,
    pub(super) shift: Vec<f64>,
}

/// A norm and an activation that an operation applies to its first input while reading it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Before {
    pub(super) affine: Affine,
    pub(super) activation: Option<Activation>,
}

/// An operation together with what has been fused into it: `activation(affine(op(before(inputs))) + residual)`.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) op: Op,
    /// What the operation reads.
    pub(super) inputs: Vec<NodeId>,
    /// Applied first.
    pub(super) before: Option<Before>,
    /// Added before the activation.
    pub(super) residual: Option<NodeId>,
    /// One factor per image and channel for the first input.
    pub(super) gate: Option<NodeId>,
    /// The value that receives the sum of every row of the output.
    pub(super) sums: Option<NodeId>,
    /// How the operation is computed, if not by itself.
    pub(super) form: Form,
    /// Batch norm folded into a weighted operation.
    pub(super) affine: Option<Affine>,
    /// Applied last.
    pub(super) activation: Option<Activation>,
    /// The value computed: the last graph node this unit stands for.
    pub(super) output: NodeId,
    /// Path of the node the operation was drawn at.
    pub(super) path: String,
    /// Names of the nodes fused in.
    pub(super) fused: Vec<&'static str>,
}

/// A convolution computed together with the one before it, whose result is never stored. The unit's inputs are those of
/// the first.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// By itself.
    Plain,
    /// A depthwise convolution behind a 1×1 expansion.
    Expanded(Box<Unit>),
    /// The second product of squeeze-and-excitation behind the first, whose input are sums over some of this many pixels.
    Excite(Box<Unit>, usize),
}

impl Unit {
    /// Every value the unit reads.
    pub(super) fn reads(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.inputs.iter().copied().chain(self.residual).chain(self.gate)
    }

    /// Every value the unit writes.
    pub(super) fn writes(&self) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::once(self.output).chain(self.sums)
    }

    /// Whether this is a 1×1 convolution with stride 1 and one group.
    pub(super) fn is_pointwise(&self) -> bool {
        matches!(&self.op, Op::Conv { window, groups: 1, .. } if window.is_pointwise())
    }

    /// True for operations whose kernels end in bias, residual and activation.
    pub(super) fn has_epilogue(&self) -> bool {
        matches!(self.op, Op::Conv { .. } | Op::DeformConv { .. } | Op::Linear { .. })
    }
}

/// Why a rewrite did not fire, or what one did that a reader of `explain()` should know.
#[derive(Debug, Clone)]
pub(super) struct Note {
    pub(super) path: String,
    pub(super) text: String,
}

/// The units still to be computed, in order, and what constrains them.
pub(super) struct Program {
    pub(super) units: Vec<Unit>,
    /// `[n, c, h, w]` of every graph node.
    pub(super) shapes: Vec<[usize; 4]>,
    /// Values that leave the plan: never fused away.
    pub(super) wanted: Vec<NodeId>,
    pub(super) notes: Vec<Note>,
}

impl Program {
    /// Lowers the part of `graph` that `wanted` depends on. `shapes` must cover it.
    pub(super) fn lower(graph: &Graph, shapes: Vec<[usize; 4]>, wanted: Vec<NodeId>) -> Result<Self> {
        let live = graph.reachable(wanted.iter().copied());
        let units = graph.nodes().iter().zip(&live).enumerate().filter(|(_, (_, live))| **live);
        let units = units.map(|(i, (node, _))| Unit {
            op: node.op.clone(),
            inputs: node.inputs.clone(),
            before: None,
            residual: None,
            gate: None,
            sums: None,
            form: Form::Plain,
            affine: None,
            activation: None,
            output: NodeId(i),
            path: node.path.clone(),
            fused: Vec::new(),
        });
        Ok(Program { units: units.collect(), shapes, wanted, notes: Vec::new() })
    }

    pub(super) fn shape(&self, value: NodeId) -> [usize; 4] {
        self.shapes[value.index()]
    }

    /// How many units read each value, plus one for every time it leaves the plan.
    pub(super) fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.shapes.len()];
        self.units.iter().flat_map(Unit::reads).chain(self.wanted.iter().copied()).for_each(|v| uses[v.index()] += 1);
        uses
    }

    /// For each value, the unit that computes it.
    pub(super) fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.shapes.len()];
        for (i, unit) in self.units.iter().enumerate() {
            unit.writes().for_each(|value| producers[value.index()] = Some(i));
        }
        producers
    }

    /// Makes every reader of `old` read `new` instead.
    pub(super) fn replace(&mut self, old: NodeId, new: NodeId) {
        for unit in &mut self.units {
            let reads = unit.inputs.iter_mut().chain(&mut unit.residual).chain(&mut unit.gate);
            reads.filter(|v| **v == old).for_each(|v| *v = new);
        }
        self.wanted.iter_mut().filter(|v| **v == old).for_each(|v| *v = new);
    }

    /// Drops the units at the given positions.
    pub(super) fn remove(&mut self, gone: &HashSet<usize>) {
        let mut i = 0;
        self.units.retain(|_| {
            i += 1;
            !gone.contains(&(i - 1))
        });
    }

    pub(super) fn note(&mut self, path: &str, text: impl Into<String>) {
        self.notes.push(Note { path: path.to_owned(), text: text.into() });
    }
}
