//! The reference executor: one node at a time, naively, in `f32` or `f64`. The definition of correct, for evaluation
//! ([`evaluate`]) and for training ([`train_step`]).

mod backward;
mod train;

pub use train::{TrainStep, Trained, train_step};

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeDef, NodeId, Op, ParamId, Params, check_same};
use crate::kernels::naive::{self, ConvShape, Nchw, Real, Sampling};
use crate::shape::Window;
use crate::tensor::Tensor;

/// A value computed by the reference executor: logical NCHW, vectors with `h = w = 1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Value<T> {
    /// `[n, c, h, w]`.
    pub shape: [usize; 4],
    /// Row-major elements.
    pub data: Vec<T>,
}

/// Evaluates the outputs `wanted` of `graph` on `input`, an NCHW batch, without any rewriting.
///
/// `T` is the precision of every intermediate and every sum; weights are converted from `f32`. Values are freed when
/// their last reader has run.
///
/// # Errors
/// Parameters of another drawing, an input that does not fit, and whatever a layer says of the shapes that follow.
pub fn evaluate<T: Real>(graph: &Graph, params: &Params, input: &Tensor, wanted: &[NodeId]) -> Result<Vec<Value<T>>> {
    check_same("reference executor", graph.params(), params.defs())?;
    let shapes = graph.shapes_for(batch_shape(input)?, wanted.iter().copied())?;
    let live = graph.reachable(wanted.iter().copied());
    let mut readers = vec![0usize; shapes.len()];
    let needed = graph.nodes().iter().zip(&live).filter(|(_, live)| **live);
    needed.flat_map(|(node, _)| &node.inputs).chain(wanted).for_each(|id| readers[id.index()] += 1);

    let mut values: Vec<Option<Value<T>>> = vec![None; shapes.len()];
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
        let data = if i == 0 {
            cast(input.as_slice())
        } else {
            Evaluation { node, inputs: inputs(node, &values), output: shapes[i], params }.compute()?
        };
        values[i] = Some(Value { shape: shapes[i], data });
        for id in &node.inputs {
            readers[id.index()] -= 1;
            if readers[id.index()] == 0 {
                values[id.index()] = None;
            }
        }
    }
    Ok(wanted.iter().map(|id| values[id.index()].clone().expect("wanted values are kept")).collect())
}

/// The shape of a batch of images.
fn batch_shape(images: &Tensor) -> Result<[usize; 4]> {
    let shape = images.shape();
    shape.try_into().map_err(|_| Error::mismatch("input", "shape", "[n, c, h, w]", format!("{shape:?}")))
}

/// The values a node reads.
fn inputs<'a, T>(node: &NodeDef, values: &'a [Option<Value<T>>]) -> Vec<&'a Value<T>> {
    node.inputs.iter().map(|id| values[id.index()].as_ref().expect("inputs come before users")).collect()
}

fn cast<T: Real>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&v| T::of(v.into())).collect()
}

/// One node about to be computed.
struct Evaluation<'a, T> {
    node: &'a NodeDef,
    inputs: Vec<&'a Value<T>>,
    output: [usize; 4],
    params: &'a Params,
}

impl<T: Real> Evaluation<'_, T> {
    fn compute(&self) -> Result<Vec<T>> {
        let x = &self.inputs[0].data;
        let input = Nchw::new(self.inputs[0].shape);
        Ok(match &self.node.op {
            Op::Input { .. } => x.clone(),
            Op::Conv { weight, bias, window, groups } => {
                let conv = self.conv(window, *groups)?;
                naive::conv2d(x, input, &self.param(*weight), self.bias(*bias).as_deref(), &conv)
            }
            Op::DeformConv { weight, bias, window, groups, offset_groups } => {
                let mask = self.inputs.get(2).map(|m| m.data.as_slice());
                let sampling = Sampling { offset: &self.inputs[1].data, mask, groups: *offset_groups };
                let conv = self.conv(window, *groups)?;
                naive::deform_conv2d(x, input, sampling, &self.param(*weight), self.bias(*bias).as_deref(), &conv)
            }
            Op::Linear { weight, bias } => {
                naive::linear(x, &self.param(*weight), self.bias(*bias).as_deref(), self.output[1])
            }
            Op::BatchNorm { mean, var, .. } => self.normalise(&self.param(*mean), &self.param(*var)),
            Op::LocalResponseNorm { size, alpha, beta, k } => {
                naive::local_response_norm(x, input, local_response(*size, [*alpha, *beta, *k]))
            }
            Op::MaxPool { window } => naive::max_pool(x, input, window, &window.place(input.size(), &self.node.path)?),
            Op::AvgPool { window, count_include_pad } => {
                let placed = window.place(input.size(), &self.node.path)?;
                naive::avg_pool(x, input, window, &placed, *count_include_pad)
            }
            Op::AdaptiveAvgPool { output } => naive::adaptive_avg_pool(x, input, *output),
            Op::Activation(function) => naive::activation(x, *function),
            Op::Softmax => naive::softmax(x, input),
            Op::Add => naive::add(x, &self.inputs[1].data),
            Op::Mul => naive::multiply(x, input, &self.inputs[1].data),
            Op::Concat => {
                let parts: Vec<_> = self.inputs.iter().map(|v| (v.data.as_slice(), Nchw::new(v.shape))).collect();
                naive::concat(&parts)
            }
            Op::ChannelPad { before, after } => naive::channel_pad(x, input, [*before, *after]),
            Op::ChannelSlice { start, len } => naive::channel_slice(x, input, *start..*start + *len),
            Op::Flatten | Op::Dropout { .. } | Op::StochasticDepth { .. } => x.clone(),
        })
    }

    /// A batch norm's output by these statistics.
    fn normalise(&self, mean: &[T], variance: &[T]) -> Vec<T> {
        let [gamma, beta] = self.affine();
        let norm = self.norm([mean, variance], [&gamma, &beta]);
        naive::batch_norm(&self.inputs[0].data, Nchw::new(self.inputs[0].shape), norm)
    }

    /// A batch norm's γ and β, 1 and 0 where it has none.
    fn affine(&self) -> [Vec<T>; 2] {
        let Op::BatchNorm { scale, shift, .. } = self.node.op else { return [vec![], vec![]] };
        [(scale, 1.0), (shift, 0.0)]
            .map(|(id, otherwise)| self.bias(id).unwrap_or_else(|| vec![T::of(otherwise); self.output[1]]))
    }

    fn norm<'a>(&self, [mean, variance]: [&'a [T]; 2], [gamma, beta]: [&'a [T]; 2]) -> naive::BatchNorm<'a, T> {
        let epsilon = if let Op::BatchNorm { eps, .. } = self.node.op { f64::from(eps) } else { 0.0 };
        naive::BatchNorm { mean, variance, affine: Some((gamma, beta)), epsilon }
    }

    fn conv(&self, window: &Window, groups: usize) -> Result<ConvShape> {
        let [_, _, h, w] = self.inputs[0].shape;
        let placed = window.place([h, w], &self.node.path)?;
        Ok(ConvShape { out_channels: self.output[1], groups, window: *window, placed })
    }

    fn param(&self, id: ParamId) -> Vec<T> {
        cast(self.params.value(id).as_slice())
    }

    fn bias(&self, id: Option<ParamId>) -> Option<Vec<T>> {
        id.map(|id| self.param(id))
    }
}

fn local_response(size: usize, constants: [f32; 3]) -> naive::LocalResponse {
    let [alpha, beta, k] = constants.map(f64::from);
    naive::LocalResponse { size, alpha, beta, k }
}
