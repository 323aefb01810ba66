//! WebAssembly SIMD: 128-bit registers of 4 lanes, which an engine maps to at least 16 of the machine's.
//!
//! A module either uses these instructions or does not (`-C target-feature=+simd128`), so nothing is asked at run time.

use super::{Isa, Routine, Simd, Task};
use std::arch::wasm32::*;

/// SIMD of WebAssembly.
#[derive(Debug, Clone, Copy)]
pub struct Simd128;

/// Runs `task` with the features switched on.
///
/// # Safety
/// Whatever the task demands.
#[target_feature(enable = "simd128")]
pub(super) unsafe fn entry<T: Task>(task: T) -> T::Output {
    // SAFETY: passed on.
    unsafe { task.run::<Simd128>() }
}

/// Runs routine `R` with the features switched on.
///
/// # Safety
/// Whatever the routine demands.
#[target_feature(enable = "simd128")]
pub(super) unsafe fn routine<R: Routine>(args: &R::Args) {
    // SAFETY: passed on.
    unsafe { R::run::<Simd128>(args) }
}

// SAFETY, for every block below: the trait demands valid pointers. (Instructions that touch no memory are safe here:
// a module that an engine has accepted has them.)
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
#[allow(clippy::missing_safety_doc, reason = "stated on the trait")]
impl Simd for Simd128 {
    type V = v128;
    type M = usize;
    type D = [f64; 2];
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    const ISA: Isa = Isa::Simd128;

    fn routine<R: Routine>() -> unsafe fn(&R::Args) {
        routine::<R>
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> v128 {
        f32x4_splat(x)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> v128 {
        unsafe { v128_load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: v128) {
        unsafe { v128_store(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn mask(n: usize) -> usize {
        debug_assert!(n <= 4);
        n
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const f32, m: usize) -> v128 {
        unsafe {
            match m {
                0 => f32x4_splat(0.0),
                1 => v128_load32_zero(p.cast()),
                2 => v128_load64_zero(p.cast()),
                3 => v128_load32_lane::<2>(v128_load64_zero(p.cast()), p.add(2).cast()),
                _ => v128_load(p.cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn store_masked(p: *mut f32, v: v128, m: usize) {
        unsafe {
            match m {
                0 => {}
                1 => v128_store32_lane::<0>(v, p.cast()),
                2 => v128_store64_lane::<0>(v, p.cast()),
                3 => {
                    v128_store64_lane::<0>(v, p.cast());
                    v128_store32_lane::<2>(v, p.add(2).cast());
                }
                _ => v128_store(p.cast(), v),
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const f32) {}

    #[inline(always)]
    unsafe fn add(a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: v128, b: v128, c: v128) -> v128 {
        // The fused form belongs to relaxed SIMD, whose results differ between machines.
        f32x4_add(f32x4_mul(a, b), c)
    }

    #[inline(always)]
    unsafe fn sqrt(v: v128) -> v128 {
        f32x4_sqrt(v)
    }

    #[inline(always)]
    unsafe fn max(a: v128, b: v128) -> v128 {
        // `b < a ? a : b`, one instruction on x86.
        f32x4_pmax(b, a)
    }

    #[inline(always)]
    unsafe fn min(a: v128, b: v128) -> v128 {
        f32x4_pmin(b, a)
    }

    #[inline(always)]
    unsafe fn max_nan(a: v128, b: v128) -> v128 {
        f32x4_max(a, b)
    }

    #[inline(always)]
    unsafe fn where_positive(x: v128, v: v128) -> v128 {
        v128_and(f32x4_gt(x, f32x4_splat(0.0)), v)
    }

    #[inline(always)]
    unsafe fn where_greater(a: v128, b: v128, x: v128, y: v128) -> v128 {
        v128_bitselect(x, y, v128_or(f32x4_gt(a, b), f32x4_ne(a, a)))
    }

    #[inline(always)]
    unsafe fn round(v: v128) -> v128 {
        f32x4_nearest(v)
    }

    #[inline(always)]
    unsafe fn scale_by_power(v: v128, n: v128) -> v128 {
        // In two factors, so that neither leaves the range of normal exponents.
        let n = i32x4_trunc_sat_f32x4(n);
        let half = i32x4_shr(n, 1);
        let power = |e| i32x4_shl(i32x4_add(e, i32x4_splat(127)), 23);
        f32x4_mul(f32x4_mul(v, power(half)), power(i32x4_sub(n, half)))
    }

    #[inline(always)]
    unsafe fn permute(v: v128, lanes: v128) -> v128 {
        // The swizzle counts bytes: lane l is the bytes 4l, 4l + 1, 4l + 2, 4l + 3.
        let lanes = v128_and(lanes, u32x4_splat(3));
        let bytes = i32x4_add(i32x4_mul(lanes, u32x4_splat(0x0404_0404)), u32x4_splat(0x0302_0100));
        i8x16_swizzle(v, bytes)
    }

    #[inline(always)]
    unsafe fn hsum(v: v128) -> f32 {
        let two = f32x4_add(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }

    #[inline(always)]
    unsafe fn hmax(v: v128) -> f32 {
        let two = f32x4_max(v, i32x4_shuffle::<2, 3, 0, 1>(v, v));
        f32x4_extract_lane::<0>(f32x4_max(two, i32x4_shuffle::<1, 0, 3, 2>(two, two)))
    }
}
