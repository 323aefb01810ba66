//! AVX-512: 32 registers of 16 lanes.

use super::{Isa, Routine, Simd, Task};
use std::arch::x86_64::*;

/// AVX-512 F, VL, BW, DQ.
#[derive(Debug, Clone, Copy)]
pub struct Avx512;

/// Runs `task` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the task demands.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
pub(super) unsafe fn entry<T: Task>(task: T) -> T::Output {
    // SAFETY: passed on.
    unsafe { task.run::<Avx512>() }
}

/// Runs routine `R` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the routine demands.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
pub(super) unsafe fn routine<R: Routine>(args: &R::Args) {
    // SAFETY: passed on.
    unsafe { R::run::<Avx512>(args) }
}

// SAFETY, for every block below: the trait demands the instruction set and valid pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
#[allow(clippy::missing_safety_doc, reason = "stated on the trait")]
impl Simd for Avx512 {
    type V = __m512;
    type M = __mmask16;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const ISA: Isa = Isa::Avx512;

    fn routine<R: Routine>() -> unsafe fn(&R::Args) {
        routine::<R>
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn streamed() {
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    unsafe fn mask(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const f32, m: __mmask16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(m, p) }
    }

    #[inline(always)]
    unsafe fn store_masked(p: *mut f32, v: __m512, m: __mmask16) {
        unsafe { _mm512_mask_storeu_ps(p, m, v) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn reciprocal(v: __m512) -> __m512 {
        // 14 bits and a Newton step: a quarter of the time a division of 16 lanes takes.
        unsafe {
            let r = _mm512_rcp14_ps(v);
            _mm512_fmadd_ps(_mm512_fnmadd_ps(v, r, _mm512_set1_ps(1.0)), r, r)
        }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sqrt(v: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(v) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max_nan(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), a) }
    }

    #[inline(always)]
    unsafe fn where_positive(x: __m512, v: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_setzero_ps()), v) }
    }

    #[inline(always)]
    unsafe fn where_greater(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        unsafe {
            let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_mask_mov_ps(y, greater, x)
        }
    }

    #[inline(always)]
    unsafe fn round(v: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(v: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(v, n) }
    }

    #[inline(always)]
    unsafe fn permute(v: __m512, lanes: __m512) -> __m512 {
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(lanes), v) }
    }

    #[inline(always)]
    unsafe fn hsum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    unsafe fn hmax(v: __m512) -> f32 {
        unsafe {
            let any_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v) != 0;
            if any_nan { f32::NAN } else { _mm512_reduce_max_ps(v) }
        }
    }
}
