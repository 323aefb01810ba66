//! Convolutions: `y[n, oy, ox, o] = activation(b[o] + residual + Σ w[o, i, ky, kx] · x[n, oy·s − p + ky·d, …, i])`.
//!
//! Every constructor takes a [`ConvSpec`], the weights as PyTorch stores them (`[out, in / groups, kh, kw]`) and an
//! instruction set, packs what it needs and cuts the work into tiles. [`choose`] picks one by shape.

mod algorithm;
mod deform;
mod depthwise;
mod expand;
mod gated;
pub mod grad;
mod grid;
mod grouped;
mod im2col;
mod indirect;
mod linear;
mod slide;
mod stem;
mod strassen;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod trial;
mod weights;
pub mod winograd;

use crate::activation::Activation;
use crate::kernels::gemm::is_clamp;
use crate::kernels::{Epilogue, Map, Weights};
use crate::shape::{Placed, Window};
use crate::simd::Isa;
use weights::Form;
use winograd::Kept;

pub use algorithm::{Algorithm, Precision, choose};
pub use deform::{Sampling, deform};
pub use depthwise::{depthwise, depthwise_sums};
pub use expand::{ExpandSpec, ExpandWeights, expand_depthwise};
pub use gated::gated;
pub use grouped::grouped;
pub use im2col::im2col;
pub use indirect::{indirect, pointwise, rows};
pub use linear::{LinearSpec, linear};
pub use stem::{learned_stem, stem};
pub use strassen::{Input, Prologue, strassen};
pub use weights::{Direction, Learned};

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSpec {
    /// The map read, `inputs[0]`.
    pub input: Map,
    /// The map written. The residual, if any, is `inputs[1]`; it may be the output itself.
    pub output: Map,
    /// Kernel, stride and dilation.
    pub window: Window,
    /// Where the window lies; gives the padding before and the output size.
    pub placed: Placed,
    /// Groups: output channel `o` sees the input channels of group `o / (out / groups)` only.
    pub groups: usize,
    /// What happens to the sums.
    pub epilogue: Epilogue,
}

impl ConvSpec {
    /// Input channels each output channel sees.
    pub fn group_inputs(&self) -> usize {
        self.input.c / self.groups
    }

    /// Output channels of a group.
    pub fn group_outputs(&self) -> usize {
        self.output.c / self.groups
    }

    /// Products summed per output element.
    pub fn depth(&self) -> usize {
        self.window.taps() * self.group_inputs()
    }

    /// `k3s1`: kernel and stride, and dilation if there is any.
    pub fn label(&self) -> String {
        label(&self.window)
    }

    /// Panics unless all sizes agree with each other and with the weights: what every kernel relies on.
    pub fn check(&self, weight: &dyn Weights, bias: Option<&[f32]>) {
        self.check_sizes();
        assert_eq!(weight.count(), self.output.c * self.depth());
        assert!(bias.is_none_or(|b| b.len() == self.output.c));
    }

    /// Panics unless all sizes agree with each other.
    fn check_sizes(&self) {
        let ConvSpec { input, output, placed, groups, .. } = self;
        assert!(input.ld >= input.c && output.ld >= output.c && *groups > 0);
        assert!(input.c.is_multiple_of(*groups) && output.c.is_multiple_of(*groups) && output.c > 0 && input.c > 0);
        assert_eq!(([input.h, input.w], [output.h, output.w]), (placed.input, placed.output));
        assert_eq!(input.n, output.n);
        assert!(self.epilogue.residual.is_none_or(|ld| ld >= output.c));
    }
}

/// See [`ConvSpec::label`].
fn label(window: &Window) -> String {
    let pair = |[a, b]: [usize; 2]| if a == b { format!("{a}") } else { format!("{a}x{b}") };
    let mut label = format!("k{}s{}", pair(window.kernel), pair(window.stride));
    if window.dilation != [1, 1] {
        label += &format!("d{}", pair(window.dilation));
    }
    label
}

/// As [`choose`], with weights that come with every run. `bias` says whether there is one, and its length.
pub fn learned(spec: ConvSpec, direction: Direction, bias: Option<usize>, precision: Precision, isa: Isa) -> Learned {
    spec.check_sizes();
    weights::learned(learned_form(spec, direction, precision, isa), direction, spec.output.c * spec.depth(), bias)
}

