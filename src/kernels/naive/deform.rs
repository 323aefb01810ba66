//! Deformable convolution (Dai et al. 2017, arXiv:1703.06211; with modulation: Zhu et al. 2018, arXiv:1811.11168).

use super::{ConvShape, Nchw, Real};
use std::ops::Range;

/// Where a deformable convolution samples, learned per output pixel.
#[derive(Debug, Clone, Copy)]
pub struct Sampling<'a, T> {
    /// `[N, 2 · groups · kh · kw, Ho, Wo]`: for each offset group and tap a vertical, then a horizontal shift in pixels.
    pub offset: &'a [T],
    /// `[N, groups · kh · kw, Ho, Wo]`: a factor for each sample (version 2); 1 if absent.
    pub mask: Option<&'a [T]>,
    /// Offset groups; each steers `C / groups` consecutive input channels.
    pub groups: usize,
}

/// Deformable convolution, `torchvision.ops.deform_conv2d`: a convolution in which tap `(p, q)` of output `(v, u)` reads
/// `m · x(v·s − pad + p·d + Δy, u·s − pad + q·d + Δx)`, bilinearly interpolated.
///
/// Pixels outside the image count as zero, and so does the whole sample at or beyond one pixel outside it. Offsets that
/// are not finite sample outside.
///
/// # Shapes
/// As [`conv2d`](super::conv2d), and [`Sampling`].
pub fn deform_conv2d<T: Real>(
    x: &[T],
    input: Nchw,
    sampling: Sampling<'_, T>,
    weight: &[T],
    bias: Option<&[T]>,
    conv: &ConvShape,
) -> Vec<T> {
    input.assert_holds(x);
    conv.assert_fits(input, weight, bias);
    assert!(sampling.groups > 0 && input.c.is_multiple_of(sampling.groups), "offset groups divide the channels");
    let (output, taps) = (conv.output(input), conv.window.taps());
    output.with_channels(2 * sampling.groups * taps).assert_holds(sampling.offset);
    if let Some(mask) = sampling.mask {
        output.with_channels(sampling.groups * taps).assert_holds(mask);
    }
    let (per_group, outs) = (input.c / conv.groups, conv.out_channels / conv.groups);
    let mut y = vec![T::zero(); output.len()];
    let mut columns = vec![T::zero(); input.c * taps * output.plane()];
    for n in 0..input.n {
        let samples = Samples { image: n, input, sampling, conv };
        samples.read(x, &mut columns);
        for o in 0..conv.out_channels {
            let plane = &mut y[output.channel(n, o)];
            plane.fill(bias.map_or(T::zero(), |b| b[o]));
            let rows = per_group * taps;
            let group = &columns[o / outs * rows * plane.len()..];
            for (&w, row) in weight[o * rows..][..rows].iter().zip(group.chunks_exact(plane.len())) {
                plane.iter_mut().zip(row).for_each(|(y, &v)| *y += w * v);
            }
        }
    }
    y
}

/// What the taps of a deformable convolution read in one image: row `c · taps + tap`, then one sample per output pixel.
pub(super) struct Samples<'a, T> {
    pub(super) image: usize,
    pub(super) input: Nchw,
    pub(super) sampling: Sampling<'a, T>,
    pub(super) conv: &'a ConvShape,
}

impl<T: Real> Samples<'_, T> {
    /// The row of offsets and masks that steers `row`.
    pub(super) fn steered(&self, row: usize) -> usize {
        let taps = self.conv.window.taps();
        row / taps / (self.input.c / self.sampling.groups) * taps + row % taps
    }

    /// Where in the offsets the vertical (0) or horizontal (1) shifts of `row` are.
    pub(super) fn shifts(&self, row: usize, axis: usize) -> Range<usize> {
        let (output, taps) = (self.conv.output(self.input), self.conv.window.taps());
        output.with_channels(2 * self.sampling.groups * taps).channel(self.image, 2 * self.steered(row) + axis)
    }

    /// Where in the mask the factors of `row` are.
    pub(super) fn factors(&self, row: usize) -> Range<usize> {
        let (output, taps) = (self.conv.output(self.input), self.conv.window.taps());
        output.with_channels(self.sampling.groups * taps).channel(self.image, self.steered(row))
    }

    /// The input channel of `row`.
    pub(super) fn source(&self, row: usize) -> Range<usize> {
        self.input.channel(self.image, row / self.conv.window.taps())
    }

    /// Row and column that each sample of `row` is taken at.
    pub(super) fn places(&self, row: usize) -> impl Iterator<Item = [T; 2]> {
        let (window, placed, tap) = (self.conv.window, self.conv.placed, row % self.conv.window.taps());
        let start = move |o: usize, tap: usize, axis: usize| {
            T::of((o * window.stride[axis] + tap * window.dilation[axis]) as f64 - placed.before[axis] as f64)
        };
        let shift = |axis| self.sampling.offset[self.shifts(row, axis)].iter();
        shift(0).zip(shift(1)).enumerate().map(move |(pixel, (&dy, &dx))| {
            let (oy, ox) = (pixel / placed.output[1], pixel % placed.output[1]);
            [start(oy, tap / window.kernel[1], 0) + dy, start(ox, tap % window.kernel[1], 1) + dx]
        })
    }

    /// Fills `columns [C · taps, Ho · Wo]` with what the convolution multiplies by its weights.
    pub(super) fn read(&self, x: &[T], columns: &mut [T]) {
        for (row, column) in columns.chunks_exact_mut(self.conv.output(self.input).plane()).enumerate() {
            let source = &x[self.source(row)];
            for (slot, place) in column.iter_mut().zip(self.places(row)) {
                *slot = bilinear(source, self.input.size(), place);
            }
            if let Some(mask) = self.sampling.mask {
                column.iter_mut().zip(&mask[self.factors(row)]).for_each(|(slot, &m)| *slot *= m);
            }
        }
    }
}

