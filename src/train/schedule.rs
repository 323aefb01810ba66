//! Learning rates as pure functions of the step.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the rate falls once the warm-up is over; `t` counts steps from there.
///
/// Papers give epochs: multiply by the steps of an epoch, which [`Schedule::rate`] counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Times `factor` every `every` steps: `factor^⌊t/every⌋`. GoogLeNet: 0.96 every 8 epochs; EfficientNet: 0.97 every 2.4.
    Step {
        /// Steps between two falls, not necessarily whole.
        every: f64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// Times `factor` at each of these steps. ResNet on CIFAR-10: 0.1 at 32 000 and 48 000.
    MultiStep {
        /// Steps, ascending.
        at: Vec<u64>,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// Times `factor` every `every` steps, continuously: `factor^(t/every)`.
    Exponential {
        /// Steps after which `factor` is reached.
        every: f64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// Half a cosine down to `floor` at `steps`, then level. Loshchilov & Hutter 2016 (arXiv 1608.03983).
    Cosine {
        /// Steps until the floor.
        steps: u64,
        /// The last rate as a share of the first.
        floor: f64,
    },
    /// Up to the rate by half a cosine and down again: PyTorch's `OneCycleLR`, momentum left alone. Smith 2018
    /// (arXiv 1803.09820).
    OneCycle {
        /// Steps of the whole cycle.
        steps: u64,
        /// Share of them spent rising. PyTorch's 0.3.
        rising: f64,
        /// The rate divided by this is where it starts. PyTorch's 25.
        start: f64,
        /// What it starts at divided by this is where it ends. PyTorch's 10⁴.
        end: f64,
    },
}

/// A learning rate per step: a warm-up, then a [`Decay`].
///
/// ```
/// use convzoo::train::{Decay, Schedule};
///
/// let schedule = Schedule::new(0.1, Decay::MultiStep { at: vec![100, 150], factor: 0.1 }).warm_up(10, 0.0);
/// assert_eq!(schedule.rate(5), 0.05);
/// assert_eq!(schedule.rate(109), 0.1);
/// assert!((schedule.rate(110) - 0.01).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The rate that the decay starts from; of a cycle, the highest.
    pub rate: f64,
    /// How it falls.
    pub decay: Decay,
    /// Steps of the warm-up, before the decay begins.
    pub warm_up: u64,
    /// The warm-up's first rate as a share of `rate`.
    pub warm_up_from: f64,
}

impl Schedule {
    /// The rate `rate`, falling as `decay` says.
    pub fn new(rate: f64, decay: Decay) -> Self {
        Schedule { rate, decay, warm_up: 0, warm_up_from: 0.0 }
    }

    /// Rises linearly from the share `from` to the full rate over the first `steps`, and only then begins to decay.
    pub fn warm_up(self, steps: u64, from: f64) -> Self {
        Schedule { warm_up: steps, warm_up_from: from, ..self }
    }

    /// PyTorch's one-cycle policy over `steps` with its defaults: rising for 30 % of them, from 1/25 of the rate, down to
    /// 1/250 000 of it.
    pub fn one_cycle(rate: f64, steps: u64) -> Self {
        Schedule::new(rate, Decay::OneCycle { steps, rising: 0.3, start: 25.0, end: 1e4 })
    }

    /// Half a cosine from `rate` to 0 over `steps`.
    pub fn cosine(rate: f64, steps: u64) -> Self {
        Schedule::new(rate, Decay::Cosine { steps, floor: 0.0 })
    }

    /// Fails if a setting cannot work, naming it: a rate, share, factor or number of steps out of its range, falls out of
    /// order, a cycle with a rate that is not finite. A factor over 1 makes rates grow without end, and the step fails that
    /// arrives at infinity.
    pub fn check(&self) -> Result<()> {
        let number = |what, value: f64, fits: bool, expected: &str| match fits {
            true => Ok(()),
            false => Err(Error::mismatch("schedule", what, expected, format!("{value:?}"))),
        };
        let over_0 = |what, value: f64| number(what, value, value.is_finite() && value > 0.0, "a finite number over 0");
        let share = |what, value: f64| number(what, value, (0.0..=1.0).contains(&value), "0 to 1");
        let count = |steps: u64| match steps {
            0 => Err(Error::mismatch("schedule", "steps", "at least 1", steps)),
            _ => Ok(()),
        };
        let rate = self.rate;
        number("learning rate", rate, rate.is_finite() && rate >= 0.0, "a finite number from 0 on")?;
        share("warm_up_from", self.warm_up_from)?;
        match &self.decay {
            Decay::Constant => Ok(()),
            Decay::Step { every, factor } | Decay::Exponential { every, factor } => {
                over_0("every", *every)?;
                over_0("factor", *factor)
            }
            Decay::MultiStep { at, factor } => {
                over_0("factor", *factor)?;
                match at.windows(2).find(|pair| pair[0] > pair[1]) {
                    None => Ok(()),
                    Some(pair) => {
                        let expected = format!("ascending steps, so at least {} next", pair[0]);
                        Err(Error::mismatch("schedule", "at", expected, pair[1]))
                    }
                }
            }
            Decay::Cosine { steps, floor } => {
                count(*steps)?;
                share("floor", *floor)
            }
            Decay::OneCycle { steps, rising, start, end } => {
                count(*steps)?;
                share("rising", *rising)?;
                over_0("start", *start)?;
                over_0("end", *end)?;
                let first = 1.0 / start;
                let finite = |factor: f64| factor.is_finite() && (rate * factor).is_finite();
                number("start", *start, finite(first), "a divisor of the rate that leaves it finite")?;
                number("end", *end, finite(first / end), "a divisor of the first rate that leaves it finite")
            }
        }
    }

    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        match step.checked_sub(self.warm_up) {
            Some(t) => self.rate * self.decay.factor(t),
            None => {
                let done = step as f64 / self.warm_up as f64;
                self.rate * (self.warm_up_from + (1.0 - self.warm_up_from) * done)
            }
        }
    }
}

