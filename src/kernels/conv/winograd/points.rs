//! The one-dimensional transforms of every form, written once for any register.
//!
//! In one dimension `y = Aᵀ[(G·g) ⊙ (Bᵀ·d)]` turns `m + r − 1` inputs `d` and `r` taps `g` into `m` outputs. The rows of
//! `Aᵀ` are the powers of the points of interpolation, those of `Bᵀ` the Lagrange polynomials that vanish at the other
//! points, and `G` holds powers over the polynomials' values. A row of `Bᵀ` may be scaled if that of `G` is scaled by
//! the reciprocal, here always by a power of two or a sign, which costs no accuracy.

#![allow(unsafe_code, reason = "arithmetic on registers")]

use crate::simd::Simd;

/// A side of the largest square of inputs.
pub(super) const MOST_IN: usize = 6;
/// A side of the largest square of outputs.
pub(super) const MOST_OUT: usize = 4;
/// A side of the largest window.
pub(super) const MOST_TAPS: usize = 5;

/// One-dimensional transforms. Arrays are as long as the largest form needs; only the leading part counts.
pub(super) trait Points: Copy + Send + Sync + 'static {
    /// Inputs.
    const IN: usize;
    /// Outputs.
    const OUT: usize;
    /// Taps.
    const TAPS: usize = 3;
    /// Inputs from output to output.
    const STRIDE: usize = 1;
    /// Inputs from square to square.
    const STEP: usize = Self::OUT * Self::STRIDE;
    /// The first of the inputs that count.
    const SEEN: usize = Self::IN;
    /// `G`, the transform of the taps.
    const G: [[f64; MOST_TAPS]; MOST_IN];
    /// The first position that is used.
    const FIRST: usize = 0;
    /// Pairs of rows of `G`, from the second on, that differ in the sign of the odd taps: points ±x.
    const PAIRS: usize;
    /// Whether squares may end an output sooner; see [`Short`](Self::Short).
    const SHORTENS: bool = false;
    /// The same with one output less, for squares that would reach over the edge of the image: without the first point, at
    /// the others with the same `G`, so that weights and sums are shared. What stands for the first is not used. If
    /// none is, any will do.
    type Short: Turned;

    /// `Bᵀ·d`.
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN];
    /// `Aᵀ·m`.
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT];
}

/// Forms with a way back to the weights.
pub(super) trait Turned: Points {
    /// `A·y`, the way back through [`Points::after`].
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN];
}

/// Points 0, 1, −1, ∞.
#[derive(Clone, Copy)]
pub(super) struct F2;

/// Points 0, 1, −½, −2, ∞: two thirds of the error of 0, ±1, ½, ∞.
#[derive(Clone, Copy)]
pub(super) struct F3;

/// Points 0, ±√½, ±√2, ∞: half the error of the usual 0, ±1, ±2, ∞.
#[derive(Clone, Copy)]
pub(super) struct F4;

/// Three outputs at the points of [`F4`] but 0: two thirds of its error.
#[derive(Clone, Copy)]
pub(super) struct F4Short;

/// Five taps at the points of [`F4`]: the same inputs, fewer outputs.
#[derive(Clone, Copy)]
pub(super) struct F2Five;

/// Four taps at the points of [`F4`].
#[derive(Clone, Copy)]
pub(super) struct F3Four;

/// Stride 2: the even inputs meet two of the taps at the points 0, 1, ∞, the odd ones the third as they are.
#[derive(Clone, Copy)]
pub(super) struct F2Strided;

/// The way back through stride 2 with one row of padding: of two outputs' worth of inputs, every other one is what a gradient
/// and the middle tap make, those in between are convolutions with the outer two taps, reversed, at the points 0, 1, ∞.
#[derive(Clone, Copy)]
pub(super) struct Unstrided;

const ROOT_HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;
const ROOT_TWO: f64 = std::f64::consts::SQRT_2;

