//! The innermost loops: one tile of `MR` pixels × `NRV` registers of output channels, held in registers over all of `k`.
//!
//! Written out for 2 pixels and 1 register:
//!
//! ```text
//! c0 = bias; c1 = bias                                  (or what an earlier piece of k left in memory)
//! for tap: for k:  w = B[tap][k];  c0 += A[tap][0][k]·w;  c1 += A[tap][1][k]·w
//! store(clamp(c0)), store(clamp(c1))
//! ```
//!
//! Every weight register is used `MR` times and every broadcast activation `NRV` times, so that loads hide behind the
//! multiplications; at least eight accumulators hide the latency of each. Activations are read where they lie, through
//! one pointer per pixel and tap: nothing is copied. `MR·NRV + NRV + 1` registers are live; one more and the compiler
//! spills (7×4 does on AVX-512), hence the limits in [`max_rows`].
//!
//! A tile ends with its last steps for a few rows at a time, so that what is stored hides behind what is multiplied: see
//! [`groups`].
//!
//! Where the last register has no more columns than half of its lanes (24 output channels are one and a half), only that half
//! is multiplied: cores that compute on wide registers in two goes do it in one. Sums are the same.

#![allow(clippy::needless_range_loop, reason = "register tiles are indexed by pixel and vector")]

use crate::kernels::Soon;
use crate::simd::{self, Isa, Routine, Simd};
use std::ops::Range;

/// What one call of a microkernel works on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// Pixel pointers: tap `t`, pixel `m` at `[t * rows_stride + m]`.
    pub(super) rows: *const *const f32,
    pub(super) rows_stride: usize,
    /// Pixel pointers of the tile that comes next, whose activations are fetched into the cache meanwhile; or null.
    pub(super) next: *const *const f32,
    /// Weights that will be used after these, in [`STREAMS`] that begin so many floats apart: so many parts of [`PARTS`] of a cache
    /// line are fetched for every four of `k`.
    pub(super) later: *const f32,
    pub(super) later_apart: usize,
    pub(super) later_parts: usize,
    /// The output and the residual, if there is one, of a tile to come, which are fetched too: so many cache lines of their
    /// columns for every [`BLOCK`] of `k`.
    pub(super) below: [*const f32; 2],
    pub(super) columns: usize,
    /// What is read of the same rows and columns when all of them are done, if anything: fetched too, but not as near.
    pub(super) soon: [Soon; 2],
    /// Floats to skip behind every pointer.
    pub(super) skip: usize,
    /// One at least.
    pub(super) taps: usize,
    /// Floats read behind every pointer.
    pub(super) k: usize,
    /// Zero, which the compiler cannot know: see where it is used.
    pub(super) again: usize,
    /// `[taps · k][NRV · LANES]` weights, 64-byte aligned.
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) ldc: usize,
    /// Lanes of the last register that exist in `c`.
    pub(super) last_lanes: usize,
    /// What the sums start from: `NRV · LANES` floats, or null to continue from `c`.
    pub(super) bias: *const f32,
    /// Whether what lies in `c` is added last: sums of pieces err less than one long sum.
    pub(super) adds: bool,
    /// Added to the bias, laid out as `c` with its own stride; may be null, and is not read when `bias` is null.
    pub(super) residual: *const f32,
    pub(super) ld_residual: usize,
    /// Results are clamped to this range.
    pub(super) range: [f32; 2],
}

impl Tile {
    /// No rows yet, nothing fetched, nothing added, no clamp: what most tiles have in common.
    pub(super) const BLANK: Tile = Tile {
        rows: std::ptr::null(),
        rows_stride: 0,
        next: std::ptr::null(),
        later: std::ptr::null(),
        later_apart: 0,
        later_parts: 0,
        below: [std::ptr::null(); 2],
        columns: 0,
        soon: [Soon::NONE; 2],
        skip: 0,
        taps: 1,
        k: 0,
        again: 0,
        b: std::ptr::null(),
        c: std::ptr::null_mut(),
        ldc: 0,
        last_lanes: 0,
        bias: std::ptr::null(),
        adds: false,
        residual: std::ptr::null(),
        ld_residual: 0,
        range: [f32::NEG_INFINITY, f32::INFINITY],
    };
}

