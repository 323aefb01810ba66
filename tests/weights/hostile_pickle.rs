//! Pickles made to do harm, assembled by hand; nothing may be executed, exhausted or read out of bounds.

use crate::hostile_archive::archive;
use crate::{read, refused};
use convzoo::weights::{Limits, StateDict};

/// A checkpoint around a pickle, with one storage `0` of 16 bytes.
fn checkpoint(pickle: &[u8]) -> Vec<u8> {
    let pickle = [b"\x80\x02", pickle, b"."].concat();
    archive(&[("archive/data.pkl", &pickle), ("archive/data/0", &[0; 16])])
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().map(|&v| int(v)).collect::<Vec<_>>())
}

fn storage(class: &str, key: &str, len: i64) -> Vec<u8> {
    let class = format!("c{class}\n").into_bytes();
    [tuple(&[text("storage"), class, text(key), text("cpu"), int(len)]), b"Q".to_vec()].concat()
}

/// A tensor; `size` and `stride` in elements.
fn tensor(storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let hooks = b"}".to_vec();
    let arguments = tuple(&[storage, int(offset), ints(size), ints(stride), b"\x89".to_vec(), hooks]);
    [b"ctorch._utils\n_rebuild_tensor_v2\n", &arguments[..], b"R"].concat()
}

fn floats() -> Vec<u8> {
    storage("torch\nFloatStorage", "0", 4)
}

/// `{name: value, ...}`
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn one(value: Vec<u8>) -> Vec<u8> {
    checkpoint(&dict(&[("w", value)]))
}

#[test]
fn the_checkpoints_built_here_are_sound() {
    let state = read(&one(tensor(floats(), 0, &[2, 2], &[2, 1]))).unwrap();
    assert_eq!(state.get("w").unwrap().shape(), [2, 2]);
}

#[test]
fn anything_that_would_run_is_refused_by_name() {
    let call = |global: &str| [format!("c{global}\n").as_bytes(), &tuple(&[text("id")]), b"R"].concat();
    refused(&checkpoint(&call("os\nsystem")), "names `os.system`");
    refused(&checkpoint(&call("builtins\neval")), "names `builtins.eval`");
    refused(&checkpoint(&call("torch\nload")), "names `torch.load`");
    refused(&checkpoint(&call("torch._utils\n_rebuild_tensor_v2.__globals__")), "__globals__");
    refused(&checkpoint(&[text("os"), text("system"), b"\x93".to_vec()].concat()), "names `os.system`");
    refused(&checkpoint(b"(ios\nsystem\n"), "names `os.system`");
    refused(&checkpoint(b"(icollections\nOrderedDict\n"), "names `collections.OrderedDict`");
    refused(&one([call("os\nsystem"), b"b".to_vec()].concat()), "names `os.system`");
    refused(&checkpoint(b"cos\x1b[2J\nsystem\n"), "names `os\\u{1b}[2J.system`");
}

#[test]
fn objects_sets_extensions_and_unknown_instructions_are_refused() {
    for (pickle, wanted) in [
        (&b"ccollections\nOrderedDict\n)\x81"[..], "makes an object of a class"),
        (b"(ccollections\nOrderedDict\no", "makes an object of a class"),
        (b"\x82\x01", "calls an extension"),
        (b"\x8f", "makes a set"),
        (b"\x99", "not one that PyTorch checkpoints use"),
        (b"S'text'\n", "not one that PyTorch checkpoints use"),
        (b"P0\n", "not one that PyTorch checkpoints use"),
    ] {
        refused(&checkpoint(pickle), wanted);
    }
}

