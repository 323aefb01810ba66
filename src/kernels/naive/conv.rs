//! Convolution and the fully connected layer.

use super::{Nchw, Real, outputs_on_input};
use crate::shape::{Placed, Window};
use std::ops::Range;

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels written.
    pub out_channels: usize,
    /// Groups; each maps `C / groups` input channels to `out_channels / groups` outputs.
    pub groups: usize,
    /// Kernel, stride, dilation, border rule.
    pub window: Window,
    /// The window placed on the input.
    pub placed: Placed,
}

impl ConvShape {
    /// The output's shape for this input.
    pub const fn output(&self, input: Nchw) -> Nchw {
        input.with_channels(self.out_channels).with_size(self.placed.output)
    }

    /// Elements of the weight `[out_channels, C / groups, kernel rows, kernel columns]`.
    pub const fn weights(&self, input: Nchw) -> usize {
        self.out_channels * (input.c / self.groups) * self.window.taps()
    }

    pub(super) fn assert_fits<T>(&self, input: Nchw, weight: &[T], bias: Option<&[T]>) {
        assert_eq!(self.placed.input, input.size(), "the window is placed on another input");
        assert!(
            self.groups > 0 && input.c.is_multiple_of(self.groups) && self.out_channels.is_multiple_of(self.groups)
        );
        assert_eq!(weight.len(), self.weights(input), "weights of {self:?} on {input:?}");
        assert!(bias.is_none_or(|b| b.len() == self.out_channels), "one bias per output channel");
    }
}

/// Cross-correlation, `torch.nn.functional.conv2d`:
/// `y[n,o,v,u] = b[o] + Σ_{i,p,q} w[o,i,p,q] · x[n, g·I + i, v·s − pad + p·d, u·s − pad + q·d]`, zero outside the image,
/// where `I = C / groups` and `g` is the group of `o`.
///
/// # Shapes
/// `x [N, C, H, W]`, `weight [O, C / groups, kh, kw]`, `bias [O]` to `[N, O, Ho, Wo]`.
pub fn conv2d<T: Real>(x: &[T], input: Nchw, weight: &[T], bias: Option<&[T]>, conv: &ConvShape) -> Vec<T> {
    input.assert_holds(x);
    conv.assert_fits(input, weight, bias);
    let output = conv.output(input);
    let mut y = vec![T::zero(); output.len()];
    let (per_group, outs) = (input.c / conv.groups, conv.out_channels / conv.groups);
    for n in 0..input.n {
        for o in 0..conv.out_channels {
            let plane = &mut y[output.channel(n, o)];
            plane.fill(bias.map_or(T::zero(), |b| b[o]));
            for i in 0..per_group {
                let source = &x[input.channel(n, o / outs * per_group + i)];
                let taps = &weight[(o * per_group + i) * conv.window.taps()..][..conv.window.taps()];
                correlate(plane, source, taps, conv);
            }
        }
    }
    y
}

/// Adds one input channel, seen through the window with the given weights, to one output channel.
fn correlate<T: Real>(plane: &mut [T], source: &[T], taps: &[T], conv: &ConvShape) {
    for (t, &weight) in taps.iter().enumerate() {
        for_each_row(conv, t, |outputs, first| {
            axpy(&mut plane[outputs], weight, &source[first..], conv.window.stride[1])
        });
    }
}

/// Calls `each(outputs, first)` for every row of outputs of which tap `t` falls on the input: output `outputs.start + k`
/// reads input pixel `first + k · horizontal stride`; all are indices into one channel.
pub(super) fn for_each_row(conv: &ConvShape, t: usize, mut each: impl FnMut(Range<usize>, usize)) {
    let (window, placed) = (&conv.window, &conv.placed);
    if window.is_pointwise() {
        return each(0..placed.output[0] * placed.output[1], 0);
    }
    let (ty, tx) = (t / window.kernel[1], t % window.kernel[1]);
    let columns = outputs_on_input(window, placed, 1, tx);
    if columns.is_empty() {
        return;
    }
    let first = columns.start * window.stride[1] + tx * window.dilation[1] - placed.before[1];
    for oy in outputs_on_input(window, placed, 0, ty) {
        let iy = oy * window.stride[0] + ty * window.dilation[0] - placed.before[0];
        let row = oy * placed.output[1];
        each(row + columns.start..row + columns.end, iy * placed.input[1] + first);
    }
}