/// Rows for three taps.
const fn rows(three: [[f64; 3]; MOST_IN]) -> [[f64; MOST_TAPS]; MOST_IN] {
    let mut all = [[0.0; MOST_TAPS]; MOST_IN];
    let mut i = 0;
    while i < MOST_IN {
        (all[i][0], all[i][1], all[i][2]) = (three[i][0], three[i][1], three[i][2]);
        i += 1;
    }
    all
}

/// `G` for so many taps at the points 0, ±√½, ±√2, ∞.
const fn at_roots(taps: usize) -> [[f64; MOST_TAPS]; MOST_IN] {
    // Powers of √½ and √2 over the values of their polynomials.
    const NEAR: [f64; MOST_TAPS] = [4.0 / 3.0, ROOT_TWO * 2.0 / 3.0, 2.0 / 3.0, ROOT_TWO / 3.0, 1.0 / 3.0];
    const FAR: [f64; MOST_TAPS] = [1.0 / 6.0, ROOT_TWO / 6.0, 1.0 / 3.0, ROOT_TWO / 3.0, 2.0 / 3.0];
    let mut all = [[0.0; MOST_TAPS]; MOST_IN];
    (all[0][0], all[5][taps - 1]) = (1.0, 1.0);
    let mut tap = 0;
    while tap < taps {
        let sign = if tap % 2 == 0 { 1.0 } else { -1.0 };
        (all[1][tap], all[2][tap]) = (NEAR[tap], sign * NEAR[tap]);
        (all[3][tap], all[4][tap]) = (FAR[tap], sign * FAR[tap]);
        tap += 1;
    }
    all
}

impl Points for F2 {
    type Short = F4Short;
    const IN: usize = 4;
    const OUT: usize = 2;
    const PAIRS: usize = 1;
    const G: [[f64; MOST_TAPS]; MOST_IN] =
        rows([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0], [0.0; 3], [0.0; 3]]);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let none = S::zero();
            [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[3], d[1]), none, none]
        }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let none = S::zero();
            [S::add(m[0], S::add(m[1], m[2])), S::add(S::sub(m[1], m[2]), m[3]), none, none]
        }
    }
}

impl Points for F3 {
    type Short = F4Short;
    const IN: usize = 5;
    const OUT: usize = 3;
    const PAIRS: usize = 0;
    const G: [[f64; MOST_TAPS]; MOST_IN] = rows([
        [1.0, 0.0, 0.0],
        [2.0 / 9.0, 2.0 / 9.0, 2.0 / 9.0],
        [8.0 / 9.0, -4.0 / 9.0, 2.0 / 9.0],
        [1.0 / 9.0, -2.0 / 9.0, 4.0 / 9.0],
        [0.0, 0.0, 1.0],
        [0.0; 3],
    ]);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let three_halves = S::splat(1.5);
            let ends = S::sub(d[1], d[2]);
            let sum = S::add(d[1], d[2]);
            [
                S::fma(three_halves, ends, S::sub(d[0], d[3])),
                S::fma(S::splat(2.5), d[2], S::add(d[1], d[3])),
                S::fma(S::splat(-2.0), d[1], S::add(d[2], d[3])),
                S::fma(S::splat(0.5), sum, S::sub(S::zero(), d[3])),
                S::fma(three_halves, S::sub(d[3], d[2]), S::sub(d[4], d[1])),
                S::zero(),
            ]
        }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            [
                S::add(S::add(m[0], m[1]), S::add(m[2], m[3])),
                S::fma(S::splat(-0.5), m[2], S::fma(S::splat(-2.0), m[3], m[1])),
                S::fma(S::splat(0.25), m[2], S::fma(S::splat(4.0), m[3], S::add(m[1], m[4]))),
                S::zero(),
            ]
        }
    }
}

