//! Depthwise convolution: every channel is filtered by itself.

use super::ConvSpec;
use super::slide::Slide;
use super::weights::held;
use crate::kernels::{Kernel, Weights};
use crate::simd::Isa;

/// Prepares `y[p, c] = activation(b[c] + Σ_t w[c, t] · x[p·s + t·d, c] + residual[p, c])`, the convolution whose groups
/// are single channels.
///
/// `weight` is `[c, 1, kh, kw]`, `bias` is `[c]`. Kernels 3 and 5 wide with a horizontal stride of 1 or 2 and no
/// horizontal dilation have loops of their own (any height, vertical stride and vertical dilation); all others, and maps
/// of fewer channels than a register has lanes, take a general loop.
///
/// Panics if the groups are not single channels or the slices do not fit.
pub fn depthwise(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(slide(spec, isa)), weight, bias)
}

/// The same, and the sum of every row of the output at `also[0]`: channel `c` of row `y` of image `n` at
/// `(n · h + y) · ld + c`.
pub fn depthwise_sums(
    spec: ConvSpec,
    ld: usize,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    isa: Isa,
) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(slide(spec, isa).with_sums(ld)), weight, bias)
}

/// The loops of a depthwise convolution.
pub(super) fn slide(spec: ConvSpec, isa: Isa) -> Slide {
    assert!(spec.groups == spec.input.c && spec.groups == spec.output.c, "a depthwise convolution has single channels");
    Slide::new("depthwise", spec, isa)
}
