//! CIFAR-10 and CIFAR-100 in their official binary form. Krizhevsky 2009.
//!
//! A record is the label (in CIFAR-100 the coarse, then the fine one) and 32×32 pixels of red, then green, then blue.

use super::{PixelSet, Split};
use crate::error::{Error, Result};
use crate::vision::labels;
use std::path::Path;

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;

impl PixelSet {
    /// CIFAR-10 from the unpacked `cifar-10-batches-bin`: `data_batch_1.bin` … `data_batch_5.bin` or `test_batch.bin`.
    ///
    /// # Errors
    /// A file that is missing, empty or not a whole number of records; a label over 9, which names the record.
    pub fn cifar10(folder: impl AsRef<Path>, split: Split) -> Result<Self> {
        let files: &[&str] = match split {
            Split::Train => {
                &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"]
            }
            Split::Test => &["test_batch.bin"],
        };
        read(folder.as_ref(), files, 1, labels::cifar10().map(str::to_owned).to_vec())
    }

    /// CIFAR-100 from the unpacked `cifar-100-binary`: `train.bin` or `test.bin`, with its 100 fine classes, named by
    /// `fine_label_names.txt` if that is there.
    ///
    /// # Errors
    /// As [`PixelSet::cifar10`], and a list of names that are not 100.
    pub fn cifar100(folder: impl AsRef<Path>, split: Split) -> Result<Self> {
        let folder = folder.as_ref();
        let file = if split == Split::Train { "train.bin" } else { "test.bin" };
        let list = folder.join("fine_label_names.txt");
        let names = match list.exists() {
            true => labels::read(&list)?,
            false => (0..100).map(|i| format!("class {i}")).collect(),
        };
        if names.len() != 100 {
            return Err(Error::mismatch(list.display().to_string(), "names of classes", 100, names.len()));
        }
        read(folder, &[file], 2, names)
    }
}

/// Records whose last of `labels` leading bytes is the class.
fn read(folder: &Path, files: &[&str], label_bytes: usize, classes: Vec<String>) -> Result<PixelSet> {
    let record = label_bytes + 3 * PLANE;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for file in files {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let fail = |problem| Error::format(path.display().to_string(), problem);
        if bytes.is_empty() || bytes.len() % record != 0 {
            let (whole, rest) = (bytes.len() / record, bytes.len() % record);
            let problem =
                format!("{whole} records of {record} bytes and {rest} bytes more: cut short or another format");
            return Err(fail(problem));
        }
        for (i, bytes) in bytes.chunks_exact(record).enumerate() {
            let label = bytes[label_bytes - 1];
            if usize::from(label) >= classes.len() {
                return Err(fail(format!("record {i} has label {label}, over the last class, {}", classes.len() - 1)));
            }
            labels.push(label);
            let planes = &bytes[label_bytes..];
            pixels.extend((0..PLANE).flat_map(|i| [planes[i], planes[PLANE + i], planes[2 * PLANE + i]]));
        }
    }
    PixelSet::new([SIDE, SIDE], pixels, labels, classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::data::Dataset;

    fn record(labels: &[u8], color: [u8; 3]) -> Vec<u8> {
        labels.iter().copied().chain(color.into_iter().flat_map(|c| [c; PLANE])).collect()
    }

    #[test]
    fn planes_become_pixels_and_faults_name_file_and_record() {
        let folder = std::env::temp_dir().join(format!("convzoo-cifar-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        let two = [record(&[9], [1, 2, 3]), record(&[0], [4, 5, 6])].concat();
        write("test_batch.bin", &two);
        let set = PixelSet::cifar10(&folder, Split::Test).unwrap();
        assert_eq!((set.len(), set.label(0), set.classes()[9].as_str()), (2, 9, "truck"));
        assert_eq!(set.image(1).unwrap().pixels()[..6], [4, 5, 6, 4, 5, 6]);

        for len in [0, 1, 3072, 3074, two.len() - 1] {
            write("test_batch.bin", &two[..len]);
            let error = PixelSet::cifar10(&folder, Split::Test).unwrap_err().to_string();
            assert!(error.contains("test_batch.bin") && error.contains("3073 bytes"), "{error}");
        }
        write("test_batch.bin", &[two, record(&[10], [0; 3])].concat());
        let error = PixelSet::cifar10(&folder, Split::Test).unwrap_err().to_string();
        assert!(error.contains("record 2 has label 10"), "{error}");
        assert!(PixelSet::cifar10(&folder, Split::Train).unwrap_err().to_string().contains("data_batch_1.bin"));

        write("train.bin", &record(&[3, 99], [7, 8, 9]));
        let set = PixelSet::cifar100(&folder, Split::Train).unwrap();
        assert_eq!((set.label(0), set.classes()[99].as_str()), (99, "class 99"));
        write("fine_label_names.txt", b"apple\n");
        let error = PixelSet::cifar100(&folder, Split::Train).unwrap_err().to_string();
        assert!(error.contains("expected 100, found 1"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
