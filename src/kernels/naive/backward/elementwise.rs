//! Activations, products, softmax.

use super::super::{Nchw, Real};
use crate::activation::Activation;

/// Gradient of [`activation`](crate::kernels::naive::activation): `dx = f'(x) · dy`, where a derivative of 0 stops even
/// what is not finite.
pub fn activation<T: Real>(x: &[T], function: Activation, dy: &[T]) -> Vec<T> {
    assert_eq!(x.len(), dy.len(), "one gradient per value");
    let each = |(&x, &dy): (&T, &T)| {
        let slope = function.derivative(x);
        if slope.is_zero() { T::zero() } else { slope * dy }
    };
    x.iter().zip(dy).map(each).collect()
}

/// Gradients of [`multiply`](crate::kernels::naive::multiply) with respect to both factors: `da = b · dy`, and
/// `db = a · dy`, summed over the pixels of a channel if `b` is a gate.
///
/// # Shapes
/// `a` and `dy` `[N, C, H, W]`, `b` the same or `[N, C, 1, 1]`, to the shapes of `a` and `b`.
pub fn multiply<T: Real>(a: &[T], shape: Nchw, b: &[T], dy: &[T]) -> [Vec<T>; 2] {
    shape.assert_holds(a);
    shape.assert_holds(dy);
    let products: Vec<T> = a.iter().zip(dy).map(|(&a, &dy)| a * dy).collect();
    let of_b = products.chunks_exact(products.len() / b.len()).map(|channel| channel.iter().copied().sum()).collect();
    [super::super::multiply(dy, shape, b), of_b]
}

/// Gradient of [`softmax`](crate::kernels::naive::softmax) from its output `y`: `dx[c] = y[c] · (dy[c] − Σ y[j] · dy[j])`.
///
/// # Shapes
/// `[N, C, H, W]` to the same.
pub fn softmax<T: Real>(y: &[T], shape: Nchw, dy: &[T]) -> Vec<T> {
    shape.assert_holds(y);
    shape.assert_holds(dy);
    let mut dx = vec![T::zero(); y.len()];
    for n in 0..shape.n {
        for pixel in 0..shape.plane() {
            let at = |c: usize| shape.channel(n, c).start + pixel;
            let mean: T = (0..shape.c).map(|c| y[at(c)] * dy[at(c)]).sum();
            (0..shape.c).for_each(|c| dx[at(c)] = y[at(c)] * (dy[at(c)] - mean));
        }
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::super::super as naive;
    use super::super::super::testing::{assert_gradient, scatter};
    use super::*;
    use crate::random::Stream;

    const SHAPE: Nchw = Nchw::new([2, 3, 2, 3]);

    #[test]
    fn activations_have_the_gradient_of_differences() {
        use Activation::{HardSigmoid, HardSwish, Relu, Relu6, Sigmoid, Silu};
        // Both sides of every kink.
        let x: Vec<f64> = scatter(40, 1).into_iter().map(|v| 8.0 * v).collect();
        let dy = scatter(40, 2);
        for function in [Relu, Relu6, Silu, Sigmoid, HardSwish, HardSigmoid] {
            assert_gradient(&activation(&x, function, &dy), &x, &dy, |x| naive::activation(x, function));
        }
        assert_eq!(activation(&[-1.0, 1.0], Relu, &[f64::INFINITY, f64::INFINITY]), [0.0, f64::INFINITY]);
    }

    #[test]
    fn products_gates_and_softmax_have_the_gradient_of_differences() {
        let (a, dy) = (scatter(SHAPE.len(), 1), scatter(SHAPE.len(), 2));
        for factors in [SHAPE.len(), SHAPE.n * SHAPE.c] {
            let b = scatter(factors, 3);
            let [of_a, of_b] = multiply(&a, SHAPE, &b, &dy);
            assert_gradient(&of_a, &a, &dy, |a| naive::multiply(a, SHAPE, &b));
            assert_gradient(&of_b, &b, &dy, |b| naive::multiply(&a, SHAPE, b));
        }
        let y = naive::softmax(&a, SHAPE);
        assert_gradient(&softmax(&y, SHAPE, &dy), &a, &dy, |x| naive::softmax(x, SHAPE));
    }

    #[test]
    fn channel_moves_undo_each_other() {
        let (a, b) = (scatter(SHAPE.len(), 1), scatter(SHAPE.with_channels(2).len(), 2));
        let wide = SHAPE.with_channels(5);
        let dy = scatter(wide.len(), 3);
        let join = |a: &[f64], b: &[f64]| naive::concat(&[(a, SHAPE), (b, SHAPE.with_channels(2))]);
        assert_gradient(&naive::channel_slice(&dy, wide, 0..3), &a, &dy, |a| join(a, &b));
        assert_gradient(&naive::channel_slice(&dy, wide, 3..5), &b, &dy, |b| join(&a, b));
        let pad = |x: &[f64]| naive::channel_pad(x, SHAPE, [1, 1]);
        assert_gradient(&naive::channel_slice(&dy, wide, 1..4), &a, &dy, pad);
        let (x, dy) = (dy, a);
        assert_gradient(&naive::channel_pad(&dy, SHAPE, [1, 1]), &x, &dy, |x| naive::channel_slice(x, wide, 1..4));
    }

    #[test]
    fn noise_has_the_gradient_of_differences_and_keeps_the_mean() {
        let noise = Stream::new(3).fork(1);
        let (x, dy) = (scatter(SHAPE.len(), 1), scatter(SHAPE.len(), 2));
        let found = naive::dropout(&dy, 0.3, noise);
        assert!(found.contains(&0.0));
        assert_gradient(&found, &x, &dy, |x| naive::dropout(x, 0.3, noise));

        let many = Nchw::new([7, 2, 1, 3]);
        let (x, dy) = (scatter(many.len(), 1), scatter(many.len(), 2));
        let found = naive::stochastic_depth(&dy, many, 0.5, noise);
        assert_gradient(&found, &x, &dy, |x| naive::stochastic_depth(x, many, 0.5, noise));
        for (image, values) in found.chunks_exact(6).enumerate() {
            let dropped = noise.uniform(image as u64) < 0.5;
            assert!(values.iter().all(|v| (*v == 0.0) == dropped), "image {image} goes or stays as a whole");
        }
        let mean = naive::dropout(&[1.0; 10_000], 0.7, noise).iter().sum::<f64>() / 1e4;
        assert!((mean - 1.0).abs() < 0.06, "{mean}"); // four standard deviations
    }
}
