//! Safetensors files made to do harm: lying lengths, offsets and shapes, duplicates, depth.

use crate::{read, refused};
use convzoo::weights::{Limits, StateDict};

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!("\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
}

/// A file of these entries.
fn with(entries: &[String], data: usize) -> Vec<u8> {
    file(&format!("{{{}}}", entries.join(",")), data)
}

#[test]
fn the_files_built_here_are_sound() {
    let state = read(&with(&[entry("b", "F32", "[2]", 0, 8), entry("a", "I64", "[]", 8, 16)], 16)).unwrap();
    assert_eq!(state.names().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(read(&file("{}", 0)).unwrap().len(), 0);
}

#[test]
fn header_lengths_that_lie_are_refused() {
    for length in [3, 1000, u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused(&bytes, &format!("said to have {length} bytes"));
    }
    let mut short = file("{}", 0);
    short[0] = 1;
    refused(&short, "header");
    let limits = Limits { max_header: 10, ..Limits::default() };
    let error = StateDict::from_bytes(&file("{           }", 0), "w", &limits).unwrap_err().to_string();
    assert!(error.contains("header size in bytes is 13, over the limit of 10"), "{error}");
}

#[test]
fn headers_that_are_not_what_they_should_be_are_refused() {
    let not_utf8 = [&6u64.to_le_bytes()[..], b"{\"\xff\":1}"].concat();
    refused(&not_utf8, "UTF-8");
    for header in ["{]", "{\"a\":}", "{} {}", "{\"a\":3}", "{\"a\":{\"dtype\":\"F32\"}}"] {
        assert!(read(&file(header, 0)).is_err(), "{header}");
    }
    refused(&with(&[entry("a", "F99", "[1]", 0, 4)], 4), "F99");
    refused(&with(&[entry("a", "F8_E4M3", "[1]", 0, 1)], 1), "`a` has elements of type");
    refused(&with(&[entry("a", "C64", "[1]", 0, 8)], 8), "`a` has elements of type");
}

#[test]
fn nesting_of_any_depth_is_an_error() {
    for depth in [200, 1_000_000] {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = format!("{}0{}", open.repeat(depth), close.repeat(depth));
            assert!(read(&file(&format!("{{\"x\":{deep}}}"), 0)).is_err());
            assert!(read(&file(&format!("{{\"__metadata__\":{deep}}}"), 0)).is_err());
        }
    }
}

#[test]
fn names_that_occur_twice_are_refused() {
    refused(&with(&[entry("a", "F32", "[1]", 0, 4), entry("a", "F32", "[1]", 4, 8)], 8), "`a` occurs twice");
    // The same name written in two ways.
    refused(&with(&[entry("a", "F32", "[1]", 0, 4), entry("\\u0061", "F32", "[1]", 4, 8)], 8), "`a` occurs twice");
    refused(&file("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0), "occurs twice");
    refused(&file("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "occurs twice");
}

#[test]
fn offsets_that_are_reversed_overlap_leave_gaps_or_leave_the_file_are_refused() {
    let cases: [(&str, Vec<String>, usize); 7] = [
        ("reversed", vec![entry("a", "F32", "[1]", 4, 0)], 4),
        ("overlapping", vec![entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12)], 12),
        ("the same", vec![entry("a", "F32", "[1]", 0, 4), entry("b", "F32", "[1]", 0, 4)], 4),
        ("a gap", vec![entry("a", "F32", "[1]", 0, 4), entry("b", "F32", "[1]", 8, 12)], 12),
        ("not from 0", vec![entry("a", "F32", "[1]", 4, 8)], 8),
        ("past the end", vec![entry("a", "F32", "[100]", 0, 400)], 4),
        ("before the end", vec![entry("a", "F32", "[1]", 0, 4)], 8),
    ];
    for (what, entries, data) in cases {
        assert!(read(&with(&entries, data)).is_err(), "{what}");
    }
}

#[test]
fn shapes_that_do_not_fit_their_bytes_are_refused() {
    for (shape, end) in
        [("[2]", 4), ("[1,3]", 8), ("[0]", 4), ("[-1]", 4), ("[1.5]", 4), ("[18446744073709551615,2]", 4)]
    {
        assert!(read(&with(&[entry("a", "F32", shape, 0, end)], end as usize)).is_err(), "{shape}");
    }
    assert!(read(&with(&[entry("a", "F32", "[4294967296,4294967296,0]", 0, 0)], 0)).is_err());
    assert_eq!(read(&with(&[entry("a", "F32", "[0,7]", 0, 0)], 0)).unwrap().get("a").unwrap().shape(), [0, 7]);
}

#[test]
fn more_tensors_or_elements_than_allowed_are_refused() {
    let many: Vec<String> = (0..50).map(|i| entry(&format!("t{i}"), "U8", "[0]", 0, 0)).collect();
    let limits = Limits { max_tensors: 49, ..Limits::default() };
    assert!(StateDict::from_bytes(&with(&many, 0), "w", &limits).unwrap_err().to_string().contains("limit of 49"));
    let limits = Limits { max_elements: 9, ..Limits::default() };
    let large = with(&[entry("a", "U8", "[10]", 0, 10)], 10);
    let error = StateDict::from_bytes(&large, "w", &limits).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("is 10, over the limit of 9"), "{error}");
}
