//! The pencil: `Node`, a `Copy` handle that records operations into the drawing it belongs to.

use super::layer::Layer;
use super::op::{Drawn, Op, Size};
use super::params::{ParamDef, ParamId, ParamKind};
use super::{NodeDef, NodeId, Output, Role};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::tensor::Init;
use std::cell::RefCell;
use std::collections::HashSet;

/// A graph while it is being drawn.
#[derive(Default)]
pub(super) struct Drawing {
    state: RefCell<State>,
}

/// What has been recorded so far. The first error is kept; everything after it passes through.
#[derive(Default)]
pub(super) struct State {
    pub(super) nodes: Vec<NodeDef>,
    pub(super) params: Vec<ParamDef>,
    pub(super) outputs: Vec<Output>,
    pub(super) scopes: Vec<(String, NodeId)>,
    names: HashSet<String>,
    path: Vec<String>,
    error: Option<Error>,
}

impl Drawing {
    pub(super) fn finish(self) -> Result<State> {
        let mut state = self.state.into_inner();
        state.error.take().map_or(Ok(state), Err)
    }

    pub(super) fn input(&self, channels: usize) -> Node<'_> {
        let mut state = self.state.borrow_mut();
        if channels == 0 {
            state.error = Some(Error::invalid("input", "a network needs at least 1 input channel, found 0"));
        }
        let drawn = Drawn { channels, size: Size::Free };
        state.nodes.push(NodeDef { op: Op::Input { channels }, inputs: vec![], path: "input".into(), drawn });
        Node { drawing: self, id: NodeId(0) }
    }
}

impl State {
    fn place(&self) -> String {
        if self.path.is_empty() { "network".into() } else { self.path.join(".") }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }

    fn record(&mut self, op: Op, inputs: Vec<NodeId>) -> Result<NodeId> {
        let drawn: Vec<Drawn> = inputs.iter().map(|id| self.nodes[id.0].drawn).collect();
        let out = match op {
            Op::Conv { weight, .. } | Op::DeformConv { weight, .. } | Op::Linear { weight, .. } => {
                Some(self.params[weight.0].shape[0])
            }
            _ => None,
        };
        let drawn = op.draw(&self.place(), &drawn, out)?;
        self.nodes.push(NodeDef { op, inputs, path: self.path.join("."), drawn });
        Ok(NodeId(self.nodes.len() - 1))
    }
}

/// A point in the drawing. Copy it freely; each method records a layer and gives back where that layer ends.
///
/// Errors are sticky: the first one is kept with its path, later calls pass through, and [`Graph::draw`] returns it, so
/// that chains carry no `?`.
///
/// [`Graph::draw`]: super::Graph::draw
#[derive(Clone, Copy)]
pub struct Node<'g> {
    drawing: &'g Drawing,
    pub(super) id: NodeId,
}

