//! A training step of the reference executor: whole graphs against central differences, the running statistics, the noise,
//! what is frozen, and what is refused.

use convzoo::activation::Activation::{Sigmoid, Silu};
use convzoo::exec::reference::{TrainStep, Trained, Value, train_step};
use convzoo::exec::{Noise, RunningStatistics, TrainOptions};
use convzoo::graph::{Graph, Layer, Node, Op, Params, Role, concat, layer_fn};
use convzoo::kernels::naive::Real;
use convzoo::layers::{
    AdaptiveAvgPool, AuxHead, AvgPool, BatchNorm, ClassifierHead, Conv2d, ConvNormAct, DeformConv2d, Dropout, Flatten,
    Inception, Linear, LocalResponseNorm, MaxPool, MbConv, SeBlock, Skip, StochasticDepth,
};
use convzoo::random::Stream;
use convzoo::{Error, Result, Tensor};

/// Parameters and pixels are multiples of 2⁻¹⁰ and moved by multiples of 2⁻¹², so that f32 holds every one exactly.
const GRID: f64 = 1024.0;
const STEP: f32 = 1.0 / 4096.0;
/// Components looked at per parameter.
const LOOKS: usize = 20;

fn grid(values: &mut [f32], stream: Stream, [low, width]: [f64; 2]) {
    for (slot, i) in values.iter_mut().zip(0..) {
        *slot = (((low + width * stream.uniform(i)) * GRID).round() / GRID) as f32;
    }
}

/// Parameters without pattern. Offsets stay between whole pixels, where the bilinear image has kinks.
fn filled(graph: &Graph) -> Params {
    let mut params = Params::blank(graph.params());
    for ((def, values), i) in params.iter_mut().zip(0..) {
        let fan_in: usize = def.shape[1..].iter().product();
        let bound = (2.0 / fan_in as f64).sqrt();
        let span = match def.name.rsplit('.').next() {
            Some("running_var") => [0.75, 0.5],
            Some("bias") if def.name.contains("conv_offset") => [0.4, 0.2],
            Some("weight") if def.name.contains("conv_offset") => [-0.02, 0.04],
            Some("weight") if def.shape.len() == 1 => [0.75, 0.5],
            Some("weight") => [-bound, 2.0 * bound],
            _ => [-0.25, 0.5],
        };
        grid(values, Stream::new(1).fork(i), span);
    }
    params
}

fn image(shape: [usize; 4]) -> Tensor {
    let mut image = Tensor::zeros(&shape);
    grid(image.as_mut_slice(), Stream::new(2), [-1.0, 2.0]);
    image
}

/// Factors of the loss `Σ factor · output`, which reads every output.
fn factors<T: Real>(name: &str, value: &Value<T>) -> Vec<T> {
    let stream = Stream::new(3).fork(name.bytes().map(u64::from).sum());
    (0..value.data.len() as u64).map(|i| T::of(2.0 * stream.uniform(i) - 1.0)).collect()
}

fn run<T: Real>(graph: &Graph, params: &Params, images: &Tensor, options: &TrainOptions) -> Result<Trained<T>> {
    train_step(&TrainStep { graph, params, options, step: 5 }, images, |outputs| {
        Ok(outputs.iter().map(|(n, v)| (n.clone(), Value { shape: v.shape, data: factors(n, v) })).collect())
    })
}

fn loss(graph: &Graph, params: &Params, images: &Tensor, options: &TrainOptions) -> f64 {
    let trained = run::<f64>(graph, params, images, options).unwrap();
    let sum = |(name, value): &(String, Value<f64>)| -> f64 {
        value.data.iter().zip(factors(name, value)).map(|(v, f)| v * f).sum()
    };
    trained.outputs.iter().map(sum).sum()
}

