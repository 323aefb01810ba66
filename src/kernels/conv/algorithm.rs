//! The ways to compute a convolution, and the choice between them.

use super::weights::{Form, held};
use super::winograd::{self, Kept, winograd};
use super::{ConvSpec, im2col, indirect, slide, strassen};
use crate::kernels::{Kernel, Weights};
use crate::simd::Isa;
use std::fmt;

/// How far from the sum by definition a convolution may go for speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 3×3 and 5×5 windows and stems may be computed by [`winograd()`] and 1×1 by [`strassen`](super::strassen()), whose rounding errors
    /// are about twice those of the plain sum; and products on a [matrix unit](crate::simd::tiles), which leaves out what is
    /// below an `f32`.
    #[default]
    Fast,
    /// Plain sums of `f32` only.
    Exact,
}

impl Precision {
    /// What of an instruction set may be used.
    pub fn limit(self, isa: Isa) -> Isa {
        match self {
            Precision::Fast => isa,
            Precision::Exact => isa.vectors(),
        }
    }
}

/// A way to compute a convolution whose weights are packed once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The sum by definition with vector instructions, in the loop that suits the window, the groups and the channels.
    Plain,
    /// The same on the [matrix unit](crate::simd::tiles), where its cost is thought to be less.
    MatrixUnit,
    /// [Strassen's product](super::strassen()).
    Strassen,
    /// [`winograd()`] in one of its forms.
    Winograd(winograd::Form),
}

impl Algorithm {
    fn all() -> impl Iterator<Item = Algorithm> {
        let forms = winograd::Form::ALL.into_iter().map(Algorithm::Winograd);
        [Algorithm::Plain, Algorithm::MatrixUnit, Algorithm::Strassen].into_iter().chain(forms)
    }

    /// The one that is thought fastest: by shape and precision, and, for 1×1, by what additions cost on this CPU.
    pub fn usual(spec: &ConvSpec, precision: Precision, isa: Isa) -> Self {
        if precision == Precision::Exact {
            return Algorithm::Plain;
        }
        if strassen::profitable(spec, strassen::Input::Ready) {
            return Algorithm::Strassen;
        }
        let plain = if isa == isa.vectors() { Algorithm::Plain } else { Algorithm::MatrixUnit };
        winograd::profitable(spec, Kept::Held).map_or(plain, Algorithm::Winograd)
    }

    /// Those that can compute this convolution within a precision.
    pub fn able(spec: &ConvSpec, precision: Precision, isa: Isa) -> Vec<Self> {
        let able = |way: &Algorithm| match way {
            Algorithm::Plain => true,
            _ if precision == Precision::Exact => false,
            Algorithm::MatrixUnit => isa != isa.vectors() && spec.groups == 1,
            Algorithm::Strassen => strassen::applicable(spec),
            Algorithm::Winograd(form) => form.applies(spec) && winograd::fills_registers(spec),
        };
        Algorithm::all().filter(able).collect()
    }

    /// The one that calls itself `name`.
    pub fn named(name: &str) -> Option<Self> {
        Algorithm::all().find(|way| way.to_string() == name)
    }

    /// The kernel. Panics unless [`able`](Self::able) names this way for `spec`.
    pub fn prepare(self, spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
        spec.check(weight, bias);
        match self {
            Algorithm::Plain => held(plain(spec, isa.vectors()), weight, bias),
            Algorithm::MatrixUnit => held(plain(spec, isa), weight, bias),
            Algorithm::Strassen => strassen::strassen(spec, None, weight, bias, isa),
            Algorithm::Winograd(form) => winograd(spec, form, weight, bias, isa),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Algorithm::Plain => f.write_str("plain"),
            Algorithm::MatrixUnit => f.write_str("matrix unit"),
            Algorithm::Strassen => f.write_str("Strassen"),
            Algorithm::Winograd(form) => write!(f, "Winograd {form:?}"),
        }
    }
}

/// The kernel that is thought fastest; see [`Algorithm::usual`].
pub fn choose(
    spec: ConvSpec,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    precision: Precision,
    isa: Isa,
) -> Box<dyn Kernel> {
    Algorithm::usual(&spec, precision, isa).prepare(spec, weight, bias, isa)
}

/// The form for weights that learn, and come with every run.
pub(super) fn form(spec: ConvSpec, precision: Precision, isa: Isa) -> Box<dyn Form> {
    match winograd::profitable(&spec, Kept::Learned).filter(|_| precision == Precision::Fast) {
        Some(form) => Box::new(winograd::Winograd::new(spec, form, isa)),
        None => plain(spec, isa),
    }
}

/// The sum by definition, in the loop that suits its shape.
fn plain(spec: ConvSpec, isa: Isa) -> Box<dyn Form> {
    if spec.groups == 1 && spec.window.is_pointwise() {
        return Box::new(indirect::Indirect::pointwise(spec, isa));
    }
    if spec.groups == spec.input.c && spec.groups == spec.output.c {
        return Box::new(slide::Slide::new("depthwise", spec, isa));
    }
    // Groups that are too narrow to be a matrix product each. Windows without a sliding loop of their own: sooner.
    let slides = spec.window.kernel[1] == 3 && spec.window.stride[1] <= 2 && spec.window.dilation[1] == 1;
    let narrow = if slides { 64 } else { 8 };
    if spec.groups > 1 && spec.group_inputs().max(spec.group_outputs()) <= narrow {
        return Box::new(slide::Slide::new("grouped", spec, isa));
    }
    // Short runs of channels keep the microkernel busy with pointers: gather them first.
    let short = spec.group_inputs() < 8 && spec.window.taps() > 1;
    if short { Box::new(im2col::Im2col::new(spec, isa)) } else { Box::new(indirect::Indirect::any(spec, isa)) }
}
