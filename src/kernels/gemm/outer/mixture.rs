//! Columns of an outer product that are sums or differences of two maps, made while the first rows are multiplied.
//!
//! ```text
//! first tile of rows, for pixel:  w = x(a) ± x(b);  keep w;  c0 += A[pixel][0]·w; …
//! the others, for pixel:          w = what was kept; …
//! ```
//!
//! The loads and sums hide behind the products, and what is kept of a run stays in the first cache.

#![allow(clippy::needless_range_loop, reason = "registers are indexed by vector")]

use super::{Columns, Micro, Outers, RUN, Side, Tile};
use crate::kernels::gemm::micro::{Tiles, max_rows, max_vectors, table};
use crate::simd::{self, Isa, Simd};

/// How two maps make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// The first as it is.
    One,
    /// `a + b`.
    Sum,
    /// `a − b`.
    Difference,
}

/// What is done to every value before: `clamp(x · scale + shift)`, by channels of the map.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// One factor per channel.
    pub scale: *const f32,
    /// One summand per channel.
    pub shift: *const f32,
    /// What results are clamped to.
    pub range: [f32; 2],
}

impl Norm {
    /// Does it to `x`, a register of the channels from `channel` on.
    ///
    /// # Safety
    /// The factors and summands of these channels are readable, and the CPU has the instruction set of `S`.
    #[inline(always)]
    pub(in crate::kernels::gemm) unsafe fn apply<S: Simd>(&self, x: S::V, channel: usize) -> S::V {
        // SAFETY: as demanded.
        unsafe {
            let y = S::fma(x, S::load(self.scale.add(channel)), S::load(self.shift.add(channel)));
            S::min(S::splat(self.range[1]), S::max(S::splat(self.range[0]), y))
        }
    }
}

/// Columns made of two maps, in whole registers.
#[derive(Debug, Clone, Copy)]
pub struct Mixture {
    /// The maps.
    pub of: [Side; 2],
    /// How they are put together.
    pub join: Join,
    /// What is done to either before.
    pub norm: Option<Norm>,
    /// Pointers to [`RUN`] rows of memory, one after the other, in which what was made is kept.
    pub rows: *const *const f32,
}

/// Joins, without and with a norm.
pub(super) const KINDS: usize = 6;

impl Mixture {
    /// Nothing to be mixed.
    pub(super) const NONE: Mixture = Mixture {
        of: [Side { pixels: std::ptr::null(), skip: 0 }; 2],
        join: Join::One,
        norm: None,
        rows: std::ptr::null(),
    };

    /// Floats of a row that is kept.
    pub fn row(isa: Isa) -> usize {
        max_vectors(isa) * isa.lanes()
    }

    /// Floats of all rows that are kept.
    pub fn len(isa: Isa) -> usize {
        RUN * Self::row(isa)
    }

    /// Which of the microkernels makes it.
    pub(super) fn kind(&self) -> usize {
        self.join as usize * 2 + usize::from(self.norm.is_some())
    }

    /// The mixture from a pixel and a column on.
    ///
    /// # Safety
    /// The pixel exists.
    pub(super) unsafe fn from(self, pixel: usize, column: usize) -> Self {
        // SAFETY: as demanded.
        Mixture { of: self.of.map(|side| unsafe { side.from(pixel, column) }), ..self }
    }
}

/// Registers that are mixed.
struct Mixed<const JOIN: usize, const NORM: bool>;

const ONE: usize = Join::One as usize;
const SUM: usize = Join::Sum as usize;
const DIFFERENCE: usize = Join::Difference as usize;

impl<const JOIN: usize, const NORM: bool> Columns for Mixed<JOIN, NORM> {
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn of<S: Simd, const NRV: usize>(t: &Tile, pixel: usize, _: S::M) -> [S::V; NRV] {
        // SAFETY: the caller vouches for every pointer; a row has room for the widest tile.
        unsafe {
            let Mixture { of, norm, .. } = &*t.mixture;
            let value = |side: &Side, v: usize| {
                let channel = side.skip + v * S::LANES;
                let x = S::load((*side.pixels.add(pixel)).add(channel));
                match norm {
                    Some(norm) if NORM => norm.apply::<S>(x, channel),
                    _ => x,
                }
            };
            let mut w = [S::zero(); NRV];
            for v in 0..NRV {
                w[v] = value(&of[0], v);
                match JOIN {
                    SUM => w[v] = S::add(w[v], value(&of[1], v)),
                    DIFFERENCE => w[v] = S::sub(w[v], value(&of[1], v)),
                    _ => {}
                }
            }
            w
        }
    }

    #[inline(always)]
    unsafe fn keep<S: Simd, const NRV: usize>(t: &Tile, pixel: usize, w: [S::V; NRV]) {
        // SAFETY: passed on.
        unsafe {
            let to = (*(*t.mixture).rows.add(pixel)).cast_mut();
            for v in 0..NRV {
                S::store(to.add(v * S::LANES), w[v]);
            }
        }
    }
}

/// Rows of the tile that mixes: the most there are, less what a norm needs registers for.
const fn rows(isa: Isa, vectors: usize, norm: bool) -> usize {
    match (isa, vectors, norm) {
        (Isa::Avx512 | Isa::Amx | Isa::Neon, 4, true) => 4,
        (Isa::Avx512 | Isa::Amx | Isa::Neon, 3, true) => 7,
        (Isa::Avx2, 2, true) => 4,
        (Isa::Avx2, 1, true) => 6,
        _ => max_rows(isa, vectors),
    }
}

/// A microkernel that mixes, and its rows.
#[derive(Clone, Copy)]
pub(super) struct Mixer {
    pub(super) micro: Micro,
    pub(super) rows: usize,
}

fn mixer<const JOIN: usize, const NORM: bool>(isa: Isa, vectors: usize) -> Mixer {
    let rows = rows(isa, vectors, NORM);
    let size = (rows, vectors);
    let micro = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => {
            table! { Outers<Mixed<JOIN, NORM>>, size, simd::Avx512, 4: 4 6; 3: 7 9; 2: 12; 1: 8; }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => table! { Outers<Mixed<JOIN, NORM>>, size, simd::Avx2, 2: 4 6; 1: 6 8; },
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => table! { Outers<Mixed<JOIN, NORM>>, size, simd::Neon, 4: 4 6; 3: 7 9; 2: 12; 1: 8; },
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Isa::Simd128 => table! { Outers<Mixed<JOIN, NORM>>, size, simd::Simd128, 2: 4; 1: 6; },
        _ => table! { Outers<Mixed<JOIN, NORM>>, size, simd::Scalar, 2: 4; 1: 6; },
    };
    Mixer { micro, rows }
}

/// The microkernels of every kind, by registers.
pub(super) fn mixers(isa: Isa) -> [Vec<Mixer>; KINDS] {
    let of = |mixer: fn(Isa, usize) -> Mixer| (1..=max_vectors(isa)).map(|vectors| mixer(isa, vectors)).collect();
    [
        of(mixer::<ONE, false>),
        of(mixer::<ONE, true>),
        of(mixer::<SUM, false>),
        of(mixer::<SUM, true>),
        of(mixer::<DIFFERENCE, false>),
        of(mixer::<DIFFERENCE, true>),
    ]
}
