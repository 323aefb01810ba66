//! The registry's table: papers, costs and published accuracies.
//!
//! Costs are recomputed from the drawings by `tests/counts.rs`. Accuracies are for one centre crop of the ImageNet-1k
//! validation images or, at 32×32, the CIFAR-10 test images, as measured by the source named.

use super::{
    AlexNet, DenseNet, EfficientNet, GoogLeNet, MobileNetV2, ModelConfig, ModelInfo, Paper, ResNet, SeNet, SqueezeNet,
    Vgg,
};

/// A family and its paper.
#[derive(Clone, Copy)]
struct Origin(&'static str, &'static Paper);

const ALEXNET12: Origin = Origin(
    "AlexNet",
    &Paper {
        title: "ImageNet Classification with Deep Convolutional Neural Networks",
        authors: "A. Krizhevsky, I. Sutskever, G. E. Hinton",
        year: 2012,
        arxiv: None,
    },
);

const ALEXNET14: Origin = Origin(
    "AlexNet",
    &Paper {
        title: "One Weird Trick for Parallelizing Convolutional Neural Networks",
        authors: "A. Krizhevsky",
        year: 2014,
        arxiv: Some("1404.5997"),
    },
);

const VGG: Origin = Origin(
    "VGG",
    &Paper {
        title: "Very Deep Convolutional Networks for Large-Scale Image Recognition",
        authors: "K. Simonyan, A. Zisserman",
        year: 2014,
        arxiv: Some("1409.1556"),
    },
);

const GOOGLENET: Origin = Origin(
    "GoogLeNet",
    &Paper {
        title: "Going Deeper with Convolutions",
        authors: "C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich",
        year: 2014,
        arxiv: Some("1409.4842"),
    },
);

const RESNET: Origin = Origin(
    "ResNet",
    &Paper {
        title: "Deep Residual Learning for Image Recognition",
        authors: "K. He, X. Zhang, S. Ren, J. Sun",
        year: 2015,
        arxiv: Some("1512.03385"),
    },
);

const RESNEXT: Origin = Origin(
    "ResNeXt",
    &Paper {
        title: "Aggregated Residual Transformations for Deep Neural Networks",
        authors: "S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He",
        year: 2016,
        arxiv: Some("1611.05431"),
    },
);

const WIDE: Origin = Origin(
    "Wide ResNet",
    &Paper {
        title: "Wide Residual Networks",
        authors: "S. Zagoruyko, N. Komodakis",
        year: 2016,
        arxiv: Some("1605.07146"),
    },
);

const DENSENET: Origin = Origin(
    "DenseNet",
    &Paper {
        title: "Densely Connected Convolutional Networks",
        authors: "G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger",
        year: 2016,
        arxiv: Some("1608.06993"),
    },
);

const SENET: Origin = Origin(
    "SENet",
    &Paper {
        title: "Squeeze-and-Excitation Networks",
        authors: "J. Hu, L. Shen, S. Albanie, G. Sun, E. Wu",
        year: 2017,
        arxiv: Some("1709.01507"),
    },
);

const EFFICIENTNET: Origin = Origin(
    "EfficientNet",
    &Paper {
        title: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
        authors: "M. Tan, Q. V. Le",
        year: 2019,
        arxiv: Some("1905.11946"),
    },
);

const EFFICIENTNET_V2: Origin = Origin(
    "EfficientNetV2",
    &Paper {
        title: "EfficientNetV2: Smaller Models and Faster Training",
        authors: "M. Tan, Q. V. Le",
        year: 2021,
        arxiv: Some("2104.00298"),
    },
);

const DCN: Origin = Origin(
    "Deformable ResNet",
    &Paper {
        title: "Deformable Convolutional Networks",
        authors: "J. Dai, H. Qi, Y. Xiong, Y. Li, G. Zhang, H. Hu, Y. Wei",
        year: 2017,
        arxiv: Some("1703.06211"),
    },
);

const DCN2: Origin = Origin(
    "Deformable ResNet",
    &Paper {
        title: "Deformable ConvNets v2: More Deformable, Better Results",
        authors: "X. Zhu, H. Hu, S. Lin, J. Dai",
        year: 2018,
        arxiv: Some("1811.11168"),
    },
);

const SQUEEZENET: Origin = Origin(
    "SqueezeNet",
    &Paper {
        title: "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size",
        authors: "F. N. Iandola, S. Han, M. W. Moskewicz, K. Ashraf, W. J. Dally, K. Keutzer",
        year: 2016,
        arxiv: Some("1602.07360"),
    },
);

