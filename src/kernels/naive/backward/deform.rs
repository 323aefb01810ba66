//! Deformable convolution.

use super::super::deform::{Corners, Samples, bilinear};
use super::super::{ConvShape, Nchw, Real, Sampling};

/// What [`deform_conv2d`] gives back, each in the shape of what it is the gradient of. The bias has
/// [`channel_sums`](super::channel_sums).
#[derive(Debug, Clone, PartialEq)]
pub struct DeformGradients<T> {
    /// `[N, C, H, W]`.
    pub input: Vec<T>,
    /// `[N, 2 · groups · kh · kw, Ho, Wo]`.
    pub offset: Vec<T>,
    /// `[N, groups · kh · kw, Ho, Wo]`, if there is a mask.
    pub mask: Option<Vec<T>>,
    /// `[O, C / groups, kh, kw]`.
    pub weight: Vec<T>,
}

/// Gradients of [`deform_conv2d`](crate::kernels::naive::deform_conv2d) as torchvision has them.
///
/// With `dc` the gradient of one sample before it meets its weight, the input gets `m · dc` times each corner's bilinear
/// weight, the mask `dc` times the sample, and the offset `m · dc` times the slope of the image there. Where the image
/// has a kink (at whole pixels) the slope is the one below and to the right; that holds one pixel outside too.
///
/// # Shapes
/// As the forward function, with `dy [N, O, Ho, Wo]` instead of the bias.
pub fn deform_conv2d<T: Real>(
    x: &[T],
    input: Nchw,
    sampling: Sampling<'_, T>,
    weight: &[T],
    dy: &[T],
    conv: &ConvShape,
) -> DeformGradients<T> {
    input.assert_holds(x);
    conv.assert_fits(input, weight, None);
    let (output, rows) = (conv.output(input), input.c * conv.window.taps());
    output.assert_holds(dy);
    let mut gradients = DeformGradients {
        input: vec![T::zero(); x.len()],
        offset: vec![T::zero(); sampling.offset.len()],
        mask: sampling.mask.map(|m| vec![T::zero(); m.len()]),
        weight: vec![T::zero(); weight.len()],
    };
    let mut columns = vec![T::zero(); rows * output.plane()];
    for n in 0..input.n {
        let samples = Samples { image: n, input, sampling, conv };
        samples.read(x, &mut columns);
        let mut of_columns = vec![T::zero(); columns.len()];
        let per_filter = rows / conv.groups;
        for o in 0..conv.out_channels {
            let group = o / (conv.out_channels / conv.groups) * per_filter * output.plane();
            let dy = &dy[output.channel(n, o)];
            for row in 0..per_filter {
                let column = group + row * dy.len()..group + (row + 1) * dy.len();
                let (w, dw) = (weight[o * per_filter + row], &mut gradients.weight[o * per_filter + row]);
                *dw += columns[column.clone()].iter().zip(dy).map(|(&c, &dy)| c * dy).sum::<T>();
                of_columns[column].iter_mut().zip(dy).for_each(|(dc, &dy)| *dc += w * dy);
            }
        }
        for (row, dc) in of_columns.chunks_exact(output.plane()).enumerate() {
            gradients.add_row(x, &samples, row, dc);
        }
    }
    gradients
}

impl<T: Real> DeformGradients<T> {
    /// Adds what the gradient `dc` of the samples of `row` is worth to the input, the offset and the mask.
    fn add_row(&mut self, x: &[T], samples: &Samples<'_, T>, row: usize, dc: &[T]) {
        let (source, factors, size) = (samples.source(row), samples.factors(row), samples.input.size());
        let [down, across] = [0, 1].map(|axis| samples.shifts(row, axis).start);
        for (pixel, (place, &dc)) in samples.places(row).zip(dc).enumerate() {
            let factor = samples.sampling.mask.map_or(T::one(), |m| m[factors.start + pixel]);
            if let Some(mask) = &mut self.mask {
                mask[factors.start + pixel] += dc * bilinear(&x[source.clone()], size, place);
            }
            if !(0..2).all(|axis| place[axis] >= -T::one() && place[axis] < T::of(size[axis] as f64)) {
                continue;
            }
            let corners = Corners::around(size, place);
            let slopes = slopes(&corners, &x[source.clone()]);
            self.offset[down + pixel] += factor * dc * slopes[0];
            self.offset[across + pixel] += factor * dc * slopes[1];
            for (at, weight) in corners.pixel.into_iter().zip(corners.weights()) {
                if let Some(at) = at.filter(|_| weight > T::zero()) {
                    self.input[source.start + at] += factor * dc * weight;
                }
            }
        }
    }
}

