//! Portable Rust on four lanes: what runs where no better file exists, and the plainest statement of the trait.

use super::{Isa, Routine, Simd, Task};
use std::array::from_fn;

/// Four floats.
#[derive(Debug, Clone, Copy)]
pub struct Scalar;

/// Runs `task`.
///
/// # Safety
/// Whatever the task demands.
pub(super) unsafe fn entry<T: Task>(task: T) -> T::Output {
    // SAFETY: passed on.
    unsafe { task.run::<Scalar>() }
}

/// Runs routine `R`.
///
/// # Safety
/// Whatever the routine demands.
pub(super) unsafe fn routine<R: Routine>(args: &R::Args) {
    // SAFETY: passed on.
    unsafe { R::run::<Scalar>(args) }
}

// SAFETY, for every block below: the trait demands valid pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
#[allow(clippy::missing_safety_doc, reason = "stated on the trait")]
impl Simd for Scalar {
    type V = [f32; 4];
    type M = usize;
    type D = [f64; 2];
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    const ISA: Isa = Isa::Scalar;

    fn routine<R: Routine>() -> unsafe fn(&R::Args) {
        routine::<R>
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn mask(n: usize) -> usize {
        n
    }

    #[inline(always)]
    unsafe fn load_masked(p: *const f32, m: usize) -> [f32; 4] {
        from_fn(|i| if i < m { unsafe { *p.add(i) } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store_masked(p: *mut f32, v: [f32; 4], m: usize) {
        for (i, x) in v.into_iter().enumerate().take(m) {
            unsafe { *p.add(i) = x }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const f32) {}

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn div(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        // Not `mul_add`: without FMA hardware that is a call into libm.
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sqrt(v: [f32; 4]) -> [f32; 4] {
        v.map(f32::sqrt)
    }

    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn min(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn max_nan(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] || a[i].is_nan() { a[i] } else { b[i] })
    }

    #[inline(always)]
    unsafe fn where_positive(x: [f32; 4], v: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if x[i] > 0.0 { v[i] } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn where_greater(a: [f32; 4], b: [f32; 4], x: [f32; 4], y: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] || a[i].is_nan() { x[i] } else { y[i] })
    }

    #[inline(always)]
    unsafe fn round(v: [f32; 4]) -> [f32; 4] {
        // Adding 1.5 · 2²³ leaves no room for a fraction: the sum is rounded to an integer, ties to even.
        const SHIFT: f32 = 12_582_912.0;
        v.map(|x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn scale_by_power(v: [f32; 4], n: [f32; 4]) -> [f32; 4] {
        // In two factors, so that neither leaves the range of normal exponents.
        let power = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
        from_fn(|i| {
            let n = n[i] as i32;
            v[i] * power(n >> 1) * power(n - (n >> 1))
        })
    }

    #[inline(always)]
    unsafe fn permute(v: [f32; 4], lanes: [f32; 4]) -> [f32; 4] {
        lanes.map(|lane| v[lane.to_bits() as usize % 4])
    }

    #[inline(always)]
    unsafe fn hsum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }

    #[inline(always)]
    unsafe fn hmax(v: [f32; 4]) -> f32 {
        v.into_iter().reduce(|a, b| if a > b || a.is_nan() { a } else { b }).expect("four lanes")
    }
}
