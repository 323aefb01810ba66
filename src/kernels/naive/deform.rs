//! Deformable convolution (Dai et al. 2017, arXiv:1703.06211; with modulation: Zhu et al. 2018, arXiv:1811.11168).

use super::{ConvShape, Nchw, Real};

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
        sample_columns(&mut columns, x, input, sampling, (n, conv));
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

/// Fills `columns [C · taps, Ho · Wo]` with what each tap of each channel reads in image `n`.
fn sample_columns<T: Real>(
    columns: &mut [T],
    x: &[T],
    input: Nchw,
    sampling: Sampling<'_, T>,
    (n, conv): (usize, &ConvShape),
) {
    let (window, placed, taps) = (&conv.window, &conv.placed, conv.window.taps());
    let output = conv.output(input);
    let (shifts, masks) =
        (output.with_channels(2 * sampling.groups * taps), output.with_channels(sampling.groups * taps));
    let start = |o: usize, tap: usize, axis: usize| {
        T::of((o * window.stride[axis] + tap * window.dilation[axis]) as f64 - placed.before[axis] as f64)
    };
    for (row, column) in columns.chunks_exact_mut(output.plane()).enumerate() {
        let (c, tap) = (row / taps, row % taps);
        let steered = c / (input.c / sampling.groups) * taps + tap;
        let dy = &sampling.offset[shifts.channel(n, 2 * steered)];
        let dx = &sampling.offset[shifts.channel(n, 2 * steered + 1)];
        let source = &x[input.channel(n, c)];
        for (pixel, slot) in column.iter_mut().enumerate() {
            let (oy, ox) = (pixel / output.w, pixel % output.w);
            let y = start(oy, tap / window.kernel[1], 0) + dy[pixel];
            let x = start(ox, tap % window.kernel[1], 1) + dx[pixel];
            *slot = bilinear(source, input.size(), y, x);
        }
        if let Some(mask) = sampling.mask {
            column.iter_mut().zip(&mask[masks.channel(n, steered)]).for_each(|(slot, &m)| *slot *= m);
        }
    }
}

/// The image at a fractional position; see [`deform_conv2d`] for the border.
fn bilinear<T: Real>(image: &[T], [h, w]: [usize; 2], y: T, x: T) -> T {
    let inside = |at: T, extent: usize| at > -T::one() && at < T::of(extent as f64);
    if !(inside(y, h) && inside(x, w)) {
        return T::zero(); // NaN arrives here too
    }
    let (top, left) = (y.floor(), x.floor());
    let (below, right) = (y - top, x - left);
    let pixel = |row: T, column: T| match (row.to_usize(), column.to_usize()) {
        (Some(r), Some(c)) if row >= T::zero() && column >= T::zero() && r < h && c < w => image[r * w + c],
        _ => T::zero(),
    };
    let one = T::one();
    (one - below) * (one - right) * pixel(top, left)
        + (one - below) * right * pixel(top, left + one)
        + below * (one - right) * pixel(top + one, left)
        + below * right * pixel(top + one, left + one)
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
            assert_eq!(bilinear(&image, [1, 2], y, x), expected, "at ({y}, {x})");
        }
    }
}