/// `y[k] += a · x[k · step]` over the whole of `y`.
fn axpy<T: Real>(y: &mut [T], a: T, x: &[T], step: usize) {
    match step {
        1 => y.iter_mut().zip(x).for_each(|(y, &x)| *y += a * x),
        2 => y.iter_mut().zip(x.iter().step_by(2)).for_each(|(y, &x)| *y += a * x),
        _ => y.iter_mut().zip(x.iter().step_by(step)).for_each(|(y, &x)| *y += a * x),
    }
}

/// The fully connected layer, `torch.nn.functional.linear`: `y[n,o] = b[o] + Σ_i w[o,i] · x[n,i]`.
///
/// # Shapes
/// `x [N, features]`, `weight [O, features]`, `bias [O]` to `[N, O]`. `outputs` is `O`; the features follow from the
/// weight's length.
pub fn linear<T: Real>(x: &[T], weight: &[T], bias: Option<&[T]>, outputs: usize) -> Vec<T> {
    assert!(outputs > 0 && weight.len().is_multiple_of(outputs), "one row of weights per output");
    let features = weight.len() / outputs;
    assert!(features > 0 && x.len().is_multiple_of(features), "{} inputs for {features} features", x.len());
    assert!(bias.is_none_or(|b| b.len() == outputs), "one bias per output");
    let mut y = Vec::with_capacity(x.len() / features * outputs);
    for image in x.chunks_exact(features) {
        for (o, row) in weight.chunks_exact(features).enumerate() {
            let sum: T = row.iter().zip(image).map(|(&w, &x)| w * x).sum();
            y.push(sum + bias.map_or(T::zero(), |b| b[o]));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, ramp};
    use super::*;
    use crate::shape::Padding;

    #[test]
    fn groups_strides_padding_and_dilation_match_pytorch() {
        let window = Window {
            kernel: [3, 2],
            stride: [2, 1],
            padding: Padding::Symmetric([1, 2]),
            dilation: [1, 2],
            ceil: false,
        };
        let input = Nchw::new([1, 4, 5, 6]);
        let conv = ConvShape { out_channels: 2, groups: 2, window, placed: window.place([5, 6], "test").unwrap() };
        // torch.nn.functional.conv2d on the same ramps.
        let expected = [
            1.140625, 0.265625, 0.015625, 1.921875, 0.640625, -1.4375, 0.5625, 0.953125, -0.125, 1.25, 1.0, -1.125,
            1.0, 1.0, -0.78125, 1.296875, 0.40625, 0.015625, 1.84375, 0.734375, -1.4375, 0.640625, 1.171875, -0.078125,
            -1.109375, -2.046875, -0.359375, -0.09375, -1.953125, -1.953125, -0.734375, -0.0625, -0.65625, -0.96875,
            -1.140625, -1.34375, -0.21875, -1.484375, -0.953125, -1.109375, -2.328125, 0.140625, -0.21875, -1.90625,
            -2.0, 0.03125, -0.265625, -1.765625,
        ];
        let (x, w) = (ramp::<f32>(120, 5, 17, 8.0), ramp(24, 7, 13, 8.0));
        assert_close(&conv2d(&x, input, &w, Some(&[0.5, -1.0]), &conv), &expected, 0.0);
        let (x, w) = (ramp::<f64>(120, 5, 17, 8.0), ramp(24, 7, 13, 8.0));
        assert_close(&conv2d(&x, input, &w, Some(&[0.5, -1.0]), &conv), &expected, 0.0);
    }

    #[test]
    fn same_padding_puts_the_odd_column_after() {
        let window = Window { stride: [2; 2], padding: Padding::Same, ..Window::square(2) };
        let conv = ConvShape { out_channels: 1, groups: 1, window, placed: window.place([1, 3], "test").unwrap() };
        // Row 1 2 3 and a row of padding below it, columns (1 2) (3 ·): weights count tens and units.
        let y = conv2d(&[1.0, 2.0, 3.0], Nchw::new([1, 1, 1, 3]), &[10.0, 1.0, 100.0, 100.0], None, &conv);
        assert_eq!(y, [12.0, 30.0]);
    }

    #[test]
    fn linear_is_rows_of_weights_times_the_image() {
        let y = linear(&[1.0, 2.0, 3.0, 4.0], &[1.0, 10.0, 100.0, -1.0], Some(&[0.5, 0.0]), 2);
        assert_eq!(y, [21.5, 98.0, 43.5, 296.0]);
    }
}
