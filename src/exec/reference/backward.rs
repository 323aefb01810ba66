//! One node backward: from the gradient of its output to those of its inputs and parameters.

use super::{Evaluation, Value, local_response};
use crate::error::Result;
use crate::graph::{Op, ParamId};
use crate::kernels::naive::{self, Nchw, Real, Sampling, backward};

/// One node about to be reversed.
pub(super) struct Backward<'a, T> {
    /// The node and what it read.
    pub(super) of: &'a Evaluation<'a, T>,
    /// What it gave.
    pub(super) y: &'a [T],
    /// The gradient of that.
    pub(super) dy: &'a [T],
    /// Which inputs' gradients somebody waits for.
    pub(super) wanted: Vec<bool>,
    /// Where a batch norm had its statistics from.
    pub(super) statistics: backward::Statistics,
}

impl<T: Real> Backward<'_, T> {
    /// The gradient of each input, empty where nobody waits for it; those of the parameters that have a place in
    /// `gradients` are added there.
    pub(super) fn compute(&self, gradients: &mut [Option<Vec<T>>]) -> Result<Vec<Vec<T>>> {
        let (of, dy) = (self.of, self.dy);
        let (x, input) = (&of.inputs[0].data, Nchw::new(of.inputs[0].shape));
        Ok(match &of.node.op {
            Op::Input { .. } => vec![],
            Op::Conv { .. } | Op::DeformConv { .. } | Op::Linear { .. } | Op::BatchNorm { .. } => {
                return self.with_parameters(gradients);
            }
            Op::LocalResponseNorm { size, alpha, beta, k } => {
                vec![backward::local_response_norm(x, input, local_response(*size, [*alpha, *beta, *k]), dy)]
            }
            Op::MaxPool { window } => {
                vec![backward::max_pool(x, input, window, &window.place(input.size(), &of.node.path)?, dy)]
            }
            Op::AvgPool { window, count_include_pad } => {
                let placed = window.place(input.size(), &of.node.path)?;
                vec![backward::avg_pool(input, window, &placed, *count_include_pad, dy)]
            }
            Op::AdaptiveAvgPool { output } => vec![backward::adaptive_avg_pool(input, *output, dy)],
            Op::Activation(function) => vec![backward::activation(x, *function, dy)],
            Op::Softmax => vec![backward::softmax(self.y, input, dy)],
            Op::Add => of.inputs.iter().map(|_| dy.to_vec()).collect(),
            Op::Mul => backward::multiply(x, input, &of.inputs[1].data, dy).into(),
            Op::Concat => self.slices(),
            Op::ChannelPad { before, .. } => {
                let output = Nchw::new(of.output);
                vec![naive::channel_slice(dy, output, *before..*before + input.c)]
            }
            Op::ChannelSlice { start, len } => {
                vec![naive::channel_pad(dy, Nchw::new(of.output), [*start, input.c - start - len])]
            }
            Op::Flatten | Op::Dropout { .. } | Op::StochasticDepth { .. } => vec![dy.to_vec()],
        })
    }

    /// The channels of the gradient that belong to each part of a concatenation.
    fn slices(&self) -> Vec<Vec<T>> {
        let mut start = 0;
        let mut slice = |part: &&Value<T>| {
            let channels = start..start + part.shape[1];
            start = channels.end;
            naive::channel_slice(self.dy, Nchw::new(self.of.output), channels)
        };
        self.of.inputs.iter().map(&mut slice).collect()
    }

    fn with_parameters(&self, gradients: &mut [Option<Vec<T>>]) -> Result<Vec<Vec<T>>> {
        let (of, dy) = (self.of, self.dy);
        let (x, input, output) = (&of.inputs[0].data, Nchw::new(of.inputs[0].shape), Nchw::new(of.output));
        let mut store = |id: ParamId, gradient: &dyn Fn() -> Vec<T>| {
            if let Some(slot) = &mut gradients[id.index()] {
                slot.iter_mut().zip(gradient()).for_each(|(slot, g)| *slot += g);
            }
        };
        let sums = || backward::channel_sums(dy, output);
        Ok(match &of.node.op {
            Op::Conv { weight, bias, window, groups } => {
                let conv = of.conv(window, *groups)?;
                bias.iter().for_each(|id| store(*id, &sums));
                store(*weight, &|| backward::conv2d_weight(x, input, dy, &conv));
                vec![self.if_wanted(|| backward::conv2d_input(dy, input, &of.param(*weight), &conv))]
            }
            Op::DeformConv { weight, bias, window, groups, offset_groups } => {
                let conv = of.conv(window, *groups)?;
                let mask = of.inputs.get(2).map(|m| m.data.as_slice());
                let sampling = Sampling { offset: &of.inputs[1].data, mask, groups: *offset_groups };
                let found = backward::deform_conv2d(x, input, sampling, &of.param(*weight), dy, &conv);
                bias.iter().for_each(|id| store(*id, &sums));
                store(*weight, &|| found.weight.clone());
                [found.input, found.offset].into_iter().chain(found.mask).collect()
            }
            Op::Linear { weight, bias } => {
                bias.iter().for_each(|id| store(*id, &sums));
                store(*weight, &|| backward::linear_weight(x, dy, output.c));
                vec![self.if_wanted(|| backward::linear_input(dy, &of.param(*weight), output.c))]
            }
            Op::BatchNorm { scale, shift, mean, var, .. } => {
                let [mean, variance] = match self.statistics {
                    backward::Statistics::Batch => naive::batch_statistics(x, input),
                    backward::Statistics::Running => [*mean, *var].map(|id| of.param(id)),
                };
                let [gamma, beta] = of.affine();
                let norm = of.norm([&mean, &variance], [&gamma, &beta]);
                let found = backward::batch_norm(x, input, norm, dy, self.statistics);
                scale.iter().for_each(|id| store(*id, &|| found.scale.clone()));
                shift.iter().for_each(|id| store(*id, &|| found.shift.clone()));
                vec![found.input]
            }
            _ => vec![],
        })
    }

    fn if_wanted(&self, gradient: impl Fn() -> Vec<T>) -> Vec<T> {
        if self.wanted[0] { gradient() } else { vec![] }
    }
}
