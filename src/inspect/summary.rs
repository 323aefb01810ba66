//! `Summary`: the network as a table, one line an operation.

use crate::error::Result;
use crate::graph::{Graph, NodeDef, Op, Role, Size};
use crate::shape::{Padding, Window};
use serde::Serialize;
use std::fmt;

/// One operation of a [`Summary`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Path of the scope it was drawn in, such as `layer1.0.conv1`; empty at the root.
    pub path: String,
    /// The operation with its settings, such as `conv 7×7/2 pad 3`.
    pub op: String,
    /// Shape of what it yields: `[n, c, h, w]`, of a vector `[n, c]`.
    pub output: Vec<usize>,
    /// Learned values it is the first to read.
    pub params: usize,
    /// Multiply-adds for the whole batch: convolutions and linear layers, nothing else.
    pub macs: u64,
    /// Bytes of what it yields, in `f32`; 0 for what evaluation passes through (dropout, flatten).
    pub bytes: u64,
}

/// What a network costs for one input shape, operation by operation and in total.
///
/// Multiply-adds are counted as torchvision's tables (`_ops`) count them: of convolutions `n · out · h · w · (in/groups) ·
/// kh · kw`, of linear layers `n · out · in`, of everything else none; biases are not counted. They are for the whole
/// batch, so ask with a batch of 1 to compare with published numbers.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::inspect::Summary;
/// use convzoo::layers::Conv2d;
///
/// let graph = Graph::draw(3, &(Conv2d::k3(8), Conv2d::k1(16)))?;
/// let summary = Summary::of(&graph, [1, 3, 10, 10])?;
/// assert_eq!(summary.macs, 100 * (8 * 3 * 9 + 16 * 8));
/// println!("{summary}");
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The operations in the order they run.
    pub rows: Vec<Row>,
    /// Shape of the input, `[n, c, h, w]`.
    pub input: [usize; 4],
    /// Learned values.
    pub params: usize,
    /// Values that are not learned: running statistics.
    pub buffers: usize,
    /// Multiply-adds for the batch.
    pub macs: u64,
    /// Bytes of all activations together: what naive training keeps.
    pub activation_bytes: u64,
    /// Most bytes of activations alive at once, when each is freed after its last reader: what evaluation needs without
    /// fusing anything.
    pub peak_bytes: u64,
}

impl Summary {
    /// The network as evaluation runs it, without auxiliary heads, for an input `[n, c, h, w]`.
    ///
    /// Fails if the network does not take that input, naming the layer and both numbers.
    pub fn of(graph: &Graph, input: [usize; 4]) -> Result<Summary> {
        Summary::build(graph, input, false)
    }

    /// As [`Summary::of`], with the auxiliary heads that training runs.
    pub fn with_auxiliary(graph: &Graph, input: [usize; 4]) -> Result<Summary> {
        Summary::build(graph, input, true)
    }

    fn build(graph: &Graph, input: [usize; 4], auxiliary: bool) -> Result<Summary> {
        let shapes = graph.shapes(input, auxiliary)?;
        let outputs = graph.outputs().iter().filter(|o| auxiliary || !matches!(o.role, Role::Auxiliary { .. }));
        let live = graph.reachable(outputs.map(|o| o.node));
        let mut counted = vec![false; graph.params().len()];
        let mut rows = Vec::new();
        let (mut params, mut buffers) = (0, 0);
        for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
            let mut own = 0;
            for id in node.op.params().into_iter().map(|id| id.index()) {
                let def = &graph.params()[id];
                // A parameter that two operations share counts once.
                if !std::mem::replace(&mut counted[id], true) {
                    *(if def.kind.is_learned() { &mut own } else { &mut buffers }) += def.len();
                }
            }
            params += own;
            rows.push(Row {
                path: node.path.clone(),
                op: describe(&node.op),
                output: visible(node, shapes[i]),
                params: own,
                macs: macs(graph, node, shapes[i]),
                bytes: if passes_through(&node.op) { 0 } else { bytes(shapes[i]) },
            });
        }
        let macs = rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.macs));
        let activation_bytes = rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.bytes));
        let peak_bytes = peak(graph, &shapes, &live);
        Ok(Summary { rows, input, params, buffers, macs, activation_bytes, peak_bytes })
    }
}

/// The shape as the user knows it: vectors have no height and width.
fn visible(node: &NodeDef, shape: [usize; 4]) -> Vec<usize> {
    if node.drawn.size == Size::Vector { shape[..2].to_vec() } else { shape.to_vec() }
}

fn bytes(shape: [usize; 4]) -> u64 {
    product(shape.iter().chain([&size_of::<f32>()]))
}

/// Saturates: a size no memory holds can still be asked about.
fn product<'a>(factors: impl Iterator<Item = &'a usize>) -> u64 {
    factors.fold(1, |product: u64, &factor| product.saturating_mul(factor as u64))
}

/// Whether evaluation hands on the same values in the same order.
fn passes_through(op: &Op) -> bool {
    matches!(op, Op::Dropout { .. } | Op::StochasticDepth { .. } | Op::Flatten)
}

/// Multiply-adds: every output value costs one weight row.
fn macs(graph: &Graph, node: &NodeDef, output: [usize; 4]) -> u64 {
    match node.op {
        Op::Conv { weight, .. } | Op::DeformConv { weight, .. } | Op::Linear { weight, .. } => {
            let row = &graph.params()[weight.index()].shape[1..];
            product(output.iter().chain(row))
        }
        _ => 0,
    }
}

