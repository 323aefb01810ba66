//! Convolution and the fully connected layer.

use super::super::conv::for_each_row;
use super::super::{ConvShape, Nchw, Real};

/// Gradient of [`conv2d`](crate::kernels::naive::conv2d) with respect to its input: `dx[i, p] = Σ w[o, i, t] · dy[o, q]`,
/// over the outputs `o` of the group and all taps `t` and pixels `q` with which the window reads pixel `p`.
///
/// # Shapes
/// `dy [N, O, Ho, Wo]` and `weight` to `[N, C, H, W]`, which is `input`.
pub fn conv2d_input<T: Real>(dy: &[T], input: Nchw, weight: &[T], conv: &ConvShape) -> Vec<T> {
    conv.assert_fits(input, weight, None);
    conv.output(input).assert_holds(dy);
    let mut dx = vec![T::zero(); input.len()];
    let (step, taps) = (conv.window.stride[1], conv.window.taps());
    for_each_filter(input, conv, |source, output, filter| {
        let (dx, dy) = (&mut dx[source], &dy[output]);
        for (t, &weight) in weight[filter..][..taps].iter().enumerate() {
            for_each_row(conv, t, |outputs, first| {
                dx[first..].iter_mut().step_by(step).zip(&dy[outputs]).for_each(|(dx, &dy)| *dx += weight * dy);
            });
        }
    });
    dx
}

/// Gradient of [`conv2d`](crate::kernels::naive::conv2d) with respect to its weight: `dw[o, i, t] = Σ x[i, p] · dy[o, q]`,
/// over all images and the pixels `q` whose tap `t` reads a pixel `p`.
///
/// # Shapes
/// `x [N, C, H, W]` and `dy [N, O, Ho, Wo]` to `[O, C / groups, kh, kw]`.
pub fn conv2d_weight<T: Real>(x: &[T], input: Nchw, dy: &[T], conv: &ConvShape) -> Vec<T> {
    input.assert_holds(x);
    conv.output(input).assert_holds(dy);
    let mut dw = vec![T::zero(); conv.weights(input)];
    let (step, taps) = (conv.window.stride[1], conv.window.taps());
    for_each_filter(input, conv, |source, output, filter| {
        let (x, dy) = (&x[source], &dy[output]);
        for (t, dw) in dw[filter..][..taps].iter_mut().enumerate() {
            for_each_row(conv, t, |outputs, first| {
                *dw += x[first..].iter().step_by(step).zip(&dy[outputs]).map(|(&x, &dy)| x * dy).sum::<T>();
            });
        }
    });
    dw
}

/// Calls `each(input channel, output channel, first tap)` for every image and filter, in the order of the forward loops.
fn for_each_filter(
    input: Nchw,
    conv: &ConvShape,
    mut each: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>, usize),
) {
    let (output, per_group, outs) = (conv.output(input), input.c / conv.groups, conv.out_channels / conv.groups);
    for n in 0..input.n {
        for o in 0..conv.out_channels {
            for i in 0..per_group {
                let source = input.channel(n, o / outs * per_group + i);
                each(source, output.channel(n, o), (o * per_group + i) * conv.window.taps());
            }
        }
    }
}

/// The sum of each channel over images and pixels: the gradient of a bias.
///
/// # Shapes
/// `[N, C, H, W]` to `[C]`.
pub fn channel_sums<T: Real>(dy: &[T], shape: Nchw) -> Vec<T> {
    shape.assert_holds(dy);
    let sum = |c| (0..shape.n).flat_map(|n| &dy[shape.channel(n, c)]).copied().sum();
    (0..shape.c).map(sum).collect()
}

/// Gradient of [`linear`](crate::kernels::naive::linear) with respect to its input: `dx[n,i] = Σ_o w[o,i] · dy[n,o]`.
///
/// # Shapes
/// `dy [N, O]` and `weight [O, features]` to `[N, features]`; `outputs` is `O`.
pub fn linear_input<T: Real>(dy: &[T], weight: &[T], outputs: usize) -> Vec<T> {
    let features = weight.len() / outputs;
    let mut dx = vec![T::zero(); dy.len() / outputs * features];
    for (dx, dy) in dx.chunks_exact_mut(features).zip(dy.chunks_exact(outputs)) {
        for (row, &dy) in weight.chunks_exact(features).zip(dy) {
            dx.iter_mut().zip(row).for_each(|(dx, &w)| *dx += w * dy);
        }
    }
    dx
}

