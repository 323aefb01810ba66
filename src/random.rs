//! Random numbers that depend on a seed, a stream and an index alone: never on the thread that asks, nor on the order.
//!
//! A sequential generator makes a result depend on who draws first. Here the `i`-th number of a stream is a function:
//! the finaliser of SplitMix64 (Steele, Lea & Flood 2014) over a counter, and a [`Stream::fork`] per epoch, step, sample
//! or layer gives each its own. What is drawn twice comes out twice the same, on any number of workers and after a resume.

use rand::TryRng;
use std::convert::Infallible;

/// 2⁶⁴ over the golden ratio, odd: SplitMix64's step.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// An endless, indexed sequence of random numbers.
///
/// ```
/// use convzoo::random::Stream;
///
/// let step = Stream::new(7).fork(3);
/// assert_eq!(step.uniform(1000), Stream::new(7).fork(3).uniform(1000));
/// assert_ne!(step.fork(0).bits(0), step.fork(1).bits(0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream of a seed.
    pub const fn new(seed: u64) -> Self {
        Stream { key: finalise(seed.wrapping_add(STEP)) }
    }

    /// The stream `key` below this one, independent of it and of its siblings.
    pub const fn fork(self, key: u64) -> Self {
        // The rotation keeps forks apart from the numbers themselves, and a fork of a fork from its mirror image.
        Stream { key: finalise(self.key.rotate_left(32) ^ finalise(key.wrapping_add(STEP))) }
    }

    /// The number at `index`: 64 uniform bits.
    pub const fn bits(self, index: u64) -> u64 {
        finalise(self.key.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP)))
    }

    /// The number at `index`, uniform in [0, 1), a multiple of 2⁻⁵³.
    pub const fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The stream from its beginning as a sequential generator for `rand`.
    pub const fn rng(self) -> StreamRng {
        StreamRng { stream: self, next: 0 }
    }
}

/// SplitMix64's finaliser: a bijection that scatters every bit.
const fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A [`Stream`] read in order, for code that takes a `rand` generator. Not for secrets.
///
/// ```
/// use convzoo::random::Stream;
/// use rand::RngExt;
///
/// let mut rng = Stream::new(0).rng();
/// assert!((0.0..1.0).contains(&rng.random::<f32>()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRng {
    stream: Stream,
    next: u64,
}

impl TryRng for StreamRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|bits| (bits >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let bits = self.stream.bits(self.next);
        self.next = self.next.wrapping_add(1);
        Ok(bits)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        for chunk in dst.chunks_mut(8) {
            let bits = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&bits[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    /// Mean and variance of 4096 numbers, in standard deviations of those of the uniform distribution.
    fn oddity(values: impl Iterator<Item = f64>) -> f64 {
        let values: Vec<f64> = values.take(4096).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let var = values.iter().map(|v| (v - 0.5).powi(2)).sum::<f64>() / n;
        let (of_mean, of_var) = ((1.0 / 12.0 / n).sqrt(), (1.0 / 180.0 / n).sqrt());
        ((mean - 0.5).abs() / of_mean).max((var - 1.0 / 12.0).abs() / of_var)
    }

    #[test]
    fn numbers_are_uniform_along_indices_forks_and_seeds() {
        let root = Stream::new(1);
        assert!(oddity((0..).map(|i| root.uniform(i))) < 4.0);
        assert!(oddity((0..).map(|key| root.fork(key).uniform(0))) < 4.0);
        assert!(oddity((0..).map(|seed| Stream::new(seed).uniform(5))) < 4.0);
        assert!(oddity((0..).map(|key| root.fork(3).fork(key).fork(1).uniform(key))) < 4.0);
    }

    #[test]
    fn neighbouring_streams_share_no_number_and_do_not_correlate() {
        let streams: Vec<Stream> = (0..16).map(|key| Stream::new(0).fork(key)).chain([Stream::new(0)]).collect();
        let mut seen = std::collections::HashSet::new();
        for stream in &streams {
            assert!((0..1000).all(|i| seen.insert(stream.bits(i))));
        }
        let product = |a: Stream, b: Stream| -> f64 {
            (0..4096).map(|i| (a.uniform(i) - 0.5) * (b.uniform(i) - 0.5)).sum::<f64>() * 12.0 / 64.0
        };
        for pair in streams.windows(2) {
            assert!(product(pair[0], pair[1]).abs() < 4.0);
        }
        assert_ne!(Stream::new(0).fork(1).fork(2), Stream::new(0).fork(2).fork(1));
    }

    #[test]
    fn numbers_never_change_between_versions() {
        // Computed independently, in Python. Checkpoints resume bit for bit only as long as these hold.
        assert_eq!(Stream::new(0).bits(0), 0xA706_DD2F_4D19_7E6F);
        assert_eq!(Stream::new(7).fork(3).fork(11).bits(1 << 40), 0xC7A4_76A2_2DE7_3CD7);
    }

    #[test]
    fn the_sequential_generator_reads_the_stream_in_order() {
        let stream = Stream::new(9);
        let mut rng = stream.rng();
        assert_eq!([rng.next_u64(), rng.next_u64()], [stream.bits(0), stream.bits(1)]);
        let mut bytes = [0; 11];
        rng.fill_bytes(&mut bytes);
        assert_eq!(bytes[..8], stream.bits(2).to_le_bytes());
        assert_eq!(bytes[8..], stream.bits(3).to_le_bytes()[..3]);
        assert_eq!(rng.next_u32(), (stream.bits(4) >> 32) as u32);
    }
}