/// A microkernel.
pub(super) type Micro = unsafe fn(&Tile);

/// The routine for one tile size. If `HALF`, the lower half of the last register is enough.
struct Kernel<const MR: usize, const NRV: usize, const HALF: bool>;

impl<const MR: usize, const NRV: usize, const HALF: bool> Routine for Kernel<MR, NRV, HALF> {
    type Args = Tile;

    #[inline(always)]
    unsafe fn run<S: Simd>(t: &Tile) {
        // SAFETY: the caller of the microkernel vouches for every pointer of the tile.
        unsafe {
            let last = S::mask(t.last_lanes);
            let mut acc = start::<S, MR, NRV>(t, last);
            let mut b = t.b;
            let (mut later, mut due) = (t.later, 0);
            let mut a = [std::ptr::null(); MR];
            let body = t.k - t.k.min(last_steps(MR, NRV));
            for tap in 0..t.taps {
                for m in 0..MR {
                    a[m] = (*t.rows.add(tap * t.rows_stride + m)).add(t.skip);
                }
                let end = if tap + 1 < t.taps { t.k } else { body };
                let mut k = 0;
                while k < end {
                    let stop = end.min(k + BLOCK);
                    fetch_next::<S, MR, NRV>(t, tap, k);
                    if S::LANES < LINE {
                        later = fetch_later::<S>(t, later, &mut due, (stop - k) / 4);
                    }
                    while k + 4 <= stop {
                        if S::LANES >= LINE {
                            later = fetch_later::<S>(t, later, &mut due, 1);
                        }
                        for step in 0..4 {
                            let b = b.add(step * NRV * S::LANES);
                            accumulate::<S, MR, NRV, HALF, true>(&mut acc, [0, MR], &a, step, b, t.again);
                        }
                        k += 4;
                        b = b.add(4 * NRV * S::LANES);
                        a.iter_mut().for_each(|a| *a = a.add(4));
                    }
                    while k < stop {
                        accumulate::<S, MR, NRV, HALF, true>(&mut acc, [0, MR], &a, 0, b, t.again);
                        k += 1;
                        b = b.add(NRV * S::LANES);
                        a.iter_mut().for_each(|a| *a = a.add(1));
                    }
                }
            }
            finish::<S, MR, NRV, HALF>(t, body, last, const { group(0, MR, NRV) }, &mut acc, &a, b);
            finish::<S, MR, NRV, HALF>(t, body, last, const { group(1, MR, NRV) }, &mut acc, &a, b);
            finish::<S, MR, NRV, HALF>(t, body, last, const { group(2, MR, NRV) }, &mut acc, &a, b);
        }
    }
}

/// Into how many groups the rows of a tile fall at its end: the last steps are taken by one group at a time, whose results are
/// stored while the next multiplies. Multiply-adds and stores share ports on Zen 4, where all stores of a tile in a row keep
/// multiply-adds waiting. As many registers make a group as hide the latency of each.
pub(super) const fn groups(rows: usize, vectors: usize) -> usize {
    if rows * vectors < 16 { 1 } else { rows * vectors / 8 }
}

/// Most groups of a tile.
const GROUPS: usize = 3;

/// The first row of a group and one past its last; no rows if there are not so many groups.
pub(super) const fn group(number: usize, rows: usize, vectors: usize) -> [usize; 2] {
    assert!(groups(rows, vectors) <= GROUPS, "a tile has more groups than it finishes");
    let size = rows.div_ceil(groups(rows, vectors));
    let (first, end) = (number * size, (number + 1) * size);
    [if first < rows { first } else { rows }, if end < rows { end } else { rows }]
}

/// The steps that groups take one after the other: none if there is one group.
pub(super) const fn last_steps(rows: usize, vectors: usize) -> usize {
    if groups(rows, vectors) == 1 { 0 } else { LAST }
}

/// So many steps of one group take longer than the stores of another.
const LAST: usize = 4;