impl Decay {
    fn factor(&self, t: u64) -> f64 {
        let time = t as f64;
        match *self {
            Decay::Constant => 1.0,
            Decay::Step { every, factor } => factor.powf((time / every).floor()),
            Decay::MultiStep { ref at, factor } => factor.powi(at.partition_point(|&step| step <= t) as i32),
            Decay::Exponential { every, factor } => factor.powf(time / every),
            Decay::Cosine { steps, floor } => fall(1.0, floor, time / steps as f64),
            Decay::OneCycle { steps, rising, start, end } => {
                let (first, last) = (1.0 / start, 1.0 / start / end);
                let top = rising * steps as f64 - 1.0;
                match time <= top {
                    true => fall(first, 1.0, time / top.max(f64::MIN_POSITIVE)),
                    false => fall(1.0, last, (time - top) / (steps as f64 - 1.0 - top)),
                }
            }
        }
    }
}

/// Half a cosine from `from` at 0 to `to` at 1, level beyond.
fn fall(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + (PI * done.clamp(0.0, 1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_come_at_their_steps() {
        let falls = |decay: Decay, steps: &[u64]| -> Vec<f64> {
            let schedule = Schedule::new(1.0, decay);
            steps.iter().map(|&t| (schedule.rate(t) * 1e6).round() / 1e6).collect()
        };
        assert_eq!(falls(Decay::Step { every: 2.4, factor: 0.5 }, &[0, 2, 3, 4, 5]), [1.0, 1.0, 0.5, 0.5, 0.25]);
        assert_eq!(falls(Decay::MultiStep { at: vec![2, 4], factor: 0.1 }, &[1, 2, 3, 4]), [1.0, 0.1, 0.1, 0.01]);
        assert_eq!(falls(Decay::Exponential { every: 2.0, factor: 0.25 }, &[0, 1, 2]), [1.0, 0.5, 0.25]);
        assert_eq!(falls(Decay::Cosine { steps: 4, floor: 0.5 }, &[0, 2, 4, 9]), [1.0, 0.75, 0.5, 0.5]);
        let one = Schedule::one_cycle(1.0, 100);
        assert!((one.rate(0) - 0.04).abs() < 1e-12 && one.rate(29) == 1.0);
        assert!((one.rate(99) - 4e-6).abs() < 1e-12 && one.rate(500) == one.rate(99));
    }

    #[test]
    fn a_warm_up_delays_the_decay() {
        let schedule = Schedule::cosine(0.2, 10).warm_up(4, 0.25);
        assert_eq!([0, 2, 4].map(|t| schedule.rate(t)), [0.05, 0.125, 0.2]);
        assert!(schedule.rate(14) < 1e-12);
    }

    #[test]
    fn schedules_that_cannot_work_are_errors() {
        let bad = [
            Schedule::new(f64::NAN, Decay::Constant),
            Schedule::new(-1.0, Decay::Constant),
            Schedule::cosine(0.1, 0),
            Schedule::one_cycle(0.1, 0),
            Schedule::new(0.1, Decay::Step { every: 0.0, factor: 0.1 }),
            Schedule::new(0.1, Decay::MultiStep { at: vec![4, 2], factor: 0.1 }),
            Schedule::new(0.1, Decay::Constant).warm_up(5, 2.0),
        ];
        for schedule in bad {
            assert!(schedule.check().is_err(), "{schedule:?}");
        }
        let cycle = |start, end| Schedule::new(1e10, Decay::OneCycle { steps: 9, rising: 0.3, start, end });
        for (schedule, wanted) in [
            (
                cycle(1e-300, 1e-300),
                "schedule: start: expected a divisor of the rate that leaves it finite, found 1e-300",
            ),
            (cycle(25.0, 1e-305), "schedule: end: expected a divisor"),
            (cycle(25.0, -1.0), "schedule: end: expected a finite number over 0, found -1.0"),
            (Schedule::cosine(0.1, 0), "schedule: steps: expected at least 1, found 0"),
            (Schedule::new(0.1, Decay::MultiStep { at: vec![4, 2], factor: 0.1 }), "at least 4 next, found 2"),
            (Schedule::new(0.1, Decay::Constant).warm_up(5, 2.0), "schedule: warm_up_from: expected 0 to 1, found 2.0"),
        ] {
            let error = schedule.check().unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('{'), "{error}");
        }
        for steps in 1..5 {
            let cycle = Schedule::one_cycle(0.1, steps);
            assert!(cycle.check().is_ok() && (0..9).all(|t| cycle.rate(t).is_finite()), "{steps}");
        }
    }
}
