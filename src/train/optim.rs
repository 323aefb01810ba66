//! Optimisers: how a gradient moves a weight.
//!
//! A [`Rule`] is the formula and its constants, a plain value; [`Optimizer`] holds the memory the formula needs per
//! parameter and applies it group by group. The learning rate comes from outside with every step.

use super::gradients::{GradientSum, PIECE};
use super::groups::Groups;
use crate::error::{Error, Result};
use crate::exec::Workers;
use crate::graph::{ParamDef, Params};
use crate::tensor::Tensor;
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
    let pieces = weight.chunks_mut(PIECE).zip(gradient.chunks(PIECE));
    let count = pieces.len();
    let pieces = pieces.map(|(weight, gradient)| {
        let slots: Vec<&mut [f32]> = slots.iter_mut().filter_map(Iterator::next).collect();
        (weight, gradient, slots)
    });
    workers.share(count, pieces, |(weight, gradient, mut slots)| rule.update(at, weight, gradient, &mut slots));
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

/// Fails for a learning rate that cannot be one.
pub(super) fn check_rate(rate: f64) -> Result<()> {
    match rate.is_finite() && rate >= 0.0 {
        true => Ok(()),
        false => Err(Error::mismatch("optimiser", "learning rate", "a finite number from 0 on", rate)),
    }
}

fn within(at: &str, what: &'static str, value: f32, range: std::ops::RangeInclusive<f32>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::mismatch(at, what, format!("{} to {}", range.start(), range.end()), value))
}

/// What a group says of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Share {
    pub(super) rate: f32,
    pub(super) decay: f32,
    pub(super) learns: bool,
}

/// A rule, the groups of its parameters, and what it remembers of each.
///
/// ```
/// use convzoo::graph::{Graph, Params};
/// use convzoo::layers::Conv2d;
/// use convzoo::train::{GradientSum, Groups, Optimizer, Sgd};
/// use convzoo::Tensor;
///
/// let graph = Graph::draw(1, &Conv2d::k1(1).no_bias())?;
/// let mut params = Params::blank(graph.params());
/// let mut optimizer = Optimizer::new(Sgd::default(), &Groups::new(), graph.params())?;
/// let gradients = GradientSum::from_pairs([(0, Tensor::from_slice(&[1, 1, 1, 1], &[2.0])?)])?;
/// optimizer.step(&mut params, &gradients, 0.1)?;
/// assert_eq!(params.get("weight")?.as_slice(), [-0.2]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug)]
pub struct Optimizer {
    rule: Box<dyn Rule>,
    shares: Vec<Share>,
    slots: Vec<Slot>,
    /// Per parameter: how often it was updated, and a tensor per slot, none for what does not learn.
    memory: Vec<(u64, Vec<Tensor>)>,
}

impl Optimizer {
    /// An optimiser for the parameters `defs` that has seen nothing yet.
    ///
    /// # Errors
    /// A constant of the rule that cannot work; a group that covers no parameter.
    pub fn new(rule: impl Into<Box<dyn Rule>>, groups: &Groups, defs: &[ParamDef]) -> Result<Self> {
        let rule = rule.into();
        rule.check()?;
        let shares = groups.resolve(defs)?;
        let slots = rule.slots();
        let fresh = |def: &ParamDef| slots.iter().map(|slot| Tensor::from_fn(&def.shape, |_| slot.start)).collect();
        let memory = defs.iter().zip(&shares);
        let memory = memory.map(|(def, share)| (0, if share.learns { fresh(def) } else { Vec::new() })).collect();
        Ok(Optimizer { rule, shares, slots, memory })
    }

    /// Moves every parameter that learns and has a gradient.
    ///
    /// # Errors
    /// A rate that is negative or not finite; parameters or gradients of another graph. Nothing is changed then.
    pub fn step(&mut self, params: &mut Params, gradients: &GradientSum, rate: f64) -> Result<()> {
        check_rate(rate)?;
        self.fits(params, gradients)?;
        for (i, (_, weight)) in params.iter_mut().enumerate() {
            if let Some(gradient) = gradients.at(i) {
                self.update(i, weight, gradient.as_slice(), (rate, None));
            }
        }
        Ok(())
    }

