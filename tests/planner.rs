//! The planner against the reference executor on small networks that provoke every rewrite, for every instruction set,
//! at awkward sizes; and what plans promise: same bits for any thread count, nothing allocated while running.

use convzoo::graph::{Layer, Node, concat, layer_fn};
use convzoo::layers::*;
use convzoo::simd::Isa;
use convzoo::{Activation, Model, PlanOptions, Precision, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Random values for every parameter, running statistics included, so that folding has something to fold.
fn shaken(mut model: Model, seed: u64) -> Model {
    let mut rng = StdRng::seed_from_u64(seed);
    for (def, values) in model.params_mut().iter_mut() {
        let fan_in: usize = def.shape.iter().skip(1).product();
        for v in values {
            let u: f32 = 2.0 * rng.random::<f32>() - 1.0;
            *v = match def.kind {
                convzoo::graph::ParamKind::RunningVar => 1.0 + 0.5 * u,
                convzoo::graph::ParamKind::NormScale => 1.0 + 0.3 * u,
                convzoo::graph::ParamKind::Weight => u * (3.0 / fan_in as f32).sqrt(),
                _ => 0.3 * u,
            };
        }
    }
    model
}

fn image(shape: [usize; 4], seed: u64) -> Tensor {
    let mut rng = StdRng::seed_from_u64(seed);
    Tensor::from_fn(&shape, |_| 2.0 * rng.random::<f32>() - 1.0)
}

fn relative_error(found: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let difference: f64 = found.iter().zip(wanted).map(|(&a, &b)| (f64::from(a) - b).powi(2)).sum();
    (difference / wanted.iter().map(|b| b * b).sum::<f64>().max(1e-30)).sqrt()
}

/// Plans, runs and compares with the f64 reference on every instruction set of this CPU.
fn check(what: &str, network: &dyn Layer, shapes: &[[usize; 4]]) {
    for &shape in shapes {
        let rng = &mut StdRng::seed_from_u64(3);
        let model = Model::with_channels(shape[1], network, rng).unwrap_or_else(|e| panic!("{what}: {e}"));
        let model = shaken(model, 5);
        let input = image(shape, 7);
        let wanted = model.reference::<f64>(&input).unwrap_or_else(|e| panic!("{what} at {shape:?}: {e}"));
        for &isa in Isa::available() {
            let options = PlanOptions::new().isa(isa).threads(2);
            let mut plan = model.plan_with(shape, &options).unwrap_or_else(|e| panic!("{what} at {shape:?}: {e}"));
            for round in 0..2 {
                let found = plan.run(&input).unwrap().logits().clone();
                let error = relative_error(found.as_slice(), &wanted.data);
                assert!(
                    error < 2e-6,
                    "{what} at {shape:?} on {}, run {round}: {error:e}\n{}",
                    isa.name(),
                    plan.explain()
                );
            }
        }
    }
}

const SHAPES: &[[usize; 4]] = &[[1, 3, 32, 32], [2, 3, 17, 23], [1, 1, 9, 40]];

#[test]
fn residual_blocks_with_and_without_projection_equal_the_reference() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k(7, 20).stride(2)));
        let y = x.layer("a", ConvNormAct::new(Conv2d::k3(20))).layer("b", ConvNormAct::new(Conv2d::k3(20)).linear());
        let x = (y + x).relu();
        let y = x.layer("c", ConvNormAct::new(Conv2d::k3(33).stride(2)).linear());
        let z = x.layer("d", ConvNormAct::new(Conv2d::k1(33).stride(2)).linear());
        let x = (y + z).relu();
        (x + x).relu().layer("head", ClassifierHead::new(7))
    }
    check("residual", &layer_fn(net), SHAPES);
}

