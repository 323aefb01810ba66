//! `Loader`: a data set as batches of tensors, prepared in the background.
//!
//! Workers take batches, not samples: batch `i` of an epoch is made whole by whoever is free, and delivered in order. What
//! is in it depends on the seed, the epoch and `i` alone, so that the number of workers changes nothing but the time, and
//! an epoch can be entered in the middle.

mod epoch;

use self::epoch::Epoch;
use super::augment::{Augment, Draws, Erase, Mix};
use super::data::Dataset;
use super::preset::Tables;
use super::{Image, Preset};
use crate::error::{Error, Result};
use crate::random::Stream;
use crate::tensor::Tensor;
use crate::train::{Batch, Batches, Targets};
use std::sync::Arc;

/// In which order an epoch visits the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the set has them.
    Fixed,
    /// Shuffled anew every epoch.
    Shuffled,
}

/// Channels of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// Three.
    Rgb,
    /// One, the first colour's, normalised as the first channel: for grey sets such as MNIST.
    Grey,
}

/// What happens to an image on its way into a batch, and how batches are cut. Plain fields: start from
/// [`LoaderOptions::train`] or [`LoaderOptions::test`] and change what you like.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Images in a batch.
    pub batch: usize,
    /// Order of the images.
    pub order: Order,
    /// Whether an epoch ends with a smaller batch if the images do not divide; otherwise those are left out, other ones
    /// every epoch. A set smaller than one batch is one batch either way.
    pub keep_last: bool,
    /// Seed of the order and of every augmentation.
    pub seed: u64,
    /// Changes of each image, in this order.
    pub augment: Vec<Augment>,
    /// Resize, crop and normalisation after them.
    pub preset: Preset,
    /// Channels.
    pub channels: Channels,
    /// Erasing in the normalised image.
    pub erase: Option<Erase>,
    /// Mixing of the finished batch.
    pub mix: Option<Mix>,
    /// Background threads; with 0 the caller prepares its batches itself. Results do not depend on it.
    pub workers: usize,
    /// Batches prepared ahead.
    pub prefetch: usize,
}

impl LoaderOptions {
    /// For learning: shuffled, the incomplete last batch left out, nothing augmented yet.
    pub fn train(batch: usize, preset: Preset) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2)).min(8);
        LoaderOptions {
            batch,
            order: Order::Shuffled,
            keep_last: false,
            seed: 0,
            augment: Vec::new(),
            preset,
            channels: Channels::Rgb,
            erase: None,
            mix: None,
            workers,
            prefetch: 2 * workers,
        }
    }

    /// For judging: every image once, in order.
    pub fn test(batch: usize, preset: Preset) -> Self {
        LoaderOptions { order: Order::Fixed, keep_last: true, ..LoaderOptions::train(batch, preset) }
    }
}

/// A data set as batches.
///
/// ```
/// use convzoo::train::Batches;
/// use convzoo::vision::{Loader, LoaderOptions, Preset, data::PixelSet};
/// use std::sync::Arc;
///
/// let names = vec!["dark".to_owned(), "light".to_owned()];
/// let set = PixelSet::new([8, 8], vec![0; 5 * 64], vec![0, 1, 0, 1, 0], names)?;
/// let loader = Loader::new(Arc::new(set), LoaderOptions::test(2, Preset::cifar10()))?;
/// let sizes: Result<Vec<usize>, _> = loader.epoch(0, 0).map(|batch| Ok(batch?.len())).collect();
/// assert_eq!(sizes?, [2, 2, 1]);
/// # Ok::<(), convzoo::Error>(())
/// ```
pub struct Loader {
    shared: Arc<Shared>,
}

struct Shared {
    set: Arc<dyn Dataset>,
    options: LoaderOptions,
    tables: Tables,
}

impl Loader {
    /// A loader of `set`.
    ///
    /// # Errors
    /// An empty set, a label without a class (the sample is named), a batch of nothing, a setting that cannot work.
    pub fn new(set: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Self> {
        if set.is_empty() {
            return Err(Error::invalid("loader", "the data set is empty"));
        }
        if options.batch == 0 {
            return Err(Error::mismatch("loader", "images in a batch", "at least 1", 0));
        }
        let classes = set.classes().len();
        if let Some(i) = (0..set.len()).find(|&i| set.label(i) >= classes) {
            let expected = format!("below {classes}, the number of classes");
            return Err(Error::mismatch(format!("sample {i}"), "label", expected, set.label(i)));
        }
        options.augment.iter().try_for_each(Augment::check)?;
        options.mix.iter().try_for_each(Mix::check)?;
        if let Some(erase) = options.erase.as_ref().filter(|erase| !erase.fits()) {
            return Err(Error::invalid("augmentation", format!("{erase:?} cannot work")));
        }
        let tables = options.preset.tables()?;
        Ok(Loader { shared: Arc::new(Shared { set, options, tables }) })
    }

    /// The data set.
    pub fn set(&self) -> &dyn Dataset {
        &*self.shared.set
    }

    /// The settings.
    pub fn options(&self) -> &LoaderOptions {
        &self.shared.options
    }
}

impl Batches for Loader {
    fn batches(&self) -> u64 {
        self.shared.batches() as u64
    }

