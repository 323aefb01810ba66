//! 3×3, 4×4 and 5×5 convolution with a fraction of the multiplications (Lavin and Gray, *Fast Algorithms for Convolutional
//! Neural Networks*, 2016).
//!
//! The output is cut into squares of `m × m` pixels, each computed from `(m + 2) × (m + 2)` inputs:
//!
//! ```text
//! Y = Aᵀ [ Σ over channels of (G·g·Gᵀ) ⊙ (Bᵀ·d·B) ] A
//! ```
//!
//! so that 9·m² multiplications per square, input and output channel become (m + 2)². With stride 2 the even and the odd
//! rows and columns are convolutions of their own with two taps and with one, and meet in the sum; on the way back they are
//! that for the even and the odd rows and columns of the gradient. The sum over channels is a matrix product for each of the
//! (m + 2)² positions. Transforming a whole map, then multiplying, then transforming back would move five times the map
//! through memory; instead a block of squares goes through all three stages in the cache:
//!
//! ```text
//! for block of squares:  V = before(input)
//!     for panel of output channels:  M[p] = V[p] · U[p] for every position p;  output = after(M)
//! ```
//!
//! Where four does not divide the map, some squares have three outputs down or across, and a position less (`squares.rs`).
//!
//! Where channels are few, as those of an image, half of the last stage comes before M leaves the registers (`columns.rs`).
//!
//! # Accuracy
//!
//! Transforms add, subtract and scale, and errors grow with the entries of the matrices. `m` = 2 errs less than the
//! direct sum does (its sums are shorter), `m` = 3 with the points 0, 1, −½, −2, ∞ a little more, `m` = 4 with the points
//! 0, ±√½, ±√2, ∞ about twice as much: 10⁻⁶ of the root mean square of the output at 512 channels. 5×5 windows have two
//! outputs at the same points, 4×4 have three, and lie between. Most of the error is that of the sums over channels: in training
//! these are cut into shorter ones ([`Gemm::exactly`]). Weights are transformed in f64 and rounded once. Sums run over the
//! channels in one order wherever a square lies, so results do not depend on the number of threads, nor on the batch.

#![allow(unsafe_code, reason = "runs transforms and microkernels on raw maps")]

/// `$body` with `$P` standing for the transforms of a form.
macro_rules! with_points {
    ($form:expr, $P:ident => $body:expr) => {
        with_points!(@ $form, $P => $body; F2 F3 F4 F2Five F3Four F2Strided Unstrided)
    };
    (@ $form:expr, $P:ident => $body:expr; $($name:ident)*) => {
        match $form {
            $(Form::$name => {
                type $P = $name;
                $body
            })*
        }
    };
}

/// Calls a function with the transforms down and across squares of a form, which may be short, for its last two types.
macro_rules! with_sides {
    ($short:expr, $P:ident, $self:ident.$f:ident $args:tt) => {
        match $short {
            [true, true] if $P::SHORTENS => $self.$f::<$P::Short, $P::Short> $args,
            [true, false] if $P::SHORTENS => $self.$f::<$P::Short, $P> $args,
            [false, true] if $P::SHORTENS => $self.$f::<$P, $P::Short> $args,
            _ => $self.$f::<$P, $P> $args,
        }
    };
}

mod columns;
mod cost;
mod filters;
pub mod grad;
mod points;
mod squares;
#[cfg(test)]
mod tests;
mod transform;

use self::columns::{Columns, FEW};
pub use self::cost::{Kept, profitable};
use self::filters::WinogradPacking;
use self::points::{F2, F2Five, F2Strided, F3, F3Four, F4, Points, Unstrided};
use self::squares::{Cut, Runs, Squares};
use self::transform::{After, Before, OnLoad};
use super::grid::{Grid, LEAST_STRIPES};
use super::weights::{self, Direction, Folded, Learned, Packed, Packing, held};
use super::{ConvSpec, label};
use crate::activation::Activation;
use crate::kernels::gemm::{Each, Extent, Gemm, Rows};
use crate::kernels::{Epilogue, Io, Kernel, Store, Stripes, Weights};
use crate::shape::Placed;
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::marker::PhantomData;
use std::ops::Range;

