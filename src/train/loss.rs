//! Losses: a number to make smaller, and its gradient with respect to the network's output.
//!
//! Sums run in `f64` and in the order of the images, so that a loss neither depends on threads nor drifts with the batch.

use super::batch::Targets;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A loss and where it falls.
#[derive(Debug, Clone, PartialEq)]
pub struct LossValue {
    /// The mean over the batch.
    pub value: f64,
    /// ∂value/∂output, of the output's shape.
    pub gradient: Tensor,
}

/// Something to make smaller: the standard losses, or one's own.
pub trait Loss: std::fmt::Debug + Send + Sync {
    /// Value and gradient for an output `[n, classes]`. An output that is not a number gives a value that is none.
    ///
    /// # Errors
    /// Targets that do not fit the output; a label out of range names its sample.
    fn evaluate(&self, output: &Tensor, targets: &Targets) -> Result<LossValue>;

    /// Fails if a setting cannot work whatever the output.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The loss in words or JSON, to tell a checkpoint of one training from that of another.
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// Cross entropy of the softmax, as PyTorch's: `Σᵢ Σ_c q_ic · −log softmax(xᵢ)_c / D` with
/// `q_ic = w_c · ((1 − ε)·t_ic + ε/C)`.
///
/// `t` is one at the label (or the shares given), `ε` the smoothing, `w` the class weights. `D` is the sum of the labels'
/// weights, so that without weights it is a mean over the images; for shares it is the number of images.
///
/// ```
/// use convzoo::Tensor;
/// use convzoo::train::{CrossEntropy, Loss, Targets};
///
/// let logits = Tensor::from_slice(&[1, 2], &[0.0, 0.0])?;
/// let loss = CrossEntropy::new().evaluate(&logits, &Targets::Labels(vec![1]))?;
/// assert_eq!((loss.value, loss.gradient.as_slice()), (2f64.ln(), &[0.5, -0.5][..]));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CrossEntropy {
    smoothing: f32,
    weights: Option<Vec<f32>>,
}

impl CrossEntropy {
    /// Without smoothing, all classes alike.
    pub fn new() -> Self {
        CrossEntropy::default()
    }

    /// Spreads the share `smoothing` (0 to 1) of every target evenly over all classes. Szegedy et al. 2015.
    pub fn smoothing(self, smoothing: f32) -> Self {
        CrossEntropy { smoothing, ..self }
    }

    /// One weight per class, none negative.
    pub fn class_weights(self, weights: Vec<f32>) -> Self {
        CrossEntropy { weights: Some(weights), ..self }
    }
}

impl Loss for CrossEntropy {
    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.smoothing) {
            return Err(Error::mismatch("cross entropy", "smoothing", "0 to 1", self.smoothing));
        }
        check_weights("cross entropy", &self.weights)
    }

    fn evaluate(&self, output: &Tensor, targets: &Targets) -> Result<LossValue> {
        let [n, classes] = targets.check(output)?;
        self.check()?;
        let weights = class_weights("cross entropy", "class weights", &self.weights, classes)?;
        let denominator: f64 = match targets {
            Targets::Labels(labels) => labels.iter().map(|&label| weights[label]).sum(),
            Targets::Shares(_) => n as f64,
        };
        if denominator == 0.0 {
            return Err(Error::invalid("cross entropy", "every label of the batch has weight 0"));
        }
        let smoothing = f64::from(self.smoothing);
        let mut gradient = Tensor::zeros(output.shape());
        let mut logs = vec![0.0; classes];
        let mut shares = vec![0.0; classes];
        let mut total = 0.0;
        let rows = output.as_slice().chunks_exact(classes).zip(gradient.as_mut_slice().chunks_exact_mut(classes));
        for (i, (row, slopes)) in rows.enumerate() {
            targets.write_row(i, &mut shares);
            for (share, weight) in shares.iter_mut().zip(&weights) {
                *share = weight * ((1.0 - smoothing) * *share + smoothing / classes as f64);
            }
            log_softmax(row, &mut logs);
            let sum: f64 = shares.iter().sum();
            for ((slope, log), share) in slopes.iter_mut().zip(&logs).zip(&shares) {
                // A class without a share adds nothing even where its probability is 0 and the logarithm infinite.
                total -= if *share == 0.0 { 0.0 * log.max(f64::MIN) } else { share * log };
                *slope = ((log.exp() * sum - share) / denominator) as f32;
            }
        }
        Ok(LossValue { value: total / denominator, gradient })
    }
}

