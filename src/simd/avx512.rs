//! AVX-512: 32 registers of 16 lanes.

use super::math::LN_2;
use super::{Isa, Routine, Simd, Task};
use std::arch::x86_64::*;

/// AVX-512 F, VL, BW, DQ.
#[derive(Debug, Clone, Copy)]
pub struct Avx512;

#[repr(align(64))]
struct Aligned([f32; 32]);

/// `2^(i/32) / 8`.
#[rustfmt::skip]
static EIGHTHS: Aligned = Aligned([
    0.125, 0.127_737_15, 0.130_534_22, 0.133_392_56, 0.136_313_47, 0.139_298_35, 0.142_348_57, 0.145_465_61,
    0.148_650_88, 0.151_905_92, 0.155_232_22, 0.158_631_37, 0.162_104_95, 0.165_654_58, 0.169_281_94, 0.172_988_74,
    0.176_776_69, 0.180_647_6, 0.184_603_27, 0.188_645_56, 0.192_776_35, 0.196_997_61, 0.201_311_29, 0.205_719_44,
    0.210_224_1, 0.214_827_42, 0.219_531_52, 0.224_338_64, 0.229_251_01, 0.234_270_96, 0.239_400_82, 0.244_643_02,
]);

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

    /// −x = n·ln 2 − r for n in steps of 1/32. The powers of two between 1 and 2 lie in two registers, so that a polynomial
    /// of degree 2 is enough for e⁻ʳ: 1 − 1.0000147 r + r²/2 errs by 5·10⁻⁸ at most, relative to it. It is evaluated as
    /// (8 + 2r·(2r − 4·1.0000147)) / 8, whose sums are no work for the units that multiply.
    #[inline(always)]
    unsafe fn one_and_power(x: __m512) -> __m512 {
        // Added to a number, it leaves the 32nds in the lowest bits.
        const STEPS: f32 = 1.5 * (1 << 18) as f32;
        unsafe {
            let bits = _mm512_fmadd_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E), _mm512_set1_ps(STEPS));
            let n = _mm512_sub_ps(bits, _mm512_set1_ps(STEPS));
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.0 * LN_2.0), _mm512_add_ps(x, x));
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.0 * LN_2.1), r);
            let sum = _mm512_fmadd_ps(r, _mm512_add_ps(r, _mm512_set1_ps(-4.0 * 1.000_014_7)), _mm512_set1_ps(8.0));
            let [low, high] = [EIGHTHS.0.as_ptr(), EIGHTHS.0[16..].as_ptr()].map(|p| _mm512_load_ps(p));
            let eighth = _mm512_permutex2var_ps(low, _mm512_castps_si512(bits), high);
            _mm512_fmadd_ps(_mm512_scalef_ps(eighth, n), sum, _mm512_set1_ps(1.0))
        }
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
