//! What an epoch came to: the loss of every head, and how often the right class was among the first.

use super::batch::Targets;
use crate::tensor::Tensor;
#[cfg(feature = "safetensors")]
use serde::{Deserialize, Serialize};

/// Sums over images, from which means follow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    images: u64,
    total: f64,
    losses: Vec<(String, f64)>,
    top1: u64,
    top5: u64,
}

/// The sums as whole numbers, so that text keeps every bit.
#[cfg(feature = "safetensors")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct MetricsState {
    images: u64,
    total: u64,
    losses: Vec<(String, u64)>,
    top1: u64,
    top5: u64,
}

impl Metrics {
    /// Adds a batch: the mean loss of each head with the weight it is joined by, and the primary output.
    pub fn add(&mut self, heads: &[(&str, f64, f64)], logits: &Tensor, targets: &Targets) {
        let n = targets.len() as f64;
        for &(name, value, weight) in heads {
            self.total += n * value * weight;
            match self.losses.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += n * value,
                None => self.losses.push((name.to_owned(), n * value)),
            }
        }
        self.images += targets.len() as u64;
        let classes = logits.len() / targets.len().max(1);
        for (i, row) in logits.as_slice().chunks_exact(classes.max(1)).enumerate() {
            let place = place(row, targets.class(i));
            self.top1 += u64::from(place < 1);
            self.top5 += u64::from(place < 5);
        }
    }

    /// Images so far.
    pub fn images(&self) -> u64 {
        self.images
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.images.max(1) as f64
    }

    /// The mean of what training makes smaller: the heads' losses joined with their weights.
    pub fn loss(&self) -> f64 {
        self.mean(self.total)
    }

    /// The mean loss of each head, unweighted.
    pub fn losses(&self) -> impl ExactSizeIterator<Item = (&str, f64)> {
        self.losses.iter().map(|(name, sum)| (name.as_str(), self.mean(*sum)))
    }

    /// Percent of the images whose class came first.
    pub fn top1(&self) -> f64 {
        100.0 * self.mean(self.top1 as f64)
    }

    /// Percent of the images whose class was among the first five.
    pub fn top5(&self) -> f64 {
        100.0 * self.mean(self.top5 as f64)
    }

    #[cfg(feature = "safetensors")]
    pub(super) fn state(&self) -> MetricsState {
        let Metrics { images, total, losses, top1, top5 } = self.clone();
        let losses = losses.into_iter().map(|(name, sum)| (name, sum.to_bits())).collect();
        MetricsState { images, total: total.to_bits(), losses, top1, top5 }
    }

    #[cfg(feature = "safetensors")]
    pub(super) fn restore(state: MetricsState) -> Self {
        let MetricsState { images, total, losses, top1, top5 } = state;
        let losses = losses.into_iter().map(|(name, sum)| (name, f64::from_bits(sum))).collect();
        Metrics { images, total: f64::from_bits(total), losses, top1, top5 }
    }
}

/// How many classes come before `class`; of equal values the first, and NaN comes last.
fn place(row: &[f32], class: usize) -> usize {
    let Some(&own) = row.get(class).filter(|v| !v.is_nan()) else { return usize::MAX };
    row.iter().enumerate().filter(|(i, v)| **v > own || (**v == own && *i < class)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_images_whatever_the_batches() {
        let mut metrics = Metrics::default();
        let logits = Tensor::from_slice(&[2, 7], &[6., 5., 4., 3., 2., 1., 0., 0., 9., 1., 1., 1., 1., 1.]).unwrap();
        metrics.add(&[("logits", 1.0, 1.0), ("aux1", 2.0, 0.3)], &logits, &Targets::Labels(vec![4, 1]));
        let one = Tensor::from_slice(&[1, 7], &[f32::NAN; 7]).unwrap();
        metrics.add(&[("logits", 4.0, 1.0), ("aux1", 5.0, 0.3)], &one, &Targets::Labels(vec![0]));
        assert_eq!(metrics.images(), 3);
        assert_eq!(metrics.losses().collect::<Vec<_>>(), [("logits", 2.0), ("aux1", 3.0)]);
        assert!((metrics.loss() - 2.9).abs() < 1e-12);
        assert!((metrics.top1() - 100.0 / 3.0).abs() < 1e-9 && (metrics.top5() - 200.0 / 3.0).abs() < 1e-9);
        #[cfg(feature = "safetensors")]
        assert_eq!(Metrics::restore(metrics.state()), metrics);
        assert_eq!(place(&[1.0, 1.0, 1.0], 2), 2);
    }
}
