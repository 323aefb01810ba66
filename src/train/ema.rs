//! An exponential moving average of the weights: Polyak's averaging as EfficientNet and its kind use it.

use crate::error::{Error, Result};
use crate::graph::Params;
#[cfg(feature = "safetensors")]
use serde::{Deserialize, Serialize};

/// How an average of the weights follows them: `ema ← d·ema + (1 − d)·weights` after every step, running statistics
/// included, with `d = min(decay, (1 + t)/(10 + t))` at update `t`, so that it is not held back by where it began.
///
/// TensorFlow's `ExponentialMovingAverage` with `num_updates`.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f64,
    updates: u64,
    average: Params,
}

/// What a checkpoint keeps of an average beside its values.
#[cfg(feature = "safetensors")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EmaState {
    pub(super) updates: u64,
}

impl Ema {
    /// An average that begins at `params`. EfficientNet's decay is 0.9999.
    ///
    /// # Errors
    /// A decay outside 0 to 1.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        Ema::check(decay)?;
        Ok(Ema { decay, updates: 0, average: params.clone() })
    }

    /// Fails unless `decay` is one.
    pub(super) fn check(decay: f64) -> Result<()> {
        match (0.0..=1.0).contains(&decay) {
            true => Ok(()),
            false => Err(Error::mismatch("ema", "decay", "0 to 1", decay)),
        }
    }

    /// Moves the average towards `params`, which must be those of the same graph.
    pub fn update(&mut self, params: &Params) {
        let t = self.updates as f64;
        let share = 1.0 - self.decay.min((1.0 + t) / (10.0 + t)) as f32;
        for ((_, average), (_, value)) in self.average.iter_mut().zip(params.iter()) {
            average.iter_mut().zip(value.as_slice()).for_each(|(a, v)| *a += share * (v - *a));
        }
        self.updates += 1;
    }

    /// The averaged weights.
    pub fn params(&self) -> &Params {
        &self.average
    }

    #[cfg(feature = "safetensors")]
    pub(super) fn state(&self) -> EmaState {
        EmaState { updates: self.updates }
    }

    #[cfg(feature = "safetensors")]
    pub(super) fn restore(&mut self, state: EmaState, average: Params) {
        (self.updates, self.average) = (state.updates, average);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{ParamDef, ParamKind};
    use crate::tensor::{Init, Tensor};

    #[test]
    fn the_average_follows_quickly_at_first_and_then_slowly() {
        let kind = ParamKind::RunningMean;
        let def = ParamDef { name: "w".into(), shape: vec![1], kind, init: Init::Constant(0.0), auxiliary: false };
        let mut params = Params::blank(&[def]);
        let mut ema = Ema::new(&params, 0.5).unwrap();
        params.set("w", Tensor::from_slice(&[1], &[1.0]).unwrap()).unwrap();
        let mut seen = Vec::new();
        for _ in 0..12 {
            let before = ema.params().get("w").unwrap().as_slice()[0];
            ema.update(&params);
            let after = ema.params().get("w").unwrap().as_slice()[0];
            seen.push((1.0 - after) / (1.0 - before));
        }
        assert!((seen[0] - 0.1).abs() < 1e-6 && (seen[1] - 2.0 / 11.0).abs() < 1e-6, "{seen:?}");
        assert!((seen[11] - 0.5).abs() < 1e-4, "{seen:?}");
        assert!(Ema::new(&params, 1.1).is_err() && Ema::new(&params, f64::NAN).is_err());
    }
}
