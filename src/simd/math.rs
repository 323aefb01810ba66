//! Exponentials and activations on registers, built from the operations of [`Simd`].

use super::Simd;
use crate::activation::Activation;

/// e^x to about 1 ulp, for every lane. Below −104 it is 0, above 88.8 infinite; NaN stays NaN.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: passed on. Beyond ±110 nothing changes any more.
    unsafe { exp_within::<S>(S::max(S::splat(-110.0), S::min(S::splat(110.0), x))) }
}

/// 355 / 512 and the rest of ln 2: products of the first with |n| ≤ 160 are exact.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// e^x for |x| ≤ 110.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor series to r⁷, whose remainder is below 6·10⁻⁹; times 2ⁿ.
#[inline(always)]
unsafe fn exp_within<S: Simd>(x: S::V) -> S::V {
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: passed on.
    unsafe {
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-LN_2.0), x);
        let r = S::fma(n, S::splat(-LN_2.1), r);
        let mut sum = S::splat(1.0 / 5040.0);
        for c in TAYLOR {
            sum = S::fma(sum, r, S::splat(c));
        }
        S::scale_by_power(sum, n)
    }
}

/// σ(x) = 1 / (1 + e⁻ˣ) to about 3 ulp. NaN stays NaN.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: passed on.
    unsafe { S::div(S::splat(1.0), S::one_and_power(S::max(S::splat(-LEAST), S::min(S::splat(TAIL), x)))) }
}

/// x / (1 + e⁻ˣ). NaN stays NaN, and −∞ makes one, as with PyTorch.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: passed on.
    unsafe { S::div(x, S::one_and_power(S::min(S::splat(TAIL), x))) }
}

/// σ(−87) is less than 2·10⁻³⁸, and its reciprocal is finite.
const LEAST: f32 = 87.0;
/// From there on e⁻ˣ is less than what 1 is rounded by.
const TAIL: f32 = 80.0;

/// 1 + e⁻ˣ for x ≤ [`TAIL`], with what every instruction set has.
///
/// −x = n·ln 2 − q with |q| ≤ ln 2 / 2; e⁻ᵠ by the polynomial of degree 5 whose greatest relative error is least, 9·10⁻⁸.
/// The sign is in the coefficients, so nothing is negated.
#[inline(always)]
pub(super) unsafe fn one_and_power<S: Simd>(x: S::V) -> S::V {
    const MINIMAX: [f32; 5] = [0.041_899_312, -0.166_676_48, 0.499_991_4, -0.999_999_7, 1.0];
    // SAFETY: passed on.
    unsafe {
        // Below, it is infinite.
        let x = S::max(S::splat(-110.0), x);
        let n = S::round(S::mul(x, S::splat(-std::f32::consts::LOG2_E)));
        let q = S::fma(n, S::splat(LN_2.0), x);
        let q = S::fma(n, S::splat(LN_2.1), q);
        let mut sum = S::splat(-0.008_290_059);
        for c in MINIMAX {
            sum = S::fma(sum, q, S::splat(c));
        }
        S::add(S::splat(1.0), S::scale_by_power(sum, n))
    }
}

/// `activation` of every lane, or the register itself.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn apply_activation<S: Simd>(activation: Option<Activation>, x: S::V) -> S::V {
    const SIXTH: f32 = 1.0 / 6.0;
    // SAFETY: passed on.
    unsafe {
        let relu6 = |v: S::V| S::min(S::splat(6.0), S::max(S::zero(), v));
        match activation {
            None => x,
            Some(Activation::Relu) => S::max(S::zero(), x),
            Some(Activation::Relu6) => relu6(x),
            Some(Activation::Silu) => silu::<S>(x),
            Some(Activation::Sigmoid) => sigmoid::<S>(x),
            Some(Activation::HardSwish) => S::mul(x, S::mul(relu6(S::add(x, S::splat(3.0))), S::splat(SIXTH))),
            Some(Activation::HardSigmoid) => S::mul(relu6(S::add(x, S::splat(3.0))), S::splat(SIXTH)),
        }
    }
}

/// `d · f'(x)` for the activation `f`, as PyTorch defines the derivative at the kinks.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn activation_gradient<S: Simd>(activation: Activation, x: S::V, d: S::V) -> S::V {
    // SAFETY: passed on.
    unsafe {
        let one = S::splat(1.0);
        match activation {
            Activation::Relu => S::where_positive(x, d),
            Activation::Relu6 => S::where_positive(x, S::where_positive(S::sub(S::splat(6.0), x), d)),
            Activation::Silu => {
                let s = sigmoid::<S>(x);
                S::mul(d, S::mul(s, S::fma(x, S::sub(one, s), one)))
            }
            Activation::Sigmoid => {
                let s = sigmoid::<S>(x);
                S::mul(d, S::mul(s, S::sub(one, s)))
            }
            Activation::HardSwish => {
                let (three, third) = (S::splat(3.0), S::splat(1.0 / 3.0));
                // 1 above 3, x/3 + ½ between, 0 below −3.
                let inner = S::where_positive(S::sub(three, x), S::sub(S::fma(x, third, S::splat(0.5)), one));
                S::where_positive(S::add(x, three), S::mul(d, S::add(one, inner)))
            }
            Activation::HardSigmoid => {
                let three = S::splat(3.0);
                let inner = S::where_positive(S::sub(three, x), S::mul(d, S::splat(1.0 / 6.0)));
                S::where_positive(S::add(x, three), inner)
            }
        }
    }
}

/// `d · f'(x)` for an activation known by its output `y = f(x)` alone; see [`has_output_gradient`].
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
pub unsafe fn output_gradient<S: Simd>(activation: Activation, y: S::V, d: S::V) -> S::V {
    // SAFETY: passed on.
    unsafe {
        let one = S::splat(1.0);
        match activation {
            Activation::Sigmoid => S::mul(d, S::mul(y, S::sub(one, y))),
            Activation::HardSigmoid => {
                S::where_positive(y, S::where_positive(S::sub(one, y), S::mul(d, S::splat(1.0 / 6.0))))
            }
            // Relu and Relu6 are the identity where they are not constant.
            other => activation_gradient::<S>(other, y, d),
        }
    }
}

/// Whether the derivative of an activation follows from its output.
pub const fn has_output_gradient(activation: Activation) -> bool {
    !matches!(activation, Activation::Silu | Activation::HardSwish)
}