/// How often a tile of so many rows and registers fetches weights, which it does for every four of `k`, and what tiles to come will
/// touch, for every [`BLOCK`]: not in its last steps.
pub(super) fn fetches([rows, vectors]: [usize; 2], taps: usize, k: usize) -> [usize; 2] {
    let body = k - k.min(last_steps(rows, vectors));
    let others = taps.saturating_sub(1);
    [others * (k / 4) + body / 4, others * k.div_ceil(BLOCK) + body.div_ceil(BLOCK)]
}

/// Steps of k after which the next of what tiles to come will touch is fetched.
const BLOCK: usize = 16;

/// Fetches weights that will be used later, for so many times four steps: after every four where these take long, of wide
/// registers; after every [`BLOCK`] of narrow ones.
#[inline(always)]
unsafe fn fetch_later<S: Simd>(t: &Tile, mut later: *const f32, due: &mut usize, fours: usize) -> *const f32 {
    *due += fours * t.later_parts;
    while *due >= STREAMS * PARTS {
        for stream in 0..STREAMS {
            // SAFETY: as in `Kernel::run`.
            unsafe { S::prefetch_far(later.wrapping_add(stream * t.later_apart)) };
        }
        later = later.wrapping_add(LINE);
        *due -= STREAMS * PARTS;
    }
    later
}

/// Fetches what tiles to come will touch, spread over the steps of k: activations, and for every [`BLOCK`] of k some columns
/// of the residual and of the output, where a store that misses the cache holds up those behind it.
#[inline(always)]
unsafe fn fetch_next<S: Simd, const MR: usize, const NRV: usize>(t: &Tile, tap: usize, k: usize) {
    // SAFETY: as in `Kernel::run`; prefetching is harmless at any address.
    unsafe {
        // What is read here the compiler must not read before the first product and keep on the stack.
        let t = if MR > 2 { &*std::hint::black_box(std::ptr::from_ref(t)) } else { t };
        if !t.next.is_null() {
            for m in 0..MR {
                S::prefetch((*t.next.add(m)).wrapping_add(t.skip + k));
            }
        }
        let lines = || {
            let first = (tap * t.k.div_ceil(BLOCK) + k / BLOCK) * t.columns;
            first..lines(NRV, S::LANES).min(first + t.columns)
        };
        // Tiles of narrow registers are small: what they would fetch of the output costs as much as it saves.
        if S::LANES >= LINE {
            for line in lines() {
                fetch_rows::<S, MR>(t.below[0].wrapping_add(line * LINE), t.ldc);
                if !t.below[1].is_null() {
                    fetch_rows::<S, MR>(t.below[1].wrapping_add(line * LINE), t.ld_residual);
                }
            }
        }
        if !t.soon[0].at.is_null() {
            fetch_soon::<S>(t, lines(), MR + t.again);
        }
    }
}

/// Cache lines that so many registers of columns take.
pub(super) const fn lines(vectors: usize, lanes: usize) -> usize {
    (vectors * lanes).div_ceil(LINE)
}

/// Fetches a line of every row.
#[inline(always)]
unsafe fn fetch_rows<S: Simd, const MR: usize>(mut at: *const f32, ld: usize) {
    for _ in 0..MR {
        // SAFETY: as in `Kernel::run`.
        unsafe { S::prefetch(at) };
        at = at.wrapping_add(ld);
    }
}

/// Fetches lines of every row of what is read soon. The compiler must not know how many rows there are: it would unroll the loop
/// and compute the address of each before the first product.
#[inline(always)]
unsafe fn fetch_soon<S: Simd>(t: &Tile, lines: Range<usize>, rows: usize) {
    for soon in t.soon.into_iter().filter(|soon| !soon.at.is_null()) {
        for line in lines.clone() {
            let mut at = soon.at.wrapping_add(line * LINE);
            for _ in 0..rows {
                // SAFETY: as in `Kernel::run`.
                unsafe { S::prefetch_far(at) };
                at = at.wrapping_add(soon.ld);
            }
        }
    }
}

