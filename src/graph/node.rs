//! The pencil: `Node`, a `Copy` handle that records operations into the drawing it belongs to.

use super::layer::Layer;
use super::op::{Drawn, Op, Size};
use super::params::{ParamDef, ParamId, ParamKind};
use super::{NodeDef, NodeId, Output, Role};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::shape::{check_map, checked_volume};
use crate::tensor::Init;
use std::cell::{RefCell, RefMut};
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
        if let Err(error) = check_map(&[channels], "input") {
            state.fail(error);
        }
        let drawn = Drawn { channels, size: Size::Free };
        state.nodes.push(NodeDef { op: Op::Input { channels }, inputs: vec![], path: "input".into(), drawn });
        Node { drawing: Some(self), id: NodeId(0) }
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
        let drawn = op.draw(&self.place(), &drawn, &self.params)?;
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
    /// None for the concatenation of nothing, which is an error of the drawing it gets into.
    drawing: Option<&'g Drawing>,
    pub(super) id: NodeId,
}

impl<'g> Node<'g> {
    fn state(self) -> Option<RefMut<'g, State>> {
        self.drawing.map(|drawing| drawing.state.borrow_mut())
    }

    /// Draws `layer` inside the scope `name`: its parameters are called `<scope>.<name>.…`. A name that is empty or has a
    /// dot in it is an error.
    pub fn layer(self, name: &str, layer: impl Layer) -> Node<'g> {
        if let Some(mut state) = self.state() {
            if name.is_empty() || name.contains('.') {
                let problem = format!("a layer cannot be called `{name}`: a name is not empty and has no dot");
                let place = state.place();
                state.fail(Error::invalid(place, problem));
            }
            state.path.push(name.to_owned());
        }
        let out = self.then(layer);
        if let Some(mut state) = self.state() {
            let path = state.path.join(".");
            state.path.pop();
            if state.error.is_none() {
                state.scopes.push((path, out.id));
            }
        }
        out
    }

    /// Draws `layer` without opening a scope.
    pub fn then(self, layer: impl Layer) -> Node<'g> {
        let out = layer.build(self);
        if out.drawing.is_none() { self.fail(NOTHING) } else { out }
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
        let Some(mut state) = self.state().filter(|state| state.error.is_none()) else { return };
        if state.outputs.iter().any(|o| o.name == name) {
            let place = state.place();
            return state.fail(Error::invalid(place, format!("two outputs are called `{name}`")));
        }
        state.outputs.push(Output { name: name.to_owned(), node: self.id, role });
    }

    /// Defines a parameter of the current scope. Two parameters of one name are an error.
    pub fn param(self, name: &str, shape: &[usize], kind: ParamKind, init: Init) -> ParamId {
        let Some(mut state) = self.state() else { return ParamId(0) };
        let name = if state.path.is_empty() { name.to_owned() } else { format!("{}.{name}", state.path.join(".")) };
        if shape.contains(&0) || checked_volume(shape, &name).is_err() {
            state.fail(Error::invalid(&name, format!("a parameter cannot have shape {shape:?}")));
        } else if !state.names.insert(name.clone()) && state.error.is_none() {
            state.fail(Error::invalid(&name, "two parameters have this name"));
        }
        state.params.push(ParamDef { name, shape: shape.to_vec(), kind, init, auxiliary: false });
        ParamId(state.params.len() - 1)
    }

    /// Records `op` on `inputs`; the general form of every method below, open to layers of one's own.
    pub fn apply(self, op: Op, inputs: &[Node<'g>]) -> Node<'g> {
        let Some(drawing) = self.drawing else {
            // Whoever it meets keeps the error.
            return inputs.iter().find(|n| n.drawing.is_some()).map_or(self, |n| n.fail(NOTHING));
        };
        let mut state = drawing.state.borrow_mut();
        if state.error.is_some() {
            return self;
        }
        if inputs.iter().any(|n| n.drawing.is_none_or(|other| !std::ptr::eq(other, drawing))) {
            let nothing = inputs.iter().any(|n| n.drawing.is_none());
            let place = state.place();
            state.fail(Error::invalid(place, if nothing { NOTHING } else { "nodes of two drawings meet" }));
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
        if let Some(mut state) = self.state() {
            let place = state.place();
            state.fail(Error::invalid(place, problem));
        }
        self
    }

    /// Like [`Node::fail`], with an error that is already made.
    pub fn fail_with(self, error: Error) -> Node<'g> {
        if let Some(mut state) = self.state() {
            state.fail(error);
        }
        self
    }

    /// The current scope's path, `network` at the root: what an error should name.
    pub fn path(self) -> String {
        self.state().map_or_else(|| "network".to_owned(), |state| state.place())
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
        self.state().map_or(Drawn { channels: 1, size: Size::Free }, |state| state.nodes[self.id.0].drawn)
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

/// Why a node may belong to no drawing.
const NOTHING: &str = "a concatenation of no nodes";

/// The channels of all `nodes`, one after the other. Of none it is an error of the drawing that its result gets into.
///
/// ```
/// use convzoo::graph::{Graph, Node, concat, layer_fn};
/// use convzoo::layers::Conv2d;
///
/// fn net(x: Node<'_>) -> Node<'_> {
///     concat([x.layer("fine", Conv2d::k1(4)), x.layer("coarse", Conv2d::k3(8))])
/// }
/// assert_eq!(Graph::draw(3, &layer_fn(net))?.shapes([1, 3, 8, 8], false)?[3], [1, 12, 8, 8]);
/// # Ok::<(), convzoo::Error>(())
/// ```
pub fn concat<'g>(nodes: impl AsRef<[Node<'g>]>) -> Node<'g> {
    let nodes = nodes.as_ref();
    nodes.first().map_or(Node { drawing: None, id: NodeId(0) }, |first| first.apply(Op::Concat, nodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, layer_fn};

    fn error(draw: impl for<'g> Fn(Node<'g>) -> Node<'g>) -> String {
        Graph::draw(3, &layer_fn(draw)).unwrap_err().to_string()
    }

    #[test]
    fn names_that_would_be_others_in_a_state_dict_are_errors() {
        for name in ["", "a.b", "."] {
            let found = error(|x| x.layer("outer", layer_fn(|x: Node<'_>| x.layer(name, Activation::Relu))));
            assert_eq!(found, format!("outer: a layer cannot be called `{name}`: a name is not empty and has no dot"));
            assert!(error(|x| x.aux(name, Activation::Relu, 0.3)).contains("cannot be called"));
        }
    }

    #[test]
    fn a_concatenation_of_nothing_is_an_error_of_the_drawing_wherever_it_gets_into_it() {
        fn nothing<'g>(_: Node<'g>) -> Node<'g> {
            concat([]).relu().layer("a", Activation::Relu).feature("f").fail("never told")
        }
        assert_eq!(error(nothing), "network: a concatenation of no nodes");
        assert_eq!(error(|x| x.layer("branch", layer_fn(nothing)).relu()), "branch: a concatenation of no nodes");
        for draw in
            [(|x| x + concat([])) as for<'g> fn(Node<'g>) -> Node<'g>, |x| concat([]) * x, |x| concat([concat([]), x])]
        {
            assert_eq!(error(draw), "network: a concatenation of no nodes");
        }
        assert_eq!(
            (concat([]).channels(), concat([]).size(), concat([]).path()),
            (1, Size::Free, "network".to_owned())
        );
    }
}