/// Binary cross entropy of the sigmoid, each class on its own, as PyTorch's `BCEWithLogitsLoss`: the mean over images and
/// classes of `(1 − t)·x + (1 + (p − 1)·t)·log(1 + e⁻ˣ)`.
///
/// `p` weighs the positive side of each class. Labels stand for shares of 1 for their class and 0 for every other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BinaryCrossEntropy {
    positive_weights: Option<Vec<f32>>,
}

impl BinaryCrossEntropy {
    /// Positive and negative examples alike.
    pub fn new() -> Self {
        BinaryCrossEntropy::default()
    }

    /// How much the presence of each class counts, none negative.
    pub fn positive_weights(self, weights: Vec<f32>) -> Self {
        BinaryCrossEntropy { positive_weights: Some(weights) }
    }
}

impl Loss for BinaryCrossEntropy {
    fn check(&self) -> Result<()> {
        check_weights("binary cross entropy", &self.positive_weights)
    }

    fn evaluate(&self, output: &Tensor, targets: &Targets) -> Result<LossValue> {
        let [n, classes] = targets.check(output)?;
        self.check()?;
        let weights = class_weights("binary cross entropy", "positive weights", &self.positive_weights, classes)?;
        let count = (n * classes) as f64;
        let mut gradient = Tensor::zeros(output.shape());
        let mut shares = vec![0.0; classes];
        let mut total = 0.0;
        let rows = output.as_slice().chunks_exact(classes).zip(gradient.as_mut_slice().chunks_exact_mut(classes));
        for (i, (row, slopes)) in rows.enumerate() {
            targets.write_row(i, &mut shares);
            for (((slope, &x), &t), p) in slopes.iter_mut().zip(row).zip(&shares).zip(&weights) {
                let x = f64::from(x);
                let positive = 1.0 + (p - 1.0) * t;
                // log(1 + e⁻ˣ) without overflow on either side.
                total += (1.0 - t) * x + positive * ((-x.abs()).exp().ln_1p() + (-x).max(0.0));
                *slope = (((1.0 - t) - positive / (1.0 + x.exp())) / count) as f32;
            }
        }
        Ok(LossValue { value: total / count, gradient })
    }
}

impl Targets {
    /// The shares of image `i`; a label is one at its class.
    fn write_row(&self, i: usize, row: &mut [f64]) {
        match self {
            Targets::Labels(labels) => {
                row.fill(0.0);
                row[labels[i]] = 1.0;
            }
            Targets::Shares(shares) => {
                let from = &shares.as_slice()[i * row.len()..(i + 1) * row.len()];
                row.iter_mut().zip(from).for_each(|(to, &from)| *to = f64::from(from));
            }
        }
    }
}

fn class_weights(at: &str, what: &'static str, weights: &Option<Vec<f32>>, classes: usize) -> Result<Vec<f64>> {
    let Some(weights) = weights else { return Ok(vec![1.0; classes]) };
    if weights.len() != classes {
        return Err(Error::mismatch(at, what, format!("{classes}, one per class"), weights.len()));
    }
    Ok(weights.iter().map(|&w| f64::from(w)).collect())
}

fn check_weights(at: &str, weights: &Option<Vec<f32>>) -> Result<()> {
    let odd = weights.iter().flatten().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0));
    match odd {
        None => Ok(()),
        Some((class, weight)) => Err(Error::invalid(at, format!("the weight of class {class} is {weight}"))),
    }
}