#[test]
fn a_shortcut_is_overwritten_by_the_sum_unless_it_is_read_otherwise() {
    fn block<'g>(x: Node<'g>, name: &str) -> Node<'g> {
        let y = x.layer(&format!("{name}1"), ConvNormAct::new(Conv2d::k3(24)));
        (y.layer(&format!("{name}2"), ConvNormAct::new(Conv2d::k3(24)).linear()) + x).relu()
    }
    fn chain(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k1(24)));
        block(block(block(x, "a"), "b"), "c").layer("head", ClassifierHead::new(7))
    }
    fn crossed(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k1(24)));
        let a = block(x, "a");
        // Shortcuts that a later sum, a concatenation, or the convolution that adds them reads again.
        let b = (a.layer("b", Conv2d::k3(24)) + x).relu();
        let c = b.layer("c", Conv2d::k1(24)) + b;
        let both = concat([c, a.layer("d", Conv2d::k3(24).groups(24)) + a]);
        let pooled = both.layer("pool", MaxPool::k(3).stride(1).padding(1));
        (pooled.layer("e", Conv2d::k3(24)) + c + a).layer("head", ClassifierHead::new(7))
    }
    check("chain", &layer_fn(chain), SHAPES);
    check("crossed", &layer_fn(crossed), SHAPES);
    // However long the chain, two maps of 24 channels (and a gap of 8) are there at a time.
    let model = Model::with_channels(3, &layer_fn(chain), &mut StdRng::seed_from_u64(1)).unwrap();
    let bytes = model.plan([1, 3, 32, 32]).unwrap().arena_bytes();
    assert!(bytes < 5 * 4 * 32 * 32 * 32 / 2, "{bytes}");
}

#[test]
fn nested_and_shared_concatenations_equal_the_reference() {
    fn net(x: Node<'_>) -> Node<'_> {
        let a = x.layer("a", Conv2d::k3(5)).relu();
        let b = x.layer("b", Conv2d::k(5, 19)).relu();
        let ab = concat([a, b]);
        let c = ab.layer("c", MaxPool::k(3).stride(1).padding(1));
        let all = concat([ab, c, x]); // the image itself cannot be written in place
        let twice = concat([a, all, a]); // `a` already lives in the first concatenation
        let dense = twice.layer("block", DenseBlock::new(3, DenseLayer::new(12)));
        dense.layer("norm", BatchNorm::new()).relu().layer("head", ClassifierHead::new(10))
    }
    check("concat", &layer_fn(net), SHAPES);
}

#[test]
fn gates_depthwise_and_inverted_residuals_equal_the_reference() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k3(16).stride(2)).activation(Activation::Silu));
        let x = x.layer("mb1", MbConv::new(16).expand(4)).layer("mb2", MbConv::new(24).kernel(5).stride(2).expand(6));
        let x = x.layer("fused", MbConv::fused(24).expand(4));
        let y = x.layer("conv", Conv2d::k1(24)).layer("se", SeBlock::reduction(4));
        (y + x).relu().layer("head", ClassifierHead::new(10))
    }
    check("mbconv", &layer_fn(net), SHAPES);
}

#[test]
fn pools_norms_and_every_other_operation_equal_the_reference() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("c1", Conv2d::k(5, 24).stride(2)).relu().layer("lrn", LocalResponseNorm::new(5));
        let x = x.layer("pool", MaxPool::k(3).stride(2).ceil());
        let x = x.layer("grouped", Conv2d::k3(32).groups(4)).activation(Activation::HardSwish);
        let x = x.layer("avg", AvgPool::k(2).ceil()).layer("drop", Dropout::new(0.5));
        let x = x.layer("deform", DeformConv2d::v2(3, 17)).activation(Activation::Relu6);
        let x = x.layer("deform1", DeformConv2d::v1(3, 17)).activation(Activation::Sigmoid);
        let x = x.layer("slice", layer_fn(|x: Node<'_>| x.channel_slice(3, 11)));
        let x = x.layer("to", AdaptiveAvgPool::rect([2, 3])).flatten();
        let x =
            x.layer("fc1", Linear::new(21)).activation(Activation::HardSigmoid).layer("fc2", Linear::new(9).no_bias());
        x.apply(convzoo::graph::Op::Softmax, &[x])
    }
    check("everything", &layer_fn(net), SHAPES);
}

