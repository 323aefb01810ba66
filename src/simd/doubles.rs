//! Registers of `f64`, for what is rounded to `f32` once.

/// As many doubles as half a register has floats.
///
/// # Safety
/// As [`Simd`](super::Simd), whose instruction set this belongs to.
#[allow(clippy::missing_safety_doc, reason = "one condition for all methods, stated on the trait")]
pub trait Doubles: Copy {
    /// Doubles in a register.
    const LANES: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f64) -> Self;
    /// `LANES` floats from `p`.
    unsafe fn widen(p: *const f32) -> Self;
    /// The nearest floats to `p`.
    unsafe fn narrow(self, p: *mut f32);
    /// `self + b`.
    unsafe fn add(self, b: Self) -> Self;
    /// `self − b`.
    unsafe fn sub(self, b: Self) -> Self;
    /// `self · b`.
    unsafe fn mul(self, b: Self) -> Self;
}

/// `impl Doubles` by one instruction each.
#[allow(unused_macros, reason = "the scalar form has none")]
macro_rules! doubles {
    ($D:ty, $lanes:literal, $splat:ident, $add:ident, $sub:ident, $mul:ident, $widen:expr, $narrow:expr) => {
        impl Doubles for $D {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(x: f64) -> Self {
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn widen(p: *const f32) -> Self {
                unsafe { $widen(p) }
            }

            #[inline(always)]
            unsafe fn narrow(self, p: *mut f32) {
                unsafe { $narrow(self, p) }
            }

            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                unsafe { $add(self, b) }
            }

            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                unsafe { $sub(self, b) }
            }

            #[inline(always)]
            unsafe fn mul(self, b: Self) -> Self {
                unsafe { $mul(self, b) }
            }
        }
    };
}

impl Doubles for [f64; 2] {
    const LANES: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f64) -> Self {
        [x; 2]
    }

    #[inline(always)]
    unsafe fn widen(p: *const f32) -> Self {
        // SAFETY: the caller's pointer is good for two floats.
        unsafe { [f64::from(*p), f64::from(*p.add(1))] }
    }

    #[inline(always)]
    unsafe fn narrow(self, p: *mut f32) {
        // SAFETY: the caller's pointer is good for two floats.
        unsafe { (*p, *p.add(1)) = (self[0] as f32, self[1] as f32) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        [self[0] + b[0], self[1] + b[1]]
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        [self[0] - b[0], self[1] - b[1]]
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        [self[0] * b[0], self[1] * b[1]]
    }
}

// SAFETY, for every block below: the trait demands the instruction set and valid pointers.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
mod x86 {
    use super::Doubles;
    use std::arch::x86_64::*;

    doubles!(
        __m512d,
        8,
        _mm512_set1_pd,
        _mm512_add_pd,
        _mm512_sub_pd,
        _mm512_mul_pd,
        |p| _mm512_cvtps_pd(_mm256_loadu_ps(p)),
        |v, p| _mm256_storeu_ps(p, _mm512_cvtpd_ps(v))
    );
    doubles!(
        __m256d,
        4,
        _mm256_set1_pd,
        _mm256_add_pd,
        _mm256_sub_pd,
        _mm256_mul_pd,
        |p| _mm256_cvtps_pd(_mm_loadu_ps(p)),
        |v, p| _mm_storeu_ps(p, _mm256_cvtpd_ps(v))
    );
}

// SAFETY, for every block below: the trait demands the instruction set and valid pointers.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
mod arm {
    use super::Doubles;
    use std::arch::aarch64::*;

    doubles!(float64x2_t, 2, vdupq_n_f64, vaddq_f64, vsubq_f64, vmulq_f64, |p| vcvt_f64_f32(vld1_f32(p)), |v, p| {
        vst1_f32(p, vcvt_f32_f64(v))
    });
}
