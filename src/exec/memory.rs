//! Where values live: concatenations as slices of one buffer, and all buffers in one arena by lifetime.

use super::portions::Portions;
use super::program::Program;
use crate::graph::{NodeId, Op};
use crate::kernels::Map;

/// A value's place: a buffer, the first channel within it, and the map kernels see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub(super) buffer: usize,
    /// Floats from the start of the buffer to the map's first element.
    pub(super) offset: usize,
    pub(super) map: Map,
}

/// The zero border of an input map that the packing step writes, `[above, left]`, and the padded size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Border {
    pub(super) before: [usize; 2],
    pub(super) size: [usize; 2],
}

/// Every value's place and every buffer's offset in the arena.
pub(super) struct Layout {
    places: Vec<Option<Place>>,
    /// Offset of each buffer in the arena, in floats.
    offsets: Vec<usize>,
    /// Which buffers hold the whole batch, not just a portion of it.
    whole: Vec<bool>,
    /// Lanes: how many portions can be worked on at the same time.
    pub(super) lanes: usize,
    /// Floats from one lane's buffers of a portion to the next lane's.
    pub(super) lane: usize,
    /// Floats in the arena.
    pub(super) len: usize,
    /// Set if the input is packed with a border for the stem.
    pub(super) border: Option<Border>,
}

/// More than this of maps in lanes would leave the cache.
const LANES_BYTES: usize = 16 << 20;

#[derive(Clone, Copy)]
pub(super) struct Buffer {
    /// Floats.
    pub(super) len: usize,
    /// Whether it holds the whole batch, not just a portion of it.
    pub(super) whole: bool,
    /// Steps (unit positions) from the first write to the last read, inclusive.
    pub(super) first: usize,
    pub(super) last: usize,
}

/// The distance between pixels of a buffer of `c` channels: whole cache lines, and never a multiple of 4 KB, at which
/// all pixels of a tile would fall into the same sets of the L1 cache.
pub(super) fn pixel_stride(c: usize, pixels: usize) -> usize {
    if c < 16 || pixels == 1 {
        return c;
    }
    let ld = c.next_multiple_of(16);
    if (ld * 4).is_multiple_of(4096) { ld + 16 } else { ld }
}

impl Layout {
    /// Places every value of `program`. `border` is the stem's wish for a padded input. Concatenations whose inputs all
    /// write in place disappear; see [`Layout::copies`] for the others.
    /// Values that only the units of `portions` know have room for one portion, in each of `lanes` lanes; in a
    /// single one if all of them are more than [`LANES_BYTES`].
    pub(super) fn new(program: &Program, border: Option<Border>, portions: Portions, lanes: usize) -> Self {
        let (mut places, mut buffers) = places(program, border, Residuals::InPlace);
        shorten(program, &mut places, &mut buffers, portions);
        lifetimes(program, &places, &mut buffers, portions);
        let whole: Vec<bool> = buffers.iter().map(|b| b.whole).collect();
        // A lane is a buffer of its own, there while portions are.
        let (short, long): (Vec<usize>, Vec<usize>) = (0..buffers.len()).partition(|&i| !whole[i]);
        let (within, lane) = pack(&short.iter().map(|&i| buffers[i]).collect::<Vec<_>>());
        // Whole cache lines, and not a multiple of 4 KB.
        let lane = if lane == 0 { 0 } else { lane.next_multiple_of(1024) + 16 };
        let lanes = if lane.saturating_mul(4 * lanes) <= LANES_BYTES { lanes } else { 1 };
        let all = Buffer { len: lane * lanes, whole: true, first: 0, last: portions.units.saturating_sub(1) };
        let packed: Vec<Buffer> = long.iter().map(|&i| buffers[i]).chain([all]).collect();
        let (at, len) = pack(&packed);
        let (&base, at) = at.split_last().expect("the lanes");
        let mut offsets = vec![0; buffers.len()];
        long.into_iter().zip(at).for_each(|(i, &at)| offsets[i] = at);
        short.into_iter().zip(within).for_each(|(i, within)| offsets[i] = base + within);
        Layout { places, offsets, whole, lanes, lane, len, border }
    }

    /// Whether a value has a place in every lane.
    pub(super) fn in_lanes(&self, value: NodeId) -> bool {
        !self.whole[self.place(value).buffer]
    }

    /// Floats from one image of a value to the same place in the next portion's, `images` further.
    pub(super) fn portion_stride(&self, value: NodeId, images: usize) -> usize {
        let map = self.place(value).map;
        images * map.h * map.w * map.ld
    }

    /// Where a value lives.
    pub(super) fn place(&self, value: NodeId) -> Place {
        self.places[value.index()].expect("every value of the program has been placed")
    }