/// Holds the gradients of a step to differences over four points.
fn check(what: &str, network: &dyn Layer, shape: [usize; 4], options: &TrainOptions) -> Trained<f64> {
    let options = options.clone().input_gradient();
    let graph = Graph::draw(shape[1], network).unwrap();
    let (params, images) = (filled(&graph), image(shape));
    let trained = run::<f64>(&graph, &params, &images, &options).unwrap();
    let most = |values: &[f64]| values.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    let input = trained.input.as_ref().expect("asked for");
    let scale = trained.gradients.iter().flatten().map(|g| most(g)).fold(most(&input.data), f64::max);

    let hold = |name: &str, found: &[f64], moved: &dyn Fn(usize, f32) -> f64| {
        let tolerance = 1e-8 * most(found).max(1e-3 * scale);
        for i in (0..LOOKS.min(found.len())).map(|look| look * found.len() / LOOKS.min(found.len())) {
            let near = moved(i, STEP) - moved(i, -STEP);
            let far = moved(i, 2.0 * STEP) - moved(i, -2.0 * STEP);
            let wanted = (8.0 * near - far) / (12.0 * f64::from(STEP));
            let error = (found[i] - wanted).abs();
            assert!(error < tolerance, "{what}: {name}[{i}] is {:e}, by differences {wanted:e}", found[i]);
        }
    };
    for (id, (def, found)) in graph.params().iter().zip(&trained.gradients).enumerate() {
        let Some(found) = found else { continue };
        hold(&def.name, found, &|i, step| {
            let mut params = params.clone();
            params.iter_mut().nth(id).unwrap().1[i] += step;
            loss(&graph, &params, &images, &options)
        });
    }
    hold("input", &input.data, &|i, step| {
        let mut images = images.clone();
        images.as_mut_slice()[i] += step;
        loss(&graph, &params, &images, &options)
    });
    trained
}

fn unit(conv: Conv2d) -> ConvNormAct {
    ConvNormAct::new(conv).activation(Silu)
}