impl Points for F4 {
    type Short = F4Short;
    const IN: usize = 6;
    const OUT: usize = 4;
    const PAIRS: usize = 2;
    const SHORTENS: bool = true;
    const G: [[f64; MOST_TAPS]; MOST_IN] = at_roots(Self::TAPS);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let (s, minus_s) = (S::splat(ROOT_HALF as f32), S::splat(-ROOT_HALF as f32));
            let (minus_half, minus_two, minus_ratio) = (S::splat(-0.5), S::splat(-2.0), S::splat(-2.5));
            let even = S::fma(minus_half, d[4], d[2]);
            let odd = S::fma(minus_half, d[3], d[1]);
            let even_far = S::fma(minus_half, d[2], d[4]);
            let odd_far = S::fma(minus_two, d[3], d[1]);
            [
                S::fma(minus_ratio, d[2], S::add(d[0], d[4])),
                S::fma(s, odd, even),
                S::fma(minus_s, odd, even),
                S::fma(minus_s, odd_far, even_far),
                S::fma(s, odd_far, even_far),
                S::fma(minus_ratio, d[3], S::add(d[1], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let (even, odd) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (even_far, odd_far) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            let (s_cubed, t_cubed) = (S::splat((0.5 * ROOT_HALF) as f32), S::splat((2.0 * ROOT_TWO) as f32));
            [
                S::add(m[0], S::add(even, even_far)),
                S::fma(t, odd_far, S::mul(s, odd)),
                S::fma(S::splat(2.0), even_far, S::mul(S::splat(0.5), even)),
                S::fma(t_cubed, odd_far, S::fma(s_cubed, odd, m[5])),
            ]
        }
    }
}

impl Points for F4Short {
    type Short = F4Short;
    const IN: usize = 6;
    const OUT: usize = 3;
    const SEEN: usize = 5;
    const FIRST: usize = 1;
    const PAIRS: usize = 2;
    const G: [[f64; MOST_TAPS]; MOST_IN] = F4::G;

    // At a point x the polynomial of F4 without its factor z, times x instead.
    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let (s, minus_s) = (S::splat(ROOT_HALF as f32), S::splat(-ROOT_HALF as f32));
            let (t, minus_t) = (S::splat(ROOT_TWO as f32), S::splat(-ROOT_TWO as f32));
            let (half, minus_half) = (S::splat(0.5), S::splat(-0.5));
            let even = S::mul(half, S::fma(minus_half, d[2], d[0]));
            let odd = S::fma(minus_half, d[3], d[1]);
            let even_far = S::sub(S::add(d[2], d[2]), d[0]);
            let odd_far = S::fma(minus_half, d[1], d[3]);
            [
                S::zero(),
                S::fma(s, odd, even),
                S::fma(minus_s, odd, even),
                S::fma(t, odd_far, even_far),
                S::fma(minus_t, odd_far, even_far),
                S::fma(S::splat(-2.5), d[2], S::add(d[0], d[4])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let (even, odd) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (even_far, odd_far) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            [
                S::add(even, even_far),
                S::fma(t, odd_far, S::mul(s, odd)),
                S::fma(S::splat(2.0), even_far, S::fma(S::splat(0.5), even, m[5])),
                S::zero(),
            ]
        }
    }
}

impl Points for F2Five {
    type Short = F4Short;
    const IN: usize = 6;
    const OUT: usize = 2;
    const TAPS: usize = 5;
    const PAIRS: usize = 2;
    const G: [[f64; MOST_TAPS]; MOST_IN] = at_roots(Self::TAPS);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { F4::before::<S>(d) }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let even = S::add(S::add(m[1], m[2]), S::add(m[3], m[4]));
            let (odd, odd_far) = (S::sub(m[1], m[2]), S::sub(m[3], m[4]));
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            let none = S::zero();
            [S::add(m[0], even), S::fma(t, odd_far, S::fma(s, odd, m[5])), none, none]
        }
    }
}