impl<'g> Node<'g> {
    /// Draws `layer` inside the scope `name`: its parameters are called `<scope>.<name>.…`.
    pub fn layer(self, name: &str, layer: impl Layer) -> Node<'g> {
        self.drawing.state.borrow_mut().path.push(name.to_owned());
        let out = layer.build(self);
        let mut state = self.drawing.state.borrow_mut();
        let path = state.path.join(".");
        state.path.pop();
        if state.error.is_none() {
            state.scopes.push((path, out.id));
        }
        out
    }

    /// Draws `layer` without opening a scope.
    pub fn then(self, layer: impl Layer) -> Node<'g> {
        layer.build(self)
    }

    /// Hangs an auxiliary classifier on this point: training adds `weight` × its loss, evaluation prunes it.
    /// Gives back `self`, so that the trunk goes on.
    pub fn aux(self, name: &str, head: impl Layer, weight: f32) -> Node<'g> {
        let end = self.layer(name, head);
        end.output(name, Role::Auxiliary { weight });
        self
    }

    /// Names this point as a feature that a plan can be asked for (`stage1`, …). Gives back `self`.
    pub fn feature(self, name: &str) -> Node<'g> {
        self.output(name, Role::Feature);
        self
    }

    /// Registers this point as an output.
    pub fn output(self, name: &str, role: Role) {
        let mut state = self.drawing.state.borrow_mut();
        if state.error.is_some() {
            return;
        }
        if state.outputs.iter().any(|o| o.name == name) {
            let place = state.place();
            return state.fail(Error::invalid(place, format!("two outputs are called `{name}`")));
        }
        state.outputs.push(Output { name: name.to_owned(), node: self.id, role });
    }

    /// Defines a parameter of the current scope. Two parameters of one name are an error.
    pub fn param(self, name: &str, shape: &[usize], kind: ParamKind, init: Init) -> ParamId {
        let mut state = self.drawing.state.borrow_mut();
        let name = if state.path.is_empty() { name.to_owned() } else { format!("{}.{name}", state.path.join(".")) };
        if shape.contains(&0) || crate::shape::checked_volume(shape, &name).is_err() {
            state.fail(Error::invalid(&name, format!("a parameter cannot have shape {shape:?}")));
        } else if !state.names.insert(name.clone()) && state.error.is_none() {
            state.fail(Error::invalid(&name, "two parameters have this name"));
        }
        state.params.push(ParamDef { name, shape: shape.to_vec(), kind, init, auxiliary: false });
        ParamId(state.params.len() - 1)
    }

    /// Records `op` on `inputs`; the general form of every method below, open to layers of one's own.
    pub fn apply(self, op: Op, inputs: &[Node<'g>]) -> Node<'g> {
        let mut state = self.drawing.state.borrow_mut();
        if state.error.is_some() {
            return self;
        }
        if inputs.iter().any(|n| !std::ptr::eq(n.drawing, self.drawing)) {
            let place = state.place();
            state.fail(Error::invalid(place, "nodes of two drawings meet"));
            return self;
        }
        match state.record(op, inputs.iter().map(|n| n.id).collect()) {
            Ok(id) => Node { id, ..self },
            Err(error) => {
                state.fail(error);
                self
            }
        }
    }

    /// Keeps an error for [`Graph::draw`] to return; `problem` is prefixed with the current path.
    ///
    /// [`Graph::draw`]: super::Graph::draw
    pub fn fail(self, problem: impl Into<String>) -> Node<'g> {
        let mut state = self.drawing.state.borrow_mut();
        let place = state.place();
        state.fail(Error::invalid(place, problem));
        self
    }

    /// Like [`Node::fail`], with an error that is already made.
    pub fn fail_with(self, error: Error) -> Node<'g> {
        self.drawing.state.borrow_mut().fail(error);
        self
    }

    /// The current scope's path, `network` at the root: what an error should name.
    pub fn path(self) -> String {
        self.drawing.state.borrow().place()
    }

    /// Channels at this point.
    pub fn channels(self) -> usize {
        self.drawn().channels
    }

    /// What is known of the size at this point.
    pub fn size(self) -> Size {
        self.drawn().size
    }

    fn drawn(self) -> Drawn {
        self.drawing.state.borrow().nodes[self.id.0].drawn
    }

    /// Element-wise function.
    pub fn activation(self, activation: Activation) -> Node<'g> {
        self.apply(Op::Activation(activation), &[self])
    }

    /// max(x, 0).
    pub fn relu(self) -> Node<'g> {
        self.activation(Activation::Relu)
    }

    /// `[n, c, h, w]` to `[n, c·h·w]`. The map must have a fixed size.
    pub fn flatten(self) -> Node<'g> {
        self.apply(Op::Flatten, &[self])
    }

    /// Mean over the whole map: `[n, c, h, w]` to `[n, c, 1, 1]`.
    pub fn global_avg_pool(self) -> Node<'g> {
        self.apply(Op::AdaptiveAvgPool { output: [1, 1] }, &[self])
    }

    /// Channels `start .. start + len`.
    pub fn channel_slice(self, start: usize, len: usize) -> Node<'g> {
        self.apply(Op::ChannelSlice { start, len }, &[self])
    }
}

impl<'g> std::ops::Add for Node<'g> {
    type Output = Node<'g>;

    /// Sum of two maps of one shape: the skip connection.
    fn add(self, other: Node<'g>) -> Node<'g> {
        self.apply(Op::Add, &[self, other])
    }
}

impl<'g> std::ops::Mul for Node<'g> {
    type Output = Node<'g>;

    /// Product with a gate of the same shape, or of one value per image and channel.
    fn mul(self, gate: Node<'g>) -> Node<'g> {
        self.apply(Op::Mul, &[self, gate])
    }
}

/// The channels of all `nodes`, one after the other. Panics on an empty list, which is a mistake in a layer's source
/// and not in its input.
pub fn concat<'g>(nodes: impl AsRef<[Node<'g>]>) -> Node<'g> {
    let nodes = nodes.as_ref();
    nodes[0].apply(Op::Concat, nodes)
}
