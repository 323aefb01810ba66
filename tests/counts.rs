//! What every network costs, to the digit: parameters with and without auxiliary classifiers, and multiply-adds.

use convzoo::graph::{Graph, NodeDef, Op, Role};
use convzoo::models::{self, DenseNet, GoogLeNet, ModelInfo, ResNet, Squeeze};

/// Multiply-adds of convolutions and linear layers for one image: output pixels × weights.
fn macs(graph: &Graph, size: usize) -> u64 {
    let shapes = graph.shapes([1, graph.input_channels(), size, size], false).unwrap();
    let cost = |(node, shape): (&NodeDef, &[usize; 4])| match &node.op {
        Op::Conv { weight, .. } | Op::DeformConv { weight, .. } | Op::Linear { weight, .. } => {
            (shape[0] * shape[2] * shape[3] * graph.params()[weight.index()].len()) as u64
        }
        _ => 0,
    };
    graph.nodes().iter().zip(&shapes).map(cost).sum()
}

fn draw(info: &ModelInfo) -> Graph {
    Graph::draw(3, &info.config()).unwrap_or_else(|error| panic!("{}: {error}", info.name))
}

/// Parameters and 10⁹ multiply-adds as published: torchvision's metadata where it has the network (its `_ops` rounds to
/// three decimals), otherwise arithmetic on the paper's table.
const PUBLISHED: [(&str, u64, f64); 68] = [
    ("alexnet", 61_100_840, 0.714),
    ("alexnet_paper", 60_965_224, 0.724),
    ("vgg11", 132_863_336, 7.609),
    ("vgg11_bn", 132_868_840, 7.609),
    ("vgg13", 133_047_848, 11.308),
    ("vgg13_bn", 133_053_736, 11.308),
    ("vgg16", 138_357_544, 15.470),
    ("vgg16_bn", 138_365_992, 15.470),
    ("vgg19", 143_667_240, 19.632),
    ("vgg19_bn", 143_678_248, 19.632),
    ("googlenet", 6_624_904, 1.498),
    ("googlenet_paper", 6_998_552, 1.583),
    ("googlenet_paper_bn", 7_005_832, 1.583),
    ("resnet18", 11_689_512, 1.814),
    ("resnet34", 21_797_672, 3.664),
    ("resnet50", 25_557_032, 4.089),
    ("resnet101", 44_549_160, 7.801),
    ("resnet152", 60_192_808, 11.514),
    ("resnet50_v1", 25_557_032, 3.858),
    ("resnet101_v1", 44_549_160, 7.570),
    ("resnet152_v1", 60_192_808, 11.282),
    ("resnext50_32x4d", 25_028_904, 4.230),
    ("resnext101_32x8d", 88_791_336, 16.414),
    ("resnext101_64x4d", 83_455_272, 15.460),
    ("wide_resnet50_2", 68_883_240, 11.398),
    ("wide_resnet101_2", 126_886_696, 22.753),
    ("resnet20", 269_722, 0.041),
    ("resnet32", 464_154, 0.069),
    ("resnet44", 658_586, 0.097),
    ("resnet56", 853_018, 0.125),
    ("resnet110", 1_727_962, 0.253),
    ("plain20", 269_722, 0.041),
    ("plain32", 464_154, 0.069),
    ("plain44", 658_586, 0.097),
    ("plain56", 853_018, 0.125),
    ("plain110", 1_727_962, 0.253),
    ("densenet121", 7_978_856, 2.834),
    ("densenet161", 28_681_000, 7.728),
    ("densenet169", 14_149_480, 3.360),
    ("densenet201", 20_013_928, 4.291),
    ("densenet264", 33_337_704, 5.752),
    ("densenet_bc_100_12", 769_162, 0.288),
    ("densenet_bc_250_24", 15_324_406, 5.419),
    ("densenet_bc_190_40", 25_624_430, 9.302),
    ("seresnet50", 28_088_024, 4.092),
    ("legacy_seresnet50", 28_088_024, 3.860),
    ("legacy_seresnet101", 49_326_872, 7.575),
    ("legacy_seresnet152", 66_821_848, 11.289),
    ("legacy_seresnext50_32x4d", 27_559_896, 4.233),
    ("legacy_seresnext101_32x4d", 48_955_416, 7.975),
    ("legacy_senet154", 115_088_984, 20.688),
    ("efficientnet_b0", 5_288_548, 0.386),
    ("efficientnet_b1", 7_794_184, 0.687),
    ("efficientnet_b2", 9_109_994, 1.088),
    ("efficientnet_b3", 12_233_232, 1.827),
    ("efficientnet_b4", 19_341_616, 4.394),
    ("efficientnet_b5", 30_389_784, 10.266),
    ("efficientnet_b6", 43_040_704, 19.068),
    ("efficientnet_b7", 66_347_960, 37.746),
    ("efficientnet_v2_s", 21_458_488, 8.366),
    ("efficientnet_v2_m", 54_139_356, 24.582),
    ("efficientnet_v2_l", 118_515_272, 56.080),
    ("deform_resnet50_v1_c5", 25_805_918, 4.101),
    ("deform_resnet50_v1_c3", 26_137_874, 4.215),
    ("deform_resnet50_v2_c3", 26_428_295, 4.278),
    ("squeezenet1_0", 1_248_424, 0.819),
    ("squeezenet1_1", 1_235_496, 0.349),
    ("mobilenet_v2", 3_504_872, 0.301),
];

