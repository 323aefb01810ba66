//! Pooling while training: maxima that remember where they were, and the way back.
//!
//! Windows overlap, so the way back asks every input pixel which windows hold it, and adds up what they bring in the order
//! of the windows, in registers: nothing is written twice.

#![allow(unsafe_code, reason = "vector loops over raw pointers")]

use super::{Span, Windows, regions, windows};
use crate::activation::Activation;
use crate::kernels::light::{Light, Tiled, Tiling};
use crate::kernels::norm::train::{SCALE, SHIFT};
use crate::kernels::{Io, Kernel, Map, Store, Stripes};
use crate::shape::{Placed, Window};
use crate::simd::{Isa, Simd, apply_activation};

/// Most taps of a window whose maxima can be remembered: their numbers are bytes.
pub const MOST_TAPS: usize = 256;

/// Lanes of the widest register.
const MOST_LANES: usize = 16;

/// A number below 256 that was added to it is the lowest byte of the sum.
const COUNTED: f32 = (1 << 23) as f32;

/// Floats that the numbers of a map's maxima take.
pub fn indices_len(output: Map) -> usize {
    (output.pixels() * output.c).div_ceil(4)
}

/// As [`max`](super::max), and remembers which tap it was, the first of equals as in PyTorch: `also[0]` holds one byte per
/// output element, [`indices_len`] floats. What lies `before` it is applied to what is read.
pub fn max([input, output]: [Map; 2], window: Window, placed: Placed, before: Before, isa: Isa) -> impl Kernel {
    assert!(window.taps() <= MOST_TAPS, "the taps of {window:?} are counted in bytes");
    let tiling = Tiling::new(output.pixels(), output.c * window.taps());
    let spans = windows(&window, &placed, false);
    Light { isa, kernel: Remembering { input, output, spans, dilation: window.dilation, before, tiling } }
}

/// What is applied to the input of [`max`] on the way: a batch norm by its [table](crate::kernels::norm::train::statistics),
/// which is `inputs[1]` then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// A norm.
    Norm,
    /// A norm, and a ReLU behind it.
    NormRelu,
}

impl Before {
    /// A norm and what is behind it, if [`max`] applies these faster than a pass of its own would: windows overlap little.
    pub fn norm(window: &Window, activation: Option<Activation>) -> Option<Self> {
        let able = window.taps() <= MOST_TAPS.min(4 * window.stride[0] * window.stride[1]);
        match activation {
            None if able => Some(Before::Norm),
            Some(Activation::Relu) if able => Some(Before::NormRelu),
            _ => None,
        }
    }
}

struct Remembering {
    input: Map,
    output: Map,
    spans: [Vec<Span>; 2],
    dilation: [usize; 2],
    before: Before,
    tiling: Tiling,
}

impl Remembering {
    /// `V` registers of channels of an output pixel, of the last of which `lanes` exist; `from` is its window's first tap, `table`
    /// the norm's from these channels on, if there is one; with a `NORM` of 2, a ReLU follows.
    ///
    /// # Safety
    /// The window lies in the input; the channels exist there, in the table, at `to` and at `index`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize, const NORM: u8>(
        &self,
        window: [Span; 2],
        (from, table): (*const f32, *const f32),
        (to, index): (*mut f32, *mut u8),
        lanes: usize,
    ) {
        let [down, across] = [self.dilation[0] * self.input.w, self.dilation[1]].map(|pixels| pixels * self.input.ld);
        // SAFETY: the taps are the window's; the mask keeps to the channels.
        unsafe {
            let mask = S::mask(lanes);
            let load = |at: *const f32, v: usize| {
                if V == 1 { S::load_masked(at, mask) } else { S::load(at.add(v * S::LANES)) }
            };
            let (mut scale, mut shift) = ([S::zero(); V], [S::zero(); V]);
            for v in 0..if NORM > 0 { V } else { 0 } {
                scale[v] = load(table.add(SCALE * self.input.c), v);
                shift[v] = load(table.add(SHIFT * self.input.c), v);
            }
            let (mut best, mut taps) = ([S::splat(f32::NEG_INFINITY); V], [S::splat(COUNTED); V]);
            for row in 0..window[0].count {
                for column in 0..window[1].count {
                    let tap = S::splat(COUNTED + (row * window[1].count + column) as f32);
                    let at = from.add(row * down + column * across);
                    for v in 0..V {
                        let mut value = load(at, v);
                        if NORM > 0 {
                            value = S::fma(value, scale[v], shift[v]);
                        }
                        if NORM > 1 {
                            value = apply_activation::<S>(Some(Activation::Relu), value);
                        }
                        taps[v] = S::where_greater(value, best[v], tap, taps[v]);
                        best[v] = S::where_greater(value, best[v], value, best[v]);
                    }
                }
            }
            for v in 0..V {
                S::store_masked(to.add(v * S::LANES), best[v], mask);
                let mut numbers = [0u32; MOST_LANES];
                S::store(numbers.as_mut_ptr().cast(), taps[v]);
                let bytes = numbers.map(|number| number as u8);
                let lanes = if V == 1 { lanes } else { S::LANES };
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), index.add(v * S::LANES), lanes);
            }
        }
    }
}

