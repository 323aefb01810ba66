//! Which part of a batch the first units work on at a time.
//!
//! Early maps are large: those of a whole batch leave the cache between one unit and the next, and memory decides. Late
//! weights are large: every pass over a batch wants to use them as often as it can. So the leading units of a plan run
//! on a few images at a time, from the input to the unit where weights begin to outweigh maps, and in the same memory
//! every time; what follows runs on the batch.

use super::program::{Program, Unit};
use crate::graph::{Op, ParamDef};

/// The leading `units` run on `images` images at a time, the others on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Portions {
    pub(super) units: usize,
    pub(super) images: usize,
}

/// Bytes of the maps that the busiest unit touches: few images are enough to fill the cache, and to share among threads.
const BYTES: usize = 4 << 20;

impl Portions {
    /// Lanes worth having for `threads` workers, each of which then takes whole portions and waits for no one: as many as
    /// workers, if these get about equally many of the `batch`'s portions.
    pub(super) fn lanes(self, batch: usize, threads: usize) -> usize {
        let portions = if self.units == 0 { 1 } else { batch / self.images };
        let rounds = portions.div_ceil(threads);
        if portions >= threads && 5 * rounds * threads <= 6 * portions { threads } else { 1 }
    }

    /// By shape alone.
    pub(super) fn of(program: &Program, defs: &[ParamDef]) -> Self {
        let batch = program.units.first().map_or(1, |unit| program.shape(unit.output)[0]);
        let all = Portions { units: 0, images: batch };
        if batch < 2 {
            return all;
        }
        let maps: Vec<usize> = program.units.iter().map(|unit| map_bytes(program, unit) / batch).collect();
        // Where what is read again and again has fallen behind what stays in the cache by most.
        let (mut gain, mut best, mut units) = (0, 0, 0);
        for (i, (unit, &maps)) in program.units.iter().zip(&maps).enumerate() {
            gain += maps as isize - weight_bytes(unit, defs) as isize;
            if gain > best {
                (best, units) = (gain, i + 1);
            }
        }
        let busiest = maps[..units].iter().copied().max().unwrap_or(0).max(1);
        let images = (1..=batch).rev().find(|&n| batch.is_multiple_of(n) && n * busiest <= BYTES).unwrap_or(1);
        if images == batch || units == 0 { all } else { Portions { units, images } }
    }
}

/// Bytes of the maps a unit reads and writes, for the batch.
fn map_bytes(program: &Program, unit: &Unit) -> usize {
    let bytes = |value| 4 * program.shape(value).iter().product::<usize>();
    // The parts of a concatenation write in place.
    if matches!(unit.op, Op::Concat) { 0 } else { unit.reads().chain(unit.writes()).map(bytes).sum() }
}

/// Bytes of a unit's weights, about twice as many where they are transformed.
fn weight_bytes(unit: &Unit, defs: &[ParamDef]) -> usize {
    let (weight, grows) = match unit.op {
        Op::Conv { weight, window, groups, .. } => {
            (weight, groups == 1 && window.kernel == [3, 3] && window.stride == [1, 1])
        }
        Op::DeformConv { weight, .. } | Op::Linear { weight, .. } => (weight, false),
        _ => return 0,
    };
    defs[weight.index()].len() * if grows { 8 } else { 4 }
}
