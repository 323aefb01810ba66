//! A training step with nothing around it: forward, cross entropy on every head, backward, SGD with momentum.

use convzoo::exec::reference::{TrainStep, Value, train_step};
use convzoo::exec::{Gradients, TrainOptions, TrainPlan};
use convzoo::graph::Role;
use convzoo::kernels::naive::Real;
use convzoo::models::ModelConfig;
use convzoo::train::{At, CrossEntropy, Loss, Sgd, Targets, update_shared};
use convzoo::{Error, Model, Result, Tensor, models};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A model of the registry, or the configuration in a JSON file; and the side of the images it is made for, if it is known.
pub(crate) fn network(name: &str) -> Result<(ModelConfig, Option<usize>)> {
    if !name.ends_with(".json") {
        return Ok((ModelConfig::named(name)?, Some(models::get(name)?.input)));
    }
    let text = std::fs::read_to_string(name).map_err(|e| Error::io(name, e))?;
    let config = serde_json::from_str(&text).map_err(|e| Error::format(name, e.to_string()))?;
    Ok((config, None))
}

/// A network, a batch, and what it takes to train on it over and over.
pub(crate) struct Training {
    pub(crate) model: Model,
    pub(crate) plan: TrainPlan,
    pub(crate) images: Tensor,
    targets: Targets,
    velocity: Vec<Vec<f32>>,
    rule: Sgd,
    done: u64,
}

impl Training {
    /// A model with random weights and a random batch: what there is before training.
    pub(crate) fn given(name: &str, [batch, side]: [usize; 2]) -> Result<(Model, Tensor)> {
        let (network, _) = network(name)?;
        let model = Model::new(&network, &mut StdRng::seed_from_u64(0))?;
        let mut rng = StdRng::seed_from_u64(1);
        Ok((model, Tensor::from_fn(&[batch, 3, side, side], |_| 2.0 * rng.random::<f32>() - 1.0)))
    }

    /// Everything that training `model` on `images` takes besides.
    pub(crate) fn new((model, images): (Model, Tensor), options: &TrainOptions) -> Result<Self> {
        let found = format!("{:?}", images.shape());
        let shape: [usize; 4] = images.shape().try_into().map_err(|_| Error::mismatch("images", "rank", 4, found))?;
        let batch = shape[0];
        let plan = TrainPlan::new(model.graph(), model.params(), shape, &options.clone().stream_gradients())?;
        let classes = plan.outputs().logits().shape()[1];
        let targets = Targets::Labels((0..batch).map(|i| i * 37 % classes).collect());
        let learned = |def: &convzoo::graph::ParamDef| if def.kind.is_learned() { def.len() } else { 0 };
        let velocity = model.params().defs().iter().map(|def| vec![0.0; learned(def)]).collect();
        let rule = Sgd { decay: 1e-4, ..Sgd::default() };
        Ok(Training { model, plan, images, targets, velocity, rule, done: 0 })
    }

    /// Bytes that training holds besides the weights and the images.
    pub(crate) fn predicted_bytes(&self) -> usize {
        let velocity: usize = self.velocity.iter().map(Vec::len).sum();
        self.plan.predicted_bytes() + 4 * velocity
    }

    /// One step; the loss before it, all heads weighted.
    pub(crate) fn step(&mut self) -> Result<f64> {
        self.plan.forward(self.model.params_mut(), &self.images, self.done)?;
        let mut loss = 0.0;
        let mut seeds = Vec::new();
        for head in self.model.graph().outputs() {
            let weight = match head.role {
                Role::Primary => 1.0,
                Role::Auxiliary { weight } => weight,
                Role::Feature => continue,
            };
            let mut found = CrossEntropy::new().evaluate(self.plan.outputs().get(&head.name)?, &self.targets)?;
            loss += f64::from(weight) * found.value;
            found.gradient.as_mut_slice().iter_mut().for_each(|v| *v *= weight);
            seeds.push((head.name.clone(), found.gradient));
        }
        let named: Vec<(&str, &Tensor)> = seeds.iter().map(|(name, seed)| (name.as_str(), seed)).collect();
        self.done += 1;
        let at = At { rate: 0.01, decay: self.rule.decay, update: self.done };
        let (rule, velocity) = (&self.rule, &mut self.velocity);
        self.plan.backward_each(self.model.params_mut(), &named, |id, weight, gradient, workers| {
            update_shared(rule, &at, weight, gradient, &mut [&mut velocity[id.index()]], workers);
            Ok(())
        })?;
        Ok(loss)
    }

    /// How far the gradients of two images of `side` pixels are from those of the reference executor in f64, relative to
    /// the norm of all together; and how far those of the reference executor in f32 are.
    pub(crate) fn error(name: &str, side: usize, options: &TrainOptions) -> Result<[f64; 2]> {
        let mut at = Training::new(Training::given(name, [2, side])?, options)?;
        let params = at.model.params().clone();
        let outputs = at.plan.forward(at.model.params_mut(), &at.images, 0)?;
        let seeds: Vec<(String, Tensor)> = outputs.iter().map(|(n, t)| (n.to_owned(), t.clone())).collect();
        let named: Vec<(&str, &Tensor)> = seeds.iter().map(|(name, seed)| (name.as_str(), seed)).collect();
        let mut found = Gradients::zeros(params.defs(), |_| true);
        at.plan.backward_each(at.model.params_mut(), &named, |id, _, gradient, _| {
            found.of_mut(id).into_iter().for_each(|values| values.copy_from_slice(gradient));
            Ok(())
        })?;
        let of = TrainStep { graph: at.model.graph(), params: &params, options, step: 0 };
        let wanted = naive::<f64>(&of, &at.images, &seeds)?;
        Ok([&found, &naive::<f32>(&of, &at.images, &seeds)?].map(|gradients| distance(gradients, &wanted)))
    }

    /// Refuses to time what is wrong: what errs more than three times as far as plain sums in f32, which ReLUs near zero
    /// send another way than f64 too.
    pub(crate) fn check(name: &str, options: &TrainOptions) -> Result<()> {
        let side = network(name)?.1.unwrap_or(32).min(96);
        let [error, plain] = Training::error(name, side, options)?;
        if error.is_nan() || error > 3.0 * plain {
            let problem =
                format!("gradients are off the reference by {error:e}, plain sums by {plain:e}: no time is reported");
            return Err(Error::invalid(name, problem));
        }
        eprintln!("gradients equal the reference within {error:.1e} (plain sums: {plain:.1e})");
        Ok(())
    }
}

/// The reference executor's gradients from those of the outputs.
fn naive<T: Real>(of: &TrainStep<'_>, images: &Tensor, seeds: &[(String, Tensor)]) -> Result<Gradients> {
    let seed = |(name, t): &(String, Tensor)| {
        let data = t.as_slice().iter().map(|&v| T::of(f64::from(v))).collect();
        (name.clone(), Value { shape: [t.shape()[0], t.shape()[1], 1, 1], data })
    };
    Ok(train_step::<T>(of, images, |_| Ok(seeds.iter().map(seed).collect()))?.rounded(of.params.defs()))
}

/// The norm of the difference over that of `wanted`.
fn distance(found: &Gradients, wanted: &Gradients) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for ((_, found), (_, wanted)) in found.iter().zip(wanted.iter()) {
        for (f, w) in found.as_slice().iter().zip(wanted.as_slice()) {
            error += f64::from(f - w).powi(2);
            norm += f64::from(*w).powi(2);
        }
    }
    f64::sqrt(error / norm)
}
