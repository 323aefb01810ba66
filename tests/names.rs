//! The names models answer to: parameters (the contract with checkpoints), features, auxiliary outputs, the registry,
//! and the settings that are refused.

use convzoo::Error;
use convzoo::graph::{Graph, Layer, Role};
use convzoo::models::{
    self, AlexNet, DeformVersion, DenseNet, EfficientNet, GoogLeNet, MobileNetV2, ModelConfig, ResNet, SeNet,
    SqueezeNet, Vgg,
};

fn draw(name: &str) -> Graph {
    Graph::draw(3, &ModelConfig::named(name).unwrap()).unwrap()
}

/// Names under `prefix`, in order, without those of a norm's parameters but the first.
fn names(graph: &Graph, prefix: &str) -> Vec<String> {
    let norm_rest = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
    let names = graph.params().iter().map(|p| p.name.clone());
    names.filter(|name| name.starts_with(prefix) && !norm_rest(name)).collect()
}

/// For each scope `w.weight w.bias`, so that a list of scopes is a list of names.
fn both(scopes: &[&str]) -> Vec<String> {
    scopes.iter().flat_map(|s| [format!("{s}.weight"), format!("{s}.bias")]).collect()
}

#[test]
fn a_bottleneck_has_torchvisions_names_in_torchvisions_order() {
    let graph = draw("resnet50");
    let wanted = [
        "layer2.0.conv1.weight",
        "layer2.0.bn1.weight",
        "layer2.0.bn1.bias",
        "layer2.0.conv2.weight",
        "layer2.0.bn2.weight",
        "layer2.0.bn2.bias",
        "layer2.0.conv3.weight",
        "layer2.0.bn3.weight",
        "layer2.0.bn3.bias",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.weight",
        "layer2.0.downsample.1.bias",
    ];
    assert_eq!(names(&graph, "layer2.0."), wanted);
    assert_eq!(graph.params()[0].name, "conv1.weight");
    assert_eq!(graph.params().last().unwrap().name, "fc.bias");
}

#[test]
fn squeezes_come_between_the_last_norm_and_the_projection() {
    for (model, scope, last) in [("seresnet50", "se", "fc"), ("legacy_senet154", "se_module", "last_linear")] {
        let graph = draw(model);
        let se = format!("layer1.0.{scope}.");
        let from = graph.params().iter().position(|p| p.name.starts_with(&se)).unwrap();
        assert_eq!(graph.params()[from - 1].name, "layer1.0.bn3.running_var");
        let fc = [format!("layer1.0.{scope}.fc1"), format!("layer1.0.{scope}.fc2")];
        assert_eq!(names(&graph, &se), both(&[&fc[0], &fc[1]]));
        assert_eq!(graph.params()[from + 4].name, "layer1.0.downsample.0.weight");
        assert_eq!(names(&graph, last), both(&[last]));
    }
    let stem = names(&draw("legacy_senet154"), "layer0.");
    assert_eq!(stem[3], "layer0.conv2.weight");
}

#[test]
fn googlenets_auxiliary_heads_stand_between_the_blocks_and_the_classifier() {
    let graph = draw("googlenet");
    assert_eq!(
        names(&graph, "inception3a.branch2")[..3],
        ["inception3a.branch2.0.conv.weight", "inception3a.branch2.0.bn.weight", "inception3a.branch2.0.bn.bias"]
    );
    assert_eq!(names(&graph, "inception3a.branch4")[0], "inception3a.branch4.1.conv.weight");
    let order: Vec<usize> = ["inception5b.branch4.1.bn.weight", "aux1.conv.conv.weight", "aux2.fc2.bias", "fc.weight"]
        .map(|name| graph.params().iter().position(|p| p.name == name).unwrap())
        .to_vec();
    assert!(order.is_sorted());
    for (name, behind) in [("aux1", "inception4a"), ("aux2", "inception4d")] {
        let output = graph.outputs().iter().find(|o| o.name == name).unwrap();
        assert_eq!(output.role, Role::Auxiliary { weight: 0.3 });
        let pool = graph.nodes().iter().find(|n| n.path == format!("{name}.avgpool")).unwrap();
        assert_eq!(graph.find(behind).unwrap(), pool.inputs[0], "{name} reads {behind}");
    }
    assert!(graph.params().iter().all(|p| p.auxiliary == p.name.starts_with("aux")));
    let without = Graph::draw(3, &GoogLeNet::torchvision().no_aux()).unwrap();
    assert_eq!(without.params().len(), graph.params().iter().filter(|p| !p.auxiliary).count());
    assert!(draw("googlenet_paper").params().iter().all(|p| p.kind.is_learned()), "the paper has no batch norm");
}

