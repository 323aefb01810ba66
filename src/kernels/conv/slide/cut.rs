//! How the work is cut: rows of output pixels into strips, and all of it into tiles.

use super::ConvSpec;
use super::blocks::{FetchKind, Layout};
use std::ops::Range;

/// The cuts of a row of output pixels.
pub(super) struct Strips {
    /// Pixels in each.
    pub(super) pixels: usize,
    /// Where each starts. The last one may overlap the one before.
    pub(super) starts: Vec<usize>,
    /// The words of [`Strip::valid`](super::strip::Strip::valid), `words` for each.
    pub(super) valid: Vec<u64>,
    pub(super) words: usize,
    /// Whether all of a strip's columns lie inside the image.
    pub(super) inside: Vec<bool>,
}

/// The cut of the work: `image × rows × blocks`.
pub(super) struct Tiling {
    pub(super) rows: usize,
    pub(super) row_tiles: usize,
    pub(super) chunks: Vec<Range<usize>>,
    /// Rows done for one block before the next block's turn.
    pub(super) sweep: usize,
    /// See [`Part`](super::Part).
    pub(super) ahead: bool,
}

/// Multiply-accumulates below which a tile is not worth handing to another thread: some 5 µs.
const TILE_WORK: usize = 1 << 18;

/// Bytes of input that stay in the second-level cache while the blocks pass over them.
const RESIDENT: usize = 1 << 17;

/// Bytes of a map that the second-level cache does not hold.
const FAR: usize = 1 << 20;

impl Strips {
    pub(super) fn new(spec: &ConvSpec, layout: &Layout) -> Strips {
        let (columns, width) = (spec.output.w, spec.input.w as isize);
        let (stride, dilation) = (spec.window.stride[1], spec.window.dilation[1]);
        let kw = spec.window.kernel[1];
        let widths: &[usize] = match (layout.general, layout.vectors, layout.wide) {
            (true, ..) => &[4, 1],
            (false, 1, true) if layout.fetch != FetchKind::Plain && stride == 1 => &[14, 7, 4],
            (false, ..) if layout.fetch == FetchKind::Plain && stride == 1 => &[8, 7, 6, 4],
            (false, ..) if layout.fetch == FetchKind::Plain => &[7, 6, 4],
            _ => &[7, 4],
        };
        // A strip costs its pixels and about two more for loading weights and the like.
        let cost = |p: usize| columns.div_ceil(p) * (p + 2);
        let pixels = *widths
            .iter()
            .filter(|&&p| p <= columns)
            .min_by_key(|&&p| cost(p))
            .expect("rows below 4 pixels take the general loop");
        let starts: Vec<usize> = (0..columns.div_ceil(pixels)).map(|i| (i * pixels).min(columns - pixels)).collect();
        let (mut valid, mut inside) = (Vec::new(), Vec::new());
        for &start in &starts {
            let first = (start * stride) as isize - spec.placed.before[1] as isize;
            let word = |bits: usize, at: &dyn Fn(usize) -> usize| {
                let is_inside = |&j: &usize| (0..width).contains(&(first + at(j) as isize));
                ((0..bits).filter(is_inside).fold(0u64, |word, j| word | 1 << j), (0..bits).all(|j| is_inside(&j)))
            };
            if layout.general {
                valid.extend((0..kw).map(|k| word(pixels, &|p| k * dilation + p * stride).0));
                inside.push(false);
            } else {
                let (bits, all) = word((pixels - 1) * stride + kw, &|j| j);
                valid.push(bits);
                inside.push(all);
            }
        }
        Strips { pixels, starts, valid, words: if layout.general { kw } else { 1 }, inside }
    }
}

impl Tiling {
    pub(super) fn new(spec: &ConvSpec, layout: &Layout) -> Tiling {
        let (n, rows) = (spec.output.n.max(1), spec.output.h);
        let per_image = spec.output.h * spec.output.w * spec.output.c * layout.steps * spec.window.taps();
        let wanted = (per_image / TILE_WORK).clamp(1, 64);
        // Rows first: the channels of a pixel share pages, and long runs of them are fetched ahead.
        let row_tiles = wanted.min(rows.div_ceil(4));
        let rows_each = rows.div_ceil(row_tiles);
        let row_tiles = rows.div_ceil(rows_each);
        let chunks = layout.chunks(wanted.min(16).div_ceil(row_tiles));
        let rows_read = rows_each * spec.window.stride[0] + spec.window.span(0);
        let resident = rows_read * spec.input.w * spec.input.c / chunks.len() * size_of::<f32>() <= RESIDENT;
        debug_assert!(n > 0);
        let ahead = size_of::<f32>() * spec.input.extent().max(spec.output.extent()) > FAR;
        Tiling { rows: rows_each, row_tiles, chunks, sweep: if resident { rows_each } else { 1 }, ahead }
    }
}
