//! Names that other people's weight files use, translated to ours: what a caller's renaming function looks like.

/// The zoo's name for a parameter of BVLC's Caffe GoogLeNet, of DeepScale's Caffe SqueezeNet, or of a CIFAR ResNet that
/// calls its classifier `linear`; `None` for a name that needs no translation.
pub(crate) fn rename(name: &str) -> Option<String> {
    let (layer, kind) = name.rsplit_once('.')?;
    let ours = caffe_googlenet(layer)
        .or_else(|| caffe_squeezenet(layer))
        .or_else(|| Some("fc".to_owned()).filter(|_| layer == "linear"))?;
    Some(format!("{ours}.{kind}"))
}

/// `inception_3a_5x5_reduce` is `inception3a.branch3.0.conv`.
fn caffe_googlenet(layer: &str) -> Option<String> {
    let ours = match layer {
        "conv1_7x7_s2" => "conv1.conv",
        "conv2_3x3_reduce" => "conv2.conv",
        "conv2_3x3" => "conv3.conv",
        "loss3_classifier" => "fc",
        _ => {
            let (block, branch) = layer.strip_prefix("inception_")?.split_once('_')?;
            let branch = match branch {
                "1x1" => "branch1",
                "3x3_reduce" => "branch2.0",
                "3x3" => "branch2.1",
                "5x5_reduce" => "branch3.0",
                "5x5" => "branch3.1",
                "pool_proj" => "branch4.1",
                _ => return None,
            };
            return Some(format!("inception{block}.{branch}.conv"));
        }
    };
    Some(ours.to_owned())
}

/// `fire2_squeeze1x1` is `features.3.squeeze`: torchvision counts the pools between the fire modules too.
fn caffe_squeezenet(layer: &str) -> Option<String> {
    match layer {
        "conv1" => return None, // also torchvision's name for the stem of ResNet and GoogLeNet
        "conv10" => return Some("classifier.1".to_owned()),
        _ => {}
    }
    let (number, part) = layer.strip_prefix("fire")?.split_once('_')?;
    let index = match number.parse().ok()? {
        n @ 2..=4 => n + 1,
        n @ 5..=8 => n + 2,
        9 => 12,
        _ => return None,
    };
    Some(format!("features.{index}.{part}"))
}
