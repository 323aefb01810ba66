//! Zip archives in memory, checked as a whole before any member is trusted.

use super::Limits;
use super::state_dict::shown;
use crate::error::{Error, Result};
use std::io::Cursor;
use zip::{CompressionMethod, ZipArchive};

/// An archive whose central directory and local headers agree, whose members do not overlap, and whose names are UTF-8
/// and unique.
pub(super) struct Archive<'a> {
    #[cfg(feature = "pth")]
    bytes: &'a [u8],
    file: String,
    zip: ZipArchive<Cursor<&'a [u8]>>,
    names: Vec<String>,
}

impl<'a> Archive<'a> {
    /// Opens and checks an archive; `file` stands for it in messages.
    pub(super) fn open(bytes: &'a [u8], file: &str, limits: &Limits) -> Result<Self> {
        let broken = |e: zip::result::ZipError| Error::format(file, format!("zip archive: {e}"));
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
        // A PyTorch checkpoint has a handful of members beside one per tensor.
        let most = limits.max_tensors.saturating_add(16);
        if zip.len() > most {
            return Err(Error::limit(file, "number of archive members", most as u64, zip.len() as u64));
        }
        zip.validate_header_consistency().map_err(broken)?;
        let names = zip
            .file_names_raw()
            .map(|raw| {
                let text = std::str::from_utf8(raw).map(str::to_owned);
                text.map_err(|_| {
                    Error::format(file, format!("member name {:?} is not UTF-8", raw.escape_ascii().to_string()))
                })
            })
            .collect::<Result<_>>()?;
        Ok(Archive {
            #[cfg(feature = "pth")]
            bytes,
            file: file.to_owned(),
            zip,
            names,
        })
    }

    /// What stands for the file in messages.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Number of members.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Member names in the order of the directory.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The bytes of a member that is stored as is, its checksum verified; `None` if there is no such member. Compressed
    /// members are refused: PyTorch writes none, and they are how a small file becomes a large one.
    #[cfg(feature = "pth")]
    pub(super) fn stored(&mut self, name: &str) -> Result<Option<&'a [u8]>> {
        let Some(index) = self.zip.index_for_name(name) else { return Ok(None) };
        let at = format!("{}: member `{}`", self.file, shown(name));
        let broken = |e: &dyn std::fmt::Display| Error::format(&at, e.to_string());
        let mut member = self.zip.by_index(index).map_err(|e| broken(&e))?;
        if member.compression() != CompressionMethod::Stored || member.encrypted() {
            return Err(broken(&"is compressed or encrypted, which PyTorch never writes; refused"));
        }
        if member.size() != member.compressed_size() {
            let (size, held) = (member.size(), member.compressed_size());
            return Err(broken(&format!("is said to have {size} bytes and stored in {held}")));
        }
        std::io::copy(&mut member, &mut std::io::sink()).map_err(|e| broken(&e))?;
        let range = member
            .data_start()
            .zip(Some(member.size()))
            .and_then(|(start, size)| Some(start as usize..start.checked_add(size)? as usize));
        let held = range.and_then(|r| self.bytes.get(r)).ok_or_else(|| broken(&"lies outside the file"))?;
        Ok(Some(held))
    }

    /// The bytes of a member, inflated if it is compressed, within the limits.
    #[cfg(feature = "npz")]
    pub(super) fn inflated(&mut self, name: &str, limits: &Limits) -> Result<Vec<u8>> {
        use std::io::Read;
        let at = format!("{}: member `{}`", self.file, shown(name));
        let broken = |e: &dyn std::fmt::Display| Error::format(&at, e.to_string());
        let index = self.zip.index_for_name(name).ok_or_else(|| broken(&"is not in the archive"))?;
        let member = self.zip.by_index(index).map_err(|e| broken(&e))?;
        if !matches!(member.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(broken(&format!("is compressed by {}; only deflate is read", member.compression())));
        }
        let (size, packed) = (member.size(), member.compressed_size());
        if size > limits.max_bytes {
            return Err(Error::limit(&at, "size in bytes", limits.max_bytes, size));
        }
        let most = packed.saturating_mul(limits.max_inflation).max(64 << 20);
        if size > most {
            return Err(Error::limit(&at, "size in bytes of a compressed member", most, size));
        }
        let mut bytes = Vec::new();
        member.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| broken(&e))?;
        if bytes.len() as u64 != size {
            return Err(broken(&format!("is said to have {size} bytes but holds {}", bytes.len())));
        }
        Ok(bytes)
    }
}
