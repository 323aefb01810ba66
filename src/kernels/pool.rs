//! Pooling, windowed and adaptive: each output pixel reduces a rectangle of input pixels, all channels at once.
//!
//! The rectangles are products of two lists of spans, one per axis, worked out when the kernel is prepared; every border
//! rule (padding, ceil windows, overlapping adaptive regions) lives there and none in the loop. Rows are reduced from
//! left to right and then joined from top to bottom, in that order on every instruction set.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

pub mod grad;

use super::light::{Light, Tiled, Tiling};
use super::{Io, Kernel, Map};
use crate::shape::{Padding, Placed, Window};
use crate::simd::{Isa, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// Maximum over each window; see [`naive::max_pool`](super::naive::max_pool). Input: one map.
pub fn max(input: Map, output: Map, window: Window, placed: Placed, isa: Isa) -> impl Kernel {
    let spans = windows(&window, &placed, false);
    pool::<Max>("max_pool", input, output, (spans, window.dilation), isa)
}

/// Mean over each window, divided by its pixels or, with `count_include_pad`, by its pixels and its share of the padding;
/// see [`naive::avg_pool`](super::naive::avg_pool). Input: one map.
pub fn average(
    input: Map,
    output: Map,
    window: Window,
    placed: Placed,
    count_include_pad: bool,
    isa: Isa,
) -> impl Kernel {
    let spans = windows(&window, &placed, count_include_pad);
    pool::<Mean>("average_pool", input, output, (spans, window.dilation), isa)
}

/// Mean over regions that tile the image, as many as the output has pixels; see
/// [`naive::adaptive_avg_pool`](super::naive::adaptive_avg_pool). An output of 1×1 is the global average. Input: one map.
pub fn adaptive_average(input: Map, output: Map, isa: Isa) -> impl Kernel {
    pool::<Mean>("adaptive_average", input, output, (regions(input, output), [1; 2]), isa)
}

/// Maximum over the regions of [`adaptive_average`]. Input: one map.
pub fn adaptive_max(input: Map, output: Map, isa: Isa) -> impl Kernel {
    pool::<Max>("adaptive_max", input, output, (regions(input, output), [1; 2]), isa)
}

/// Windows of more pixels are read in wider strips of channels.
const WIDE: usize = 64;
/// So many output pixels are tiles enough: each has all its channels then, and is read row by row.
const MANY: usize = 8;
/// Rows of more pixels than the first of these have as many as the second fetched ahead of use.
const FEW: usize = 6;
const AHEAD: usize = 32;

/// The input rows (or columns) that an output row (or column) reduces.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    count: usize,
    /// What a mean divides by; larger than `count` where padding counts.
    divisor: usize,
}

/// Spans of a sliding window, rows then columns.
fn windows(window: &Window, placed: &Placed, count_padding: bool) -> [Vec<Span>; 2] {
    [0, 1].map(|axis| {
        let (input, before, dilation) = (placed.input[axis], placed.before[axis], window.dilation[axis]);
        let padded = match window.padding {
            Padding::Symmetric(_) => input + 2 * before,
            Padding::Same => usize::MAX, // there is as much as the windows need
        };
        let span = |o: usize| {
            let start = o * window.stride[axis];
            // Taps whose position start + t·dilation, counted from the first row of padding, is below `end`.
            let below = |end: usize| end.saturating_sub(start).div_ceil(dilation).min(window.kernel[axis]);
            let skipped = below(before);
            let count = below(before + input) - skipped;
            let divisor = if count_padding { below(padded) } else { count };
            Span { first: (start + skipped * dilation).saturating_sub(before), count, divisor }
        };
        (0..placed.output[axis]).map(span).collect()
    })
}

/// Spans of adaptive pooling: output `o` of `O` covers the inputs from `⌊o·I/O⌋` up to `⌈(o + 1)·I/O⌉`.
fn regions(input: Map, output: Map) -> [Vec<Span>; 2] {
    [(input.h, output.h), (input.w, output.w)].map(|(extent, outputs)| {
        let region = |o: usize| {
            let first = o * extent / outputs;
            let count = ((o + 1) * extent).div_ceil(outputs) - first;
            Span { first, count, divisor: count }
        };
        (0..outputs).map(region).collect()
    })
}

