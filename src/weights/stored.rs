//! [`Stored`]: what a weight file holds, each tensor in memory or still in the file.

use super::state_dict::{StateDict, new_names};
use super::{Dtype, Kind, Limits, open_file};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, bytes_mut};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The tensors of a weight file, known by name, shape and type.
pub(super) struct Stored {
    /// The file, or what stands for it.
    pub(super) source: String,
    pub(super) tensors: Vec<StoredTensor>,
    /// Entries of the file that are no tensors.
    pub(super) ignored: Vec<(String, &'static str)>,
    reader: Option<Reader>,
}

/// One named tensor.
pub(super) struct StoredTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) place: Place,
}

/// Where the values of a tensor are.
pub(super) enum Place {
    Memory(Tensor),
    /// Little-endian elements from this byte of the file on.
    File(u64),
}

impl From<StateDict> for Stored {
    fn from(state: StateDict) -> Self {
        let (source, ignored) = (state.source().to_owned(), state.ignored().to_vec());
        let tensors = state.into_parts().map(|(name, tensor, dtype)| {
            let shape = tensor.shape().to_vec();
            StoredTensor { name, shape, dtype, place: Place::Memory(tensor) }
        });
        Stored { source, tensors: tensors.collect(), ignored, reader: None }
    }
}

impl Stored {
    /// Opens a weight file. Of a safetensors file only the header is read and checked; the others are read whole.
    pub(super) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let (mut file, len) = open_file(path, limits)?;
        let mut head = Vec::new();
        (&mut file).take(9).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
        #[cfg(feature = "safetensors")]
        if Kind::of(&head) == Kind::Safetensors {
            let source = path.display().to_string();
            let (start, listed) = super::safetensors::list_file(&mut file, (&head, len), &source, limits)?;
            let tensors = listed.into_iter().map(|tensor| {
                let super::safetensors::Listed { name, shape, dtype, range } = tensor;
                StoredTensor { name, shape, dtype, place: Place::File(start + range.start as u64) }
            });
            let reader = Some(Reader::new(path, file));
            return Ok(Stored { source, tensors: tensors.collect(), ignored: Vec::new(), reader });
        }
        let _ = (Kind::of(&head), len);
        Ok(StateDict::read_with(path, limits)?.into())
    }

    /// Renames every tensor for which `new_name` returns a name; two of one name are an error.
    pub(super) fn rename(&mut self, new_name: impl FnMut(&str) -> Option<String>) -> Result<()> {
        let names: Vec<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        let names = new_names(&self.source, &names, new_name)?;
        self.tensors.iter_mut().zip(names).for_each(|(tensor, name)| tensor.name = name);
        Ok(())
    }

    /// Sees to it that a tensor lies in memory.
    pub(super) fn fetch(&mut self, i: usize) -> Result<&mut Tensor> {
        let StoredTensor { shape, dtype, place, .. } = &mut self.tensors[i];
        if let (Place::File(at), Some(reader)) = (&place, &self.reader) {
            let mut tensor = Tensor::try_zeros(shape)?;
            reader.elements(*dtype, *at, tensor.as_mut_slice())?;
            *place = Place::Memory(tensor);
        }
        match place {
            Place::Memory(tensor) => Ok(tensor),
            Place::File(_) => unreachable!("tensors in a file come with its reader"),
        }
    }

    /// What reads the tensors that are still in the file.
    pub(super) fn into_reader(self) -> Option<Reader> {
        self.reader
    }
}

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
    fn new(path: &Path, file: File) -> Self {
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
