//! NumPy's `.npy` (one array) and `.npz` (a zip archive of them).
//!
//! The header is a Python dictionary literal with three known keys. The small parser here reads exactly that, without
//! recursion, so that no header, however nested, can exhaust the stack.

use super::archive::Archive;
use super::budget::Budget;
use super::state_dict::{StateDict, shown};
use super::{Dtype, Limits, read_file};
use crate::atomic::write_atomically;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::io::{Seek, Write};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads one `.npy` array with the default [`Limits`]; elements of any real type become `f32`, Fortran order becomes row
/// major.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Tensor> {
    read_npy_with(path, &Limits::default())
}

/// [`read_npy`] with limits of one's own.
pub fn read_npy_with(path: impl AsRef<Path>, limits: &Limits) -> Result<Tensor> {
    let path = path.as_ref();
    let bytes = read_file(path, limits)?;
    decode(&bytes, &path.display().to_string(), &mut Budget::new(limits), limits).map(|(tensor, _)| tensor)
}

/// Writes one `.npy` array of `f32`. The file appears complete or not at all.
pub fn write_npy(path: impl AsRef<Path>, tensor: &Tensor) -> Result<()> {
    let path = path.as_ref();
    write_atomically(path, |out| encode(tensor, out).map_err(|e| Error::io(path, e)))
}

impl StateDict {
    /// Writes a NumPy `.npz` archive of `f32` arrays, uncompressed as `numpy.savez` does it. Metadata is left out: the
    /// format has no place for it. The file appears complete or not at all.
    pub fn write_npz(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write_atomically(path, |out| self.encode_npz(out).map_err(|e| Error::io(path, e)))
    }

    fn encode_npz(&self, out: &mut (impl Write + Seek)) -> std::io::Result<()> {
        let mut zip = zip::ZipWriter::new(out);
        for (name, tensor) in self.iter() {
            let options = zip::write::SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Stored)
                .large_file(tensor.len() as u64 * 4 >= 0xffff_0000);
            zip.start_file(format!("{name}.npy"), options)?;
            encode(tensor, &mut zip)?;
        }
        zip.finish()?;
        Ok(())
    }
}

/// Reads all arrays of an `.npz`.
pub(super) fn read_npz(mut archive: Archive<'_>, limits: &Limits) -> Result<StateDict> {
    let mut state = StateDict::new(archive.file());
    let mut budget = Budget::new(limits);
    let members: Vec<String> = archive.names().map(str::to_owned).collect();
    for member in members {
        let Some(name) = member.strip_suffix(".npy") else {
            let problem = format!("member `{}` of a NumPy archive is no .npy file", shown(&member));
            return Err(Error::format(archive.file(), problem));
        };
        let bytes = archive.inflated(&member, limits)?;
        let at = format!("{}: member `{}`", archive.file(), shown(&member));
        let (tensor, dtype) = decode(&bytes, &at, &mut budget, limits)?;
        state.insert_as(name, tensor, dtype)?;
    }
    Ok(state)
}

/// Writes header and elements.
fn encode(tensor: &Tensor, out: &mut impl Write) -> std::io::Result<()> {
    let shape: String = tensor.shape().iter().map(|n| format!("{n}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    // Magic, version and length take 10 bytes; the data is to start at a multiple of 64, after a line feed.
    let padding = (header.len() + 11).next_multiple_of(64) - (header.len() + 11);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).map_err(std::io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut buffer = Vec::new();
    for block in tensor.as_slice().chunks(1 << 18) {
        buffer.clear();
        Dtype::F32.encode(block, &mut buffer);
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Reads header and elements; `at` stands for the file in messages.
fn decode(bytes: &[u8], at: &str, budget: &mut Budget, limits: &Limits) -> Result<(Tensor, Dtype)> {
    let fail = |problem: String| Error::format(at, problem);
    let short = || fail(format!("{} bytes are too few for a NumPy header", bytes.len()));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| fail("does not begin as a NumPy array does".to_owned()))?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (length, rest) = match version {
        [1, 0] => rest.split_first_chunk::<2>().map(|(n, rest)| (u32::from(u16::from_le_bytes(*n)), rest)),
        [2 | 3, 0] => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n), rest)),
        [major, minor] => return Err(fail(format!("NumPy format version {major}.{minor} is not known here"))),
    }
    .ok_or_else(short)?;
    if u64::from(length) > limits.max_header {
        return Err(Error::limit(at, "header size in bytes", limits.max_header, u64::from(length)));
    }
    let (header, data) = rest
        .split_at_checked(length as usize)
        .ok_or_else(|| fail(format!("the header is said to have {length} bytes, but only {} follow", rest.len())))?;
    let header = std::str::from_utf8(header).map_err(|e| fail(format!("the header is not UTF-8: {e}")))?;
    let header = Header::parse(header).map_err(|problem| fail(format!("header: {problem}")))?;
    let count = budget.take(at, &header.shape)?;
    if data.len() != count * header.dtype.size() {
        let (shape, dtype, wanted) = (&header.shape, header.dtype, count * header.dtype.size());
        return Err(fail(format!("{shape:?} of {dtype} takes {wanted} bytes, but {} follow", data.len())));
    }
    let swapped: Vec<u8>;
    let data = if header.big_endian {
        swapped = data.chunks_exact(header.dtype.size()).flat_map(|element| element.iter().rev().copied()).collect();
        &swapped
    } else {
        data
    };
    let mut shape = header.shape.clone();
    if header.fortran {
        shape.reverse();
    }
    let mut tensor = Tensor::try_zeros(&shape)?;
    header.dtype.decode(data, tensor.as_mut_slice());
    if header.fortran && shape.len() > 1 {
        tensor = tensor.view().reversed_axes().into();
    }
    Ok((tensor, header.dtype))
}