/// How pixels are joined.
trait Reduction: Send + Sync + 'static {
    /// The reduction of nothing.
    const EMPTY: f32;
    /// Whether the result is divided by the span's divisor.
    const DIVIDES: bool;

    /// # Safety
    /// The CPU has the instruction set of `S`.
    unsafe fn join<S: Simd>(a: S::V, b: S::V) -> S::V;
}

struct Max;

impl Reduction for Max {
    const EMPTY: f32 = f32::NEG_INFINITY;
    const DIVIDES: bool = false;

    #[inline(always)]
    unsafe fn join<S: Simd>(a: S::V, b: S::V) -> S::V {
        // SAFETY: passed on.
        unsafe { S::max_nan(a, b) }
    }
}

struct Mean;

impl Reduction for Mean {
    const EMPTY: f32 = 0.0;
    const DIVIDES: bool = true;

    #[inline(always)]
    unsafe fn join<S: Simd>(a: S::V, b: S::V) -> S::V {
        // SAFETY: passed on.
        unsafe { S::add(a, b) }
    }
}

/// Bytes of a map that comes from memory, or from a third cache that is far away.
const FAR: usize = 4 << 20;

/// The windows of a map, and how far their taps are apart.
struct Windows<'a> {
    input: Map,
    spans: &'a [Vec<Span>; 2],
    dilation: [usize; 2],
}

impl Windows<'_> {
    /// Fetches, of some channels of an image, what the window below reads and the one at `[row, column]` does not: windows
    /// are read a few channels at a time and three rows at once, which the hardware does not foresee.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn fetch_below<S: Simd>(
        &self,
        x: *const f32,
        image: usize,
        [row, column]: [usize; 2],
        channels: Range<usize>,
    ) {
        let map = self.input;
        let ([rows, columns], [down, across]) = (self.spans, self.dilation);
        if size_of::<f32>() * map.extent() <= FAR {
            return;
        }
        let end = |span: &Span, step: usize| span.first + span.count.saturating_sub(1) * step + 1;
        let Some(below) = rows.get(row + 1) else { return };
        let right = columns.get(column + 1).map_or(end(&columns[column], across), |next| next.first);
        for y in end(&rows[row], down).max(below.first)..end(below, down) {
            for at in columns[column].first..right {
                let pixel = x.wrapping_add(((image * map.h + y) * map.w + at) * map.ld);
                for c in channels.clone().step_by(S::LANES) {
                    // SAFETY: fetching is harmless at any address.
                    unsafe { S::prefetch_far(pixel.wrapping_add(c)) };
                }
            }
        }
    }
}

/// See the module. Work is cut by output pixels and, where one pixel is a lot of work, by blocks of channels.
struct Pool<R> {
    name: &'static str,
    input: Map,
    output: Map,
    spans: [Vec<Span>; 2],
    dilation: [usize; 2],
    /// Channels of a tile: all of them, or a multiple of 16 (a cache line; 32 where there are as many, because lines
    /// come in pairs).
    block: usize,
    tiling: Tiling,
    reduction: PhantomData<R>,
}