#[test]
fn a_deformable_3x3_has_mmcvs_names() {
    let wanted = ["layer4.0.conv2.weight", "layer4.0.conv2.conv_offset.weight", "layer4.0.conv2.conv_offset.bias"];
    for (model, channels) in [("deform_resnet50_v1_c5", 18), ("deform_resnet50_v2_c3", 27)] {
        let graph = draw(model);
        assert_eq!(names(&graph, "layer4.0.conv2"), wanted);
        let offset = graph.params().iter().find(|p| p.name == wanted[1]).unwrap();
        assert_eq!(offset.shape, [channels, 512, 3, 3]);
        let deformed = graph.params().iter().filter(|p| p.name.ends_with("conv_offset.bias")).count();
        assert_eq!(deformed, if model.ends_with("c5") { 3 } else { 13 });
    }
}

#[test]
fn the_other_families_have_torchvisions_names_too() {
    let first = |model: &str, prefix: &str| names(&draw(model), prefix).first().cloned().unwrap_or_default();
    for (model, prefix, wanted) in [
        ("alexnet", "features.10", "features.10.weight"),
        ("alexnet", "classifier.6", "classifier.6.weight"),
        ("vgg16", "features.28", "features.28.weight"),
        ("vgg11_bn", "features.26", "features.26.weight"),
        ("vgg19", "classifier.3", "classifier.3.weight"),
        ("densenet121", "features.denseblock4.denselayer16.norm2", "features.denseblock4.denselayer16.norm2.weight"),
        ("densenet121", "features.transition3.conv", "features.transition3.conv.weight"),
        ("densenet121", "features.norm5", "features.norm5.weight"),
        ("efficientnet_b0", "features.2.1.block.2.fc1", "features.2.1.block.2.fc1.weight"),
        ("efficientnet_b0", "features.8.0", "features.8.0.weight"),
        ("efficientnet_v2_s", "features.2.0.block.1.0", "features.2.0.block.1.0.weight"),
        ("squeezenet1_0", "features.12.expand3x3", "features.12.expand3x3.weight"),
        ("squeezenet1_1", "classifier.1", "classifier.1.weight"),
        ("mobilenet_v2", "features.2.conv.3", "features.2.conv.3.weight"),
        ("mobilenet_v2", "features.18.0", "features.18.0.weight"),
        ("resnet20", "layer3.2.conv2", "layer3.2.conv2.weight"),
        (
            "densenet_bc_100_12",
            "features.denseblock3.denselayer16.conv2",
            "features.denseblock3.denselayer16.conv2.weight",
        ),
    ] {
        assert_eq!(first(model, prefix), wanted, "{model}");
    }
}

#[test]
fn every_family_names_the_same_features() {
    for info in models::list() {
        let graph = Graph::draw(3, &info.config()).unwrap();
        let features = graph.outputs().iter().filter(|o| o.role == Role::Feature);
        let found: Vec<_> = features.map(|o| o.name.as_str()).collect();
        let stages: Vec<_> = (1..found.len() - 1).map(|i| format!("stage{i}")).collect();
        assert_eq!(found[0], "stem", "{}", info.name);
        assert_eq!(*found.last().unwrap(), "pre_logits", "{}", info.name);
        assert_eq!(found[1..found.len() - 1], stages, "{}", info.name);
        assert!(stages.len() >= 2, "{}", info.name);

        let shapes = graph.shapes([1, 3, info.input, info.input], false).unwrap();
        let of = |name: &str| shapes[graph.find(name).unwrap().index()];
        assert_eq!(of("logits"), [1, info.classes, 1, 1], "{}", info.name);
        assert_eq!(of("pre_logits")[2..], [1, 1], "{}", info.name);
        let sides: Vec<_> = stages.iter().map(|s| of(s)[2]).collect();
        assert!(sides.iter().rev().is_sorted() && sides[0] > sides[sides.len() - 1], "{}: {sides:?}", info.name);
    }
}

#[test]
fn every_network_takes_other_classes_and_channels_and_sizes() {
    for info in models::list() {
        let network = models::build(info.name, Some(7)).unwrap();
        let graph = Graph::draw(1, &network).unwrap_or_else(|error| panic!("{}: {error}", info.name));
        let shapes = graph.shapes([2, 1, info.input + 13, info.input + 6], true).unwrap();
        for output in graph.outputs().iter().filter(|o| o.role != Role::Feature) {
            assert_eq!(shapes[output.node.index()], [2, 7, 1, 1], "{} {}", info.name, output.name);
        }
    }
}

