//! The planned training step equals the reference: outputs, every parameter's gradient, the images', running statistics.
//! The same bits for any number of threads, and errors that name the place.

use convzoo::activation::Activation::{self, Relu, Relu6, Sigmoid, Silu};
use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::exec::{Gradients, Noise, Precision, Recompute, RunningStatistics, TrainOptions, TrainPlan};
use convzoo::graph::{Graph, Layer, Node, Op, ParamKind, Params, concat, layer_fn};
use convzoo::kernels::naive::Real;
use convzoo::layers::{
    AdaptiveAvgPool, AuxHead, AvgPool, BatchNorm, ClassifierHead, Conv2d, ConvNormAct, DeformConv2d, Dropout, Flatten,
    Inception, Linear, LocalResponseNorm, MaxPool, MbConv, SeBlock, Skip, StochasticDepth,
};
use convzoo::random::Stream;
use convzoo::simd::Isa;
use convzoo::{Result, Tensor};

fn fill(values: &mut [f32], stream: Stream, [low, width]: [f64; 2]) {
    values.iter_mut().zip(0..).for_each(|(slot, i)| *slot = (low + width * stream.uniform(i)) as f32);
}

/// Parameters without pattern. Offsets stay between whole pixels, where the bilinear image has kinks.
fn filled(graph: &Graph) -> Params {
    let mut params = Params::blank(graph.params());
    for ((def, values), i) in params.iter_mut().zip(0..) {
        let fan_in: usize = def.shape[1..].iter().product();
        let bound = (6.0 / fan_in as f64).sqrt();
        let span = match (def.kind, def.name.contains("conv_offset")) {
            (ParamKind::RunningVar | ParamKind::NormScale, _) => [0.75, 0.5],
            (ParamKind::Bias, true) => [0.4, 0.2],
            (ParamKind::Weight, true) => [-0.02, 0.04],
            (ParamKind::Weight, false) => [-bound, 2.0 * bound],
            _ => [-0.25, 0.5],
        };
        fill(values, Stream::new(1).fork(i), span);
    }
    params
}

fn image(shape: [usize; 4]) -> Tensor {
    let mut image = Tensor::zeros(&shape);
    fill(image.as_mut_slice(), Stream::new(2), [-1.0, 2.0]);
    image
}

/// The gradient of `Σ factor · output`, which reads every output.
fn factors(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill(&mut values, Stream::new(3).fork(name.bytes().map(u64::from).sum()), [-1.0, 2.0]);
    values
}

/// What a step leaves behind.
struct Step {
    outputs: Vec<(String, Tensor)>,
    gradients: Gradients,
    params: Params,
}

const STEP: u64 = 5;

fn planned(graph: &Graph, params: &Params, images: &Tensor, options: &TrainOptions) -> Result<Step> {
    let mut params = params.clone();
    let shape: [usize; 4] = images.shape().try_into().unwrap();
    let mut plan = TrainPlan::new(graph, &params, shape, options)?;
    let outputs = plan.forward(&mut params, images, STEP)?;
    let outputs: Vec<(String, Tensor)> = outputs.iter().map(|(name, t)| (name.to_owned(), t.clone())).collect();
    let seed = |(name, t): &(String, Tensor)| Tensor::from_slice(t.shape(), &factors(name, t.len()));
    let seeds = outputs.iter().map(seed).collect::<Result<Vec<_>>>()?;
    let named: Vec<(&str, &Tensor)> =
        outputs.iter().zip(&seeds).map(|((name, _), seed)| (name.as_str(), seed)).collect();
    let gradients = plan.backward(&named)?.clone();
    Ok(Step { outputs, gradients, params })
}