fn pool<R: Reduction>(
    name: &'static str,
    input: Map,
    output: Map,
    (spans, dilation): ([Vec<Span>; 2], [usize; 2]),
    isa: Isa,
) -> impl Kernel {
    assert_eq!((input.n, input.c), (output.n, output.c), "{input:?} -> {output:?}");
    assert_eq!([spans[0].len(), spans[1].len()], [output.h, output.w], "outputs of {input:?}");
    for (spans, (extent, step)) in spans.iter().zip([(input.h, dilation[0]), (input.w, dilation[1])]) {
        assert!(spans.iter().all(|s| s.count == 0 || s.first + (s.count - 1) * step < extent), "pixels of {input:?}");
    }
    let most = |axis: usize| spans[axis].iter().map(|s| s.count).max().unwrap_or(0).max(1);
    let taps = most(0) * most(1);
    let full = Tiling::fill(taps);
    let lines = if taps > WIDE && input.c >= 256 {
        64
    } else if input.c > 32 {
        32
    } else {
        16
    };
    let whole = output.pixels() >= MANY || 2 * full >= input.c;
    let block = if whole { input.c } else { full.next_multiple_of(lines).min(input.c) };
    let tiling = Tiling::new(output.pixels(), taps * block);
    Light { isa, kernel: Pool::<R> { name, input, output, spans, dilation, block, tiling, reduction: PhantomData } }
}

impl<R: Reduction> Pool<R> {
    /// Reduces the channels `channels` of the rectangle `rows` × `columns` of image `n` into `y`.
    ///
    /// # Safety
    /// `x` is the input map, `y` is writable for all its channels; the CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn pixel<S: Simd>(&self, x: *const f32, y: *mut f32, (n, rows, columns): (usize, Span, Span), from: usize) {
        let map = self.input;
        let to = map.c.min(from + self.block);
        let divisor = rows.divisor * columns.divisor;
        let weight = if divisor == 0 { 0.0 } else { 1.0 / divisor as f32 };
        let first = ((n * map.h + rows.first) * map.w + columns.first) * map.ld;
        let area = Area {
            counts: [rows.count, columns.count],
            steps: [self.dilation[0] * map.w * map.ld, self.dilation[1] * map.ld],
        };
        // SAFETY: `pool` checked that every span lies inside the map, and `from..to` are channels of it.
        unsafe {
            let mut c = from;
            if area.counts.contains(&0) {
                while c < to {
                    S::store_partial(y.add(c), S::splat(R::EMPTY), S::LANES.min(to - c));
                    c += S::LANES;
                }
                return;
            }
            let x = x.add(first);
            let weight = R::DIVIDES.then_some(weight);
            if area.counts[1] <= FEW || self.block < map.c {
                return self.part::<S, true>(x, y, area, from..to, weight);
            }
            // A row of pixels after the other, in the same order: from memory, that is read end to end.
            let row_area = Area { counts: [1, area.counts[1]], ..area };
            for row in 0..area.counts[0] {
                let weight = weight.filter(|_| row + 1 == area.counts[0]);
                let x = x.add(row * area.steps[0]);
                match row {
                    0 => self.part::<S, true>(x, y, row_area, from..to, weight),
                    _ => self.part::<S, false>(x, y, row_area, from..to, weight),
                }
            }
        }
    }

    /// Reduces some channels of an area, joined, unless it is the `FIRST`, with what lies in `y` already, and multiplied by the
    /// `weight` if there is one.
    ///
    /// # Safety
    /// As [`Area::reduce`] for these channels, which are writable in `y`.
    #[inline(always)]
    unsafe fn part<S: Simd, const FIRST: bool>(
        &self,
        x: *const f32,
        y: *mut f32,
        area: Area,
        channels: Range<usize>,
        weight: Option<f32>,
    ) {
        // SAFETY: passed on; the masks keep to the channels.
        unsafe {
            let mut c = channels.start;
            while c + 4 * S::LANES <= channels.end {
                let sums = area.reduce::<S, R, 4>(x.add(c), S::mask(S::LANES));
                for (i, &sum) in sums.iter().enumerate() {
                    let to = y.add(c + i * S::LANES);
                    let sum = if FIRST { sum } else { R::join::<S>(S::load(to), sum) };
                    S::store(to, weigh::<S>(sum, weight));
                }
                c += 4 * S::LANES;
            }
            while c < channels.end {
                let (mask, to) = (S::mask(S::LANES.min(channels.end - c)), y.add(c));
                let [sum] = area.reduce::<S, R, 1>(x.add(c), mask);
                let sum = if FIRST { sum } else { R::join::<S>(S::load_masked(to, mask), sum) };
                S::store_masked(to, weigh::<S>(sum, weight), mask);
                c += S::LANES;
            }
        }
    }
}

