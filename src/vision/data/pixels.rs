//! `PixelSet`: a data set of small images of one size, held in memory.

use super::Dataset;
use crate::error::{Error, Result};
use crate::vision::Image;

/// Images of one size in memory, a byte per sample: the MNIST family, CIFAR, or one's own arrays.
///
/// ```
/// use convzoo::vision::data::{Dataset, PixelSet};
///
/// let names = vec!["dark".to_owned(), "light".to_owned()];
/// let set = PixelSet::new([1, 1], vec![10, 240], vec![0, 1], names)?;
/// assert_eq!(set.image(1)?.pixels(), [240; 3]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Clone)]
pub struct PixelSet {
    size: [usize; 2],
    /// Rows from the top, one byte a pixel (grey) or three (RGB).
    pixels: Vec<u8>,
    labels: Vec<u8>,
    classes: Vec<String>,
}

impl PixelSet {
    /// Images of `[height, width]` one after the other, each grey (one byte a pixel) or RGB (three, interleaved), told
    /// apart by the number of bytes; a label each; and the classes' names.
    ///
    /// # Errors
    /// No image; a number of bytes that is neither; a label without a class, which names the image.
    pub fn new(size: [usize; 2], pixels: Vec<u8>, labels: Vec<u8>, classes: Vec<String>) -> Result<Self> {
        let at = "data set";
        if labels.is_empty() || size.contains(&0) {
            let [height, width] = size;
            let problem = format!("{} images of {height}×{width} pixels: there is nothing in it", labels.len());
            return Err(Error::invalid(at, problem));
        }
        let grey = size[0].checked_mul(size[1]).and_then(|n| n.checked_mul(labels.len()));
        if ![grey, grey.and_then(|n| n.checked_mul(3))].contains(&Some(pixels.len())) {
            let expected = format!("{} images of {size:?}, 1 or 3 bytes a pixel", labels.len());
            return Err(Error::mismatch(at, "bytes", expected, pixels.len()));
        }
        if let Some(image) = labels.iter().position(|&label| usize::from(label) >= classes.len()) {
            let expected = format!("below {}, the number of classes", classes.len());
            return Err(Error::mismatch(format!("image {image}"), "label", expected, labels[image]));
        }
        Ok(PixelSet { size, pixels, labels, classes })
    }

    /// `[height, width]` of every image.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// 1 if the images are grey, 3 if they have colours.
    pub fn channels(&self) -> usize {
        self.pixels.len() / (self.labels.len() * self.size[0] * self.size[1])
    }

    /// The same images with other names for the classes, which must be as many.
    pub fn named(self, classes: Vec<String>) -> Result<Self> {
        if classes.len() != self.classes.len() {
            return Err(Error::mismatch("data set", "names of classes", self.classes.len(), classes.len()));
        }
        Ok(PixelSet { classes, ..self })
    }

    /// The first `count` images, or all if there are fewer; at least one. For trying things out.
    pub fn first(mut self, count: usize) -> Self {
        let count = count.clamp(1, self.labels.len());
        self.pixels.truncate(self.pixels.len() / self.labels.len() * count);
        self.labels.truncate(count);
        self
    }
}

impl Dataset for PixelSet {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> usize {
        usize::from(self.labels[index])
    }

    fn image(&self, index: usize) -> Result<Image> {
        let bytes = self.pixels.len() / self.labels.len();
        let pixels = &self.pixels[index * bytes..(index + 1) * bytes];
        let rgb = match self.channels() {
            1 => pixels.iter().flat_map(|&v| [v; 3]).collect(),
            _ => pixels.to_vec(),
        };
        Image::from_rgb(self.size[1], self.size[0], rgb)
    }
}

impl std::fmt::Debug for PixelSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [height, width] = self.size;
        write!(f, "PixelSet({} × {height}×{width}×{}, {} classes)", self.len(), self.channels(), self.classes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_labels_are_checked_at_once() {
        let names = || vec!["a".to_owned(), "b".to_owned()];
        let fails = |bytes: usize, labels: Vec<u8>| {
            PixelSet::new([2, 2], vec![0; bytes], labels, names()).unwrap_err().to_string()
        };
        assert!(fails(0, vec![]).contains("nothing in it"));
        let error = fails(9, vec![0, 1]);
        assert!(error.contains("2 images of [2, 2]") && error.contains("found 9"), "{error}");
        let error = fails(8, vec![0, 2]);
        assert!(error.contains("image 1") && error.contains("below 2") && error.contains("found 2"), "{error}");
        let set = PixelSet::new([2, 2], vec![7; 24], vec![0, 1], names()).unwrap();
        assert_eq!((set.channels(), set.len(), set.first(1).len()), (3, 2, 1));
    }
}
