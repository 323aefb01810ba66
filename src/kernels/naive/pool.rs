//! Pooling, windowed and adaptive.

use super::{Nchw, Real, for_each_tap};
use crate::shape::{Padding, Placed, Window};
use std::ops::Range;

/// The larger of the two, NaN if either is.
fn larger<T: Real>(a: T, b: T) -> T {
    if replaces(b, a) { b } else { a }
}

/// Whether a maximum search moves on from `best` to `next`: the first of equals stays, the last NaN wins.
pub(super) fn replaces<T: Real>(next: T, best: T) -> bool {
    next > best || next.is_nan()
}

/// Maximum over each window, `torch.nn.functional.max_pool2d`. The padding is −∞, a window with a NaN gives NaN.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, C, Ho, Wo]`.
pub fn max_pool<T: Real>(x: &[T], input: Nchw, window: &Window, placed: &Placed) -> Vec<T> {
    windowed(x, input, (window, placed), T::neg_infinity(), larger)
}

/// Mean over each window, `torch.nn.functional.avg_pool2d`: sum of the pixels under the window divided by their number.
/// With `count_include_pad` the number counts the padding too, but never what a `ceil` window reaches beyond it.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, C, Ho, Wo]`.
pub fn avg_pool<T: Real>(x: &[T], input: Nchw, window: &Window, placed: &Placed, count_include_pad: bool) -> Vec<T> {
    let mut y = windowed(x, input, (window, placed), T::zero(), |sum, v| sum + v);
    let taps: Vec<T> = divisors(window, placed, count_include_pad);
    for plane in y.chunks_exact_mut(taps.len()) {
        plane.iter_mut().zip(&taps).for_each(|(y, &taps)| *y /= taps);
    }
    y
}

/// What the mean of each output pixel divides by. A window without taps is empty: its sum is 0, and so is 0 / 1.
pub(super) fn divisors<T: Real>(window: &Window, placed: &Placed, include_pad: bool) -> Vec<T> {
    let [rows, columns] = [0, 1].map(|axis| {
        (0..placed.output[axis]).map(|o| count(window, placed, (axis, o), include_pad)).collect::<Vec<_>>()
    });
    rows.iter().flat_map(|r| columns.iter().map(move |c| T::of((r * c).max(1) as f64))).collect()
}

/// Taps of window `o` along `axis` that the mean divides by.
fn count(window: &Window, placed: &Placed, (axis, o): (usize, usize), include_pad: bool) -> usize {
    let (input, before) = (placed.input[axis], placed.before[axis]);
    let counted = match window.padding {
        _ if !include_pad => before..before + input,
        Padding::Symmetric(_) => 0..before + input + before,
        Padding::Same => 0..usize::MAX, // as much padding as the windows need
    };
    (0..window.kernel[axis])
        .filter(|t| counted.contains(&(o * window.stride[axis] + t * window.dilation[axis])))
        .count()
}

fn windowed<T: Real>(
    x: &[T],
    input: Nchw,
    (window, placed): (&Window, &Placed),
    start: T,
    join: impl Fn(T, T) -> T,
) -> Vec<T> {
    input.assert_holds(x);
    assert_eq!(placed.input, input.size(), "the window is placed on another input");
    let output = input.with_size(placed.output);
    let mut y = vec![start; output.len()];
    for n in 0..input.n {
        for c in 0..input.c {
            let (source, plane) = (&x[input.channel(n, c)], &mut y[output.channel(n, c)]);
            for tap in 0..window.taps() {
                let tap = [tap / window.kernel[1], tap % window.kernel[1]];
                for_each_tap(window, placed, tap, |to, from| plane[to] = join(plane[to], source[from]));
            }
        }
    }
    y
}

/// Mean over `size` regions that tile the image, `torch.nn.functional.adaptive_avg_pool2d`: output `o` of `O` covers the
/// inputs from `⌊o·I/O⌋` up to `⌈(o + 1)·I/O⌉`, so regions may overlap.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, C, size[0], size[1]]`.
pub fn adaptive_avg_pool<T: Real>(x: &[T], input: Nchw, size: [usize; 2]) -> Vec<T> {
    adaptive(x, input, size, |region| {
        let (count, sum) = region.fold((0, T::zero()), |(count, sum), v| (count + 1, sum + v));
        sum / T::of(f64::from(count))
    })
}

/// Maximum over the regions of [`adaptive_avg_pool`], `torch.nn.functional.adaptive_max_pool2d`. A region with a NaN
/// gives NaN.
///
/// # Shapes
/// `[N, C, H, W]` to `[N, C, size[0], size[1]]`.
pub fn adaptive_max_pool<T: Real>(x: &[T], input: Nchw, size: [usize; 2]) -> Vec<T> {
    adaptive(x, input, size, |region| region.fold(T::neg_infinity(), larger))
}

fn adaptive<T: Real>(
    x: &[T],
    input: Nchw,
    size: [usize; 2],
    reduce: impl Fn(&mut dyn Iterator<Item = T>) -> T,
) -> Vec<T> {
    input.assert_holds(x);
    assert!(input.plane() > 0, "an image without pixels has no mean");
    let regions = regions(input, size);
    let planes = x.chunks_exact(input.plane());
    planes.flat_map(|plane| regions.iter().map(|r| reduce(&mut r.iter().map(|&i| plane[i])))).collect()
}

