//! A training step: forward with batch statistics and noise, backward over the whole graph.

use super::backward::Backward;
use super::{Evaluation, Value, batch_shape, cast, inputs};
use crate::error::{Error, Result};
use crate::exec::Gradients;
use crate::exec::mode::{self, Noise, RunningStatistics, TrainOptions};
use crate::graph::{Graph, NodeDef, NodeId, Op, Output, ParamDef, ParamId, Params, Role, check_same};
use crate::kernels::naive::{self, Nchw, Real};
use crate::tensor::Tensor;

/// A training step to be computed.
#[derive(Debug, Clone, Copy)]
pub struct TrainStep<'a> {
    /// The network, auxiliary heads included.
    pub graph: &'a Graph,
    /// Its parameters; they stay as they are.
    pub params: &'a Params,
    /// How it trains.
    pub options: &'a TrainOptions,
    /// Number of the step: with the seed it decides what dropout and stochastic depth drop.
    pub step: u64,
}

/// What a training step comes to.
#[derive(Debug, Clone)]
pub struct Trained<T> {
    /// The primary and the auxiliary outputs by name, in the drawing's order.
    pub outputs: Vec<(String, Value<T>)>,
    /// Per parameter, in the drawing's order, the gradient; none for running statistics and frozen parameters.
    pub gradients: Vec<Option<Vec<T>>>,
    /// The gradient with respect to the images, if the options ask for it.
    pub input: Option<Value<T>>,
    /// The running statistics after the step, of every batch norm that moved its own.
    pub statistics: Vec<(ParamId, Vec<T>)>,
}

impl<T: Real> Trained<T> {
    /// The gradients, rounded to f32. `defs` are the parameters of the same graph.
    pub fn rounded(&self, defs: &[ParamDef]) -> Gradients {
        let index = |def: &ParamDef| defs.iter().position(|d| d.name == def.name).expect("one of defs");
        let mut found = Gradients::zeros(defs, |def| self.gradients[index(def)].is_some());
        for (slot, value) in found.iter_mut().zip(self.gradients.iter().flatten()) {
            round(value, slot.1);
        }
        let Some(input) = &self.input else { return found };
        let mut found = found.with_input(input.shape);
        found.input_mut().into_iter().for_each(|slot| round(&input.data, slot));
        found
    }

    /// Writes the running statistics to the parameters of the same graph, rounded to f32.
    pub fn move_statistics(&self, params: &mut Params) {
        let mut slots: Vec<&mut [f32]> = params.iter_mut().map(|(_, slot)| slot).collect();
        self.statistics.iter().for_each(|(id, values)| round(values, slots[id.index()]));
    }
}

fn round<T: Real>(values: &[T], slot: &mut [f32]) {
    slot.iter_mut().zip(values).for_each(|(slot, v)| *slot = v.to_f32().expect("floats convert"));
}

/// Computes one step in training mode, every intermediate and every sum in `T`.
///
/// `loss` is given the outputs by name and gives back the gradient of its value with respect to those it reads, by name
/// and in their shape; outputs it leaves out count as unread.
///
/// # Errors
/// A batch norm with a single value per channel, an input that does not fit, a frozen prefix that names nothing, the
/// gradient of an output that does not exist, of another shape or given twice, and whatever `loss` returns.
pub fn train_step<T: Real>(
    of: &TrainStep<'_>,
    images: &Tensor,
    loss: impl FnOnce(&[(String, Value<T>)]) -> Result<Vec<(String, Value<T>)>>,
) -> Result<Trained<T>> {
    check_same("training step", of.graph.params(), of.params.defs())?;
    let learned = of.options.learned(of.graph.params())?;
    let heads: Vec<&Output> = of.graph.outputs().iter().filter(|o| o.role != Role::Feature).collect();
    let shapes = of.graph.shapes_for(batch_shape(images)?, heads.iter().map(|o| o.node))?;
    let live = of.graph.reachable(heads.iter().map(|o| o.node));
    let mut pass = Pass { of, shapes, values: vec![], statistics: vec![] };
    pass.forward(images, &live)?;

    let value = |o: &Output| pass.values[o.node.index()].clone().expect("outputs are live");
    let outputs: Vec<_> = heads.iter().map(|o| (o.name.clone(), value(o))).collect();
    let mut seeds: Sparse<T> = vec![None; pass.values.len()];
    for (name, gradient) in loss(&outputs)? {
        let (i, shape) = outputs.iter().position(|(n, _)| *n == name).map_or_else(
            || Err(Error::unknown("output", &name, outputs.iter().map(|(n, _)| n.as_str()))),
            |i| Ok((heads[i].node.index(), outputs[i].1.shape)),
        )?;
        if gradient.shape != shape || gradient.data.len() != shape.iter().product::<usize>() {
            let found = format!("{:?} with {} values", gradient.shape, gradient.data.len());
            return Err(Error::mismatch(name, "shape of the gradient", format!("{shape:?}"), found));
        }
        if seeds[i].replace(gradient.data).is_some() {
            return Err(Error::invalid(name, "the gradient of this output is given twice"));
        }
    }
    let (gradients, input) = pass.backward(seeds, &learned)?;
    let input = of.options.input_gradient.then(|| Value { shape: pass.shapes[0], data: input });
    Ok(Trained { outputs, gradients, input, statistics: pass.statistics })
}

/// A vector for some of the nodes or parameters.
type Sparse<T> = Vec<Option<Vec<T>>>;

/// Adds `more` to what has arrived so far.
fn add_to<T: Real>(sum: &mut Option<Vec<T>>, more: Vec<T>) {
    match sum {
        Some(sum) => sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more),
        None => *sum = Some(more),
    }
}

