//! Sliding convolution: what depthwise and grouped convolutions share.
//!
//! Where few input channels meet an output channel, a convolution is not a matrix product: there is nothing to reuse
//! but the input pixel, which `kw` output pixels of a row have in common. So:
//!
//! ```text
//! for each block of output channels (one or two vectors)
//!   for each strip of P output pixels along a row
//!     sums[P] = bias
//!     for each row of taps inside the image, for each step (channel of a group)
//!       for each input column of the strip: fetch it, add it to the sums of all taps that touch it
//!     store sums
//! ```
//!
//! - The sums of a strip and one row of weights stay in registers; each fetch feeds up to `kw` products.
//! - Rows of taps in the padding are not visited, columns in the padding are skipped by one predictable branch: border
//!   strips run the same loop, only with the branch in it.
//! - A row that is not a multiple of P, or a channel count that is not a multiple of the block, is covered by a last
//!   strip or block that overlaps the one before: what it computes twice it computes alike.
//! - How a column is fetched ([`strip::Fetch`]) is all that distinguishes depthwise (a load), few channels per group (a
//!   load and a shuffle that hands each lane a channel of its own group) and many (a broadcast).
//!
//! Dilated rows of taps, unusual kernel widths and strides, and channel counts below a vector take the general loop,
//! which fetches once per tap.
#![allow(unsafe_code, reason = "kernels run on raw pointers")]

mod blocks;
mod cut;
mod finish;
mod strip;
#[cfg(test)]
mod tests;

use super::ConvSpec;
use super::weights::{Direction, Form, Order, Packed, Packing};
use crate::activation::Activation;
use crate::kernels::weights::whole;
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::{Isa, Simd, Task};
use crate::tensor::AlignedBuf;
use blocks::{Block, FetchKind, Layout, MIN_LANES};
use cut::{Strips, Tiling};
use finish::{Finish, Pixels};
use std::marker::PhantomData;
use std::ops::Range;
use strip::{Broadcast, Fetch, General, Permute, Plain, Strip};

/// A prepared sliding convolution.
pub(super) struct Slide {
    spec: ConvSpec,
    isa: Isa,
    name: String,
    layout: Layout,
    /// `[block][kernel row][step][kernel column][vector][lane]`, then biases as `[block][vector][lane]`.
    weights: Packed,
    /// `[block][step][lane]`: which lane to fetch, as the bits of an integer. Empty if nothing is permuted.
    lanes: AlignedBuf,
    strips: Strips,
    tiling: Tiling,
    /// Floats from one row's sums to the next, if they are to be written to `also[0]`.
    sums: Option<usize>,
    run: Run,
    finish: unsafe fn(Finish),
}

/// A loop for one geometry: slide, part of the work, maps, scratch.
type Run = unsafe fn(&Slide, Part, &Io, *mut f32);

/// Rows of one image, for some of the blocks.
struct Part {
    image: usize,
    rows: Range<usize>,
    blocks: Range<usize>,
    /// Rows done for one block before the next block's turn.
    sweep: usize,
    /// Whether the maps are beyond the second cache, so that what the next row needs is fetched meanwhile.
    ahead: bool,
}

impl Slide {
    /// Prepares this geometry.
    pub(super) fn new(what: &str, spec: ConvSpec, isa: Isa) -> Slide {
        let layout = Layout::new(&spec, isa);
        let strips = Strips::new(&spec, &layout);
        let (run, kind) = choose(&spec, &layout);
        let name = format!("{what}_{kind}_{}x{} {}", strips.pixels, layout.vectors, isa.vectors().name());
        let tiling = Tiling::new(&spec, &layout);
        let lanes = layout.pack_lanes();
        let (weights, finish) = (Packed::Given, isa.entry::<Finish>());
        Slide { spec, isa, name, layout, weights, lanes, strips, tiling, sums: None, run, finish }
    }

    /// Writes the sum of every output row to `also[0]` too: channel `c` of row `y` of image `n` at `(n · h + y) · ld + c`,
    /// added up from left to right.
    pub(super) fn with_sums(self, ld: usize) -> Slide {
        assert!(ld >= self.spec.output.c);
        Slide { sums: Some(ld), ..self }
    }

    /// What tile `tile` covers.
    fn tile(&self, tile: usize) -> Part {
        let t = &self.tiling;
        let (chunk, rest) = (tile % t.chunks.len(), tile / t.chunks.len());
        let (part, image) = (rest % t.row_tiles, rest / t.row_tiles);
        let rows = part * t.rows..((part + 1) * t.rows).min(self.spec.output.h);
        Part { image, rows, blocks: t.chunks[chunk].clone(), sweep: t.sweep, ahead: t.ahead }
    }

