//! NEON (64-bit Arm): 32 registers of 4 lanes.

use super::{Isa, Routine, Simd, Task};
use std::arch::{aarch64::*, asm};

/// Advanced SIMD of AArch64.
#[derive(Debug, Clone, Copy)]
pub struct Neon;

/// Runs `task` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the task demands.
#[target_feature(enable = "neon")]
pub(super) unsafe fn entry<T: Task>(task: T) -> T::Output {
    // SAFETY: passed on.
    unsafe { task.run::<Neon>() }
}

/// Runs routine `R` with the features switched on.
///
/// # Safety
/// The CPU has them, and whatever the routine demands.
#[target_feature(enable = "neon")]
pub(super) unsafe fn routine<R: Routine>(args: &R::Args) {
    // SAFETY: passed on.
    unsafe { R::run::<Neon>(args) }
}

// SAFETY, for every block below: the trait demands the instruction set and valid pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
#[allow(clippy::missing_safety_doc, reason = "stated on the trait")]
impl Simd for Neon {
    type V = float32x4_t;
    type M = usize;
    type D = float64x2_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const ISA: Isa = Isa::Neon;

    fn routine<R: Routine>() -> unsafe fn(&R::Args) {
        routine::<R>
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(p, v) }
    }

    #[inline(always)]
    unsafe fn mask(n: usize) -> usize {
        debug_assert!(n <= 4);
        n
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const f32, m: usize) -> float32x4_t {
        unsafe {
            let zero = vdupq_n_f32(0.0);
            match m {
                0 => zero,
                1 => vld1q_lane_f32::<0>(p, zero),
                2 => vcombine_f32(vld1_f32(p), vdup_n_f32(0.0)),
                3 => vcombine_f32(vld1_f32(p), vld1_lane_f32::<0>(p.add(2), vdup_n_f32(0.0))),
                _ => vld1q_f32(p),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_masked(p: *mut f32, v: float32x4_t, m: usize) {
        unsafe {
            match m {
                0 => {}
                1 => vst1q_lane_f32::<0>(p, v),
                2 => vst1_f32(p, vget_low_f32(v)),
                3 => {
                    vst1_f32(p, vget_low_f32(v));
                    vst1q_lane_f32::<2>(p.add(2), v);
                }
                _ => vst1q_f32(p, v),
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(p: *const f32) {
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn sqrt(v: float32x4_t) -> float32x4_t {
        unsafe { vsqrtq_f32(v) }
    }

    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn max_nan(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn where_positive(x: float32x4_t, v: float32x4_t) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(x), vreinterpretq_u32_f32(v))) }
    }

    #[inline(always)]
    unsafe fn where_greater(a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vorrq_u32(vcgtq_f32(a, b), vmvnq_u32(vceqq_f32(a, a))), x, y) }
    }

    #[inline(always)]
    unsafe fn round(v: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(v) }
    }

    #[inline(always)]
    unsafe fn scale_by_power(v: float32x4_t, n: float32x4_t) -> float32x4_t {
        unsafe {
            // In two factors, so that neither leaves the range of normal exponents.
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |e| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(e, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(v, power(half)), power(vsubq_s32(n, half)))
        }
    }

    #[inline(always)]
    unsafe fn permute(v: float32x4_t, lanes: float32x4_t) -> float32x4_t {
        unsafe {
            // The table look-up counts bytes: lane l is the bytes 4l, 4l + 1, 4l + 2, 4l + 3.
            let lanes = vandq_u32(vreinterpretq_u32_f32(lanes), vdupq_n_u32(3));
            let bytes = vmlaq_n_u32(vdupq_n_u32(0x0302_0100), lanes, 0x0404_0404);
            vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), vreinterpretq_u8_u32(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn hsum(v: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(v) }
    }

    #[inline(always)]
    unsafe fn hmax(v: float32x4_t) -> f32 {
        unsafe { vmaxvq_f32(v) }
    }
}