impl Points for F3Four {
    type Short = F4Short;
    const IN: usize = 6;
    const OUT: usize = 3;
    const TAPS: usize = 4;
    const PAIRS: usize = 2;
    const G: [[f64; MOST_TAPS]; MOST_IN] = at_roots(Self::TAPS);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { F4::before::<S>(d) }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let y = F4Short::after::<S>(m);
            [S::add(m[0], y[0]), y[1], y[2], y[3]]
        }
    }
}

impl Points for F2Strided {
    type Short = F4Short;
    const IN: usize = 5;
    const OUT: usize = 2;
    const STRIDE: usize = 2;
    const PAIRS: usize = 0;
    const G: [[f64; MOST_TAPS]; MOST_IN] =
        rows([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0; 3]]);

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { [S::sub(d[0], d[2]), d[2], S::sub(d[4], d[2]), d[1], d[3], S::zero()] }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe {
            let none = S::zero();
            [S::add(m[0], S::add(m[1], m[3])), S::add(m[1], S::add(m[2], m[4])), none, none]
        }
    }
}

impl Points for Unstrided {
    type Short = F4Short;
    const IN: usize = 5;
    const OUT: usize = 4;
    const STEP: usize = 2;
    const SEEN: usize = 3;
    const PAIRS: usize = 0;
    const G: [[f64; MOST_TAPS]; MOST_IN] = F2Strided::G;

    #[inline(always)]
    unsafe fn before<S: Simd>(d: [S::V; MOST_IN]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { [S::sub(d[0], d[1]), d[1], S::sub(d[2], d[1]), d[0], d[1], S::zero()] }
    }

    #[inline(always)]
    unsafe fn after<S: Simd>(m: [S::V; MOST_IN]) -> [S::V; MOST_OUT] {
        // SAFETY: passed on.
        unsafe { [m[3], S::add(m[0], m[1]), m[4], S::add(m[1], m[2])] }
    }
}

impl Turned for F2 {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), y[1], S::zero(), S::zero()] }
    }
}

impl Turned for F2Strided {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { [y[0], S::add(y[0], y[1]), y[1], y[0], y[1], S::zero()] }
    }
}

impl Turned for F2Five {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            let (odd, odd_far) = (S::mul(s, y[1]), S::mul(t, y[1]));
            [y[0], S::add(y[0], odd), S::sub(y[0], odd), S::add(y[0], odd_far), S::sub(y[0], odd_far), y[1]]
        }
    }
}

impl Turned for F3Four {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            let (even, even_far) = (S::fma(S::splat(0.5), y[2], y[0]), S::fma(S::splat(2.0), y[2], y[0]));
            let (odd, odd_far) = (S::mul(s, y[1]), S::mul(t, y[1]));
            [y[0], S::add(even, odd), S::sub(even, odd), S::add(even_far, odd_far), S::sub(even_far, odd_far), y[2]]
        }
    }
}

impl Turned for F4Short {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe { F3Four::turn::<S>(y) }
    }
}

impl Turned for F4 {
    #[inline(always)]
    unsafe fn turn<S: Simd>(y: [S::V; MOST_OUT]) -> [S::V; MOST_IN] {
        // SAFETY: passed on.
        unsafe {
            let (s, t) = (S::splat(ROOT_HALF as f32), S::splat(ROOT_TWO as f32));
            let (s_cubed, t_cubed) = (S::splat((0.5 * ROOT_HALF) as f32), S::splat((2.0 * ROOT_TWO) as f32));
            let even = S::fma(S::splat(0.5), y[2], y[0]);
            let odd = S::fma(s_cubed, y[3], S::mul(s, y[1]));
            let even_far = S::fma(S::splat(2.0), y[2], y[0]);
            let odd_far = S::fma(t_cubed, y[3], S::mul(t, y[1]));
            [y[0], S::add(even, odd), S::sub(even, odd), S::add(even_far, odd_far), S::sub(even_far, odd_far), y[3]]
        }
    }
}
