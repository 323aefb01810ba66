//! Resampling equal to Pillow's on 8-bit images, bit for bit.
//!
//! The definition is a weighted mean per output pixel: the filter, stretched by the shrink factor so that it covers
//! every input pixel (antialiasing), is sampled at the input pixels' centres and normalised to sum 1. It is separable:
//! one pass along the rows, one along the columns. Four details make the result Pillow's and nobody else's:
//!
//! 1. weights become integers with 22 fractional bits, rounded half away from zero;
//! 2. each pass adds one half, shifts and clips to a byte, so the picture between the passes is 8-bit too;
//! 3. the horizontal pass comes first, unless the height loses more than twice as many pixels as the width. That is
//!    Pillow 13; earlier ones always go horizontally first, which differs by a level on pictures over twice as tall
//!    as wide;
//! 4. a pass that would not change the size is left out.
//!
//! Rows that no output row needs are never computed. There is no SIMD here: the loops over taps and over columns are
//! the shape compilers vectorise, and decoding takes longer.

use super::Image;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The filter of a resize; both antialias when shrinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The triangle `1 - |x|` on `|x| < 1`.
    Bilinear,
    /// Keys' cubic convolution with `a = -0.5` on `|x| < 2`.
    Bicubic,
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Interpolation::Bilinear => (1.0 - x).max(0.0),
            // The order of operations decides the last bit, and so which way a weight rounds.
            Interpolation::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Interpolation::Bicubic => 0.0,
        }
    }
}

/// Keys' parameter of the cubic; OpenCV and PyTorch's tensors use -0.75, Pillow -0.5.
const A: f64 = -0.5;

/// What size to resize to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side becomes this many pixels; the longer one follows as `trunc(size * long / short)`.
    Shorter(usize),
    /// Exactly `[height, width]`, whatever that does to the proportions.
    Exact([usize; 2]),
}

impl Resize {
    /// The `[height, width]` an image of `size = [height, width]` is resized to.
    pub fn target(self, size: [usize; 2]) -> [usize; 2] {
        let (wanted, [height, width]) = match self {
            Resize::Exact(target) => return target,
            Resize::Shorter(wanted) => (wanted, size),
        };
        let (short, long) = (height.min(width), height.max(width));
        let long = (wanted as f64 * long as f64 / short as f64) as usize;
        if width <= height { [long, wanted] } else { [wanted, long] }
    }
}

/// No resize or crop makes a larger picture.
const MOST_PIXELS: u64 = 100_000_000;
/// Nor a longer side: the longest a JPEG can have.
const LONGEST_SIDE: u64 = 65_535;

/// Refuses a target without pixels and one out of all proportion.
pub(super) fn check_size(at: &str, [height, width]: [usize; 2]) -> Result<()> {
    if height == 0 || width == 0 {
        return Err(Error::invalid(at, format!("{height}×{width} (height × width) has no pixels")));
    }
    let side = height.max(width) as u64;
    if side > LONGEST_SIDE {
        return Err(Error::limit(at, "longer side", LONGEST_SIDE, side));
    }
    let found = (height as u64).saturating_mul(width as u64);
    if found > MOST_PIXELS { Err(Error::limit(at, "number of pixels", MOST_PIXELS, found)) } else { Ok(()) }
}

impl Image {
    /// Resamples to `[height, width]` exactly as `PIL.Image.resize` does on an RGB image.
    ///
    /// Fails on a size without pixels and on one over 100 million pixels or 65,535 a side.
    pub fn resize(&self, size: [usize; 2], interpolation: Interpolation) -> Result<Image> {
        check_size("resize", size)?;
        let ([height, width], [from_height, from_width]) = (size, self.size());
        if size == self.size() {
            return Ok(self.clone());
        }
        let columns = (width != from_width).then(|| Taps::new(from_width, width, interpolation));
        let rows = (height != from_height).then(|| Taps::new(from_height, height, interpolation));
        let pixels = match (&columns, &rows) {
            (Some(columns), Some(rows)) if vertical_first(self.size(), size) => {
                horizontal(&vertical(self.pixels(), from_width * 3, 0, rows), from_width, columns)
            }
            (Some(columns), Some(rows)) => {
                // Only these rows of the input are read by the second pass.
                let needed = rows.reach();
                let source = &self.pixels()[needed.start * from_width * 3..needed.end * from_width * 3];
                vertical(&horizontal(source, from_width, columns), width * 3, needed.start, rows)
            }
            (Some(columns), None) => horizontal(self.pixels(), from_width, columns),
            (None, Some(rows)) => vertical(self.pixels(), width * 3, 0, rows),
            (None, None) => self.pixels().to_vec(),
        };
        Image::from_rgb(width, height, pixels)
    }
}

