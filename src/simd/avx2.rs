//! AVX2 with FMA: 16 registers of 8 lanes.

use super::{Isa, Routine, Simd, Task};
use std::arch::x86_64::*;

/// AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub struct Avx2;

#[repr(align(32))]
struct Aligned([f32; 8]);

/// `2^(i/8) · 0.055_498_9`, of whose bits `i << 20` is subtracted: what [`Avx2::one_and_power`] adds has it.
static POWERS: Aligned = {
    let factors: [f32; 8] =
        [0.055_498_9, 0.060_521_98, 0.065_999_69, 0.071_973_17, 0.078_487_3, 0.085_591, 0.093_337_655, 0.101_785_43];
    let (mut powers, mut i) = ([0.0; 8], 0);
    while i < 8 {
        powers[i] = f32::from_bits(factors[i].to_bits() - ((i as u32) << 20));
        i += 1;
    }
    Aligned(powers)
};

/// Runs `task` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the task demands.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn entry<T: Task>(task: T) -> T::Output {
    // SAFETY: passed on.
    unsafe { task.run::<Avx2>() }
}

/// Runs routine `R` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the routine demands.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn routine<R: Routine>(args: &R::Args) {
    // SAFETY: passed on.
    unsafe { R::run::<Avx2>(args) }
}

/// Ones followed by zeros: a window of eight that starts at `8 - n` has `n` ones in front.
static LANE_MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

// SAFETY, for every block below: the trait demands the instruction set and valid pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
#[allow(clippy::missing_safety_doc, reason = "stated on the trait")]
impl Simd for Avx2 {
    type V = __m256;
    type M = __m256i;
    type D = __m256d;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const ISA: Isa = Isa::Avx2;

    fn routine<R: Routine>() -> unsafe fn(&R::Args) {
        routine::<R>
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: __m256) {
        unsafe { _mm256_stream_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn streamed() {
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    unsafe fn mask(n: usize) -> __m256i {
        debug_assert!(n <= 8);
        unsafe { _mm256_loadu_si256(LANE_MASKS.as_ptr().add(8 - n).cast()) }
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const f32, m: __m256i) -> __m256 {
        unsafe { _mm256_maskload_ps(p, m) }
    }

    #[inline(always)]
    unsafe fn store_masked(p: *mut f32, v: __m256, m: __m256i) {
        unsafe { _mm256_maskstore_ps(p, m, v) }
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
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sqrt(v: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(v) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn max_nan(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)) }
    }

    #[inline(always)]
    unsafe fn where_positive(x: __m256, v: __m256) -> __m256 {
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_setzero_ps()), v) }
    }

    #[inline(always)]
    unsafe fn where_greater(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        unsafe {
            let greater = _mm256_or_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b), _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            _mm256_blendv_ps(y, x, greater)
        }
    }

    #[inline(always)]
    unsafe fn round(v: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(v: __m256, n: __m256) -> __m256 {
        unsafe {
            // In two factors, so that neither leaves the range of normal exponents.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |e| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(e, _mm256_set1_epi32(127))));
            _mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }

    /// −x·log₂e = n + r for n in steps of 1/8. The powers of two between 1 and 2 lie in a register, so that a polynomial of degree
    /// 3 is enough for 2ʳ: ((r + b)·r + c)·r + d with its leading factor in the table, which errs by 2·10⁻⁸ at most. What waits
    /// for what is short: a core that holds few instructions back would otherwise wait. log₂e is the sum of two floats.
    #[inline(always)]
    unsafe fn one_and_power(x: __m256) -> __m256 {
        // Added to a number, it leaves the 8ths in the lowest bits.
        const STEPS: f32 = 1.5 * (1 << 20) as f32;
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        const REST: f32 = (std::f64::consts::LOG2_E - LOG2_E as f64) as f32;
        unsafe {
            let x = _mm256_max_ps(_mm256_set1_ps(-110.0), x);
            let bits = _mm256_fmadd_ps(x, _mm256_set1_ps(-LOG2_E), _mm256_set1_ps(STEPS));
            let n = _mm256_sub_ps(bits, _mm256_set1_ps(STEPS));
            let r = _mm256_fmsub_ps(x, _mm256_set1_ps(-LOG2_E), n);
            let r = _mm256_fmadd_ps(x, _mm256_set1_ps(-REST), r);
            let sum = _mm256_add_ps(r, _mm256_set1_ps(4.329_168_3));
            let sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(12.489_387));
            let sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(18.018_375));
            let bits = _mm256_castps_si256(bits);
            let power = _mm256_permutevar8x32_epi32(_mm256_load_si256(POWERS.0.as_ptr().cast()), bits);
            // Saturated, an exponent is that of NaN, in place of which the minimum is its second argument.
            let power = _mm256_adds_epi16(power, _mm256_slli_epi32::<20>(bits));
            let power = _mm256_min_ps(_mm256_castsi256_ps(power), _mm256_set1_ps(f32::INFINITY));
            _mm256_fmadd_ps(power, sum, _mm256_set1_ps(1.0))
        }
    }

    #[inline(always)]
    unsafe fn permute(v: __m256, lanes: __m256) -> __m256 {
        unsafe { _mm256_permutevar8x32_ps(v, _mm256_castps_si256(lanes)) }
    }

    #[inline(always)]
    unsafe fn transpose((from, ld): (*const f32, usize), (to, ld_to): (*mut f32, usize)) {
        unsafe {
            // Squares of four in either half of a register: `fours[4g + j]` holds columns j and 4 + j of rows 4g on.
            let mut fours = [_mm256_setzero_ps(); 8];
            for g in 0..2 {
                let row = |i: usize| _mm256_loadu_ps(from.add((4 * g + i) * ld));
                let (a, b) = (_mm256_unpacklo_ps(row(0), row(1)), _mm256_unpackhi_ps(row(0), row(1)));
                let (c, d) = (_mm256_unpacklo_ps(row(2), row(3)), _mm256_unpackhi_ps(row(2), row(3)));
                fours[4 * g] = _mm256_shuffle_ps::<0x44>(a, c);
                fours[4 * g + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                fours[4 * g + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                fours[4 * g + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for j in 0..4 {
                let (low, high) = (fours[j], fours[4 + j]);
                _mm256_storeu_ps(to.add(j * ld_to), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(to.add((4 + j) * ld_to), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }

    #[inline(always)]
    unsafe fn hsum(v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn hmax(v: __m256) -> f32 {
        unsafe {
            let any_nan = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)) != 0;
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
            if any_nan { f32::NAN } else { one }
        }
    }
}
