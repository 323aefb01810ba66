//! Which form of Winograd's method is fastest for a convolution, if any is.

use super::squares::Cut;
use super::{Form, fills_registers};
use crate::kernels::conv::ConvSpec;
use crate::simd::adds_apart;

impl Form {
    /// Cycles to transform one register of channels of one square, before and after.
    const fn transforms(self) -> [usize; 2] {
        match self {
            Form::F2 => [35, 30],
            Form::F3 => [70, 55],
            Form::F4 => [110, 90],
            Form::F2Five => [110, 50],
            Form::F3Four => [110, 70],
            Form::F2Strided | Form::Unstrided => [50, 40],
        }
    }
}

/// Weights larger than this come from memory in every run,
const LARGE_WEIGHTS: usize = 8 << 20;
/// and must promise more than others, because they also displace those of other layers.
const LEAST_GAIN: [f64; 2] = [1.2, 1.3];

/// What decides between forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Core {
    /// Multiply-adds a cycle.
    products: usize,
    /// Bytes of weights a cycle that memory brings.
    fetches: f64,
    /// What transforms take of what [`Form::transforms`] says.
    transforms: f64,
    /// By how much F(4×4) must be faster than F(2×2) and F(3×3) if its weights are [large](LARGE_WEIGHTS).
    gain: f64,
}

/// A core with two multipliers for 16 lanes.
pub(super) const TWO: Core = Core { products: 28, fetches: 5.5, transforms: 1.0, gain: 1.2 };
/// The same where weights are packed at every step: what that costs is in none of these numbers, and what is fetched decides less.
pub(super) const PACKING: Core = Core { fetches: 7.0, ..TWO };
/// A core with one, beside which it [adds](adds_apart).
pub(super) const ONE: Core = Core { products: 14, fetches: 5.0, transforms: 1.5, gain: 1.1 };

/// With this many squares of F(4×4) its weights no longer decide.
const MANY_SQUARES: usize = 128;

/// Where the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Packed once.
    Held,
    /// Packed anew for every run, since they learn.
    Learned,
}

/// The form that computes this convolution fastest, unless the direct sum does; by shape alone. [`Form::F3`] is for small
/// batches, and left to weights that do not learn.
///
/// For small maps at batch 1 weights decide, and the form that has fewer of them, or none, is best.
pub fn profitable(spec: &ConvSpec, weights: Kept) -> Option<Form> {
    let core = match weights {
        Kept::Learned => PACKING,
        Kept::Held if adds_apart() => ONE,
        Kept::Held => TWO,
    };
    profitable_on(core, spec, weights)
}

pub(super) fn profitable_on(core: Core, spec: &ConvSpec, weights: Kept) -> Option<Form> {
    if !fills_registers(spec) {
        return None;
    }
    let (inputs, outputs) = (spec.input.c, spec.output.c);
    let product = |rows: usize| (rows * inputs * outputs.next_multiple_of(16) / core.products) as f64;
    let bytes = |positions: usize| 4 * positions * inputs * outputs;
    // What is computed hides most of what is fetched, or the other way round.
    let together = |compute: f64, bytes: usize| {
        let fetch = bytes as f64 / core.fetches;
        compute.max(fetch) + 0.3 * compute.min(fetch)
    };
    let taps = spec.window.taps();
    let direct = together(product(taps * spec.output.pixels()), bytes(taps));
    let squares = |form: Form| spec.output.n * Cut::fitting(form, spec).squares();
    let cost = |form: Form| {
        let [before, after] = form.transforms();
        let transforms = squares(form) * (inputs.div_ceil(16) * before + outputs.div_ceil(16) * after);
        let products = spec.output.n * Cut::fitting(form, spec).products();
        together(product(products) + core.transforms * transforms as f64, bytes(form.products()))
    };
    let large = |form: Form| bytes(form.products()) > LARGE_WEIGHTS;
    let more = |form: Form| if form == Form::F4 && large(form) { core.gain * cost(form) } else { cost(form) };
    let few = weights == Kept::Held && squares(Form::F4) < MANY_SQUARES;
    let able = Form::ALL.into_iter().filter(|&form| form.applies(spec) && (few || form != Form::F3));
    let form = able.min_by(|&a, &b| more(a).total_cmp(&more(b)))?;
    (LEAST_GAIN[usize::from(large(form))] * cost(form) < direct).then_some(form)
}
