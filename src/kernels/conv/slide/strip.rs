//! The hot loops: one strip of output pixels, one block of output channels.

use crate::simd::Simd;

/// How the operand of a step is read from an input pixel.
pub(super) trait Fetch: Copy + Send + Sync + 'static {
    /// Every lane gets the same channel, so vectors side by side share one operand.
    const SPLAT: bool;
    /// Lanes are shuffled as [`Strip::lanes`] says.
    const PERMUTE: bool;
}

/// One step: output channel = input channel.
#[derive(Clone, Copy)]
pub(super) struct Plain;
impl Fetch for Plain {
    const SPLAT: bool = false;
    const PERMUTE: bool = false;
}

/// As many steps as channels per group: step `s` gives each lane the `s`-th channel of its own group.
#[derive(Clone, Copy)]
pub(super) struct Permute;
impl Fetch for Permute {
    const SPLAT: bool = false;
    const PERMUTE: bool = true;
}

/// As many steps as channels per group: step `s` gives every lane channel `s`.
#[derive(Clone, Copy)]
pub(super) struct Broadcast;
impl Fetch for Broadcast {
    const SPLAT: bool = true;
    const PERMUTE: bool = false;
}

/// Where a strip lies. Pointers to input pixels may point outside the image; those are never read.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    /// The first column of the first row of taps that lies inside the image.
    pub(super) input: *const f32,
    /// Floats from one row of taps to the next, and from one pixel to the next.
    pub(super) row: usize,
    pub(super) pixel: usize,
    /// Rows of taps inside the image.
    pub(super) rows: usize,
    /// Fetches per tap.
    pub(super) steps: usize,
    /// `[row][step][column tap][vector][lane]`, from the first of these rows.
    pub(super) weights: *const f32,
    /// `[step][lane]`, only if lanes are permuted.
    pub(super) lanes: *const f32,
    /// `[vector][lane]`.
    pub(super) bias: *const f32,
    pub(super) output: *mut f32,
    /// Floats from one output pixel to the next.
    pub(super) out_pixel: usize,
    /// The least and the most a stored sum may be.
    pub(super) clamp: Option<[f32; 2]>,
    /// Bit `j`: input column `j` of the strip lies inside the image. The general loop has one word per column tap,
    /// whose bit `p` says so for output pixel `p`.
    pub(super) valid: *const u64,
}

