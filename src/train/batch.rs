//! What a training step reads: images and what they should be recognised as.

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// What the images of a batch should be recognised as.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// One class per image.
    Labels(Vec<usize>),
    /// A share of every class per image, `[n, classes]`: mixtures, or several classes at once.
    Shares(Tensor),
}

impl Targets {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Targets::Labels(labels) => labels.len(),
            Targets::Shares(shares) => shares.shape().first().copied().unwrap_or(0),
        }
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of image `i`: its label, or the first of its largest shares.
    pub fn class(&self, i: usize) -> usize {
        match self {
            Targets::Labels(labels) => labels[i],
            Targets::Shares(shares) => {
                let classes = shares.len() / self.len().max(1);
                let row = &shares.as_slice()[i * classes..(i + 1) * classes];
                // Of equal shares the first, hence the comparison from the back.
                row.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class)
            }
        }
    }

    /// Fails unless there is a target for each row of `output`, `[n, classes]`, every label is below `classes`, and
    /// shares are as many as classes, finite and not negative. Gives `[n, classes]`.
    pub(super) fn check(&self, output: &Tensor) -> Result<[usize; 2]> {
        let &[n, classes] = output.shape() else {
            let found = format!("{:?}", output.shape());
            return Err(Error::mismatch("loss", "shape of the output", "[n, classes]", found));
        };
        if self.len() != n {
            return Err(Error::mismatch("loss", "targets for the rows of the output", n, self.len()));
        }
        if n == 0 || classes == 0 {
            return Err(Error::invalid("loss", format!("an output of {n} images and {classes} classes has none")));
        }
        match self {
            Targets::Labels(labels) => {
                if let Some((i, label)) = labels.iter().enumerate().find(|(_, label)| **label >= classes) {
                    let expected = format!("0 to {}", classes - 1);
                    return Err(Error::mismatch(format!("sample {i} of the batch"), "label", expected, label));
                }
            }
            Targets::Shares(shares) => {
                if shares.shape() != [n, classes] {
                    let (expected, found) = (format!("[{n}, {classes}]"), format!("{:?}", shares.shape()));
                    return Err(Error::mismatch("loss", "shape of the shares", expected, found));
                }
                let odd = |share: &f32| !(share.is_finite() && *share >= 0.0);
                if let Some(at) = shares.as_slice().iter().position(odd) {
                    let problem = format!("the share of class {} is {}", at % classes, shares.as_slice()[at]);
                    return Err(Error::invalid(format!("sample {} of the batch", at / classes), problem));
                }
            }
        }
        Ok([n, classes])
    }
}

/// Images `[n, c, h, w]` and their targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// What the network sees.
    pub images: Tensor,
    /// What it should answer.
    pub targets: Targets,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The shape of the images as a plan wants it. Fails unless it is `[n, c, h, w]` with as many images as targets, and at
    /// least one.
    pub fn shape(&self) -> Result<[usize; 4]> {
        let found = || format!("{:?}", self.images.shape());
        let shape = <[usize; 4]>::try_from(self.images.shape())
            .map_err(|_| Error::mismatch("batch", "shape of the images", "[n, c, h, w]", found()))?;
        if shape[0] != self.len() {
            return Err(Error::mismatch("batch", "targets for the images", shape[0], self.len()));
        }
        if self.is_empty() {
            return Err(Error::invalid("batch", "there is no image in it"));
        }
        Ok(shape)
    }
}

/// Where an epoch's batches come from: a loader, or batches kept in memory.
pub trait Batches {
    /// Batches in an epoch.
    fn batches(&self) -> u64;

    /// The batches of epoch `epoch`, from number `first` on. The same numbers give the same batches, or training cannot
    /// be resumed as if it had never stopped.
    fn epoch(&self, epoch: u64, first: u64) -> Box<dyn Iterator<Item = Result<Batch>> + '_>;
}

impl Batches for Vec<Batch> {
    fn batches(&self) -> u64 {
        self.len() as u64
    }

    fn epoch(&self, _: u64, first: u64) -> Box<dyn Iterator<Item = Result<Batch>> + '_> {
        Box::new(self.iter().skip(first as usize).cloned().map(Ok))
    }
}