#[test]
fn averages_move_before_a_pointwise_convolution_only_where_that_changes_nothing() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", Conv2d::k3(20));
        // Moves, with bias and norm; ceil mode cuts windows off.
        let x = x.layer("wide", Conv2d::k1(40)).layer("norm", BatchNorm::new());
        let x = x.layer("half", AvgPool::k(2).stride(2));
        // Stay: padding dilutes the bias; the activation is not linear; the window leaves most pixels.
        let x = x.layer("a", Conv2d::k1(24)).layer("padded", AvgPool::k(3).stride(2).padding(1));
        let x = x.layer("b", Conv2d::k1(24)).relu().layer("clipped", AvgPool::k(2).stride(2));
        x.layer("c", Conv2d::k1(16)).layer("blur", AvgPool::k(2).stride(1))
    }
    check("average pools", &layer_fn(net), &[[1, 3, 32, 32], [2, 3, 17, 23]]);
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let text = model.plan([1, 3, 32, 32]).unwrap().explain();
    assert_eq!(text.matches("average pool first").count(), 1, "{text}");
    for kept in ["`a`: it pads", "`b`: more than a linear map", "`c`: it leaves most pixels"] {
        assert!(text.contains(kept), "{kept} is not in {text}");
    }
}

#[test]
fn norms_before_a_pointwise_convolution_are_applied_while_it_reads() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", Conv2d::k3(160)).relu();
        // DenseNet's layer: its input is read by the concatenation too.
        let y = x.layer("norm1", BatchNorm::new()).relu().layer("conv1", Conv2d::k1(128).no_bias());
        let y = y.layer("norm2", BatchNorm::new()).relu().layer("conv2", Conv2d::k3(32));
        let x = concat([x, y]);
        let y = x.layer("norm3", BatchNorm::new()).layer("conv3", Conv2d::k1(128)).relu();
        // Stays: the shortcut reads the norm, too.
        let z = y.layer("norm4", BatchNorm::new());
        z.layer("conv4", Conv2d::k1(128)) + z
    }
    check("norms on load", &layer_fn(net), &[[1, 3, 16, 16], [2, 1, 7, 9]]);
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let text = model.plan([1, 3, 16, 16]).unwrap().explain();
    assert_eq!(text.matches("norm_strassen").count(), 2, "{text}");
    assert!(text.contains("+ batch_norm first, relu, batch_norm, relu"), "{text}");
    assert!(text.contains("norm is a pass of its own: something else reads"), "{text}");
    let exact = PlanOptions::new().precision(convzoo::Precision::Exact);
    let text = model.plan_with([1, 3, 16, 16], &exact).unwrap().explain();
    assert!(!text.contains("strassen") && text.contains("asked to be exact"), "{text}");
}

