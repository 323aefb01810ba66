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
//! is cut into several tiles, the rows that both sides of a cut need are expanded twice.

#![allow(unsafe_code, reason = "hands out parts of scratch memory and of maps as raw pointers")]

use super::ConvSpec;
use super::depthwise::slide;
use super::slide::Slide;
use super::weights::{Direction, Form, GemmPacking, pack};
use crate::activation::Activation;
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::{Epilogue, Io, Kernel, Map, Weights};
use crate::shape::{Padding, Placed, Window};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
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
    pub expand: (&'a dyn Weights, Option<&'a [f32]>),
    /// `[c, 1, kh, kw]` and `[c]`.
    pub depthwise: (&'a dyn Weights, Option<&'a [f32]>),
}

/// Prepares `y = depthwise(activation(W · x + b))`. Panics if the slices do not fit the geometry.
pub fn expand_depthwise(spec: &ExpandSpec, weights: ExpandWeights<'_>, isa: Isa) -> Box<dyn Kernel> {
    Box::new(ExpandDepthwise::new(spec, weights, isa, BAND))
}

/// Floats of the buffer: a third of a second cache of 1 MB.
const BAND: usize = 80 << 10;

/// Multiply-accumulates worth a tile: some 10 µs.
const TILE_WORK: usize = 500_000;

/// An activation costs about as much as this many of them.
const ACTIVATION_WORK: usize = 16;

/// Most tiles.
const MOST_TILES: usize = 32;

