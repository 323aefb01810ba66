//! Mixing the images of a batch, and their targets with them.

use super::Draws;
use crate::error::{Error, Result};
use crate::random::Stream;
use crate::tensor::Tensor;
use crate::train::{Batch, Targets};
use serde::{Deserialize, Serialize};

/// Mixup (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899): every image with the one
/// before it in the batch, the first with the last, in a proportion λ drawn from Beta(α, α) once per batch.
///
/// Mixup blends pixels, `λ·x + (1 − λ)·x'`; CutMix pastes a rectangle of the share 1 − λ. Targets are shared out likewise.
/// With both, a coin decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// α of mixup, if wanted; torchvision's recipes take 0.2.
    pub mixup: Option<f64>,
    /// α of CutMix, if wanted; torchvision's recipes take 1.
    pub cutmix: Option<f64>,
}

impl Mix {
    /// Fails if α is not over 0 and at most 8.
    pub fn check(&self) -> Result<()> {
        match [self.mixup, self.cutmix].into_iter().flatten().find(|alpha| !(*alpha > 0.0 && *alpha <= 8.0)) {
            Some(alpha) => Err(Error::mismatch("mix", "alpha", "over 0, up to 8", alpha)),
            None => Ok(()),
        }
    }

    /// The mixed batch, for `classes` classes. The same stream mixes alike.
    pub fn apply(&self, batch: Batch, classes: usize, stream: Stream) -> Result<Batch> {
        let mut draws = Draws::new(stream);
        let heads = draws.unit() < 0.5;
        let (cut, alpha) = match (self.mixup, self.cutmix) {
            (None, None) => return Ok(batch),
            (Some(alpha), None) => (false, alpha),
            (None, Some(alpha)) => (true, alpha),
            (Some(mixup), Some(cutmix)) => {
                if heads {
                    (true, cutmix)
                } else {
                    (false, mixup)
                }
            }
        };
        self.check()?;
        let shape = batch.shape()?;
        let shares = shares(&batch.targets, classes)?;
        let kept = beta(alpha, &mut draws);
        let (images, kept) = match cut {
            false => (blend(&batch.images, shape[0], kept as f32), kept),
            true => paste(&batch.images, shape, kept, &mut draws),
        };
        Ok(Batch { images, targets: Targets::Shares(blend(&shares, shape[0], kept as f32)) })
    }
}

/// One row of shares per image.
fn shares(targets: &Targets, classes: usize) -> Result<Tensor> {
    let labels = match targets {
        Targets::Shares(shares) => return Ok(shares.clone()),
        Targets::Labels(labels) => labels,
    };
    let mut shares = Tensor::try_zeros(&[labels.len(), classes])?;
    for (i, (row, &label)) in shares.as_mut_slice().chunks_exact_mut(classes).zip(labels).enumerate() {
        let wrong = || Error::mismatch(format!("sample {i} of the batch"), "label", format!("below {classes}"), label);
        *row.get_mut(label).ok_or_else(wrong)? = 1.0;
    }
    Ok(shares)
}

/// The row before each of `n` rows; the last before the first.
fn partner(i: usize, n: usize) -> usize {
    (i + n - 1) % n
}

fn blend(rows: &Tensor, n: usize, kept: f32) -> Tensor {
    let (len, values) = (rows.len() / n, rows.as_slice());
    Tensor::from_fn(rows.shape(), |i| {
        let other = values[partner(i / len, n) * len + i % len];
        kept * values[i] + (1.0 - kept) * other
    })
}

/// Pastes a rectangle of the partner, and gives the share of the area that was really kept.
fn paste(images: &Tensor, [n, c, h, w]: [usize; 4], kept: f64, draws: &mut Draws) -> (Tensor, f64) {
    let half = 0.5 * (1.0 - kept).sqrt();
    let mut span = |side: usize| {
        let (middle, reach) = (draws.below(side), (half * side as f64) as usize);
        middle.saturating_sub(reach)..(middle + reach).min(side)
    };
    let (columns, rows) = (span(w), span(h));
    let mut mixed = images.clone();
    let values = images.as_slice();
    for (i, plane) in mixed.as_mut_slice().chunks_exact_mut(h * w).enumerate() {
        let from = (partner(i / c, n) * c + i % c) * h * w;
        for y in rows.clone() {
            let row = y * w + columns.start..y * w + columns.end;
            plane[row.clone()].copy_from_slice(&values[from + row.start..from + row.end]);
        }
    }
    (mixed, 1.0 - (columns.len() * rows.len()) as f64 / (h * w) as f64)
}

/// A draw from Beta(α, α): Jöhnk's method, whose tries grow with α, hence its limit.
fn beta(alpha: f64, draws: &mut Draws) -> f64 {
    loop {
        let [x, y] = [(); 2].map(|()| (1.0 - draws.unit()).ln() / alpha); // logarithms of U^(1/α), which may underflow
        let (a, b) = (x.exp(), y.exp());
        if a + b <= 1.0 {
            return if a + b > 0.0 { a / (a + b) } else { 1.0 / (1.0 + (y - x).exp()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let images = Tensor::from_fn(&[3, 2, 6, 5], |i| (i / 60) as f32);
        Batch { images, targets: Targets::Labels(vec![0, 1, 2]) }
    }

    /// Images hold the number of their sample, so their mean tells the proportion.
    fn assert_shares_follow_pixels(mixed: &Batch) {
        let Targets::Shares(shares) = &mixed.targets else { panic!("labels stayed labels") };
        for (i, image) in mixed.images.as_slice().chunks(60).enumerate() {
            let row = &shares.as_slice()[i * 3..][..3];
            let mean = image.iter().sum::<f32>() / 60.0;
            let wanted: f32 = row.iter().zip([0.0, 1.0, 2.0]).map(|(share, value)| share * value).sum();
            assert!((mean - wanted).abs() < 1e-5 && (row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{mean} {row:?}");
            assert_eq!(row[(i + 1) % 3], 0.0, "mixed with the one before");
        }
    }

    #[test]
    fn targets_are_shared_as_pixels_are() {
        let both = Mix { mixup: Some(0.4), cutmix: Some(1.0) };
        let mut kinds = [0, 0];
        for i in 0..100 {
            let mixed = both.apply(batch(), 3, Stream::new(0).fork(i)).unwrap();
            assert_shares_follow_pixels(&mixed);
            let whole = mixed.images.as_slice().iter().all(|v| v.fract() == 0.0);
            kinds[usize::from(whole)] += 1;
            assert_eq!(mixed, both.apply(batch(), 3, Stream::new(0).fork(i)).unwrap());
        }
        assert!(kinds.iter().all(|&n| n > 20), "{kinds:?}");
        assert_eq!(Mix::default().apply(batch(), 3, Stream::new(0)).unwrap(), batch());
        let error = both.apply(batch(), 2, Stream::new(1)).unwrap_err().to_string();
        assert!(error.contains("sample 2") && error.contains("below 2"), "{error}");
        assert!(Mix { mixup: Some(f64::NAN), cutmix: None }.check().is_err());
    }

    #[test]
    fn proportions_have_the_mean_and_variance_of_beta() {
        for alpha in [1e-3, 0.2, 1.0, 4.0] {
            let mut draws = Draws::new(Stream::new(9));
            let values: Vec<f64> = (0..20_000).map(|_| beta(alpha, &mut draws)).collect();
            let mean = values.iter().sum::<f64>() / 2e4;
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2e4;
            let wanted = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.015 && (var / wanted - 1.0).abs() < 0.05, "{alpha}: {mean} {var}");
        }
    }
}
