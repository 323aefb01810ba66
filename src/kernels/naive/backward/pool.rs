//! Pooling, windowed and adaptive.

use super::super::pool::{divisors, regions, replaces};
use super::super::{Nchw, Real, for_each_tap};
use crate::shape::{Placed, Window};

/// Gradient of [`max_pool`](crate::kernels::naive::max_pool): each `dy` goes to the pixel that was the maximum, the first
/// of equals in reading order, and to the last NaN if there is one.
///
/// # Shapes
/// `x [N, C, H, W]` and `dy [N, C, Ho, Wo]` to `[N, C, H, W]`.
pub fn max_pool<T: Real>(x: &[T], input: Nchw, window: &Window, placed: &Placed, dy: &[T]) -> Vec<T> {
    input.assert_holds(x);
    let output = input.with_size(placed.output);
    output.assert_holds(dy);
    let mut dx = vec![T::zero(); x.len()];
    for n in 0..input.n {
        for c in 0..input.c {
            let (source, dy) = (input.channel(n, c), &dy[output.channel(n, c)]);
            let plane = &x[source.clone()];
            let mut best: Vec<Option<usize>> = vec![None; dy.len()];
            for tap in 0..window.taps() {
                for_each_tap(window, placed, [tap / window.kernel[1], tap % window.kernel[1]], |to, from| {
                    if best[to].is_none_or(|b| replaces(plane[from], plane[b])) {
                        best[to] = Some(from);
                    }
                });
            }
            for (best, &dy) in best.into_iter().zip(dy) {
                if let Some(best) = best {
                    dx[source.start + best] += dy;
                }
            }
        }
    }
    dx
}

/// Gradient of [`avg_pool`](crate::kernels::naive::avg_pool): each pixel gets its share of every mean it counts in.
///
/// # Shapes
/// `dy [N, C, Ho, Wo]` to `[N, C, H, W]`, which is `input`.
pub fn avg_pool<T: Real>(input: Nchw, window: &Window, placed: &Placed, count_include_pad: bool, dy: &[T]) -> Vec<T> {
    let output = input.with_size(placed.output);
    output.assert_holds(dy);
    let taps: Vec<T> = divisors(window, placed, count_include_pad);
    let mut dx = vec![T::zero(); input.len()];
    for n in 0..input.n {
        for c in 0..input.c {
            let (dx, dy) = (&mut dx[input.channel(n, c)], &dy[output.channel(n, c)]);
            for tap in 0..window.taps() {
                let tap = [tap / window.kernel[1], tap % window.kernel[1]];
                for_each_tap(window, placed, tap, |to, from| dx[from] += dy[to] / taps[to]);
            }
        }
    }
    dx
}

/// Gradient of [`adaptive_avg_pool`](crate::kernels::naive::adaptive_avg_pool).
///
/// # Shapes
/// `dy [N, C, size[0], size[1]]` to `[N, C, H, W]`, which is `input`.
pub fn adaptive_avg_pool<T: Real>(input: Nchw, size: [usize; 2], dy: &[T]) -> Vec<T> {
    adaptive(input, size, dy, |dx, _, region, dy| {
        region.iter().for_each(|&i| dx[i] += dy / T::of(region.len() as f64));
    })
}

/// Gradient of [`adaptive_max_pool`](crate::kernels::naive::adaptive_max_pool), with the choice of [`max_pool`].
///
/// # Shapes
/// `x [N, C, H, W]` and `dy [N, C, size[0], size[1]]` to `[N, C, H, W]`.
pub fn adaptive_max_pool<T: Real>(x: &[T], input: Nchw, size: [usize; 2], dy: &[T]) -> Vec<T> {
    input.assert_holds(x);
    adaptive(input, size, dy, |dx, plane, region, dy| {
        let x = &x[plane * input.plane()..][..input.plane()];
        let best = region.iter().copied().reduce(|best, next| if replaces(x[next], x[best]) { next } else { best });
        dx[best.expect("regions are never empty")] += dy;
    })
}