#[test]
fn large_batches_run_in_portions_up_to_where_weights_outweigh_maps() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", Conv2d::k3(24).stride(2)).relu();
        // Read on both sides of the border, a slice of a concatenation among what is read.
        let y = x.layer("a", ConvNormAct::new(Conv2d::k3(24)));
        let y = concat([x + y, y]).layer("pool", MaxPool::k(3).stride(2)).feature("early");
        let y = y.layer("b", Conv2d::k3(160).stride(2)).relu();
        let z = y.layer("c", Conv2d::k3(192)).relu();
        concat([z, y])
            .layer("d", Conv2d::k1(40))
            .layer("gap", GlobalAvgPool)
            .layer("flat", Flatten)
            .layer("fc", Linear::new(7))
    }
    let model = shaken(Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap(), 2);
    for (batch, images) in [(6, 2), (5, 1)] {
        let input = image([batch, 3, 144, 144], 3);
        let plan =
            |threads| model.plan_with([batch, 3, 144, 144], &PlanOptions::new().threads(threads).feature("early"));
        let mut plans = [plan(1).unwrap(), plan(2).unwrap(), plan(7).unwrap()];
        let text = plans[0].explain();
        assert!(text.contains(&format!("run {} times, on {images} of the images", batch / images)), "{text}");
        let wanted = model.reference::<f64>(&input).unwrap();
        let mut found = Vec::new();
        for plan in &mut plans {
            plan.run(&input).unwrap();
            let outputs = plan.run(&input).unwrap();
            assert!(relative_error(outputs.logits().as_slice(), &wanted.data) < 2e-6, "{text}");
            found.push(outputs.iter().map(|(_, tensor)| tensor.as_slice().to_vec()).collect::<Vec<_>>());
        }
        assert!(found.iter().all(|outputs| *outputs == found[0]));
        // One image by itself agrees with its place in the batch.
        let (first, feature) = (&input.as_slice()[..3 * 144 * 144], &found[0][1]);
        let one = Tensor::from_fn(&[1, 3, 144, 144], |i| first[i]);
        let mut single = model.plan_with([1, 3, 144, 144], &PlanOptions::new().feature("early")).unwrap();
        let alone = single.run(&one).unwrap().get("early").unwrap().as_slice().to_vec();
        let wide: Vec<f64> = alone.iter().map(|&v| v.into()).collect();
        assert!(relative_error(&feature[..alone.len()], &wide) < 2e-6);
    }
}

#[test]
fn a_norm_on_load_sees_the_gate_before_it() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", Conv2d::k3(128)).relu().layer("se", SeBlock::reduction(4));
        x.layer("norm", BatchNorm::new()).relu().layer("conv", Conv2d::k1(128))
    }
    check("gate, norm, product", &layer_fn(net), &[[2, 3, 9, 11]]);
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let text = model.plan([1, 3, 9, 11]).unwrap().explain();
    assert!(text.contains("norm_strassen") && text.contains("the gate stays a step of its own"), "{text}");
}

#[test]
fn what_is_tapped_is_not_fused_away_and_keeps_its_value() {
    let block = (Conv2d::k3(8).no_bias(), BatchNorm::new(), Activation::Relu, Conv2d::k1(4));
    let model = shaken(Model::new(&block, &mut StdRng::seed_from_u64(1)).unwrap(), 2);
    let input = image([1, 3, 11, 7], 3);
    let mut plan = model.plan_with([1, 3, 11, 7], &PlanOptions::new().all_scopes()).unwrap();
    let outputs = plan.run(&input).unwrap();
    for name in ["0", "1", "2", "3", "logits"] {
        let id = model.graph().find(name).unwrap();
        let wanted =
            convzoo::exec::reference::evaluate::<f64>(model.graph(), model.params(), &input, &[id]).unwrap().remove(0);
        let found = outputs.get(name).unwrap();
        assert_eq!(found.shape(), wanted.shape);
        assert!(relative_error(found.as_slice(), &wanted.data) < 1e-6, "{name}");
    }
    let negative = outputs.get("1").unwrap().as_slice().iter().any(|v| *v < 0.0);
    assert!(negative, "the norm's output must be seen before the ReLU");
}

#[test]
fn explain_names_kernels_fusions_and_what_did_not_fire() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("conv", Conv2d::k3(8));
        let y = x.layer("bn", BatchNorm::new()).relu();
        let z = y.layer("lone", BatchNorm::new());
        (z + x).layer("block", ConvNormAct::new(Conv2d::k3(8)))
    }
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let text = model.plan([1, 3, 8, 8]).unwrap().explain();
    assert!(text.contains("batch norm stays: `conv` is read 2 times"), "{text}");
    assert!(text.contains("batch norm stays: relu before it has no weights"), "{text}");
    assert!(text.contains("+ batch_norm, relu"), "{text}");
}