impl Tiled for Remembering {
    fn name(&self) -> String {
        if self.before == Before::Nothing { "max_pool_indices" } else { "norm_max_pool_indices" }.to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        let (input, output) = (self.input, self.output);
        let windows = Windows { input, spans: &self.spans, dilation: self.dilation };
        for pixel in self.tiling.range(tile) {
            let (image, y, x) = (pixel / (output.h * output.w), pixel / output.w % output.h, pixel % output.w);
            let window = [self.spans[0][y], self.spans[1][x]];
            let first = (image * input.h + window[0].first) * input.w + window[1].first;
            // SAFETY: the pixel lies in the output, its taps in the input; every element has a byte.
            unsafe {
                let from = io.inputs[0].wrapping_add(first * input.ld);
                let (to, index) = (io.output.add(pixel * output.ld), io.also[0].cast::<u8>().add(pixel * output.c));
                windows.fetch_below::<S>(io.inputs[0], image, [y, x], 0..input.c);
                let mut c = 0;
                while c < output.c {
                    let from = (from.wrapping_add(c), io.inputs[1].wrapping_add(c));
                    let (to, lanes) = ((to.add(c), index.add(c)), S::LANES.min(output.c - c));
                    let wide = c + 4 * S::LANES <= output.c;
                    match (wide, self.before) {
                        (true, Before::Nothing) => self.columns::<S, 4, 0>(window, from, to, S::LANES),
                        (false, Before::Nothing) => self.columns::<S, 1, 0>(window, from, to, lanes),
                        (true, Before::Norm) => self.columns::<S, 4, 1>(window, from, to, S::LANES),
                        (false, Before::Norm) => self.columns::<S, 1, 1>(window, from, to, lanes),
                        (true, Before::NormRelu) => self.columns::<S, 4, 2>(window, from, to, S::LANES),
                        (false, Before::NormRelu) => self.columns::<S, 1, 2>(window, from, to, lanes),
                    }
                    c += if wide { 4 * S::LANES } else { S::LANES };
                }
            }
        }
    }
}

/// Channels whose sums are held in registers together.
const SIDE: usize = 64;
/// Where fewer are left.
const LANES: usize = 8;

/// The gradient of [`max`]. Inputs: the gradient of the output, the bytes. Output: the gradient of the input.
pub fn max_gradient(input: Map, output: Map, window: Window, placed: Placed, store: Store, isa: Isa) -> impl Kernel {
    let kernel = Spread::new([input, output], windows(&window, &placed, false), window.dilation, store);
    Light { isa, kernel: Spread { share: Share::Index, ..kernel } }
}

/// The gradient of [`average`](super::average). Input: that of the output. Output: that of the input.
pub fn average_gradient(
    [input, output]: [Map; 2],
    window: Window,
    placed: Placed,
    count_include_pad: bool,
    store: Store,
    isa: Isa,
) -> impl Kernel {
    let spans = windows(&window, &placed, count_include_pad);
    Light { isa, kernel: Spread::new([input, output], spans, window.dilation, store) }
}

/// The gradient of [`adaptive_average`](super::adaptive_average). Input: that of the output. Output: that of the input.
pub fn adaptive_gradient(input: Map, output: Map, store: Store, isa: Isa) -> impl Kernel {
    Light { isa, kernel: Spread::new([input, output], regions(input, output), [1; 2], store) }
}

/// Who gets the gradient of a window.
#[derive(Clone, Copy, PartialEq)]
enum Share {
    /// The tap that is remembered.
    Index,
    /// All taps alike.
    Equal,
}

struct Spread {
    input: Map,
    output: Map,
    spans: [Vec<Span>; 2],
    /// The windows that hold a row or column of the input, in order, and as which of their taps.
    reach: [Vec<Vec<(usize, usize)>>; 2],
    share: Share,
    store: Store,
    /// Pixels of the input, as a pass over the gradient takes them.
    tiling: Tiling,
}

