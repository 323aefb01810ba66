//! Weight files in and out: safetensors, PyTorch checkpoints (zip and legacy), NumPy arrays; and loading them into a
//! network's parameters.
//!
//! Every reader turns a file into a [`StateDict`]: named `f32` tensors in the file's order. What kind of file it is, is
//! seen from its content, never from its name.
//!
//! | format | feature | read | write |
//! |---|---|---|---|
//! | safetensors | `safetensors` | yes | yes: f32, f16, bf16 |
//! | PyTorch `.pth`, `.pt`, `.th`: zip archive | `pth` | yes | no |
//! | PyTorch before 1.6: legacy pickle | `pth` | yes | no |
//! | NumPy `.npz`, `.npy` | `npz` | yes | yes: f32 |
//!
//! # Files from strangers
//!
//! A weight file is input like any other. Nothing in it is executed (a `.pth` file is a Python pickle, which elsewhere
//! may run any program: here a short list of names is understood and everything else is an error naming it); every
//! length is checked against what the file really holds before memory is taken; [`Limits`] bound what remains; no reader
//! recurses. Files are read, not mapped, so that a file cut short while in use cannot end the process.
//!
//! # Starting quickly
//!
//! A plan needs weights in its own layout, and the originals no more once they are packed.
//! [`Model::plan_file`](crate::Model::plan_file) packs the weights of a safetensors file as they are read; see
//! [`WeightFile`].

#[cfg(any(feature = "pth", feature = "npz"))]
mod archive;
#[cfg(any(feature = "safetensors", feature = "pth", feature = "npz"))]
mod budget;
#[cfg(any(feature = "safetensors", feature = "pth", feature = "npz"))]
mod convert;
mod dtype;
mod file;
mod load;
#[cfg(feature = "npz")]
mod npy;
#[cfg(feature = "pth")]
mod pickle;
#[cfg(feature = "pth")]
mod pickle_tree;
#[cfg(feature = "pth")]
mod pth;
#[cfg(feature = "safetensors")]
mod reader;
#[cfg(feature = "safetensors")]
mod safetensors;
mod state_dict;
mod stored;

pub use dtype::Dtype;
pub use file::WeightFile;
pub use load::{LoadOptions, Rename, load, load_file};
#[cfg(feature = "npz")]
pub use npy::{read_npy, read_npy_with, write_npy};
pub use state_dict::StateDict;

use crate::error::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What a file may ask for at most. The defaults let every published network of this crate load many times over.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the file, and bytes of all its tensors as `f32`. Default 16 GiB.
    pub max_bytes: u64,
    /// Tensors in the file. Default 100 000.
    pub max_tensors: usize,
    /// Elements of one tensor. Default 2³¹.
    pub max_elements: u64,
    /// Bytes of the description of the tensors: a safetensors header, a pickle. Default 100 MB.
    pub max_header: u64,
    /// Instructions of a pickle, hence also objects in it. Default 4 million.
    pub max_objects: usize,
    /// Elements that a PyTorch checkpoint may unfold to beyond those it stores, by expanded dimensions and by tensors
    /// that share memory. Default 2²⁶ (256 MiB).
    pub max_unfolded: u64,
    /// How many times larger than its compressed form a member of an `.npz` may be, once it exceeds 64 MiB.
    /// Default 100.
    pub max_inflation: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 16 << 30,
            max_tensors: 100_000,
            max_elements: 1 << 31,
            max_header: 100_000_000,
            max_objects: 4_000_000,
            max_unfolded: 1 << 26,
            max_inflation: 100,
        }
    }
}

impl StateDict {
    /// Reads a weight file of any supported format with the default [`Limits`].
    ///
    /// A PyTorch checkpoint that wraps its tensors (`state_dict`, `model`, ...) is unwrapped, and DataParallel's `module.`
    /// is taken off when every name in it carries it.
    ///
    /// # Errors
    /// The system's refusals; a file that is broken, hostile, of an unknown kind or of a kind whose feature is switched
    /// off; a name that occurs twice; a size over its limit.
    pub fn read(path: impl AsRef<Path>) -> Result<StateDict> {
        StateDict::read_with(path, &Limits::default())
    }