#[test]
fn configurations_survive_json() {
    for info in models::list() {
        let config = info.config().classes(12);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), config, "{}", info.name);
    }
    assert!(serde_json::from_str::<ModelConfig>(r#"{"Vgg": {"num_classes": 10, "typo": 1}}"#).is_err());
}

#[test]
fn names_in_the_registry_are_unique_and_unknown_ones_get_suggestions() {
    let mut known: Vec<_> = models::list().map(|m| m.name).collect();
    known.sort();
    known.dedup();
    assert_eq!(known.len(), models::list().len());
    let Err(Error::Unknown { kind, nearest, .. }) = models::build("efficientnet_b9", None) else { panic!("no error") };
    assert_eq!(kind, "model");
    assert!(nearest.contains(&"efficientnet_b0".to_owned()), "{nearest:?}");
    assert!(ModelConfig::named("").is_err());
}

/// Settings from a file may be anything: errors that name the setting, never a panic, never endless drawing.
#[test]
fn settings_no_network_can_have_are_errors() {
    const BIG: usize = usize::MAX;
    let deep = ResNet { blocks: vec![BIG; 4], ..ResNet::resnet50() };
    let cases: Vec<(Box<dyn Layer>, &str)> = vec![
        (Box::new(ResNet::resnet50().classes(0)), "num_classes: expected 1 to"),
        (Box::new(ResNet::resnet50().classes(BIG)), "num_classes"),
        (Box::new(ResNet::resnet50().groups(BIG, 4)), "groups"),
        (Box::new(ResNet::resnet18().groups(2, 64)), "need bottleneck blocks"),
        (Box::new(ResNet::resnet18().deform(DeformVersion::V1, 4)), "need bottleneck blocks"),
        (Box::new(ResNet { width_per_group: 0, ..ResNet::resnet50() }), "width_per_group"),
        (Box::new(ResNet { width: BIG, ..ResNet::resnet50() }), "width"),
        (Box::new(ResNet { blocks: vec![], ..ResNet::resnet50() }), "stages"),
        (Box::new(ResNet { blocks: vec![1; 100], ..ResNet::resnet50() }), "stages"),
        (Box::new(deep), "blocks: expected 1 to 1024"),
        (Box::new(AlexNet { widths: [0; 5], ..AlexNet::torchvision() }), "widths"),
        (Box::new(AlexNet { dropout: 1.0, ..AlexNet::torchvision() }), "classifier.0: dropout"),
        (Box::new(AlexNet { widths: [96, 255, 384, 384, 256], ..AlexNet::paper() }), "features.4: groups = 2"),
        (Box::new(Vgg { convs: [0, 1, 1, 1, 1], ..Vgg::vgg11() }), "convs"),
        (Box::new(GoogLeNet { aux_dropout: -1.0, ..GoogLeNet::paper() }), "aux1"),
        (Box::new(DenseNet { compression: 0.0, ..DenseNet::densenet121() }), "features.transition1"),
        (Box::new(DenseNet { growth: BIG, ..DenseNet::densenet121() }), "growth"),
        (Box::new(DenseNet::cifar(0, 12)), "layers of a block"),
        (Box::new(DenseNet::cifar(BIG, BIG)), "growth"),
        (Box::new(SeNet { reduction: 100_000, ..SeNet::seresnet50() }), "layer1.0.se_module"),
        (Box::new(SeNet { groups: 7, ..SeNet::seresnet50() }), "groups = 7 does not divide 64"),
        (Box::new(EfficientNet { stages: vec![], ..EfficientNet::b0() }), "stages"),
        (Box::new(EfficientNet::scaled(f64::NAN, 1.0)), ""),
        (Box::new(EfficientNet::scaled(f64::INFINITY, f64::INFINITY)), "stem"),
        (Box::new(EfficientNet { bn_eps: -1.0, ..EfficientNet::b0() }), "features.0.1"),
        (Box::new(EfficientNet { stochastic_depth: 9.0, ..EfficientNet::b0() }), "stochastic"),
        (Box::new(SqueezeNet { classifier_padding: BIG, ..SqueezeNet::squeezenet1_0() }), "classifier.1"),
        (Box::new(MobileNetV2::torchvision().width(-1.0)), "width"),
        (Box::new(MobileNetV2::torchvision().width(f64::INFINITY)), "width"),
    ];
    for (i, (network, wanted)) in cases.iter().enumerate() {
        match Graph::draw(3, network) {
            Err(error) => assert!(error.to_string().contains(wanted), "case {i}: {error}"),
            Ok(_) => assert!(wanted.is_empty(), "case {i} drew a network: {wanted}"),
        }
    }
}

#[test]
fn an_image_too_small_for_a_network_is_an_error_with_the_layer() {
    for (name, side, layer) in
        [("alexnet", 14, "features"), ("vgg16", 31, "features.30"), ("squeezenet1_0", 4, "features.0")]
    {
        let error = draw(name).shapes([1, 3, side, side], false).unwrap_err().to_string();
        assert!(error.starts_with(layer) && error.contains("found"), "{name}: {error}");
    }
}
