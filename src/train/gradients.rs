//! Gradients gathered over one or several batches, measured and clipped.

use crate::error::{Error, Result};
use crate::exec::{Gradients, Workers};
use crate::graph::{ParamDef, ParamId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A bound on gradients, against the occasional batch that would undo the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Clip {
    /// If the Euclidean norm of all gradients together exceeds this, all are scaled down to it. Pascanu et al. 2013.
    Norm(f32),
    /// Every element is kept within ± this.
    Value(f32),
}

impl Clip {
    /// Fails unless the bound is over 0.
    pub(super) fn check(self) -> Result<()> {
        let (Clip::Norm(bound) | Clip::Value(bound)) = self;
        match bound > 0.0 {
            true => Ok(()),
            false => Err(Error::mismatch("clip", "bound", "over 0", bound)),
        }
    }
}

/// The weighted sum of the gradients of several batches, one tensor per parameter that has a gradient.
///
/// Accumulating lets a batch be larger than memory: the mean over two halves, each weighted by its images, is the mean
/// over the whole (batch norm, which sees each half on its own, aside).
#[derive(Debug, Clone)]
pub struct GradientSum {
    sums: Vec<Option<Tensor>>,
    weight: f64,
}

impl GradientSum {
    /// Nothing yet, for a graph of so many parameters.
    pub fn new(parameters: usize) -> Self {
        GradientSum { sums: vec![None; parameters], weight: 0.0 }
    }

    /// Adds `gradients` times `weight`, which must be over 0: the number of images behind them.
    pub fn add(&mut self, gradients: &Gradients, weight: f64) -> Result<()> {
        if weight.is_nan() || weight <= 0.0 {
            return Err(Error::mismatch("gradients", "weight", "over 0", weight));
        }
        for index in 0..self.sums.len() {
            if let Some(gradient) = gradients.of(ParamId(index)) {
                self.add_one(index, gradient, weight)?;
            }
        }
        self.weight += weight;
        Ok(())
    }

    /// The gradients named by `pairs` of parameter index and tensor, as they are: for gradients from elsewhere.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (usize, Tensor)>) -> Result<Self> {
        let mut sum = GradientSum { sums: Vec::new(), weight: 1.0 };
        pairs.into_iter().try_for_each(|(index, gradient)| sum.add_one(index, &gradient, 1.0))?;
        Ok(sum)
    }

    /// Whether there is memory already that gradients are summed in.
    pub(super) fn has_memory(&self) -> bool {
        self.sums.iter().any(Option::is_some)
    }

    /// The memory that gradients are summed in, for a plan to write the first of them to.
    pub(super) fn memory(&mut self) -> &mut [Option<Tensor>] {
        &mut self.sums
    }

    /// Counts gradients that were written to [`memory`](Self::memory), while the sum was empty, `weight` times.
    pub(super) fn begin(&mut self, weight: f64) {
        self.scale(weight as f32);
        self.weight = weight;
    }

    fn add_one(&mut self, index: usize, gradient: &Tensor, weight: f64) -> Result<()> {
        if self.sums.len() <= index {
            self.sums.resize(index + 1, None);
        }
        let weight = weight as f32;
        match &mut self.sums[index] {
            // An emptied sum is kept for its memory; `weight` tells that it is empty.
            Some(sum) if sum.shape() == gradient.shape() && self.weight == 0.0 => {
                let pairs = sum.as_mut_slice().iter_mut().zip(gradient.as_slice());
                pairs.for_each(|(sum, g)| *sum = weight * g);
            }
            Some(sum) if sum.shape() == gradient.shape() => {
                let pairs = sum.as_mut_slice().iter_mut().zip(gradient.as_slice());
                pairs.for_each(|(sum, g)| *sum += weight * g);
            }
            Some(sum) => {
                let (expected, found) = (format!("{:?}", sum.shape()), format!("{:?}", gradient.shape()));
                return Err(Error::mismatch(format!("parameter {index}"), "shape of the gradient", expected, found));
            }
            empty => *empty = Some(Tensor::from_fn(gradient.shape(), |i| weight * gradient.as_slice()[i])),
        }
        Ok(())
    }

    /// The sum of the weights so far; 0 if nothing was added.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Divides by the sum of the weights, so that what was summed becomes a mean.
    pub fn average(&mut self) {
        if self.weight != 0.0 && self.weight != 1.0 {
            self.scale((1.0 / self.weight) as f32);
            self.weight = 1.0;
        }
    }

    fn scale(&mut self, factor: f32) {
        self.values_mut().for_each(|g| *g *= factor);
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        self.sums.iter_mut().flatten().flat_map(|t| t.as_mut_slice())
    }

    /// Empties the sum and keeps its memory.
    pub fn clear(&mut self) {
        self.weight = 0.0;
    }

    /// The gradient of a parameter of the same graph, if it has one.
    pub fn of(&self, id: ParamId) -> Option<&Tensor> {
        self.at(id.index())
    }

    pub(super) fn at(&self, index: usize) -> Option<&Tensor> {
        self.sums.get(index)?.as_ref().filter(|_| self.weight != 0.0)
    }

    /// The Euclidean norm of all gradients together.
    pub fn norm(&self) -> f64 {
        self.sums.iter().flatten().map(|sum| squares(sum.as_slice())).sum::<f64>().sqrt()
    }

    /// The Euclidean norm of each gradient beside its parameter.
    pub fn norms<'a>(&'a self, defs: &'a [ParamDef]) -> impl Iterator<Item = (&'a ParamDef, f64)> {
        let pairs = defs.iter().enumerate();
        pairs.filter_map(|(i, def)| Some((def, squares(self.at(i)?.as_slice()).sqrt())))
    }

    /// Bounds the gradients and gives the norm they had before.
    ///
    /// # Errors
    /// A bound that is not over 0.
    pub fn clip(&mut self, clip: Option<Clip>) -> Result<f64> {
        let norm = self.norm();
        clip.map_or(Ok(()), Clip::check)?;
        match clip {
            None => {}
            // PyTorch adds this millionth too, and clips only what it makes smaller.
            Some(Clip::Norm(bound)) => {
                let factor = f64::from(bound) / (norm + 1e-6);
                if factor < 1.0 {
                    self.scale(factor as f32);
                }
            }
            Some(Clip::Value(bound)) => self.values_mut().for_each(|g| *g = g.clamp(-bound, bound)),
        }
        Ok(norm)
    }
}

