//! Vector instructions behind one trait: the only room that names an instruction set.
//!
//! # Writing a kernel
//!
//! 1. Write the arithmetic once, in `#[inline(always)] unsafe fn`s generic over `S: Simd`, without `#[target_feature]`
//!    and without closures or `dyn` in the hot loop.
//! 2. Make a small `Copy` struct of its arguments and implement [`Task`] for it, calling that function (again
//!    `#[inline(always)]`).
//! 3. Run it with [`Isa::run`], or fetch [`Isa::entry`] once while preparing and call through the pointer. Both lead to a
//!    function that carries the `#[target_feature]` of its instruction set and into which everything else is inlined.
//!
//! ```
//! use convzoo::simd::{Isa, Simd, Task};
//!
//! #[derive(Clone, Copy)]
//! struct Double<'a>(&'a [f32; 64]);
//! impl Task for Double<'_> {
//!     type Output = f32;
//!     #[inline(always)]
//!     unsafe fn run<S: Simd>(self) -> f32 {
//!         let mut sum = 0.0;
//!         for i in (0..64).step_by(S::LANES) {
//!             // SAFETY: every `LANES` divides 64; the caller vouches for the instruction set.
//!             sum += unsafe {
//!                 let v = S::load(self.0.as_ptr().add(i));
//!                 S::hsum(S::add(v, v))
//!             };
//!         }
//!         sum
//!     }
//! }
//! // SAFETY: the task has no condition of its own.
//! assert_eq!(unsafe { Isa::detect().run(Double(&[1.0; 64])) }, 128.0);
//! ```
//!
//! A call that is not inlined passes every vector through memory, ten times slower: that is why *all* of it is
//! `#[inline(always)]` below the entry.
//!
//! What a loop does not need inside, it should not ask for there: what the compiler can compute before the loop it does, and
//! keeps it on the stack if it must. Multiply-adds and stores share ports on Zen 4 (four stores among sixteen multiply-adds take
//! 22 cycles instead of 16; additions and multiplications hide behind stores), so stores belong where little is multiplied,
//! few at a time.
//!
//! # Adding an instruction set
//!
//! Add a variant to [`Isa`] (in order of preference), a file with one `impl Simd` and its `entry` function in the same
//! order as the others, a line each in `Isa::entry`, `Isa::routine` and `supported`, its [`Doubles`] and its register tiles in
//! `kernels/gemm/micro.rs`. No kernel changes.
#![allow(unsafe_code, reason = "wraps the vector intrinsics of each instruction set")]

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod codegen;
mod cpu;
mod doubles;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peak;
mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;
pub mod tiles;

pub use cpu::{adds_apart, cpu_name, first_cache};
pub use doubles::Doubles;
pub use math::{activation_gradient, apply_activation, exp, has_output_gradient, output_gradient, sigmoid, silu};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use peak::peak_gflops;
pub use scalar::Scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub use simd128::Simd128;
#[cfg(target_arch = "x86_64")]
pub use {avx2::Avx2, avx512::Avx512};

