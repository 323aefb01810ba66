//! A 1×1 expansion and the depthwise convolution behind it as one kernel: the wide map between them is never stored.
//!
//! The inverted residual widens a map several times over only to filter every channel by itself. So the wide map is made
//! a few rows at a time for one panel of channels, in a buffer that stays in the second cache, and filtered from there:
//!
//! ```text
//! for each panel of channels, for each band of output rows:
//!   move the input rows that the band before used too to the top of the buffer
//!   expand the rows that are new        (the product of `gemm`, with its activation)
//!   filter the band                     (the loops of `slide`, with theirs)
//! ```
//!
//! Both halves run the loops they would run as kernels of their own, so the results have the same bits. Where an image
//! is cut into several tiles, the rows that both sides of a cut need are expanded twice. Where a whole image of a panel fits
//! the buffer, [`strassen`](super::strassen())'s product may expand it ([`product`]).

#![allow(unsafe_code, reason = "hands out parts of scratch memory and of maps as raw pointers")]

mod product;
#[cfg(test)]
mod tests;

use self::product::Product;
use super::algorithm::Precision;
use super::depthwise::slide;
use super::slide::Slide;
use super::weights::{Direction, Form, pack};
use super::{ConvSpec, strassen};
use crate::activation::Activation;
use crate::kernels::{Epilogue, Io, Kernel, Map, Weights};
use crate::shape::{Padding, Placed, Window};
use crate::simd::Isa;
use std::ops::Range;

/// The geometry of an expansion and a depthwise convolution.
#[derive(Debug, Clone, Copy)]
pub struct ExpandSpec {
    /// The map read, `inputs[0]`.
    pub input: Map,
    /// Applied to the expanded map.
    pub activation: Option<Activation>,
    /// The depthwise convolution, without dilation and without a residual. Its input is the expanded map, of which only
    /// the size counts.
    pub depthwise: ConvSpec,
    /// Floats from one row's sums to the next, if the sum of every output row is to be left at `also[0]`: channel `c` of
    /// row `y` of image `n` at `(n · h + y) · ld + c`.
    pub sums: Option<usize>,
}

/// Weights and biases as PyTorch stores them.
#[derive(Clone, Copy)]
pub struct ExpandWeights<'a> {
    /// `[c, k]` and `[c]`.
    pub expand: Filters<'a>,
    /// `[c, 1, kh, kw]` and `[c]`.
    pub depthwise: Filters<'a>,
}

type Filters<'a> = (&'a dyn Weights, Option<&'a [f32]>);

/// Prepares `y = depthwise(activation(W · x + b))`. Panics if the slices do not fit the geometry.
///
/// The expansion is computed by [`strassen`](super::strassen())'s product where that is faster and the precision allows it. It is
/// cut for so many `threads`, on whose number no bit depends.
pub fn expand_depthwise(
    spec: &ExpandSpec,
    weights: ExpandWeights<'_>,
    precision: Precision,
    threads: usize,
    isa: Isa,
) -> Box<dyn Kernel> {
    let expansion = expansion(spec);
    let saves = precision == Precision::Fast && strassen::profitable(&expansion, strassen::Input::Expanded);
    let product = match saves && Product::fits(&expansion, isa, BAND) {
        true => Product::strassen(&expansion, weights.expand, isa),
        false => Product::plain(&expansion, weights.expand, isa),
    };
    let cut = Cut::new(spec, &product, threads);
    Box::new(ExpandDepthwise::new(spec, product, cut, weights.depthwise, BAND))
}

/// Floats of the buffer: a third of a second cache of 1 MB.
const BAND: usize = 80 << 10;

/// Multiply-accumulates worth a tile: some 10 µs.
const TILE_WORK: usize = 500_000;

/// An activation costs about as much as this many of them.
const ACTIVATION_WORK: usize = 16;

/// Most tiles.
const MOST_TILES: usize = 32;

/// Groups of panels for every thread, where each of them sums the pixels anew.
const SUMMED: usize = 2;