fn reference<T: Real>(graph: &Graph, params: &Params, images: &Tensor, options: &TrainOptions) -> Result<Step> {
    let of = TrainStep { graph, params, options, step: STEP };
    let trained = train_step::<T>(&of, images, |outputs| {
        let seed = |(name, v): &(String, Value<T>)| {
            let data = factors(name, v.data.len()).into_iter().map(|f| T::of(f64::from(f))).collect();
            (name.clone(), Value { shape: v.shape, data })
        };
        Ok(outputs.iter().map(seed).collect())
    })?;
    let mut moved = params.clone();
    trained.move_statistics(&mut moved);
    let round = |v: &Value<T>| v.data.iter().map(|v| v.to_f32().expect("every real has an f32")).collect::<Vec<_>>();
    let outputs = trained.outputs.iter().map(|(n, v)| Ok((n.clone(), Tensor::from_slice(&v.shape, &round(v))?)));
    Ok(Step { outputs: outputs.collect::<Result<_>>()?, gradients: trained.rounded(graph.params()), params: moved })
}

/// Fails unless the difference is below `tolerance` times the norm of what is wanted, or times `scale`.
#[track_caller]
fn near(what: &str, found: &[f32], wanted: &[f32], tolerance: f64, scale: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let square = |v: f32| f64::from(v).powi(2);
    let norm = wanted.iter().map(|&v| square(v)).sum::<f64>().sqrt();
    let error = found.iter().zip(wanted).map(|(f, w)| square(f - w)).sum::<f64>().sqrt();
    assert!(error <= tolerance * norm.max(scale), "{what}: off by {error:e} of {norm:e}, at least {scale:e}");
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Largest error of a gradient relative to its norm, or to a share of the largest one's: those that cancel to nothing have
/// no norm of their own.
const TOLERANCE: f64 = 1e-4;
const SHARE: f64 = 1e-2;

/// Holds a step to the reference.
fn check_graph(what: &str, graph: &Graph, shape: [usize; 4], options: &TrainOptions) {
    let (params, images) = (filled(graph), image(shape));
    let found = planned(graph, &params, &images, options).unwrap_or_else(|e| panic!("{what}: {e}"));
    let wanted = reference::<f64>(graph, &params, &images, options).unwrap();
    for ((name, f), (other, w)) in found.outputs.iter().zip(&wanted.outputs) {
        assert_eq!(name, other);
        near(&format!("{what}: {name}"), f.as_slice(), w.as_slice(), TOLERANCE, 0.0);
    }
    let scale = SHARE * wanted.gradients.iter().map(|(_, t)| norm(t.as_slice())).fold(0.0, f64::max);
    let pairs: Vec<_> = found.gradients.iter().zip(wanted.gradients.iter()).collect();
    assert_eq!(pairs.len(), wanted.gradients.iter().count(), "{what}");
    for ((def, f), (other, w)) in pairs {
        assert_eq!(def.name, other.name);
        near(&format!("{what}: {}", def.name), f.as_slice(), w.as_slice(), TOLERANCE, scale);
    }
    match (found.gradients.input(), wanted.gradients.input()) {
        (Some(f), Some(w)) => near(&format!("{what}: input"), f.as_slice(), w.as_slice(), TOLERANCE, scale),
        (f, w) => assert!(f.is_none() && w.is_none()),
    }
    for ((def, f), (_, w)) in found.params.iter().zip(wanted.params.iter()) {
        near(&format!("{what}: {}", def.name), f.as_slice(), w.as_slice(), 1e-4, 0.0);
    }
}

fn check(what: &str, network: &dyn Layer, shape: [usize; 4], options: &TrainOptions) {
    let graph = Graph::draw(shape[1], network).unwrap();
    for &isa in Isa::available() {
        let options = options.clone().isa(isa).threads(2).input_gradient();
        check_graph(&format!("{what} on {}", isa.name()), &graph, shape, &options);
    }
}

fn unit(conv: Conv2d) -> ConvNormAct {
    ConvNormAct::new(conv).activation(Silu)
}

/// Every operation, fan-out, a part that is concatenated twice, gates of both shapes.
fn everything(x: Node<'_>) -> Node<'_> {
    let x = x.layer("stem", unit(Conv2d::k3(6)));
    let a = x.layer("a", Conv2d::k3(6).groups(2)).activation(Silu);
    let b = x.layer("b", AvgPool::k(3).stride(1).padding(1).exclude_padding());
    let c = (x + a).layer("c", (SeBlock::reduction(3).activation(Silu), BatchNorm::new()));
    let d = x.channel_slice(1, 3).activation(Sigmoid) * a.channel_slice(2, 3);
    let e = concat([c, b, d, c]);
    let f = e.apply(Op::ChannelPad { before: 2, after: 1 }, &[e]).layer("lrn", LocalResponseNorm::new(5).alpha(0.5));
    let f = f.layer("pool", MaxPool::k(3).stride(2).padding(1).ceil());
    let f = f.layer("down", unit(Conv2d::rect([3, 2], 8).stride(2))).layer("to", AdaptiveAvgPool::rect([2, 1]));
    let y = f.then(Flatten).layer("fc", Linear::new(5));
    y.apply(Op::Softmax, &[y])
}

#[test]
fn every_operation_agrees_with_the_reference() {
    check("everything", &layer_fn(everything), [2, 3, 7, 6], &TrainOptions::new());
}

#[test]
fn auxiliary_heads_send_their_gradient_into_the_trunk() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", unit(Conv2d::k3(4))).aux("aux1", (Conv2d::k1(3), BatchNorm::new(), Flat(2)), 0.3);
        let x = x.layer("trunk", unit(Conv2d::k3(6).stride(2)));
        x.aux("aux2", (Conv2d::k1(2), Flat(3)), 0.3).feature("end").then(ClassifierHead::new(4).dropout(0.3))
    }
    struct Flat(usize);
    impl Layer for Flat {
        fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
            x.layer("pool", AdaptiveAvgPool::to(2)).then(Flatten).layer("fc", Linear::new(self.0))
        }
    }
    check("aux", &layer_fn(net), [3, 2, 6, 5], &TrainOptions::new());
}