    /// Moves one parameter, if it learns, with the help of workers, if there are any. The rate has been checked, and
    /// gradient and weight have one shape.
    pub(super) fn update(
        &mut self,
        parameter: usize,
        weight: &mut [f32],
        gradient: &[f32],
        (rate, workers): (f64, Option<Workers<'_>>),
    ) {
        let (share, (updates, slots)) = (self.shares[parameter], &mut self.memory[parameter]);
        if !share.learns {
            return;
        }
        *updates += 1;
        let (rate, decay) = ((rate * f64::from(share.rate)) as f32, self.rule.decay() * share.decay);
        let mut slots: Vec<&mut [f32]> = slots.iter_mut().map(Tensor::as_mut_slice).collect();
        let at = At { rate, decay, update: *updates };
        match workers {
            Some(workers) => update_shared(&*self.rule, &at, weight, gradient, &mut slots, workers),
            None => self.rule.update(&at, weight, gradient, &mut slots),
        }
    }

    fn fits(&self, params: &Params, gradients: &GradientSum) -> Result<()> {
        if params.defs().len() != self.memory.len() {
            return Err(Error::mismatch("optimiser", "parameters", self.memory.len(), params.defs().len()));
        }
        for (i, def) in params.defs().iter().enumerate() {
            if let Some(gradient) = gradients.at(i)
                && gradient.shape() != def.shape
            {
                let found = format!("{:?}", gradient.shape());
                return Err(Error::mismatch(&def.name, "shape of the gradient", format!("{:?}", def.shape), found));
            }
        }
        Ok(())
    }

    /// The formula and its constants.
    pub fn describe(&self) -> String {
        self.rule.describe()
    }

    /// How often each parameter was updated, in the drawing's order.
    pub fn updates(&self) -> impl ExactSizeIterator<Item = u64> {
        self.memory.iter().map(|(updates, _)| *updates)
    }

    /// What is remembered: index of the parameter, name of the slot, values.
    pub fn remembered(&self) -> impl Iterator<Item = (usize, &'static str, &Tensor)> {
        let memory = self.memory.iter().enumerate();
        memory.flat_map(|(i, (_, tensors))| self.slots.iter().zip(tensors).map(move |(s, t)| (i, s.name, t)))
    }

    /// Bytes of what is remembered.
    pub fn bytes(&self) -> usize {
        self.remembered().map(|(.., tensor)| size_of::<f32>() * tensor.len()).sum()
    }

    /// Takes up where another optimiser of the same kind left off: its [`Optimizer::updates`], and its
    /// [`Optimizer::remembered`] values, asked for by index and slot.
    ///
    /// # Errors
    /// Counts that are not one per parameter; what `values` cannot give; another shape. Nothing is changed then.
    pub fn restore(&mut self, updates: &[u64], mut values: impl FnMut(usize, &str) -> Result<Tensor>) -> Result<()> {
        if updates.len() != self.memory.len() {
            return Err(Error::mismatch("optimiser", "counts of updates", self.memory.len(), updates.len()));
        }
        let mut memory = Vec::with_capacity(self.memory.len());
        for (i, ((_, old), &count)) in self.memory.iter().zip(updates).enumerate() {
            let mut tensors = Vec::with_capacity(old.len());
            for (slot, old) in self.slots.iter().zip(old) {
                let value = values(i, slot.name)?;
                if value.shape() != old.shape() {
                    let (expected, found) = (format!("{:?}", old.shape()), format!("{:?}", value.shape()));
                    return Err(Error::mismatch(format!("{} of parameter {i}", slot.name), "shape", expected, found));
                }
                tensors.push(value);
            }
            memory.push((count, tensors));
        }
        self.memory = memory;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ParamKind;
    use crate::tensor::Init;

    fn defs() -> Vec<ParamDef> {
        let def = |name: &str, kind| ParamDef {
            name: name.to_owned(),
            shape: vec![2],
            kind,
            init: Init::Constant(1.0),
            auxiliary: false,
        };
        vec![def("weight", ParamKind::Weight), def("bias", ParamKind::Bias), def("mean", ParamKind::RunningMean)]
    }

    fn gradients() -> GradientSum {
        let tensor = || Tensor::from_slice(&[2], &[0.5, -0.5]).unwrap();
        GradientSum::from_pairs([(0, tensor()), (1, tensor())]).unwrap()
    }

    #[test]
    fn groups_scale_rate_and_decay_and_freeze() {
        let rule = Sgd { momentum: 0.0, decay: 0.5, ..Sgd::default() };
        let mut params = Params::init(&defs(), &mut rand::rng());
        let groups = Groups::new().weights_decay_alone().rate("bias", 10.0);
        Optimizer::new(rule, &groups, &defs()).unwrap().step(&mut params, &gradients(), 0.1).unwrap();
        assert_eq!(params.get("weight").unwrap().as_slice(), [0.9, 1.0]);
        assert_eq!(params.get("bias").unwrap().as_slice(), [0.5, 1.5]);
        assert_eq!(params.get("mean").unwrap().as_slice(), [1.0, 1.0]);

        let mut params = Params::init(&defs(), &mut rand::rng());
        let frozen = Groups::new().freeze("weight");
        Optimizer::new(rule, &frozen, &defs()).unwrap().step(&mut params, &gradients(), 0.1).unwrap();
        assert_eq!(params.get("weight").unwrap().as_slice(), [1.0, 1.0]);
    }

    #[test]
    fn settings_that_cannot_work_are_errors_and_change_nothing() {
        let mut params = Params::init(&defs(), &mut rand::rng());
        let mut optimizer = Optimizer::new(Sgd::default(), &Groups::new(), &defs()).unwrap();
        for rate in [f64::NAN, f64::INFINITY, -0.1] {
            let error = optimizer.step(&mut params, &gradients(), rate).unwrap_err().to_string();
            assert!(error.contains("learning rate") && error.contains(&rate.to_string()), "{error}");
        }
        let odd = GradientSum::from_pairs([(1, Tensor::zeros(&[3]))]).unwrap();
        let error = optimizer.step(&mut params, &odd, 0.1).unwrap_err().to_string();
        assert!(error.contains("bias") && error.contains("[2]") && error.contains("[3]"), "{error}");
        assert!(params.iter().all(|(_, value)| value.as_slice() == [1.0, 1.0]));
        let bad: [Box<dyn Rule>; 5] = [
            Box::new(Sgd { momentum: f32::NAN, ..Sgd::default() }),
            Box::new(Sgd { nesterov: true, dampening: 0.1, ..Sgd::default() }),
            Box::new(Sgd { decay: -1.0, ..Sgd::default() }),
            Box::new(AdamW { betas: [0.9, 1.0], ..AdamW::default() }),
            Box::new(RmsPropTf { epsilon: 0.0, ..RmsPropTf::default() }),
        ];
        for rule in bad {
            let text = format!("{rule:?}");
            assert!(Optimizer::new(rule, &Groups::new(), &defs()).is_err(), "{text}");
        }
    }
}