struct ExpandDepthwise {
    name: String,
    input: Map,
    output: Map,
    window: Window,
    /// Rows of padding above.
    before: usize,
    /// All panels of the expansion, and for each the filters of its channels.
    gemm: Gemm,
    packed: AlignedBuf,
    slides: Vec<Slide>,
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
    fn new(spec: &ExpandSpec, gemm: &Gemm) -> Cut {
        let (input, output, window) = (spec.input, spec.depthwise.output, spec.depthwise.window);
        let expand = input.pixels() * output.c * (input.c + ACTIVATION_WORK);
        let filter = output.pixels() * output.c * (window.taps() + ACTIVATION_WORK);
        let wanted = ((expand + filter) / TILE_WORK).clamp(1, MOST_TILES).div_ceil(input.n.max(1));
        let groups = gemm.panels().min(wanted);
        // What is expanded twice at every cut must stay below an eighth.
        let twice = window.kernel[0].saturating_sub(window.stride[0]).max(1);
        let least = (8 * twice).div_ceil(window.stride[0]);
        let parts = wanted.div_ceil(groups).min(8usize.div_ceil(groups)).clamp(1, (output.h / least).max(1));
        let weights_first = gemm.packed_bytes() > 4 * input.h * input.w * input.c;
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
    fn new(spec: &ExpandSpec, weights: ExpandWeights<'_>, isa: Isa, band: usize) -> Self {
        let ExpandSpec { input, activation, depthwise, sums } = *spec;
        let (window, c) = (depthwise.window, depthwise.output.c);
        assert!([input.n, input.h, input.w] == [depthwise.input.n, depthwise.input.h, depthwise.input.w]);
        assert!(depthwise.groups == c && depthwise.input.c == c, "a depthwise convolution has single channels");
        assert!(window.dilation == [1, 1] && depthwise.epilogue.residual.is_none());
        let ((expand, expand_bias), (filters, filter_bias)) = (weights.expand, weights.depthwise);
        depthwise.check(filters, filter_bias);
        let pointwise = expansion(spec);
        pointwise.check(expand, expand_bias);
        let gemm = Gemm::new(Extent { taps: 1, k: input.c, n: c }, activation, isa);
        let packed = pack(&*GemmPacking::boxed(&gemm, &pointwise, Direction::Forward), expand, expand_bias);
        let ld = gemm.width(0);
        let slides = (0..gemm.panels()).map(|panel| {
            let columns = gemm.columns(panel);
            let part = ConvSpec {
                input: Map::new([1, input.h, input.w, columns.len()], ld),
                output: Map { n: 1, c: columns.len(), ..depthwise.output },
                groups: columns.len(),
                ..depthwise
            };
            let mut slide = slide(part, isa);
            let (taps, bias) = (window.taps(), filter_bias.map(|b| &b[columns.clone()]));
            filters.with(columns.start * taps..columns.end * taps, &mut |values| {
                slide.hold(pack(&*slide.packing(Direction::Forward), &values, bias));
            });
            if let Some(ld) = sums { slide.with_sums(ld) } else { slide }
        });
        let slides: Vec<Slide> = slides.collect();
        let least = window.kernel[0] + window.stride[0];
        ExpandDepthwise {
            name: format!("expand_{}_{}", gemm.tile_name(), slides[0].name()),
            input,
            output: depthwise.output,
            window,
            before: depthwise.placed.before[0],
            capacity: (band / (input.w * ld).max(1)).max(least).min(input.h),
            cut: Cut::new(spec, &gemm),
            gemm,
            packed,
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
    /// As [`Kernel::run`].
    unsafe fn panel(&self, panel: usize, rows: Range<usize>, io: &Io, scratch: &mut [f32]) {
        let columns = self.gemm.columns(panel);
        let row = self.input.w * self.ld;
        let (buffer, table) = scratch.split_at_mut(self.capacity * row);
        let (buffer, table) = (buffer.as_mut_ptr(), table.as_mut_ptr().cast::<*const f32>());
        // Rows `base..end` of the expanded image lie in the buffer.
        let (mut base, mut end, mut y) = (0, 0, rows.start);
        while y < rows.end {
            let first = self.reach(y).start;
            let fits = |&y: &usize| self.reach(y).end.saturating_sub(first) <= self.capacity;
            let until = (y + 1..rows.end).take_while(fits).last().map_or(y + 1, |last| last + 1);
            let needed = self.reach(until - 1).end;
            // SAFETY: at most `capacity` rows from `first` on are in use; the table has an entry for each of their
            // pixels; all pointers stay in the maps of `io` but those that are only the start of a sum.
            unsafe {
                if first < end && base < first {
                    std::ptr::copy(buffer.add((first - base) * row), buffer, (end - first) * row);
                }
                (base, end) = (first, end.max(first));
                if end < needed {
                    let pixels = (needed - end) * self.input.w;
                    let x = io.inputs[0].add(end * self.input.w * self.input.ld);
                    (0..pixels).for_each(|i| *table.add(i) = x.add(i * self.input.ld));
                    let from = Rows { table, stride: pixels, skip: 0 };
                    let to = buffer.add((end - base) * row).wrapping_sub(columns.start);
                    self.gemm.run(
                        self.packed.as_ptr(),
                        pixels,
                        from,
                        panel..panel + 1,
                        Target::plain(to, self.ld),
                        &mut [],
                    );
                    end = needed;
                }
                let expanded = buffer.cast_const().wrapping_sub(base * row);
                let mut part = Io::new(&[expanded], io.output.add(columns.start));
                part.also[0] = io.also[0].wrapping_add(columns.start);
                self.slides[panel].rows(y..until, &part, &mut []);
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
        // Pointers take two floats each.
        self.capacity * self.input.w * (self.ld + 2)
    }

    fn resident_bytes(&self) -> usize {
        4 * self.packed.len() + self.slides.iter().map(Slide::resident_bytes).sum::<usize>()
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
        for panel in cut(group, groups, self.gemm.panels()) {
            // SAFETY: passed on.
            unsafe { self.panel(panel, cut(part, parts, h), &io, scratch) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SENTINEL, noise, position, to_map};
    use super::*;
    use crate::kernels::naive::{self, ConvShape, Nchw};

    /// Images, size, channels in and between, kernel, stride, rows and columns of padding.
    type Case = ([usize; 3], [usize; 2], usize, usize, [usize; 2]);

    fn spec(([n, h, w], [k, c], kernel, stride, pad): Case, gap: usize, activation: Option<Activation>) -> ExpandSpec {
        let padding = Padding::Symmetric(pad);
        let window = Window { stride: [stride; 2], padding, ..Window::square(kernel) };
        let placed = window.place([h, w], "test").unwrap();
        let [oh, ow] = placed.output;
        let depthwise = ConvSpec {
            input: Map::dense([n, h, w, c]),
            output: Map::new([n, oh, ow, c], c + gap),
            window,
            placed,
            groups: c,
            epilogue: Epilogue { activation, residual: None },
        };
        ExpandSpec { input: Map::new([n, h, w, k], k + gap), activation, depthwise, sums: (gap > 0).then_some(c + gap) }
    }

    fn oracle(spec: &ExpandSpec, x: &[f32], [expand, depthwise]: [(&[f32], Option<&[f32]>); 2]) -> Vec<f64> {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let act = |y: Vec<f64>, f: Option<Activation>| f.map_or(y.clone(), |f| naive::activation(&y, f));
        let conv = |x: &[f64], map: Map, (w, b): (&[f32], Option<&[f32]>), shape: ConvShape| {
            naive::conv2d(x, Nchw::new([map.n, map.c, map.h, map.w]), &wide(w), b.map(wide).as_deref(), &shape)
        };
        let (between, out) = (spec.depthwise.input, spec.depthwise.output);
        let window = Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) };
        let placed = window.place([between.h, between.w], "test").unwrap();
        let shape = ConvShape { out_channels: out.c, groups: 1, window, placed };
        let wide_map = act(conv(&wide(x), spec.input, expand, shape), spec.activation);
        let ConvSpec { window, placed, groups, epilogue, .. } = spec.depthwise;
        let shape = ConvShape { out_channels: out.c, groups, window, placed };
        act(conv(&wide_map, between, depthwise, shape), epilogue.activation)
    }

    fn check(case: Case, gap: usize, activation: Option<Activation>, band: usize) {
        let spec = spec(case, gap, activation);
        let (input, output) = (spec.input, spec.depthwise.output);
        let x = noise(input.pixels() * input.c, 1);
        let expand = (noise(input.c * output.c, 2), noise(output.c, 3));
        let filters = (noise(output.c * spec.depthwise.window.taps(), 4), noise(output.c, 5));
        let bias = |bias| (gap > 0).then_some(bias);
        let weights =
            ExpandWeights { expand: (&expand.0, bias(&expand.1[..])), depthwise: (&filters.0, bias(&filters.1[..])) };
        let want = oracle(&spec, &x, [(&expand.0, weights.expand.1), (&filters.0, weights.depthwise.1)]);
        let source = to_map(&x, input, f32::NAN);
        for &isa in Isa::available() {
            let kernel = ExpandDepthwise::new(&spec, weights, isa, band);
            let mut y = vec![SENTINEL; output.extent()];
            let mut sums = vec![f32::NAN; output.n * output.h * (output.c + gap)];
            let mut io = Io::new(&[source.as_ptr()], y.as_mut_ptr());
            io.also[0] = if spec.sums.is_some() { sums.as_mut_ptr() } else { std::ptr::null_mut() };
            let mut scratch = AlignedBuf::zeros(kernel.scratch());
            for tile in (0..kernel.tiles()).rev() {
                scratch.fill(f32::NAN);
                // SAFETY: the maps have their extents, and tiles run one after the other.
                unsafe { kernel.run(tile, &io, &mut scratch) };
            }
            let what = format!("{} {case:?} gap {gap} band {band}", kernel.name());
            let mut rows = vec![0.0; sums.len()];
            for (i, &want) in want.iter().enumerate() {
                let at = position(i, output);
                let got = f64::from(std::mem::replace(&mut y[at], SENTINEL));
                assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{what}: [{i}] {got} {want}");
                let (pixel, c) = (at / output.ld, at % output.ld);
                rows[pixel / output.w * (output.c + gap) + c] += got;
            }
            assert!(y.iter().all(|&v| v == SENTINEL), "{what} writes between pixels");
            for (i, (&got, want)) in sums.iter().zip(&rows).enumerate().filter(|_| spec.sums.is_some()) {
                let is_gap = i % (output.c + gap) >= output.c;
                assert!(is_gap || (f64::from(got) - want).abs() <= 1e-4, "{what}: row sum {i} is {got}, not {want}");
                assert!(!is_gap || got.is_nan(), "{what}: wrote between the row sums");
            }
        }
    }

    #[test]
    fn the_fused_pair_agrees_with_the_oracle_on_every_isa() {
        let silu = Some(Activation::Silu);
        let cases: [Case; 10] = [
            ([1, 7, 7], [24, 144], 5, 1, [2; 2]),
            ([2, 14, 14], [16, 96], 3, 2, [1; 2]),
            ([1, 15, 13], [7, 40], 5, 2, [2; 2]),
            ([2, 9, 10], [3, 17], 3, 1, [1; 2]),
            ([1, 5, 4], [8, 5], 3, 1, [1; 2]),
            ([1, 30, 8], [16, 48], 3, 1, [1; 2]),
            ([3, 1, 1], [20, 130], 3, 1, [1; 2]),
            // A row of windows that lies in the padding, and none that does.
            ([1, 6, 9], [5, 33], 3, 1, [2, 2]),
            ([1, 11, 12], [4, 64], 5, 1, [0; 2]),
            ([1, 8, 8], [4, 32], 7, 2, [3; 2]),
        ];
        for case in cases {
            // The whole image at once, and as few rows as can be.
            for band in [BAND, 1] {
                check(case, 0, silu, band);
                check(case, 5, silu, band);
            }
            check(case, 3, Some(Activation::Relu6), BAND);
            check(case, 3, None, 1);
        }
    }

    #[test]
    fn large_maps_are_cut_into_parts_that_agree_with_the_oracle() {
        let case = ([1, 80, 40], [8, 70], 3, 1, [1; 2]);
        check(case, 5, Some(Activation::Silu), 9 * 40 * 64);
        let spec = spec(case, 0, None);
        let (expand, filters) = (noise(70 * 8, 1), noise(70 * 9, 2));
        let weights = ExpandWeights { expand: (&expand, None), depthwise: (&filters, None) };
        let kernel = ExpandDepthwise::new(&spec, weights, Isa::detect(), BAND);
        assert!(kernel.cut.parts > 1 && kernel.tiles() >= 6, "{} tiles", kernel.tiles());
    }
}