#[test]
fn deformable_layers_pass_gradients_to_their_offset_branch() {
    let v1 = (Conv2d::k1(4), DeformConv2d::v1(3, 6).groups(2).offset_groups(2).bias(), Silu, ClassifierHead::new(3));
    let v2 =
        (Conv2d::k1(4), DeformConv2d::v2(3, 4).stride(2).padding(1), BatchNorm::new(), Silu, ClassifierHead::new(3));
    check("version 1", &v1, [2, 3, 5, 4], &TrainOptions::new());
    check("version 2", &v2, [2, 3, 6, 5], &TrainOptions::new());
}

#[test]
fn the_units_of_the_papers_agree_with_the_reference() {
    let inception = Inception::new([2, 3, 4, 2, 3, 2]).five(5).unit(unit(Conv2d::k1(1)));
    check("inception", &(Conv2d::k1(5), inception, ClassifierHead::new(3)), [2, 2, 5, 5], &TrainOptions::new());
    let mb = MbConv::new(4).expand(3).kernel(5).drop(0.4);
    check("mbconv", &(Conv2d::k1(4), mb, mb.stride(2), ClassifierHead::new(3)), [3, 2, 5, 6], &TrainOptions::new());
    fn dense(x: Node<'_>) -> Node<'_> {
        let layer = (BatchNorm::new(), Silu, Conv2d::k3(3), Dropout::new(0.2));
        let grown = ["a", "b", "c"].into_iter().fold(x, |x, name| concat([x, x.layer(name, layer)]));
        grown.then(AvgPool::k(2).stride(2))
    }
    check("dense", &(layer_fn(dense), ClassifierHead::new(3)), [2, 2, 6, 4], &TrainOptions::new());
    let skip = Skip::new((Conv2d::k3(4).stride(2), BatchNorm::new(), Silu, StochasticDepth::new(0.5)));
    let skip = skip.projected(Conv2d::k1(4).stride(2));
    check("skip", &(skip, Dropout::new(0.4), ClassifierHead::new(3)), [4, 3, 5, 5], &TrainOptions::new());
}

/// Shortcuts around norms with a ReLU behind the sum, one of them a projection, one padded with zero channels.
#[test]
fn residual_sums_share_one_gradient() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", (Conv2d::k3(6), BatchNorm::new(), Relu));
        let y = (x.layer("a", (Conv2d::k3(6), BatchNorm::new(), Relu, Conv2d::k3(6), BatchNorm::new())) + x).relu();
        let z = y.layer("b", (Conv2d::k3(8).stride(2), BatchNorm::new()));
        let z = (y.layer("p", (Conv2d::k1(8).stride(2), BatchNorm::new())) + z).relu();
        let w = z.apply(Op::ChannelPad { before: 1, after: 2 }, &[z]);
        let v = z.layer("c", (Conv2d::k3(11), BatchNorm::new()));
        (w + v).activation(Relu6).layer("d", Conv2d::k1(4)).relu() + z.layer("e", Conv2d::k1(4))
    }
    check("residual", &(layer_fn(net), ClassifierHead::new(3)), [2, 3, 8, 7], &TrainOptions::new());
}