#[test]
fn known_functions_cannot_be_called_in_unknown_ways() {
    let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec();
    let cases = [
        (b"ccollections\nOrderedDict\n)R)R".to_vec(), "calls what is not"),
        (b"ccollections\nOrderedDict\n]R".to_vec(), "not a tuple of arguments"),
        (b"ccollections\nOrderedDict\nK\x01\x85R".to_vec(), "not a list of pairs"),
        (b"ccollections\nOrderedDict\n]K\x01a\x85R".to_vec(), "not a list of pairs"),
        ([rebuild.clone(), b")R".to_vec()].concat(), "0 arguments"),
        ([rebuild, tuple(&vec![b"N".to_vec(); 6]), b"R".to_vec()].concat(), "not a storage"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x85R".to_vec(), "not a tensor"),
        (b"ctorch\nFloatStorage\nK\x04\x85R".to_vec(), "makes a storage"),
        (b"]Nb".to_vec(), "sets attributes"),
        (b"]NNs".to_vec(), "not a dictionary"),
        (b"}Na".to_vec(), "not a list"),
        (b"}(Nu".to_vec(), "without a value"),
        (b"NQ".to_vec(), "not a tuple"),
        (b")Q".to_vec(), "wrong length"),
    ];
    for (pickle, wanted) in cases {
        refused(&checkpoint(&pickle), wanted);
    }
}

#[test]
fn tensors_outside_their_storage_are_refused() {
    let most = i64::MAX;
    let cases: [(i64, &[i64], &[i64], &str); 9] = [
        (0, &[5], &[1], "reaches element 4 of a storage of 4"),
        (1, &[4], &[1], "reaches element 4"),
        (0, &[2, 2], &[3, 1], "reaches element 4"),
        (most, &[1], &[1], "reaches element 9223372036854775807"),
        (0, &[2, 2, 2], &[most, most, most], "reaches element"),
        (-1, &[1], &[1], "negative offset"),
        (0, &[-1], &[1], "negative size"),
        (0, &[2], &[-1], "negative stride"),
        (0, &[1 << 32, 1 << 32], &[0, 0], "more elements than memory"),
    ];
    for (offset, size, stride, wanted) in cases {
        refused(&one(tensor(floats(), offset, size, stride)), wanted);
    }
    refused(&one(tensor(floats(), 0, &[1; 9], &[1; 9])), "9 dimensions");
    refused(&one(tensor(floats(), 0, &[1], &[1, 1])), "1 extents but 2 strides");
    assert!(read(&one(tensor(floats(), 0, &[0], &[most]))).is_ok(), "an empty tensor touches nothing");
    assert!(read(&one(tensor(floats(), 3, &[1, 1], &[most, most]))).is_ok(), "an extent of 1 takes no step");
}

#[test]
fn storages_that_are_missing_or_of_another_size_are_refused() {
    let with = |storage: Vec<u8>| one(tensor(storage, 0, &[1], &[1]));
    refused(&with(storage("torch\nFloatStorage", "1", 4)), "storage `1` is not in the archive");
    refused(&with(storage("torch\nFloatStorage", "../0", 4)), "is not in the archive");
    refused(&with(storage("torch\nFloatStorage", "0", 5)), "takes 20 bytes, but 16 are stored");
    refused(&with(storage("torch\nDoubleStorage", "0", 4)), "takes 32 bytes, but 16 are stored");
    refused(&with(storage("torch\nFloatStorage", "0", i64::MAX)), "but 16 are stored");
    refused(&with(storage("torch\nFloatStorage", "0", -4)), "negative number of elements");
    refused(&with(storage("torch\nComplexFloatStorage", "0", 2)), "names `torch.ComplexFloatStorage`");
    refused(&with(storage("torch\nFloatStorage", &"0".repeat(5000), 4)), "not a short text");
}

#[test]
fn expansion_is_bounded() {
    assert_eq!(read(&one(tensor(floats(), 0, &[1000, 4], &[0, 1]))).unwrap().get("w").unwrap().len(), 4000);
    refused(&one(tensor(floats(), 0, &[1 << 27], &[0])), "unfolded");
    refused(&one(tensor(floats(), 0, &[1 << 40], &[0])), "over the limit");
    // Many names for one large view.
    let names: Vec<String> = (0..300).map(|i| format!("t{i}")).collect();
    let view = tensor(floats(), 0, &[1 << 18], &[0]);
    let entries: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), view.clone())).collect();
    refused(&checkpoint(&dict(&entries)), "unfolded");
}

#[test]
fn values_of_any_depth_neither_overflow_the_stack_nor_hang() {
    let million = 1_000_000;
    let deep_tuples = [b")".to_vec(), b"\x85".repeat(million)].concat();
    refused(&checkpoint(&deep_tuples), "no dictionary");
    refused(&one(deep_tuples), "no tensors under a known key");
    refused(&checkpoint(&[b"(".repeat(million), b"t".repeat(million)].concat()), "no dictionary");
    // Wrappers in wrappers, and a dictionary that wraps itself.
    let nested = [b"}".to_vec(), text("model")].concat().repeat(1000);
    refused(&checkpoint(&[nested, b"}".to_vec(), b"s".repeat(1000)].concat()), "too deep");
    refused(&checkpoint(&[b"}q\x00".to_vec(), text("model"), b"h\x00s".to_vec()].concat()), "too deep");
    // A billion laughs: each list holds the one before ten times.
    let mut laughs = b"]q\x00".to_vec();
    for level in 0..200u8 {
        laughs.extend([b"](".to_vec(), [b'h', level].repeat(10), vec![b'e', b'q', level + 1]].concat());
    }
    refused(&one(laughs), "no tensors under a known key");
}