/// How many outputs are computed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// F(2×2, 3×3): 2×2 outputs by 16 multiplications instead of 36; weights grow by 16/9.
    F2,
    /// F(3×3, 3×3): 3×3 outputs by 25 multiplications instead of 81; weights grow by 25/9.
    F3,
    /// F(4×4, 3×3): 4×4 outputs by 36 multiplications instead of 144; weights grow fourfold.
    F4,
    /// F(2×2, 5×5): 2×2 outputs by 36 multiplications instead of 100; weights grow by 36/25.
    F2Five,
    /// F(3×3, 4×4): 3×3 outputs by 36 multiplications instead of 144; weights grow by 36/16. For [stems](super::stem).
    F3Four,
    /// F(2×2, 3×3) at stride 2: 2×2 outputs by 25 multiplications instead of 36; weights grow by 25/9.
    F2Strided,
    /// The way back through that: 4×4 gradients of inputs by as many multiplications. No convolution of its own.
    Unstrided,
}

impl Form {
    /// Those of convolutions.
    pub(super) const ALL: [Form; 6] = [Form::F2, Form::F3, Form::F4, Form::F2Five, Form::F3Four, Form::F2Strided];

    /// Sides of a square of inputs and of outputs, taps and stride.
    const fn geometry(self) -> [usize; 4] {
        const fn of<P: Points>() -> [usize; 4] {
            [P::IN, P::OUT, P::TAPS, P::STRIDE]
        }
        with_points!(self, P => of::<P>())
    }

    /// Outputs along a side of a square.
    pub const fn outputs(self) -> usize {
        self.geometry()[1]
    }

    /// Matrix products: the positions of a square of inputs.
    pub const fn products(self) -> usize {
        self.geometry()[0] * self.geometry()[0]
    }

    /// Whether [`winograd`] can compute this convolution in this form: its window, one group, no dilation.
    pub fn applies(self, spec: &ConvSpec) -> bool {
        let (window, [_, _, taps, stride]) = (spec.window, self.geometry());
        let convolves = Form::ALL.contains(&self) && spec.groups == 1;
        convolves && (window.kernel, window.stride, window.dilation) == ([taps; 2], [stride; 2], [1; 2])
    }

    /// Whether squares may be short by an output.
    const fn shortens(self) -> bool {
        const fn of<P: Points>() -> bool {
            P::SHORTENS
        }
        with_points!(self, P => of::<P>())
    }

    /// Whether the squares of `cut` have less than eleven twelfths of the products of a convolution's
    /// gradient: what is left pays for the transforms.
    fn pays(cut: Cut, spec: &ConvSpec) -> bool {
        12 * spec.output.n * cut.products() < 11 * spec.window.taps() * spec.output.pixels()
    }
}

/// Fewer channels than this leave registers empty, and the transforms cost more than they save.
const LEAST_CHANNELS: usize = 16;

/// Whether there are enough channels for the transforms to save anything, and something to compute. That those of images, the
/// fewest, leave registers empty costs little: what comes out has more.
pub(super) fn fills_registers(spec: &ConvSpec) -> bool {
    spec.output.c >= LEAST_CHANNELS && spec.output.pixels() > 0
}

/// A convolution of one group without dilation whose window the form is for; see [`Form::applies`].
pub fn winograd(spec: ConvSpec, form: Form, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Winograd::new(spec, form, isa)), weight, bias)
}

/// The gradient of the input of a convolution with stride 2, as [`input_gradient`](super::grad::input_gradient), where this
/// form can compute it and is faster than the plain sums; by shape alone.
pub(super) fn unstrided(spec: ConvSpec, store: Store, isa: Isa) -> Option<Learned> {
    let form = Form::Unstrided;
    let residual = (store == Store::Add).then_some(spec.input.ld);
    let turned = ConvSpec {
        input: spec.output,
        output: spec.input,
        placed: Placed { input: spec.placed.output, output: spec.placed.input, before: [0; 2] },
        epilogue: Epilogue { activation: None, residual },
        ..spec
    };
    let cut = Cut::fitting(form, &turned);
    let applies =
        Form::F2Strided.applies(&spec) && spec.placed.before == [1, 1] && [spec, turned].iter().all(fills_registers);
    let weights = spec.output.c * spec.depth();
    let learned = || weights::learned(Box::new(Winograd::new(turned, form, isa)), Direction::Backward, weights, None);
    (applies && Form::pays(cut, &spec)).then(learned)
}

