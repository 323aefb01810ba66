//! The formulas of optimisers and their constants, plain values.

use super::gradients::PIECE;
use crate::error::{Error, Result};
use crate::exec::Workers;
use serde::{Deserialize, Serialize};

/// What applies to one parameter in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct At {
    /// Learning rate, the group's factor included.
    pub rate: f32,
    /// Weight decay, the group's factor included.
    pub decay: f32,
    /// Which update of this parameter it is, from 1.
    pub update: u64,
}

/// A value per weight that an optimiser remembers from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Its name in checkpoints.
    pub name: &'static str,
    /// What it starts as.
    pub start: f32,
}

/// The formula of an optimiser and its constants.
///
/// One's own is written the same way: name the slots, and say how a gradient changes a weight and them.
pub trait Rule: std::fmt::Debug + Send + Sync {
    /// What is remembered per weight.
    fn slots(&self) -> Vec<Slot>;

    /// Weight decay of a group whose factor is 1.
    fn decay(&self) -> f32;

    /// Fails if a constant cannot work.
    fn check(&self) -> Result<()>;

    /// Moves `weight` along `gradient`; `slots` are those of [`Rule::slots`], each as long as the weight.
    fn update(&self, at: &At, weight: &mut [f32], gradient: &[f32], slots: &mut [&mut [f32]]);

    /// Whether every weight moves by its own gradient and slots alone, so that a parameter may be moved piece by piece, by
    /// several threads. A formula that looks at all of a parameter, at its norm say, must leave this at `false`.
    fn is_element_wise(&self) -> bool {
        false
    }

    /// The formula and its constants in words, to tell a checkpoint of one training from that of another.
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// Moves `weight` as [`Rule::update`] does, with the same bits, piece by piece and shared among `workers` if the rule
/// [allows](Rule::is_element_wise) it.
pub fn update_shared(
    rule: &dyn Rule,
    at: &At,
    weight: &mut [f32],
    gradient: &[f32],
    slots: &mut [&mut [f32]],
    workers: Workers<'_>,
) {
    if weight.len() <= PIECE || !rule.is_element_wise() {
        return rule.update(at, weight, gradient, slots);
    }
    let mut slots: Vec<_> = slots.iter_mut().map(|slot| slot.chunks_mut(PIECE)).collect();
    let pieces = weight.chunks_mut(PIECE).zip(gradient.chunks(PIECE)).map(|(weight, gradient)| {
        let slots: Vec<&mut [f32]> = slots.iter_mut().filter_map(Iterator::next).collect();
        (weight, gradient, slots)
    });
    workers.share(pieces, |(weight, gradient, mut slots)| rule.update(at, weight, gradient, &mut slots));
}

impl<R: Rule + 'static> From<R> for Box<dyn Rule> {
    fn from(rule: R) -> Self {
        Box::new(rule)
    }
}

/// Stochastic gradient descent with momentum, in PyTorch's form: `g ← g + decay·w`, `v ← μ·v + (1 − dampening)·g` (the
/// first time `v ← g`), `w ← w − rate·v`; with Nesterov's look ahead `w ← w − rate·(g + μ·v)`.
///
/// Caffe, and so the papers of its time, multiply the rate into `v` instead; the two differ only while the rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// μ. Default 0.9.
    pub momentum: f32,
    /// Share of the gradient that does not enter the velocity. Default 0.
    pub dampening: f32,
    /// Nesterov's look ahead. Default off.
    pub nesterov: bool,
    /// Weight decay, added to the gradient. Default 0.
    pub decay: f32,
}

impl Default for Sgd {
    fn default() -> Self {
        Sgd { momentum: 0.9, dampening: 0.0, nesterov: false, decay: 0.0 }
    }
}

impl Rule for Sgd {
    fn slots(&self) -> Vec<Slot> {
        if self.momentum == 0.0 { Vec::new() } else { vec![Slot { name: "velocity", start: 0.0 }] }
    }

    fn decay(&self) -> f32 {
        self.decay
    }

    fn check(&self) -> Result<()> {
        within("sgd", "momentum", self.momentum, 0.0..=1.0)?;
        within("sgd", "dampening", self.dampening, 0.0..=1.0)?;
        within("sgd", "decay", self.decay, 0.0..=f32::MAX)?;
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let problem = format!("momentum {} and dampening {}", self.momentum, self.dampening);
            return Err(Error::invalid(
                "sgd",
                format!("Nesterov's form needs momentum and no dampening, found {problem}"),
            ));
        }
        Ok(())
    }

    fn is_element_wise(&self) -> bool {
        true
    }

    fn update(&self, at: &At, weight: &mut [f32], gradient: &[f32], slots: &mut [&mut [f32]]) {
        let At { rate, decay, update } = *at;
        let [velocity] = slots else {
            let pairs = weight.iter_mut().zip(gradient);
            return pairs.for_each(|(w, g)| *w -= rate * (g + decay * *w));
        };
        let mu = self.momentum;
        let enters = if update == 1 { 1.0 } else { 1.0 - self.dampening };
        let ahead = if self.nesterov { (1.0, mu) } else { (0.0, 1.0) };
        for ((w, g), v) in weight.iter_mut().zip(gradient).zip(velocity.iter_mut()) {
            let g = g + decay * *w;
            *v = mu * *v + enters * g;
            *w -= rate * (ahead.0 * g + ahead.1 * *v);
        }
    }
}