/// The sum of the squares, in eight sums that do not wait for each other.
pub(super) fn squares(values: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let (runs, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for run in runs {
        sums.iter_mut().zip(run).for_each(|(sum, &v)| *sum += square(v));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| square(v)).sum::<f64>()
}

/// Values that a worker goes through at a time.
pub(super) const PIECE: usize = 64 << 10;

/// As [`squares`], the sums of pieces added up in order.
pub(super) fn shared_squares(values: &[f32], workers: Workers<'_>) -> f64 {
    if values.len() <= PIECE {
        return squares(values);
    }
    let mut sums = vec![0.0; values.len().div_ceil(PIECE)];
    workers.share(values.chunks(PIECE).zip(&mut sums), |(piece, sum)| *sum = squares(piece));
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f32]) -> GradientSum {
        GradientSum::from_pairs([(1, Tensor::from_slice(&[values.len()], values).unwrap())]).unwrap()
    }

    #[test]
    fn clipping_scales_the_norm_or_bounds_each_element() {
        let mut gradients = sum(&[3.0, -4.0]);
        assert_eq!(gradients.clip(Some(Clip::Norm(10.0))).unwrap(), 5.0);
        assert_eq!(gradients.at(1).unwrap().as_slice(), [3.0, -4.0]);
        assert_eq!(gradients.clip(Some(Clip::Norm(0.5))).unwrap(), 5.0);
        assert!((gradients.norm() - 0.5).abs() < 1e-6);
        let mut gradients = sum(&[3.0, -4.0, 0.5]);
        gradients.clip(Some(Clip::Value(1.0))).unwrap();
        assert_eq!(gradients.at(1).unwrap().as_slice(), [1.0, -1.0, 0.5]);
        assert!(gradients.clip(Some(Clip::Norm(f32::NAN))).is_err() && gradients.at(0).is_none());
    }

    #[test]
    fn an_emptied_sum_forgets() {
        let mut gradients = sum(&[3.0]);
        gradients.clear();
        assert!(gradients.at(1).is_none());
        gradients.add_one(1, &Tensor::from_slice(&[1], &[7.0]).unwrap(), 2.0).unwrap();
        gradients.weight += 2.0;
        gradients.add_one(1, &Tensor::from_slice(&[1], &[1.0]).unwrap(), 2.0).unwrap();
        gradients.weight += 2.0;
        gradients.average();
        assert_eq!(gradients.at(1).unwrap().as_slice(), [4.0]);
        assert!(gradients.add_one(1, &Tensor::zeros(&[2]), 1.0).is_err());
    }
}
