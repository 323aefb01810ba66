//! Data sets: images with a class each, from the files they are published in.
//!
//! Everything a data set promises is checked when it is opened (counts, sizes, labels), so that training does not stop
//! in the third epoch over a file cut short. What can only be known by decoding, a damaged photograph, is found when it is
//! read, or at once if [`OnDamage::Skip`] asks for it.

mod cifar;
mod folder;
mod idx;
mod pixels;

pub use folder::{ImageFolder, OnDamage};
pub use pixels::PixelSet;

use super::Image;
use crate::error::{Error, Result};

/// Images with a class each. A set of one's own needs these four answers; the [`Loader`](super::Loader) asks for nothing
/// else.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// True if there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of the classes; labels are positions in it.
    fn classes(&self) -> &[String];

    /// The class of image `index`, which is below [`Dataset::len`].
    fn label(&self, index: usize) -> usize;

    /// Image `index`.
    fn image(&self, index: usize) -> Result<Image>;
}

/// Which part of a published set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// The images to learn from.
    Train,
    /// The images to be judged by.
    Test,
}

/// Fails unless both sets have the same classes in the same order: what is learned on one is judged on the other.
pub fn check_same_classes(train: &dyn Dataset, test: &dyn Dataset) -> Result<()> {
    let (ours, theirs) = (train.classes(), test.classes());
    if ours.len() != theirs.len() {
        return Err(Error::mismatch("data sets", "classes", ours.len(), theirs.len()));
    }
    match ours.iter().zip(theirs).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(Error::mismatch("data sets", "name of a class", format!("{i}: {}", ours[i]), &theirs[i])),
    }
}