/// Adam with decoupled weight decay. Loshchilov & Hutter 2017 (arXiv 1711.05101), as PyTorch's `AdamW`:
/// `w ← w − rate·decay·w`, `m ← β₁m + (1 − β₁)g`, `s ← β₂s + (1 − β₂)g²`,
/// `w ← w − rate/(1 − β₁ᵗ) · m / (√s/√(1 − β₂ᵗ) + ε)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// β₁ and β₂. Default 0.9 and 0.999.
    pub betas: [f64; 2],
    /// ε. Default 1e-8.
    pub epsilon: f32,
    /// Weight decay. Default 0.01.
    pub decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.01 }
    }
}

impl Rule for AdamW {
    fn slots(&self) -> Vec<Slot> {
        ["mean", "square"].map(|name| Slot { name, start: 0.0 }).to_vec()
    }

    fn decay(&self) -> f32 {
        self.decay
    }

    fn check(&self) -> Result<()> {
        for beta in self.betas {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::mismatch("adamw", "beta", "0 to below 1", beta));
            }
        }
        within("adamw", "epsilon", self.epsilon, 0.0..=f32::MAX)?;
        within("adamw", "decay", self.decay, 0.0..=f32::MAX)
    }

    fn is_element_wise(&self) -> bool {
        true
    }

    fn update(&self, at: &At, weight: &mut [f32], gradient: &[f32], slots: &mut [&mut [f32]]) {
        let [means, squares] = slots else { unreachable!("two slots were asked for") };
        let [b1, b2] = self.betas;
        let corrected = |beta: f64| 1.0 - beta.powf(at.update as f64);
        let step = (f64::from(at.rate) / corrected(b1)) as f32;
        let root = corrected(b2).sqrt() as f32;
        let keep = (1.0 - f64::from(at.rate) * f64::from(at.decay)) as f32;
        let (new_mean, keep_square, new_square) = ((1.0 - b1) as f32, b2 as f32, (1.0 - b2) as f32);
        let pairs = weight.iter_mut().zip(gradient).zip(means.iter_mut().zip(squares.iter_mut()));
        for ((w, &g), (m, s)) in pairs {
            *m += new_mean * (g - *m);
            *s = keep_square * *s + new_square * g * g;
            *w = keep * *w - step * (*m / (s.sqrt() / root + self.epsilon));
        }
    }
}

/// RMSprop as TensorFlow has it, and so EfficientNet's recipe (timm's `RMSpropTF`): `g ← g + decay·w`,
/// `s ← s + (1 − α)(g² − s)`, `v ← μ·v + rate·g/√(s + ε)`, `w ← w − v`.
///
/// PyTorch's own differs in three places, each of which EfficientNet notices: here `s` starts at one, ε is inside the
/// root, and the rate enters the velocity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RmsPropTf {
    /// α, how much of the mean square stays. Default 0.9.
    pub alpha: f32,
    /// μ. Default 0.9.
    pub momentum: f32,
    /// ε. Default 1e-3, EfficientNet's.
    pub epsilon: f32,
    /// Weight decay, added to the gradient. Default 0.
    pub decay: f32,
}

impl Default for RmsPropTf {
    fn default() -> Self {
        RmsPropTf { alpha: 0.9, momentum: 0.9, epsilon: 1e-3, decay: 0.0 }
    }
}

impl Rule for RmsPropTf {
    fn slots(&self) -> Vec<Slot> {
        vec![Slot { name: "square", start: 1.0 }, Slot { name: "velocity", start: 0.0 }]
    }

    fn decay(&self) -> f32 {
        self.decay
    }

    fn check(&self) -> Result<()> {
        within("rmsprop", "alpha", self.alpha, 0.0..=1.0)?;
        within("rmsprop", "momentum", self.momentum, 0.0..=1.0)?;
        within("rmsprop", "epsilon", self.epsilon, f32::MIN_POSITIVE..=f32::MAX)?;
        within("rmsprop", "decay", self.decay, 0.0..=f32::MAX)
    }

    fn is_element_wise(&self) -> bool {
        true
    }

    fn update(&self, at: &At, weight: &mut [f32], gradient: &[f32], slots: &mut [&mut [f32]]) {
        let [squares, velocities] = slots else { unreachable!("two slots were asked for") };
        let pairs = weight.iter_mut().zip(gradient).zip(squares.iter_mut().zip(velocities.iter_mut()));
        let new = 1.0 - self.alpha;
        for ((w, g), (s, v)) in pairs {
            let g = g + at.decay * *w;
            *s += new * (g * g - *s);
            *v = self.momentum * *v + at.rate * (g / (*s + self.epsilon).sqrt());
            *w -= *v;
        }
    }
}

fn within(at: &str, what: &'static str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let expected = match (*range.start(), *range.end()) {
        (f32::MIN_POSITIVE, f32::MAX) => "a finite number over 0".to_owned(),
        (start, f32::MAX) => format!("a finite number from {start} on"),
        (start, end) => format!("{start} to {end}"),
    };
    Err(Error::mismatch(at, what, expected, value))
}
