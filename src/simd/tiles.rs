//! The matrix unit of Intel's server cores since Sapphire Rapids (AMX): eight registers of 16 rows of 64 bytes each, and one
//! instruction that multiplies two of them, 8192 products of 16-bit floats (`bf16`) summed in `f32`.
//!
//! A `bf16` is the upper half of an `f32`: 8 of its 24 significant bits. Three of them therefore hold an `f32`,
//! `x = x₀ + x₁ + x₂`, and
//!
//! ```text
//! x·w = x₀w₀ + (x₀w₁ + x₁w₀) + (x₀w₂ + x₁w₁ + x₂w₀) + …
//! ```
//!
//! where what is left out is below 2⁻²⁴ of the product, the rounding error of an `f32`. Six instructions do so in less than
//! half the time that multiply-adds take.

#[cfg(target_arch = "x86_64")]
use super::amx::{asked, clear, release, shape, step, store};
use std::sync::OnceLock;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// 16-bit floats in a row of a tile: the products an instruction sums for every element.
pub const DEPTH: usize = 32;
/// Parts of a number.
pub const PARTS: usize = 3;
/// Pairs of 16-bit floats of a tile.
pub const TILE: usize = ROWS * DEPTH / 2;
/// Steps of a product, one for every two parts whose product counts.
pub const STEPS: usize = 6;

/// Splits a block of [`DEPTH`] numbers: a row of a tile for each part, greatest first. Number `i` of the first half is followed by
/// number `i` of the second. Parts are rounded to nearest; what is above the largest 16-bit float (3.39·10³⁸) or infinite becomes
/// NaN in products.
#[inline(always)]
pub fn split(numbers: &[f32; DEPTH]) -> [[u32; ROWS]; PARTS] {
    const UPPER: u32 = 0xffff_0000;
    let mut rest = *numbers;
    let mut parts = [[0; ROWS]; PARTS];
    let (last, rounded) = parts.split_last_mut().expect("three parts");
    for part in rounded {
        let mut nearest = [0u32; DEPTH];
        for i in 0..DEPTH {
            nearest[i] = rest[i].to_bits().wrapping_add(0x8000);
        }
        for i in 0..ROWS {
            part[i] = nearest[i] >> 16 | (nearest[ROWS + i] & UPPER);
        }
        for i in 0..DEPTH {
            rest[i] -= f32::from_bits(nearest[i] & UPPER);
        }
    }
    // Seven bits are left: there is nothing to round.
    for i in 0..ROWS {
        last[i] = rest[i].to_bits() >> 16 | (rest[ROWS + i].to_bits() & UPPER);
    }
    parts
}

/// How many tiles of rows and of columns a product has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Two tiles of rows instead of one.
    pub tall: bool,
    /// Two tiles of columns instead of one.
    pub wide: bool,
}

impl Pair {
    /// Two of both.
    pub const LARGEST: Pair = Pair { tall: true, wide: true };
}

/// Whether this CPU has the unit and the system lets this process use it. Asks for it once.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(asked)
}

/// Products of tiles of `rows ≤ ROWS` rows, on the unit of this thread.
#[derive(Debug, Clone, Copy)]
pub struct Unit {
    rows: usize,
}

impl Unit {
    /// Shapes the registers of this thread.
    ///
    /// # Safety
    /// The unit is [`available`]; the thread calls [`release`](Self::release) before it shapes them again or is done.
    pub unsafe fn shape(rows: usize) -> Self {
        assert!((1..=ROWS).contains(&rows));
        // SAFETY: passed on.
        unsafe { shape(rows) };
        Unit { rows }
    }

    /// Gives the registers back.
    ///
    /// # Safety
    /// They were shaped by this thread.
    pub unsafe fn release(self) {
        // SAFETY: passed on.
        unsafe { release() };
    }

    /// Sets all sums to zero.
    ///
    /// # Safety
    /// The registers are shaped.
    #[inline(always)]
    pub unsafe fn clear(self) {
        // SAFETY: passed on.
        unsafe { clear() };
    }

    /// Adds products of one block of [`DEPTH`]: those of two parts, in step number `N` of [`STEPS`], which come in order. The last,
    /// of the first parts, may be done later as step number [`STEPS`], which loads both again. `a` are
    /// one or two tiles of rows, each `[part][ROWS][DEPTH]`, `b` one or two of columns beside each other,
    /// `[part][tile][DEPTH / 2][16 columns][2]`.
    ///
    /// # Safety
    /// The registers are shaped and were cleared, and the tiles are readable.
    #[inline(always)]
    pub unsafe fn step<const N: usize>(self, pair: Pair, a: [*const u32; 2], b: *const u32) {
        // SAFETY: passed on.
        unsafe { step::<N>(pair, a, b) };
    }

    /// Stores the sums, the rows of a second tile behind those of the first, `ld` floats apart.
    ///
    /// # Safety
    /// The registers are shaped, and the sums are writable.
    #[inline(always)]
    pub unsafe fn store(self, pair: Pair, c: *mut f32, ld: usize) {
        // SAFETY: passed on.
        unsafe { store(pair, [c, c.add(self.rows * ld)], ld) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
use absent::{asked, clear, release, shape, step, store};

/// Where there is no such unit nothing reaches it.
#[cfg(not(target_arch = "x86_64"))]
mod absent {
    pub(super) fn asked() -> bool {
        false
    }

    pub(super) unsafe fn shape(_: usize) {
        unreachable!("no matrix unit")
    }

    pub(super) unsafe fn release() {
        unreachable!("no matrix unit")
    }

    pub(super) unsafe fn clear() {
        unreachable!("no matrix unit")
    }

    pub(super) unsafe fn step<const N: usize>(_: super::Pair, _: [*const u32; 2], _: *const u32) {
        unreachable!("no matrix unit")
    }

    pub(super) unsafe fn store(_: super::Pair, _: [*mut f32; 2], _: usize) {
        unreachable!("no matrix unit")
    }
}
