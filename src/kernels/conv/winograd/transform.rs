//! The transforms of squares by the [`points`](super::points) of a form, and the passes over memory that apply them.

use crate::simd::{self, Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;

use super::Winograd;
use super::points::{MOST_IN, MOST_OUT, Points, Turned};
use super::squares::{Origin, Runs, Squares};
use crate::activation::Activation;
use crate::kernels::gemm::clamp_of;
use crate::kernels::norm::train::{SCALE, SHIFT};
use crate::kernels::{Io, Map};

/// A batch norm and a clamp that are applied to what is read: `clamp(x · scale + shift)`. The padding stays zero.
#[derive(Clone, Copy)]
pub(super) struct OnLoad {
    scale: *const f32,
    shift: *const f32,
    range: [f32; 2],
}

impl OnLoad {
    /// By the table of a norm of so many channels, which may be anywhere until it is read.
    pub(super) fn new(table: *const f32, channels: usize, clamp: Option<Activation>) -> Self {
        let [scale, shift] = [SCALE, SHIFT].map(|row| table.wrapping_add(row * channels));
        OnLoad { scale, shift, range: clamp_of(clamp) }
    }

    /// From this channel on.
    pub(super) fn from(self, channel: usize) -> Self {
        OnLoad { scale: self.scale.wrapping_add(channel), shift: self.shift.wrapping_add(channel), ..self }
    }
}

/// `V = Bᵀ·d·B` for the tiles of a block: `v[(i·IN + j)·stride + tile·ld + channel]`. Of a folded image, up to a register's floats
/// behind the last tile's are written too.
pub(super) struct Before<'a, Y, X> {
    pub(super) squares: Squares<'a>,
    pub(super) tiles: &'a [u32],
    pub(super) input: *const f32,
    /// What is done to every input, if anything.
    pub(super) norm: Option<OnLoad>,
    pub(super) v: *mut f32,
    /// Floats from tile to tile and from position to position.
    pub(super) ld: usize,
    pub(super) stride: usize,
    pub(super) points: PhantomData<(Y, X)>,
}

impl<Y: Points, X: Points> Task for Before<'_, Y, X> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Squares { spec, cut, zero, folded } = self.squares;
        let Map { h, w, .. } = spec.input;
        let Runs { count, len, ld, line } = Runs::of(spec.input, folded);
        let ahead = X::STEP * ld;
        for (i, &tile) in self.tiles.iter().enumerate() {
            let Origin { image, at: [oy, ox], .. } = cut.origin(tile as usize);
            let to = self.v.wrapping_add(i * self.ld);
            // Outputs begin where inputs do, or at a whole number of squares.
            let first = |o: usize| if X::STEP == X::OUT { o } else { o / X::OUT * X::STEP };
            let start = |o: usize, axis: usize| first(o).wrapping_sub(spec.placed.before[axis]);
            let (y0, x0) = (start(oy, 0), start(ox, 1));
            let within = |from: usize, seen: usize, len: usize| from < len && from + seen <= len;
            let inside = within(y0, Y::SEEN, h) && within(x0, X::SEEN, w);
            let mut at = [std::ptr::null(); MOST_IN * MOST_IN];
            for i in 0..Y::IN {
                // Wrapping: a coordinate before the image becomes a huge one.
                let y = y0.wrapping_add(i);
                let row = self.input.wrapping_add((image * h).wrapping_add(y).wrapping_mul(count * line));
                for j in 0..X::IN {
                    let x = x0.wrapping_add(j);
                    at[i * X::IN + j] = if y < h && x < w { row.wrapping_add(x * ld) } else { zero };
                }
            }
            for run in 0..count {
                let channels = Channels { at: &at, skip: run * line, len, ahead, inside };
                // SAFETY: every pointer has the channels of every run behind it, and V has room for whole registers of them.
                unsafe {
                    let to = to.add(run * len);
                    self.run_of_channels::<S>(channels, to);
                }
            }
        }
    }
}

/// A run of channels of a square.
struct Channels<'a> {
    at: &'a [*const f32; MOST_IN * MOST_IN],
    /// Floats from a pixel to the first of them.
    skip: usize,
    len: usize,
    /// Floats from here to the next square.
    ahead: usize,
    /// Whether no pixel lies in the padding.
    inside: bool,
}