/// What the dictionary of a `.npy` file says.
struct Header {
    dtype: Dtype,
    big_endian: bool,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, the keys in any order, each once.
    fn parse(text: &str) -> Result<Header, String> {
        let mut scan = Scanner { rest: text };
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        scan.expect('{')?;
        while !scan.take('}') {
            let key = scan.string()?;
            scan.expect(':')?;
            let repeated = match key {
                "descr" => descr.replace(scan.string()?).is_some(),
                "fortran_order" => fortran.replace(scan.boolean()?).is_some(),
                "shape" => shape.replace(scan.tuple()?).is_some(),
                _ => return Err(format!("unknown key `{}`", shown(key))),
            };
            if repeated {
                return Err(format!("the key `{key}` occurs twice"));
            }
            if !scan.take(',') {
                scan.expect('}')?;
                break;
            }
        }
        if !scan.rest.trim().is_empty() {
            return Err(format!("`{}` follows the dictionary", shown(scan.rest.trim())));
        }
        let missing = |key: &str| format!("the key `{key}` is missing");
        let descr = descr.ok_or_else(|| missing("descr"))?;
        let (dtype, big_endian) =
            element_type(descr).ok_or_else(|| format!("elements of type `{}` are not read here", shown(descr)))?;
        let fortran = fortran.ok_or_else(|| missing("fortran_order"))?;
        Ok(Header { dtype, big_endian, fortran, shape: shape.ok_or_else(|| missing("shape"))? })
    }
}

/// The type behind NumPy's code, and whether it is big-endian.
fn element_type(descr: &str) -> Option<(Dtype, bool)> {
    let (order, code) = descr.split_at_checked(1)?;
    let dtype = match code {
        "f4" => Dtype::F32,
        "f2" => Dtype::F16,
        "f8" => Dtype::F64,
        "i1" => Dtype::I8,
        "u1" => Dtype::U8,
        "i2" => Dtype::I16,
        "u2" => Dtype::U16,
        "i4" => Dtype::I32,
        "u4" => Dtype::U32,
        "i8" => Dtype::I64,
        "u8" => Dtype::U64,
        "b1" => Dtype::Bool,
        _ => return None,
    };
    match order {
        "<" => Some((dtype, false)),
        ">" => Some((dtype, true)),
        "|" if dtype.size() == 1 => Some((dtype, false)),
        _ => None,
    }
}

/// Reads the few kinds of literals a header is made of.
struct Scanner<'t> {
    rest: &'t str,
}

impl<'t> Scanner<'t> {
    fn take(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        self.rest.strip_prefix(wanted).map(|rest| self.rest = rest).is_some()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(self.surprise(&format!("`{wanted}`"))) }
    }

    fn surprise(&self, wanted: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("expected {wanted}, found `{}`", shown(&found))
    }

    fn string(&mut self) -> Result<&'t str, String> {
        let quote = if self.take('"') { '"' } else { self.expect('\'').map(|()| '\'')? };
        let (text, rest) = self.rest.split_once(quote).ok_or("a string has no end")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.surprise("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut extents = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            self.rest = self.rest.trim_start();
            let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = self.rest.split_at(digits);
            extents.push(number.parse().map_err(|_| self.surprise("an extent"))?);
            self.rest = rest.strip_prefix('L').unwrap_or(rest); // Python 2 wrote 3L
            if extents.len() > 32 {
                return Err("more than 32 dimensions".to_owned());
            }
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(extents)
    }
}