/// A prepared convolution.
pub(super) struct Winograd {
    spec: ConvSpec,
    form: Form,
    /// What the convolution was, if its image is folded.
    folded: Option<Folded>,
    /// Whether the products are those of few channels: [`Columns`] instead of M.
    few: bool,
    /// The clamp behind a norm that is applied to the input, by the table at `inputs[2]`.
    norm: Option<Option<Activation>>,
    /// Whether the map at `inputs[1]` is no summand but says which outputs are zero; see [`masking`](Self::masking).
    masks: bool,
    /// One tap per position of a square.
    gemm: Gemm,
    weights: Packed,
    /// What outputs are clamped to.
    range: [f32; 2],
    /// What lies in the padding: zeros as far as the channels of a pixel reach.
    zero: AlignedBuf,
    cut: Cut,
    /// Tiles of squares and panels.
    grid: Grid,
    /// The pixels of a unit of squares, if tiles consist of such and of all panels.
    unit: Option<usize>,
    /// Floats of V from square to square and from position to position.
    ld_v: usize,
    stride_v: usize,
    /// The same of M.
    ld_m: usize,
    stride_m: usize,
}

/// Floats behind the last square of a folded image: two cache lines, so that an odd number of them stays odd.
const ROOM: usize = 32;

/// Bytes of V that stay in the second cache beside M and the weights in use.
const V_BYTES: usize = 512 << 10;
/// Beyond the cache, more squares than this do not save more of the weights' traffic than they cost.
const SQUARES: [usize; 2] = [32, 64];
/// Fewer squares than this are not worth the weights they pull in.
const LEAST_SQUARES: usize = 8;
/// Some 5 µs of products on one core: small networks have no more to share out.
const MACS_PER_TILE: usize = 300_000;

impl Winograd {
    /// See [`winograd`].
    pub(super) fn new(spec: ConvSpec, form: Form, isa: Isa) -> Self {
        assert!(form == Form::Unstrided || form.applies(&spec));
        let (inputs, outputs, lanes) = (spec.input.c, spec.output.c, isa.lanes());
        let gemm = Gemm::new(Extent { taps: form.products(), k: inputs, n: outputs }, None, isa);
        let range = match spec.epilogue.activation {
            Some(Activation::Relu) => [0.0, f32::INFINITY],
            Some(Activation::Relu6) => [0.0, 6.0],
            _ => [f32::NEG_INFINITY, f32::INFINITY],
        };
        let few = inputs <= FEW && !gemm.is_narrow() && spec.epilogue.residual.is_none();
        let cut = if few { Cut::even(form, &spec) } else { Cut::fitting(form, &spec) };
        let ld_v = inputs.next_multiple_of(lanes);
        let grid = blocks(spec.output.n * cut.squares(), &gemm, ld_v);
        let ld_v = if few { FEW } else { ld_v };
        let ld_m = gemm.columns(0).len().next_multiple_of(lanes);
        let zero = AlignedBuf::zeros(inputs);
        let weights = Packed::Given;
        let mut winograd = Winograd {
            spec,
            form,
            folded: None,
            few,
            norm: None,
            masks: false,
            gemm,
            weights,
            range,
            zero,
            cut,
            grid,
            unit: None,
            ld_v,
            stride_v: 0,
            ld_m,
            stride_m: 0,
        };
        winograd.cut_by(grid);
        winograd
    }

    /// Cuts it into these tiles.
    fn cut_by(&mut self, grid: Grid) {
        let squares = grid.tile_rows().next_multiple_of(if self.few { columns::SIDE } else { 1 });
        // An odd number of cache lines: positions must not fall into the same set of the first cache.
        let spread = |floats: usize| (floats.div_ceil(16) | 1) * 16;
        (self.stride_v, self.stride_m) = (spread(squares * self.ld_v), spread(squares * self.ld_m));
        self.grid = grid;
    }