/// The same with auxiliary classifiers.
const WITH_AUX: [(&str, u64); 3] =
    [("googlenet", 13_004_888), ("googlenet_paper", 13_378_280), ("googlenet_paper_bn", 13_385_816)];

#[test]
fn every_network_costs_what_was_published() {
    assert_eq!(models::list().len(), PUBLISHED.len());
    for (info, (name, params, gmacs)) in models::list().zip(PUBLISHED) {
        assert_eq!(info.name, name);
        let graph = draw(info);
        assert_eq!(graph.param_count(false) as u64, params, "{name}");
        let found = macs(&graph, info.input) as f64 / 1e9;
        assert_eq!(format!("{found:.3}"), format!("{gmacs:.3}"), "{name}");
    }
}

#[test]
fn the_registry_states_what_the_drawing_has() {
    for info in models::list() {
        let graph = draw(info);
        assert_eq!(info.params, graph.param_count(false) as u64, "{}", info.name);
        assert_eq!(info.params_with_aux, graph.param_count(true) as u64, "{}", info.name);
        assert_eq!(info.macs, macs(&graph, info.input), "{}", info.name);
        assert_eq!(info.classes, info.config().num_classes(), "{}", info.name);
        assert_eq!(info.source.is_empty(), info.top1.is_none(), "{}", info.name);
    }
}

#[test]
fn auxiliary_classifiers_count_only_when_asked_for() {
    for (name, params) in WITH_AUX {
        let info = models::get(name).unwrap();
        assert_eq!(draw(info).param_count(true) as u64, params, "{name}");
    }
    let with = models::list().filter(|m| m.params_with_aux != m.params).map(|m| m.name);
    assert!(with.eq(WITH_AUX.map(|(name, _)| name)), "no other network has auxiliary classifiers");
}

#[test]
fn knobs_give_the_counts_of_networks_without_a_name() {
    let count = |network: &dyn convzoo::graph::Layer| Graph::draw(3, network).unwrap().param_count(false);
    let squeeze = |network, divisor| ResNet { squeeze: Some(Squeeze { reduction: 16, divisor }), ..network };
    assert_eq!(count(&squeeze(ResNet::resnet18(), 1)), 11_778_592);
    assert_eq!(count(&squeeze(ResNet::resnet34(), 1)), 21_958_868);
    assert_eq!(count(&ResNet::cifar(200)), 19_421_274, "ResNet-1202");
    assert_eq!(count(&DenseNet { growth: 48, stem: 96, ..DenseNet::densenet264() }), 72_686_632);
    assert_eq!(count(&ResNet::resnet50().classes(10)), 25_557_032 - 990 * 2049);
}

#[test]
fn running_statistics_are_buffers() {
    for (name, buffers) in
        [("resnet50", 53_120), ("densenet121", 83_648), ("efficientnet_b0", 42_016), ("googlenet", 14_560 + 512)]
    {
        let graph = draw(models::get(name).unwrap());
        let found: usize = graph.params().iter().filter(|p| !p.kind.is_learned()).map(|p| p.len()).sum();
        assert_eq!(found, buffers, "{name}");
    }
}

#[test]
fn googlenet_for_small_images_differs_in_its_stem_and_joins_both_auxiliary_heads() {
    let [small, large] = [GoogLeNet::cifar(), GoogLeNet::paper_bn().classes(10)].map(|c| Graph::draw(3, &c).unwrap());
    assert_eq!(large.param_count(true) - small.param_count(true), (7 * 7 - 3 * 3) * 3 * 64);
    let outputs: Vec<_> = small.outputs().iter().filter(|output| output.role != Role::Feature).collect();
    assert_eq!(outputs.iter().map(|output| &*output.name).collect::<Vec<_>>(), ["aux1", "aux2", "logits"]);
    let shapes = small.shapes([2, 3, 32, 32], true).unwrap();
    assert!(outputs.iter().all(|output| shapes[output.node.index()] == [2, 10, 1, 1]), "ten classes from 32×32");
}