/// The pixels of one channel under each output of an adaptive pool.
pub(super) fn regions(input: Nchw, size: [usize; 2]) -> Vec<Vec<usize>> {
    let region = |o: usize, extent: usize, outputs: usize| -> Range<usize> {
        o * extent / outputs..((o + 1) * extent).div_ceil(outputs)
    };
    let pixels = |oy, ox| {
        let columns = region(ox, input.w, size[1]);
        region(oy, input.h, size[0]).flat_map(|r| columns.clone().map(move |c| r * input.w + c)).collect()
    };
    (0..size[0]).flat_map(|oy| (0..size[1]).map(move |ox| (oy, ox))).map(|(oy, ox)| pixels(oy, ox)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, ramp};
    use super::*;

    const X: Nchw = Nchw::new([1, 1, 5, 6]);

    fn window(kernel: usize, stride: usize, padding: usize) -> Window {
        let padding = Padding::Symmetric([padding; 2]);
        Window { stride: [stride; 2], padding, ceil: true, ..Window::square(kernel) }
    }

    fn average(size: [usize; 2], window: Window, count_include_pad: bool) -> Vec<f64> {
        let input = X.with_size(size);
        let placed = window.place(size, "test").unwrap();
        avg_pool(&ramp(input.len(), 5, 17, 8.0), input, &window, &placed, count_include_pad)
    }

    #[test]
    fn means_divide_by_the_padded_extent_and_not_beyond_it() {
        // torch.nn.functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=...)
        let included = [
            -0.180555555556,
            0.0,
            0.125,
            -0.0833333333333,
            0.0555555555556,
            -0.0416666666667,
            0.0277777777778,
            -0.145833333333,
            -0.138888888889,
            0.180555555556,
            0.0694444444444,
            0.125,
        ];
        assert_close(&average([5, 6], window(3, 2, 1), true), &included, 1e-11);
        let excluded = [
            -0.40625,
            0.0,
            0.1875,
            -0.25,
            0.0833333333333,
            -0.0416666666667,
            0.0277777777778,
            -0.291666666667,
            -0.3125,
            0.270833333333,
            0.104166666667,
            0.375,
        ];
        assert_close(&average([5, 6], window(3, 2, 1), false), &excluded, 1e-11);
        assert_close(&average([5, 6], window(2, 3, 0), true), &[-0.40625, 0.40625, -0.3125, -0.03125], 1e-12);
        // 6×6: the last windows reach past the padding, which the divisor must not count.
        let beyond = [
            -0.180555555556,
            0.0,
            0.125,
            -0.0833333333333,
            0.0555555555556,
            -0.0416666666667,
            0.0277777777778,
            -0.145833333333,
            -0.138888888889,
            0.138888888889,
            -0.0277777777778,
            0.0625,
            0.0,
            -0.0625,
            -0.145833333333,
            -0.09375,
        ];
        assert_close(&average([6, 6], window(3, 2, 1), true), &beyond, 1e-11);
    }

    #[test]
    fn maxima_ignore_padding_keep_nan_and_dilate() {
        let nan = f64::NAN;
        let x = [1.0, 2.0, nan, 0.0, 3.0, 4.0, 5.0, 6.0];
        let input = Nchw::new([1, 1, 2, 4]);
        let pairs = window(2, 2, 0);
        let placed = pairs.place([2, 4], "test").unwrap();
        assert_close(&max_pool(&x, input, &pairs, &placed), &[4.0, nan], 0.0);
        assert_close(&adaptive_max_pool(&x, input, [1, 2]), &[4.0, nan], 0.0);

        let padded = window(3, 2, 1);
        let placed = padded.place([1, 1], "test").unwrap();
        assert_eq!(max_pool(&[-7.0], Nchw::new([1, 1, 1, 1]), &padded, &placed), [-7.0]);

        let dilated = Window { dilation: [2; 2], ..window(3, 2, 1) };
        let placed = dilated.place([7, 7], "test").unwrap();
        let y = max_pool(&ramp::<f64>(49, 5, 17, 8.0), X.with_size([7, 7]), &dilated, &placed);
        assert_eq!(y, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.25, 0.625, 0.625]); // torch.nn.functional.max_pool2d
    }

    #[test]
    fn adaptive_regions_overlap_as_in_pytorch() {
        let x = ramp::<f64>(30, 5, 17, 8.0);
        let mean = [
            -0.40625,
            -0.3125,
            0.40625,
            -0.03125,
            0.0833333333333,
            0.0,
            0.1875,
            0.104166666667,
            -0.3125,
            0.3125,
            -0.03125,
            0.0625,
        ];
        assert_close(&adaptive_avg_pool(&x, X, [3, 4]), &mean, 1e-11);
        let most = [0.625, 0.25, 1.0, 1.0, 0.75, 0.875, 1.0, 1.0, 0.25, 0.875, 1.0, 0.625];
        assert_eq!(adaptive_max_pool(&x, X, [3, 4]), most);
        // More outputs than inputs: regions of one pixel repeat.
        let upward = [
            -1.0, -0.6875, -0.375, -0.0625, 0.25, -0.0625, -0.28125, -0.5, -0.1875, 0.125, 0.875, 0.125, -0.625,
            -0.3125, 0.0,
        ];
        assert_close(&adaptive_avg_pool(&ramp::<f64>(6, 5, 17, 8.0), X.with_size([2, 3]), [3, 5]), &upward, 1e-12);
    }
}