    /// [`StateDict::read`] with limits of one's own.
    pub fn read_with(path: impl AsRef<Path>, limits: &Limits) -> Result<StateDict> {
        let path = path.as_ref();
        StateDict::from_bytes(&read_file(path, limits)?, &path.display().to_string(), limits)
    }

    /// Reads a weight file held in memory; `name` stands for the file in messages.
    pub fn from_bytes(bytes: &[u8], name: &str, limits: &Limits) -> Result<StateDict> {
        if bytes.len() as u64 > limits.max_bytes {
            return Err(Error::limit(name, "file size in bytes", limits.max_bytes, bytes.len() as u64));
        }
        match Kind::of(bytes) {
            Kind::Safetensors => read_safetensors(bytes, name, limits),
            Kind::Zip => read_zip(bytes, name, limits),
            Kind::Pickle => read_legacy(bytes, name, limits),
            Kind::Foreign(what) => Err(Error::format(name, what)),
            Kind::Unknown => {
                let head = bytes[..bytes.len().min(16)].escape_ascii();
                Err(Error::format(
                    name,
                    format!(
                        "{} bytes beginning with `{head}` are no weight file known here (safetensors, PyTorch, NumPy)",
                        bytes.len()
                    ),
                ))
            }
        }
    }
}

/// What a file is, seen from its first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Safetensors,
    Zip,
    Pickle,
    /// Something recognised that holds no weights readable here, and what to do about it.
    Foreign(&'static str),
    Unknown,
}

impl Kind {
    fn of(bytes: &[u8]) -> Kind {
        const FOREIGN: [(&[u8], &str); 8] = [
            (b"\x93NUMPY", "is a single NumPy array without a name; read it with `weights::read_npy`"),
            (
                b"version https://git-lfs",
                "is a Git LFS pointer, not the weights: run `git lfs pull` or download the file",
            ),
            (b"\x89HDF\r\n\x1a\n", "is an HDF5 (Keras) file; convert it to safetensors first"),
            (b"\x1f\x8b", "is compressed with gzip; decompress it first"),
            (b"<!DOCTYPE", "is a web page, not weights: the download went wrong"),
            (b"<!doctype", "is a web page, not weights: the download went wrong"),
            (b"<html", "is a web page, not weights: the download went wrong"),
            (b"GGUF", "is a GGUF file; convert it to safetensors first"),
        ];
        if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            return Kind::Foreign(what);
        }
        match bytes {
            [] => Kind::Foreign("is empty"),
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Kind::Zip,
            // The first eight bytes are a length, then comes JSON; a length alone is told apart by the reader.
            [_, _, _, _, _, _, _, _, b'{', ..] => Kind::Safetensors,
            [0x80, 0..=5, ..] => Kind::Pickle,
            _ if bytes.get(257..262) == Some(b"ustar") => Kind::Foreign(
                "is a tar archive (PyTorch before 0.2 wrote such); load and save it again with a current PyTorch",
            ),
            _ => Kind::Unknown,
        }
    }
}

#[cfg(feature = "safetensors")]
fn read_safetensors(bytes: &[u8], name: &str, limits: &Limits) -> Result<StateDict> {
    safetensors::read(bytes, name, limits)
}

#[cfg(not(feature = "safetensors"))]
fn read_safetensors(_: &[u8], name: &str, _: &Limits) -> Result<StateDict> {
    Err(Error::format(name, "is a safetensors file; build with the feature `safetensors` to read it"))
}

#[cfg(feature = "pth")]
fn read_legacy(bytes: &[u8], name: &str, limits: &Limits) -> Result<StateDict> {
    pth::read_legacy(bytes, name, limits)
}

#[cfg(not(feature = "pth"))]
fn read_legacy(_: &[u8], name: &str, _: &Limits) -> Result<StateDict> {
    Err(Error::format(name, "is a Python pickle; build with the feature `pth` to read PyTorch checkpoints"))
}