/// One step of k for the rows between `first` and `end`: `acc[m][v] += a[m][k] · b[v]`. If it `FETCH`es, weights further on are
/// on their way.
#[inline(always)]
unsafe fn accumulate<S: Simd, const MR: usize, const NRV: usize, const HALF: bool, const FETCH: bool>(
    acc: &mut [[S::V; NRV]; MR],
    [first, end]: [usize; 2],
    a: &[*const f32; MR],
    k: usize,
    b: *const f32,
    again: usize,
) {
    // SAFETY: as in `Kernel::run`.
    unsafe {
        let mut w = [S::zero(); NRV];
        for v in 0..NRV {
            w[v] = S::load(b.add(v * S::LANES));
            // One or two rows read each weight from memory once, in order: hints only slow that down.
            if FETCH && MR > 2 && (v * S::LANES).is_multiple_of(LINE) {
                S::prefetch(b.add(v * S::LANES).wrapping_add(PREFETCH));
            }
        }
        for m in first..end {
            let x = S::splat(*a[m].add(k));
            for v in 0..NRV {
                if HALF && v + 1 == NRV {
                    acc[m][v] = S::fma_low(*a[m].add(again + k), w[v], acc[m][v]);
                } else {
                    acc[m][v] = S::fma(x, w[v], acc[m][v]);
                }
            }
        }
    }
}

/// Floats ahead of the weights in use that are fetched into the first cache.
const PREFETCH: usize = 512;

/// Fractions of a cache line.
pub(super) const PARTS: usize = 16;

/// Streams that memory is read in: of one the hardware fetches too few lines at a time. A core of an Emerald Rapids reads 9.4 GB/s
/// in one stream, 11.6 in four, 13.5 in four that are fetched 1 KB ahead; where all of it is fetched long before, 8.6 and 11.1.
pub(super) const STREAMS: usize = 4;

/// Floats of a cache line.
pub(super) const LINE: usize = 16;

/// The accumulators before the first product.
#[inline(always)]
unsafe fn start<S: Simd, const MR: usize, const NRV: usize>(t: &Tile, last: S::M) -> [[S::V; NRV]; MR] {
    // SAFETY: as in `Kernel::run`.
    unsafe {
        let mut acc = [[S::zero(); NRV]; MR];
        if !t.bias.is_null() {
            for v in 0..NRV {
                let bias = S::load(t.bias.add(v * S::LANES));
                for row in &mut acc {
                    row[v] = bias;
                }
            }
            if !t.residual.is_null() {
                for m in 0..MR {
                    for v in 0..NRV {
                        let at = t.residual.add(m * t.ld_residual + v * S::LANES);
                        let r = if v + 1 < NRV { S::load(at) } else { S::load_masked(at, last) };
                        acc[m][v] = S::add(acc[m][v], r);
                    }
                }
            }
        } else {
            for m in 0..MR {
                for v in 0..NRV {
                    let at = t.c.add(m * t.ldc + v * S::LANES);
                    acc[m][v] = if v + 1 < NRV { S::load(at) } else { S::load_masked(at, last) };
                }
            }
        }
        acc
    }
}

/// The last steps of k for the rows between `first` and `end`, which are clamped and stored.
#[inline(always)]
unsafe fn finish<S: Simd, const MR: usize, const NRV: usize, const HALF: bool>(
    t: &Tile,
    body: usize,
    last: S::M,
    [first, end]: [usize; 2],
    acc: &mut [[S::V; NRV]; MR],
    a: &[*const f32; MR],
    mut b: *const f32,
) {
    if first == end {
        return;
    }
    // SAFETY: as in `Kernel::run`.
    unsafe {
        for k in 0..t.k - body {
            accumulate::<S, MR, NRV, HALF, false>(acc, [first, end], a, k, b, t.again);
            b = b.add(NRV * S::LANES);
        }
        if t.adds {
            for m in first..end {
                for v in 0..NRV {
                    let at = t.c.add(m * t.ldc + v * S::LANES);
                    let before = if v + 1 < NRV { S::load(at) } else { S::load_masked(at, last) };
                    acc[m][v] = S::add(acc[m][v], before);
                }
            }
        }
        if t.range[0] != f32::NEG_INFINITY {
            let least = S::splat(t.range[0]);
            acc[first..end].as_flattened_mut().iter_mut().for_each(|v| *v = S::max(least, *v));
        }
        if t.range[1] != f32::INFINITY {
            let most = S::splat(t.range[1]);
            acc[first..end].as_flattened_mut().iter_mut().for_each(|v| *v = S::min(most, *v));
        }
        let whole = t.last_lanes == S::LANES;
        for m in first..end {
            for v in 0..NRV {
                let at = t.c.add(m * t.ldc + v * S::LANES);
                if v + 1 < NRV || whole {
                    S::store(at, acc[m][v]);
                } else {
                    S::store_masked(at, acc[m][v], last);
                }
            }
        }
    }
}

