//! The data sets the training examples take, by name.
#![allow(dead_code, reason = "every example uses its part of this file")]

use convzoo::random::Stream;
use convzoo::vision::augment::{Augment, ResizedCrop};
use convzoo::vision::data::{Dataset, ImageFolder, OnDamage, PixelSet, Split, check_same_classes};
use convzoo::vision::{Channels, LoaderOptions, Preset, Resize};
use convzoo::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Which data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Data {
    /// Drawn on the spot: discs, squares, triangles and crosses on noise, 32×32. Needs no files.
    Shapes,
    /// The MNIST family: idx files, .gz or not, in one folder.
    Mnist,
    /// CIFAR-10: the unpacked cifar-10-batches-bin.
    Cifar10,
    /// CIFAR-100: the unpacked cifar-100-binary.
    Cifar100,
    /// Photographs: train/CLASS/….jpg and val/CLASS/….jpg (or test/).
    Folder,
}

/// A data set opened: both parts, and how its images become tensors.
pub(crate) struct Sets {
    pub(crate) train: Arc<dyn Dataset>,
    pub(crate) test: Arc<dyn Dataset>,
    pub(crate) channels: Channels,
    /// For learning, without the resize and crop that `augment` does.
    pub(crate) train_preset: Preset,
    pub(crate) test_preset: Preset,
    pub(crate) augment: Vec<Augment>,
    /// `[height, width]` of what the network sees.
    pub(crate) size: [usize; 2],
}

/// How images are to be taken.
pub(crate) struct Taken {
    /// Side the network sees; `None` leaves small images as they are and takes `preset`'s crop of photographs.
    pub(crate) side: Option<usize>,
    /// The model's recipe for photographs.
    pub(crate) preset: Preset,
    /// Photographs that cannot be decoded.
    pub(crate) damage: OnDamage,
    /// At most so many images to learn from.
    pub(crate) limit: Option<usize>,
}

impl Data {
    pub(crate) fn open(self, path: Option<&Path>, taken: &Taken) -> Result<Sets> {
        let needed = || path.ok_or_else(|| Error::invalid("--path", format!("{self:?} needs its folder")));
        let both = |open: &dyn Fn(Split) -> Result<PixelSet>| Ok::<_, Error>([open(Split::Train)?, open(Split::Test)?]);
        let [train, test] = match self {
            Data::Shapes => [shapes(2000, 0)?, shapes(500, 1)?],
            Data::Mnist => both(&|split| PixelSet::mnist(needed()?, split))?,
            Data::Cifar10 => both(&|split| PixelSet::cifar10(needed()?, split))?,
            Data::Cifar100 => both(&|split| PixelSet::cifar100(needed()?, split))?,
            Data::Folder => return photographs(needed()?, taken),
        };
        let train = taken.limit.map_or(train.clone(), |limit| train.first(limit));
        check_same_classes(&train, &test)?;
        let size = taken.side.map_or(train.size(), |side| [side; 2]);
        let resize = (size != train.size()).then_some(Resize::Exact(size));
        let (mean, std) = if self == Data::Mnist {
            ([0.1307; 3], [0.3081; 3])
        } else {
            ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
        };
        let preset = Preset { resize, mean, std, ..Preset::cifar10() };
        let mut augment = vec![Augment::PadCrop { padding: train.size()[0] / 8 }];
        if self != Data::Mnist {
            augment.push(Augment::Flip { p: 0.5 }); // a mirrored digit is another one, or none
        }
        let channels = if train.channels() == 1 { Channels::Grey } else { Channels::Rgb };
        let (train_preset, test_preset) = (preset.clone(), preset);
        Ok(Sets { train: Arc::new(train), test: Arc::new(test), channels, train_preset, test_preset, augment, size })
    }
}

impl Sets {
    /// Writes the names of the classes into `folder`, for `classify` to find beside the weights. Where training is to go on,
    /// they must be those it began with.
    pub(crate) fn write_labels(&self, folder: &Path) -> Result<()> {
        let (file, text) = (folder.join("labels.txt"), self.train.classes().join("\n") + "\n");
        let before = std::fs::read_to_string(&file).ok().filter(|_| folder.join("last.checkpoint").exists());
        if let Some(before) = before {
            let listed = |text: &str| text.lines().collect::<Vec<_>>().join(", ");
            return match before == text {
                true => Ok(()),
                false => Err(Error::mismatch(file.display().to_string(), "classes", listed(&text), listed(&before))),
            };
        }
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        // Complete or not at all: renamed once it is written.
        let unfinished = folder.join(format!(".labels.txt.{}.tmp", std::process::id()));
        std::fs::write(&unfinished, text).map_err(|e| Error::io(&unfinished, e))?;
        std::fs::rename(&unfinished, &file).map_err(|e| Error::io(&file, e))
    }