    /// Computes `rows` of the first image, whose input rows need only be there as far as the window reaches.
    ///
    /// # Safety
    /// As [`Kernel::run`] for these rows.
    pub(super) unsafe fn rows(&self, rows: Range<usize>, io: &Io, scratch: &mut [f32]) {
        debug_assert!(scratch.len() >= self.scratch());
        let part = Part { image: 0, sweep: rows.len(), rows, blocks: 0..self.layout.blocks.len(), ahead: false };
        // SAFETY: passed on.
        unsafe { (self.run)(self, part, io, scratch.as_mut_ptr()) }
    }
}

/// Packs all weights at once: they are few.
struct SlidePacking {
    layout: Layout,
    kernel: [usize; 2],
    order: Order,
}

impl Packing for SlidePacking {
    fn len(&self) -> usize {
        self.layout.packed_len(self.kernel)
    }

    fn pieces(&self) -> usize {
        1
    }

    unsafe fn piece(&self, _: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32) {
        // SAFETY: this is the only piece.
        let packed = unsafe { std::slice::from_raw_parts_mut(packed, self.len()) };
        whole(weight, |weight| {
            for block in 0..self.layout.blocks.len() {
                let [weights, biases] = self.layout.packed_of(block, self.kernel);
                let at = |output, input, tap| weight[self.order.at(output, input, tap)];
                self.layout.pack_weights(block, self.kernel, at, &mut packed[weights]);
                self.layout.pack_bias(block, bias, &mut packed[biases]);
            }
        });
    }
}

impl Form for Slide {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        let (layout, kernel) = (self.layout.clone(), self.spec.window.kernel);
        Box::new(SlidePacking { layout, kernel, order: direction.order(&self.spec) })
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }
}

impl Kernel for Slide {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tiles(&self) -> usize {
        self.spec.output.n * self.tiling.row_tiles * self.tiling.chunks.len()
    }

    fn scratch(&self) -> usize {
        let sums = self.spec.output.w * self.layout.vectors * self.isa.lanes();
        if self.spec.epilogue.residual.is_some() { sums } else { 0 }
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes() + 4 * self.lanes.len()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        // SAFETY: passed on.
        unsafe { (self.run)(self, self.tile(tile), io, scratch.as_mut_ptr()) }
    }
}

/// The loop for this geometry, and its name.
fn choose(spec: &ConvSpec, layout: &Layout) -> (Run, String) {
    let (kw, stride) = (spec.window.kernel[1], spec.window.stride[1]);
    let kind = spec.label();
    let run = match (layout.fetch, layout.general, kw, stride) {
        (FetchKind::Plain, false, 3, 1) => start::<Plain, 3, 1> as Run,
        (FetchKind::Plain, false, 3, 2) => start::<Plain, 3, 2>,
        (FetchKind::Plain, false, 5, 1) => start::<Plain, 5, 1>,
        (FetchKind::Plain, false, 5, 2) => start::<Plain, 5, 2>,
        (FetchKind::Permute, false, 3, 1) => start::<Permute, 3, 1>,
        (FetchKind::Permute, false, 3, 2) => start::<Permute, 3, 2>,
        (FetchKind::Broadcast, false, 3, 1) => start::<Broadcast, 3, 1>,
        (FetchKind::Broadcast, false, 3, 2) => start::<Broadcast, 3, 2>,
        (FetchKind::Plain, ..) => start::<Plain, 0, 0>,
        (FetchKind::Permute, ..) => start::<Permute, 0, 0>,
        (FetchKind::Broadcast, ..) => start::<Broadcast, 0, 0>,
    };
    (run, if layout.general { format!("{kind}_general") } else { kind })
}

/// Computes a part with the instruction set the kernel was prepared for.
///
/// # Safety
/// As for [`Kernel::run`].
unsafe fn start<F: Fetch, const KW: usize, const ST: usize>(slide: &Slide, part: Part, io: &Io, scratch: *mut f32) {
    // SAFETY: passed on.
    unsafe { slide.isa.run(Tile::<F, KW, ST> { slide, part, io, scratch, fetch: PhantomData }) }
}

/// The work of one part. `KW` = 0 stands for the general loop.
struct Tile<'a, F, const KW: usize, const ST: usize> {
    slide: &'a Slide,
    part: Part,
    io: &'a Io,
    /// A row of sums, if there is a residual.
    scratch: *mut f32,
    fetch: PhantomData<F>,
}

impl<F: Fetch, const KW: usize, const ST: usize> Task for Tile<'_, F, KW, ST> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if const { KW != 0 && S::LANES < 8 } {
            // A condition that is a constant: nothing below is compiled for them.
            unreachable!("short registers take the general loop");
        }
        let Part { image, ref rows, ref blocks, sweep, .. } = self.part;
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + sweep).min(rows.end);
            for block in blocks.clone() {
                for row in start..end {
                    // SAFETY: passed on.
                    unsafe { self.row::<S>(image, row, block) };
                }
            }
            start = end;
        }
    }
}

