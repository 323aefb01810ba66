//! The MNIST family: idx files, plain or compressed with gzip. LeCun, Cortes & Burges 1998.
//!
//! An idx file is a magic number whose third byte is the element type and whose fourth the rank, the extents as big-endian
//! words, then the elements. The same names and sizes serve MNIST, Fashion-MNIST and Kuzushiji-MNIST.

use super::{PixelSet, Split};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// No set of the family comes near this.
const MOST_BYTES: u64 = 4 << 30;

impl PixelSet {
    /// The set of the MNIST family in `folder`: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or `t10k-…`, with
    /// or without `.gz`, and with any prefix (`mnist-train-…`) as long as there is one file of each kind.
    ///
    /// Classes are named by their digits; name them better with [`PixelSet::named`].
    pub fn mnist(folder: impl AsRef<Path>, split: Split) -> Result<Self> {
        let part = if split == Split::Train { "train" } else { "t10k" };
        let images = find(folder.as_ref(), &format!("{part}-images-idx3-ubyte"))?;
        let labels = find(folder.as_ref(), &format!("{part}-labels-idx1-ubyte"))?;
        PixelSet::idx(images, labels)
    }

    /// Images and labels from two idx files. There are as many classes, named by their numbers, as the largest label
    /// asks for, and at least ten.
    ///
    /// # Errors
    /// A file that cannot be read, is no idx file of bytes, is cut short or too long; counts that differ.
    pub fn idx(images: impl AsRef<Path>, labels: impl AsRef<Path>) -> Result<Self> {
        let (images, labels) = (images.as_ref(), labels.as_ref());
        let ([count, height, width], pixels) = read::<3>(images)?;
        let ([named], labels_read) = read::<1>(labels)?;
        if count != named {
            let at = format!("{} and {}", images.display(), labels.display());
            return Err(Error::mismatch(at, "labels for the images", count, named));
        }
        let classes = labels_read.iter().max().map_or(0, |&label| usize::from(label) + 1).max(10);
        PixelSet::new([height, width], pixels, labels_read, (0..classes).map(|i| i.to_string()).collect())
            .map_err(|e| Error::format(images.display().to_string(), e.to_string()))
    }
}

/// The one file in `folder` whose name ends in `wanted`, `.gz` behind it or not.
fn find(folder: &Path, wanted: &str) -> Result<PathBuf> {
    let io = |e| Error::io(folder, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.trim_end_matches(".gz").ends_with(wanted) {
            found.push(path);
        }
    }
    found.sort();
    // Unpacked beside its archive is one file twice.
    found.dedup_by(|b, a| b.with_extension("") == *a);
    match found.len() {
        1 => Ok(found.remove(0)),
        many => Err(Error::mismatch(folder.display().to_string(), "files", format!("one *{wanted}[.gz]"), many)),
    }
}

/// The extents and bytes of an idx file of rank `N`.
fn read<const N: usize>(path: &Path) -> Result<([usize; N], Vec<u8>)> {
    let io = |e| Error::io(path, e);
    let fail = |problem: String| Error::format(path.display().to_string(), problem);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let packed = std::io::BufRead::fill_buf(&mut file).map_err(io)?.starts_with(&[0x1f, 0x8b]);
    let mut bytes: Box<dyn Read> =
        if packed { Box::new(flate2::bufread::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let short = |what: &str, e: std::io::Error| fail(format!("cut short or damaged in the {what}: {e}"));

    let mut word = [0; 4];
    bytes.read_exact(&mut word).map_err(|e| short("header", e))?;
    let [0, 0, kind, rank] = word else { return Err(fail(format!("begins with {word:02x?}: not an idx file"))) };
    if kind != 8 || usize::from(rank) != N {
        let problem = format!("expected bytes (type 8) of rank {N}, found type {kind} of rank {rank}");
        return Err(fail(problem));
    }
    let mut extents = [0; N];
    for extent in &mut extents {
        bytes.read_exact(&mut word).map_err(|e| short("header", e))?;
        *extent = u32::from_be_bytes(word) as usize;
    }
    let wanted = extents.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent as u64)).unwrap_or(u64::MAX);
    if wanted > MOST_BYTES {
        return Err(Error::limit(path.display().to_string(), "number of bytes", MOST_BYTES, wanted));
    }
    // One byte more than promised tells a file that goes on; memory is taken only for bytes that come.
    let mut data = Vec::new();
    bytes.take(wanted + 1).read_to_end(&mut data).map_err(|e| short("data", e))?;
    if data.len() as u64 != wanted {
        let found = if data.len() as u64 > wanted { "more".to_owned() } else { format!("{}: cut short", data.len()) };
        return Err(fail(format!("{extents:?} promises {wanted} bytes, found {found}")));
    }
    Ok((extents, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::data::Dataset;
    use std::io::Write;

    fn idx(extents: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, extents.len() as u8];
        extents.iter().for_each(|e| bytes.extend(e.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("convzoo-idx-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.0.join(name), bytes).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn plain_and_compressed_files_read_alike() {
        let folder = Folder::new("both");
        let (images, labels) = (idx(&[2, 1, 2], &[1, 2, 3, 4]), idx(&[2], &[7, 0]));
        folder.write("mnist-train-images-idx3-ubyte.gz", &gzip(&images));
        folder.write("train-labels-idx1-ubyte", &labels);
        folder.write("train-labels-idx1-ubyte.gz", &gzip(&labels));
        let set = PixelSet::mnist(&folder.0, Split::Train).unwrap();
        assert_eq!((set.len(), set.size(), set.label(0), set.classes().len()), (2, [1, 2], 7, 10));
        assert_eq!(set.image(1).unwrap().pixels(), [3, 3, 3, 4, 4, 4]);
        let error = PixelSet::mnist(&folder.0, Split::Test).unwrap_err().to_string();
        assert!(error.contains("t10k-images-idx3-ubyte"), "{error}");
    }

    #[test]
    fn every_truncation_and_every_lie_is_an_error_with_the_file() {
        let folder = Folder::new("cut");
        let labels = idx(&[2], &[0, 1]);
        folder.write("labels", &labels);
        let images = idx(&[2, 1, 2], &[1, 2, 3, 4]);
        let open = |bytes: &[u8]| {
            folder.write("images", bytes);
            PixelSet::idx(folder.0.join("images"), folder.0.join("labels"))
        };
        assert!(open(&images).is_ok());
        for whole in [images.clone(), gzip(&images)] {
            for len in 0..whole.len() {
                let error = open(&whole[..len]).unwrap_err().to_string();
                assert!(error.contains("images"), "{len}: {error}");
            }
        }
        for (bytes, words) in [
            ([&images[..], &[9]].concat(), "found more"),
            (idx(&[3, 1, 2], &[0; 6]), "expected 3, found 2"),
            (idx(&[u32::MAX; 3], &[]), "over the limit"),
            (idx(&[2], &[0, 1]), "rank 3"),
            (idx(&[0, 1, 2], &[]), "expected 0, found 2"),
            (b"\x89PNG\r\n\x1a\n".to_vec(), "not an idx file"),
        ] {
            let error = open(&bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