/// How the bilinear image changes downwards and to the right.
fn slopes<T: Real>(corners: &Corners<T>, image: &[T]) -> [T; 2] {
    let [above_left, above_right, below_left, below_right] =
        corners.pixel.map(|pixel| pixel.map_or(T::zero(), |i| image[i]));
    let ([below, right], one) = (corners.past, T::one());
    [
        (one - right) * (below_left - above_left) + right * (below_right - above_right),
        (one - below) * (above_right - above_left) + below * (below_right - below_left),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::deform_conv2d as forward;
    use super::super::super::testing::{assert_gradient, scatter};
    use super::super::channel_sums;
    use super::*;
    use crate::shape::{Padding, Window};

    /// Shifts whose samples keep away from the kinks at whole pixels, up to two pixels and a half each way.
    fn shifts(len: usize) -> Vec<f64> {
        scatter(len, 5).into_iter().map(|v| (v * 2.5).floor() + 0.5 + 0.45 * v).collect()
    }

    fn check(input: [usize; 4], out_channels: usize, [groups, steering]: [usize; 2], window: Window) {
        let input = Nchw::new(input);
        let conv = ConvShape { out_channels, groups, window, placed: window.place(input.size(), "test").unwrap() };
        let output = conv.output(input);
        let fields = output.with_channels(steering * window.taps()).len();
        let (x, w, b) = (scatter(input.len(), 1), scatter(conv.weights(input), 2), scatter(out_channels, 3));
        let (dy, offset, mask) = (scatter(output.len(), 4), shifts(2 * fields), scatter(fields, 6));
        for mask in [None, Some(mask.as_slice())] {
            let sampling = Sampling { offset: &offset, mask, groups: steering };
            let run =
                |x: &[f64], sampling: Sampling<'_, f64>, w: &[f64]| forward(x, input, sampling, w, Some(&b), &conv);
            let found = deform_conv2d(&x, input, sampling, &w, &dy, &conv);
            assert_gradient(&found.input, &x, &dy, |x| run(x, sampling, &w));
            assert_gradient(&found.offset, &offset, &dy, |offset| run(&x, Sampling { offset, ..sampling }, &w));
            assert_gradient(&found.weight, &w, &dy, |w| run(&x, sampling, w));
            assert_eq!(found.mask.is_some(), mask.is_some());
            if let (Some(found), Some(mask)) = (found.mask, mask) {
                assert_gradient(&found, mask, &dy, |m| run(&x, Sampling { mask: Some(m), ..sampling }, &w));
            }
            assert_gradient(&channel_sums(&dy, output), &b, &dy, |b| forward(&x, input, sampling, &w, Some(b), &conv));
        }
    }

    #[test]
    fn both_versions_have_the_gradient_of_differences() {
        let pad = |p| Padding::Symmetric(p);
        check([2, 2, 4, 5], 3, [1, 1], Window { padding: pad([1; 2]), ..Window::square(3) });
        check([1, 4, 5, 4], 2, [2, 2], Window { stride: [2, 1], padding: pad([0, 1]), ..Window::square(2) });
        check([1, 4, 6, 6], 4, [4, 2], Window { dilation: [2, 1], padding: pad([1; 2]), ..Window::square(2) });
        check([2, 3, 3, 1], 2, [1, 3], Window::square(1));
    }

    #[test]
    fn slopes_and_borders_are_torchvisions() {
        let input = Nchw::new([1, 1, 1, 2]);
        let window = Window::square(1);
        let conv = ConvShape { out_channels: 1, groups: 1, window, placed: window.place([1, 2], "test").unwrap() };
        // torchvision.ops.deform_conv2d on the image [4, 8]: where, gradient of offset, of the image, of the mask.
        for (y, x, offset, image, mask) in [
            (0.0, -1.0, [0.0, 4.0], [0.0, 0.0], 0.0),
            (-1.0, 0.0, [4.0, 0.0], [0.0, 0.0], 0.0),
            (-1.0, 0.5, [6.0, 0.0], [0.0, 0.0], 0.0),
            (-1.0, -1.0, [0.0, 0.0], [0.0, 0.0], 0.0),
            (0.0, 2.0, [0.0, 0.0], [0.0, 0.0], 0.0),
            (0.0, 1.0, [-8.0, -8.0], [0.0, 1.0], 8.0),
            (0.0, 0.0, [-4.0, 4.0], [1.0, 0.0], 4.0),
            (0.0, -0.5, [-2.0, 4.0], [0.5, 0.0], 2.0),
            (0.0, 1.5, [-4.0, -8.0], [0.0, 0.5], 4.0),
            (1.0, 0.0, [0.0, 0.0], [0.0, 0.0], 0.0),
            (f64::NAN, 0.0, [0.0, 0.0], [0.0, 0.0], 0.0),
            (0.0, f64::INFINITY, [0.0, 0.0], [0.0, 0.0], 0.0),
        ] {
            let offsets = [y, 100.0, x, 100.0]; // the second pixel samples far outside
            let sampling = Sampling { offset: &offsets, mask: Some(&[1.0, 1.0]), groups: 1 };
            let found = deform_conv2d(&[4.0, 8.0], input, sampling, &[1.0], &[1.0, 1.0], &conv);
            assert_eq!(found.offset, [offset[0], 0.0, offset[1], 0.0], "at ({y}, {x})");
            assert_eq!(found.input, image, "at ({y}, {x})");
            assert_eq!(found.mask, Some(vec![mask, 0.0]), "at ({y}, {x})");
        }
    }
}