/// A register of `f32` lanes and what can be done to it.
///
/// # Safety
/// Every method may only be called on a CPU that has the instruction set; code reached through [`Isa::run`] or
/// [`Isa::entry`] is. Methods that take pointers need them valid for the lanes they touch; no alignment is needed.
#[allow(clippy::missing_safety_doc, reason = "one condition for all methods, stated on the trait")]
pub trait Simd: Copy + Send + Sync + 'static {
    /// The register.
    type V: Copy;
    /// A choice of leading lanes.
    type M: Copy;
    /// A register of half as many doubles.
    type D: Doubles;
    /// Floats in a register.
    const LANES: usize;
    /// Registers of this kind.
    const REGISTERS: usize;
    /// Which instruction set this is.
    const ISA: Isa;

    /// The function that runs routine `R` with this instruction set.
    fn routine<R: Routine>() -> unsafe fn(&R::Args);

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// `LANES` floats from `p`.
    unsafe fn load(p: *const f32) -> Self::V;
    /// `LANES` floats to `p`.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n` lanes, `n ≤ LANES`.
    unsafe fn mask(n: usize) -> Self::M;
    /// The lanes of `m` from `p`, zeros elsewhere; other memory is not touched.
    unsafe fn load_masked(p: *const f32, m: Self::M) -> Self::V;
    /// The lanes of `m` to `p`; other memory is not touched.
    unsafe fn store_masked(p: *mut f32, v: Self::V, m: Self::M);
    /// As [`store`](Self::store), past the caches where the CPU can: for what is read much later. `p` lies on the boundary of
    /// a register. Whoever is to read it from another thread needs [`streamed`](Self::streamed) in between.
    unsafe fn stream(p: *mut f32, v: Self::V) {
        // SAFETY: passed on.
        unsafe { Self::store(p, v) }
    }
    /// Makes what was streamed visible to other threads, as stores are.
    unsafe fn streamed() {}
    /// Hint: the cache line of `p` is needed soon. `p` may be any address.
    unsafe fn prefetch(p: *const f32);
    /// Hint: the cache line of `p` is needed later; it need not come nearer than the second cache.
    unsafe fn prefetch_far(p: *const f32);

    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a − b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the hardware can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a · b + c` in the lower half of the lanes, at half the cost where the CPU can; the upper half holds anything.
    #[inline(always)]
    unsafe fn fma_low(a: f32, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: passed on.
        unsafe { Self::fma(Self::splat(a), b, c) }
    }
    /// `√v`.
    unsafe fn sqrt(v: Self::V) -> Self::V;
    /// The greater; NaN in `b` survives (NaN in `a` may not).
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The lesser; NaN in `b` survives (NaN in `a` may not).
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// The greater; NaN in either survives.
    unsafe fn max_nan(a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `x > 0`, zero elsewhere (also where `x` is NaN).
    unsafe fn where_positive(x: Self::V, v: Self::V) -> Self::V;
    /// `x` where `a > b` or `a` is NaN, `y` elsewhere.
    unsafe fn where_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// The nearest integers, ties to even; |v| below 2²².
    unsafe fn round(v: Self::V) -> Self::V;
    /// `v · 2ⁿ` for integral `n` in [-250, 250]; overflows to infinity and underflows to zero as a product does.
    unsafe fn scale_by_power(v: Self::V, n: Self::V) -> Self::V;
    /// Lane `i` of the result is lane `lanes[i]` of `v`: the lower bits of `lanes[i]`, read as an integer, count.
    unsafe fn permute(v: Self::V, lanes: Self::V) -> Self::V;
    /// Transposes a square of as many rows as lanes: float `j` of row `i`, which begins at `from + i · ld`, goes to float `i`
    /// of row `j` of the other square, which lies likewise.
    #[inline(always)]
    unsafe fn transpose((from, ld): (*const f32, usize), (to, ld_to): (*mut f32, usize)) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: the caller's squares.
                unsafe { *to.add(j * ld_to + i) = *from.add(i * ld + j) };
            }
        }
    }
    /// The sum of all lanes, in one fixed order.
    unsafe fn hsum(v: Self::V) -> f32;
    /// The greatest of all lanes; NaN if any is.
    unsafe fn hmax(v: Self::V) -> f32;

    /// `1 + e⁻ˣ` to about 1 ulp for x ≤ 80, infinite where that overflows: what sigmoid and SiLU divide by. NaN stays
    /// NaN.
    #[inline(always)]
    unsafe fn one_and_power(x: Self::V) -> Self::V {
        // SAFETY: passed on.
        unsafe { math::one_and_power::<Self>(x) }
    }

    /// The first `n ≤ LANES` lanes from `p`, zeros elsewhere.
    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self::V {
        // SAFETY: passed on.
        unsafe { Self::load_masked(p, Self::mask(n)) }
    }

    /// The first `n ≤ LANES` lanes to `p`.
    #[inline(always)]
    unsafe fn store_partial(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: passed on.
        unsafe { Self::store_masked(p, v, Self::mask(n)) }
    }

    /// All lanes zero.
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: passed on.
        unsafe { Self::splat(0.0) }
    }
}

/// A piece of work written once for every instruction set.
pub trait Task {
    /// What it computes.
    type Output;

    /// Does the work with `S`. Mark it `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`, and whatever the task itself demands.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A [`Task`] called by reference many times over: routines with the same arguments share one function-pointer type, so
/// that a family of them (tile sizes, say) fits in a table.
pub trait Routine {
    /// What it works on.
    type Args;

    /// Does the work with `S`. Mark it `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`, and whatever the routine itself demands.
    unsafe fn run<S: Simd>(args: &Self::Args);
}

/// An instruction set; of those one machine can have, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust on four lanes.
    Scalar,
    /// WebAssembly SIMD: 4 lanes, 16 registers.
    Simd128,
    /// NEON of 64-bit Arm: 4 lanes, 32 registers.
    Neon,
    /// AVX2 with FMA: 8 lanes, 16 registers.
    Avx2,
    /// AVX-512 F, VL, BW, DQ: 16 lanes, 32 registers.
    Avx512,
    /// The same and a matrix unit, [`tiles`].
    Amx,
}

impl Isa {
    const ALL: [Isa; 6] = [Isa::Scalar, Isa::Simd128, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The instruction sets this CPU has, worst first.
    pub fn available() -> &'static [Isa] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| Isa::ALL.into_iter().filter(|&isa| supported(isa)).collect())
    }

    /// The instruction set to use: the best this CPU has, or a lesser one if the environment variable `CONVZOO_ISA`
    /// (`scalar`, `simd128`, `neon`, `avx2`, `avx512`, `amx`) asks for it. Decided once per process.
    pub fn detect() -> Isa {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let best = *Isa::available().last().expect("the portable one is always there");
            let asked = std::env::var("CONVZOO_ISA").unwrap_or_default().to_lowercase();
            let most = Isa::ALL.into_iter().find(|isa| isa.name() == asked).unwrap_or(best);
            *Isa::available().iter().rfind(|&&isa| isa <= most).unwrap_or(&Isa::Scalar)
        })
    }

    /// Lower-case name, as `CONVZOO_ISA` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Simd128 => "simd128",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Registers a kernel can count on.
    pub const fn registers(self) -> usize {
        match self {
            Isa::Scalar | Isa::Simd128 | Isa::Avx2 => 16,
            Isa::Neon | Isa::Avx512 | Isa::Amx => 32,
        }
    }

    /// Floats in a register.
    pub const fn lanes(self) -> usize {
        match self {
            Isa::Scalar | Isa::Simd128 | Isa::Neon => 4,
            Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Amx => 16,
        }
    }

    /// The instruction set of its registers, without the matrix unit.
    pub const fn vectors(self) -> Isa {
        match self {
            Isa::Amx => Isa::Avx512,
            other => other,
        }
    }

    /// The function that runs tasks of type `T` with this instruction set. Panics if the CPU lacks it.
    #[inline]
    pub fn entry<T: Task>(self) -> unsafe fn(T) -> T::Output {
        assert!(Isa::available().contains(&self), "this CPU has no {}", self.name());
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => avx512::entry::<T>,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::entry::<T>,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::entry::<T>,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => simd128::entry::<T>,
            _ => scalar::entry::<T>,
        }
    }

    /// The function that runs routine `R` with this instruction set. Panics if the CPU lacks it.
    pub fn routine<R: Routine>(self) -> unsafe fn(&R::Args) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => routine::<Avx512, R>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => routine::<Avx2, R>(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => routine::<Neon, R>(),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => routine::<Simd128, R>(),
            _ => routine::<Scalar, R>(),
        }
    }

    /// Runs a task with this instruction set. Panics if the CPU lacks it.
    ///
    /// # Safety
    /// As the task demands.
    #[inline]
    pub unsafe fn run<T: Task>(self, task: T) -> T::Output {
        // SAFETY: `entry` has checked the instruction set; the rest is the caller's promise.
        unsafe { self.entry::<T>()(task) }
    }
}

/// The function that runs routine `R` with `S` and no other instruction set. Panics if the CPU lacks it.
pub fn routine<S: Simd, R: Routine>() -> unsafe fn(&R::Args) {
    assert!(Isa::available().contains(&S::ISA), "this CPU has no {}", S::ISA.name());
    S::routine::<R>()
}

/// Whether this CPU has `isa`.
fn supported(isa: Isa) -> bool {
    match isa {
        Isa::Scalar => true,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("fma")
        }
        Isa::Amx => supported(Isa::Avx512) && tiles::available(),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Isa::Simd128 => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