struct ExpandDepthwise {
    name: String,
    input: Map,
    output: Map,
    window: Window,
    /// Rows of padding above.
    before: usize,
    /// All panels of the expansion, and for each the filters of its runs of channels.
    product: Product,
    slides: Vec<Vec<Slide>>,
    sums: Option<usize>,
    /// Floats from pixel to pixel in the buffer, and the rows it has room for.
    ld: usize,
    capacity: usize,
    cut: Cut,
}

/// The cut of the work: `image × part of the rows × group of panels`.
struct Cut {
    parts: usize,
    groups: usize,
    /// Whether a group's weights serve all images in turn, or an image all groups.
    weights_first: bool,
}

impl Cut {
    fn new(spec: &ExpandSpec, product: &Product, threads: usize) -> Cut {
        let (input, output, window) = (spec.input, spec.depthwise.output, spec.depthwise.window);
        let expand = input.pixels() * output.c * (input.c + ACTIVATION_WORK);
        let filter = output.pixels() * output.c * (window.taps() + ACTIVATION_WORK);
        let wanted = ((expand + filter) / TILE_WORK).clamp(1, MOST_TILES).div_ceil(input.n.max(1));
        if product.is_whole() {
            let groups = product.panels().min(wanted).min(SUMMED * threads);
            return Cut { parts: 1, groups, weights_first: true };
        }
        let groups = product.panels().min(wanted);
        // What is expanded twice at every cut must stay below an eighth.
        let twice = window.kernel[0].saturating_sub(window.stride[0]).max(1);
        let least = (8 * twice).div_ceil(window.stride[0]);
        let parts = wanted.div_ceil(groups).min(8usize.div_ceil(groups)).clamp(1, (output.h / least).max(1));
        let weights_first = product.packed_bytes() > 4 * input.h * input.w * input.c;
        Cut { parts, groups, weights_first }
    }
}

/// The expansion as a convolution of its own.
fn expansion(spec: &ExpandSpec) -> ConvSpec {
    let size = [spec.input.h, spec.input.w];
    ConvSpec {
        input: spec.input,
        output: spec.depthwise.input,
        window: Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) },
        placed: Placed { input: size, output: size, before: [0; 2] },
        groups: 1,
        epilogue: Epilogue { activation: spec.activation, residual: None },
    }
}

impl ExpandDepthwise {
    fn new(spec: &ExpandSpec, product: Product, cut: Cut, filters: Filters<'_>, band: usize) -> Self {
        let isa = product.isa();
        let ExpandSpec { input, depthwise, sums, .. } = *spec;
        let (window, c) = (depthwise.window, depthwise.output.c);
        assert!([input.n, input.h, input.w] == [depthwise.input.n, depthwise.input.h, depthwise.input.w]);
        assert!(depthwise.groups == c && depthwise.input.c == c, "a depthwise convolution has single channels");
        assert!(window.dilation == [1, 1] && depthwise.epilogue.residual.is_none());
        depthwise.check(filters.0, filters.1);
        let ld = product.ld();
        let slide = |columns: Range<usize>| {
            let part = ConvSpec {
                input: Map::new([1, input.h, input.w, columns.len()], ld),
                output: Map { n: 1, c: columns.len(), ..depthwise.output },
                groups: columns.len(),
                ..depthwise
            };
            let mut slide = slide(part, isa);
            let (taps, bias) = (window.taps(), filters.1.map(|b| &b[columns.clone()]));
            filters.0.with(columns.start * taps..columns.end * taps, &mut |values| {
                slide.hold(pack(&*slide.packing(Direction::Forward), &values, bias));
            });
            if let Some(ld) = sums { slide.with_sums(ld) } else { slide }
        };
        let slides = (0..product.panels()).map(|panel| product.runs(panel).map(slide).collect());
        let slides: Vec<Vec<Slide>> = slides.collect();
        let least = if product.is_whole() { input.h } else { window.kernel[0] + window.stride[0] };
        ExpandDepthwise {
            name: format!("expand_{}_{}", product.name(), slides[0][0].name()),
            input,
            output: depthwise.output,
            window,
            before: depthwise.placed.before[0],
            capacity: (band / (input.w * ld).max(1)).max(least).min(input.h),
            cut,
            product,
            slides,
            sums,
            ld,
        }
    }