/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
unsafe fn weigh<S: Simd>(sum: S::V, weight: Option<f32>) -> S::V {
    match weight {
        // SAFETY: passed on.
        Some(weight) => unsafe { S::mul(sum, S::splat(weight)) },
        None => sum,
    }
}

/// A rectangle of pixels: rows and columns, and the floats from one to the next.
#[derive(Clone, Copy)]
struct Area {
    counts: [usize; 2],
    steps: [usize; 2],
}

impl Area {
    /// Reduces `V` registers of channels over the rectangle whose first pixel is at `x`. `mask` counts if `V` is 1.
    ///
    /// # Safety
    /// All of it is readable, no count is zero, the CPU has the instruction set of `S`.
    #[inline(always)]
    unsafe fn reduce<S: Simd, R: Reduction, const V: usize>(self, x: *const f32, mask: S::M) -> [S::V; V] {
        // The windows in use have loops of constant length, which unroll.
        // SAFETY: passed on.
        unsafe {
            match self.counts {
                [3, 3] => Area { counts: [3, 3], ..self }.reduce_any::<S, R, V>(x, mask),
                [2, 2] => Area { counts: [2, 2], ..self }.reduce_any::<S, R, V>(x, mask),
                _ => self.reduce_any::<S, R, V>(x, mask),
            }
        }
    }

    /// # Safety
    /// As [`Area::reduce`].
    #[inline(always)]
    unsafe fn reduce_any<S: Simd, R: Reduction, const V: usize>(self, x: *const f32, mask: S::M) -> [S::V; V] {
        // SAFETY: passed on.
        unsafe {
            let mut total = [S::zero(); V];
            for row in 0..self.counts[0] {
                let start = x.add(row * self.steps[0]);
                let mut sum = [S::zero(); V];
                for column in 0..self.counts[1] {
                    let pixel = start.add(column * self.steps[1]);
                    for (i, sum) in sum.iter_mut().enumerate() {
                        if self.counts[1] > FEW {
                            // Whole images are read a few channels at a time, which the hardware does not foresee.
                            S::prefetch_far(pixel.wrapping_add(AHEAD * self.steps[1] + i * S::LANES));
                        }
                        let v = if V == 1 { S::load_masked(pixel, mask) } else { S::load(pixel.add(i * S::LANES)) };
                        *sum = if column == 0 { v } else { R::join::<S>(*sum, v) };
                    }
                }
                for (total, sum) in total.iter_mut().zip(sum) {
                    *total = if row == 0 { sum } else { R::join::<S>(*total, sum) };
                }
            }
            total
        }
    }
}

