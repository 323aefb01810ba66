//! Files that other software wrote are read to the same values, whatever the format and element type.

use crate::{fixture, read};
use convzoo::Tensor;
use convzoo::weights::{Dtype, StateDict, read_npy};

/// What every file of `make.py` holds: name, shape, values.
fn expected() -> [(&'static str, Tensor); 5] {
    [
        ("conv.weight", Tensor::from_fn(&[2, 3, 2, 2], |i| (i as f32 - 12.0) / 8.0)),
        ("conv.bias", Tensor::from_slice(&[2], &[0.5, -0.25]).unwrap()),
        ("bn.num_batches_tracked", Tensor::from_slice(&[], &[7.0]).unwrap()),
        ("empty", Tensor::zeros(&[0, 4])),
        ("scale", Tensor::from_slice(&[], &[1.5]).unwrap()),
    ]
}

#[test]
fn every_format_and_type_gives_the_same_tensors() {
    let cases = [
        ("zip.pth", Dtype::F32),
        ("zip_protocol4.pth", Dtype::F32),
        ("legacy.pth", Dtype::F32),
        ("legacy_protocol4.pth", Dtype::F32),
        ("wrapped.pth", Dtype::F32),
        ("wrapped_legacy.pth", Dtype::F32),
        ("f16.pth", Dtype::F16),
        ("bf16.pth", Dtype::BF16),
        ("f64.pth", Dtype::F64),
        ("f32.safetensors", Dtype::F32),
        ("f16.safetensors", Dtype::F16),
        ("bf16.safetensors", Dtype::BF16),
        ("f64.safetensors", Dtype::F64),
        ("stored.npz", Dtype::F32),
        ("deflated.npz", Dtype::F32),
    ];
    for (file, dtype) in cases {
        let state = StateDict::read(fixture(file)).unwrap();
        assert_eq!(state.len(), 5, "{file}");
        for (name, tensor) in expected() {
            assert_eq!(state.get(name), Some(&tensor), "{file}: {name}");
            let stored = if name == "bn.num_batches_tracked" { Dtype::I64 } else { dtype };
            assert_eq!(state.dtype(name), Some(stored), "{file}: {name}");
        }
        if !file.ends_with("safetensors") {
            // safetensors sorts by alignment and name; the other formats keep the order of the model.
            assert!(state.names().eq(expected().iter().map(|(name, _)| *name)), "{file}");
        }
    }
}

#[test]
fn what_lies_beside_the_weights_is_ignored_by_name() {
    let state = StateDict::read(fixture("wrapped.pth")).unwrap();
    let ignored: Vec<&str> = state.ignored().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(ignored, ["epoch", "best_prec1", "arch", "optimizer"]);
}

#[test]
fn safetensors_metadata_is_kept() {
    let state = StateDict::read(fixture("f32.safetensors")).unwrap();
    assert_eq!(state.metadata().get("made by").map(String::as_str), Some("make.py"));
}

#[test]
fn views_into_shared_storage_become_plain_tensors() {
    for file in ["views.pth", "views_legacy.pth"] {
        let state = StateDict::read(fixture(file)).unwrap();
        let cases: [(&str, &[usize], &[f32]); 4] = [
            ("sliced", &[2, 2], &[7.0, 10.0, 19.0, 22.0]),
            ("expanded", &[2, 3], &[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]),
            ("parameter", &[2], &[3.0, 4.0]),
            ("transposed", &[6, 4], &[0.0, 6.0, 12.0, 18.0, 1.0, 7.0]),
        ];
        for (name, shape, head) in cases {
            let tensor = state.get(name).unwrap();
            assert_eq!((tensor.shape(), &tensor.as_slice()[..head.len()]), (shape, head), "{file}: {name}");
        }
        let plain: Vec<f32> = (0..24).map(|i| i as f32).collect();
        assert_eq!(state.get("channels_last").unwrap().as_slice(), plain, "{file}");
    }
}

#[test]
fn numpy_arrays_of_other_orders_and_types_become_row_major_f32() {
    let counted = Tensor::from_fn(&[2, 3], |i| i as f32);
    assert_eq!(read_npy(fixture("fortran.npy")).unwrap(), counted);
    assert_eq!(read_npy(fixture("big_endian.npy")).unwrap(), counted);
    assert_eq!(read_npy(fixture("half.npy")).unwrap().as_slice(), [1.5, -2.0]);
}

#[test]
fn files_that_hold_programs_are_refused_with_advice() {
    let cases = [
        ("torchscript.pt", "TorchScript archive"),
        ("whole_model.pth", "__main__.Net"),
        ("lone_tensor.pth", "no dictionary"),
        ("half.npy", "read_npy"),
    ];
    for (file, wanted) in cases {
        let error = StateDict::read(fixture(file)).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains(file), "{file}: {error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    let files = [
        "zip.pth",
        "legacy.pth",
        "legacy_protocol4.pth",
        "wrapped_legacy.pth",
        "views_legacy.pth",
        "f32.safetensors",
        "bf16.safetensors",
        "stored.npz",
        "deflated.npz",
    ];
    for file in files {
        let bytes = std::fs::read(fixture(file)).unwrap();
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{file} cut after {end} of {} bytes was read", bytes.len());
        }
    }
}

#[test]
fn a_flipped_byte_never_panics_and_never_changes_a_checked_value() {
    // Archives carry checksums, so whatever is read at all must be what was written, except for names.
    for (file, checked) in [("zip.pth", true), ("stored.npz", true), ("legacy.pth", false), ("f32.safetensors", false)]
    {
        let bytes = std::fs::read(fixture(file)).unwrap();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut broken = bytes.clone();
                broken[at] ^= flip;
                let Ok(state) = read(&broken) else { continue };
                for (name, tensor) in expected().iter().filter(|_| checked) {
                    let found = state.get(name);
                    assert!(found.is_none_or(|t| t == tensor), "{file}: byte {at} ^ {flip:#x} changed {name}");
                }
            }
        }
    }
}
