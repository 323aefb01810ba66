//! The definition of correct: every operation as nested loops over contiguous NCHW slices, in `f32` or `f64`.
//!
//! Nothing here is clever. A formula of the documentation is a loop in the code, semantics are PyTorch's to the last
//! border rule, and each fast kernel is held against its namesake here. The one concession to speed is the order of
//! the loops (the innermost runs along an image row), because tests push whole networks through this room.
//!
//! Functions return a new vector in the output's shape and assert that slices are as long as their shapes say;
//! whoever calls them has checked the user's numbers before.

#![deny(unsafe_code)]

pub mod backward;

mod conv;
mod deform;
mod elementwise;
mod norm;
mod pool;

pub use conv::{ConvShape, conv2d, linear};
pub use deform::{Sampling, deform_conv2d};
pub use elementwise::{
    activation, add, channel_pad, channel_slice, concat, dropout, multiply, softmax, stochastic_depth,
};
pub use norm::{BatchNorm, LocalResponse, batch_norm, batch_statistics, local_response_norm};
pub use pool::{adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool};

use crate::shape::{Placed, Window};
use num_traits::{Float, NumAssign};
use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::Range;

/// The floats the oracle computes in.
pub trait Real: Float + NumAssign + Sum + Default + Debug + Display + Send + Sync + 'static {
    /// The nearest value of this type.
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// The shape of a contiguous batch of images, channel by channel: element `(n, c, y, x)` lies at
/// `((n·C + c)·H + y)·W + x`. A batch of vectors has `h = w = 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nchw {
    /// Images.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Nchw {
    /// Images, channels, rows, columns.
    pub const fn new([n, c, h, w]: [usize; 4]) -> Self {
        Nchw { n, c, h, w }
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.n * self.c * self.h * self.w
    }

    /// True if some extent is zero.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pixels of one channel of one image.
    pub const fn plane(&self) -> usize {
        self.h * self.w
    }

    /// Rows and columns.
    pub const fn size(&self) -> [usize; 2] {
        [self.h, self.w]
    }

    /// The same images with another number of channels.
    pub const fn with_channels(self, c: usize) -> Self {
        Nchw { c, ..self }
    }

    /// The same images with another height and width.
    pub const fn with_size(self, [h, w]: [usize; 2]) -> Self {
        Nchw { h, w, ..self }
    }

    /// The indices of channel `c` of image `n`.
    fn channel(&self, n: usize, c: usize) -> Range<usize> {
        let start = (n * self.c + c) * self.plane();
        start..start + self.plane()
    }

    fn assert_holds<T>(&self, values: &[T]) {
        assert_eq!(values.len(), self.len(), "a slice for {self:?}");
    }
}

/// Outputs along `axis` for which kernel tap `tap` falls on the input and not on the padding around it.
fn outputs_on_input(window: &Window, placed: &Placed, axis: usize, tap: usize) -> Range<usize> {
    let (stride, before) = (window.stride[axis], placed.before[axis]);
    let reach = tap * window.dilation[axis];
    let end = (placed.input[axis] + before).saturating_sub(reach).div_ceil(stride).min(placed.output[axis]);
    let start = before.saturating_sub(reach).div_ceil(stride);
    start.min(end)..end
}

/// Calls `each(output pixel, input pixel)` for every output whose tap `[ty, tx]` falls on the input; both are indices
/// into one channel.
fn for_each_tap(window: &Window, placed: &Placed, [ty, tx]: [usize; 2], mut each: impl FnMut(usize, usize)) {
    for oy in outputs_on_input(window, placed, 0, ty) {
        let iy = oy * window.stride[0] + ty * window.dilation[0] - placed.before[0];
        for ox in outputs_on_input(window, placed, 1, tx) {
            let ix = ox * window.stride[1] + tx * window.dilation[1] - placed.before[1];
            each(oy * placed.output[1] + ox, iy * placed.input[1] + ix);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::Real;

    /// A sawtooth of `len` values in steps of `1/scale`, wrapped at `modulus`; the recipe the PyTorch numbers in the
    /// tests were made with.
    pub(crate) fn ramp<T: Real>(len: usize, step: usize, modulus: usize, scale: f64) -> Vec<T> {
        (0..len).map(|i| T::of(((i * step % modulus) as f64 - (modulus / 2) as f64) / scale)).collect()
    }

    /// `len` values in ±1 without pattern or ties: a fair place to differentiate at.
    pub(crate) fn scatter(len: usize, seed: u64) -> Vec<f64> {
        let stream = crate::random::Stream::new(seed);
        (0..len as u64).map(|i| 2.0 * stream.uniform(i) - 1.0).collect()
    }

    /// Fails unless `found` is the gradient at `at` of the sum of `f`'s values times `dy`, by differences over four points
    /// (error of the order of the step's fourth power), to 1e-8 of the largest component.
    #[track_caller]
    pub(crate) fn assert_gradient(found: &[f64], at: &[f64], dy: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) {
        const STEP: f64 = 1e-4;
        assert_eq!(found.len(), at.len(), "one component per value");
        let loss = |i: usize, step: f64| -> f64 {
            let mut moved = at.to_vec();
            moved[i] += step;
            let y = f(&moved);
            assert_eq!(y.len(), dy.len(), "one factor per output");
            y.iter().zip(dy).map(|(y, d)| y * d).sum()
        };
        let difference = |i: usize| {
            (8.0 * (loss(i, STEP) - loss(i, -STEP)) - (loss(i, 2.0 * STEP) - loss(i, -2.0 * STEP))) / (12.0 * STEP)
        };
        let expected: Vec<f64> = (0..at.len()).map(difference).collect();
        let most = expected.iter().fold(0.0, |most: f64, e| most.max(e.abs()));
        assert!(most > 0.0, "a gradient of zeros tests nothing");
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            assert!((f - e).abs() <= 1e-8 * most, "component {i}: {f}, by differences {e}");
        }
    }

    /// Fails unless both slices are equal up to `tolerance`, NaN matching NaN.
    #[track_caller]
    pub(crate) fn assert_close<T: Real>(found: &[T], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let f = f.to_f64().expect("floats convert");
            assert!((f - e).abs() <= tolerance || (f.is_nan() && e.is_nan()), "element {i}: {f}, expected {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_meet_exactly_the_outputs_whose_sample_lies_on_the_input() {
        use crate::shape::Padding;
        for (input, kernel, stride, dilation, pad) in
            [(1, 1, 1, 1, 0), (5, 3, 2, 1, 1), (7, 3, 2, 2, 3), (4, 5, 3, 1, 4), (9, 2, 4, 3, 2)]
        {
            let window = Window {
                stride: [stride; 2],
                dilation: [dilation; 2],
                padding: Padding::Symmetric([pad; 2]),
                ..Window::square(kernel)
            };
            let placed = window.place([input; 2], "test").unwrap();
            for tap in 0..kernel {
                let expected: Vec<usize> = (0..placed.output[0])
                    .filter(|o| (pad..pad + input).contains(&(o * stride + tap * dilation)))
                    .collect();
                let found: Vec<usize> = outputs_on_input(&window, &placed, 0, tap).collect();
                assert_eq!(found, expected, "{window:?} tap {tap}");
            }
        }
    }
}
