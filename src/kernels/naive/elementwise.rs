//! Sums, products, activations, softmax, and the operations that only move channels.

use super::{Nchw, Real};
use crate::activation::Activation;
use crate::random::Stream;
use std::ops::Range;

/// The function, applied to every element.
pub fn activation<T: Real>(x: &[T], function: Activation) -> Vec<T> {
    x.iter().map(|&v| function.apply(v)).collect()
}

/// The sum, element by element.
pub fn add<T: Real>(a: &[T], b: &[T]) -> Vec<T> {
    assert_eq!(a.len(), b.len(), "summands of one shape");
    a.iter().zip(b).map(|(&a, &b)| a + b).collect()
}

/// The product, element by element; `b` has the shape of `a` or is a gate `[N, C, 1, 1]`, one factor per channel.
///
/// # Shapes
/// `[N, C, H, W]` and `[N, C, H, W]` or `[N, C, 1, 1]` to `[N, C, H, W]`.
pub fn multiply<T: Real>(a: &[T], shape: Nchw, b: &[T]) -> Vec<T> {
    shape.assert_holds(a);
    let repeat = if b.len() == a.len() { 1 } else { shape.plane() };
    assert_eq!(b.len() * repeat, a.len(), "factors of the shape of {shape:?}, or one per channel");
    a.iter().enumerate().map(|(i, &v)| v * b[i / repeat]).collect()
}

/// Dropout: element `i` becomes 0 where the `i`-th number of `noise` is below `p`, and is divided by `1 − p` elsewhere.
/// The same function takes the output's gradient to the input's.
///
/// # Shapes
/// Any, unchanged; elements count in NCHW order.
pub fn dropout<T: Real>(x: &[T], p: f64, noise: Stream) -> Vec<T> {
    let scale = T::of(1.0 / (1.0 - p));
    x.iter().zip(0..).map(|(&v, i)| if noise.uniform(i) < p { T::zero() } else { v * scale }).collect()
}

/// Stochastic depth: image `n` becomes 0 where the `n`-th number of `noise` is below `p`, and is divided by `1 − p`
/// elsewhere; `torchvision.ops.stochastic_depth` in its mode `row`. The same function takes the output's gradient to the
/// input's.
///
/// # Shapes
/// `[N, C, H, W]` to the same.
pub fn stochastic_depth<T: Real>(x: &[T], shape: Nchw, p: f64, noise: Stream) -> Vec<T> {
    shape.assert_holds(x);
    let factors = dropout(&vec![T::one(); shape.n], p, noise);
    let image = shape.c * shape.plane();
    x.iter().enumerate().map(|(i, &v)| v * factors[i / image]).collect()
}

/// e^x, normalised over the channels of each pixel: `y[c] = e^(x[c] − max) / Σ e^(x[j] − max)`.
///
/// # Shapes
/// `[N, C, H, W]` to the same.
pub fn softmax<T: Real>(x: &[T], shape: Nchw) -> Vec<T> {
    shape.assert_holds(x);
    let mut y = x.to_vec();
    for n in 0..shape.n {
        for pixel in 0..shape.plane() {
            let at = |c: usize| shape.channel(n, c).start + pixel;
            let most = (0..shape.c).map(|c| x[at(c)]).fold(T::neg_infinity(), T::max);
            let sum: T = (0..shape.c).map(|c| (x[at(c)] - most).exp()).sum();
            (0..shape.c).for_each(|c| y[at(c)] = (x[at(c)] - most).exp() / sum);
        }
    }
    y
}

/// The channels of all parts behind one another, image by image. Each part comes with its shape.
///
/// # Shapes
/// `[N, C₁, H, W]`, `[N, C₂, H, W]`, … to `[N, C₁ + C₂ + …, H, W]`.
pub fn concat<T: Real>(parts: &[(&[T], Nchw)]) -> Vec<T> {
    let mut y = Vec::with_capacity(parts.iter().map(|(_, shape)| shape.len()).sum());
    for n in 0..parts.first().map_or(0, |(_, shape)| shape.n) {
        for (x, shape) in parts {
            shape.assert_holds(x);
            assert_eq!(shape.with_channels(0), parts[0].1.with_channels(0), "parts differ in channels only");
            let image = shape.c * shape.plane();
            y.extend_from_slice(&x[n * image..][..image]);
        }
    }
    y
}

/// Channels of zeros before and after those of `x`: the parameter-free shortcut of CIFAR ResNets.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, before + C + after, H, W]`.
pub fn channel_pad<T: Real>(x: &[T], shape: Nchw, [before, after]: [usize; 2]) -> Vec<T> {
    let (first, last) = (shape.with_channels(before), shape.with_channels(after));
    let zeros = vec![T::zero(); first.len().max(last.len())];
    concat(&[(&zeros[..first.len()], first), (x, shape), (&zeros[..last.len()], last)])
}

/// The given channels of every image.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, channels.len(), H, W]`.
pub fn channel_slice<T: Real>(x: &[T], shape: Nchw, channels: Range<usize>) -> Vec<T> {
    shape.assert_holds(x);
    assert!(channels.start <= channels.end && channels.end <= shape.c, "{channels:?} of {} channels", shape.c);
    let mut y = Vec::with_capacity(shape.with_channels(channels.len()).len());
    for n in 0..shape.n {
        channels.clone().for_each(|c| y.extend_from_slice(&x[shape.channel(n, c)]));
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, ramp};
    use super::*;

    const TWO: Nchw = Nchw::new([2, 1, 1, 2]);

    #[test]
    fn gates_multiply_whole_channels() {
        assert_eq!(multiply(&[1.0, 2.0, 3.0, 4.0], TWO, &[10.0, 100.0]), [10.0, 20.0, 300.0, 400.0]);
        assert_eq!(multiply(&[1.0, 2.0, 3.0, 4.0], TWO, &[2.0, 3.0, 4.0, 5.0]), [2.0, 6.0, 12.0, 20.0]);
    }

    #[test]
    fn softmax_survives_large_values_and_matches_pytorch() {
        let y = softmax(&ramp::<f64>(8, 5, 17, 8.0), Nchw::new([1, 4, 1, 2]));
        let expected = [
            0.0907132047384,
            0.152628296698,
            0.316620195308,
            0.53272510049,
            0.131986934087,
            0.222072861324,
            0.460679665867,
            0.0925737414873,
        ];
        assert_close(&y, &expected, 1e-12);
        assert_eq!(softmax(&[1e30f32, 1e30, -1e30], Nchw::new([1, 3, 1, 1])), [0.5, 0.5, 0.0]);
    }

    #[test]
    fn channels_move_within_their_own_image() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let both = concat(&[(&a, TWO), (&b, TWO)]);
        assert_eq!(both, [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        assert_eq!(channel_slice(&both, TWO.with_channels(2), 1..2), b);
        assert_eq!(channel_pad(&a, TWO, [0, 1]), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
        assert_eq!(channel_pad(&a, TWO, [1, 0]), [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    fn sums_and_functions_go_element_by_element() {
        assert_eq!(add(&[1.0, 2.0], &[10.0, -20.0]), [11.0, -18.0]);
        assert_eq!(activation(&[-1.0, 2.0, 7.0], Activation::Relu6), [0.0, 2.0, 6.0]);
    }
}
