//! `ImageFolder`: a folder per class, PNG and JPEG files in it.

use super::Dataset;
use crate::error::{Error, Result};
use crate::vision::Image;
use std::path::{Path, PathBuf};

/// What to do about an image that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// It is an error when it is read, naming the file.
    #[default]
    Stop,
    /// Every file is decoded once while opening, and what fails is left out and listed in [`ImageFolder::skipped`]: the
    /// set then is the same in every epoch, on any machine.
    Skip,
}

/// Photographs sorted into a folder per class: `root/CLASS/….jpg`, as torchvision's `ImageFolder`.
///
/// Classes are the names of the folders in sorted order, images follow class by class in the order of their paths, folders
/// within them included. Files whose names begin with a dot, and those that do not end in `.png`, `.jpg` or `.jpeg` are
/// none.
#[derive(Debug, Clone)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, usize)>,
    skipped: Vec<String>,
}

impl ImageFolder {
    /// Opens a folder.
    ///
    /// # Errors
    /// A folder that cannot be read, without a folder in it, or with a class that has no image.
    pub fn open(root: impl AsRef<Path>, damage: OnDamage) -> Result<Self> {
        let root = root.as_ref();
        let (folders, _) = list(root)?;
        if folders.is_empty() {
            let problem = "there is no folder in it: expected one per class";
            return Err(Error::invalid(root.display().to_string(), problem));
        }
        let mut set = ImageFolder { classes: Vec::new(), files: Vec::new(), skipped: Vec::new() };
        for folder in folders {
            let class = set.classes.len();
            set.classes.push(name(&folder));
            let before = set.files.len();
            set.gather(&folder, class)?;
            if damage == OnDamage::Skip {
                set.drop_damaged(before);
            }
            if set.files.len() == before {
                let skipped = set.skipped.last().map_or(String::new(), |e| format!(" that can be read: {e}"));
                return Err(Error::invalid(folder.display().to_string(), format!("no PNG or JPEG image{skipped}")));
            }
        }
        Ok(set)
    }

    fn gather(&mut self, folder: &Path, class: usize) -> Result<()> {
        let mut open = vec![folder.to_owned()];
        let start = self.files.len();
        while let Some(folder) = open.pop() {
            let (folders, files) = list(&folder)?;
            open.extend(folders);
            self.files.extend(files.into_iter().map(|file| (file, class)));
        }
        self.files[start..].sort();
        Ok(())
    }

    fn drop_damaged(&mut self, from: usize) {
        let tail = self.files.split_off(from);
        for (file, class) in tail {
            match Image::open(&file) {
                Ok(_) => self.files.push((file, class)),
                Err(error) => self.skipped.push(error.to_string()),
            }
        }
    }

    /// `count` images spread evenly over all, so that classes keep their shares; all if there are fewer, at least one. For
    /// trying things out.
    pub fn spread(mut self, count: usize) -> Self {
        let (len, count) = (self.files.len(), count.clamp(1, self.files.len()));
        self.files = (0..count).map(|i| std::mem::take(&mut self.files[i * len / count])).collect();
        self
    }

    /// The error of each image left out, with its file.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> &Path {
        &self.files[index].0
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        self.files[index].1
    }

    fn image(&self, index: usize) -> Result<Image> {
        Image::open(&self.files[index].0)
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The folders and the image files in a folder, each sorted.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let io = |e| Error::io(folder, e);
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        if name(&path).starts_with('.') {
            continue;
        }
        // A link to a folder could lead back here, one to a file cannot.
        let kind = entry.file_type().map_err(io)?;
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        if kind.is_dir() {
            folders.push(path);
        } else if path.is_file() && matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
            files.push(path);
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sorted_and_damaged_images_stop_or_are_skipped() {
        let root = std::env::temp_dir().join(format!("convzoo-folder-{}", std::process::id()));
        let photo = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/photos/rocket.jpg")).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        std::fs::create_dir_all(&root).unwrap();
        assert!(ImageFolder::open(&root, OnDamage::Stop).unwrap_err().to_string().contains("one per class"));
        write("bees/2.jpg", &photo);
        write("bees/deeper/1.JPEG", &photo);
        write("bees/notes.txt", b"not an image");
        write("ants/.hidden.jpg", b"");
        let error = ImageFolder::open(&root, OnDamage::Stop).unwrap_err().to_string();
        assert!(error.contains("ants") && error.contains("no PNG or JPEG"), "{error}");
        write("ants/cut.jpg", &photo[..photo.len() / 2]);
        let set = ImageFolder::open(&root, OnDamage::Stop).unwrap();
        assert_eq!((set.classes(), set.len()), (&["ants".to_owned(), "bees".to_owned()][..], 3));
        assert_eq!([0, 1, 2].map(|i| set.label(i)), [0, 1, 1]);
        assert!(set.image(0).unwrap_err().to_string().contains("cut.jpg"));
        assert!(set.image(2).is_ok() && set.path(1).ends_with("2.jpg"));

        let error = ImageFolder::open(&root, OnDamage::Skip).unwrap_err().to_string();
        assert!(error.contains("ants") && error.contains("cut.jpg"), "{error}");
        write("ants/whole.jpg", &photo);
        let set = ImageFolder::open(&root, OnDamage::Skip).unwrap();
        assert_eq!((set.len(), set.skipped().len()), (3, 1));
        assert!(set.skipped()[0].contains("cut.jpg"));

        write("ants/other.jpg", &photo);
        let set = ImageFolder::open(&root, OnDamage::Skip).unwrap();
        let part = set.clone().spread(2);
        assert_eq!((part.len(), part.path(0), part.path(1)), (2, set.path(0), set.path(2)), "half of each class");
        assert_eq!([part.label(0), part.label(1)], [0, 1]);
        assert_eq!((set.clone().spread(0).len(), set.spread(9).len()), (1, 4));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
