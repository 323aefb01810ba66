//! [`Reader`]: tensors read from where they lie in a file.

use super::Dtype;
use crate::error::{Error, Result};
use crate::tensor::bytes_mut;
use std::fs::File;
#[cfg(not(unix))]
use std::io::Read;
use std::path::{Path, PathBuf};

/// An open file that several threads may read at once.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
    /// Without positioned reads, one thread at a time.
    #[cfg(not(unix))]
    turn: std::sync::Mutex<()>,
}

/// Bytes decoded at a time where the file's elements are not the tensor's.
const BLOCK: usize = 1 << 16;

impl Reader {
    pub(super) fn new(path: &Path, file: File) -> Self {
        Reader {
            path: path.to_owned(),
            file,
            #[cfg(not(unix))]
            turn: std::sync::Mutex::new(()),
        }
    }

    #[cfg(unix)]
    fn bytes(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, into, at)
    }

    #[cfg(not(unix))]
    fn bytes(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        use std::io::Seek;
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (&self.file).seek(std::io::SeekFrom::Start(at))?;
        (&self.file).read_exact(into)
    }

    /// Decodes `into.len()` elements that begin at byte `at`. A file that has become shorter is an error.
    pub(super) fn elements(&self, dtype: Dtype, mut at: u64, into: &mut [f32]) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        if dtype == Dtype::F32 {
            self.bytes(at, bytes_mut(into)).map_err(io)?;
            into.iter_mut().for_each(|v| *v = f32::from_bits(u32::from_le(v.to_bits())));
            return Ok(());
        }
        let mut block = vec![0; BLOCK.min(into.len() * dtype.size())];
        for values in into.chunks_mut(BLOCK / dtype.size()) {
            let bytes = &mut block[..values.len() * dtype.size()];
            self.bytes(at, bytes).map_err(io)?;
            dtype.decode(bytes, values);
            at += bytes.len() as u64;
        }
        Ok(())
    }
}
