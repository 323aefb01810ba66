//! The drawing: a static graph that is the only definition of a network.
//!
//! A model is a function that draws. Nothing computes while drawing: every named layer records an operation, its
//! parameters and its path. The reference executor, the planner, summaries and weight loading are loops over the result.
//!
//! Invariants: nodes are in topological order (a node's inputs come before it); the parameter set depends on the drawing
//! alone, never on image size, mode, instruction set or threads; channels are known while drawing, batch and size are not.

mod layer;
mod node;
mod op;
mod params;
mod source;

pub use layer::{Layer, LayerFn, layer_fn};
pub use node::{Node, concat};
pub use op::{Drawn, Op, Size};
pub(crate) use params::check_same;
pub use params::{ParamDef, ParamId, ParamKind, Params};
pub use source::ParamSource;
pub(crate) use source::released;

use crate::error::{Error, Result};
use crate::shape::{check_map, checked_volume};

/// Index of a node within its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One recorded operation.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeDef {
    /// What it does.
    pub op: Op,
    /// What it reads, in the operation's order.
    pub inputs: Vec<NodeId>,
    /// Path of the scope it was drawn in, for example `layer1.0.conv1`; empty at the root.
    pub path: String,
    /// Channels and, if known, size.
    pub drawn: Drawn,
}

impl NodeDef {
    /// Where an error should point: the path and the operation.
    pub fn place(&self) -> String {
        if self.path.is_empty() { self.op.name().to_owned() } else { format!("{} ({})", self.path, self.op.name()) }
    }
}

/// What an output is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Role {
    /// The network's answer.
    Primary,
    /// An auxiliary classifier: its loss counts `weight` in training; evaluation prunes it.
    Auxiliary {
        /// Factor of its loss.
        weight: f32,
    },
    /// A named point inside, computed on request.
    Feature,
}

/// A named output.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Name (`logits`, `aux1`, `stage2`, …).
    pub name: String,
    /// Where it is.
    pub node: NodeId,
    /// What it is for.
    pub role: Role,
}

/// The name of the primary output.
pub const LOGITS: &str = "logits";

/// A finished drawing.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<NodeDef>,
    params: Vec<ParamDef>,
    outputs: Vec<Output>,
    scopes: Vec<(String, NodeId)>,
}

impl Graph {
    /// Draws `network` for images of `channels` channels. Where it ends becomes the primary output, `logits`.
    ///
    /// Fails with the first error met while drawing, which names the layer's path.
    pub fn draw(channels: usize, network: &(impl Layer + ?Sized)) -> Result<Graph> {
        let drawing = node::Drawing::default();
        let input = drawing.input(channels);
        let end = input.then(network);
        end.output(LOGITS, Role::Primary);
        let state = drawing.finish()?;
        let mut graph =
            Graph { nodes: state.nodes, params: state.params, outputs: state.outputs, scopes: state.scopes };
        graph.mark_auxiliary();
        Ok(graph)
    }

    /// Marks the parameters that nothing but an auxiliary output reads.
    fn mark_auxiliary(&mut self) {
        let roots = self.outputs.iter().filter(|o| !matches!(o.role, Role::Auxiliary { .. })).map(|o| o.node);
        let live = self.reachable(roots);
        let mut read = vec![false; self.params.len()];
        for (node, _) in self.nodes.iter().zip(&live).filter(|(_, live)| **live) {
            node.op.params().into_iter().for_each(|id| read[id.0] = true);
        }
        self.params.iter_mut().zip(read).for_each(|(def, read)| def.auxiliary = !read);
    }