    /// Offset of a value's first element in the arena.
    pub(super) fn address(&self, value: NodeId) -> usize {
        let place = self.place(value);
        self.offsets[place.buffer] + place.offset
    }

    /// The inputs of a concatenation that could not be written in place, each with the channel of the output it must be
    /// copied to, and the map there.
    pub(super) fn copies(&self, program: &Program, inputs: &[NodeId], output: NodeId) -> Vec<(NodeId, usize, Map)> {
        let whole = self.place(output);
        let parts = parts(program, whole, inputs);
        let copied = parts.into_iter().filter(|&(value, there)| self.place(value) != there);
        copied.map(|(value, there)| (value, there.offset - whole.offset, there.map)).collect()
    }
}

/// The place of every input within the place of their concatenation.
pub(super) fn parts(program: &Program, whole: Place, inputs: &[NodeId]) -> Vec<(NodeId, Place)> {
    let mut channel = 0;
    let part = |&value: &NodeId| {
        let [_, c, h, w] = program.shape(value);
        let map = Map::new([whole.map.n, h, w, c], whole.map.ld);
        channel += c;
        (value, Place { buffer: whole.buffer, offset: whole.offset + channel - c, map })
    };
    inputs.iter().map(part).collect()
}

/// What becomes of residuals that nobody reads later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residuals {
    /// They stay.
    Kept,
    /// The output of the convolution that adds them is written over them: a chain of residual blocks works on one map, which
    /// stays in the cache.
    InPlace,
}

/// The place of every value of `program`, and the buffers. From the last unit to the first, so that a concatenation inside
/// another one is placed as a slice of it.
pub(super) fn places(
    program: &Program,
    border: Option<Border>,
    residuals: Residuals,
) -> (Vec<Option<Place>>, Vec<Buffer>) {
    let mut places: Vec<Option<Place>> = vec![None; program.shapes.len()];
    let mut buffers = Vec::new();
    let input = program.units.iter().find(|u| matches!(u.op, Op::Input { .. })).map(|u| u.output);
    let free = match residuals {
        Residuals::Kept => vec![false; program.shapes.len()],
        Residuals::InPlace => overwritten(program, input),
    };
    for unit in program.units.iter().rev() {
        let shape = program.shape(unit.output);
        let place = *places[unit.output.index()].get_or_insert_with(|| match border {
            Some(border) if Some(unit.output) == input => padded(shape, border, &mut buffers),
            _ => fresh(shape, &mut buffers),
        });
        let alone = buffers[place.buffer].len == place.map.extent();
        if let Some(value) = unit.residual.filter(|value| alone && free[value.index()]) {
            places[value.index()].get_or_insert(place);
        }
        if let Some(sums) = unit.sums {
            places[sums.index()].get_or_insert_with(|| fresh(program.shape(sums), &mut buffers));
        }
        if matches!(unit.op, Op::Concat) {
            for (value, there) in parts(program, place, &unit.inputs) {
                if Some(value) != input {
                    places[value.index()].get_or_insert(there);
                }
            }
        }
    }
    (places, buffers)
}

/// Which values may be overwritten by the convolution that adds them. It must be the last to read them, and read them only
/// once; they must not be the image, nor leave the plan, nor lie in the buffer of a concatenation.
fn overwritten(program: &Program, input: Option<NodeId>) -> Vec<bool> {
    let mut free = vec![false; program.shapes.len()];
    for unit in &program.units {
        // What is read here is free if this is the unit that adds it; whoever comes later may say otherwise.
        let adds = matches!(unit.op, Op::Conv { .. } | Op::DeformConv { .. });
        for value in unit.reads() {
            let once = unit.reads().filter(|&other| other == value).count() == 1;
            free[value.index()] = adds && once && unit.residual == Some(value);
        }
    }
    let concatenated = program.units.iter().filter(|unit| matches!(unit.op, Op::Concat)).flat_map(|unit| &unit.inputs);
    let kept = concatenated.chain(&program.wanted).chain(&input);
    kept.for_each(|value| free[value.index()] = false);
    free
}

fn fresh([n, c, h, w]: [usize; 4], buffers: &mut Vec<Buffer>) -> Place {
    let map = Map::new([n, h, w, c], pixel_stride(c, n * h * w));
    buffers.push(Buffer { len: map.extent(), whole: true, first: usize::MAX, last: 0 });
    Place { buffer: buffers.len() - 1, offset: 0, map }
}

fn padded([n, c, ..]: [usize; 4], border: Border, buffers: &mut Vec<Buffer>) -> Place {
    let map = Map::dense([n, border.size[0], border.size[1], c]);
    buffers.push(Buffer { len: map.extent(), whole: true, first: usize::MAX, last: 0 });
    Place { buffer: buffers.len() - 1, offset: 0, map }
}

