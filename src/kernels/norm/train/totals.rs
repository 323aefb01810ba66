//! Between the passes backward: sums over all blocks, and the coefficients that follow from them.

use super::{CHANNELS, DEVIATION, MEAN, SCALE, blocks, fetch_later};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Kernel, Map, Store};
use crate::simd::{Isa, Simd};
use std::ops::Range;

/// Adds up the first row of the partial sums of all blocks of so many pixels of `map`: the gradient of a bias. Input: sums of one
/// row. Output: one float per channel.
pub fn total(map: Map, block: usize, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Total { channels: map.c, blocks: blocks(map, block).tiles() } }
}

struct Total {
    channels: usize,
    blocks: usize,
}

/// The totals of each of `ROWS` rows over all blocks, for the channels `range`.
///
/// # Safety
/// `partial` holds so many rows of `channels` floats for every block.
#[inline(always)]
unsafe fn totals<S: Simd, const ROWS: usize>(
    partial: *const f32,
    blocks: usize,
    channels: usize,
    range: Range<usize>,
) -> [[f64; CHANNELS]; ROWS] {
    let mut totals = [[0.0f64; CHANNELS]; ROWS];
    for block in 0..blocks {
        for (row, sums) in totals.iter_mut().enumerate() {
            // SAFETY: passed on.
            let values = unsafe {
                std::slice::from_raw_parts(partial.add((block * ROWS + row) * channels + range.start), range.len())
            };
            fetch_later::<S>(values, ROWS * channels);
            sums.iter_mut().zip(values).for_each(|(sum, &v)| *sum += f64::from(v));
        }
    }
    totals
}

impl Tiled for Total {
    fn name(&self) -> String {
        "total".to_owned()
    }

    fn tiles(&self) -> usize {
        self.channels.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let range = tile * CHANNELS..self.channels.min((tile + 1) * CHANNELS);
        // SAFETY: one row for every block; the output has a float per channel.
        unsafe {
            let [sums] = totals::<S, 1>(io.inputs[0], self.blocks, self.channels, range.clone());
            range.zip(sums).for_each(|(c, sum)| *io.output.add(c) = sum as f32);
        }
    }
}

/// Which statistics a norm used on the way forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Those of the batch: the gradient flows through them too.
    Batch,
    /// The running ones: constants.
    Running,
}

/// What sums were taken of first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// Blocks of so many pixels, by [`chain`](super::chain()).
    Blocks(usize),
    /// Images, by [`gated_sums`](super::gated_sums).
    Images,
}

/// Unites partial sums. Inputs: these ([`Sums::Norm`](super::Sums::Norm)), the table of [`statistics`](super::statistics). Output: the
/// table of [`backward`](super::backward) ([`BACKWARD_ROWS`](super::BACKWARD_ROWS) rows). `also`: the gradients of γ and β, or null.
pub fn backward_statistics(map: Map, partial: Partial, statistic: Statistic, isa: Isa) -> impl Kernel {
    let blocks = match partial {
        Partial::Blocks(block) => blocks(map, block).tiles(),
        Partial::Images => map.n,
    };
    Light { isa, kernel: BackwardStatistics { map, statistic, blocks, to: Coefficients::Own } }
}

/// As [`backward_statistics`] for a [`scaled`](super::Chain::scaled) chain: what is left for the gradient of the norm's input,
/// `b·(x − mean) + c`, in the form of a table of [`backward`](super::backward) whose `a` is 1 and whose rows are `ld` apart. It is set, or added
/// to what norms of the same map have left before.
pub fn deferred_statistics(
    map: Map,
    block: usize,
    statistic: Statistic,
    (ld, store): (usize, Store),
    isa: Isa,
) -> impl Kernel {
    let to = Coefficients::Deferred(ld, store);
    Light { isa, kernel: BackwardStatistics { map, statistic, blocks: blocks(map, block).tiles(), to } }
}

/// Where the coefficients go.
#[derive(Clone, Copy)]
enum Coefficients {
    /// To a table of the norm's own.
    Own,
    /// To one that norms of the same map share, with rows so far apart.
    Deferred(usize, Store),
}

struct BackwardStatistics {
    map: Map,
    statistic: Statistic,
    blocks: usize,
    to: Coefficients,
}

impl Tiled for BackwardStatistics {
    fn name(&self) -> String {
        match self.to {
            Coefficients::Own => "backward_statistics".to_owned(),
            Coefficients::Deferred(..) => "deferred_statistics".to_owned(),
        }
    }

    fn tiles(&self) -> usize {
        self.map.c.div_ceil(CHANNELS)
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let channels = self.map.c;
        let range = tile * CHANNELS..channels.min((tile + 1) * CHANNELS);
        // SAFETY: two rows for every block, tables of one float per channel and row; the gradients have one per channel.
        unsafe {
            let [sums, products] = totals::<S, 2>(io.inputs[0], self.blocks, channels, range.clone());
            for (i, c) in range.enumerate() {
                let table = |row: usize| f64::from(*io.inputs[1].add(row * channels + c));
                let (mean, deviation, scale) = (table(MEAN), table(DEVIATION), table(SCALE));
                let aligned = products[i] * deviation;
                let share = match self.statistic {
                    Statistic::Batch => 1.0 / self.map.pixels() as f64,
                    Statistic::Running => 0.0,
                };
                let [slope, summand] = [-scale * deviation * aligned * share, -scale * sums[i] * share];
                let (apart, rows) = match self.to {
                    Coefficients::Own => (channels, [scale, slope, summand, mean]),
                    Coefficients::Deferred(ld, Store::Set) => (ld, [1.0, slope, summand, mean]),
                    Coefficients::Deferred(ld, Store::Add) => {
                        let before = |row: usize| f64::from(*io.output.add(row * ld + c));
                        // Running statistics have another mean, but no slope.
                        let mean = if self.statistic == Statistic::Batch { mean } else { before(3) };
                        (ld, [1.0, before(1) + slope, before(2) + summand, mean])
                    }
                };
                for (row, value) in rows.into_iter().enumerate() {
                    *io.output.add(row * apart + c) = value as f32;
                }
                for (gradient, value) in io.also.into_iter().zip([aligned, sums[i]]) {
                    if !gradient.is_null() {
                        *gradient.add(c) = value as f32;
                    }
                }
            }
        }
    }
}
