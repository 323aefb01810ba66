//! Grouped convolution with few channels per group.

use super::ConvSpec;
use super::slide::Slide;
use super::weights::held;
use crate::kernels::{Kernel, Weights};
use crate::simd::Isa;

/// Prepares `y[p, o] = activation(b[o] + Σ_{i,t} w[o, i, t] · x[p·s + t·d, g(o)·I + i] + residual[p, o])` for any number
/// of groups.
///
/// `weight` is `[out, in / groups, kh, kw]`, `bias` is `[out]`. It is made for groups of up to about 64 channels, where
/// a matrix product per group would be too narrow to be fast: several groups share a register if they fit, and kernels
/// 3 wide with a horizontal stride of 1 or 2 reuse each operand for every tap it meets. Any other shape is right, but
/// not fast.
///
/// Panics if the groups do not divide the channels or the slices do not fit.
pub fn grouped(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Slide::new("grouped", spec, isa)), weight, bias)
}