/// Gives buffers that only the units of `portions` use room for one portion.
fn shorten(program: &Program, places: &mut [Option<Place>], buffers: &mut [Buffer], portions: Portions) {
    if portions.units == 0 {
        return;
    }
    buffers.iter_mut().for_each(|buffer| buffer.whole = false);
    let later = program.units[portions.units..].iter();
    let known = later.flat_map(|unit| unit.reads().chain(unit.writes())).chain(program.wanted.iter().copied());
    for place in known.filter_map(|value| places[value.index()]) {
        buffers[place.buffer].whole = true;
    }
    let short = |buffer: usize| !buffers[buffer].whole;
    for place in places.iter_mut().flatten().filter(|place| short(place.buffer)) {
        place.map.n = portions.images;
    }
    let mut lens = vec![0; buffers.len()];
    for place in places.iter().flatten() {
        let len = &mut lens[place.buffer];
        *len = place.map.extent().saturating_add(place.offset).max(*len);
    }
    buffers.iter_mut().zip(lens).filter(|(buffer, _)| !buffer.whole).for_each(|(buffer, len)| buffer.len = len);
}

fn lifetimes(program: &Program, places: &[Option<Place>], buffers: &mut [Buffer], portions: Portions) {
    let mut touch = |value: NodeId, step: usize| {
        let Some(place) = places[value.index()] else { return };
        let buffer = &mut buffers[place.buffer];
        buffer.first = buffer.first.min(step);
        buffer.last = buffer.last.max(step);
    };
    for (step, unit) in program.units.iter().enumerate() {
        unit.writes().chain(unit.reads()).for_each(|value| touch(value, step));
    }
    // What leaves the plan is copied out after the last unit.
    program.wanted.iter().for_each(|&value| touch(value, program.units.len()));
    // What holds the whole batch is there while the units of every portion run.
    for buffer in buffers.iter_mut().filter(|b| b.whole && b.first < portions.units) {
        (buffer.first, buffer.last) = (0, buffer.last.max(portions.units - 1));
    }
}

/// Largest first, each at the lowest offset that no buffer alive at the same time covers.
pub(super) fn pack(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    pack_by(buffers, |buffer| buffer.len)
}

/// As [`pack`], or those first that are longest in use, or both weighed, whichever takes the least memory.
pub(super) fn pack_tightly(buffers: &[Buffer]) -> (Vec<usize>, usize) {
    let time = |buffer: &Buffer| buffer.last.saturating_sub(buffer.first) + 1;
    let by = [
        pack(buffers),
        pack_by(buffers, time),
        pack_by(buffers, |buffer| buffer.len.saturating_mul(time(buffer))),
        pack_by(buffers, |buffer| buffer.len.saturating_mul(buffer.len).saturating_mul(time(buffer))),
    ];
    by.into_iter().min_by_key(|(_, len)| *len).expect("there are several")
}

/// Those first for which `most` is largest, each at the lowest offset that no buffer alive at the same time covers.
fn pack_by(buffers: &[Buffer], most: impl Fn(&Buffer) -> usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(most(&buffers[i])), i));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut len = 0;
    for i in order {
        let mut busy: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| buffers[j].first <= buffers[i].last && buffers[i].first <= buffers[j].last)
            .map(|&j| (offsets[j], offsets[j] + buffers[j].len))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if at + buffers[i].len <= start {
                break;
            }
            at = at.max(end.next_multiple_of(16));
        }
        offsets[i] = at;
        len = len.max(at + buffers[i].len);
        placed.push(i);
    }
    (offsets, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_alive_together_never_overlap_and_dead_ones_are_reused() {
        let lives = [(100, 0, 1), (50, 1, 2), (100, 2, 3), (7, 0, 3), (30, 3, 4)];
        let buffers: Vec<Buffer> =
            lives.iter().map(|&(len, first, last)| Buffer { len, whole: true, first, last }).collect();
        let (offsets, len) = pack(&buffers);
        for i in 0..buffers.len() {
            for j in 0..i {
                let (a, b) = (&buffers[i], &buffers[j]);
                let together = a.first <= b.last && b.first <= a.last;
                let apart = offsets[i] + a.len <= offsets[j] || offsets[j] + b.len <= offsets[i];
                assert!(!together || apart, "{i} and {j} overlap");
            }
        }
        assert!(len < 100 + 50 + 100 + 7, "nothing was reused: {len}");
    }

    #[test]
    fn pixels_never_lie_a_multiple_of_4096_bytes_apart() {
        assert_eq!([3, 16, 100, 1024, 2048].map(|c| pixel_stride(c, 49)), [3, 16, 112, 1040, 2064]);
    }
}
