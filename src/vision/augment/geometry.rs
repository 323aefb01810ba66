//! Where in the image: the resized crop, and the erased rectangle.

use super::{Draws, ascends};
use crate::error::Result;
use crate::vision::{Image, Interpolation};
use serde::{Deserialize, Serialize};

/// A crop of random area and proportions, resized to one size. Szegedy et al. 2014; drawn as torchvision's
/// `RandomResizedCrop` draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResizedCrop {
    /// `[height, width]` of the result.
    pub size: [usize; 2],
    /// Share of the image's area, at least and at most. Default 0.08 to 1.
    pub scale: [f64; 2],
    /// Width over height, at least and at most. Default 3/4 to 4/3.
    pub ratio: [f64; 2],
    /// Filter of the resize. Default bilinear.
    pub interpolation: Interpolation,
}

impl ResizedCrop {
    /// With the defaults.
    pub fn new(size: [usize; 2]) -> Self {
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        ResizedCrop { size, scale: [0.08, 1.0], ratio, interpolation: Interpolation::Bilinear }
    }

    pub(super) fn fits(&self) -> bool {
        ascends(self.scale) && self.scale[1] <= 1.0 && ascends(self.ratio) && !self.size.contains(&0)
    }

    pub(super) fn apply(&self, image: &Image, draws: &mut Draws) -> Result<Image> {
        let (corner, size) = self.place(image.size(), draws);
        image.crop(corner.map(|c| c as isize), size)?.resize(self.size, self.interpolation)
    }

    /// Corner and size of the crop. After ten rectangles that do not fit, the middle of the image, as much of it as the
    /// proportions allow.
    fn place(&self, [height, width]: [usize; 2], draws: &mut Draws) -> ([usize; 2], [usize; 2]) {
        for _ in 0..10 {
            let [h, w] = rectangle([height, width], self.scale, self.ratio.map(|r| 1.0 / r), draws);
            if 0 < w && w <= width && 0 < h && h <= height {
                return ([draws.below(height - h + 1), draws.below(width - w + 1)], [h, w]);
            }
        }
        let found = width as f64 / height as f64;
        let ratio = found.clamp(self.ratio[0], self.ratio[1]);
        let h = if found < ratio { (width as f64 / ratio).round() as usize } else { height };
        let w = if found > ratio { (height as f64 * ratio).round() as usize } else { width };
        let (h, w) = (h.clamp(1, height), w.clamp(1, width));
        ([(height - h) / 2, (width - w) / 2], [h, w])
    }
}

/// `[height, width]` of a rectangle with a share of the area in `scale` and height over width, on a logarithmic scale, in
/// `ratio`.
fn rectangle([height, width]: [usize; 2], scale: [f64; 2], ratio: [f64; 2], draws: &mut Draws) -> [usize; 2] {
    let area = (height * width) as f64 * draws.between(scale);
    let ratio = draws.between(ratio.map(f64::ln)).exp();
    [area * ratio, area / ratio].map(|square| square.sqrt().round() as usize)
}

/// Sets a random rectangle of the normalised image to 0, its mean. Zhong et al. 2017 (arXiv 1708.04896); drawn as
/// torchvision's `RandomErasing` draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Erase {
    /// How often. Default 0.5.
    pub p: f64,
    /// Share of the image's area, at least and at most. Default 0.02 to 0.33.
    pub scale: [f64; 2],
    /// Height over width, at least and at most. Default 0.3 to 3.3.
    pub ratio: [f64; 2],
}

impl Default for Erase {
    fn default() -> Self {
        Erase { p: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3] }
    }
}

impl Erase {
    pub(in crate::vision) fn fits(&self) -> bool {
        (0.0..=1.0).contains(&self.p) && ascends(self.scale) && self.scale[1] <= 1.0 && ascends(self.ratio)
    }

    /// Erases in planes of `[height, width]` that follow each other.
    pub(in crate::vision) fn apply(&self, planes: &mut [f32], [height, width]: [usize; 2], draws: &mut Draws) {
        if draws.unit() >= self.p {
            return;
        }
        let fitting = (0..10).find_map(|_| {
            let [h, w] = rectangle([height, width], self.scale, self.ratio, draws);
            (h < height && w < width).then(|| ([draws.below(height - h + 1), draws.below(width - w + 1)], [h, w]))
        });
        let Some(([top, left], [h, w])) = fitting else { return };
        for plane in planes.chunks_exact_mut(height * width) {
            plane[top * width..].chunks_mut(width).take(h).for_each(|row| row[left..left + w].fill(0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn crops_keep_to_area_and_proportions() {
        let crop = ResizedCrop::new([8, 8]);
        for i in 0..500 {
            let size = [60 + i % 7, 80];
            let ([top, left], [h, w]) = crop.place(size, &mut Draws::new(Stream::new(1).fork(i as u64)));
            assert!(h > 0 && w > 0 && top + h <= size[0] && left + w <= size[1]);
            let (share, ratio) = ((h * w) as f64 / (size[0] * size[1]) as f64, w as f64 / h as f64);
            assert!((0.07..=1.0).contains(&share) && (0.70..=1.43).contains(&ratio), "{share} {ratio}");
        }
        // A strip holds no rectangle of such proportions and a fifth of its area.
        let strip = ResizedCrop { scale: [0.2, 1.0], ..crop };
        let (corner, size) = strip.place([10, 1000], &mut Draws::new(Stream::new(2)));
        assert_eq!((corner, size), ([0, 493], [10, 13]));
    }

    #[test]
    fn one_rectangle_is_erased_in_every_plane() {
        let erase = Erase { p: 1.0, ..Erase::default() };
        for i in 0..50 {
            let mut planes = vec![1.0; 2 * 12 * 10];
            erase.apply(&mut planes, [12, 10], &mut Draws::new(Stream::new(5).fork(i)));
            let (one, two) = planes.split_at(120);
            assert_eq!(one, two);
            let zeros: Vec<usize> = (0..120).filter(|&i| one[i] == 0.0).collect();
            let (Some(&first), Some(&last)) = (zeros.first(), zeros.last()) else { continue };
            let (h, w) = (last / 10 - first / 10 + 1, last % 10 - first % 10 + 1);
            assert_eq!(zeros.len(), h * w);
            assert!((1..=45).contains(&zeros.len()));
        }
        let mut planes = vec![1.0; 120];
        Erase { p: 0.0, ..erase }.apply(&mut planes, [12, 10], &mut Draws::new(Stream::new(5)));
        assert!(planes.iter().all(|&v| v == 1.0));
    }
}
