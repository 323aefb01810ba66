//! Real checkpoints on real images: the accuracies of `goldens/real.py`, which are those published with the files.
//!
//! The files are too large for the repository. They are looked for in `CONVZOO_DATA`, then in `../shared/data`; where
//! neither is there, each test says so and passes.
#![cfg(all(feature = "safetensors", feature = "pth", feature = "vision"))]

mod common;

use common::{golden_json, relative_error};
use convzoo::models::{GoogLeNet, ModelConfig, ResNet, SqueezeNet};
use convzoo::vision::{Image, Preset, Resize, labels, softmax, top_k};
use convzoo::weights::{Limits, LoadOptions, StateDict};
use convzoo::{Model, Result, Tensor, graph::Layer};
use serde_json::Value;
use std::io::Read;
use std::path::PathBuf;

fn data() -> Option<PathBuf> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    let folder = std::env::var_os("CONVZOO_DATA").map_or_else(beside, PathBuf::from);
    let found = folder.join("weights").is_dir();
    if !found {
        println!("skipped: {} has no weights", folder.display());
    }
    found.then_some(folder)
}

/// The network's name for one of Caffe's GoogLeNet.
fn googlenet_name(caffe: &str) -> Option<String> {
    let (layer, kind) = caffe.rsplit_once('.')?;
    let whole = match layer {
        "conv1_7x7_s2" => Some("conv1.conv"),
        "conv2_3x3_reduce" => Some("conv2.conv"),
        "conv2_3x3" => Some("conv3.conv"),
        "loss3_classifier" => Some("fc"),
        _ => None,
    };
    if let Some(layer) = whole {
        return Some(format!("{layer}.{kind}"));
    }
    let (block, part) = layer.strip_prefix("inception_")?.split_once('_')?;
    let branch = match part {
        "1x1" => "branch1",
        "3x3_reduce" => "branch2.0",
        "3x3" => "branch2.1",
        "5x5_reduce" => "branch3.0",
        "5x5" => "branch3.1",
        "pool_proj" => "branch4.1",
        _ => return None,
    };
    Some(format!("inception{block}.{branch}.conv.{kind}"))
}

/// The network's name for one of Caffe's SqueezeNet 1.0.
fn squeezenet_name(caffe: &str) -> Option<String> {
    let (layer, kind) = caffe.rsplit_once('.')?;
    match layer {
        "conv1" => return Some(format!("features.0.{kind}")),
        "conv10" => return Some(format!("classifier.1.{kind}")),
        _ => {}
    }
    let (fire, part) = layer.strip_prefix("fire")?.split_once('_')?;
    let fire: usize = fire.parse().ok()?;
    // Pools take an index of their own behind the stem, the third and the seventh fire module.
    let index = fire + 1 + usize::from(fire > 4) + usize::from(fire > 8);
    let part = if part == "squeeze1x1" { "squeeze" } else { part };
    Some(format!("features.{index}.{part}.{kind}"))
}

/// `linear` is torchvision's `fc`.
fn cifar_name(name: &str) -> Option<String> {
    name.strip_prefix("linear.").map(|rest| format!("fc.{rest}"))
}

fn loaded(network: &impl Layer, file: PathBuf, rename: &dyn Fn(&str) -> Option<String>) -> Result<Model> {
    let mut model = Model::blank(network)?;
    let report = model.load_with(file, &LoadOptions::strict().renamed(rename), &Limits::default())?;
    assert!(report.is_clean(), "{report}");
    Ok(model)
}

/// Caffe's own input through the network, against Caffe's own logits.
fn check_reference_io(model: &Model, file: PathBuf) -> Result<()> {
    let io = StateDict::read(&file)?;
    let image = io.get("input_bgr_chw").expect("an input").clone().reshaped(&[1, 3, 227, 227])?;
    let mut plan = model.plan([1, 3, 227, 227])?;
    let error = relative_error(plan.run(&image)?.logits().as_slice(), io.get("logits").expect("logits").as_slice());
    println!("{}: Caffe's logits within {error:.1e}", file.display());
    assert!(error <= 1e-5, "{}: {error:.1e}", file.display());
    Ok(())
}

