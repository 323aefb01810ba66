//! `Recipe`: everything that decides what training does, but for the network and the data.

use super::{Clip, CrossEntropy, Ema, Groups, Loss, Rule, Schedule};
use crate::error::Result;
use crate::exec::{PlanOptions, TrainOptions};

/// How to train. Plain fields: start from [`Recipe::new`] and change what you like.
///
/// ```
/// use convzoo::train::{CrossEntropy, Groups, Recipe, Schedule, Sgd};
///
/// let sgd = Sgd { decay: 5e-4, ..Sgd::default() };
/// let recipe = Recipe {
///     loss: Box::new(CrossEntropy::new().smoothing(0.1)),
///     groups: Groups::new().weights_decay_alone(),
///     ..Recipe::new(sgd, Schedule::one_cycle(0.1, 5000))
/// };
/// # let _ = recipe;
/// ```
#[derive(Debug)]
pub struct Recipe {
    /// Applied to every head and joined with the heads' weights in the drawing. Default cross entropy.
    pub loss: Box<dyn Loss>,
    /// The optimiser.
    pub rule: Box<dyn Rule>,
    /// Learning rate by step.
    pub schedule: Schedule,
    /// Parameter groups. Default all alike.
    pub groups: Groups,
    /// Bound on the gradients. Default none.
    pub clip: Option<Clip>,
    /// Decay of an average of the weights, which is then what is evaluated. Default none.
    pub ema: Option<f64>,
    /// Seed of dropout and stochastic depth.
    pub seed: u64,
    /// How steps are planned. Its seed and frozen parameters come from this recipe.
    pub training: TrainOptions,
    /// How evaluation is planned.
    pub evaluation: PlanOptions,
}

impl Recipe {
    /// Cross entropy, made smaller by `rule` at the rates of `schedule`.
    pub fn new(rule: impl Into<Box<dyn Rule>>, schedule: Schedule) -> Self {
        Recipe {
            loss: Box::new(CrossEntropy::new()),
            rule: rule.into(),
            schedule,
            groups: Groups::new(),
            clip: None,
            ema: None,
            seed: 0,
            training: TrainOptions::new(),
            evaluation: PlanOptions::new(),
        }
    }

    /// Workers of training and evaluation, the calling thread included, 1 to 4096. Results do not depend on it.
    pub fn threads(self, threads: usize) -> Self {
        let (training, evaluation) = (self.training.threads(threads), self.evaluation.threads(threads));
        Recipe { training, evaluation, ..self }
    }

    /// Fails if a setting cannot work whatever the network; what depends on it, groups, is left to the optimiser.
    pub(super) fn check(&self) -> Result<()> {
        self.schedule.check()?;
        self.rule.check()?;
        self.loss.check()?;
        self.clip.map_or(Ok(()), Clip::check)?;
        self.ema.map_or(Ok(()), Ema::check)?;
        self.training.resolve()?;
        self.evaluation.resolve().map(drop)
    }

    /// What must be the same for a checkpoint to go on as if it had never stopped.
    pub(super) fn describe(&self) -> String {
        let Recipe { schedule, groups, clip, ema, seed, .. } = self;
        let (loss, rule) = (self.loss.describe(), self.rule.describe());
        format!("{loss}; {rule}; {schedule:?}; {groups:?}; clip {clip:?}; ema {ema:?}; seed {seed}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{BinaryCrossEntropy, Sgd};

    #[test]
    fn every_setting_is_checked_before_the_first_step() {
        let schedule = Schedule::cosine(0.1, 9);
        let plain = || Recipe::new(Sgd::default(), schedule.clone());
        assert!(plain().check().is_ok());
        let smoothed = |smoothing| Recipe { loss: Box::new(CrossEntropy::new().smoothing(smoothing)), ..plain() };
        let weighted = |weight| Box::new(BinaryCrossEntropy::new().positive_weights(vec![1.0, weight, 1.0]));
        for (recipe, wanted) in [
            (Recipe { clip: Some(Clip::Norm(-1.0)), ..plain() }, "clip: bound: expected over 0, found -1"),
            (Recipe { clip: Some(Clip::Value(f32::NAN)), ..plain() }, "clip: bound: expected over 0, found NaN"),
            (smoothed(2.0), "cross entropy: smoothing: expected 0 to 1, found 2"),
            (Recipe { loss: weighted(-0.5), ..plain() }, "binary cross entropy: the weight of class 1 is -0.5"),
            (Recipe { ema: Some(1.5), ..plain() }, "ema: decay: expected 0 to 1, found 1.5"),
            (plain().threads(0), "training plan: threads: expected 1 to 4096, found 0"),
            (Recipe { evaluation: PlanOptions::new().threads(5000), ..plain() }, "plan: threads: expected 1 to 4096"),
            (
                Recipe::new(Sgd { decay: -1.0, ..Sgd::default() }, schedule.clone()),
                "sgd: decay: expected a finite number from 0 on, found -1",
            ),
        ] {
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