/// A zip archive is a PyTorch checkpoint, TorchScript or an `.npz`, by the names of its members.
#[cfg(any(feature = "pth", feature = "npz"))]
fn read_zip(bytes: &[u8], name: &str, limits: &Limits) -> Result<StateDict> {
    let archive = archive::Archive::open(bytes, name, limits)?;
    let base = |member: &str| member.rsplit('/').next().map(str::to_owned);
    let has = |wanted: &str| archive.names().any(|member| base(member).as_deref() == Some(wanted));
    if has("constants.pkl") || archive.names().any(|member| member.contains("/code/__torch__")) {
        return Err(Error::format(
            name,
            "is a TorchScript archive, which holds a program; in Python save only its weights: \
             torch.save(torch.jit.load(file).state_dict(), new_file)",
        ));
    }
    if has("data.pkl") {
        #[cfg(feature = "pth")]
        return pth::read_zip(archive, limits);
        #[cfg(not(feature = "pth"))]
        return Err(Error::format(name, "is a PyTorch checkpoint; build with the feature `pth` to read it"));
    }
    if archive.names().any(|member| member.ends_with(".npy")) {
        #[cfg(feature = "npz")]
        return npy::read_npz(archive, limits);
        #[cfg(not(feature = "npz"))]
        return Err(Error::format(name, "is a NumPy archive; build with the feature `npz` to read it"));
    }
    let some: Vec<String> = archive.names().take(5).map(state_dict::shown).collect();
    let problem = format!(
        "is a zip archive of {} members but neither a PyTorch checkpoint (no data.pkl) nor NumPy's (no .npy): {some:?}",
        archive.len()
    );
    Err(Error::format(name, problem))
}

#[cfg(not(any(feature = "pth", feature = "npz")))]
fn read_zip(_: &[u8], name: &str, _: &Limits) -> Result<StateDict> {
    Err(Error::format(name, "is a zip archive; build with the feature `pth` (PyTorch) or `npz` (NumPy) to read it"))
}

/// A regular file that is not over the limit, and its length.
fn open_file(path: &Path, limits: &Limits) -> Result<(File, u64)> {
    let io = |source| Error::io(path, source);
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?;
    if !found.is_file() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if found.len() > limits.max_bytes {
        return Err(too_large(path, limits, found.len()));
    }
    Ok((file, found.len()))
}

fn too_large(path: &Path, limits: &Limits, size: u64) -> Error {
    Error::limit(path.display().to_string(), "file size in bytes", limits.max_bytes, size)
}

/// A whole regular file, if it is not over the limit; memory is taken only for bytes that exist.
pub(crate) fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let io = |source| Error::io(path, source);
    let (file, len) = open_file(path, limits)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|e| io(std::io::Error::other(e)))?;
    // The file may grow meanwhile; one byte over the limit suffices to notice.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(too_large(path, limits, bytes.len() as u64));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        StateDict::from_bytes(bytes, "w.bin", &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_weight_file_is_named() {
        let tar: Vec<u8> = [&[b'x'; 257][..], b"ustar\0", &[0; 100]].concat();
        let cases: [(&[u8], &str); 8] = [
            (b"", "is empty"),
            (b"\0\"", "beginning with `\\x00\\\"` are no weight file"),
            (b"12345678", "no weight file"),
            (b"\x93NUMPY\x01\0", "read_npy"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\x89HDF\r\n\x1a\n....", "HDF5"),
            (&tar, "tar archive"),
        ];
        for (bytes, wanted) in cases {
            let found = message(bytes);
            assert!(found.contains(wanted) && found.starts_with("w.bin: "), "{found}");
        }
    }

    #[test]
    fn folders_and_missing_files_are_errors_with_the_path() {
        let error = StateDict::read(std::env::temp_dir()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let error = StateDict::read("/no/such/file.pth").unwrap_err().to_string();
        assert!(error.contains("/no/such/file.pth"), "{error}");
    }

    #[test]
    fn a_file_over_the_limit_is_refused_before_it_is_read() {
        let limits = Limits { max_bytes: 4, ..Limits::default() };
        let error = StateDict::from_bytes(&[0; 5], "w", &limits).unwrap_err().to_string();
        assert!(error.contains("is 5, over the limit of 4"), "{error}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(matches!(StateDict::read_with(path, &limits), Err(Error::Limit { .. })));
    }
}