/// The regular files of a tar archive.
fn untar(path: PathBuf) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned();
    let (mut at, mut files) = (0, vec![]);
    while at + 512 <= bytes.len() && bytes[at] != 0 {
        let header = &bytes[at..at + 512];
        let size = usize::from_str_radix(&text(&header[124..136]), 8).expect("an octal size");
        if header[156] == b'0' {
            let name = text(&header[..100]);
            let base = name.rsplit('/').next().unwrap_or(&name).to_owned();
            files.push((base, bytes[at + 512..at + 512 + size].to_vec()));
        }
        at += 512 + size.next_multiple_of(512);
    }
    files.sort();
    files
}

/// The first `k` classes.
fn best(logits: &Tensor, k: usize) -> Vec<(usize, f32)> {
    top_k(&softmax(logits.as_slice()), k)
}

/// 200 photographs, one per class. Decoders of JPEG differ by a level or two per pixel: two images either way.
fn check_imagenet(model: &Model, preset: &Preset, wanted: &Value, data: &std::path::Path) -> Result<()> {
    let [h, w] = preset.crop.expect("a crop");
    let mut plan = model.plan([1, 3, h, w])?;
    let (mut right, mut among_five, mut same) = (0, 0, 0);
    let files = untar(data.join("imagenet-sample-200.tar"));
    for (name, bytes) in &files {
        let out = plan.run(&preset.apply(&Image::decode(name, bytes)?)?)?;
        let five = best(out.logits(), 5);
        let class = labels::imagenet_synsets().binary_search(&&name[..9]).expect("a synset in front");
        right += i64::from(five[0].0 == class);
        among_five += i64::from(five.iter().any(|(c, _)| *c == class));
        same += usize::from(wanted["answers"][name].as_u64() == Some(five[0].0 as u64));
    }
    println!("{right} / {} top-1, {among_five} top-5; PyTorch and Pillow agree on {same}", files.len());
    assert_eq!(files.len(), 200);
    assert!((right - wanted["top1"].as_i64().unwrap()).abs() <= 2, "top-1 {right} for {}", wanted["top1"]);
    assert!((among_five - wanted["top5"].as_i64().unwrap()).abs() <= 2, "top-5 {among_five} for {}", wanted["top5"]);
    assert!(same >= 194, "only {same} of 200 answers are PyTorch's");
    Ok(())
}

/// The bundled photographs; those in PNG decode to the same bytes everywhere, so that probabilities must agree.
fn check_photographs(model: &Model, wanted: &Value, data: &std::path::Path) -> Result<()> {
    for (file, classes) in wanted["photos"].as_object().unwrap() {
        let image = Image::open(data.join("photos").join(file))?;
        let mut plan = model.plan([1, 3, 224, 224])?;
        let three = best(plan.run(&Preset::caffe(224, 256).apply(&image)?)?.logits(), 3);
        println!("{file}: {three:?}");
        let tolerance = if file.ends_with(".png") { 1e-4 } else { 0.05 };
        assert_eq!(classes[0][0].as_u64(), Some(three[0].0 as u64), "{file}");
        let error = (classes[0][1].as_f64().unwrap() - f64::from(three[0].1)).abs();
        assert!(error <= tolerance, "{file}: {three:?} for {classes}");
    }
    Ok(())
}

#[test]
fn googlenet_as_bvlc_trained_it() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let wanted = &golden_json("real.json")["googlenet_bvlc"];
    let file = data.join("weights/googlenet_bvlc_imagenet.safetensors");
    let model = loaded(&GoogLeNet::paper().no_aux(), file, &googlenet_name)?;
    check_reference_io(&model, data.join("weights/googlenet_caffe_reference_io.safetensors"))?;
    check_photographs(&model, wanted, &data)?;
    check_imagenet(&model, &Preset::caffe(224, 256), wanted, &data)
}

#[test]
fn squeezenet_as_its_authors_trained_it() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let wanted = &golden_json("real.json")["squeezenet_caffe"];
    let file = data.join("weights/squeezenet1_0_imagenet.safetensors");
    let model = loaded(&SqueezeNet::squeezenet1_0().caffe(), file, &squeezenet_name)?;
    check_reference_io(&model, data.join("weights/squeezenet_caffe_reference_io.safetensors"))?;
    check_imagenet(&model, &Preset::caffe(227, 256), wanted, &data)
}