/// The most bytes alive at once, every map freed after its last reader; outputs stay to the end.
fn peak(graph: &Graph, shapes: &[[usize; 4]], live: &[bool]) -> u64 {
    let count = graph.nodes().len();
    // The node whose memory a node's values lie in.
    let mut owner: Vec<usize> = (0..count).collect();
    let mut last: Vec<usize> = (0..count).collect();
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
        for input in &node.inputs {
            last[owner[input.index()]] = i;
        }
        if passes_through(&node.op) {
            owner[i] = owner[node.inputs[0].index()];
        }
    }
    for output in graph.outputs() {
        last[owner[output.node.index()]] = count;
    }
    let (mut held, mut most) = (0u64, 0);
    let mut freed_at: Vec<Vec<usize>> = vec![Vec::new(); count + 1];
    for i in (0..count).filter(|&i| live[i]) {
        if owner[i] == i {
            held = held.saturating_add(bytes(shapes[i]));
            freed_at[last[i]].push(i);
            most = most.max(held);
        }
        held = freed_at[i].iter().fold(held, |held, &j| held.saturating_sub(bytes(shapes[j])));
    }
    most
}

/// An operation with its settings, short.
pub(super) fn describe(op: &Op) -> String {
    let name = op.name();
    match op {
        Op::Conv { window, groups, .. } => format!("{name} {}{}", slide(window), grouped(*groups)),
        Op::DeformConv { window, groups, offset_groups, .. } => {
            let sets = if *offset_groups > 1 { format!(" offset groups {offset_groups}") } else { String::new() };
            format!("{name} {}{}{sets}", slide(window), grouped(*groups))
        }
        Op::MaxPool { window } | Op::AvgPool { window, .. } => format!("{name} {}", slide(window)),
        Op::AdaptiveAvgPool { output } => format!("{name} {}×{}", output[0], output[1]),
        Op::LocalResponseNorm { size, .. } => format!("{name} {size}"),
        Op::Dropout { p } | Op::StochasticDepth { p } => format!("{name} {p}"),
        Op::ChannelPad { before, after } => format!("{name} {before}+{after}"),
        Op::ChannelSlice { start, len } => format!("{name} {start}..{}", start + len),
        _ => name.to_owned(),
    }
}

fn grouped(groups: usize) -> String {
    if groups > 1 { format!(" groups {groups}") } else { String::new() }
}

/// `3×3/2 pad 1`: kernel, then what is not the default.
fn slide(window: &Window) -> String {
    let pair = |[a, b]: [usize; 2]| if a == b { a.to_string() } else { format!("{a}×{b}") };
    let mut text = format!("{}×{}", window.kernel[0], window.kernel[1]);
    if window.stride != [1, 1] {
        text += &format!("/{}", pair(window.stride));
    }
    match window.padding {
        Padding::Symmetric([0, 0]) => {}
        Padding::Symmetric(padding) => text += &format!(" pad {}", pair(padding)),
        Padding::Same => text += " pad same",
    }
    if window.dilation != [1, 1] {
        text += &format!(" dilation {}", pair(window.dilation));
    }
    if window.ceil {
        text += " ceil";
    }
    text
}

/// `1×64×56×56`.
pub(super) fn show_shape(shape: &[usize]) -> String {
    let parts: Vec<String> = shape.iter().map(usize::to_string).collect();
    parts.join("×")
}

/// Digits in threes: `25,557,032`.
fn in_threes(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `118.014 M`, `4.089 G`; plain below a million.
fn in_millions(value: u64) -> String {
    match value {
        0..1_000_000 => in_threes(value),
        1_000_000..1_000_000_000 => format!("{:.3} M", value as f64 / 1e6),
        _ => format!("{:.3} G", value as f64 / 1e9),
    }
}

fn in_mebibytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / (1u64 << 20) as f64)
}

const HEAD: [&str; 6] = ["layer", "operation", "output", "params", "MACs", "MiB"];

impl fmt::Display for Summary {
    /// An aligned table, totals below it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |value: u64, shown: String| if value == 0 { "-".to_owned() } else { shown };
        let cells = |row: &Row| {
            [
                row.path.clone(),
                row.op.clone(),
                show_shape(&row.output),
                or_dash(row.params as u64, in_threes(row.params as u64)),
                or_dash(row.macs, in_millions(row.macs)),
                or_dash(row.bytes, in_mebibytes(row.bytes)),
            ]
        };
        let lines: Vec<[String; 6]> =
            std::iter::once(HEAD.map(str::to_owned)).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let [a, b, c, d, e, g] = std::array::from_fn(width);
        let rule = "─".repeat(a + b + c + d + e + g + 10);
        for (i, [path, op, output, params, macs, bytes]) in lines.iter().enumerate() {
            writeln!(f, "{path:a$}  {op:b$}  {output:c$}  {params:>d$}  {macs:>e$}  {bytes:>g$}")?;
            if i == 0 {
                writeln!(f, "{rule}")?;
            }
        }
        writeln!(f, "{rule}")?;
        writeln!(f, "input            {}", show_shape(&self.input))?;
        writeln!(f, "parameters       {}", in_threes(self.params as u64))?;
        writeln!(f, "buffers          {}", in_threes(self.buffers as u64))?;
        writeln!(f, "multiply-adds    {} (convolutions and linear layers)", in_millions(self.macs))?;
        let (all, most) = (in_mebibytes(self.activation_bytes), in_mebibytes(self.peak_bytes));
        write!(f, "activations      {all} MiB together, {most} MiB at once")
    }
}