    fn epoch(&self, epoch: u64, first: u64) -> Box<dyn Iterator<Item = Result<Batch>> + '_> {
        Box::new(Epoch::start(self.shared.clone(), epoch, first as usize))
    }
}

/// Keys of the streams below an epoch's; samples use their index.
const SHUFFLE: u64 = u64::MAX;
const MIX: u64 = u64::MAX - 1;

impl Shared {
    fn batches(&self) -> usize {
        let (images, batch) = (self.set.len(), self.options.batch);
        if self.options.keep_last || images < batch { images.div_ceil(batch) } else { images / batch }
    }

    fn stream(&self, epoch: u64) -> Stream {
        Stream::new(self.options.seed).fork(epoch)
    }

    /// Fisher and Yates.
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.set.len()).collect();
        if self.options.order == Order::Shuffled {
            let mut draws = Draws::new(self.stream(epoch).fork(SHUFFLE));
            (1..order.len()).rev().for_each(|i| order.swap(i, draws.below(i + 1)));
        }
        order
    }

    fn batch(&self, epoch: u64, number: usize, order: &[usize]) -> Result<Batch> {
        let options = &self.options;
        let start = number * options.batch;
        let samples = &order[start..(start + options.batch).min(order.len())];
        let stream = self.stream(epoch);
        let first = self.prepare(samples[0], stream)?;
        let ([height, width], n) = (first.size(), samples.len());
        let channels = if options.channels == Channels::Rgb { 3 } else { 1 };
        let mut images = Tensor::try_zeros(&[n, channels, height, width])?;
        let slots = images.as_mut_slice().chunks_exact_mut(channels * height * width);
        for ((i, &sample), out) in samples.iter().enumerate().zip(slots) {
            let later = if i == 0 { None } else { Some(self.prepare(sample, stream)?) };
            let image = later.as_ref().unwrap_or(&first);
            if image.size() != first.size() {
                let (expected, found) = (format!("{:?}, as sample {}", first.size(), samples[0]), image.size());
                let at = format!("sample {sample}");
                return Err(Error::mismatch(at, "[height, width] in a batch", expected, format!("{found:?}")));
            }
            self.tables.write(image, out);
            if let Some(erase) = &options.erase {
                let key = options.augment.len() as u64;
                erase.apply(out, image.size(), &mut Draws::new(stream.fork(sample as u64).fork(key)));
            }
        }
        let labels = samples.iter().map(|&sample| self.set.label(sample)).collect();
        let batch = Batch { images, targets: Targets::Labels(labels) };
        match options.mix {
            Some(mix) => mix.apply(batch, self.set.classes().len(), stream.fork(MIX).fork(number as u64)),
            None => Ok(batch),
        }
    }

    fn prepare(&self, sample: usize, stream: Stream) -> Result<Image> {
        let mut image = self.set.image(sample)?;
        let stream = stream.fork(sample as u64);
        for (key, augment) in self.options.augment.iter().enumerate() {
            image = augment.apply(image, stream.fork(key as u64))?;
        }
        self.options.preset.prepare(&image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::augment::ResizedCrop;
    use crate::vision::data::PixelSet;

    /// `count` images of 6×6, each of its own grey.
    fn set(count: usize) -> PixelSet {
        let pixels = (0..count * 36).map(|i| (i / 36 * 10) as u8).collect();
        let labels = (0..count).map(|i| i as u8 % 3).collect();
        PixelSet::new([6, 6], pixels, labels, ["a", "b", "c"].map(str::to_owned).to_vec()).unwrap()
    }

    fn plain() -> Preset {
        Preset { scale: 1.0, mean: [0.0; 3], std: [1.0; 3], ..Preset::cifar10() }
    }

    fn everything(workers: usize) -> LoaderOptions {
        LoaderOptions {
            augment: vec![
                Augment::PadCrop { padding: 2 },
                Augment::Flip { p: 0.5 },
                Augment::ResizedCrop(ResizedCrop::new([5, 5])),
            ],
            erase: Some(Erase::default()),
            mix: Some(Mix { mixup: Some(0.2), cutmix: Some(1.0) }),
            seed: 3,
            workers,
            prefetch: 3,
            ..LoaderOptions::train(4, plain())
        }
    }

    fn batches(loader: &Loader, epoch: u64, first: u64) -> Vec<Batch> {
        loader.epoch(epoch, first).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn workers_change_nothing_and_an_epoch_can_be_entered_in_the_middle() {
        let alone = Loader::new(Arc::new(set(22)), everything(0)).unwrap();
        let whole = batches(&alone, 1, 0);
        assert_eq!((whole.len() as u64, alone.batches()), (5, 5));
        assert_ne!(whole, batches(&alone, 2, 0));
        for workers in [1, 2, 5] {
            let loader = Loader::new(Arc::new(set(22)), everything(workers)).unwrap();
            assert_eq!(batches(&loader, 1, 0), whole);
            assert_eq!(batches(&loader, 1, 3), whole[3..]);
        }
    }

    #[test]
    fn an_epoch_shows_every_image_once_shuffled_or_not() {
        let test = Loader::new(Arc::new(set(10)), LoaderOptions::test(4, plain())).unwrap();
        let labels = |batch: &Batch| (0..batch.len()).map(|i| batch.targets.class(i)).collect::<Vec<_>>();
        let seen: Vec<usize> = batches(&test, 0, 0).iter().flat_map(labels).collect();
        assert_eq!(seen, (0..10).map(|i| i % 3).collect::<Vec<_>>());
        let options = LoaderOptions { keep_last: true, channels: Channels::Grey, ..LoaderOptions::train(4, plain()) };
        let train = Loader::new(Arc::new(set(10)), options).unwrap();
        let shown = batches(&train, 0, 0);
        assert_eq!(shown[2].images.shape(), [2, 1, 6, 6]);
        let mut greys: Vec<f32> = shown.iter().flat_map(|b| b.images.as_slice().iter().step_by(36)).copied().collect();
        assert_ne!(greys, (0..10).map(|i| i as f32 * 10.0).collect::<Vec<_>>());
        greys.sort_by(f32::total_cmp);
        assert_eq!(greys, (0..10).map(|i| i as f32 * 10.0).collect::<Vec<_>>());
    }

    /// A set whose image 5 is damaged, or worse.
    struct Faulty(PixelSet, fn() -> Result<Image>);

    impl Dataset for Faulty {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn classes(&self) -> &[String] {
            self.0.classes()
        }

        fn label(&self, index: usize) -> usize {
            self.0.label(index)
        }

        fn image(&self, index: usize) -> Result<Image> {
            if index == 5 { (self.1)() } else { self.0.image(index) }
        }
    }

    #[test]
    fn a_damaged_image_or_a_panic_ends_the_epoch_with_an_error_and_no_hang() {
        for workers in [0, 1, 3] {
            let faulty = Faulty(set(40), || Err(Error::format("cut.jpg", "cut short")));
            let options = LoaderOptions { workers, ..LoaderOptions::test(2, plain()) };
            let loader = Loader::new(Arc::new(faulty), options.clone()).unwrap();
            let seen: Vec<Result<Batch>> = loader.epoch(0, 0).collect();
            assert_eq!(seen.len(), 3);
            assert!(seen[2].as_ref().unwrap_err().to_string().contains("cut.jpg"));
            if workers > 0 {
                let faulty = Faulty(set(40), || panic!("on purpose"));
                let loader = Loader::new(Arc::new(faulty), options).unwrap();
                let last = loader.epoch(0, 0).last().unwrap().unwrap_err().to_string();
                assert!(last.contains("panicked"), "{last}");
            }
        }
        let loader = Loader::new(Arc::new(set(40)), everything(2)).unwrap();
        drop(loader.epoch(0, 0)); // unread, it neither hangs nor leaks its threads
    }

    #[test]
    fn sets_and_settings_that_cannot_work_are_errors() {
        struct Odd(PixelSet, usize);
        impl Dataset for Odd {
            fn len(&self) -> usize {
                self.1
            }
            fn classes(&self) -> &[String] {
                self.0.classes()
            }
            fn label(&self, index: usize) -> usize {
                index
            }
            fn image(&self, index: usize) -> Result<Image> {
                self.0.image(index)
            }
        }
        let fails = |set: Odd, options: LoaderOptions| match Loader::new(Arc::new(set), options) {
            Ok(_) => panic!("no error"),
            Err(e) => e.to_string(),
        };
        let options = || LoaderOptions::test(2, plain());
        assert!(fails(Odd(set(4), 0), options()).contains("empty"));
        let error = fails(Odd(set(4), 4), options());
        assert!(error.contains("sample 3") && error.contains("below 3"), "{error}");
        assert!(fails(Odd(set(4), 3), LoaderOptions { batch: 0, ..options() }).contains("at least 1"));
        let flip = vec![Augment::Flip { p: 2.0 }];
        assert!(fails(Odd(set(4), 3), LoaderOptions { augment: flip, ..options() }).contains("Flip"));
    }
}
