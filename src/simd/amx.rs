//! The instructions of the matrix unit ([`tiles`](super::tiles)), which the standard library does not offer yet.
//!
//! Registers 0 to 3 hold sums, 4 and 5 rows, 6 and 7 columns. They keep their values between the functions here: the compiler
//! has no use for them and the system keeps them for the thread.

use super::tiles::{Pair, ROWS};
use std::arch::asm;

/// Whether the CPU has the unit and the system lets this process use it.
pub(super) fn asked() -> bool {
    has_unit() && granted()
}

#[allow(unused_unsafe, reason = "safe in later versions of the standard library")]
fn has_unit() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    // SAFETY: every CPU of this architecture has the instruction.
    let leaf = |leaf, sub| unsafe { __cpuid_count(leaf, sub) };
    leaf(0, 0).eax >= 7 && leaf(7, 0).edx & (BF16 | TILE) == BF16 | TILE
}

/// Asks Linux for the registers, which are large: threads that never use them need no room for them.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const REQUEST: i32 = 0x1023;
    const TILE_DATA: i32 = 18;
    // SAFETY: the call changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}

/// How the registers are shaped: as the CPU reads it.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Shapes the registers of this thread.
///
/// # Safety
/// The unit is available.
pub(super) unsafe fn shape(rows: usize) {
    let mut shape = Shape { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for register in 0..8 {
        shape.row_bytes[register] = 64;
        shape.rows[register] = if register < 6 { rows as u8 } else { ROWS as u8 };
    }
    // SAFETY: the shape is one that the CPU documents.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, readonly, preserves_flags)) };
}

/// Gives the registers of this thread back.
///
/// # Safety
/// The unit is available.
pub(super) unsafe fn release() {
    // SAFETY: nobody else uses them.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// Sets all sums to zero.
///
/// # Safety
/// The registers are shaped.
#[inline(always)]
pub(super) unsafe fn clear() {
    // SAFETY: registers that are declared.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// What loads tiles of rows and of columns, `$from` behind their first parts, and multiplies them.
macro_rules! step {
    ($a:ident, $b:ident, [$($rows:literal)*] $rows_from:literal, [$($columns:literal)*] $columns_from:literal,
     [$($multiply:literal)*]) => {
        asm!(
            $(concat!("tileloadd ", $rows, $rows_from),)*
            $(concat!("tileloadd ", $columns, $columns_from),)*
            $($multiply,)*
            "# not used by all: {a0} {a1} {b} {row}",
            a0 = in(reg) $a[0],
            a1 = in(reg) $a[1],
            b = in(reg) $b,
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly, preserves_flags),
        )
    };
}

/// The steps for one shape: from each to the next one side changes. `$second` and `$third` are where these parts of the columns lie.
macro_rules! steps {
    ($a:ident, $b:ident, $rows:tt, $columns:tt $second:literal $third:literal, $multiply:tt) => {
        match N {
            0 => step!($a, $b, $rows "]", $columns $third, $multiply),
            1 => step!($a, $b, [] "", $columns $second, $multiply),
            2 => step!($a, $b, $rows " + 1024]", [] "", $multiply),
            3 => step!($a, $b, [] "", $columns "]", $multiply),
            4 => step!($a, $b, $rows " + 2048]", [] "", $multiply),
            5 => step!($a, $b, $rows "]", [] "", $multiply),
            _ => step!($a, $b, $rows "]", $columns "]", $multiply),
        }
    };
}

/// Adds the products of two parts of one block.
///
/// # Safety
/// As [`Unit::step`](super::tiles::Unit::step).
#[inline(always)]
pub(super) unsafe fn step<const N: usize>(pair: Pair, a: [*const u32; 2], b: *const u32) {
    // SAFETY: passed on; every register written is declared.
    unsafe {
        match (pair.tall, pair.wide) {
            (true, true) => steps!(
                a, b,
                ["tmm4, [{a0} + {row}*1" "tmm5, [{a1} + {row}*1"],
                ["tmm6, [{b} + {row}*1" "tmm7, [{b} + {row}*1 + 1024"] " + 2048]" " + 4096]",
                ["tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"
                 "tdpbf16ps tmm2, tmm5, tmm6" "tdpbf16ps tmm3, tmm5, tmm7"]
            ),
            (true, false) => steps!(
                a, b,
                ["tmm4, [{a0} + {row}*1" "tmm5, [{a1} + {row}*1"],
                ["tmm6, [{b} + {row}*1"] " + 1024]" " + 2048]",
                ["tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm2, tmm5, tmm6"]
            ),
            (false, true) => steps!(
                a, b,
                ["tmm4, [{a0} + {row}*1"],
                ["tmm6, [{b} + {row}*1" "tmm7, [{b} + {row}*1 + 1024"] " + 2048]" " + 4096]",
                ["tdpbf16ps tmm0, tmm4, tmm6" "tdpbf16ps tmm1, tmm4, tmm7"]
            ),
            (false, false) => steps!(
                a, b,
                ["tmm4, [{a0} + {row}*1"],
                ["tmm6, [{b} + {row}*1"] " + 1024]" " + 2048]",
                ["tdpbf16ps tmm0, tmm4, tmm6"]
            ),
        }
    }
}

/// Stores the sums of each tile of rows.
///
/// # Safety
/// As [`Unit::store`](super::tiles::Unit::store).
#[inline(always)]
pub(super) unsafe fn store(pair: Pair, [first, second]: [*mut f32; 2], ld: usize) {
    // SAFETY: passed on; what is not there is not stored.
    unsafe {
        let row = 4 * ld;
        asm!("tilestored [{c} + {row}*1], tmm0", c = in(reg) first, row = in(reg) row, options(nostack, preserves_flags));
        if pair.wide {
            asm!("tilestored [{c} + {row}*1 + 64], tmm1", c = in(reg) first, row = in(reg) row, options(nostack, preserves_flags));
        }
        if pair.tall {
            asm!("tilestored [{c} + {row}*1], tmm2", c = in(reg) second, row = in(reg) row, options(nostack, preserves_flags));
        }
        if pair.tall && pair.wide {
            asm!("tilestored [{c} + {row}*1 + 64], tmm3", c = in(reg) second, row = in(reg) row, options(nostack, preserves_flags));
        }
    }
}