impl<Y: Points, X: Points> Before<'_, Y, X> {
    /// # Safety
    /// The channels lie behind every pixel, and there is room for whole registers of them at every position from `to` on.
    #[inline(always)]
    unsafe fn run_of_channels<S: Simd>(&self, channels: Channels<'_>, to: *mut f32) {
        let (Channels { at, skip, len, ahead, inside }, zero) = (channels, self.squares.zero);
        // What is new in the next square.
        let new = X::SEEN.saturating_sub(X::STEP)..X::SEEN;
        let whole = len / S::LANES * S::LANES;
        let mut channel = 0;
        // SAFETY: passed on.
        unsafe {
            while channel < whole {
                let skip = skip + channel;
                for i in 0..X::IN * Y::SEEN {
                    if new.contains(&(i % X::IN)) {
                        S::prefetch_far(at[i].wrapping_add(ahead + skip));
                    }
                }
                let (to, plain) = (to.add(channel), |from: *const f32| S::load(from.add(skip)));
                match self.norm.map(|norm| Normed::<S>::new(norm, channel, None)) {
                    None => square_before::<S, Y, X>(at, plain, to, self.stride),
                    Some(norm) if inside => square_before::<S, Y, X>(at, |from| norm.of(plain(from)), to, self.stride),
                    Some(norm) => {
                        square_before::<S, Y, X>(at, |from| norm.unless(from == zero, plain(from)), to, self.stride);
                    }
                }
                channel += S::LANES;
            }
            if channel < len {
                let (mask, skip) = (S::mask(len - channel), skip + channel);
                let (to, some) = (to.add(channel), |from: *const f32| S::load_masked(from.add(skip), mask));
                match self.norm.map(|norm| Normed::<S>::new(norm, channel, Some(mask))) {
                    None => square_before::<S, Y, X>(at, some, to, self.stride),
                    Some(norm) => {
                        square_before::<S, Y, X>(at, |from| norm.unless(from == zero, some(from)), to, self.stride);
                    }
                }
            }
        }
    }
}

/// A norm of one register of channels.
#[derive(Clone, Copy)]
struct Normed<S: Simd> {
    scale: S::V,
    shift: S::V,
    range: [S::V; 2],
}

impl<S: Simd> Normed<S> {
    /// # Safety
    /// The channels from this one on, or those of the mask, are readable in the rows of the table.
    #[inline(always)]
    unsafe fn new(norm: OnLoad, channel: usize, mask: Option<S::M>) -> Self {
        // SAFETY: as demanded.
        unsafe {
            let load = |row: *const f32| match mask {
                None => S::load(row.add(channel)),
                Some(mask) => S::load_masked(row.add(channel), mask),
            };
            Normed { scale: load(norm.scale), shift: load(norm.shift), range: norm.range.map(|end| S::splat(end)) }
        }
    }

    #[inline(always)]
    fn of(self, x: S::V) -> S::V {
        // SAFETY: arithmetic in registers.
        unsafe { S::min(self.range[1], S::max(self.range[0], S::fma(x, self.scale, self.shift))) }
    }

    /// Nothing but zero where there is padding.
    #[inline(always)]
    fn unless(self, padding: bool, x: S::V) -> S::V {
        if padding { x } else { self.of(x) }
    }
}

/// One register of channels of one tile, `load` from behind the pointers; `Y` down and `X` across.
#[inline(always)]
unsafe fn square_before<S: Simd, Y: Points, X: Points>(
    at: &[*const f32; MOST_IN * MOST_IN],
    load: impl Fn(*const f32) -> S::V,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut half = [[S::zero(); MOST_IN]; MOST_IN];
        for j in 0..X::IN {
            let mut d = [S::zero(); MOST_IN];
            for i in 0..Y::IN {
                d[i] = load(at[i * X::IN + j]);
            }
            let d = Y::before::<S>(d);
            for i in 0..Y::IN {
                half[i][j] = d[i];
            }
        }
        for i in Y::FIRST..Y::IN {
            let v = X::before::<S>(half[i]);
            for j in X::FIRST..X::IN {
                S::store(to.add((i * X::IN + j) * stride), v[j]);
            }
        }
    }
}

/// `Z = A·dY·Aᵀ` for the tiles of a block and some output channels: `z[(i·IN + j)·stride + tile·ld + channel]`.
pub(super) struct Turn<'a, Y, X> {
    pub(super) squares: Squares<'a>,
    pub(super) tiles: &'a [u32],
    /// Output channels.
    pub(super) columns: Range<usize>,
    /// The gradient of the output.
    pub(super) gradient: *const f32,
    pub(super) z: *mut f32,
    /// Floats from tile to tile and from position to position.
    pub(super) ld: usize,
    pub(super) stride: usize,
    pub(super) points: PhantomData<(Y, X)>,
}