/// Repeats `body` with the constant `$i` = each of the literals for which `$if` holds. Loops would do if the optimiser
/// could be relied on to unroll them (only then do the sums stay in registers); and a condition that is a constant
/// costs no compile time where it is false.
macro_rules! unrolled {
    (columns $i:ident if $if:expr => $body:block) => {
        unrolled!(@ $i $if, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    };
    (taps $i:ident if $if:expr => $body:block) => { unrolled!(@ $i $if, $body, 0 1 2 3 4) };
    (vectors $i:ident if $if:expr => $body:block) => { unrolled!(@ $i $if, $body, 0 1) };
    (@ $i:ident $if:expr, $body:block, $($literal:literal)*) => { $({
        const $i: usize = $literal;
        if const { $if } $body
    })* };
}

/// The pixel of the strip whose tap `k` is input column `j`, if it is one of `pixels`.
const fn pixel_of(j: usize, k: usize, stride: usize, pixels: usize) -> Option<usize> {
    if stride == 0 || j < k || !(j - k).is_multiple_of(stride) || (j - k) / stride >= pixels {
        None
    } else {
        Some((j - k) / stride)
    }
}

/// The pixel, where there is one. (A constant must have a value even where the code that reads it is left out.)
const fn index(pixel: Option<usize>) -> usize {
    match pixel {
        Some(p) => p,
        None => 0,
    }
}

/// The sums of `P` pixels × `NV` vectors for `KW` column taps at distance 1 and stride `ST`. Each input column is
/// fetched once per row and step and meets every tap that touches it while it is in a register.
///
/// With `BORDER`, columns outside the image are skipped; without, all are inside.
///
/// # Safety
/// The CPU has the instruction set; the strip's valid columns, weights, lanes and bias are readable, its output
/// writable over full vectors.
#[inline(always)]
pub(super) unsafe fn fixed<
    S: Simd,
    F: Fetch,
    const KW: usize,
    const ST: usize,
    const NV: usize,
    const P: usize,
    const BORDER: bool,
>(
    s: &Strip,
) {
    assert!((P - 1) * ST + KW <= 17, "a constant that the caller sees to");
    // SAFETY: the caller's promise covers every access; `wrapping` arithmetic may leave the image, reads do not.
    unsafe {
        let valid = if BORDER { *s.valid } else { 0 };
        let mut sums = [[S::zero(); P]; NV];
        for v in 0..NV {
            sums[v] = [S::load(s.bias.add(v * S::LANES)); P];
        }
        let (mut weights, mut row) = (s.weights, s.input);
        // Where a constant says that there is one step, there is no loop out of which the compiler could move the
        // columns, more of them than registers, and read them back from the stack.
        let steps = if F::SPLAT || F::PERMUTE { s.steps } else { 1 };
        for _ in 0..s.rows {
            for step in 0..steps {
                let lanes = if F::PERMUTE { S::load(s.lanes.add(step * S::LANES)) } else { S::zero() };
                let first = if F::SPLAT { row.wrapping_add(step) } else { row };
                let mut taps = [[S::zero(); KW]; NV];
                for v in 0..NV {
                    for k in 0..KW {
                        taps[v][k] = S::load(weights.add((k * NV + v) * S::LANES));
                    }
                }
                weights = weights.add(KW * NV * S::LANES);
                unrolled!(columns J if J < (P - 1) * ST + KW => {
                    if !BORDER || valid >> J & 1 != 0 {
                        let column = first.wrapping_add(J * s.pixel);
                        unrolled!(vectors V if V < NV => {
                            let x = if F::SPLAT { S::splat(*column) } else { S::load(column.add(V * S::LANES)) };
                            let x = if F::PERMUTE { S::permute(x, lanes) } else { x };
                            unrolled!(taps K if K < KW && pixel_of(J, K, ST, P).is_some() => {
                                let p = const { index(pixel_of(J, K, ST, P)) };
                                sums[V][p] = S::fma(x, taps[V][K], sums[V][p]);
                            });
                        });
                    }
                });
            }
            row = row.wrapping_add(s.row);
        }
        for v in 0..NV {
            for p in 0..P {
                S::store(s.output.add(p * s.out_pixel + v * S::LANES), clamp::<S>(sums[v][p], s.clamp));
            }
        }
    }
}

/// What only the general loop needs to know.
#[derive(Clone, Copy)]
pub(super) struct General {
    /// Column taps.
    pub(super) taps: usize,
    /// Floats from one column tap to the next, and from the input column of one output pixel to that of the next.
    pub(super) tap: usize,
    pub(super) stride: usize,
    /// Channels of an input pixel that may be read, and of an output pixel to write.
    pub(super) readable: usize,
    pub(super) writable: usize,
}

/// The sums of `P` pixels × one vector, for any window and for blocks that do not fill their vector.
///
/// # Safety
/// As for [`fixed`], but of each pixel only the channels in `g` need be readable and writable.
#[inline(always)]
pub(super) unsafe fn general<S: Simd, F: Fetch, const P: usize>(s: &Strip, g: &General) {
    // SAFETY: as in `fixed`; the masks keep to the channels of `g`.
    unsafe {
        let (readable, writable) = (S::mask(g.readable), S::mask(g.writable));
        let mut sums = [S::load(s.bias); P];
        let (mut weights, mut row) = (s.weights, s.input);
        for _ in 0..s.rows {
            for step in 0..s.steps {
                let lanes = if F::PERMUTE { S::load(s.lanes.add(step * S::LANES)) } else { S::zero() };
                let first = if F::SPLAT { row.wrapping_add(step) } else { row };
                for k in 0..g.taps {
                    let valid = *s.valid.add(k);
                    let tap = S::load(weights);
                    weights = weights.add(S::LANES);
                    for p in 0..P {
                        if valid >> p & 1 != 0 {
                            let column = first.wrapping_add(k * g.tap + p * g.stride);
                            let x = if F::SPLAT { S::splat(*column) } else { S::load_masked(column, readable) };
                            let x = if F::PERMUTE { S::permute(x, lanes) } else { x };
                            sums[p] = S::fma(x, tap, sums[p]);
                        }
                    }
                }
            }
            row = row.wrapping_add(s.row);
        }
        for p in 0..P {
            S::store_masked(s.output.add(p * s.out_pixel), clamp::<S>(sums[p], s.clamp), writable);
        }
    }
}

#[inline(always)]
unsafe fn clamp<S: Simd>(v: S::V, range: Option<[f32; 2]>) -> S::V {
    match range {
        None => v,
        // SAFETY: register arithmetic.
        Some([least, most]) => unsafe { S::min(S::splat(most), S::max(S::splat(least), v)) },
    }
}
