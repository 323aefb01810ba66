//! Augmentation: what a photograph might as well have looked like.
//!
//! Every random choice is a function of the seed, the epoch and the sample alone (see [`crate::random`]), never of the
//! worker that makes it: two runs with different numbers of workers see the same images.

mod color;
mod geometry;
mod mix;

pub use color::ColorJitter;
pub use geometry::{Erase, ResizedCrop};
pub use mix::Mix;

use super::Image;
use crate::error::{Error, Result};
use crate::random::Stream;
use serde::{Deserialize, Serialize};

/// One change of an image, drawn anew for every sample and epoch.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::vision::{Image, augment::Augment};
///
/// let photo = Image::from_rgb(32, 32, vec![90; 32 * 32 * 3])?;
/// let seen = Augment::PadCrop { padding: 4 }.apply(photo, Stream::new(0).fork(1))?;
/// assert_eq!(seen.size(), [32, 32]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Augment {
    /// A border of black pixels on every side, then a crop of the old size anywhere: the CIFAR recipe, with 4.
    PadCrop {
        /// Width of the border.
        padding: usize,
    },
    /// Mirrors left and right with this probability.
    Flip {
        /// Usually 0.5.
        p: f64,
    },
    /// A crop of random area and proportions, resized: the ImageNet recipe since GoogLeNet.
    ResizedCrop(ResizedCrop),
    /// Brightness, contrast, saturation and hue.
    ColorJitter(ColorJitter),
}

impl Augment {
    /// The changed image. The same stream makes the same change.
    pub fn apply(&self, image: Image, stream: Stream) -> Result<Image> {
        let mut draws = Draws::new(stream);
        match self {
            Augment::PadCrop { padding } => {
                let corner = [(); 2].map(|()| draws.below(2 * padding + 1) as isize - *padding as isize);
                image.crop(corner, image.size())
            }
            Augment::Flip { p } if draws.unit() < *p => Ok(image.mirrored()),
            Augment::Flip { .. } => Ok(image),
            Augment::ResizedCrop(crop) => crop.apply(&image, &mut draws),
            Augment::ColorJitter(jitter) => Ok(jitter.apply(image, &mut draws)),
        }
    }

    /// Fails if a setting cannot work.
    pub fn check(&self) -> Result<()> {
        let fits = match self {
            Augment::PadCrop { padding } => *padding <= 1 << 15,
            Augment::Flip { p } => (0.0..=1.0).contains(p),
            Augment::ResizedCrop(crop) => crop.fits(),
            Augment::ColorJitter(jitter) => jitter.fits(),
        };
        let problem = || format!("{self:?}: ranges must ascend, probabilities lie in 0 to 1, sizes be over 0");
        if fits { Ok(()) } else { Err(Error::invalid("augmentation", problem())) }
    }
}

/// A stream read number by number.
pub(super) struct Draws {
    stream: Stream,
    next: u64,
}

impl Draws {
    pub(super) fn new(stream: Stream) -> Self {
        Draws { stream, next: 0 }
    }

    /// In [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        self.next += 1;
        self.stream.uniform(self.next - 1)
    }

    /// Between `low` and `high`.
    pub(super) fn between(&mut self, [low, high]: [f64; 2]) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A whole number below `n`; 0 if `n` is.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }
}

fn ascends([low, high]: [f64; 2]) -> bool {
    low > 0.0 && low <= high && high.is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(side: usize) -> Image {
        let pixels = (0..side * side).flat_map(|i| [i as u8 + 1, 2 * i as u8, 255 - i as u8]).collect();
        Image::from_rgb(side, side, pixels).unwrap()
    }

    #[test]
    fn a_stream_decides_alone_and_streams_differ() {
        let all = [
            Augment::PadCrop { padding: 2 },
            Augment::Flip { p: 0.5 },
            Augment::ResizedCrop(ResizedCrop::new([4, 4])),
            Augment::ColorJitter(ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
        ];
        for augment in all {
            augment.check().unwrap();
            let seen: Vec<Image> =
                (0..40).map(|i| augment.apply(numbered(6), Stream::new(3).fork(i)).unwrap()).collect();
            let again = augment.apply(numbered(6), Stream::new(3).fork(7)).unwrap();
            assert_eq!(seen[7], again);
            assert!(seen.iter().any(|image| *image != seen[0]), "{augment:?} never changes its mind");
        }
    }

    #[test]
    fn pad_and_crop_reaches_every_corner_and_keeps_the_size() {
        let mut corners = std::collections::HashSet::new();
        for i in 0..2000 {
            let image = Augment::PadCrop { padding: 2 }.apply(numbered(6), Stream::new(0).fork(i)).unwrap();
            assert_eq!(image.size(), [6, 6]);
            corners.insert((image.pixels()[0], image.pixels()[(6 * 6 - 1) * 3]));
        }
        // 25 places, told apart by their first and last pixel where those are not black.
        assert!(corners.len() >= 17, "{}", corners.len());
    }

    #[test]
    fn settings_that_cannot_work_are_errors() {
        let bad = [
            Augment::Flip { p: f64::NAN },
            Augment::PadCrop { padding: usize::MAX },
            Augment::ResizedCrop(ResizedCrop { scale: [0.5, 0.1], ..ResizedCrop::new([4, 4]) }),
            Augment::ResizedCrop(ResizedCrop::new([0, 4])),
            Augment::ColorJitter(ColorJitter { hue: 0.6, ..ColorJitter::default() }),
        ];
        for augment in bad {
            assert!(augment.check().is_err(), "{augment:?}");
        }
    }
}
