//! [`Stored`]: what a weight file holds, each tensor in memory or still in the file.

#[cfg(feature = "safetensors")]
pub(super) use super::reader::Reader;
use super::state_dict::{StateDict, new_names};
use super::{Dtype, Limits};
use crate::error::Result;
use crate::tensor::Tensor;
use std::path::Path;

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
#[cfg_attr(not(feature = "safetensors"), allow(dead_code, reason = "no other format is read in place"))]
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
        #[cfg(feature = "safetensors")]
        if let Some(stored) = Stored::in_place(path, limits)? {
            return Ok(stored);
        }
        Ok(StateDict::read_with(path, limits)?.into())
    }

    /// The tensors of a safetensors file, or `None` if it is none.
    #[cfg(feature = "safetensors")]
    fn in_place(path: &Path, limits: &Limits) -> Result<Option<Self>> {
        use super::{Kind, open_file, safetensors};
        use std::io::Read;
        let (mut file, len) = open_file(path, limits)?;
        let mut head = Vec::new();
        (&mut file).take(9).read_to_end(&mut head).map_err(|e| crate::error::Error::io(path, e))?;
        if Kind::of(&head) != Kind::Safetensors {
            return Ok(None);
        }
        let source = path.display().to_string();
        let (start, listed) = safetensors::list_file(&mut file, (&head, len), &source, limits)?;
        let tensors = listed.into_iter().map(|tensor| {
            let safetensors::Listed { name, shape, dtype, range } = tensor;
            StoredTensor { name, shape, dtype, place: Place::File(start + range.start as u64) }
        });
        let (tensors, reader) = (tensors.collect(), Some(Reader::new(path, file)));
        Ok(Some(Stored { source, tensors, ignored: Vec::new(), reader }))
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

/// What reads tensors in place; no format that is switched on is read so.
#[cfg(not(feature = "safetensors"))]
pub(super) enum Reader {}

#[cfg(not(feature = "safetensors"))]
impl Reader {
    pub(super) fn elements(&self, _: Dtype, _: u64, _: &mut [f32]) -> Result<()> {
        match *self {}
    }
}