impl<R: Reduction> Tiled for Pool<R> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles() * self.input.c.div_ceil(self.block)
    }

    fn resident_bytes(&self) -> usize {
        self.spans.iter().map(|spans| size_of_val(&spans[..])).sum()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let map = self.output;
        let range = self.tiling.range(tile % self.tiling.tiles());
        let from = tile / self.tiling.tiles() * self.block;
        let (mut column, row) = (range.start % map.w, range.start / map.w);
        let (mut row, mut n) = (row % map.h, row / map.h);
        let windows = Windows { input: self.input, spans: &self.spans, dilation: self.dilation };
        for pixel in range {
            // SAFETY: `pixel` is a pixel of the output.
            unsafe {
                let y = io.output.add(pixel * map.ld);
                windows.fetch_below::<S>(io.inputs[0], n, [row, column], from..map.c.min(from + self.block));
                self.pixel::<S>(io.inputs[0], y, (n, self.spans[0][row], self.spans[1][column]), from);
            }
            column += 1;
            if column == map.w {
                (column, row) = (0, row + 1);
            }
            if row == map.h {
                (row, n) = (0, n + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, spread, values};
    use super::super::naive;
    use super::*;

    /// Kernel, stride, padding, dilation, ceil.
    type Case = ([usize; 2], [usize; 2], [usize; 2], usize, bool);

    const WINDOWS: [Case; 7] = [
        ([1, 1], [1, 1], [0, 0], 1, false),
        ([3, 3], [2, 2], [1, 1], 1, false),
        ([3, 3], [2, 2], [1, 1], 1, true), // windows that reach past the padding
        ([3, 2], [1, 3], [1, 0], 1, false),
        ([2, 3], [2, 1], [1, 3], 2, true),   // dilated
        ([3, 3], [2, 2], [4, 4], 1, false),  // windows wholly in the padding
        ([14, 3], [1, 2], [7, 1], 1, false), // higher than most images
    ];

    fn window((kernel, stride, padding, dilation, ceil): Case) -> Window {
        Window { kernel, stride, padding: Padding::Symmetric(padding), dilation: [dilation; 2], ceil }
    }

    #[test]
    fn windows_agree_with_the_oracle_on_every_isa() {
        let same = Window { stride: [2; 2], padding: Padding::Same, ..Window::square(3) };
        let mut placements = 0;
        for map in maps() {
            let x = values(nchw(map).len(), 13);
            let memory = spread(&x, map);
            for window in WINDOWS.map(window).into_iter().chain([same]) {
                let Ok(placed) = window.place([map.h, map.w], "test") else { continue };
                placements += 1;
                let output = Map::new([map.n, placed.output[0], placed.output[1], map.c], map.c + 2);
                let most = naive::max_pool(&x, nchw(map), &window, &placed);
                for &isa in Isa::available() {
                    let what = format!("{window:?} {map:?} {}", isa.name());
                    let y = run(&max(map, output, window, placed, isa), &[&memory], output);
                    assert_near(&y, &most, 0.0, &what);
                    for include in [false, true] {
                        let mean = naive::avg_pool(&x, nchw(map), &window, &placed, include);
                        let y = run(&average(map, output, window, placed, include, isa), &[&memory], output);
                        assert_near(&y, &mean, 1e-6, &what);
                    }
                }
            }
        }
        assert!(placements > 200, "most windows fit most images, {placements} did");
    }

    #[test]
    fn regions_agree_with_the_oracle_on_every_isa() {
        // The last is high and wide enough to be cut into blocks of channels.
        for map in maps().chain([Map::new([1, 40, 30, 100], 103)]) {
            let x = values(nchw(map).len(), 14);
            let memory = spread(&x, map);
            for size in [[1, 1], [2, 3], [7, 1], [4, 4]] {
                let output = Map::new([map.n, size[0], size[1], map.c], map.c + 3);
                let (mean, most) =
                    (naive::adaptive_avg_pool(&x, nchw(map), size), naive::adaptive_max_pool(&x, nchw(map), size));
                for &isa in Isa::available() {
                    let what = format!("{size:?} {map:?} {}", isa.name());
                    let y = run(&adaptive_average(map, output, isa), &[&memory], output);
                    assert_near(&y, &mean, 1e-5, &what);
                    assert_near(&run(&adaptive_max(map, output, isa), &[&memory], output), &most, 0.0, &what);
                }
            }
        }
        let (input, output) = (Map::dense([1, 40, 30, 100]), Map::dense([1, 1, 1, 100]));
        assert!(adaptive_average(input, output, Isa::Scalar).tiles() > 1, "a global mean is shared out");
    }

    #[test]
    fn maxima_keep_nan_wherever_it_stands_in_the_window() {
        let window = Window::square(3);
        let placed = window.place([3, 3], "test").unwrap();
        let (map, output) = (Map::dense([1, 3, 3, 1]), Map::dense([1, 1, 1, 1]));
        for at in 0..9 {
            let mut x = [1.0; 9];
            x[at] = f32::NAN;
            for &isa in Isa::available() {
                assert!(run(&max(map, output, window, placed, isa), &[&x], output)[0].is_nan(), "{at} {}", isa.name());
            }
        }
    }
}
