//! The reference executor: one node at a time, naively, in `f32` or `f64`. The definition of correct.

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeDef, NodeId, Op, ParamId, Params};
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
pub fn evaluate<T: Real>(graph: &Graph, params: &Params, input: &Tensor, wanted: &[NodeId]) -> Result<Vec<Value<T>>> {
    let &[n, c, h, w] = input.shape() else {
        return Err(Error::mismatch("input", "rank", "4 (n, c, h, w)", format!("{:?}", input.shape())));
    };
    let shapes = graph.shapes_for([n, c, h, w], wanted.iter().copied())?;
    let live = graph.reachable(wanted.iter().copied());
    let mut readers = vec![0usize; shapes.len()];
    let needed = graph.nodes().iter().zip(&live).filter(|(_, live)| **live);
    needed.flat_map(|(node, _)| &node.inputs).chain(wanted).for_each(|id| readers[id.index()] += 1);

    let mut values: Vec<Option<Value<T>>> = vec![None; shapes.len()];
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| live[*i]) {
        let data = if i == 0 {
            input.as_slice().iter().map(|&v| T::of(v.into())).collect()
        } else {
            let inputs: Vec<&Value<T>> =
                node.inputs.iter().map(|id| values[id.index()].as_ref().expect("inputs come before users")).collect();
            Evaluation { node, inputs, output: shapes[i], params }.compute()?
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
            Op::BatchNorm { scale, shift, mean, var, eps, .. } => {
                let constant = |v: f64| vec![T::of(v); input.c];
                let gamma = self.bias(*scale).unwrap_or_else(|| constant(1.0));
                let beta = self.bias(*shift).unwrap_or_else(|| constant(0.0));
                let (mean, variance) = (&self.param(*mean), &self.param(*var));
                let affine = Some((gamma.as_slice(), beta.as_slice()));
                naive::batch_norm(x, input, naive::BatchNorm { mean, variance, affine, epsilon: f64::from(*eps) })
            }
            Op::LocalResponseNorm { size, alpha, beta, k } => {
                let [alpha, beta, k] = [*alpha, *beta, *k].map(f64::from);
                naive::local_response_norm(x, input, naive::LocalResponse { size: *size, alpha, beta, k })
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

    fn conv(&self, window: &Window, groups: usize) -> Result<ConvShape> {
        let [_, _, h, w] = self.inputs[0].shape;
        let placed = window.place([h, w], &self.node.path)?;
        Ok(ConvShape { out_channels: self.output[1], groups, window: *window, placed })
    }

    fn param(&self, id: ParamId) -> Vec<T> {
        self.params.value(id).as_slice().iter().map(|&v| T::of(v.into())).collect()
    }

    fn bias(&self, id: Option<ParamId>) -> Option<Vec<T>> {
        id.map(|id| self.param(id))
    }
}