impl<Y: Turned, X: Turned> Task for Turn<'_, Y, X> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Squares { spec, cut, zero, .. } = self.squares;
        let Map { h, w, ld, .. } = spec.output;
        for (i, &tile) in self.tiles.iter().enumerate() {
            let Origin { image, at: [oy, ox], .. } = cut.origin(tile as usize);
            let to = self.z.wrapping_add(i * self.ld);
            let mut at = [zero; MOST_OUT * MOST_OUT];
            for i in 0..Y::OUT.min(h - oy) {
                for j in 0..X::OUT.min(w - ox) {
                    let pixel = (image * h + oy + i) * w + ox + j;
                    at[i * X::OUT + j] = self.gradient.wrapping_add(pixel * ld + self.columns.start);
                }
            }
            for channel in (0..self.columns.len()).step_by(S::LANES) {
                // SAFETY: every pointer has the channels behind it, and Z has room for whole registers of them.
                unsafe {
                    let mask = S::mask(S::LANES.min(self.columns.len() - channel));
                    let to = to.add(channel);
                    for pixel in &at[..Y::OUT * X::OUT] {
                        S::prefetch_far(pixel.wrapping_add(X::OUT * ld + channel));
                    }
                    square_turn::<S, Y, X>(&at, channel, mask, to, self.stride);
                }
            }
        }
    }
}

/// One register of output channels of one tile, `Y` down and `X` across.
#[inline(always)]
unsafe fn square_turn<S: Simd, Y: Turned, X: Turned>(
    at: &[*const f32; MOST_OUT * MOST_OUT],
    channel: usize,
    mask: S::M,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: passed on.
    unsafe {
        let mut half = [[S::zero(); MOST_OUT]; MOST_IN];
        for j in 0..X::OUT {
            let mut y = [S::zero(); MOST_OUT];
            for i in 0..Y::OUT {
                y[i] = S::load_masked(at[i * X::OUT + j].add(channel), mask);
            }
            let z = Y::turn::<S>(y);
            for i in 0..Y::IN {
                half[i][j] = z[i];
            }
        }
        for i in Y::FIRST..Y::IN {
            let z = X::turn::<S>(half[i]);
            for j in X::FIRST..X::IN {
                S::store(to.add((i * X::IN + j) * stride), z[j]);
            }
        }
    }
}

/// `Y = activation(Aᵀ·M·A + bias + residual)` for the tiles of a block and the channels of a panel, from
/// `m[(i·IN + j)·stride + tile·width + channel]` to the output map.
pub(super) struct After<'a, Y, X> {
    pub(super) of: &'a Winograd,
    pub(super) tiles: &'a [u32],
    /// The panel's output channels.
    pub(super) columns: Range<usize>,
    pub(super) io: &'a Io,
    /// One value per lane of every panel.
    pub(super) bias: *const f32,
    pub(super) m: *const f32,
    /// What lies outside the image is written here: the width of a panel.
    pub(super) waste: *mut f32,
    pub(super) points: PhantomData<(Y, X)>,
}

impl<Y: Points, X: Points> Task for After<'_, Y, X> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // The pixels of a tile, of the one after it and of the next but one, which is fetched meanwhile: the outputs are new
        // to the cache, and a store that waits for its line holds up everything behind it.
        let last = self.tiles.len() - 1;
        let mut ring = [0, last.min(1), last].map(|tile| self.pixels(tile));
        for tile in 0..self.tiles.len() {
            ring[(tile + 2) % 3] = self.pixels(last.min(tile + 2));
            let [pixels, later] = [0, 2].map(|i| &ring[(tile + i) % 3]);
            let from = self.m.wrapping_add(tile * self.of.ld_m);
            // SAFETY: M holds the tile; passed on.
            unsafe { self.square::<S>(pixels, later, from) };
        }
    }
}