    /// Blocks of whole units of squares, and the pixels of a unit; none where blocks are smaller than a unit, or panels are
    /// shared out, too.
    fn stripe_grid(&self) -> Option<(Grid, usize)> {
        let ([unit, pixels], squares) = (self.cut.unit(self.spec.output), self.spec.output.n * self.cut.squares());
        let most = self.grid.tile_rows() / unit;
        if self.folded.is_some() || self.few || most == 0 || self.grid.parts()[1] > 1 {
            return None;
        }
        let units = squares / unit;
        let blocks = units.div_ceil(most);
        let blocks = if blocks < 16 && blocks < units { blocks.next_multiple_of(2) } else { blocks };
        let grid = Grid::of([squares, self.gemm.panels()], [blocks, 1]).in_units(unit);
        (blocks >= LEAST_STRIPES).then_some((grid, pixels))
    }

    /// Behind a norm, which is applied while the input is read.
    pub(super) fn behind(self, clamp: Option<Activation>) -> Self {
        Winograd { norm: Some(clamp), ..self }
    }

    /// Of a folded image, as the convolution that this was reads it, with that one's weights.
    pub(super) fn folded(self, folded: Folded) -> Self {
        let zero = AlignedBuf::zeros(Runs::of(self.spec.input, Some(folded)).reach());
        Winograd { folded: Some(folded), stride_v: self.stride_v + ROOM, zero, ..self }
    }

    /// The way back through a ReLU on the way: the map that would be the residual is the ReLU's output, and outputs are zero
    /// where it is not positive. It may be the output itself.
    pub(super) fn masking(self) -> Self {
        assert!(self.spec.epilogue.residual.is_some());
        Winograd { masks: true, ..self }
    }

    /// Floats of the table of pointers, of V, of M, of what is thrown away, and of the order of squares.
    fn parts(&self) -> [usize; 5] {
        let (products, squares) = (self.form.products(), self.grid.tile_rows());
        let [order, table] = [squares, 2 * products * squares].map(|floats| floats.next_multiple_of(16));
        [table, products * self.stride_v, products * self.stride_m, self.ld_m, order]
    }

    unsafe fn tile<P: Points>(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        let (squares, panels) = self.grid.tile(tile);
        let [table, v, m, waste, _] = self.parts();
        let (table, rest) = scratch.split_at_mut(table);
        let (v, rest) = rest.split_at_mut(v);
        let (m, rest) = rest.split_at_mut(m);
        let (waste, order) = rest.split_at_mut(waste);
        let (table, v) = (table.as_mut_ptr().cast::<*const f32>(), v.as_mut_ptr());
        let (m, waste) = (m.as_mut_ptr(), waste.as_mut_ptr());
        let (isa, count, packed) = (self.gemm.isa(), squares.len(), self.weights.of(io));
        // SAFETY: the parts of the scratch hold what `parts` says for at most `tile_rows` squares; `io` fits.
        unsafe {
            let order = std::slice::from_raw_parts_mut(order.as_mut_ptr().cast::<u32>(), count);
            let kinds = self.cut.arrange(squares, order);
            for position in 0..self.form.products() {
                for square in 0..count {
                    *table.add(position * count + square) = v.add(position * self.stride_v + square * self.ld_v);
                }
            }
            for (part, short) in kinds.parts().into_iter().filter(|(part, _)| !part.is_empty()) {
                let v = v.add(part.start * self.ld_v);
                with_sides!(short, P, self.before(&order[part], io, v));
            }
            for panel in panels {
                let columns = self.gemm.columns(panel);
                let rows = Rows { table, stride: count, skip: 0 };
                let each = Each { apart: Some(self.ld_v), c: m, ld: self.ld_m, stride: self.stride_m };
                if self.few {
                    let registers = self.gemm.width(panel) / isa.lanes();
                    let u = packed.add(self.gemm.weights_of(panel).start);
                    isa.run(Columns::<P> { of: self, count, registers, u, v, half: m, points: PhantomData });
                } else {
                    self.gemm.run_each(packed, |position| kinds.having::<P>(position), rows, panel, each);
                }
                for (part, short) in kinds.parts().into_iter().filter(|(part, _)| !part.is_empty()) {
                    let m = m.add(part.start * self.ld_m).cast_const();
                    with_sides!(short, P, self.after(&order[part], columns.clone(), io, m, waste));
                }
            }
        }
    }