    pub(crate) fn classes(&self) -> usize {
        self.train.classes().len()
    }

    /// Channels of the network's input.
    pub(crate) fn input_channels(&self) -> usize {
        if self.channels == Channels::Rgb { 3 } else { 1 }
    }

    pub(crate) fn train_options(&self, batch: usize, seed: u64) -> LoaderOptions {
        let (augment, channels) = (self.augment.clone(), self.channels);
        LoaderOptions { augment, channels, seed, ..LoaderOptions::train(batch, self.train_preset.clone()) }
    }

    pub(crate) fn test_options(&self, batch: usize) -> LoaderOptions {
        LoaderOptions { channels: self.channels, ..LoaderOptions::test(batch, self.test_preset.clone()) }
    }
}

fn photographs(root: &Path, taken: &Taken) -> Result<Sets> {
    let train = ImageFolder::open(root.join("train"), taken.damage)?;
    let train = taken.limit.map_or(train.clone(), |limit| train.spread(limit));
    let other = ["val", "test"].map(|name| root.join(name)).into_iter().find(|path| path.exists());
    let other = other.ok_or_else(|| Error::invalid(root.display().to_string(), "neither val nor test is in it"))?;
    let test = ImageFolder::open(other, taken.damage)?;
    check_same_classes(&train, &test)?;
    for error in train.skipped().iter().chain(test.skipped()) {
        eprintln!("skipped: {error}");
    }
    let own = taken.preset.crop.unwrap_or([32, 32]);
    let size = taken.side.map_or(own, |side| [side; 2]);
    // Small pictures in files, as CIFAR is sometimes packed, are cropped as CIFAR is; photographs as ImageNet's.
    let small = size[0] <= 48 && train.image(0)?.size() == size;
    let augment = match small {
        true => vec![Augment::PadCrop { padding: size[0] / 8 }, Augment::Flip { p: 0.5 }],
        false => {
            let interpolation = taken.preset.interpolation;
            let crop = ResizedCrop { scale: [0.35, 1.0], interpolation, ..ResizedCrop::new(size) };
            vec![Augment::ResizedCrop(crop), Augment::Flip { p: 0.5 }]
        }
    };
    let train_preset = Preset { resize: None, crop: None, ..taken.preset.clone() };
    let test_preset = match small {
        true => train_preset.clone(),
        false => Preset { resize: Some(Resize::Shorter(size[0] * 8 / 7)), crop: Some(size), ..taken.preset.clone() },
    };
    let (train, test): (Arc<dyn Dataset>, Arc<dyn Dataset>) = (Arc::new(train), Arc::new(test));
    Ok(Sets { train, test, channels: Channels::Rgb, train_preset, test_preset, augment, size })
}

/// `count` pictures of four shapes, each of its own colour, size and place, on noise.
pub(crate) fn shapes(count: usize, seed: u64) -> Result<PixelSet> {
    const SIDE: usize = 32;
    let mut pixels = Vec::with_capacity(count * SIDE * SIDE * 3);
    let labels: Vec<u8> = (0..count).map(|i| (i % 4) as u8).collect();
    for (i, &label) in labels.iter().enumerate() {
        let stream = Stream::new(seed).fork(i as u64);
        let draw = |index: u64, low: f64, high: f64| low + (high - low) * stream.uniform(index);
        let (cx, cy, r) = (draw(0, 11.0, 21.0), draw(1, 11.0, 21.0), draw(2, 5.0, 9.0));
        let color = [draw(3, 60.0, 255.0), draw(4, 60.0, 255.0), draw(5, 60.0, 255.0)];
        let noise = stream.fork(1);
        for at in 0..SIDE * SIDE {
            let (x, y) = ((at % SIDE) as f64 - cx, (at / SIDE) as f64 - cy);
            let inside = match label {
                0 => x.hypot(y) <= r,
                1 => x.abs().max(y.abs()) <= r * 0.85,
                2 => y <= r * 0.8 && y >= 2.0 * x.abs() - r,
                _ => x.abs().min(y.abs()) <= r * 0.3 && x.abs().max(y.abs()) <= r,
            };
            for (c, shade) in color.into_iter().enumerate() {
                let grain = 90.0 * noise.uniform((3 * at + c) as u64);
                pixels.push(if inside { 0.75 * shade + 0.5 * grain } else { grain } as u8);
            }
        }
    }
    PixelSet::new([SIDE; 2], pixels, labels, ["disc", "square", "triangle", "cross"].map(str::to_owned).to_vec())
}
