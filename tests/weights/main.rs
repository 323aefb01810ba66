//! Weight files: real ones written by PyTorch, NumPy and safetensors, round trips, and files made to do harm.
#![cfg(all(feature = "safetensors", feature = "pth", feature = "npz"))]

mod files;
mod hostile_archive;
mod hostile_pickle;
mod hostile_safetensors;
mod real;
mod round_trip;
mod straight;

use convzoo::weights::{Limits, StateDict};
use std::path::PathBuf;

/// A file made by `fixtures/weights/make.py`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

/// Reads bytes with the default limits.
fn read(bytes: &[u8]) -> convzoo::Result<StateDict> {
    StateDict::from_bytes(bytes, "test", &Limits::default())
}

/// The message of the error that reading these bytes must give.
#[track_caller]
fn refused(bytes: &[u8], wanted: &str) {
    match read(bytes) {
        Ok(state) => panic!("read {} tensors instead of refusing with `{wanted}`", state.len()),
        Err(error) => assert!(error.to_string().contains(wanted), "wanted `{wanted}`, found `{error}`"),
    }
}

/// A folder of one's own that goes away in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("convzoo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