const MOBILENET: Origin = Origin(
    "MobileNetV2",
    &Paper {
        title: "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
        authors: "M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen",
        year: 2018,
        arxiv: Some("1801.04381"),
    },
);

const TORCHVISION: &str = "torchvision, IMAGENET1K_V1";
const BVLC: &str = "BVLC, Caffe model zoo";
const KAIMING: &str = "the authors' Caffe models";
const RESNET_PAPER: &str = "the paper, table 6";
const DENSENET_AUTHORS: &str = "the authors, with augmentation";
const SENET_AUTHORS: &str = "the authors' Caffe models";

const fn model(
    Origin(family, paper): Origin,
    name: &'static str,
    input: usize,
    params: u64,
    macs: u64,
    config: fn() -> ModelConfig,
) -> ModelInfo {
    let classes = if input == 32 { 10 } else { 1000 };
    let (top1, top5, source, weights) = (None, None, "", None);
    ModelInfo {
        name,
        family,
        paper,
        input,
        classes,
        params,
        params_with_aux: params,
        macs,
        top1,
        top5,
        source,
        weights,
        config,
    }
}

impl ModelInfo {
    const fn aux(self, params_with_aux: u64) -> Self {
        ModelInfo { params_with_aux, ..self }
    }

    const fn reached(self, top1: f32, top5: Option<f32>, source: &'static str) -> Self {
        ModelInfo { top1: Some(top1), top5, source, ..self }
    }

    const fn weights(self, file: &'static str) -> Self {
        ModelInfo { weights: Some(file), ..self }
    }
}