/// Convolutions wide enough for the kernel that masks what it writes: behind a ReLU, behind a max-pool of one, behind a ReLU
/// that something else reads too; and with the weights between them frozen.
#[test]
fn gradients_pass_relus_and_pools_of_relus_over_the_map_they_belong_to() {
    const SHAPE: [usize; 4] = [2, 3, 20, 18];
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("a", (Conv2d::k3(16), Relu)).layer("b", (Conv2d::k3(24), Relu, MaxPool::k(2).stride(2)));
        let x = x.layer("c", (Conv2d::k3(16), Relu));
        let y = x.layer("d", (Conv2d::k3(16), Relu)).layer("e", (Conv2d::k3(16), Relu, MaxPool::k(3).stride(2)));
        concat([y, x.layer("f", (Conv2d::k3(16), Relu, MaxPool::k(3).stride(2)))])
    }
    let network = (layer_fn(net), ClassifierHead::new(3));
    check("relus", &network, SHAPE, &TrainOptions::new());
    check("frozen between relus", &network, SHAPE, &TrainOptions::new().freeze("0.b").freeze("0.d"));
    check("relus recomputed", &network, SHAPE, &TrainOptions::new().recompute(Recompute::Thorough));
    let graph = Graph::draw(SHAPE[1], &network).unwrap();
    let explained = TrainPlan::new(&graph, &filled(&graph), SHAPE, &TrainOptions::new()).unwrap().explain();
    assert!(explained.contains("masking_winograd"), "{explained}");
}

/// Squeeze-and-excitation behind a norm: alone, with a shortcut that shares the gradient, with a shortcut that has a gradient
/// already, with another reader of the gated map, and frozen.
#[test]
fn norms_lead_gradients_through_the_gates_behind_them() {
    const SHAPE: [usize; 4] = [3, 4, 5, 3];
    fn gated<'g>(x: Node<'g>, activation: Option<Activation>) -> [Node<'g>; 2] {
        let y = x.layer("conv", (Conv2d::k3(4), BatchNorm::new()));
        let y = activation.map_or(y, |activation| y.activation(activation));
        [y, y.layer("se", SeBlock::reduction(2))]
    }
    let stem = (Conv2d::k1(4), BatchNorm::new());
    let plain = TrainOptions::new;
    for activation in [None, Some(Relu), Some(Silu)] {
        let alone = layer_fn(move |x| gated(x, activation)[1].then(ClassifierHead::new(3)));
        check("alone", &alone, SHAPE, &plain());
        check("frozen", &alone, SHAPE, &plain().freeze("conv").freeze("se"));
        let shared = layer_fn(move |x| {
            let x = x.layer("stem", stem);
            (gated(x, activation)[1] + x).relu().then(ClassifierHead::new(3))
        });
        check("shared", &shared, SHAPE, &plain().input_gradient());
        let met = layer_fn(move |x| {
            let x = x.layer("stem", stem);
            let y = (gated(x, activation)[1] + x).relu();
            concat([y, x.layer("late", Conv2d::k3(2))]).then(ClassifierHead::new(3))
        });
        check("met", &met, SHAPE, &plain().input_gradient());
        let read = layer_fn(move |x| {
            let [y, z] = gated(x, activation);
            concat([z, y.layer("other", Conv2d::k1(2))]).then(ClassifierHead::new(3))
        });
        check("read elsewhere", &read, SHAPE, &plain());

        let led = |network: &dyn Layer| {
            let graph = Graph::draw(SHAPE[1], network).unwrap();
            let plan = TrainPlan::new(&graph, &filled(&graph), SHAPE, &plain()).unwrap();
            plan.explain().contains(if activation.is_none() { "gated_norm_sums" } else { "backward_gate_" })
        };
        assert!(led(&alone) && led(&shared) && led(&met) && !led(&read), "{activation:?}");
    }
}