/// Most registers of output channels a tile has.
pub(super) const fn max_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 | Isa::Amx | Isa::Neon => 4,
        Isa::Avx2 | Isa::Simd128 | Isa::Scalar => 2,
    }
}

/// Most pixels of a tile `vectors` registers wide.
pub(super) const fn max_rows(isa: Isa, vectors: usize) -> usize {
    match (isa, vectors) {
        (Isa::Avx512 | Isa::Amx | Isa::Neon, 4) => 6,
        (Isa::Avx512 | Isa::Amx | Isa::Neon, 3) => 9,
        (Isa::Avx512 | Isa::Amx | Isa::Neon, 2) => 12,
        (Isa::Avx512 | Isa::Amx | Isa::Neon, _) => 8,
        (Isa::Avx2, 2) => 6,
        (Isa::Avx2, _) => 8,
        (Isa::Scalar | Isa::Simd128, 2) => 4,
        (Isa::Scalar | Isa::Simd128, _) => 6,
    }
}

/// A family of routines, one for each size of tile.
pub(super) trait Tiles {
    /// What they work on.
    type Args;
    /// The one for `MR × NRV`.
    type Of<const MR: usize, const NRV: usize>: Routine<Args = Self::Args>;
}

/// The tiles of the matrix product.
struct Products;

impl Tiles for Products {
    type Args = Tile;
    type Of<const MR: usize, const NRV: usize> = Kernel<MR, NRV, false>;
}

/// Those that compute half of the last register.
struct Halved;

impl Tiles for Halved {
    type Args = Tile;
    type Of<const MR: usize, const NRV: usize> = Kernel<MR, NRV, true>;
}

/// The microkernel for `rows × vectors`, within the limits above, where the last register has so many columns.
pub(super) fn micro(isa: Isa, rows: usize, vectors: usize, last_lanes: usize) -> Micro {
    if 2 * last_lanes <= isa.lanes() && has_halves(isa) {
        routine::<Halved>(isa, rows, vectors)
    } else {
        routine::<Products>(isa, rows, vectors)
    }
}

/// Whether there are microkernels that compute half of the last register.
const fn has_halves(isa: Isa) -> bool {
    matches!(isa, Isa::Avx512 | Isa::Amx)
}

/// A routine of a family, of those that a table lists.
macro_rules! table {
    ($family:ty, $size:expr, $isa:ty, $($vectors:literal: $($rows:literal)*;)*) => {
        match $size {
            $($(($rows, $vectors) => $crate::simd::routine::<$isa, <$family as Tiles>::Of<$rows, $vectors>>(),)*)*
            (rows, vectors) => unreachable!("no {rows}×{vectors} tile"),
        }
    };
}

pub(super) use table;

/// The routine of a family for `rows × vectors`, within the limits above.
pub(super) fn routine<T: Tiles>(isa: Isa, rows: usize, vectors: usize) -> unsafe fn(&T::Args) {
    let size = (rows, vectors);
    /// For instruction sets of 32 registers.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    macro_rules! large_table {
        ($isa:ty) => {
            table! {
                T, size, $isa,
                4: 1 2 3 4 5 6;
                3: 1 2 3 4 5 6 7 8 9;
                2: 1 2 3 4 5 6 7 8 9 10 11 12;
                1: 1 2 3 4 5 6 7 8;
            }
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => large_table!(simd::Avx512),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => table! { T, size, simd::Avx2, 2: 1 2 3 4 5 6; 1: 1 2 3 4 5 6 7 8; },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => large_table!(simd::Neon),
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Isa::Simd128 => table! { T, size, simd::Simd128, 2: 1 2 3 4; 1: 1 2 3 4 5 6; },
        _ => table! { T, size, simd::Scalar, 2: 1 2 3 4; 1: 1 2 3 4 5 6; },
    }
}
