//! `Image`: an owned 8-bit RGB picture, rows from the top, three bytes a pixel.

use crate::error::{Error, Result};
use ndarray::{Array3, ArrayView3};

/// An owned 8-bit RGB image, row-major, three interleaved bytes a pixel (height, width, channel). Never empty.
///
/// Sizes are `[height, width]` wherever they are pairs, as in tensors.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    /// Always `width * height * 3` bytes, and at least one pixel.
    pixels: Vec<u8>,
}

impl Image {
    /// Wraps interleaved RGB bytes. Fails if a side is zero or the number of bytes is not `width * height * 3`.
    pub fn from_rgb(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::invalid("image", format!("{width}×{height} (width × height) has no pixels")));
        }
        let wanted = (width as u128).saturating_mul(height as u128).saturating_mul(3);
        if wanted != pixels.len() as u128 {
            let expected = format!("{wanted} for {width}×{height} (width × height)");
            return Err(Error::mismatch("image", "number of RGB bytes", expected, pixels.len()));
        }
        Ok(Image { width, height, pixels })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[height, width]`.
    pub fn size(&self) -> [usize; 2] {
        [self.height, self.width]
    }

    /// The bytes: rows from the top, each pixel red, green, blue.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// A zero-copy view for `ndarray`, `[height, width, 3]`.
    pub fn view(&self) -> ArrayView3<'_, u8> {
        let shape = (self.height, self.width, 3);
        ArrayView3::from_shape(shape, &self.pixels).expect("size and length agree by construction")
    }

    /// The middle `[height, width]` of the image.
    ///
    /// The corner is torchvision's `round((size - crop) / 2)` with halves to the even number. Where the image is
    /// smaller than the crop it is first padded with black to the crop's extent, the odd row or column below and to
    /// the right. Fails only on a crop without pixels or over 100 million of them.
    pub fn center_crop(&self, crop: [usize; 2]) -> Result<Image> {
        super::resize::check_size("centre crop", crop)?;
        self.crop([corner(self.height, crop[0]), corner(self.width, crop[1])], crop)
    }

    /// The `[height, width]` of the image whose upper left pixel is at `[row, column]`, which may lie outside; what does
    /// is black. Fails on a crop without pixels or over 100 million of them.
    pub fn crop(&self, [top, left]: [isize; 2], crop: [usize; 2]) -> Result<Image> {
        let [height, width] = crop;
        super::resize::check_size("crop", crop)?;
        let mut pixels = vec![0; height * width * 3];
        let rows = overlap(top, height, self.height);
        let columns = overlap(left, width, self.width);
        if columns.is_empty() {
            return Ok(Image { width, height, pixels });
        }
        for y in rows {
            let start = ((y as isize - top) as usize * width + (columns.start as isize - left) as usize) * 3;
            let source = &self.pixels[(y * self.width + columns.start) * 3..(y * self.width + columns.end) * 3];
            pixels[start..start + source.len()].copy_from_slice(source);
        }
        Ok(Image { width, height, pixels })
    }

    /// Left and right exchanged.
    pub fn mirrored(self) -> Image {
        self.oriented(2)
    }

    /// The bytes, to write to.
    pub(super) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// Undoes an EXIF orientation: `1..=8`, anything else leaves the image as it is.
    ///
    /// 2 and 4 mirror, 3 turns by 180°, 5 and 7 transpose, 6 and 8 turn by 90° clockwise and counter-clockwise.
    pub(super) fn oriented(self, orientation: u8) -> Image {
        if !(2..=8).contains(&orientation) {
            return self;
        }
        let [h, w] = self.size();
        let (height, width) = if orientation >= 5 { (w, h) } else { (h, w) };
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                let (row, column) = match orientation {
                    2 => (y, w - 1 - x),
                    3 => (h - 1 - y, w - 1 - x),
                    4 => (h - 1 - y, x),
                    5 => (x, y),
                    6 => (h - 1 - x, y),
                    7 => (h - 1 - x, w - 1 - y),
                    _ => (x, w - 1 - y),
                };
                let at = (row * w + column) * 3;
                pixels.extend_from_slice(&self.pixels[at..at + 3]);
            }
        }
        Image { width, height, pixels }
    }
}

/// Where a crop starts along one side; negative where the image has to be padded.
fn corner(size: usize, crop: usize) -> isize {
    if crop > size {
        return -(((crop - size) / 2) as isize);
    }
    let room = size - crop;
    let half = room / 2;
    (half + usize::from(room % 2 == 1 && half % 2 == 1)) as isize
}

/// The rows (or columns) of the image that a crop from `start` covers.
fn overlap(start: isize, crop: usize, size: usize) -> std::ops::Range<usize> {
    let end = start.saturating_add(crop as isize).clamp(0, size as isize) as usize;
    (start.max(0) as usize).min(end)..end
}

impl TryFrom<ArrayView3<'_, u8>> for Image {
    type Error = Error;

    /// Copies an array `[height, width, 3]`, whatever its strides.
    fn try_from(array: ArrayView3<'_, u8>) -> Result<Self> {
        let (height, width, channels) = array.dim();
        if channels != 3 {
            return Err(Error::mismatch("image", "channels of an array [height, width, channel]", 3, channels));
        }
        Image::from_rgb(width, height, array.iter().copied().collect())
    }
}

impl TryFrom<Array3<u8>> for Image {
    type Error = Error;

    fn try_from(array: Array3<u8>) -> Result<Self> {
        array.view().try_into()
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}×{})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose red channel numbers its pixels.
    fn numbered(width: usize, height: usize) -> Image {
        let pixels = (0..width * height).flat_map(|i| [i as u8 + 1, 0, 0]).collect();
        Image::from_rgb(width, height, pixels).unwrap()
    }

    fn red(image: &Image) -> Vec<u8> {
        image.pixels().chunks(3).map(|p| p[0]).collect()
    }

    #[test]
    fn odd_margins_round_half_to_even_as_python_does() {
        // torchvision: int(round((h - c) / 2.0)): 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3.5 -> 4.
        for (size, crop, start) in [(4, 3, 0), (6, 3, 2), (8, 3, 2), (10, 3, 4), (5, 3, 1), (3, 3, 0)] {
            let cropped = numbered(size, 1).center_crop([1, crop]).unwrap();
            assert_eq!(red(&cropped)[0], start + 1, "crop {crop} from {size}");
        }
    }

    #[test]
    fn a_crop_larger_than_the_image_pads_with_black_the_odd_pixel_after() {
        let cropped = numbered(2, 1).center_crop([2, 5]).unwrap();
        assert_eq!(red(&cropped), [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]);
        // Wider than the crop one way, narrower the other.
        let cropped = numbered(5, 1).center_crop([3, 2]).unwrap();
        assert_eq!(red(&cropped), [0, 0, 3, 4, 0, 0]);
    }

    #[test]
    fn orientations_map_the_corners_as_exif_says() {
        // 1 2 3
        // 4 5 6
        let expected: [&[u8]; 8] = [
            &[1, 2, 3, 4, 5, 6],
            &[3, 2, 1, 6, 5, 4],
            &[6, 5, 4, 3, 2, 1],
            &[4, 5, 6, 1, 2, 3],
            &[1, 4, 2, 5, 3, 6],
            &[4, 1, 5, 2, 6, 3],
            &[6, 3, 5, 2, 4, 1],
            &[3, 6, 2, 5, 1, 4],
        ];
        for (orientation, expected) in (1..).zip(expected) {
            let turned = numbered(3, 2).oriented(orientation);
            assert_eq!(turned.size(), if orientation >= 5 { [3, 2] } else { [2, 3] });
            assert_eq!(red(&turned), expected, "orientation {orientation}");
        }
    }

    #[test]
    fn empty_and_miscounted_images_are_errors() {
        assert!(Image::from_rgb(0, 3, vec![]).unwrap_err().to_string().contains("0×3"));
        assert!(Image::from_rgb(usize::MAX, 3, vec![0; 6]).is_err());
        let error = Image::from_rgb(2, 2, vec![0; 11]).unwrap_err().to_string();
        assert!(error.contains("expected 12 for 2×2") && error.contains("found 11"), "{error}");
        assert!(numbered(2, 2).center_crop([0, 1]).is_err());
        assert!(numbered(2, 2).center_crop([usize::MAX, 2]).is_err());
    }

    #[test]
    fn arrays_go_in_and_out_whatever_their_strides() {
        let array = Array3::from_shape_fn((2, 4, 3), |(y, x, c)| (y * 100 + x * 10 + c) as u8);
        let image = Image::try_from(array.slice(ndarray::s![.., ..;2, ..])).unwrap();
        assert_eq!(image.size(), [2, 2]);
        assert_eq!(image.view()[[1, 1, 2]], 122);
        assert!(Image::try_from(Array3::zeros((2, 2, 4))).is_err());
    }
}