/// Pillow's choice. The picture between the passes is then never larger than the larger of input and output.
fn vertical_first(from: [usize; 2], to: [usize; 2]) -> bool {
    let lost = |axis: usize| from[axis] as i64 - to[axis] as i64;
    lost(0) > 0 && lost(0) > 2 * lost(1)
}

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for the sum of a filter with negative lobes.
const BITS: u32 = 32 - 8 - 2;

/// The weights of one pass: for each output position, where its input begins and what each input pixel weighs.
struct Taps {
    /// First input position and the end of this position's weights.
    spans: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(input: usize, output: usize, filter: Interpolation) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let per_stretch = 1.0 / stretch;
        let mut taps = Taps { spans: Vec::with_capacity(output), weights: Vec::new() };
        let mut real = Vec::new();
        for position in 0..output {
            let center = (position as f64 + 0.5) * scale;
            // Casts from float truncate towards zero and saturate, so a negative start becomes 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            real.clear();
            real.extend((first..end).map(|i| filter.weight((i as f64 - center + 0.5) * per_stretch)));
            let total: f64 = real.iter().sum();
            taps.weights.extend(real.iter().map(|w| fixed(if total == 0.0 { *w } else { w / total })));
            taps.spans.push((first, taps.weights.len()));
        }
        taps
    }

    /// For each output position, the first input position and its weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut start = 0;
        self.spans.iter().map(move |&(first, end)| {
            let weights = &self.weights[start..end];
            start = end;
            (first, weights)
        })
    }

    /// The input positions that some output position reads.
    fn reach(&self) -> std::ops::Range<usize> {
        let first = self.iter().next().map_or(0, |(first, _)| first);
        let end = self.iter().last().map_or(0, |(first, weights)| first + weights.len());
        first..end
    }
}

/// A weight as an integer, rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (half + weight * f64::from(1u32 << BITS)) as i32
}

/// A sum of weighted bytes (with its half already in) back to a byte.
fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (BITS - 1);

/// Resamples every row of `source`, whose rows are `width` pixels.
fn horizontal(source: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(source.len() / width * taps.spans.len());
    for row in source.chunks_exact(width * 3) {
        for (first, weights) in taps.iter() {
            let mut sum = [HALF; 3];
            for (pixel, &weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sum.map(clip));
        }
    }
    out
}

/// Resamples columns. `source` holds rows of `stride` bytes from input row `offset` on.
fn vertical(source: &[u8], stride: usize, offset: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(taps.spans.len() * stride);
    let mut sums = vec![HALF; stride];
    for (first, weights) in taps.iter() {
        sums.fill(HALF);
        let rows = source[(first - offset) * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| clip(sum)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_truncates_as_torchvision_does() {
        let target = |size, h, w| Resize::Shorter(size).target([h, w]);
        assert_eq!(target(256, 300, 451), [256, 384]); // 384.85
        assert_eq!(target(256, 451, 300), [384, 256]);
        assert_eq!(target(256, 256, 256), [256, 256]);
        assert_eq!(target(7, 3, 2), [10, 7]); // 10.5
        assert_eq!(Resize::Exact([5, 9]).target([3, 2]), [5, 9]);
    }

    #[test]
    fn a_flat_picture_stays_flat() {
        let flat = Image::from_rgb(13, 7, vec![201; 13 * 7 * 3]).unwrap();
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for size in [[1, 1], [3, 29], [50, 2], [7, 4]] {
                let resized = flat.resize(size, filter).unwrap();
                assert_eq!(resized.size(), size);
                assert!(resized.pixels().iter().all(|&v| v == 201), "{filter:?} {size:?}");
            }
        }
    }

    #[test]
    fn monstrous_targets_are_refused_before_memory_is_asked_for() {
        let strip = Image::from_rgb(1, 100_000, vec![0; 300_000]).unwrap();
        let target = Resize::Shorter(256).target(strip.size());
        let error = strip.resize(target, Interpolation::Bilinear).unwrap_err().to_string();
        assert!(error.contains("25600000") && error.contains("65535"), "{error}");
        assert!(strip.resize([30_000, 30_000], Interpolation::Bilinear).is_err());
        let flat = strip.resize([1, 65_000], Interpolation::Bilinear).unwrap();
        assert_eq!(flat.size(), [1, 65_000], "100,000 × 65,000 between the passes would be refused");
        assert!(strip.resize([0, 5], Interpolation::Bicubic).is_err());
    }
}
