//! The safetensors format: an 8-byte length, a JSON header of that length, then the tensors without gaps.
//!
//! The `safetensors` crate checks offsets, shapes and sizes. What it leaves open is added here: names that occur twice
//! (its map keeps the last), the number of tensors before they are built, and limits of the caller's own.

use super::budget::Budget;
use super::state_dict::{StateDict, shown};
use super::{Dtype, Limits};
use crate::atomic::write_atomically;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use ::safetensors::Dtype as Stored;
use ::safetensors::tensor::Metadata;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;

/// A tensor of the header.
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    /// Its bytes, counted from the end of the header.
    pub(super) range: Range<usize>,
}

/// Reads a whole safetensors file.
pub(super) fn read(bytes: &[u8], file: &str, limits: &Limits) -> Result<StateDict> {
    let header = header_length(bytes, bytes.len() as u64, file, limits)?;
    let data = &bytes[8 + header..];
    let (listed, text) = list(&bytes[8..8 + header], data.len() as u64, file, limits)?;
    let mut state = StateDict::new(file);
    for Listed { name, shape, dtype, range } in listed {
        let mut tensor = Tensor::try_zeros(&shape)?;
        dtype.decode(&data[range], tensor.as_mut_slice());
        state.insert_as(name, tensor, dtype)?;
    }
    *state.metadata_mut() = text;
    Ok(state)
}

/// Where the tensors of a file begin, and what they are. `head` is what was read already and the length of the file.
pub(super) fn list_file(
    input: &mut File,
    (head, len): (&[u8], u64),
    file: &str,
    limits: &Limits,
) -> Result<(u64, Vec<Listed>)> {
    let length = header_length(head, len, file, limits)?;
    let mut header = Vec::new();
    header.try_reserve_exact(length).map_err(|e| Error::io(file, std::io::Error::other(e)))?;
    header.extend_from_slice(&head[8..]);
    header.resize(length, 0);
    let behind = length.min(head.len() - 8);
    input.read_exact(&mut header[behind..]).map_err(|e| Error::io(file, e))?;
    let start = 8 + length as u64;
    Ok((start, list(&header, len - start, file, limits)?.0))
}

/// What the header describes, checked against the number of bytes behind it: offsets without gaps or overlaps to the end
/// of the file, shapes and sizes that agree, and what the limits grant.
fn list(header: &[u8], data: u64, file: &str, limits: &Limits) -> Result<(Vec<Listed>, BTreeMap<String, String>)> {
    let (names, text) = scan_header(header, file, limits)?;
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| Error::format(file, e.to_string()))?;
    if metadata.data_len() as u64 != data {
        let problem = format!("the header describes {} bytes of tensors, but {data} follow", metadata.data_len());
        return Err(Error::format(file, problem));
    }
    let mut budget = Budget::new(limits);
    let listed = names.into_iter().map(|name| {
        let info = metadata.info(&name).ok_or_else(|| Error::format(file, "the header contradicts itself"))?;
        let dtype = element_type(info.dtype).ok_or_else(|| {
            Error::format(file, format!("tensor `{}` has elements of type {}", shown(&name), info.dtype))
        })?;
        budget.take(&name, &info.shape)?;
        let range = info.data_offsets.0..info.data_offsets.1;
        Ok(Listed { name, shape: info.shape.clone(), dtype, range })
    });
    Ok((listed.collect::<Result<_>>()?, text))
}

/// Element types that mean one number per element; the rest (4-, 6- and 8-bit floats, complex) is refused.
fn element_type(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::BF16,
        Stored::F64 => Dtype::F64,
        Stored::I8 => Dtype::I8,
        Stored::U8 => Dtype::U8,
        Stored::I16 => Dtype::I16,
        Stored::U16 => Dtype::U16,
        Stored::I32 => Dtype::I32,
        Stored::U32 => Dtype::U32,
        Stored::I64 => Dtype::I64,
        Stored::U64 => Dtype::U64,
        Stored::BOOL => Dtype::Bool,
        _ => return None,
    })
}