    /// For each node, whether one of `roots` depends on it.
    pub fn reachable(&self, roots: impl IntoIterator<Item = NodeId>) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        roots.into_iter().for_each(|id| live[id.0] = true);
        for i in (0..self.nodes.len()).rev().filter(|&i| i > 0) {
            if live[i] {
                self.nodes[i].inputs.iter().for_each(|id| live[id.0] = true);
            }
        }
        live
    }

    /// The operations, inputs before users. The first is [`Op::Input`].
    pub fn nodes(&self) -> &[NodeDef] {
        &self.nodes
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &NodeDef {
        &self.nodes[id.0]
    }

    /// The parameters in the order they were drawn, which is the order of PyTorch's state dict.
    pub fn params(&self) -> &[ParamDef] {
        &self.params
    }

    /// The named outputs.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Every scope that was drawn and the node it ended in, in the order they ended: what a forward hook on the module
    /// of that name would see.
    pub fn scopes(&self) -> impl ExactSizeIterator<Item = (&str, NodeId)> {
        self.scopes.iter().map(|(path, id)| (path.as_str(), *id))
    }

    /// Finds an output, a feature or a scope by name.
    pub fn find(&self, name: &str) -> Result<NodeId> {
        let output = self.outputs.iter().find(|o| o.name == name).map(|o| o.node);
        let scope = || self.scopes.iter().find(|(path, _)| path == name).map(|(_, id)| *id);
        let known =
            self.outputs.iter().map(|o| o.name.as_str()).chain(self.scopes.iter().map(|(path, _)| path.as_str()));
        output.or_else(scope).ok_or_else(|| Error::unknown("output", name, known))
    }

    /// The part of the drawing behind `feature`: a network whose images are that feature's maps and whose primary outputs
    /// are this one's. Parameters stay the same, so the same values fit.
    ///
    /// # Errors
    /// A point that the primary outputs do not depend on, or that they reach past: a branch or a skip goes around it.
    pub fn behind(&self, feature: NodeId) -> Result<Graph> {
        let primary = || self.outputs.iter().filter(|o| o.role == Role::Primary);
        let mut live = vec![false; self.nodes.len()];
        primary().for_each(|o| live[o.node.0] = true);
        for i in (feature.0 + 1..self.nodes.len()).rev().filter(|&i| i > 0) {
            if live[i] {
                self.nodes[i].inputs.iter().for_each(|id| live[id.0] = true);
            }
        }
        let place = self.node(feature).place();
        if !live[feature.0] {
            return Err(Error::invalid(place, "the answer does not depend on this point"));
        }
        if let Some(past) = (0..feature.0).find(|&i| live[i]) {
            let around = self.nodes[past].place();
            return Err(Error::invalid(
                place,
                format!("the answer also depends on {around} by a way around this point"),
            ));
        }
        let mut moved = vec![NodeId(0); self.nodes.len()];
        let drawn = self.node(feature).drawn;
        let op = Op::Input { channels: drawn.channels };
        let mut nodes = vec![NodeDef { op, inputs: Vec::new(), path: "input".into(), drawn }];
        for (i, node) in self.nodes.iter().enumerate().skip(feature.0 + 1).filter(|(i, _)| live[*i]) {
            moved[i] = NodeId(nodes.len());
            nodes.push(NodeDef { inputs: node.inputs.iter().map(|id| moved[id.0]).collect(), ..node.clone() });
        }
        let outputs = primary().map(|o| Output { node: moved[o.node.0], ..o.clone() }).collect();
        Ok(Graph { nodes, params: self.params.clone(), outputs, scopes: Vec::new() })
    }

    /// Channels an image must have.
    pub fn input_channels(&self) -> usize {
        self.nodes[0].drawn.channels
    }

    /// Number of learned values; `auxiliary` says whether those of the auxiliary heads count.
    pub fn param_count(&self, auxiliary: bool) -> usize {
        self.params.iter().filter(|d| d.kind.is_learned() && (auxiliary || !d.auxiliary)).map(ParamDef::len).sum()
    }

    /// The shape `[n, c, h, w]` of every node for an input of shape `input` (vectors have `h = w = 1`).
    /// Nodes that only auxiliary heads need are inferred too only if `auxiliary` is true; otherwise they stay zero.
    pub fn shapes(&self, input: [usize; 4], auxiliary: bool) -> Result<Vec<[usize; 4]>> {
        let roots =
            self.outputs.iter().filter(|o| auxiliary || !matches!(o.role, Role::Auxiliary { .. })).map(|o| o.node);
        self.shapes_for(input, roots)
    }

    /// As [`shapes_for`](Self::shapes_for), for a plan: every map must be one that memory can hold.
    pub(crate) fn maps_for(
        &self,
        input: [usize; 4],
        wanted: impl IntoIterator<Item = NodeId>,
    ) -> Result<Vec<[usize; 4]>> {
        let shapes = self.shapes_for(input, wanted)?;
        self.nodes.iter().zip(&shapes).try_for_each(|(node, shape)| check_map(shape, &node.place()))?;
        Ok(shapes)
    }

    /// The shape of every node that `wanted` depends on, as [`Graph::shapes`]; the others stay zero.
    pub fn shapes_for(&self, input: [usize; 4], wanted: impl IntoIterator<Item = NodeId>) -> Result<Vec<[usize; 4]>> {
        let [n, c, h, w] = input;
        if c != self.input_channels() {
            return Err(Error::mismatch("input", "channels", self.input_channels(), c));
        }
        if n == 0 || h == 0 || w == 0 {
            let expected = format!("a batch of at least one image of at least 1×1, [n, {c}, h, w]");
            return Err(Error::mismatch("input", "shape", expected, format!("{input:?}")));
        }
        checked_volume(&input, "input")?;
        let live = self.reachable(wanted);
        let mut shapes = vec![[0; 4]; self.nodes.len()];
        shapes[0] = input;
        for (i, node) in self.nodes.iter().enumerate().skip(1).filter(|(i, _)| live[*i]) {
            let inputs: Vec<_> = node.inputs.iter().map(|id| shapes[id.0]).collect();
            let place = node.place();
            shapes[i] = node.op.infer(&place, &inputs, node.drawn.channels)?;
            checked_volume(&shapes[i], &place)?;
        }
        Ok(shapes)
    }
}