#[test]
fn an_inverted_residual_runs_in_three_steps_unless_its_inside_is_wanted() {
    let network = (Conv2d::k3(16), MbConv::new(16).expand(4), MbConv::new(24).kernel(5).stride(2).no_squeeze());
    let model = shaken(Model::new(&network, &mut StdRng::seed_from_u64(1)).unwrap(), 2);
    let plan = |options: PlanOptions| model.plan_with([2, 3, 18, 15], &options).unwrap();
    let text = plan(PlanOptions::new()).explain();
    let kernels = ["from_nchw", "rows_k3s1", "expand_", "excite", "gated_", "expand_", "pointwise", "to_nchw"];
    let lines: Vec<&str> = text.lines().skip(1).take(kernels.len()).collect();
    assert!(kernels.iter().zip(&lines).all(|(kernel, line)| line.contains(kernel)), "{text}");
    assert!(text.contains("8 steps") && !text.contains("note"), "{text}");
    assert!(lines[2].contains("+ expansion, batch_norm, silu, row sums"), "{text}");
    assert!(lines[3].contains("+ mean, squeeze, sigmoid") && lines[4].contains("+ gate, batch_norm, add"), "{text}");

    let input = image([2, 3, 18, 15], 3);
    for name in ["1.block.0", "1.block.1", "1.block.2.avgpool", "1.block.2", "1"] {
        let id = model.graph().find(name).unwrap();
        let wanted = convzoo::exec::reference::evaluate::<f64>(model.graph(), model.params(), &input, &[id]);
        let mut plan = plan(PlanOptions::new().feature(name));
        let found = plan.run(&input).unwrap().get(name).unwrap().clone();
        let error = relative_error(found.as_slice(), &wanted.unwrap()[0].data);
        assert!(error < 1e-6, "{name}: {error:e}\n{}", plan.explain());
    }
    let text = plan(PlanOptions::new().feature("1.block.0").feature("1.block.2")).explain();
    assert!(text.contains("expansion stays a step of its own: `1.block.0.0` is read 2 times"), "{text}");
    assert!(text.contains("the gate stays a step of its own: what it makes is not read by one 1×1"), "{text}");
}

#[test]
fn a_stem_folds_its_image_unless_plain_sums_are_asked_for() {
    for (kernel, stride, name) in [(7, 2, "folded_k7s2"), (11, 4, "folded_k11s4"), (3, 2, "rows_k3s2")] {
        let net = (Conv2d::k(kernel, 64).stride(stride), ClassifierHead::new(10));
        let model = shaken(Model::new(&net, &mut StdRng::seed_from_u64(1)).unwrap(), 2);
        let input = image([2, 3, 66, 71], 3);
        let wanted = model.reference::<f64>(&input).unwrap();
        for (precision, name) in [(Precision::Fast, name), (Precision::Exact, "rows_k")] {
            let mut plan = model.plan_with([2, 3, 66, 71], &PlanOptions::new().precision(precision)).unwrap();
            assert!(plan.explain().contains(name), "{}", plan.explain());
            let error = relative_error(plan.run(&input).unwrap().logits().as_slice(), &wanted.data);
            assert!(error < 2e-6, "{kernel}×{kernel}: {error:e}");
        }
    }
}

#[test]
fn the_same_bits_come_out_for_1_2_and_7_threads() {
    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k(7, 64).stride(2))).layer("pool", MaxPool::k(3).stride(2));
        let x = x.layer("block", DenseBlock::new(4, DenseLayer::new(32)));
        let x = x.layer("mb", MbConv::new(48).stride(2));
        x.layer("wide", Conv2d::k3(256)).relu().layer("head", ClassifierHead::new(1000))
    }
    for shape in [[1, 3, 96, 96], [3, 3, 50, 61]] {
        let model = shaken(Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap(), 2);
        let input = image(shape, 3);
        let run = |threads| {
            let mut plan = model.plan_with(shape, &PlanOptions::new().threads(threads)).unwrap();
            plan.run(&input).unwrap().logits().clone()
        };
        let [one, two, seven] = [1, 2, 7].map(run);
        let bits = |t: &Tensor| t.as_slice().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&one) == bits(&two) && bits(&one) == bits(&seven));
    }
}