pub(super) static MODELS: [ModelInfo; 68] = [
    model(ALEXNET14, "alexnet", 224, 61_100_840, 714_188_480, || AlexNet::torchvision().into())
        .reached(56.522, Some(79.066), TORCHVISION)
        .weights("alexnet-owt-7be5be79.pth"),
    model(ALEXNET12, "alexnet_paper", 227, 60_965_224, 724_406_816, || AlexNet::paper().into()),
    model(VGG, "vgg11", 224, 132_863_336, 7_609_090_048, || Vgg::vgg11().into())
        .reached(69.02, Some(88.628), TORCHVISION)
        .weights("vgg11-8a719046.pth"),
    model(VGG, "vgg11_bn", 224, 132_868_840, 7_609_090_048, || Vgg::vgg11().batch_norm().into())
        .reached(70.37, Some(89.81), TORCHVISION)
        .weights("vgg11_bn-6002323d.pth"),
    model(VGG, "vgg13", 224, 133_047_848, 11_308_466_176, || Vgg::vgg13().into())
        .reached(69.928, Some(89.246), TORCHVISION)
        .weights("vgg13-19584684.pth"),
    model(VGG, "vgg13_bn", 224, 133_053_736, 11_308_466_176, || Vgg::vgg13().batch_norm().into())
        .reached(71.586, Some(90.374), TORCHVISION)
        .weights("vgg13_bn-abd245e5.pth"),
    model(VGG, "vgg16", 224, 138_357_544, 15_470_264_320, || Vgg::vgg16().into())
        .reached(71.592, Some(90.382), TORCHVISION)
        .weights("vgg16-397923af.pth"),
    model(VGG, "vgg16_bn", 224, 138_365_992, 15_470_264_320, || Vgg::vgg16().batch_norm().into())
        .reached(73.36, Some(91.516), TORCHVISION)
        .weights("vgg16_bn-6c64b313.pth"),
    model(VGG, "vgg19", 224, 143_667_240, 19_632_062_464, || Vgg::vgg19().into())
        .reached(72.376, Some(90.876), TORCHVISION)
        .weights("vgg19-dcbb9e9d.pth"),
    model(VGG, "vgg19_bn", 224, 143_678_248, 19_632_062_464, || Vgg::vgg19().batch_norm().into())
        .reached(74.218, Some(91.842), TORCHVISION)
        .weights("vgg19_bn-c79401a0.pth"),
    model(GOOGLENET, "googlenet", 224, 6_624_904, 1_498_376_192, || GoogLeNet::torchvision().into())
        .aux(13_004_888)
        .reached(69.778, Some(89.53), TORCHVISION)
        .weights("googlenet-1378be20.pth"),
    model(GOOGLENET, "googlenet_paper", 224, 6_998_552, 1_582_671_872, || GoogLeNet::paper().into())
        .aux(13_378_280)
        .reached(68.7, Some(88.9), BVLC)
        .weights("bvlc_googlenet.caffemodel"),
    model(GOOGLENET, "googlenet_paper_bn", 224, 7_005_832, 1_582_671_872, || GoogLeNet::paper_bn().into())
        .aux(13_385_816),
    model(RESNET, "resnet18", 224, 11_689_512, 1_814_073_344, || ResNet::resnet18().into())
        .reached(69.758, Some(89.078), TORCHVISION)
        .weights("resnet18-f37072fd.pth"),
    model(RESNET, "resnet34", 224, 21_797_672, 3_663_761_408, || ResNet::resnet34().into())
        .reached(73.314, Some(91.42), TORCHVISION)
        .weights("resnet34-b627a593.pth"),
    model(RESNET, "resnet50", 224, 25_557_032, 4_089_184_256, || ResNet::resnet50().into())
        .reached(76.13, Some(92.862), TORCHVISION)
        .weights("resnet50-0676ba61.pth"),
    model(RESNET, "resnet101", 224, 44_549_160, 7_801_405_440, || ResNet::resnet101().into())
        .reached(77.374, Some(93.546), TORCHVISION)
        .weights("resnet101-63fe2227.pth"),
    model(RESNET, "resnet152", 224, 60_192_808, 11_513_626_624, || ResNet::resnet152().into())
        .reached(78.312, Some(94.046), TORCHVISION)
        .weights("resnet152-394f9c45.pth"),
    model(RESNET, "resnet50_v1", 224, 25_557_032, 3_857_973_248, || ResNet::resnet50().v1().into()).reached(
        75.3,
        Some(92.2),
        KAIMING,
    ),
    model(RESNET, "resnet101_v1", 224, 44_549_160, 7_570_194_432, || ResNet::resnet101().v1().into()).reached(
        76.4,
        Some(92.9),
        KAIMING,
    ),
    model(RESNET, "resnet152_v1", 224, 60_192_808, 11_282_415_616, || ResNet::resnet152().v1().into()).reached(
        77.0,
        Some(93.3),
        KAIMING,
    ),
    model(RESNEXT, "resnext50_32x4d", 224, 25_028_904, 4_230_479_872, || ResNet::resnet50().groups(32, 4).into())
        .reached(77.618, Some(93.698), TORCHVISION)
        .weights("resnext50_32x4d-7cdf4587.pth"),
    model(RESNEXT, "resnext101_32x8d", 224, 88_791_336, 16_414_015_488, || ResNet::resnet101().groups(32, 8).into())
        .reached(79.312, Some(94.526), TORCHVISION)
        .weights("resnext101_32x8d-8ba56ff5.pth"),
    model(RESNEXT, "resnext101_64x4d", 224, 83_455_272, 15_460_270_080, || ResNet::resnet101().groups(64, 4).into())
        .reached(83.246, Some(96.454), TORCHVISION)
        .weights("resnext101_64x4d-173b62eb.pth"),
    model(WIDE, "wide_resnet50_2", 224, 68_883_240, 11_398_021_120, || ResNet::resnet50().groups(1, 128).into())
        .reached(78.468, Some(94.086), TORCHVISION)
        .weights("wide_resnet50_2-95faca4d.pth"),
    model(WIDE, "wide_resnet101_2", 224, 126_886_696, 22_753_050_624, || ResNet::resnet101().groups(1, 128).into())
        .reached(78.848, Some(94.284), TORCHVISION)
        .weights("wide_resnet101_2-32ee1156.pth"),
    model(RESNET, "resnet20", 32, 269_722, 40_551_040, || ResNet::cifar(3).into())
        .reached(91.25, None, RESNET_PAPER)
        .weights("resnet20-12fca82f.th"),
    model(RESNET, "resnet32", 32, 464_154, 68_862_592, || ResNet::cifar(5).into()).reached(92.49, None, RESNET_PAPER),
    model(RESNET, "resnet44", 32, 658_586, 97_174_144, || ResNet::cifar(7).into()).reached(92.83, None, RESNET_PAPER),
    model(RESNET, "resnet56", 32, 853_018, 125_485_696, || ResNet::cifar(9).into())
        .reached(93.03, None, RESNET_PAPER)
        .weights("resnet56-4bfd9763.th"),
    model(RESNET, "resnet110", 32, 1_727_962, 252_887_680, || ResNet::cifar(18).into()).reached(
        93.57,
        None,
        RESNET_PAPER,
    ),
    model(RESNET, "plain20", 32, 269_722, 40_551_040, || ResNet::cifar(3).plain().into()),
    model(RESNET, "plain32", 32, 464_154, 68_862_592, || ResNet::cifar(5).plain().into()),
    model(RESNET, "plain44", 32, 658_586, 97_174_144, || ResNet::cifar(7).plain().into()),
    model(RESNET, "plain56", 32, 853_018, 125_485_696, || ResNet::cifar(9).plain().into()),
    model(RESNET, "plain110", 32, 1_727_962, 252_887_680, || ResNet::cifar(18).plain().into()),
    model(DENSENET, "densenet121", 224, 7_978_856, 2_834_161_664, || DenseNet::densenet121().into())
        .reached(74.434, Some(91.972), TORCHVISION)
        .weights("densenet121-a639ec97.pth"),
    model(DENSENET, "densenet161", 224, 28_681_000, 7_727_907_072, || DenseNet::densenet161().into())
        .reached(77.138, Some(93.56), TORCHVISION)
        .weights("densenet161-8d451a50.pth"),
    model(DENSENET, "densenet169", 224, 14_149_480, 3_359_843_328, || DenseNet::densenet169().into())
        .reached(75.6, Some(92.806), TORCHVISION)
        .weights("densenet169-b2777c0a.pth"),
    model(DENSENET, "densenet201", 224, 20_013_928, 4_291_365_888, || DenseNet::densenet201().into())
        .reached(76.896, Some(93.37), TORCHVISION)
        .weights("densenet201-c1103571.pth"),
    model(DENSENET, "densenet264", 224, 33_337_704, 5_751_653_376, || DenseNet::densenet264().into()),
    model(DENSENET, "densenet_bc_100_12", 32, 769_162, 287_929_692, || DenseNet::cifar(100, 12).into()).reached(
        95.49,
        None,
        DENSENET_AUTHORS,
    ),
    model(DENSENET, "densenet_bc_250_24", 32, 15_324_406, 5_418_785_724, || DenseNet::cifar(250, 24).into()).reached(
        96.38,
        None,
        DENSENET_AUTHORS,
    ),
    model(DENSENET, "densenet_bc_190_40", 32, 25_624_430, 9_301_945_740, || DenseNet::cifar(190, 40).into()).reached(
        96.54,
        None,
        DENSENET_AUTHORS,
    ),
    model(SENET, "seresnet50", 224, 28_088_024, 4_091_699_200, || ResNet::seresnet50().into())
        .weights("seresnet50_ra_224-8efdb4bb.pth"),
    model(SENET, "legacy_seresnet50", 224, 28_088_024, 3_860_488_192, || SeNet::seresnet50().into())
        .reached(77.63, Some(93.64), SENET_AUTHORS)
        .weights("se_resnet50-ce0d4300.pth"),
    model(SENET, "legacy_seresnet101", 224, 49_326_872, 7_574_937_600, || SeNet::seresnet101().into())
        .reached(78.25, Some(94.28), SENET_AUTHORS)
        .weights("se_resnet101-7e38fcc6.pth"),
    model(SENET, "legacy_seresnet152", 224, 66_821_848, 11_288_993_792, || SeNet::seresnet152().into())
        .reached(78.66, Some(94.46), SENET_AUTHORS)
        .weights("se_resnet152-d17c99b7.pth"),
    model(SENET, "legacy_seresnext50_32x4d", 224, 27_559_896, 4_232_994_816, || SeNet::seresnext50_32x4d().into())
        .reached(79.03, Some(94.46), SENET_AUTHORS)
        .weights("legacy_se_resnext50_32x4d-f3651bad.pth"),
    model(SENET, "legacy_seresnext101_32x4d", 224, 48_955_416, 7_974_739_968, || SeNet::seresnext101_32x4d().into())
        .reached(80.19, Some(95.04), SENET_AUTHORS)
        .weights("legacy_se_resnext101_32x4d-37725eac.pth"),
    model(SENET, "legacy_senet154", 224, 115_088_984, 20_688_363_520, || SeNet::senet154().into())
        .reached(81.32, Some(95.53), SENET_AUTHORS)
        .weights("legacy_senet154-e9eb9fe6.pth"),
    model(EFFICIENTNET, "efficientnet_b0", 224, 5_288_548, 385_814_752, || EfficientNet::b0().into())
        .reached(77.692, Some(93.532), TORCHVISION)
        .weights("efficientnet_b0_rwightman-7f5810bc.pth"),
    model(EFFICIENTNET, "efficientnet_b1", 240, 7_794_184, 686_802_832, || EfficientNet::b1().into())
        .reached(78.642, Some(94.186), TORCHVISION)
        .weights("efficientnet_b1_rwightman-bac287d4.pth"),
    model(EFFICIENTNET, "efficientnet_b2", 288, 9_109_994, 1_087_529_456, || EfficientNet::b2().into())
        .reached(80.608, Some(95.31), TORCHVISION)
        .weights("efficientnet_b2_rwightman-c35c1473.pth"),
    model(EFFICIENTNET, "efficientnet_b3", 300, 12_233_232, 1_827_141_392, || EfficientNet::b3().into())
        .reached(82.008, Some(96.054), TORCHVISION)
        .weights("efficientnet_b3_rwightman-b3899882.pth"),
    model(EFFICIENTNET, "efficientnet_b4", 380, 19_341_616, 4_393_771_024, || EfficientNet::b4().into())
        .reached(83.384, Some(96.594), TORCHVISION)
        .weights("efficientnet_b4_rwightman-23ab8bcd.pth"),
    model(EFFICIENTNET, "efficientnet_b5", 456, 30_389_784, 10_266_384_752, || EfficientNet::b5().into())
        .reached(83.444, Some(96.628), TORCHVISION)
        .weights("efficientnet_b5_lukemelas-1a07897c.pth"),
    model(EFFICIENTNET, "efficientnet_b6", 528, 43_040_704, 19_067_593_536, || EfficientNet::b6().into())
        .reached(84.008, Some(96.916), TORCHVISION)
        .weights("efficientnet_b6_lukemelas-24a108a5.pth"),
    model(EFFICIENTNET, "efficientnet_b7", 600, 66_347_960, 37_745_884_192, || EfficientNet::b7().into())
        .reached(84.122, Some(96.908), TORCHVISION)
        .weights("efficientnet_b7_lukemelas-c5b4e57e.pth"),
    model(EFFICIENTNET_V2, "efficientnet_v2_s", 384, 21_458_488, 8_365_617_152, || EfficientNet::v2_s().into())
        .reached(84.228, Some(96.878), TORCHVISION)
        .weights("efficientnet_v2_s-dd5fe13b.pth"),
    model(EFFICIENTNET_V2, "efficientnet_v2_m", 480, 54_139_356, 24_582_460_384, || EfficientNet::v2_m().into())
        .reached(85.112, Some(97.156), TORCHVISION)
        .weights("efficientnet_v2_m-dc08266a.pth"),
    model(EFFICIENTNET_V2, "efficientnet_v2_l", 480, 118_515_272, 56_079_699_008, || EfficientNet::v2_l().into())
        .reached(85.808, Some(97.788), TORCHVISION)
        .weights("efficientnet_v2_l-59c71312.pth"),
    model(DCN, "deform_resnet50_v1_c5", 224, 25_805_918, 4_101_377_024, || ResNet::deform_resnet50_v1_c5().into()),
    model(DCN, "deform_resnet50_v1_c3", 224, 26_137_874, 4_215_176_192, || ResNet::deform_resnet50_v1_c3().into()),
    model(DCN2, "deform_resnet50_v2_c3", 224, 26_428_295, 4_278_172_160, || ResNet::deform_resnet50_v2_c3().into()),
    model(SQUEEZENET, "squeezenet1_0", 224, 1_248_424, 818_924_576, || SqueezeNet::squeezenet1_0().into())
        .reached(58.092, Some(80.42), TORCHVISION)
        .weights("squeezenet1_0-b66bff10.pth"),
    model(SQUEEZENET, "squeezenet1_1", 224, 1_235_496, 349_151_936, || SqueezeNet::squeezenet1_1().into())
        .reached(58.178, Some(80.624), TORCHVISION)
        .weights("squeezenet1_1-b8a52dc0.pth"),
    model(MOBILENET, "mobilenet_v2", 224, 3_504_872, 300_774_272, || MobileNetV2::torchvision().into())
        .reached(71.878, Some(90.286), TORCHVISION)
        .weights("mobilenet_v2-b0353104.pth"),
];