/// The values of one step.
struct Pass<'a, T> {
    of: &'a TrainStep<'a>,
    shapes: Vec<[usize; 4]>,
    values: Vec<Option<Value<T>>>,
    statistics: Vec<(ParamId, Vec<T>)>,
}

impl<T: Real> Pass<'_, T> {
    fn evaluation<'v>(&'v self, i: usize) -> Evaluation<'v, T> {
        let node = &self.of.graph.nodes()[i];
        Evaluation { node, inputs: inputs(node, &self.values), output: self.shapes[i], params: self.of.params }
    }

    fn forward(&mut self, images: &Tensor, live: &[bool]) -> Result<()> {
        self.values = vec![None; self.shapes.len()];
        self.values[0] = Some(Value { shape: self.shapes[0], data: cast(images.as_slice()) });
        for (i, node) in self.of.graph.nodes().iter().enumerate().skip(1).filter(|(i, _)| live[*i]) {
            let data = match &node.op {
                Op::BatchNorm { mean, .. } if !self.is_fixed(*mean) => self.normalise(node, i)?,
                _ => match self.noise(i) {
                    Some(noise) => noise.apply(&self.evaluation(i).inputs[0].data),
                    None => self.evaluation(i).compute()?,
                },
            };
            self.values[i] = Some(Value { shape: self.shapes[i], data });
        }
        Ok(())
    }

    /// Whether a batch norm keeps the running statistics it has.
    fn is_fixed(&self, mean: ParamId) -> bool {
        self.of.options.is_frozen(&self.of.graph.params()[mean.index()].name)
    }

    /// A batch norm by the batch's statistics, which the running ones follow.
    fn normalise(&mut self, node: &NodeDef, i: usize) -> Result<Vec<T>> {
        let Op::BatchNorm { mean, var, momentum, .. } = node.op else { return Ok(vec![]) };
        mode::check_batch(&node.place(), self.shapes[i])?;
        let evaluation = self.evaluation(i);
        let x = evaluation.inputs[0];
        let [n, _, h, w] = x.shape;
        let count = (n * h * w) as f64;
        let [batch_mean, variance] = naive::batch_statistics(&x.data, Nchw::new(x.shape));
        let y = evaluation.normalise(&batch_mean, &variance);
        let unbiased = match self.of.options.statistics {
            RunningStatistics::PyTorch => count / (count - 1.0),
            RunningStatistics::TensorFlow => 1.0,
        };
        let momentum = f64::from(momentum);
        for (id, batch, factor) in [(mean, batch_mean, 1.0), (var, variance, unbiased)] {
            let running = self.evaluation(i).param(id);
            let moved = running.iter().zip(&batch);
            let moved = moved.map(|(&r, &b)| T::of(1.0 - momentum) * r + T::of(momentum) * (b * T::of(factor)));
            self.statistics.push((id, moved.collect()));
        }
        Ok(y)
    }

    /// What node `i` drops, if it is noise and noise is on.
    fn noise(&self, i: usize) -> Option<Dropping> {
        let node = &self.of.graph.nodes()[i];
        let (p, whole_images) = match node.op {
            Op::Dropout { p } => (p, false),
            Op::StochasticDepth { p } => (p, true),
            _ => return None,
        };
        let stream = self.of.options.stream(self.of.step, NodeId(i));
        let shape = Nchw::new(self.shapes[i]);
        (self.of.options.noise == Noise::On).then_some(Dropping {
            p: p.into(),
            stream,
            images: whole_images.then_some(shape),
        })
    }

    /// From the gradients of the outputs to those of the parameters and of the images.
    fn backward(&self, mut arrived: Sparse<T>, learned: &[bool]) -> Result<(Sparse<T>, Vec<T>)> {
        let nodes = self.of.graph.nodes();
        let mut gradients: Sparse<T> =
            self.of.graph.params().iter().zip(learned).map(|(def, &l)| l.then(|| vec![T::zero(); def.len()])).collect();
        let mut needed = vec![self.of.options.input_gradient];
        for node in &nodes[1..] {
            let learns = node.op.params().iter().any(|id| learned[id.index()]);
            needed.push(learns || node.inputs.iter().any(|id| needed[id.index()]));
        }
        for i in (1..nodes.len()).rev().filter(|&i| needed[i]) {
            let Some(dy) = arrived[i].take() else { continue };
            let to_inputs = match self.noise(i) {
                Some(noise) => vec![noise.apply(&dy)],
                None => {
                    let y = self.values[i].as_ref().expect("live");
                    let statistics = match &nodes[i].op {
                        Op::BatchNorm { mean, .. } if self.is_fixed(*mean) => naive::backward::Statistics::Running,
                        _ => naive::backward::Statistics::Batch,
                    };
                    let wanted: Vec<bool> = nodes[i].inputs.iter().map(|id| needed[id.index()]).collect();
                    let evaluation = self.evaluation(i);
                    Backward { of: &evaluation, y: &y.data, dy: &dy, wanted, statistics }.compute(&mut gradients)?
                }
            };
            for (id, dx) in nodes[i].inputs.iter().zip(to_inputs).filter(|(id, _)| needed[id.index()]) {
                add_to(&mut arrived[id.index()], dx);
            }
        }
        let input = arrived[0].take().unwrap_or_else(|| vec![T::zero(); self.shapes[0].iter().product()]);
        Ok((gradients, input))
    }
}

/// Dropout, or stochastic depth if whole `images` go.
struct Dropping {
    p: f64,
    stream: crate::random::Stream,
    images: Option<Nchw>,
}

impl Dropping {
    fn apply<T: Real>(&self, x: &[T]) -> Vec<T> {
        match self.images {
            Some(shape) => naive::stochastic_depth(x, shape, self.p, self.stream),
            None => naive::dropout(x, self.p, self.stream),
        }
    }
}
