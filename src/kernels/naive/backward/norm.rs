//! Batch and local response normalisation.

use super::super::{BatchNorm, LocalResponse, Nchw, Real};

/// Where the statistics of a batch norm come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch itself: they move with the input.
    Batch,
    /// From elsewhere: constants.
    Running,
}

/// What [`batch_norm`] gives back.
#[derive(Debug, Clone, PartialEq)]
pub struct NormGradients<T> {
    /// `[N, C, H, W]`.
    pub input: Vec<T>,
    /// Of γ, `[C]`.
    pub scale: Vec<T>,
    /// Of β, `[C]`.
    pub shift: Vec<T>,
}

/// Gradients of [`batch_norm`](crate::kernels::naive::batch_norm), per channel over its `m` values with
/// `x̂ = (x − mean) / σ` and `σ = √(variance + ε)`:
/// `dβ = Σ dy`, `dγ = Σ dy · x̂`, and `dx = γ/σ · (dy − dβ/m − x̂ · dγ/m)`, or `γ/σ · dy` if the statistics are constants.
///
/// # Shapes
/// `x` and `dy` `[N, C, H, W]`.
pub fn batch_norm<T: Real>(
    x: &[T],
    input: Nchw,
    norm: BatchNorm<'_, T>,
    dy: &[T],
    statistics: Statistics,
) -> NormGradients<T> {
    input.assert_holds(x);
    input.assert_holds(dy);
    let count = T::of((input.n * input.plane()) as f64);
    let mut found = NormGradients { input: vec![T::zero(); x.len()], scale: vec![], shift: vec![] };
    for c in 0..input.c {
        let deviation = (norm.variance[c] + T::of(norm.epsilon)).sqrt();
        let gamma = norm.affine.map_or(T::one(), |(gamma, _)| gamma[c]);
        let values = || (0..input.n).flat_map(|n| input.channel(n, c));
        let normal = |i: usize| (x[i] - norm.mean[c]) / deviation;
        let shift: T = values().map(|i| dy[i]).sum();
        let scale: T = values().map(|i| dy[i] * normal(i)).sum();
        for i in values() {
            let moved = match statistics {
                Statistics::Batch => shift / count + normal(i) * scale / count,
                Statistics::Running => T::zero(),
            };
            found.input[i] = gamma / deviation * (dy[i] - moved);
        }
        found.scale.push(scale);
        found.shift.push(shift);
    }
    found
}

/// Gradient of [`local_response_norm`](crate::kernels::naive::local_response_norm): with `d[c] = k + α/size · Σ x[j]²`,
/// `dx[j] = dy[j] · d[j]^−β − 2 · α/size · β · x[j] · Σ dy[c] · x[c] · d[c]^(−β−1)`, over the channels `c` in whose window
/// `j` lies.
///
/// # Shapes
/// `x` and `dy` `[N, C, H, W]` to the same.
pub fn local_response_norm<T: Real>(x: &[T], input: Nchw, norm: LocalResponse, dy: &[T]) -> Vec<T> {
    input.assert_holds(x);
    input.assert_holds(dy);
    let (scale, beta, k) = (T::of(norm.alpha / norm.size as f64), T::of(norm.beta), T::of(norm.k));
    let mut dx = vec![T::zero(); x.len()];
    for n in 0..input.n {
        for pixel in 0..input.plane() {
            let at = |c: usize| input.channel(n, c).start + pixel;
            for c in 0..input.c {
                let window = norm.window(c, input.c);
                let divisor = k + scale * window.clone().map(|j| x[at(j)].powi(2)).sum::<T>();
                let common = T::of(2.0) * scale * beta * dy[at(c)] * x[at(c)] * divisor.powf(-beta - T::one());
                dx[at(c)] += dy[at(c)] * divisor.powf(-beta);
                window.for_each(|j| dx[at(j)] -= common * x[at(j)]);
            }
        }
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{assert_gradient, scatter};
    use super::super::super::{batch_norm as forward, batch_statistics, local_response_norm as response};
    use super::*;

    #[test]
    fn batch_norms_have_the_gradient_of_differences() {
        for shape in [[2, 3, 2, 3], [3, 2, 1, 1], [1, 1, 3, 2], [2, 1, 1, 1]] {
            let input = Nchw::new(shape);
            let (x, dy) = (scatter(input.len(), 1), scatter(input.len(), 2));
            let (gamma, beta) = (scatter(input.c, 3), scatter(input.c, 4));
            let y = |x: &[f64], gamma: &[f64], beta: &[f64]| {
                let [mean, variance] = batch_statistics(x, input);
                let affine = Some((gamma, beta));
                forward(x, input, BatchNorm { mean: &mean, variance: &variance, affine, epsilon: 0.1 })
            };
            let [mean, variance] = batch_statistics(&x, input);
            let affine = Some((gamma.as_slice(), beta.as_slice()));
            let norm = BatchNorm { mean: &mean, variance: &variance, affine, epsilon: 0.1 };
            let found = batch_norm(&x, input, norm, &dy, Statistics::Batch);
            assert_gradient(&found.input, &x, &dy, |x| y(x, &gamma, &beta));
            assert_gradient(&found.scale, &gamma, &dy, |gamma| y(&x, gamma, &beta));
            assert_gradient(&found.shift, &beta, &dy, |beta| y(&x, &gamma, beta));
            let fixed = batch_norm(&x, input, norm, &dy, Statistics::Running);
            assert_gradient(&fixed.input, &x, &dy, |x| forward(x, input, norm));
            let plain = BatchNorm { affine: None, ..norm };
            let found = batch_norm(&x, input, plain, &dy, Statistics::Running);
            assert_gradient(&found.input, &x, &dy, |x| forward(x, input, plain));
        }
    }

    #[test]
    fn batch_statistics_are_over_images_and_pixels_and_biased() {
        let [mean, variance] = batch_statistics(&[1.0, 3.0, 0.0, 0.0, 5.0, 7.0, 8.0, 0.0], Nchw::new([2, 2, 1, 2]));
        assert_eq!((mean, variance), (vec![4.0, 2.0], vec![5.0, 12.0]));
    }

    #[test]
    fn local_response_norms_have_the_gradient_of_differences() {
        for (size, shape) in
            [(5, [2, 7, 1, 2]), (4, [1, 6, 2, 1]), (1, [1, 3, 1, 1]), (9, [1, 4, 1, 2]), (2, [1, 2, 1, 1])]
        {
            let input = Nchw::new(shape);
            let (x, dy) = (scatter(input.len(), 1), scatter(input.len(), 2));
            let norm = LocalResponse { size, alpha: 0.8, beta: 0.75, k: 1.5 };
            let found = local_response_norm(&x, input, norm, &dy);
            assert_gradient(&found, &x, &dy, |x| response(x, input, norm));
        }
    }
}
