//! Zip archives made to do harm: bombs, lies, duplicates, overlaps.

use crate::{read, refused};
use convzoo::weights::{Limits, StateDict};
use std::io::Write;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A plain archive of stored members, written byte by byte so that tests can lie in it.
pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut body, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let common = |out: &mut Vec<u8>| {
            out.extend([20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0]); // version, flags, stored, time, date
            out.extend(crc32(data).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend([0, 0]);
        };
        let start = body.len() as u32;
        body.extend(b"PK\x03\x04");
        common(&mut body);
        body.extend(name.as_bytes());
        body.extend(*data);
        directory.extend(b"PK\x01\x02\x14\0");
        common(&mut directory);
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, size) = (body.len() as u32, directory.len() as u32);
    body.extend(directory);
    body.extend(b"PK\x05\x06\0\0\0\0");
    body.extend((members.len() as u16).to_le_bytes());
    body.extend((members.len() as u16).to_le_bytes());
    body.extend(size.to_le_bytes());
    body.extend(start.to_le_bytes());
    body.extend([0, 0]);
    body
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}

/// An empty state dict.
const EMPTY: &[u8] = b"\x80\x02}.";

fn npy(shape: &str, data: &[u8]) -> Vec<u8> {
    with_header(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n"), data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn the_archives_built_here_are_sound() {
    assert_eq!(read(&archive(&[("archive/data.pkl", EMPTY)])).unwrap().len(), 0);
    assert_eq!(read(&archive(&[("x.npy", &npy("(1,)", &[0; 4]))])).unwrap().len(), 1);
}

#[test]
fn archives_of_other_things_are_named() {
    refused(&archive(&[("readme.txt", b"hello")]), "neither a PyTorch checkpoint");
    refused(&archive(&[]), "0 members");
    refused(&archive(&[("m/data.pkl", EMPTY), ("m/constants.pkl", EMPTY)]), "TorchScript");
    refused(&archive(&[("x.npy", &npy("()", &[0; 4])), ("notes.txt", b"")]), "no .npy file");
}

#[test]
fn ambiguous_archives_are_refused() {
    refused(&archive(&[("a/data.pkl", EMPTY), ("a/data.pkl", EMPTY)]), "duplicate");
    refused(&archive(&[("a/data.pkl", EMPTY), ("b/data.pkl", EMPTY)]), "2 members named data.pkl");
    refused(&archive(&[("a/data.pkl", EMPTY), ("a/byteorder", b"big")]), "`big`-endian");
    refused(&archive(&[("x.npy", &npy("()", &[0; 4])), ("x.npy", &npy("()", &[0; 4]))]), "duplicate");
}

#[test]
fn lies_between_directory_and_members_are_refused() {
    let sound = archive(&[("a/data.pkl", EMPTY), ("a/data/0", &[1, 2, 3, 4])]);
    let directory = sound.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    let change = |at: usize, to: &[u8]| {
        let mut bytes = sound.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    // The local header's name and size, the directory's checksum and size, the second member's place.
    for (at, to) in [
        (30, &b"b"[..]),
        (18, &[0xff, 0, 0, 0]),
        (directory + 16, &[0, 0, 0, 0]),
        (directory + 20, &[0xff, 0xff, 0xff, 0x7f]),
        (directory + 24, &[0xff, 0xff, 0xff, 0x7f]),
        (directory + 46 + 10 + 42, &[0, 0, 0, 0]),
    ] {
        assert!(read(&change(at, to)).is_err(), "byte {at} replaced by {to:?}");
    }
    refused(&change(30 + 10, b"\x80\x02]"), "Invalid checksum");
}

#[test]
fn compressed_checkpoints_are_refused_and_bombs_bounded() {
    let deflated = |name: &str, data: &[u8]| {
        let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Deflated)).unwrap();
        zip.write_all(data).unwrap();
        zip.finish().unwrap().into_inner()
    };
    refused(&deflated("a/data.pkl", EMPTY), "PyTorch never writes");

    let bomb = deflated("x.npy", &npy("(20000000,)", &vec![0; 80_000_000]));
    assert!(bomb.len() < 1_000_000);
    refused(&bomb, "size in bytes of a compressed member is 80000");
    let generous = Limits { max_inflation: 10_000, ..Limits::default() };
    assert_eq!(StateDict::from_bytes(&bomb, "bomb", &generous).unwrap().len(), 1);
    let small = Limits { max_bytes: 1_000_000, ..generous };
    assert!(
        StateDict::from_bytes(&bomb, "bomb", &small).unwrap_err().to_string().contains("over the limit of 1000000")
    );
}

#[test]
fn numpy_headers_that_lie_are_refused() {
    let cases: [(&str, &[u8], &str); 14] = [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", &[0; 4], "takes 8 bytes, but 4 follow"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", &[0; 5], "takes 4 bytes, but 5 follow"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", &[], "more elements"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", &[], "an extent"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", &[], "an extent"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000,)}", &[], "over the limit"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", &[0; 8], "`|O` are not read"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", &[0; 8], "`<c8` are not read"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[0; 4], "expected"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}", &[0; 4], "`descr` occurs twice"),
        ("{'descr': '<f4', 'fortran_order': False}", &[0; 4], "`shape` is missing"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}", &[0; 4], "unknown key `x`"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': ()} boo", &[0; 4], "`boo` follows"),
        ("((((((((((((((((((((((((((((((((", &[], "expected `{`"),
    ];
    for (header, data, wanted) in cases {
        refused(&archive(&[("x.npy", &with_header(header, data))]), wanted);
    }
    refused(&archive(&[("x.npy", &with_header(&"(".repeat(60_000), &[]))]), "expected `{`");
    refused(&archive(&[("x.npy", b"\x93NUMPY\x02\0\xff\xff\xff\xff{}")]), "over the limit");
    refused(&archive(&[("x.npy", b"\x93NUMPY\x09\0")]), "version 9.0");
    refused(&archive(&[("x.npy", b"")]), "does not begin");
}