/// Weights from which on a 1×1 convolution goes forward on the matrix unit in training. Smaller ones gain less, and with them units
/// cross their kinks: in GoogLeNet from 16 K on, in DenseNet-121 from 32 K on gradients are further off than is allowed.
const LEAST_WEIGHTS: usize = 64 << 10;

/// The form of [`learned`].
fn learned_form(spec: ConvSpec, direction: Direction, precision: Precision, isa: Isa) -> Box<dyn Form> {
    let pointwise = spec.groups == 1 && spec.window.is_pointwise();
    let isa = match direction {
        // What is computed forward decides which side of its kink a unit is on: it stays with the sums that training was verified
        // with, but for large products, which on the matrix unit are more exact.
        Direction::Forward if !pointwise || spec.input.c * spec.output.c < LEAST_WEIGHTS => isa.vectors(),
        _ => precision.limit(isa),
    };
    match pointwise {
        true => Box::new(indirect::Indirect::pointwise(spec, isa)),
        false => algorithm::form(spec, precision, isa),
    }
}

/// How a batch norm and a clamp are applied to what a convolution reads.
enum NormOnLoad {
    Winograd(winograd::Form),
    Strassen,
}

fn norm_on_load(spec: &ConvSpec, clamp: Option<Activation>, precision: Precision) -> Option<NormOnLoad> {
    if precision == Precision::Exact || !clamp.is_none_or(is_clamp) {
        return None;
    }
    let strassen = || strassen::trains(spec).then_some(NormOnLoad::Strassen);
    winograd::profitable(spec, Kept::Learned).map(NormOnLoad::Winograd).or_else(strassen)
}

/// Whether [`learned_norm`] can apply the norm and the clamp before this convolution, and is faster than a pass of its own.
pub fn takes_norm(spec: &ConvSpec, clamp: Option<Activation>, precision: Precision) -> bool {
    norm_on_load(spec, clamp, precision).is_some()
}

/// As [`learned`], forward and without a bias, behind a batch norm and a clamp that are applied on the way: the input is
/// that of the norm, whose table is `inputs[2]`. Panics unless it [takes](takes_norm) these.
pub fn learned_norm(spec: ConvSpec, clamp: Option<Activation>, precision: Precision, isa: Isa) -> Learned {
    spec.check_sizes();
    let form: Box<dyn Form> = match norm_on_load(&spec, clamp, precision).expect("the norm was left to it") {
        NormOnLoad::Winograd(form) => Box::new(winograd::Winograd::new(spec, form, isa).behind(clamp)),
        NormOnLoad::Strassen => Box::new(strassen::StrassenProduct::new(spec, strassen::Before::Table(clamp), isa)),
    };
    weights::learned(form, Direction::Forward, spec.output.c * spec.depth(), None)
}

/// As [`learned`], backward and without a bias: the map that would be the residual says where outputs are zero, namely where
/// it is not positive. None where no form does so while it computes.
pub fn learned_mask(spec: ConvSpec, precision: Precision, isa: Isa) -> Option<Learned> {
    spec.check_sizes();
    let form = winograd::profitable(&spec, Kept::Learned).filter(|_| precision == Precision::Fast)?;
    let form = Box::new(winograd::Winograd::new(spec, form, isa).masking());
    Some(weights::learned(form, Direction::Backward, spec.output.c * spec.depth(), None))
}

/// As [`deform()`], with weights that come with every run.
pub fn learned_deform(spec: ConvSpec, sampling: Sampling, bias: Option<usize>, isa: Isa) -> Learned {
    spec.check_sizes();
    let form = Box::new(deform::Deform::new(spec, sampling, isa));
    weights::learned(form, Direction::Forward, spec.output.c * spec.depth(), bias)
}

/// Whether [`strassen`] should apply the norm before this convolution while it reads its input; by shape and precision
/// alone.
pub fn takes_prologue(spec: &ConvSpec, precision: Precision) -> bool {
    precision == Precision::Fast && strassen::profitable(spec, Input::Raw)
}