impl Spread {
    fn new([input, output]: [Map; 2], spans: [Vec<Span>; 2], dilation: [usize; 2], store: Store) -> Self {
        let reach = [0, 1].map(|axis| {
            let mut reach = vec![Vec::new(); [input.h, input.w][axis]];
            for (window, span) in spans[axis].iter().enumerate() {
                (0..span.count).for_each(|tap| reach[span.first + tap * dilation[axis]].push((window, tap)));
            }
            reach
        });
        let tiling = Tiling::new(input.pixels(), input.c);
        Spread { input, output, spans, reach, share: Share::Equal, store, tiling }
    }

    /// `N` channels, from `c` on, of the gradient of pixel `x` of row `row`.
    ///
    /// # Safety
    /// The pixel and the channels exist.
    #[inline(always)]
    unsafe fn channels<const N: usize>(&self, (row, x): (usize, usize), c: usize, io: &Io) {
        let (input, output) = (self.input, self.output);
        let (image, y) = (row / input.h, row % input.h);
        let mut sums = [0.0f32; N];
        for &(oy, ty) in &self.reach[0][y] {
            for &(ox, tx) in &self.reach[1][x] {
                let (rows, columns) = (self.spans[0][oy], self.spans[1][ox]);
                let pixel = (image * output.h + oy) * output.w + ox;
                // SAFETY: the window lies in the output, and every element of it has a byte.
                unsafe {
                    let dy = io.inputs[0].add(pixel * output.ld + c).cast::<[f32; N]>().read_unaligned();
                    match self.share {
                        Share::Equal => {
                            let weight = 1.0 / (rows.divisor * columns.divisor) as f32;
                            (0..N).for_each(|n| sums[n] += weight * dy[n]);
                        }
                        Share::Index => {
                            let from = io.inputs[1].cast::<u8>().add(pixel * output.c + c);
                            let taps = from.cast::<[u8; N]>().read_unaligned().map(i32::from);
                            let tap = (ty * columns.count + tx) as i32;
                            (0..N).for_each(|n| sums[n] += if taps[n] == tap { dy[n] } else { 0.0 });
                        }
                    }
                }
            }
        }
        // SAFETY: as demanded.
        unsafe {
            let to = io.output.add((row * input.w + x) * input.ld + c).cast::<[f32; N]>();
            if self.store == Store::Add {
                let old = to.read_unaligned();
                (0..N).for_each(|n| sums[n] += old[n]);
            }
            to.write_unaligned(sums);
        }
    }
}

impl Tiled for Spread {
    fn name(&self) -> String {
        if self.share == Share::Index { "max_pool_gradient" } else { "average_pool_gradient" }.to_owned()
    }

    fn tiles(&self) -> usize {
        self.tiling.tiles()
    }

    fn resident_bytes(&self) -> usize {
        let entries: usize = self.reach.iter().flatten().map(Vec::len).sum();
        entries * size_of::<(usize, usize)>()
    }