impl<F: Fetch, const KW: usize, const ST: usize> Tile<'_, F, KW, ST> {
    /// One row of output pixels of one block.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, n: usize, y: usize, block: usize) {
        let Slide { spec, layout, strips, .. } = self.slide;
        let (input, output, window) = (spec.input, spec.output, spec.window);
        let at = layout.blocks[block];
        let width = layout.vectors * S::LANES;
        let top = (y * window.stride[0]) as isize - spec.placed.before[0] as isize;
        let taps = taps_inside(top, window.kernel[0], window.dilation[0], input.h);
        let row_weights = layout.steps * window.kernel[1] * width;
        let image = n as isize * input.h as isize;
        let first_row = image + top + (taps.start * window.dilation[0]) as isize;
        let [block_weights, block_bias] = layout.packed_of(block, window.kernel).map(|range| range.start);
        let packed = self.slide.weights.of(self.io);
        let epilogue = spec.epilogue;
        let clamp = if epilogue.residual.is_some() { None } else { clamp_of(epilogue.activation) };
        // What the strips neither clamp nor leave in scratch is finished where it lies, while it is in the first cache.
        let unfinished = clamp.is_none() && (epilogue.residual.is_some() || epilogue.activation.is_some());
        // SAFETY: blocks, rows and strips lie inside the maps; the buffers were packed for these blocks.
        unsafe {
            let pixel = (n * output.h + y) * output.w;
            let target = self.io.output.add(pixel * output.ld + at.output);
            // The residual may be the output itself, so it is read before anything is written: sums wait in scratch.
            let (sums, sums_ld) = match epilogue.residual {
                Some(_) => (self.scratch, width),
                None => (target, output.ld),
            };
            let mut strip = Strip {
                input: std::ptr::null(),
                row: window.dilation[0] * input.w * input.ld,
                pixel: input.ld,
                rows: taps.len(),
                steps: layout.steps,
                weights: packed.add(block_weights + taps.start * row_weights),
                lanes: self.slide.lanes.as_ptr().wrapping_add(block * layout.steps * S::LANES),
                bias: packed.add(block_bias),
                output: sums,
                out_pixel: sums_ld,
                clamp,
                valid: strips.valid.as_ptr(),
            };
            for (i, &start) in strips.starts.iter().enumerate() {
                let column = (start * window.stride[1]) as isize - spec.placed.before[1] as isize;
                let offset = (first_row * input.w as isize + column) * input.ld as isize + at.input as isize;
                strip.input = self.io.inputs[0].wrapping_offset(offset);
                strip.output = sums.add(start * sums_ld);
                strip.valid = strips.valid.as_ptr().add(i * strips.words);
                if self.part.ahead {
                    self.fetch_below::<S>(&strip, output.w * sums_ld);
                }
                self.strip::<S>(&strip, strips.inside[i], &at);
            }
            if unfinished || self.slide.sums.is_some() {
                self.finish(Pixels { first: sums.cast_const(), ld: sums_ld }, n * output.h + y, &at, unfinished);
            }
        }
    }

    /// Fetches what the strip below this one reads and this one does not, and where its sums go, `next` floats on.
    #[inline(always)]
    unsafe fn fetch_below<S: Simd>(&self, strip: &Strip, next: usize) {
        let Slide { spec, layout, strips, .. } = self.slide;
        let stride = spec.window.stride;
        let fetch = |from: *const f32, pixels: usize, ld: usize| {
            for at in (0..pixels).map(|p| from.wrapping_add(p * ld)) {
                // SAFETY: fetching is harmless at any address.
                (0..layout.vectors).for_each(|v| unsafe { S::prefetch_far(at.wrapping_add(v * S::LANES)) });
            }
        };
        for row in strip.rows..strip.rows + stride[0] {
            fetch(strip.input.wrapping_add(row * strip.row), strips.pixels * stride[1], strip.pixel);
        }
        fetch(strip.output.wrapping_add(next).cast_const(), strips.pixels, strip.out_pixel);
    }

    /// Adds the residual and applies the activation to the sums of output row `row`, unless that is done; adds up the
    /// row if that is wanted.
    #[inline(always)]
    unsafe fn finish(&self, sums: Pixels, row: usize, at: &Block, unfinished: bool) {
        let spec = &self.slide.spec;
        let (ld, pixels) = (spec.output.ld, spec.output.w);
        // Where blocks overlap the residual may be overwritten already; what overwrote it is final.
        let done = if spec.epilogue.residual.is_some() { at.overlap } else { 0 };
        let (first, channel) = (row * pixels, at.output + done);
        // SAFETY: the pixels lie in the output and in the residual; the block's channels do too.
        unsafe {
            let from = |ld: usize| self.io.inputs[1].add(first * ld + channel);
            (self.slide.finish)(Finish {
                sums: Pixels { first: sums.first.add(done), ..sums },
                residual: spec.epilogue.residual.map(|ld| Pixels { first: from(ld), ld }),
                target: self.io.output.add(first * ld + channel),
                ld,
                pixels,
                channels: at.writable - done,
                activation: spec.epilogue.activation.filter(|_| unfinished),
                total: self.slide.sums.map_or(std::ptr::null_mut(), |ld| self.io.also[0].add(row * ld + channel)),
            });
        }
    }

    /// Picks the loop for the strip's width and for whether it touches the border.
    #[inline(always)]
    unsafe fn strip<S: Simd>(&self, s: &Strip, inside: bool, at: &Block) {
        let Slide { spec, layout, strips, .. } = self.slide;
        macro_rules! fixed {
            ($nv:literal, $p:literal, $border:literal) => {
                strip::fixed::<S, F, KW, ST, $nv, $p, $border>(s)
            };
        }
        // SAFETY: passed on.
        unsafe {
            if const { KW > 0 && S::LANES < MIN_LANES } {
                unreachable!("such short registers take the general loop");
            }
            if const { KW == 0 } {
                let (window, ld) = (spec.window, spec.input.ld);
                let g = General {
                    taps: window.kernel[1],
                    tap: window.dilation[1] * ld,
                    stride: window.stride[1] * ld,
                    readable: at.readable,
                    writable: at.writable,
                };
                return match strips.pixels {
                    4 => strip::general::<S, F, 4>(s, &g),
                    _ => strip::general::<S, F, 1>(s, &g),
                };
            }
            // Constants first: a loop that an instruction set or a fetch never runs is not compiled for it.
            match (layout.vectors, strips.pixels, inside) {
                (2, 8, true) if const { pairs::<S, F>() && even::<F>(ST) } => fixed!(2, 8, false),
                (2, 8, false) if const { pairs::<S, F>() && even::<F>(ST) } => fixed!(2, 8, true),
                (2, 7, true) if const { pairs::<S, F>() } => fixed!(2, 7, false),
                (2, 7, false) if const { pairs::<S, F>() } => fixed!(2, 7, true),
                (2, 6, true) if const { pairs::<S, F>() && plain::<F>() } => fixed!(2, 6, false),
                (2, 6, false) if const { pairs::<S, F>() && plain::<F>() } => fixed!(2, 6, true),
                (2, ..) if const { pairs::<S, F>() } => fixed!(2, 4, true),
                (_, 14, true) if const { wide::<S, F>(ST) } => fixed!(1, 14, false),
                (_, 14, false) if const { wide::<S, F>(ST) } => fixed!(1, 14, true),
                (_, 8, true) if const { even::<F>(ST) } => fixed!(1, 8, false),
                (_, 8, false) if const { even::<F>(ST) } => fixed!(1, 8, true),
                (_, 7, true) => fixed!(1, 7, false),
                (_, 7, false) => fixed!(1, 7, true),
                (_, 6, true) if const { plain::<F>() } => fixed!(1, 6, false),
                (_, 6, false) if const { plain::<F>() } => fixed!(1, 6, true),
                _ => fixed!(1, 4, true),
            }
        }
    }
}

