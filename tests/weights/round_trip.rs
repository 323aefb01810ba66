//! What is written is read back: every shape, name and value, bit for bit in f32.

use crate::Folder;
use convzoo::Tensor;
use convzoo::weights::{Dtype, StateDict, read_npy, write_npy};
use proptest::prelude::*;

/// Names as wild as the formats allow, shapes with zeros and none, any bit pattern.
fn dictionaries() -> impl Strategy<Value = Vec<(String, Vec<usize>, u32)>> {
    let names = proptest::collection::hash_set("[a-zA-Z0-9_.äß\"\\\\ -]{1,12}", 0..6);
    names.prop_flat_map(|names| {
        let count = names.len();
        let shapes = proptest::collection::vec((proptest::collection::vec(0usize..4, 0..5), any::<u32>()), count);
        shapes.prop_map(move |shapes| {
            names.iter().zip(shapes).map(|(name, (shape, seed))| (name.clone(), shape, seed)).collect()
        })
    })
}

fn build(entries: &[(String, Vec<usize>, u32)]) -> StateDict {
    let mut state = StateDict::new("test");
    for (name, shape, seed) in entries {
        // Weyl's sequence walks through all bit patterns: infinities, NaNs and denormals included.
        let tensor =
            Tensor::from_fn(shape, |i| f32::from_bits(seed.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9))));
        state.insert(name.clone(), tensor).unwrap();
    }
    state
}

fn bits(state: &StateDict) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let entry = |(name, tensor): (&str, &Tensor)| {
        (name.to_owned(), tensor.shape().to_vec(), tensor.as_slice().iter().map(|v| v.to_bits()).collect())
    };
    state.iter().map(entry).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_formats_give_back_names_order_shapes_and_bits(entries in dictionaries()) {
        let folder = Folder::new("round-trip");
        let state = build(&entries);
        let path = folder.file("weights");
        state.write_safetensors(&path, Dtype::F32).unwrap();
        prop_assert_eq!(bits(&StateDict::read(&path).unwrap()), bits(&state));
        if !state.is_empty() {
            state.write_npz(&path).unwrap(); // an .npz of nothing is an empty archive, which says nothing of its kind
            prop_assert_eq!(bits(&StateDict::read(&path).unwrap()), bits(&state));
        }
    }
}

#[test]
fn half_precision_rounds_to_nearest_and_refuses_to_overflow() {
    let folder = Folder::new("half");
    let path = folder.file("w.safetensors");
    let mut state = StateDict::new("test");
    state.insert("w", Tensor::from_slice(&[3], &[1.0, 0.1, -65504.0]).unwrap()).unwrap();
    state.metadata_mut().insert("licence".to_owned(), "free \"as in\" speech".to_owned());
    state.write_safetensors(&path, Dtype::F16).unwrap();
    let back = StateDict::read(&path).unwrap();
    assert_eq!(back.get("w").unwrap().as_slice(), [1.0, 0.099975586, -65504.0]);
    assert_eq!((back.dtype("w"), back.metadata()), (Some(Dtype::F16), state.metadata()));

    state.insert("large", Tensor::from_slice(&[1], &[1e38]).unwrap()).unwrap();
    let error = state.write_safetensors(&path, Dtype::F16).unwrap_err().to_string();
    assert!(error.contains("large") && error.contains("1e38"), "{error}");
    assert!(state.write_safetensors(&path, Dtype::I8).is_err());
    assert_eq!(StateDict::read(&path).unwrap().len(), 1, "the failed write must leave the old file");
    state.write_safetensors(&path, Dtype::BF16).unwrap();
    assert_eq!(StateDict::read(&path).unwrap().dtype("large"), Some(Dtype::BF16));
}

#[test]
fn npy_gives_back_any_rank() {
    let folder = Folder::new("npy");
    for shape in [&[][..], &[3], &[1], &[0, 2], &[2, 3, 4, 5]] {
        let tensor = Tensor::from_fn(shape, |i| i as f32 - 0.5);
        write_npy(folder.file("x.npy"), &tensor).unwrap();
        assert_eq!(read_npy(folder.file("x.npy")).unwrap(), tensor);
    }
}
