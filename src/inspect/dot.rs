//! The drawing for Graphviz: `dot -Tsvg` makes the paper's figure of it.

use super::summary::{describe, show_shape};
use crate::error::Result;
use crate::graph::{Graph, NodeDef, Op, Role, Size};
use std::fmt::Write;

/// The whole graph as a Graphviz document: a box per operation, a frame per scope, an oval per output. What only an
/// auxiliary head needs is dashed.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::inspect::dot;
/// use convzoo::layers::Conv2d;
/// let text = dot(&Graph::draw(3, &Conv2d::k3(8))?);
/// assert!(text.starts_with("digraph") && text.contains("conv 3×3 pad 1"));
/// # Ok::<(), convzoo::Error>(())
/// ```
pub fn dot(graph: &Graph) -> String {
    let edges = graph.nodes().iter().map(|node| format!("{} ch", node.drawn.channels)).collect::<Vec<_>>();
    document(graph, &edges)
}

/// As [`dot()`], with the shape that flows along each edge for an input `[n, c, h, w]`. Fails as [`Graph::shapes`] does.
pub fn dot_with_shapes(graph: &Graph, input: [usize; 4]) -> Result<String> {
    let shapes = graph.shapes(input, true)?;
    let show = |(node, shape): (&NodeDef, &[usize; 4])| {
        let rank = if node.drawn.size == Size::Vector { 2 } else { 4 };
        show_shape(&shape[..rank])
    };
    Ok(document(graph, &graph.nodes().iter().zip(&shapes).map(show).collect::<Vec<_>>()))
}

/// The nodes drawn directly in a scope, and the scopes within it.
#[derive(Default)]
struct Scope<'a> {
    nodes: Vec<usize>,
    children: Vec<(&'a str, Scope<'a>)>,
}

impl<'a> Scope<'a> {
    fn insert(&mut self, path: &'a str, node: usize) {
        if path.is_empty() {
            self.nodes.push(node);
            return;
        }
        let (head, rest) = path.split_once('.').unwrap_or((path, ""));
        let at = self.children.iter().position(|(name, _)| *name == head).unwrap_or_else(|| {
            self.children.push((head, Scope::default()));
            self.children.len() - 1
        });
        self.children[at].1.insert(rest, node);
    }

    /// A scope of one operation needs no frame: the operation's label says its name.
    fn is_single(&self) -> bool {
        self.nodes.len() == 1 && self.children.is_empty()
    }
}

fn document(graph: &Graph, edges: &[String]) -> String {
    let roots = graph.outputs().iter().filter(|o| !matches!(o.role, Role::Auxiliary { .. })).map(|o| o.node);
    let live = graph.reachable(roots);
    let mut root = Scope::default();
    for (i, node) in graph.nodes().iter().enumerate() {
        // The input has a path of its own, but is drawn outside every scope.
        root.insert(if i == 0 { "" } else { &node.path }, i);
    }
    let mut out = String::from(
        "digraph network {\n  rankdir=TB;\n  fontname=\"sans-serif\";\n  \
         node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fontsize=11];\n  \
         edge [fontname=\"sans-serif\", fontsize=9];\n",
    );
    Writer { graph, live: &live, out: &mut out }.scope(&root, &mut String::new(), 1);
    for (i, node) in graph.nodes().iter().enumerate() {
        for input in &node.inputs {
            let dashed = if live[i] { "" } else { ", style=dashed" };
            let label = &edges[input.index()];
            push(&mut out, format_args!("  n{} -> n{i} [label=\"{label}\"{dashed}];\n", input.index()));
        }
    }
    for (i, output) in graph.outputs().iter().enumerate() {
        let node = output.node.index();
        push(&mut out, format_args!("  out{i} [label=\"{}\", shape=oval];\n", escape(&output.name)));
        let dashed = if live[node] { "" } else { ", style=dashed" };
        push(&mut out, format_args!("  n{node} -> out{i} [label=\"{}\"{dashed}];\n", edges[node]));
    }
    out.push_str("}\n");
    out
}

struct Writer<'a> {
    graph: &'a Graph,
    live: &'a [bool],
    out: &'a mut String,
}

impl Writer<'_> {
    /// The boxes of a scope and the frames in it; `path` is the scope's, `depth` how far to indent.
    fn scope(&mut self, scope: &Scope<'_>, path: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        for &i in &scope.nodes {
            let node = &self.graph.nodes()[i];
            let dashed = if self.live[i] { "" } else { ", style=\"rounded,filled,dashed\"" };
            // Within its frame the last part of the path is enough.
            let name = node.path.rsplit('.').next().unwrap_or_default();
            let label = match name {
                _ if i == 0 || name.is_empty() || !scope.is_single() => describe(&node.op),
                name => format!("{name}: {}", describe(&node.op)),
            };
            let (label, color) = (escape(&label), color(&node.op));
            push(self.out, format_args!("{indent}n{i} [label=\"{label}\", fillcolor=\"{color}\"{dashed}];\n"));
        }
        for (name, child) in &scope.children {
            let before = path.len();
            path.push('.');
            path.push_str(name);
            if child.is_single() {
                self.scope(child, path, depth);
            } else {
                let (id, label, look) =
                    (escape(path), escape(name), "style=rounded; color=gray60; fontsize=11; labeljust=l");
                push(self.out, format_args!("{indent}subgraph \"cluster{id}\" {{ label=\"{label}\"; {look};\n"));
                self.scope(child, path, depth + 1);
                push(self.out, format_args!("{indent}}}\n"));
            }
            path.truncate(before);
        }
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

/// For a quoted Graphviz string.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}

/// A pale colour per kind of operation.
fn color(op: &Op) -> &'static str {
    match op {
        Op::Input { .. } => "#ffffff",
        Op::Conv { .. } | Op::DeformConv { .. } => "#cfe2f7",
        Op::Linear { .. } => "#d9d2f0",
        Op::BatchNorm { .. } | Op::LocalResponseNorm { .. } => "#e3f0d5",
        Op::MaxPool { .. } | Op::AvgPool { .. } | Op::AdaptiveAvgPool { .. } => "#fbe3c8",
        Op::Activation(_) | Op::Softmax => "#fdf3c4",
        Op::Add | Op::Mul | Op::Concat => "#f6cfd2",
        Op::ChannelPad { .. } | Op::ChannelSlice { .. } | Op::Flatten => "#eeeeee",
        Op::Dropout { .. } | Op::StochasticDepth { .. } => "#eeeeee",
    }
}