    /// The first input row that output row `y` reads, and one past the last.
    fn reach(&self, y: usize) -> Range<usize> {
        let inside = |row: usize| row.saturating_sub(self.before).min(self.input.h);
        let top = y * self.window.stride[0];
        inside(top)..inside(top + self.window.kernel[0])
    }

    /// Computes `rows` of the channels of one panel. `x`, `y` and `sums` are those of one image.
    ///
    /// # Safety
    /// As [`Kernel::run`], behind [`Product::prepare`].
    unsafe fn panel(&self, panel: usize, rows: Range<usize>, io: &Io, scratch: &mut [f32]) {
        let row = self.input.w * self.ld;
        let (buffer, rest) = scratch.split_at_mut(self.capacity * row);
        let buffer = buffer.as_mut_ptr();
        // Rows `base..end` of the expanded image lie in the buffer.
        let (mut base, mut end, mut y) = (0, 0, rows.start);
        while y < rows.end {
            let first = self.reach(y).start;
            let fits = |&y: &usize| self.reach(y).end.saturating_sub(first) <= self.capacity;
            let until = (y + 1..rows.end).take_while(fits).last().map_or(y + 1, |last| last + 1);
            let needed = self.reach(until - 1).end;
            // SAFETY: at most `capacity` rows from `first` on are in use; all pointers stay in the maps of `io` but those
            // that are only the start of a sum.
            unsafe {
                if first < end && base < first {
                    std::ptr::copy(buffer.add((first - base) * row), buffer, (end - first) * row);
                }
                (base, end) = (first, end.max(first));
                if end < needed {
                    let pixels = end * self.input.w..needed * self.input.w;
                    self.product.run(panel, pixels, io, buffer.add((end - base) * row), rest);
                    end = needed;
                }
                let expanded = buffer.cast_const().wrapping_sub(base * row);
                for (i, (slide, run)) in self.slides[panel].iter().zip(self.product.runs(panel)).enumerate() {
                    let expanded = expanded.wrapping_add(i * self.product.apart());
                    let mut part = Io::new(&[expanded], io.output.add(run.start));
                    part.also[0] = io.also[0].wrapping_add(run.start);
                    slide.rows(y..until, &part, &mut []);
                }
            }
            y = until;
        }
    }
}

impl Kernel for ExpandDepthwise {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tiles(&self) -> usize {
        if self.output.pixels() == 0 { 0 } else { self.input.n * self.cut.parts * self.cut.groups }
    }

    fn scratch(&self) -> usize {
        let pixels = self.capacity * self.input.w;
        pixels * self.ld + self.product.scratch(pixels)
    }

    fn resident_bytes(&self) -> usize {
        self.product.resident_bytes() + self.slides.iter().flatten().map(Slide::resident_bytes).sum::<usize>()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let Cut { parts, groups, weights_first } = self.cut;
        let (group, place) = match weights_first {
            true => (tile / (self.input.n * parts), tile % (self.input.n * parts)),
            false => (tile % groups, tile / groups),
        };
        let (image, part) = (place / parts, place % parts);
        let cut = |i: usize, of: usize, all: usize| i * all / of..(i + 1) * all / of;
        let (h, w) = (self.output.h, self.output.w);
        // SAFETY: `image` is one of the batch.
        let io = unsafe {
            let x = io.inputs[0].add(image * self.input.h * self.input.w * self.input.ld);
            let mut of_image = Io::new(&[x], io.output.add(image * h * w * self.output.ld));
            of_image.also[0] = self.sums.map_or(std::ptr::null_mut(), |ld| io.also[0].add(image * h * ld));
            of_image
        };
        let buffer = self.capacity * self.input.w * self.ld;
        // SAFETY: passed on.
        unsafe {
            self.product.prepare(&io, &mut scratch[buffer..]);
            for panel in cut(group, groups, self.product.panels()) {
                self.panel(panel, cut(part, parts, h), &io, scratch);
            }
        }
    }
}
