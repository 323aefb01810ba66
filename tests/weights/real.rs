//! The real checkpoints of the shared data folder; skipped, with a line printed, where it is not there.

use convzoo::weights::{Dtype, StateDict};
use std::path::PathBuf;

/// A file of the data folder: `$CONVZOO_DATA`, or `../shared/data` beside the repository.
fn data(name: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let path = std::env::var_os("CONVZOO_DATA").map_or_else(beside, PathBuf::from).join("weights").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Elements of all weights, without the running statistics.
fn parameters(state: &StateDict) -> usize {
    state.iter().filter(|(name, _)| !name.contains("running_")).map(|(_, tensor)| tensor.len()).sum()
}

#[test]
fn cifar_resnets_are_unwrapped_and_stripped() {
    for (file, expected) in [("resnet20-12fca82f.th", 269_722), ("resnet56-4bfd9763.th", 853_018)] {
        let Some(path) = data(file) else { continue };
        let mut state = StateDict::read(path).unwrap();
        let counters: Vec<String> = state.names().filter(|n| n.ends_with("tracked")).map(str::to_owned).collect();
        counters.iter().for_each(|name| drop(state.remove(name)));
        assert_eq!(state.names().next(), Some("conv1.weight"), "{file}");
        assert_eq!(state.get("linear.weight").unwrap().shape(), [10, 64], "{file}");
        assert_eq!(parameters(&state), expected, "{file}");
        assert!(state.ignored().iter().any(|(name, _)| name == "best_prec1"), "{file}");
    }
}

#[test]
fn caffe_networks_are_read_whole() {
    for (file, expected) in
        [("googlenet_bvlc_imagenet.safetensors", 6_998_552), ("squeezenet1_0_imagenet.safetensors", 1_248_424)]
    {
        let Some(path) = data(file) else { continue };
        let state = StateDict::read(path).unwrap();
        assert_eq!(parameters(&state), expected, "{file}");
    }
}

#[test]
fn the_bundled_networks_are_the_real_ones() {
    let bundled = |name: &str| {
        StateDict::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)).unwrap()
    };
    let resnet = bundled("resnet20_cifar10.th");
    assert_eq!(resnet.get("linear.weight").unwrap().shape(), [10, 64]);
    let googlenet = bundled("googlenet_bvlc.safetensors");
    assert_eq!((parameters(&googlenet), googlenet.dtype("loss3_classifier.weight")), (6_998_552, Some(Dtype::F16)));
    let Some(path) = data("googlenet_bvlc_imagenet.safetensors") else { return };
    let original = StateDict::read(path).unwrap();
    for (name, tensor) in original.iter() {
        let rounded = googlenet.get(name).unwrap();
        assert_eq!(rounded.shape(), tensor.shape(), "{name}");
        for (&half, &full) in rounded.as_slice().iter().zip(tensor.as_slice()) {
            // Half precision keeps 11 bits; below 2⁻¹⁴ the step stays at 2⁻²⁴.
            assert!((half - full).abs() <= full.abs() * 2f32.powi(-11) + 2f32.powi(-25), "{name}: {half} for {full}");
        }
    }
}