fn log_softmax(row: &[f32], logs: &mut [f64]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logs.iter_mut().zip(row).for_each(|(to, &x)| *to = f64::from(x) - f64::from(max));
    let log = logs.iter().map(|x| x.exp()).sum::<f64>().ln();
    logs.iter_mut().for_each(|x| *x -= log);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(rows: usize) -> Tensor {
        Tensor::from_fn(&[rows, 3], |i| [0.3, -1.2, 2.0, 0.0, 4.0, -0.7][i % 6])
    }

    /// Central differences of the value against the gradient.
    fn assert_gradient(loss: &dyn Loss, targets: &Targets) {
        let at = output(targets.len());
        let gradient = loss.evaluate(&at, targets).unwrap().gradient;
        for i in 0..at.len() {
            let moved = |by: f32| {
                let mut moved = at.clone();
                moved.as_mut_slice()[i] += by;
                (f64::from(moved.as_slice()[i]), loss.evaluate(&moved, targets).unwrap().value)
            };
            let ((x0, low), (x1, high)) = (moved(-1e-3), moved(1e-3));
            let slope = (high - low) / (x1 - x0);
            assert!((slope - f64::from(gradient.as_slice()[i])).abs() < 1e-6, "{i}: {slope} {gradient:?}");
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_values() {
        let shares = Targets::Shares(Tensor::from_slice(&[2, 3], &[0.5, 0.25, 0.25, 0.0, 0.1, 0.9]).unwrap());
        let labels = Targets::Labels(vec![2, 0]);
        let plain = CrossEntropy::new();
        let dressed = CrossEntropy::new().smoothing(0.1).class_weights(vec![0.5, 2.0, 1.5]);
        let binary = BinaryCrossEntropy::new().positive_weights(vec![1.0, 3.0, 0.5]);
        for loss in [&plain as &dyn Loss, &dressed, &binary] {
            assert_gradient(loss, &labels);
            assert_gradient(loss, &shares);
        }
    }

    #[test]
    fn certainty_neither_overflows_nor_hides_nan() {
        let sure = Tensor::from_slice(&[1, 2], &[1e30, -1e30]).unwrap();
        let right = CrossEntropy::new().evaluate(&sure, &Targets::Labels(vec![0])).unwrap();
        assert_eq!((right.value, right.gradient.as_slice()), (0.0, &[0.0, 0.0][..]));
        assert!(BinaryCrossEntropy::new().evaluate(&sure, &Targets::Labels(vec![1])).unwrap().value > 1e29);
        let nan = Tensor::from_slice(&[1, 2], &[f32::NAN, 0.0]).unwrap();
        assert!(CrossEntropy::new().evaluate(&nan, &Targets::Labels(vec![1])).unwrap().value.is_nan());
    }

    #[test]
    fn targets_that_do_not_fit_name_the_sample_and_both_numbers() {
        let fails = |loss: &CrossEntropy, targets| loss.evaluate(&output(2), &targets).unwrap_err().to_string();
        let plain = CrossEntropy::new();
        let error = fails(&plain, Targets::Labels(vec![0, 3]));
        assert!(error.contains("sample 1") && error.contains("0 to 2") && error.contains("found 3"), "{error}");
        let error = fails(&plain, Targets::Labels(vec![0]));
        assert!(error.contains("expected 2, found 1"), "{error}");
        let error = fails(&plain, Targets::Shares(Tensor::from_fn(&[2, 3], |i| if i == 4 { -0.5 } else { 0.0 })));
        assert!(error.contains("sample 1") && error.contains("class 1 is -0.5"), "{error}");
        let error = fails(&plain, Targets::Shares(Tensor::zeros(&[2, 4])));
        assert!(error.contains("[2, 3]") && error.contains("[2, 4]"), "{error}");
        let error = fails(&plain.clone().class_weights(vec![1.0]), Targets::Labels(vec![0, 0]));
        assert!(error.contains("expected 3") && error.contains("found 1"), "{error}");
        let error = fails(&plain.clone().class_weights(vec![0.0, 1.0, 1.0]), Targets::Labels(vec![0, 0]));
        assert!(error.contains("weight 0"), "{error}");
        assert!(fails(&plain.smoothing(f32::NAN), Targets::Labels(vec![0, 0])).contains("0 to 1"));
        let map = Tensor::zeros(&[2, 3, 1, 1]);
        assert!(CrossEntropy::new().evaluate(&map, &Targets::Labels(vec![0, 0])).is_err());
    }
}