/// The length of the header, from the `head` of a file of `len` bytes.
fn header_length(head: &[u8], len: u64, file: &str, limits: &Limits) -> Result<usize> {
    let fail = |problem: String| Error::format(file, problem);
    let length = head
        .first_chunk::<8>()
        .ok_or_else(|| fail(format!("{len} bytes are too few for the length of a safetensors header")))?;
    let length = u64::from_le_bytes(*length);
    let follow = len.saturating_sub(8);
    if length > follow {
        return Err(fail(format!("the header is said to have {length} bytes, but only {follow} follow")));
    }
    if length > limits.max_header {
        return Err(Error::limit(file, "header size in bytes", limits.max_header, length));
    }
    usize::try_from(length).map_err(|_| fail(format!("a header of {length} bytes cannot be addressed")))
}

/// The names in the order of the header and the text beside them, with duplicates refused. `serde_json` bounds the depth
/// of what it builds, and skips what is ignored here without recursion.
fn scan_header(header: &[u8], file: &str, limits: &Limits) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let fail = |problem: String| Error::format(file, problem);
    let text = std::str::from_utf8(header).map_err(|e| fail(format!("the header is not UTF-8: {e}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let visitor = HeaderVisitor { max_tensors: limits.max_tensors };
    json.deserialize_map(visitor).map_err(|e| fail(format!("header: {e}")))
}

/// Collects the keys of the header, each once.
struct HeaderVisitor {
    max_tensors: usize,
}

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = (Vec<String>, BTreeMap<String, String>);

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        use serde::de::Error as _;
        let (mut names, mut seen, mut text) = (Vec::new(), HashSet::new(), None);
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if text.is_some() {
                    return Err(A::Error::custom("`__metadata__` occurs twice"));
                }
                text = Some(map.next_value::<UniqueText>()?.0);
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name `{}` occurs twice", shown(&name))));
            }
            if names.len() == self.max_tensors {
                return Err(A::Error::custom(format!("more tensors than the limit of {}", self.max_tensors)));
            }
            names.push(name);
        }
        Ok((names, text.unwrap_or_default()))
    }
}

/// A map from text to text in which no key occurs twice.
struct UniqueText(BTreeMap<String, String>);

impl<'de> serde::Deserialize<'de> for UniqueText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = UniqueText;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<UniqueText, A::Error> {
                use serde::de::Error as _;
                let mut text = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if text.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key of `__metadata__` occurs twice"));
                    }
                }
                Ok(UniqueText(text))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl StateDict {
    /// Writes a safetensors file: the tensors in their order, as `dtype` ([`Dtype::F32`], [`Dtype::F16`] or
    /// [`Dtype::BF16`], rounded to nearest even), and the metadata.
    ///
    /// The same dictionary gives the same bytes. The file appears complete or not at all.
    ///
    /// # Errors
    /// Another `dtype`; a finite value that would become infinite in it; a tensor named `__metadata__`; the system's
    /// refusals.
    pub fn write_safetensors(&self, path: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
        let path = path.as_ref();
        let header = self.safetensors_header(dtype)?;
        write_atomically(path, |out| {
            let io = |source| Error::io(path, source);
            out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
            out.write_all(header.as_bytes()).map_err(io)?;
            let mut buffer = Vec::new();
            for (name, tensor) in self.iter() {
                for block in tensor.as_slice().chunks(1 << 18) {
                    buffer.clear();
                    if let Some(value) = dtype.encode(block, &mut buffer) {
                        return Err(Error::invalid(name, format!("{value:e} does not fit into {dtype}")));
                    }
                    out.write_all(&buffer).map_err(io)?;
                }
            }
            Ok(())
        })
    }

    fn safetensors_header(&self, dtype: Dtype) -> Result<String> {
        let stored = match dtype {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            _ => return Err(Error::invalid("dtype", format!("{dtype} cannot be written, only f32, f16 and bf16"))),
        };
        let mut parts = Vec::with_capacity(self.len() + 1);
        if !self.metadata().is_empty() {
            let text: serde_json::Map<String, serde_json::Value> =
                self.metadata().iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            parts.push(format!("\"__metadata__\":{}", serde_json::Value::from(text)));
        }
        let mut start = 0;
        for (name, tensor) in self.iter() {
            if name == "__metadata__" {
                return Err(Error::invalid(name, "is reserved by the format and cannot name a tensor"));
            }
            let end = start + tensor.len() * dtype.size();
            parts.push(format!(
                "{}:{{\"dtype\":\"{stored}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
                serde_json::Value::from(name),
                tensor.shape()
            ));
            start = end;
        }
        let mut header = format!("{{{}}}", parts.join(","));
        // Readers that map the file want the data aligned; the format allows trailing spaces for it.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        Ok(header)
    }
}
