//! Summaries and Graphviz drawings of small networks whose numbers can be worked out by hand.

use convzoo::Activation::Relu;
use convzoo::graph::{Graph, Node, layer_fn};
use convzoo::inspect::{Summary, dot, dot_with_shapes};
use convzoo::layers::{AdaptiveAvgPool, BatchNorm, Conv2d, Dropout, Flatten, GlobalAvgPool, Linear, MaxPool};

/// torchvision's AlexNet, without its names.
fn alexnet() -> Graph {
    let pool = || MaxPool::k(3).stride(2);
    let features = (
        (Conv2d::k(11, 64).stride(4).padding(2), Relu, pool()),
        (Conv2d::k(5, 192).padding(2), Relu, pool()),
        (Conv2d::k3(384), Relu, Conv2d::k3(256), Relu, Conv2d::k3(256), Relu, pool()),
        AdaptiveAvgPool::to(6),
    );
    let head = (Flatten, Dropout::new(0.5), Linear::new(4096), Relu, Linear::new(4096), Relu, Linear::new(1000));
    Graph::draw(3, &(features, head)).unwrap()
}

#[test]
fn alexnet_costs_what_torchvision_publishes() {
    let summary = Summary::of(&alexnet(), [1, 3, 224, 224]).unwrap();
    assert_eq!((summary.params, summary.buffers, summary.macs), (61_100_840, 0, 714_188_480));
    let conv1 = summary.rows.iter().find(|row| row.op == "conv 11×11/4 pad 2").unwrap();
    assert_eq!((conv1.params, conv1.macs, &conv1.output[..]), (23_296, 70_276_800, &[1, 64, 55, 55][..]));
    assert_eq!(summary.rows.last().unwrap().output, [1, 1000]);
    assert_eq!(Summary::of(&alexnet(), [4, 3, 224, 224]).unwrap().macs, 4 * 714_188_480, "a batch costs its images");
}

#[test]
fn the_registry_quotes_what_the_drawings_cost() {
    for model in convzoo::models::list() {
        let graph = Graph::draw(3, &model.config()).unwrap();
        let input = [1, 3, model.input, model.input];
        let summary = Summary::of(&graph, input).unwrap();
        assert_eq!((summary.params as u64, summary.macs), (model.params, model.macs), "{}", model.name);
        let training = Summary::with_auxiliary(&graph, input).unwrap();
        assert_eq!(training.params as u64, model.params_with_aux, "{}", model.name);
        assert!(summary.peak_bytes <= summary.activation_bytes && summary.peak_bytes > 0, "{}", model.name);
    }
}

fn residual(x: Node<'_>) -> Node<'_> {
    let y = x.layer("conv", Conv2d::k1(4).no_bias()).layer("bn", BatchNorm::new()).layer("drop", Dropout::new(0.1));
    (y + x).relu()
}

#[test]
fn memory_counts_what_must_be_held_at_once() {
    let chain = Graph::draw(3, &(Conv2d::k3(8), Conv2d::k3(2))).unwrap();
    let summary = Summary::of(&chain, [1, 3, 4, 4]).unwrap();
    assert_eq!(summary.activation_bytes, 64 * (3 + 8 + 2));
    assert_eq!(summary.peak_bytes, 64 * (3 + 8), "the input is freed before the last map is made");

    // The skip keeps x alive until the sum; dropout takes no memory of its own.
    let skip = Graph::draw(4, &layer_fn(residual)).unwrap();
    let summary = Summary::of(&skip, [1, 4, 2, 2]).unwrap();
    assert_eq!((summary.activation_bytes, summary.peak_bytes), (64 * 5, 64 * 3));
    assert_eq!((summary.params, summary.buffers), (16 + 8, 8));
}

fn with_head(x: Node<'_>) -> Node<'_> {
    let x = x.layer("stem", Conv2d::k3(2));
    let x = x.aux("aux1", (GlobalAvgPool, Flatten, Linear::new(7)), 0.3);
    x.layer("pool", GlobalAvgPool).layer("flat", Flatten).layer("fc", Linear::new(5))
}

#[test]
fn auxiliary_heads_are_counted_only_when_asked_for() {
    let graph = Graph::draw(1, &layer_fn(with_head)).unwrap();
    let (eval, train) = (Summary::of(&graph, [1, 1, 6, 6]), Summary::with_auxiliary(&graph, [1, 1, 6, 6]));
    let (eval, train) = (eval.unwrap(), train.unwrap());
    assert_eq!((eval.params, eval.macs), (20 + 15, 36 * 18 + 10));
    assert_eq!((train.params, train.macs), (20 + 15 + 21, 36 * 18 + 10 + 14));
    assert!(!eval.rows.iter().any(|row| row.path.starts_with("aux1")));
}

#[test]
fn the_table_is_aligned_and_ends_in_totals() {
    let table = Summary::of(&alexnet(), [1, 3, 224, 224]).unwrap().to_string();
    let lines: Vec<&str> = table.lines().collect();
    let rules: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].starts_with('─')).collect();
    let width = lines[rules[0]].chars().count();
    assert!(lines[..rules[1]].iter().all(|line| line.chars().count() == width), "{table}");
    for total in ["parameters       61,100,840", "multiply-adds    714.188 M", "1×3×224×224"] {
        assert!(table.contains(total), "{total} is missing in\n{table}");
    }
}

#[test]
fn inputs_the_network_cannot_take_are_errors_and_giant_ones_no_panic() {
    let graph = alexnet();
    for input in [[1, 1, 224, 224], [0, 3, 224, 224], [1, 3, 0, 5], [1, 3, 20, 20], [usize::MAX; 4]] {
        assert!(Summary::of(&graph, input).is_err(), "{input:?}");
        assert!(dot_with_shapes(&graph, input).is_err(), "{input:?}");
    }
    let conv = Graph::draw(1, &Conv2d::k(9, 1)).unwrap();
    assert_eq!(Summary::of(&conv, [1, 1, 1 << 30, 1 << 28]).unwrap().macs, u64::MAX);
}

#[test]
fn graphviz_shows_every_operation_edge_and_output_once() {
    let graph = Graph::draw(1, &layer_fn(with_head)).unwrap();
    let text = dot(&graph);
    let edges: usize = graph.nodes().iter().map(|node| node.inputs.len()).sum();
    assert_eq!(text.matches(" -> ").count(), edges + graph.outputs().len());
    for i in 0..graph.nodes().len() {
        let drawn = text.lines().filter(|line| line.trim().starts_with(&format!("n{i} [label="))).count();
        assert_eq!(drawn, 1, "node {i} in\n{text}");
    }
    assert!(text.contains("label=\"stem: conv 3×3 pad 1\"") && text.contains("subgraph \"cluster.aux1\""), "{text}");
    assert!(text.contains("label=\"logits\", shape=oval") && text.contains("dashed"), "{text}");
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    let shaped = dot_with_shapes(&graph, [1, 1, 6, 6]).unwrap();
    assert!(shaped.contains("label=\"1×2×6×6\"") && shaped.contains("label=\"1×5\""), "{shaped}");
}

#[test]
fn names_cannot_break_out_of_a_graphviz_string() {
    let hostile = "a\"];evil[label=\"b\\";
    let graph = Graph::draw(1, &layer_fn(|x| x.layer("a\"];evil[label=\"b\\", Conv2d::k1(1)).relu())).unwrap();
    let escaped = hostile.replace('\\', "\\\\").replace('"', "\\\"");
    assert!(dot(&graph).contains(&escaped));
}