/// 1000 test images as PNG, their red and blue swapped in the files; sorted by name.
fn cifar_images(data: &std::path::Path) -> Result<Vec<(String, Tensor)>> {
    let path = data.join("cifar10_test_subset_1000_png_RBswapped.zip");
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut archive = zip::ZipArchive::new(file).expect("a zip archive");
    let mut images = vec![];
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).expect("a member");
        let name = member.name().expect("a readable name").rsplit('/').next().unwrap_or_default().to_owned();
        if !name.ends_with(".png") {
            continue;
        }
        let mut bytes = vec![];
        member.read_to_end(&mut bytes).expect("a whole member");
        let image = Image::decode(&name, &bytes)?;
        let swapped = image.pixels().chunks(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
        let image = Image::from_rgb(image.width(), image.height(), swapped)?;
        images.push((name, Preset::cifar10().apply(&image)?));
    }
    images.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(images)
}

#[test]
fn cifar_resnets_from_th_files() -> Result<()> {
    let Some(data) = data() else { return Ok(()) };
    let real = golden_json("real.json");
    let images = cifar_images(&data)?;
    assert_eq!(images.len(), 1000);
    for (name, blocks, file) in [("resnet20", 3, "resnet20-12fca82f.th"), ("resnet56", 9, "resnet56-4bfd9763.th")] {
        let model = loaded(&ResNet::cifar(blocks), data.join("weights").join(file), &cifar_name)?;
        let mut plan = model.plan([1, 3, 32, 32])?;
        let (mut right, mut same) = (0, 0);
        let answers = real[name]["answers"].as_str().unwrap().bytes();
        for ((file, image), wanted) in images.iter().zip(answers) {
            let class = best(plan.run(image)?.logits(), 1)[0].0;
            right += u64::from(file.starts_with(labels::cifar10()[class]));
            same += usize::from(class == usize::from(wanted - b'0'));
        }
        println!("{name}: {right} / 1000, {same} answers as PyTorch");
        // Lossless images and resizing to the bit: only a tie within rounding may fall the other way.
        assert!(same >= 999 && right.abs_diff(real[name]["right"].as_u64().unwrap()) <= 1, "{name}: {right}, {same}");
    }
    Ok(())
}

/// What `examples/data/README.md` says of the weights that this crate trained: what they take the photograph of a cat for, and
/// right answers on 1000 images of the test set.
const TRAINED_HERE: [(&str, &str, &str, u64); 3] = [
    ("resnet20_convzoo", "", "cat", 913),
    ("seresnet20_convzoo", "seresnet20_cifar.json", "cat", 897),
    ("densenet_bc_40_12_convzoo", "densenet_bc_40_12.json", "dog", 898),
];

#[test]
fn weights_trained_by_this_crate_load_strictly_and_keep_their_accuracy() -> Result<()> {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let images = data().map(|data| cifar_images(&data)).transpose()?.unwrap_or_default();
    for (file, config, taken_for, wanted) in TRAINED_HERE {
        let config = match config {
            "" => ModelConfig::named("resnet20")?,
            file => {
                let path = examples.join("configs").join(file);
                let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            }
        };
        let model = loaded(&config, examples.join(format!("data/{file}.safetensors")), &|_| None)?;
        let cat = Image::open(examples.join("data/photos/chelsea.png"))?;
        let cat = Preset { resize: Some(Resize::Exact([32, 32])), ..Preset::cifar10() }.apply(&cat)?;
        let mut plan = model.plan([1, 3, 32, 32])?;
        let seen = labels::cifar10()[best(plan.run(&cat)?.logits(), 1)[0].0];
        let mut right = 0;
        for (name, image) in &images {
            let class = best(plan.run(image)?.logits(), 1)[0].0;
            right += u64::from(name.starts_with(labels::cifar10()[class]));
        }
        println!("{file}: {right} of {} images, the photograph of a cat is a {seen}", images.len());
        assert_eq!(seen, taken_for, "{file}");
        assert!(images.is_empty() || right.abs_diff(wanted) <= 2, "{file}: {right} for {wanted}");
    }
    Ok(())
}