#[test]
fn lies_about_lengths_and_the_memo_are_refused() {
    let cases: [(&[u8], &str); 12] = [
        (b"X\xff\xff\xff\xff", "4294967295 bytes wanted"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "18446744073709551615 bytes wanted"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes wanted"),
        (b"\x8b\xff\xff\xff\x7f", "an integer of 2147483647 bytes"),
        (b"X\x01\0\0\0\xff", "not UTF-8"),
        (b"h\x00", "never remembered"),
        (b"j\xff\xff\xff\xff", "recalls 4294967295"),
        (b"q\x00", "empty stack"),
        (b"0", "empty stack"),
        (b"(0", "empty stack"),
        (b"t", "mark that is not there"),
        (b"\x80\x09", "protocol 9"),
    ];
    for (pickle, wanted) in cases {
        refused(&checkpoint(pickle), wanted);
    }
    // A huge index is only a number: it takes no memory.
    let far = [b"}r\xff\xff\xff\xff0j\xff\xff\xff\xff".to_vec(), dict(&[])[1..].to_vec()].concat();
    assert!(read(&checkpoint(&far)).unwrap().is_empty());
}

#[test]
fn the_length_of_a_pickle_is_bounded_in_bytes_and_instructions() {
    let long = checkpoint(&b"N0".repeat(100));
    let refused = |limits: Limits| StateDict::from_bytes(&long, "w", &limits).unwrap_err().to_string();
    let few = refused(Limits { max_objects: 50, ..Limits::default() });
    assert!(few.contains("instructions is 51, over the limit of 50"), "{few}");
    let short = refused(Limits { max_header: 50, ..Limits::default() });
    assert!(short.contains("over the limit of 50"), "{short}");
}

#[test]
fn names_that_occur_twice_or_are_no_text_are_refused() {
    let w = || tensor(floats(), 0, &[1], &[1]);
    refused(&checkpoint(&dict(&[("w", w()), ("w", w())])), "`w` occurs twice");
    refused(&checkpoint(&dict(&[("model", dict(&[("w", w())])), ("model", dict(&[]))])), "`model` occurs twice");
    refused(&checkpoint(&dict(&[("state_dict", dict(&[("w", w()), ("w", w())]))])), "`w` occurs twice");
    refused(&checkpoint(&[b"}K\x01".to_vec(), w(), b"s".to_vec()].concat()), "not text");
}

#[test]
fn module_is_stripped_only_when_every_name_carries_it() {
    let w = || tensor(floats(), 0, &[1], &[1]);
    let state = read(&checkpoint(&dict(&[("module.a", w()), ("b", w())]))).unwrap();
    assert_eq!(state.names().collect::<Vec<_>>(), ["module.a", "b"]);
    let state = read(&checkpoint(&dict(&[("best", w()), ("model", dict(&[("module.a", w())]))]))).unwrap();
    assert_eq!(state.names().collect::<Vec<_>>(), ["a"]);
}

/// The legacy stream around a pickle and what follows it.
fn legacy(system: &[u8], pickle: &[u8], tail: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    [magic, &b"\x80\x02M\xe9\x03."[..], b"\x80\x02", system, b".\x80\x02", pickle, b".", tail].concat()
}

#[test]
fn legacy_streams_that_lie_are_refused() {
    let little = dict(&[("little_endian", b"\x88".to_vec())]);
    let object = dict(&[("w", tensor(floats(), 0, &[4], &[1]))]);
    let keys = |keys: &[&str]| {
        let keys: Vec<u8> = keys.iter().flat_map(|k| text(k)).collect();
        [b"\x80\x02](", &keys[..], b"e."].concat()
    };
    let data = |count: u64| [&count.to_le_bytes()[..], &[0; 16]].concat();
    let sound = [keys(&["0"]), data(4)].concat();
    assert_eq!(read(&legacy(&little, &object, &sound)).unwrap().len(), 1);

    let big = dict(&[("little_endian", b"\x89".to_vec())]);
    refused(&legacy(&big, &object, &sound), "big-endian");
    refused(b"\x80\x02}.", "no PyTorch checkpoint");
    let tail = |parts: &[Vec<u8>]| legacy(&little, &object, &parts.concat());
    refused(&tail(&[keys(&[])]), "storage `0` is not in the file");
    refused(&tail(&[keys(&["0"]), data(5)]), "has 5 elements, not 4");
    refused(&tail(&[keys(&["0"]), data(4)[..20].to_vec()]), "takes 16 bytes, but only 12 follow");
    refused(&tail(&[keys(&["0", "0"]), data(4), data(4)]), "`0` occurs twice");
    refused(&tail(&[keys(&["7"]), data(4)]), "storage `7` is used nowhere");
    let two = dict(&[
        ("a", tensor(floats(), 0, &[1], &[1])),
        ("b", tensor(storage("torch\nDoubleStorage", "0", 2), 0, &[1], &[1])),
    ]);
    refused(&legacy(&little, &two, &sound), "described in two ways");
}