/// Whether blocks of two vectors occur.
const fn pairs<S: Simd, F: Fetch>() -> bool {
    S::REGISTERS >= 32 && !F::PERMUTE
}

/// Whether strips of 6 pixels occur.
const fn plain<F: Fetch>() -> bool {
    !F::SPLAT && !F::PERMUTE
}

/// Whether strips of 8 pixels occur.
const fn even<F: Fetch>(stride: usize) -> bool {
    plain::<F>() && stride == 1
}

/// Whether strips of 14 pixels occur.
const fn wide<S: Simd, F: Fetch>(stride: usize) -> bool {
    S::REGISTERS >= 32 && stride == 1 && (F::PERMUTE || F::SPLAT)
}

/// The taps `k` with `0 ≤ first + k·dilation < size`.
fn taps_inside(first: isize, taps: usize, dilation: usize, size: usize) -> Range<usize> {
    let start = (-first).max(0).unsigned_abs().div_ceil(dilation);
    let end = (size as isize - first).max(0).unsigned_abs().div_ceil(dilation).min(taps);
    start.min(end)..end
}

/// The range an activation cuts off to, if that is all it does.
fn clamp_of(activation: Option<Activation>) -> Option<[f32; 2]> {
    match activation {
        Some(Activation::Relu) => Some([0.0, f32::INFINITY]),
        Some(Activation::Relu6) => Some([0.0, 6.0]),
        _ => None,
    }
}