/// The image at a fractional position; see [`deform_conv2d`] for the border.
pub(super) fn bilinear<T: Real>(image: &[T], [h, w]: [usize; 2], [y, x]: [T; 2]) -> T {
    let inside = |at: T, extent: usize| at > -T::one() && at < T::of(extent as f64);
    if !(inside(y, h) && inside(x, w)) {
        return T::zero(); // NaN arrives here too
    }
    let corners = Corners::around([h, w], [y, x]);
    let read = |corner: usize| corners.pixel[corner].map_or(T::zero(), |i| image[i]);
    corners.weights().into_iter().enumerate().map(|(corner, weight)| weight * read(corner)).sum()
}

/// The four pixels around a position, the upper before the lower, the left before the right.
pub(super) struct Corners<T> {
    /// Their indices, if they lie on the image.
    pub(super) pixel: [Option<usize>; 4],
    /// How far the position lies below and to the right of the first.
    pub(super) past: [T; 2],
}

impl<T: Real> Corners<T> {
    pub(super) fn around([h, w]: [usize; 2], place: [T; 2]) -> Self {
        let first = place.map(T::floor);
        let pixel = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]].map(|[down, right]| {
            let (row, column) = (first[0] + T::of(down), first[1] + T::of(right));
            match (row.to_usize(), column.to_usize()) {
                (Some(r), Some(c)) if row >= T::zero() && column >= T::zero() && r < h && c < w => Some(r * w + c),
                _ => None,
            }
        });
        Corners { pixel, past: [place[0] - first[0], place[1] - first[1]] }
    }

    pub(super) fn weights(&self) -> [T; 4] {
        let ([below, right], one) = (self.past, T::one());
        [(one - below) * (one - right), (one - below) * right, below * (one - right), below * right]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, ramp};
    use super::super::{conv2d, deform::bilinear};
    use super::*;
    use crate::shape::{Padding, Window};

    fn case() -> (Nchw, ConvShape) {
        let window = Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ..Window::square(2) };
        let placed = window.place([4, 5], "test").unwrap();
        (Nchw::new([1, 4, 4, 5]), ConvShape { out_channels: 2, groups: 2, window, placed })
    }

    #[test]
    fn both_versions_match_torchvision() {
        let (input, conv) = case();
        let (x, w) = (ramp::<f64>(80, 5, 17, 8.0), ramp(16, 7, 13, 8.0));
        let (offset, mask) = (ramp(144, 9, 23, 5.0), ramp(72, 3, 11, 6.0));
        let run = |mask| {
            deform_conv2d(&x, input, Sampling { offset: &offset, mask, groups: 2 }, &w, Some(&[0.5, -1.0]), &conv)
        };
        // torchvision.ops.deform_conv2d 0.29 on the same ramps: two groups, two offset groups.
        let v1 = [
            0.5, 0.625, -0.3925, 0.5575, 0.65375, 0.61625, 0.64375, 0.5, 0.6975, -1.0875, -1.146875, -0.8625, -0.63125,
            -1.55875, -1.1125, -1.0, -0.720625, -1.065,
        ];
        assert_close(&run(None), &v1, 1e-12);
        let v2 = [
            0.5,
            0.541666666667,
            0.126666666667,
            0.504583333333,
            0.565833333333,
            0.3925,
            0.447395833333,
            0.5,
            0.395416666667,
            -0.95625,
            -1.02135416667,
            -1.02291666667,
            -1.04395833333,
            -0.9928125,
            -0.939583333333,
            -1.0,
            -1.0475,
            -0.945833333333,
        ];
        assert_close(&run(Some(&mask)), &v2, 1e-11);
    }

    #[test]
    fn zero_offsets_make_an_ordinary_convolution() {
        let (input, conv) = case();
        let (x, w) = (ramp::<f64>(80, 5, 17, 8.0), ramp(16, 7, 13, 8.0));
        let sampling = Sampling { offset: &[0.0; 72], mask: None, groups: 1 };
        assert_eq!(deform_conv2d(&x, input, sampling, &w, None, &conv), conv2d(&x, input, &w, None, &conv));
    }

    #[test]
    fn offsets_without_a_place_sample_outside() {
        let (input, conv) = case();
        for wild in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30] {
            let sampling = Sampling { offset: &[wild; 72], mask: None, groups: 1 };
            let y = deform_conv2d(&[1.0; 80], input, sampling, &[1.0; 16], Some(&[0.5, -1.0]), &conv);
            assert_eq!(y[..9], [0.5; 9], "{wild}");
            assert_eq!(y[9..], [-1.0; 9], "{wild}");
        }
    }

    #[test]
    fn samples_fade_out_within_one_pixel_of_the_border() {
        let image = [4.0, 8.0];
        for (y, x, expected) in
            [(0.0, -0.75, 1.0), (0.0, -1.0, 0.0), (0.5, 0.5, 3.0), (0.0, 1.75, 2.0), (0.0, 2.0, 0.0)]
        {
            assert_eq!(bilinear(&image, [1, 2], [y, x]), expected, "at ({y}, {x})");
        }
    }
}