/// Norm, activation, convolution.
#[derive(Clone, Copy)]
struct PreActivated(Option<Activation>);

impl Layer for PreActivated {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let x = x.layer("norm", BatchNorm::new());
        self.0.map_or(x, |activation| x.activation(activation)).layer("conv", Conv2d::k3(3))
    }
}

/// A dense block, whose norms complete the gradients of what they read together; with a norm that reads a part when all is
/// done, with frozen norms among them, and with maps that are computed again.
#[test]
fn norms_of_a_dense_block_complete_every_gradient_once() {
    const SHAPE: [usize; 4] = [3, 2, 5, 4];
    for activation in [None, Some(Relu), Some(Silu)] {
        let block = layer_fn(move |x| {
            let x = x.layer("stem", unit(Conv2d::k3(5)));
            let names = ["a", "b", "c", "d"].into_iter();
            let grown = names.fold(x, |x, name| concat([x, x.layer(name, PreActivated(activation))]));
            grown.layer("end", PreActivated(activation)).then(ClassifierHead::new(3))
        });
        let late = layer_fn(move |x| {
            let x = x.layer("stem", unit(Conv2d::k3(5)));
            let part = concat([x, x.layer("a", PreActivated(activation))]);
            let whole = concat([part, part.layer("b", PreActivated(activation))]);
            let [end, late] =
                [whole.layer("end", PreActivated(activation)), part.layer("late", PreActivated(activation))];
            (end + late).then(ClassifierHead::new(3))
        });
        for (what, network) in [("block", &block as &dyn Layer), ("read late", &late)] {
            check(what, network, SHAPE, &TrainOptions::new());
            check(what, network, SHAPE, &TrainOptions::new().freeze("b").freeze("a.norm"));
            check(what, network, SHAPE, &TrainOptions::new().recompute(Recompute::Thorough));
        }
        let graph = Graph::draw(SHAPE[1], &block).unwrap();
        let explained = TrainPlan::new(&graph, &filled(&graph), SHAPE, &TrainOptions::new()).unwrap().explain();
        assert_eq!(explained.matches("deferred_statistics").count(), 5, "{explained}");
    }
}

#[test]
fn frozen_parts_have_no_gradient_and_pass_it_on() {
    let network =
        (unit(Conv2d::k3(4)).named("conv", "bn"), unit(Conv2d::k3(4)), unit(Conv2d::k3(4)), ClassifierHead::new(3));
    for frozen in ["0", "1", "0.conv.weight", "2.0", "fc"].into_iter().take(4) {
        check("frozen", &network, [2, 3, 5, 5], &TrainOptions::new().freeze(frozen));
    }
    // Nothing is led back below the lowest layer that learns.
    let graph = Graph::draw(3, &network).unwrap();
    let steps = |options: &TrainOptions| {
        let plan = TrainPlan::new(&graph, &filled(&graph), [2, 3, 5, 5], options).unwrap();
        plan.explain().lines().filter(|line| line.contains('←') && line.contains(" 0.")).count()
    };
    assert!(steps(&TrainOptions::new()) > 0);
    assert_eq!(steps(&TrainOptions::new().freeze("0").freeze("1")), 0);
}

#[test]
fn options_mean_what_they_mean_to_the_reference() {
    let network = (unit(Conv2d::k3(6)), Dropout::new(0.5), StochasticDepth::new(0.3), ClassifierHead::new(3));
    for options in [
        TrainOptions::new().noise(Noise::Off),
        TrainOptions::new().seed(9),
        TrainOptions::new().statistics(RunningStatistics::TensorFlow),
        TrainOptions::new().precision(Precision::Exact),
    ] {
        check("options", &network, [3, 3, 6, 6], &options);
    }
}