/// Calls `each(dx, plane, region, dy)` for every output of every channel.
fn adaptive<T: Real>(input: Nchw, size: [usize; 2], dy: &[T], each: impl Fn(&mut [T], usize, &[usize], T)) -> Vec<T> {
    input.with_size(size).assert_holds(dy);
    let regions = regions(input, size);
    let mut dx = vec![T::zero(); input.len()];
    let planes = dx.chunks_exact_mut(input.plane()).zip(dy.chunks_exact(regions.len()));
    for (plane, (dx, dy)) in planes.enumerate() {
        regions.iter().zip(dy).for_each(|(region, &dy)| each(dx, plane, region, dy));
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::super::super as naive;
    use super::super::super::testing::{assert_gradient, scatter};
    use super::*;
    use crate::shape::Padding;

    #[test]
    fn windowed_pools_have_the_gradient_of_differences() {
        let pad = |p| Padding::Symmetric(p);
        let three = Window { stride: [2; 2], ..Window::square(3) };
        for (shape, window) in [
            ([2, 2, 5, 6], Window { padding: pad([1; 2]), ceil: true, ..three }),
            ([1, 2, 6, 6], Window { padding: pad([1, 0]), ceil: true, ..three }),
            ([1, 1, 7, 8], Window { ceil: true, dilation: [2, 1], padding: pad([1; 2]), ..three }),
            ([2, 1, 5, 4], Window { stride: [3, 1], ..Window::square(2) }),
            ([1, 3, 4, 4], Window { padding: Padding::Same, ..three }),
            ([1, 1, 1, 1], Window { padding: pad([1; 2]), ..three }),
            ([1, 2, 4, 5], Window { stride: [2; 2], ..Window::square(1) }),
        ] {
            let input = Nchw::new(shape);
            let placed = window.place(input.size(), "test").unwrap();
            let (x, dy) = (scatter(input.len(), 1), scatter(input.with_size(placed.output).len(), 2));
            let found = max_pool(&x, input, &window, &placed, &dy);
            assert_gradient(&found, &x, &dy, |x| naive::max_pool(x, input, &window, &placed));
            for include in [true, false] {
                let found = avg_pool(input, &window, &placed, include, &dy);
                assert_gradient(&found, &x, &dy, |x| naive::avg_pool(x, input, &window, &placed, include));
            }
        }
    }

    #[test]
    fn adaptive_pools_have_the_gradient_of_differences() {
        for (shape, size) in
            [([2, 2, 5, 6], [3, 4]), ([1, 3, 4, 5], [1, 1]), ([1, 1, 2, 3], [3, 5]), ([1, 2, 3, 3], [3, 3])]
        {
            let input = Nchw::new(shape);
            let (x, dy) = (scatter(input.len(), 1), scatter(input.with_size(size).len(), 2));
            let found = adaptive_avg_pool(input, size, &dy);
            assert_gradient(&found, &x, &dy, |x| naive::adaptive_avg_pool(x, input, size));
            let found = adaptive_max_pool(&x, input, size, &dy);
            assert_gradient(&found, &x, &dy, |x| naive::adaptive_max_pool(x, input, size));
        }
    }

    #[test]
    fn maxima_choose_the_first_of_equals_and_the_last_nan_as_pytorch_does() {
        let (nan, low) = (f64::NAN, f64::NEG_INFINITY);
        let input = Nchw::new([1, 1, 2, 4]);
        let two = Window { stride: [2; 2], ..Window::square(2) };
        let placed = two.place([2, 4], "test").unwrap();
        // torch.nn.functional.max_pool2d(x, 2) and adaptive_max_pool2d(x, (1, 2))
        for (x, expected) in [
            ([1.0, 2.0, 2.0, 0.0, 2.0, 1.0, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ([1.0, nan, 2.0, 0.0, nan, 1.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
            ([low, low, low, -1.0, low, low, low, low], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        ] {
            assert_eq!(max_pool(&x, input, &two, &placed, &[1.0; 2]), expected);
            assert_eq!(adaptive_max_pool(&x, input, [1, 2], &[1.0; 2]), expected);
        }
    }
}