/// Gradient of [`linear`](crate::kernels::naive::linear) with respect to its weight: `dw[o,i] = Σ_n dy[n,o] · x[n,i]`.
///
/// # Shapes
/// `x [N, features]` and `dy [N, O]` to `[O, features]`; `outputs` is `O`.
pub fn linear_weight<T: Real>(x: &[T], dy: &[T], outputs: usize) -> Vec<T> {
    let features = x.len() / (dy.len() / outputs);
    let mut dw = vec![T::zero(); outputs * features];
    for (x, dy) in x.chunks_exact(features).zip(dy.chunks_exact(outputs)) {
        for (row, &dy) in dw.chunks_exact_mut(features).zip(dy) {
            row.iter_mut().zip(x).for_each(|(dw, &x)| *dw += dy * x);
        }
    }
    dw
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{assert_gradient, scatter};
    use super::super::super::{conv2d, linear};
    use super::*;
    use crate::shape::{Padding, Window};

    fn check(input: [usize; 4], out_channels: usize, groups: usize, window: Window) {
        let input = Nchw::new(input);
        let conv = ConvShape { out_channels, groups, window, placed: window.place(input.size(), "test").unwrap() };
        let (x, w, b) = (scatter(input.len(), 1), scatter(conv.weights(input), 2), scatter(out_channels, 3));
        let output = conv.output(input);
        let dy = scatter(output.len(), 4);
        let y = |x: &[f64], w: &[f64], b: &[f64]| conv2d(x, input, w, Some(b), &conv);
        assert_gradient(&conv2d_input(&dy, input, &w, &conv), &x, &dy, |x| y(x, &w, &b));
        assert_gradient(&conv2d_weight(&x, input, &dy, &conv), &w, &dy, |w| y(&x, w, &b));
        assert_gradient(&channel_sums(&dy, output), &b, &dy, |b| y(&x, &w, b));
    }

    #[test]
    fn convolutions_have_the_gradient_of_differences() {
        let plain = Window::square(3);
        let pad = |p| Padding::Symmetric(p);
        check([2, 3, 4, 5], 4, 1, Window::square(1));
        check([1, 3, 5, 4], 2, 1, Window { stride: [2, 3], ..Window::square(1) });
        check([2, 2, 5, 6], 3, 1, Window { padding: pad([1, 1]), ..plain });
        check([1, 4, 7, 6], 6, 2, Window { stride: [2, 1], padding: pad([0, 2]), ..plain });
        check([2, 3, 5, 5], 3, 3, Window { stride: [2; 2], padding: pad([1; 2]), ..plain });
        check([1, 3, 4, 4], 6, 3, Window { padding: pad([1; 2]), ..plain }); // two filters per channel
        check([1, 2, 7, 8], 2, 1, Window { kernel: [2, 3], dilation: [3, 2], padding: pad([2, 1]), ..plain });
        check([1, 2, 5, 6], 2, 1, Window { stride: [2; 2], padding: Padding::Same, ..plain });
        check([1, 1, 1, 1], 2, 1, Window { padding: pad([4; 2]), ..plain }); // mostly padding
        check([1, 2, 6, 5], 2, 1, Window { stride: [4, 3], ..Window::square(2) }); // pixels nobody reads
    }

    #[test]
    fn linear_layers_have_the_gradient_of_differences() {
        for (n, features, outputs) in [(1, 1, 1), (3, 5, 2), (2, 4, 7)] {
            let (x, w, b) = (scatter(n * features, 1), scatter(features * outputs, 2), scatter(outputs, 3));
            let dy = scatter(n * outputs, 4);
            let y = |x: &[f64], w: &[f64], b: &[f64]| linear(x, w, Some(b), outputs);
            assert_gradient(&linear_input(&dy, &w, outputs), &x, &dy, |x| y(x, &w, &b));
            assert_gradient(&linear_weight(&x, &dy, outputs), &w, &dy, |w| y(&x, w, &b));
            assert_gradient(&channel_sums(&dy, Nchw::new([n, outputs, 1, 1])), &b, &dy, |b| y(&x, &w, b));
        }
    }
}