impl<Y: Points, X: Points> After<'_, Y, X> {
    /// All registers of a tile.
    ///
    /// # Safety
    /// The pixels have the panel's channels, and `from` every position of them.
    #[inline(always)]
    unsafe fn square<S: Simd>(&self, pixels: &Pixels, later: &Pixels, from: *const f32) {
        let (of, columns) = (self.of, &self.columns);
        let epilogue = of.spec.epilogue;
        let smooth = epilogue.activation.filter(|a| !matches!(a, Activation::Relu | Activation::Relu6));
        let mut channel = 0;
        while channel < columns.len() {
            for i in 0..Y::OUT * X::OUT {
                // SAFETY: a hint.
                unsafe { S::prefetch_far(later.output[i].wrapping_add(channel)) };
            }
            // SAFETY: every pixel has the panel's channels, and the mask keeps to them.
            unsafe {
                let mask = S::mask((columns.len() - channel).min(S::LANES));
                let bias = S::load(self.bias.add(columns.start + channel));
                let square = Square { pixels, channel, from: from.add(channel), stride: of.stride_m, range: of.range };
                match epilogue.residual {
                    None if of.few => square.after::<S, Y, X, { Beside::Nothing as u8 }, true>(bias, mask),
                    None => square.after::<S, Y, X, { Beside::Nothing as u8 }, false>(bias, mask),
                    Some(_) if of.masks => square.after::<S, Y, X, { Beside::Mask as u8 }, false>(bias, mask),
                    Some(_) => square.after::<S, Y, X, { Beside::Residual as u8 }, false>(bias, mask),
                }
                if smooth.is_some() {
                    // Not above, where it would be unrolled for every pixel.
                    for to in &pixels.output[..Y::OUT * X::OUT] {
                        let v = S::load_masked(to.add(channel), mask);
                        S::store_masked(to.add(channel), simd::apply_activation::<S>(smooth, v), mask);
                    }
                }
            }
            channel += S::LANES;
        }
    }
}

/// Where the outputs of a tile and what is added to them lie.
struct Pixels {
    output: [*mut f32; MOST_OUT * MOST_OUT],
    residual: [*const f32; MOST_OUT * MOST_OUT],
}

impl<Y: Points, X: Points> After<'_, Y, X> {
    #[inline(always)]
    fn pixels(&self, tile: usize) -> Pixels {
        let (spec, waste) = (&self.of.spec, self.waste);
        let Map { h, w, ld, .. } = spec.output;
        let Origin { image, at: [oy, ox], .. } = self.of.cut.origin(self.tiles[tile] as usize);
        let ld_residual = spec.epilogue.residual.unwrap_or(0);
        let (output, residual) = ([waste; MOST_OUT * MOST_OUT], [waste.cast_const(); MOST_OUT * MOST_OUT]);
        let mut pixels = Pixels { output, residual };
        for i in 0..Y::OUT.min(h - oy) {
            for j in 0..X::OUT.min(w - ox) {
                let pixel = (image * h + oy + i) * w + ox + j;
                let at = i * X::OUT + j;
                pixels.output[at] = self.io.output.wrapping_add(pixel * ld + self.columns.start);
                pixels.residual[at] = self.io.inputs[1].wrapping_add(pixel * ld_residual + self.columns.start);
            }
        }
        pixels
    }
}

/// What the second map means.
enum Beside {
    /// There is none.
    Nothing,
    /// It is added.
    Residual,
    /// Outputs are zero where it is not positive.
    Mask,
}

/// One register of output channels of one tile.
struct Square<'a> {
    pixels: &'a Pixels,
    channel: usize,
    from: *const f32,
    stride: usize,
    range: [f32; 2],
}

impl Square<'_> {
    #[inline(always)]
    unsafe fn after<S: Simd, Y: Points, X: Points, const BESIDE: u8, const HALF: bool>(&self, bias: S::V, mask: S::M) {
        // SAFETY: passed on.
        unsafe {
            let mut half = [[S::zero(); MOST_IN]; MOST_OUT];
            for j in X::FIRST..X::IN {
                if HALF {
                    for i in 0..Y::OUT {
                        half[i][j] = S::load(self.from.add((i * X::IN + j) * self.stride));
                    }
                    continue;
                }
                let mut m = [S::zero(); MOST_IN];
                for i in Y::FIRST..Y::IN {
                    m[i] = S::load(self.from.add((i * X::IN + j) * self.stride));
                }
                let m = Y::after::<S>(m);
                for i in 0..Y::OUT {
                    half[i][j] = m[i];
                }
            }
            for i in 0..Y::OUT {
                let sums = X::after::<S>(half[i]);
                for j in 0..X::OUT {
                    let at = i * X::OUT + j;
                    let mut y = S::add(sums[j], bias);
                    let beside = || S::load_masked(self.pixels.residual[at].add(self.channel), mask);
                    if BESIDE == Beside::Residual as u8 {
                        y = S::add(y, beside());
                    } else if BESIDE == Beside::Mask as u8 {
                        y = S::where_positive(beside(), y);
                    }
                    // The lesser bound is zero or none; a NaN survives both.
                    y = S::max(S::splat(self.range[0]), y);
                    y = S::min(S::splat(self.range[1]), y);
                    S::store_masked(self.pixels.output[at].add(self.channel), y, mask);
                }
            }
        }
    }
}
