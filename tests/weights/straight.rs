//! Plans made straight from a file: the same bits as by way of a model, and every refusal of strict loading.

use crate::Folder;
use convzoo::exec::reference;
use convzoo::graph::{Graph, Layer, Node, ParamSource, layer_fn};
use convzoo::layers::*;
use convzoo::weights::{Dtype, Limits, LoadOptions, StateDict, WeightFile};
use convzoo::{Error, Model, Plan, PlanOptions, Tensor};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Every way weights are packed: stem, Winograd, product with norm and bias, several panels, sliding, im2col, deformable,
/// linear; and one that is read twice.
fn network() -> impl Layer {
    layer_fn(|x: Node<'_>| {
        let x = x.layer("stem", ConvNormAct::new(Conv2d::k(7, 24).stride(2)));
        let x = x.layer("wide", ConvNormAct::new(Conv2d::k3(150))).layer("bare", Conv2d::k1(70));
        let x = x.layer("depthwise", ConvNormAct::new(Conv2d::k3(70).groups(70)));
        let x = x.layer("grouped", Conv2d::k(5, 14).groups(14)).layer("deform", DeformConv2d::v2(3, 17));
        x.layer("head", ClassifierHead::new(10))
    })
}

const SHAPE: [usize; 4] = [1, 3, 33, 29];

fn image() -> Tensor {
    let mut rng = StdRng::seed_from_u64(1);
    Tensor::from_fn(&SHAPE, |_| 2.0 * rng.random::<f32>() - 1.0)
}

/// The bits of the logits.
fn logits(mut plan: Plan) -> Vec<u32> {
    plan.run(&image()).unwrap().logits().as_slice().iter().map(|v| v.to_bits()).collect()
}

fn model() -> Model {
    let mut model = Model::new(&network(), &mut StdRng::seed_from_u64(2)).unwrap();
    let mut rng = StdRng::seed_from_u64(3);
    for (_, values) in model.params_mut().iter_mut() {
        values.iter_mut().for_each(|v| *v += 0.1 + 0.2 * rng.random::<f32>());
    }
    model
}

#[test]
fn a_plan_from_a_file_computes_the_bits_of_a_loaded_model_in_every_format() {
    let folder = Folder::new("straight");
    let state = StateDict::from_params(model().params(), "model").unwrap();
    let mut files = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        files.push(folder.file(&format!("{dtype}.safetensors")));
        state.write_safetensors(files.last().unwrap(), dtype).unwrap();
    }
    files.push(folder.file("model.npz"));
    state.write_npz(files.last().unwrap()).unwrap();
    for file in files {
        let mut loaded = Model::blank(&network()).unwrap();
        loaded.load(&file).unwrap();
        for threads in [1, 3] {
            let options = PlanOptions::new().threads(threads);
            let wanted = logits(loaded.plan_with(SHAPE, &options).unwrap());
            let straight = Model::plan_file(&network(), &file, SHAPE, &options).unwrap();
            assert!(logits(straight) == wanted, "{} on {threads} threads", file.display());
            assert!(logits(loaded.clone().into_plan(SHAPE, &options).unwrap()) == wanted, "a model given up");
        }
    }
}