    /// Makes V of squares of one kind.
    ///
    /// # Safety
    /// As [`Kernel::run`], with room for them.
    unsafe fn before<Y: Points, X: Points>(&self, tiles: &[u32], io: &Io, v: *mut f32) {
        let squares = Squares { spec: &self.spec, cut: self.cut, zero: self.zero.as_ptr(), folded: self.folded };
        let norm = self.norm.map(|clamp| OnLoad::new(io.inputs[2], self.spec.input.c, clamp));
        let (input, ld, stride) = (io.inputs[0], self.ld_v, self.stride_v);
        let before = Before::<Y, X> { squares, tiles, input, norm, v, ld, stride, points: PhantomData };
        // SAFETY: passed on.
        unsafe { self.gemm.isa().run(before) };
    }

    /// Makes the outputs of squares of one kind of what M holds.
    ///
    /// # Safety
    /// As [`Kernel::run`]; M holds them, and `waste` is as wide as a panel.
    unsafe fn after<Y: Points, X: Points>(
        &self,
        tiles: &[u32],
        columns: Range<usize>,
        io: &Io,
        m: *const f32,
        waste: *mut f32,
    ) {
        // SAFETY: passed on.
        unsafe {
            let bias = self.weights.of(io).add(self.gemm.bias_at());
            let after = After::<Y, X> { of: self, tiles, columns, io, bias, m, waste, points: PhantomData };
            self.gemm.isa().run(after);
        }
    }
}

/// Cuts squares and panels into tiles: blocks of squares that fit the cache, and no fewer tiles than a few threads need.
/// Of the ways to do so, the one that moves the least: every block reads all weights, every group of panels transforms
/// all inputs.
fn blocks(squares: usize, gemm: &Gemm, ld_v: usize) -> Grid {
    let Extent { taps, k, n } = gemm.extent();
    let fitting = (V_BYTES / (4 * taps * ld_v)).clamp(SQUARES[0], SQUARES[1]);
    let least = squares.div_ceil(fitting).max(1);
    let most = (squares / LEAST_SQUARES).max(least);
    let wanted = (squares * taps * k * n / MACS_PER_TILE).clamp(1, 4);
    let cost = |[blocks, groups]: &[usize; 2]| {
        let tiles = blocks * groups;
        let uneven = if tiles < 16 { tiles % 2 } else { 0 };
        // In cycles: weights at 16 bytes each, a transform at 3 a position.
        let moved = blocks * taps * k * n / 4 + groups * squares * ld_v / 16 * taps * 3;
        (wanted.saturating_sub(tiles), if tiles > 1 { uneven } else { 0 }, moved)
    };
    let cuts = (1..=gemm.panels().min(8)).flat_map(|groups| (least..=most.min(least + 8)).map(move |b| [b, groups]));
    Grid::of([squares, gemm.panels()], cuts.min_by_key(cost).expect("at least one block"))
}

impl super::weights::Form for Winograd {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        let (form, gemm) = (self.form, self.gemm.clone());
        let order = direction.order(&self.spec);
        let order = self.folded.map_or(order, |folded| order.folded(folded));
        Box::new(WinogradPacking { form, gemm, order })
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }

    fn exactly(&mut self, _: Direction) {
        self.gemm = self.gemm.clone().exactly();
    }

    fn striped(&mut self) {
        if let Some((grid, pixels)) = self.stripe_grid() {
            self.cut_by(grid);
            self.unit = Some(pixels);
        }
    }
}

impl Kernel for Winograd {
    fn name(&self) -> String {
        let m = self.form.outputs();
        let norm = if self.norm.is_some() { "norm_" } else { "" };
        let masks = if self.masks { "masking_" } else { "" };
        let back = if self.form == Form::Unstrided { "unstrided_" } else { "" };
        let label = self.folded.map_or(self.spec.label(), |folded| format!("folded_{}", label(&folded.window)));
        format!("{norm}{masks}{back}winograd_{m}x{m}_{label}_{} {}", self.gemm.tile_name(), self.gemm.isa().name())
    }

    fn tiles(&self) -> usize {
        if self.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.parts().iter().sum()
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes() + 4 * self.zero.len()
    }

    fn stripes(&self) -> Option<Stripes> {
        let pixels = self.unit?;
        let ([count, parts], units) = (self.grid.parts(), self.spec.output.pixels() / pixels);
        Some(Stripes { units, pixels, count, parts })
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        // SAFETY: passed on.
        unsafe { with_points!(self.form, P => self.tile::<P>(tile, io, scratch)) }
    }
}