#[test]
fn a_plan_runs_step_after_step_and_outputs_left_out_count_as_unread() -> Result<()> {
    fn net(x: Node<'_>) -> Node<'_> {
        x.aux("aux1", AuxHead::new(3), 0.3).layer("conv", Conv2d::k3(4)).then(ClassifierHead::new(2))
    }
    let graph = Graph::draw(2, &layer_fn(net))?;
    let (mut params, images) = (filled(&graph), image([2, 2, 4, 4]));
    let mut plan = TrainPlan::new(&graph, &params, [2, 2, 4, 4], &TrainOptions::new())?;
    let ones = Tensor::from_fn(&[2, 2], |_| 1.0);
    let mut runs = Vec::new();
    for _ in 0..2 {
        plan.forward(&mut params, &images, 0)?;
        let gradients = plan.backward(&[("logits", &ones)])?;
        for (def, gradient) in gradients.iter() {
            assert_eq!(gradient.as_slice().iter().all(|v| *v == 0.0), def.auxiliary, "{}", def.name);
        }
        runs.push(gradients.clone());
    }
    assert!(runs[0].iter().zip(runs[1].iter()).all(|((_, a), (_, b))| a == b));
    let error = plan.backward(&[("logits", &ones)]).unwrap_err().to_string();
    assert!(error.contains("backward without a forward"), "{error}");
    Ok(())
}

/// The gradients of a step, handed over one by one; each once, and what was handed over may be changed at once.
fn streamed(graph: &Graph, params: &Params, images: &Tensor, options: TrainOptions) -> Result<Vec<Option<Vec<f32>>>> {
    let mut params = params.clone();
    let shape: [usize; 4] = images.shape().try_into().unwrap();
    let mut plan = TrainPlan::new(graph, &params, shape, &options.stream_gradients())?;
    let outputs = plan.forward(&mut params, images, STEP)?;
    let seed =
        |(name, t): (&str, &Tensor)| Ok((name.to_owned(), Tensor::from_slice(t.shape(), &factors(name, t.len()))?));
    let seeds = outputs.iter().map(seed).collect::<Result<Vec<_>>>()?;
    let named: Vec<(&str, &Tensor)> = seeds.iter().map(|(name, seed)| (name.as_str(), seed)).collect();
    let error = plan.backward(&named).unwrap_err().to_string();
    assert!(error.contains("streams its gradients"), "{error}");
    let mut found = vec![None; params.defs().len()];
    plan.backward_each(&mut params, &named, |id, weight, gradient, _| {
        assert_eq!(weight.len(), gradient.len());
        weight.fill(f32::NAN); // nothing reads it any more
        assert!(found[id.index()].replace(gradient.to_vec()).is_none(), "handed over twice");
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn streamed_gradients_have_the_bits_of_those_kept() -> Result<()> {
    fn classic(x: Node<'_>) -> Node<'_> {
        // Large linear layers, whose gradients come last; a bias; dropout.
        let x =
            x.layer("conv", Conv2d::k3(6)).then(AdaptiveAvgPool::to(4)).then(Flatten).layer("fc6", Linear::new(300));
        x.relu().then(Dropout::new(0.5)).layer("fc7", Linear::new(7))
    }
    fn residual(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", unit(Conv2d::k3(8))).aux("aux1", AuxHead::new(3), 0.3);
        let x = x.layer("block", MbConv::new(8)).layer("deform", DeformConv2d::v2(3, 8).padding(1));
        x.layer("out", ClassifierHead::new(3))
    }
    let graphs = [Graph::draw(3, &layer_fn(classic))?, Graph::draw(3, &layer_fn(residual))?];
    for (graph, frozen) in graphs.iter().zip(["fc7.weight", "stem"]) {
        let (params, images) = (filled(graph), image([3, 3, 9, 9]));
        for options in [
            TrainOptions::new(),
            TrainOptions::new().threads(3),
            TrainOptions::new().freeze(frozen),
            TrainOptions::new().recompute(Recompute::Thorough),
        ] {
            let kept = planned(graph, &params, &images, &options)?.gradients;
            let found = streamed(graph, &params, &images, options.clone())?;
            for (def, gradient) in params.defs().iter().zip(found) {
                let learns = def.kind.is_learned() && !options.is_frozen(&def.name);
                assert_eq!(gradient.is_some(), learns, "{}", def.name);
                if let Some(gradient) = gradient {
                    assert!(gradient == kept.get(&def.name)?.as_slice(), "{}", def.name);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn streamed_gradients_take_less_memory_and_an_error_ends_the_way_back() -> Result<()> {
    fn wide(x: Node<'_>) -> Node<'_> {
        let x = x.layer("conv", Conv2d::k3(4)).then(AdaptiveAvgPool::to(4)).then(Flatten);
        x.layer("fc6", Linear::new(4096)).layer("fc7", Linear::new(2))
    }
    let graph = Graph::draw(2, &layer_fn(wide))?;
    let (mut params, images) = (filled(&graph), image([2, 2, 8, 8]));
    let plan = |options| TrainPlan::new(&graph, &params, [2, 2, 8, 8], &options);
    let bytes: usize = 4 * params.defs().iter().map(|def| def.len()).sum::<usize>();
    let [kept, mut streamed] = [plan(TrainOptions::new())?, plan(TrainOptions::new().stream_gradients())?];
    assert!(kept.predicted_bytes() > bytes && streamed.predicted_bytes() < kept.predicted_bytes());
    let slope = streamed.forward(&mut params, &images, 0)?.logits().clone();
    let mut calls = 0;
    let error = streamed.backward_each(&mut params, &[("logits", &slope)], |_, _, _, _| {
        calls += 1;
        Err(convzoo::Error::invalid("optimiser", "enough"))
    });
    assert!(error.unwrap_err().to_string().contains("enough") && calls == 1);
    let again = streamed.backward_each(&mut params, &[("logits", &slope)], |_, _, _, _| Ok(()));
    assert!(again.unwrap_err().to_string().contains("backward without a forward"));
    Ok(())
}

#[test]
fn what_cannot_be_trained_is_refused_with_place_and_numbers() -> Result<()> {
    let network = (Conv2d::k3(4), BatchNorm::new(), ClassifierHead::new(3));
    let graph = Graph::draw(3, &network)?;
    let mut params = filled(&graph);
    let plain = TrainOptions::new();
    let refused = |shape, options: &TrainOptions| {
        TrainPlan::new(&graph, &params, shape, options).map(|_| ()).unwrap_err().to_string()
    };
    for (error, parts) in [
        (refused([1, 3, 1, 1], &plain), ["1 (batch_norm)", "at least 2", "found 1"]),
        (refused([1, 2, 4, 4], &plain), ["input", "expected 3", "found 2"]),
        (refused([1, 3, 4, 4], &plain.clone().freeze("0.wieght")), ["freeze", "0.wieght", "0.weight"]),
        (refused([1, 3, 4, 4], &plain.clone().threads(0)), ["threads", "1 to 4096", "found 0"]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let mut plan = TrainPlan::new(&graph, &params, [2, 3, 4, 4], &plain)?;
    assert!(plan.forward(&mut params, &image([2, 3, 4, 5]), 0).is_err());
    let ones = Tensor::from_fn(&[2, 3], |_| 1.0);
    for (of, parts) in [
        (vec![("logit", &ones)], ["unknown output", "`logit`"]),
        (vec![("logits", &image([2, 3, 1, 1]))], ["[2, 3]", "[2, 3, 1, 1]"]),
        (vec![("logits", &ones), ("logits", &ones)], ["logits", "twice"]),
    ] {
        plan.forward(&mut params, &image([2, 3, 4, 4]), 0)?;
        let error = plan.backward(&of).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let other = Graph::draw(3, &(Conv2d::k3(5), BatchNorm::new(), ClassifierHead::new(3)))?;
    assert!(TrainPlan::new(&other, &params, [2, 3, 4, 4], &plain).is_err());
    assert!(plan.forward(&mut filled(&other), &image([2, 3, 4, 4]), 0).is_err());
    // A frozen batch norm takes its statistics from elsewhere and needs no batch.
    let graph = Graph::draw(3, &(BatchNorm::new(), ClassifierHead::new(3)))?;
    assert!(planned(&graph, &filled(&graph), &image([1, 3, 1, 1]), &plain.freeze("0")).is_ok());
    Ok(())
}