#[test]
fn what_does_not_fit_is_reported_as_by_strict_loading() {
    let folder = Folder::new("straight-misfit");
    let file = folder.file("w.safetensors");
    let mut state = StateDict::from_params(model().params(), "model").unwrap();
    state.remove("stem.0.weight").unwrap();
    state.insert("extra", Tensor::zeros(&[1])).unwrap();
    state.remove("bare.bias").unwrap();
    state.insert("bare.bias", Tensor::zeros(&[3])).unwrap();
    state.write_safetensors(&file, Dtype::F32).unwrap();
    let report = |error| match error {
        Error::Load(report) => *report,
        other => panic!("expected a load report, found {other}"),
    };
    let wanted = report(Model::blank(&network()).unwrap().load(&file).unwrap_err());
    assert_eq!((wanted.missing.len(), wanted.unexpected.len(), wanted.misshapen.len()), (1, 1, 1), "{wanted}");
    let found = report(Model::plan_file(&network(), &file, SHAPE, &PlanOptions::new()).unwrap_err());
    assert_eq!(found, wanted);
    let graph = Graph::draw(3, &network()).unwrap();
    let open = |options: &LoadOptions, limits: &Limits| WeightFile::open(graph.params(), &file, options, limits);
    assert_eq!(open(&LoadOptions::lenient(), &Limits::default()).unwrap().1, wanted);
    let limits = Limits { max_elements: 100, ..Limits::default() };
    assert!(matches!(open(&LoadOptions::lenient(), &limits), Err(Error::Limit { .. })));
    let limits = Limits { max_bytes: 100, ..Limits::default() };
    assert!(matches!(open(&LoadOptions::lenient(), &limits), Err(Error::Limit { .. })));
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error_when_weights_are_read() {
    let folder = Folder::new("straight-cut");
    let file = folder.file("w.safetensors");
    model().save(&file).unwrap();
    let graph = Graph::draw(3, &network()).unwrap();
    let (mut source, _) = WeightFile::open(graph.params(), &file, &LoadOptions::strict(), &Limits::default()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(20_000).unwrap();
    for threads in [1, 2] {
        let planned = Plan::from_source(&graph, &mut source, SHAPE, &PlanOptions::new().threads(threads));
        assert!(matches!(planned, Err(Error::Io { ref path, .. }) if *path == file), "{planned:?}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused_before_it_is_planned() {
    let folder = Folder::new("straight-truncated");
    let (whole, cut) = (folder.file("w.safetensors"), folder.file("cut.safetensors"));
    let mut small = StateDict::new("small");
    small.insert("weight", Tensor::zeros(&[4, 3, 1, 1])).unwrap();
    small.write_safetensors(&whole, Dtype::F32).unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    let network = Conv2d::k1(4).no_bias();
    Model::plan_file(&network, &whole, SHAPE, &PlanOptions::new()).unwrap();
    for end in 0..bytes.len() {
        std::fs::write(&cut, &bytes[..end]).unwrap();
        let planned = Model::plan_file(&network, &cut, SHAPE, &PlanOptions::new());
        assert!(matches!(planned, Err(Error::Format { .. })), "cut after {end} of {} bytes: {planned:?}", bytes.len());
        assert!(Model::blank(&network).unwrap().load(&cut).is_err());
    }
}

#[test]
fn a_source_may_serve_twice_or_says_that_it_has_given_its_weights_up() {
    let folder = Folder::new("straight-twice");
    let file = folder.file("w.safetensors");
    let state = StateDict::from_params(model().params(), "model").unwrap();
    state.write_safetensors(&file, Dtype::F32).unwrap();
    let graph = Graph::draw(3, &network()).unwrap();
    let (strict, limits, options) = (LoadOptions::strict(), Limits::default(), PlanOptions::new());
    let (mut source, _) = WeightFile::open(graph.params(), &file, &strict, &limits).unwrap();
    let [one, two] = [(); 2].map(|()| logits(Plan::from_source(&graph, &mut source, SHAPE, &options).unwrap()));
    assert!(one == two);
    state.write_npz(folder.file("w.npz")).unwrap();
    let (mut held, _) = WeightFile::open(graph.params(), folder.file("w.npz"), &strict, &limits).unwrap();
    let mut given = model().params().clone();
    for source in [&mut held as &mut dyn ParamSource, &mut given] {
        Plan::from_source(&graph, source, SHAPE, &options).unwrap();
        let error = Plan::from_source(&graph, source, SHAPE, &options).unwrap_err().to_string();
        assert!(error.contains("stem.0.weight") && error.contains("given up"), "{error}");
    }
}

#[test]
fn parameters_of_another_drawing_are_refused() {
    let graph = Graph::draw(3, &Conv2d::k1(4)).unwrap();
    let mut other = Model::blank(&Conv2d::k1(5)).unwrap().params().clone();
    let planned = Plan::from_source(&graph, &mut other, SHAPE, &PlanOptions::new()).map(|_| ());
    let evaluated = reference::evaluate::<f64>(&graph, &other, &image(), &[]).map(|_| ());
    for refused in [planned, evaluated] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("parameters"), "{error}");
    }
}