    fn stripes(&self) -> Option<Stripes> {
        Some(self.tiling.stripes())
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, _: &mut [f32]) {
        for pixel in self.tiling.range(tile) {
            let at = (pixel / self.input.w, pixel % self.input.w);
            let mut c = 0;
            // SAFETY: the pixel is one of the tile's alone, and these channels exist.
            unsafe {
                while c + SIDE <= self.input.c {
                    self.channels::<SIDE>(at, c, io);
                    c += SIDE;
                }
                while c + LANES <= self.input.c {
                    self.channels::<LANES>(at, c, io);
                    c += LANES;
                }
                while c < self.input.c {
                    self.channels::<1>(at, c, io);
                    c += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::light::testing::{assert_near, maps, nchw, run, run_tiles, spread, values};
    use super::super::super::naive;
    use super::*;
    use crate::kernels::norm::train::TABLE_ROWS;
    use crate::shape::Padding;

    #[test]
    fn a_max_pool_behind_a_norm_gives_the_bits_of_both_in_turn() {
        let window = Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ..Window::square(3) };
        for map in maps() {
            let Ok(placed) = window.place([map.h, map.w], "test") else { continue };
            let output = Map::new([map.n, placed.output[0], placed.output[1], map.c], map.c + 2);
            let (x, table) = (spread(&values(nchw(map).len(), 1), map), values(TABLE_ROWS * map.c, 2));
            for (&isa, activation) in
                Isa::available().iter().flat_map(|isa| [(isa, None), (isa, Some(Activation::Relu))])
            {
                let run = |x: &[f32], before: Before| {
                    let [mut y, mut indices] = [output.extent(), indices_len(output)].map(|len| vec![0.0f32; len]);
                    let mut io = Io::new(&[x.as_ptr(), table.as_ptr()], y.as_mut_ptr());
                    io.also[0] = indices.as_mut_ptr();
                    run_tiles(&max([map, output], window, placed, before, isa), &io);
                    [y, indices].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                };
                let mut normed = x.clone();
                let to = normed.as_mut_ptr();
                let norm = crate::kernels::norm::train::apply(map, map, None, activation, isa);
                run_tiles(&norm, &Io::new(&[x.as_ptr(), table.as_ptr()], to));
                let before = Before::norm(&window, activation).expect("windows overlap little");
                assert_eq!(run(&x, before), run(&normed, Before::Nothing), "{map:?} {before:?} {}", isa.name());
            }
        }
        let dense = Window { stride: [1; 2], ..window };
        assert_eq!([Before::norm(&dense, None), Before::norm(&window, Some(Activation::Silu))], [None; 2]);
    }

    #[test]
    fn gradients_of_pools_agree_with_the_oracle_and_add_to_what_is_there() {
        let windows = [
            Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ceil: true, ..Window::square(3) },
            Window { kernel: [2, 3], stride: [1, 2], padding: Padding::Symmetric([0, 1]), ..Window::square(2) },
            Window { dilation: [2, 1], padding: Padding::Symmetric([1, 1]), ..Window::square(2) },
        ];
        let mut checked = 0;
        for map in maps() {
            // Many ties: the first of equals gets the gradient.
            let x: Vec<f32> = values(nchw(map).len(), 1).iter().map(|v| v.round()).collect();
            let old = values(nchw(map).len(), 2);
            let sum = |dx: &[f32]| -> Vec<f32> { dx.iter().zip(&old).map(|(a, b)| a + b).collect() };
            for window in windows {
                let Ok(placed) = window.place([map.h, map.w], "test") else { continue };
                checked += 1;
                let output = Map::new([map.n, placed.output[0], placed.output[1], map.c], map.c + 2);
                let dy = values(nchw(output).len(), 3);
                for &isa in Isa::available() {
                    let what = format!("{window:?} {map:?} {}", isa.name());
                    let mut indices = vec![0.0f32; indices_len(output)];
                    let mut y = vec![f32::NAN; output.extent()];
                    let memory = spread(&x, map);
                    let mut io = Io::new(&[memory.as_ptr()], y.as_mut_ptr());
                    io.also[0] = indices.as_mut_ptr();
                    run_tiles(&max([map, output], window, placed, Before::Nothing, isa), &io);
                    let most = naive::max_pool(&x, nchw(map), &window, &placed);
                    let expected = spread(&most, output);
                    assert!(y.iter().zip(&expected).all(|(a, b)| a == b || b.is_nan()), "{what}");
                    let expected = naive::backward::max_pool(&x, nchw(map), &window, &placed, &dy);
                    let dy = spread(&dy, output);
                    let kernel = max_gradient(map, output, window, placed, Store::Set, isa);
                    assert_near(&run(&kernel, &[&dy, &indices], map), &expected, 1e-6, &what);
                    let mut dx = spread(&old, map);
                    let kernel = max_gradient(map, output, window, placed, Store::Add, isa);
                    run_tiles(&kernel, &Io::new(&[dy.as_ptr(), indices.as_ptr()], dx.as_mut_ptr()));
                    assert_near(&dx, &spread(&sum(&expected), map), 1e-5, &what);
                }
                for include in [false, true] {
                    let expected = naive::backward::avg_pool(nchw(map), &window, &placed, include, &dy);
                    for &isa in Isa::available() {
                        let kernel = average_gradient([map, output], window, placed, include, Store::Set, isa);
                        let found = run(&kernel, &[&spread(&dy, output)], map);
                        assert_near(&found, &expected, 1e-6, &format!("{window:?} {map:?} {}", isa.name()));
                    }
                }
            }
            for size in [[1, 1], [2, 3]] {
                let output = Map::new([map.n, size[0], size[1], map.c], map.c);
                let dy = values(nchw(output).len(), 4);
                let expected = naive::backward::adaptive_avg_pool(nchw(map), size, &dy);
                for &isa in Isa::available() {
                    let kernel = adaptive_gradient(map, output, Store::Set, isa);
                    assert_near(&run(&kernel, &[&spread(&dy, output)], map), &expected, 1e-6, &format!("{map:?}"));
                }
            }
        }
        assert!(checked > 40, "{checked} windows fit");
    }
}