#[test]
fn fan_out_concat_skip_and_gates_sum_their_gradients() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", unit(Conv2d::k3(6)));
        let a = x.layer("a", Conv2d::k3(6).groups(2)).activation(Silu);
        let b = x.layer("b", AvgPool::k(3).stride(1).padding(1).exclude_padding());
        let c = (x + a).layer("c", (SeBlock::reduction(3).activation(Silu), BatchNorm::new()));
        let d = x.channel_slice(1, 3).activation(Sigmoid) * a.channel_slice(2, 3);
        let e = concat([c, b, d, c]); // one part twice
        let f =
            e.apply(Op::ChannelPad { before: 2, after: 1 }, &[e]).layer("lrn", LocalResponseNorm::new(5).alpha(0.5));
        let f = f.layer("pool", MaxPool::k(3).stride(2).padding(1).ceil());
        let f = f.layer("down", unit(Conv2d::rect([3, 2], 8).stride(2))).layer("to", AdaptiveAvgPool::rect([2, 1]));
        let y = f.then(Flatten).layer("fc", Linear::new(5));
        y.apply(Op::Softmax, &[y])
    }
    check("graph", &layer_fn(net), [2, 3, 7, 6], &TrainOptions::new());
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
    let trained = check("aux", &layer_fn(net), [3, 2, 6, 5], &TrainOptions::new());
    let names: Vec<_> = trained.outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["aux1", "aux2", "logits"]);
    assert_eq!(trained.statistics.len(), 6, "three batch norms");
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
fn the_units_of_the_papers_have_the_gradient_of_differences() {
    let inception = Inception::new([2, 3, 4, 2, 3, 2]).five(5).unit(unit(Conv2d::k1(1)));
    check("inception", &(Conv2d::k1(5), inception, ClassifierHead::new(3)), [2, 2, 5, 5], &TrainOptions::new());
    let mb = MbConv::new(4).expand(3).kernel(5).drop(0.4);
    check("mbconv", &(Conv2d::k1(4), mb, mb.stride(2), ClassifierHead::new(3)), [3, 2, 5, 6], &TrainOptions::new());
    // DenseNet's chain of concatenations, without its ReLU, whose kinks differences stumble over.
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

#[test]
fn frozen_parts_have_no_gradient_and_pass_it_on() {
    let network = (unit(Conv2d::k3(4)).named("conv", "bn"), unit(Conv2d::k3(4)), ClassifierHead::new(3));
    let frozen = check("frozen", &network, [2, 3, 5, 5], &TrainOptions::new().freeze("1"));
    let graph = Graph::draw(3, &network).unwrap();
    for (def, gradient) in graph.params().iter().zip(&frozen.gradients) {
        assert_eq!(gradient.is_some(), def.kind.is_learned() && !def.name.starts_with("1."), "{}", def.name);
    }
    assert_eq!(frozen.statistics.len(), 2, "the frozen batch norm keeps its statistics");

    // Freezing weights alone changes no other gradient by a bit.
    let (params, images) = (filled(&graph), image([2, 3, 5, 5]));
    let all = run::<f64>(&graph, &params, &images, &TrainOptions::new()).unwrap();
    let some = run::<f64>(&graph, &params, &images, &TrainOptions::new().freeze("0.conv.weight")).unwrap();
    let place = graph.params().iter().position(|def| def.name == "0.conv.weight");
    for (i, (a, s)) in all.gradients.iter().zip(&some.gradients).enumerate() {
        assert!(if Some(i) == place { s.is_none() } else { a == s }, "{}", graph.params()[i].name);
    }
}

#[test]
fn an_output_left_out_of_the_loss_counts_as_unread() -> Result<()> {
    fn net(x: Node<'_>) -> Node<'_> {
        x.aux("aux1", AuxHead::new(3), 0.3).then(ClassifierHead::new(2))
    }
    let graph = Graph::draw(2, &layer_fn(net))?;
    let (params, options) = (filled(&graph), TrainOptions::new());
    let of = TrainStep { graph: &graph, params: &params, options: &options, step: 0 };
    let trained = train_step::<f64>(&of, &image([2, 2, 4, 4]), |outputs| {
        let (name, value) = outputs.last().unwrap();
        assert_eq!(name, "logits");
        Ok(vec![(name.clone(), value.clone())])
    })?;
    for (def, gradient) in graph.params().iter().zip(&trained.gradients) {
        let Some(gradient) = gradient else { continue };
        assert_eq!(gradient.iter().all(|v| *v == 0.0), def.auxiliary, "{}", def.name);
    }
    let logits = &trained.outputs.last().unwrap().1;
    let bias = trained.rounded(graph.params());
    let wanted = logits.data[0] + logits.data[2];
    assert_eq!(bias.get("fc.bias")?.as_slice()[0], wanted as f32);
    Ok(())
}

#[test]
fn running_statistics_follow_the_convention_asked_for() -> Result<()> {
    let graph = Graph::draw(1, &BatchNorm::new().momentum(0.25))?;
    let mut params = Params::blank(graph.params());
    let images = Tensor::from_slice(&[2, 1, 1, 2], &[1.0, 3.0, 5.0, 7.0])?; // mean 4, Σ(x − mean)² = 20
    for (convention, variance) in
        [(RunningStatistics::PyTorch, 0.75 + 0.25 * 20.0 / 3.0), (RunningStatistics::TensorFlow, 0.75 + 0.25 * 5.0)]
    {
        let trained = run::<f64>(&graph, &params, &images, &TrainOptions::new().statistics(convention))?;
        let found: Vec<_> =
            trained.statistics.iter().map(|(id, v)| (graph.params()[id.index()].name.as_str(), v[0])).collect();
        assert_eq!(found[0], ("running_mean", 1.0));
        assert!(found[1].0 == "running_var" && (found[1].1 - variance).abs() < 1e-14, "{found:?} for {variance}");
    }
    let trained = run::<f32>(&graph, &params, &images, &TrainOptions::new())?;
    trained.move_statistics(&mut params);
    assert_eq!(params.get("running_mean")?.as_slice(), [1.0]);
    assert!((params.get("running_var")?.as_slice()[0] - 2.416_666_7).abs() < 1e-6);
    Ok(())
}

#[test]
fn noise_depends_on_seed_and_step_and_can_be_turned_off() -> Result<()> {
    let graph = Graph::draw(4, &(Dropout::new(0.5), StochasticDepth::new(0.5), Flatten2))?;
    struct Flatten2;
    impl Layer for Flatten2 {
        fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
            x.global_avg_pool().flatten()
        }
    }
    let (params, images) = (filled(&graph), image([8, 4, 3, 3]));
    let outputs = |options: &TrainOptions, step| {
        let of = TrainStep { graph: &graph, params: &params, options, step };
        train_step::<f64>(&of, &images, |_| Ok(vec![])).map(|t| t.outputs[0].1.data.clone())
    };
    let first = outputs(&TrainOptions::new(), 0)?;
    assert_eq!(first, outputs(&TrainOptions::new(), 0)?);
    assert_ne!(first, outputs(&TrainOptions::new(), 1)?);
    assert_ne!(first, outputs(&TrainOptions::new().seed(1), 0)?);
    let quiet = outputs(&TrainOptions::new().noise(Noise::Off), 0)?;
    let mean = |image: &[f32]| image.iter().map(|&v| f64::from(v)).sum::<f64>() / 9.0;
    let wanted: Vec<f64> = images.as_slice().chunks(9).map(mean).collect();
    assert!(quiet.iter().zip(&wanted).all(|(q, w)| (q - w).abs() < 1e-12));
    Ok(())
}

#[test]
fn f32_stays_close_to_f64() {
    let network = (unit(Conv2d::k3(8)), MbConv::new(8), DeformConv2d::v2(3, 8), ClassifierHead::new(5));
    let graph = Graph::draw(3, &network).unwrap();
    let (params, images) = (filled(&graph), image([2, 3, 9, 9]));
    let options = TrainOptions::new().input_gradient();
    let exact = run::<f64>(&graph, &params, &images, &options).unwrap().rounded(graph.params());
    let close = run::<f32>(&graph, &params, &images, &options).unwrap().rounded(graph.params());
    let check = |name: &str, found: &Tensor, wanted: &Tensor| {
        let square = |v: f32| f64::from(v).powi(2);
        let norm = wanted.as_slice().iter().map(|&v| square(v)).sum::<f64>().sqrt();
        let error = found.as_slice().iter().zip(wanted.as_slice()).map(|(f, w)| square(f - w)).sum::<f64>().sqrt();
        assert!(error <= 1e-4 * norm + 1e-6, "{name}: off by {error:e} of {norm:e}");
    };
    for ((def, found), (_, wanted)) in close.iter().zip(exact.iter()) {
        check(&def.name, found, wanted);
    }
    check("input", close.input().unwrap(), exact.input().unwrap());
}

#[test]
fn what_cannot_be_trained_is_refused_with_place_and_numbers() {
    let network = (Conv2d::k3(4), BatchNorm::new(), ClassifierHead::new(3));
    let graph = Graph::draw(3, &network).unwrap();
    let params = filled(&graph);
    let refused = |images: &Tensor, options: &TrainOptions, name: &str, shape: [usize; 4]| {
        let of = TrainStep { graph: &graph, params: &params, options, step: 0 };
        let gradient = Value { shape, data: vec![0.0; shape.iter().product()] };
        train_step::<f64>(&of, images, |_| Ok(vec![(name.to_owned(), gradient)])).unwrap_err().to_string()
    };
    let (some, plain) = (image([2, 3, 4, 4]), TrainOptions::new());
    for (error, parts) in [
        (refused(&image([1, 3, 1, 1]), &plain, "logits", [1, 3, 1, 1]), ["1 (batch_norm)", "at least 2", "found 1"]),
        (refused(&image([1, 2, 4, 4]), &plain, "logits", [1, 3, 1, 1]), ["input", "expected 3", "found 2"]),
        (refused(&some, &plain, "logit", [2, 3, 1, 1]), ["unknown output", "`logit`", "logits"]),
        (refused(&some, &plain, "logits", [3, 2, 1, 1]), ["logits", "[2, 3, 1, 1]", "[3, 2, 1, 1]"]),
        (refused(&some, &plain.clone().freeze("0.wieght"), "logits", [2, 3, 1, 1]), ["freeze", "0.wieght", "0.weight"]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let of = TrainStep { graph: &graph, params: &params, options: &plain, step: 0 };
    let twice = train_step::<f64>(&of, &some, |o| Ok(vec![o[0].clone(), o[0].clone()])).unwrap_err().to_string();
    assert!(twice.contains("logits") && twice.contains("twice"), "{twice}");
    let other = Graph::draw(3, &(Conv2d::k3(5), BatchNorm::new(), ClassifierHead::new(3))).unwrap();
    assert!(matches!(run::<f64>(&other, &params, &some, &plain), Err(Error::Mismatch { .. })));
    // A frozen batch norm takes its statistics from elsewhere and needs no batch.
    let graph = Graph::draw(3, &(BatchNorm::new(), ClassifierHead::new(3))).unwrap();
    assert!(run::<f64>(&graph, &filled(&graph), &image([1, 3, 1, 1]), &plain.freeze("0")).is_ok());
    assert!(graph.outputs().iter().any(|o| o.role == Role::Primary));
}
