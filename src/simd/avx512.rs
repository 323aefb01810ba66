//! AVX-512: 32 registers of 16 lanes.

use super::{Isa, Routine, Simd, Task};
use std::arch::x86_64::*;

/// AVX-512 F, VL, BW, DQ.
#[derive(Debug, Clone, Copy)]
pub struct Avx512;

#[repr(align(64))]
struct Aligned([f32; 32]);

/// `2^(i/32) · 0.240_228_27`.
#[rustfmt::skip]
static POWERS: Aligned = Aligned([
    0.240_228_28, 0.245_488_58, 0.250_864_1, 0.256_357_3, 0.261_970_8, 0.267_707_2, 0.273_569_23, 0.279_559_6,
    0.285_681_2, 0.291_936_78, 0.298_329_35, 0.304_861_93, 0.311_537_53, 0.318_359_32, 0.325_330_47, 0.332_454_3,
    0.339_734_08, 0.347_173_3, 0.354_775_4, 0.362_543_97, 0.370_482_65, 0.378_595_17, 0.386_885_32, 0.395_357,
    0.404_014_2, 0.412_860_96, 0.421_901_43, 0.431_139_86, 0.440_580_6, 0.450_228_07, 0.460_086_76, 0.470_161_35,
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
    type D = __m512d;
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

    /// Cores that compute on 512 bits in two goes need one for half of them.
    #[inline(always)]
    unsafe fn fma_low(a: f32, b: __m512, c: __m512) -> __m512 {
        unsafe {
            let [b, c] = [b, c].map(|v| _mm512_castps512_ps256(v));
            _mm512_zextps256_ps512(_mm256_fmadd_ps(_mm256_set1_ps(a), b, c))
        }
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

    /// −x·log₂e = n + r for n in steps of 1/32. The powers of two between 1 and 2 lie in two registers, so that a polynomial
    /// of degree 2 is enough for 2ʳ: r·(r + b) + a with its leading factor in the table, which errs by 5·10⁻⁸ at most, relative to
    /// it. Its inner sum is no work for the units that multiply. log₂e is the sum of two floats.
    #[inline(always)]
    unsafe fn one_and_power(x: __m512) -> __m512 {
        // Added to a number, it leaves the 32nds in the lowest bits.
        const STEPS: f32 = 1.5 * (1 << 18) as f32;
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        const REST: f32 = (std::f64::consts::LOG2_E - LOG2_E as f64) as f32;
        unsafe {
            let bits = _mm512_fmadd_ps(x, _mm512_set1_ps(-LOG2_E), _mm512_set1_ps(STEPS));
            let n = _mm512_sub_ps(bits, _mm512_set1_ps(STEPS));
            let r = _mm512_fmsub_ps(x, _mm512_set1_ps(-LOG2_E), n);
            let r = _mm512_fmadd_ps(x, _mm512_set1_ps(-REST), r);
            let sum = _mm512_fmadd_ps(r, _mm512_add_ps(r, _mm512_set1_ps(2.885_411_3)), _mm512_set1_ps(4.162_707_3));
            let [low, high] = [POWERS.0.as_ptr(), POWERS.0[16..].as_ptr()].map(|p| _mm512_load_ps(p));
            let power = _mm512_permutex2var_ps(low, _mm512_castps_si512(bits), high);
            _mm512_fmadd_ps(_mm512_scalef_ps(power, n), sum, _mm512_set1_ps(1.0))
        }
    }

    #[inline(always)]
    unsafe fn permute(v: __m512, lanes: __m512) -> __m512 {
        unsafe { _mm512_permutexvar_ps(_mm512_castps_si512(lanes), v) }
    }

    #[inline(always)]
    unsafe fn transpose((from, ld): (*const f32, usize), (to, ld_to): (*mut f32, usize)) {
        unsafe {
            // Squares of four in every quarter of a register: `fours[4g + j]` holds columns j, 4 + j, 8 + j, 12 + j of rows 4g on.
            let mut fours = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let row = |i: usize| _mm512_loadu_ps(from.add((4 * g + i) * ld));
                let (a, b) = (_mm512_unpacklo_ps(row(0), row(1)), _mm512_unpackhi_ps(row(0), row(1)));
                let (c, d) = (_mm512_unpacklo_ps(row(2), row(3)), _mm512_unpackhi_ps(row(2), row(3)));
                let [a, b, c, d] = [a, b, c, d].map(|v| _mm512_castps_pd(v));
                let columns = [
                    _mm512_unpacklo_pd(a, c),
                    _mm512_unpackhi_pd(a, c),
                    _mm512_unpacklo_pd(b, d),
                    _mm512_unpackhi_pd(b, d),
                ];
                for j in 0..4 {
                    fours[4 * g + j] = _mm512_castpd_ps(columns[j]);
                }
            }
            for j in 0..4 {
                let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                let (even_far, odd_far) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(even, even_far),
                    _mm512_shuffle_f32x4::<0x88>(odd, odd_far),
                    _mm512_shuffle_f32x4::<0xdd>(even, even_far),
                    _mm512_shuffle_f32x4::<0xdd>(odd, odd_far),
                ];
                for (l, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(to.add((4 * l + j) * ld_to), column);
                }
            }
        }
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