#[test]
fn wrong_inputs_are_errors_with_the_place_and_both_numbers() {
    let net = (Conv2d::k(7, 8).padding(0), MaxPool::k(3).stride(2), ClassifierHead::new(10));
    let model = Model::new(&net, &mut StdRng::seed_from_u64(1)).unwrap();
    let plan_error = |shape| model.plan(shape).unwrap_err().to_string();
    let tell = |text: String, words: &[&str]| {
        assert!(words.iter().all(|w| text.contains(w)), "{text:?} should contain {words:?}");
    };
    tell(plan_error([1, 4, 32, 32]), &["channels", "3", "4"]);
    tell(plan_error([0, 3, 32, 32]), &["shape", "[0, 3, 32, 32]"]);
    tell(plan_error([1, 3, 6, 32]), &["0 (conv)", "at least 7", "found 6"]);
    tell(plan_error([1, 3, 8, 32]), &["1 (max_pool)", "at least 3", "found 2"]);
    tell(plan_error([usize::MAX / 2, 3, 32, 32]), &["input"]);
    tell(plan_error([1, 3, 65535, 65535]), &[""]);
    let mut plan = model.plan([1, 3, 16, 16]).unwrap();
    tell(plan.run(&Tensor::zeros(&[1, 3, 16, 17])).unwrap_err().to_string(), &["[1, 3, 16, 16]", "[1, 3, 16, 17]"]);
    tell(plan.run(&Tensor::zeros(&[3, 16, 16])).unwrap_err().to_string(), &["[3, 16, 16]"]);
    let outputs = plan.run(&Tensor::zeros(&[1, 3, 16, 16])).unwrap();
    tell(outputs.get("logit").unwrap_err().to_string(), &["unknown output `logit`", "nearest: logits"]);
    tell(
        model.plan_with([1, 3, 16, 16], &PlanOptions::new().threads(0)).unwrap_err().to_string(),
        &["threads", "found 0"],
    );
    tell(
        model.plan_with([1, 3, 16, 16], &PlanOptions::new().feature("stage9")).unwrap_err().to_string(),
        &["unknown output `stage9`"],
    );
}

#[test]
fn a_name_that_is_not_computed_is_answered_with_what_is_and_how_to_have_it() {
    fn net(x: Node<'_>) -> Node<'_> {
        x.layer("stem", Conv2d::k3(4)).feature("stage1").relu()
    }
    let model = Model::new(&layer_fn(net), &mut StdRng::seed_from_u64(1)).unwrap();
    let mut plan = model.plan([1, 3, 8, 8]).unwrap();
    let outputs = plan.run(&image([1, 3, 8, 8], 1)).unwrap();
    for name in ["stage1", "stem"] {
        let error = outputs.get(name).unwrap_err().to_string();
        let wanted =
            format!("output `{name}`: this plan computes logits; ask for this one with `PlanOptions::feature`");
        assert_eq!(error, wanted);
    }
    assert_eq!(outputs.get("zzzzzzzzz").unwrap_err().to_string(), "unknown output `zzzzzzzzz`; nearest: logits");
}

#[test]
fn nan_pixels_are_passed_on_and_do_not_hang() {
    let model = Model::new(&(Conv2d::k3(8), ClassifierHead::new(4)), &mut StdRng::seed_from_u64(1)).unwrap();
    let mut plan = model.plan([1, 3, 8, 8]).unwrap();
    let mut input = Tensor::zeros(&[1, 3, 8, 8]);
    input.as_mut_slice()[20] = f32::NAN;
    assert!(plan.run(&input).unwrap().logits().as_slice().iter().all(|v| v.is_nan()));
    assert!(plan.run(&Tensor::zeros(&[1, 3, 8, 8])).unwrap().logits().as_slice().iter().all(|v| v.is_finite()));
}
