//! How a product for the microkernels is cut: columns into panels, the sum into what fits the caches.

use super::{Extent, Panel, Piece, micro};
use crate::simd::Isa;
use std::ops::Range;

/// Cuts `n` columns into panels whose widths differ by one register at most.
pub(super) fn cut_panels(extent: Extent, isa: Isa) -> Vec<Panel> {
    let lanes = isa.lanes();
    let registers = extent.n.div_ceil(lanes);
    let count = registers.div_ceil(micro::max_vectors(isa));
    let mut weights = 0;
    // Rounded up, so that the first is as wide as any.
    let bounds = (0..=count).map(|i| (i * registers).div_ceil(count)).collect::<Vec<_>>();
    bounds
        .windows(2)
        .map(|b| {
            let (start, vectors) = (b[0] * lanes, b[1] - b[0]);
            let panel = Panel { start, len: (vectors * lanes).min(extent.n - start), vectors, weights };
            weights += extent.taps * extent.k * vectors * lanes;
            panel
        })
        .collect()
}

/// Bytes of a panel's weights that one sweep over the rows uses.
pub(super) const PIECE_BYTES: usize = 192 << 10;

/// Cuts the sum into pieces whose weights fit the cache: several taps, or part of one.
pub(super) fn cut_pieces(extent: Extent, width: usize) -> Vec<Piece> {
    let Extent { taps, k, .. } = extent;
    let budget = PIECE_BYTES / (4 * width);
    // A little over the budget is cheaper than another pass over C.
    if taps * k <= budget + budget / 2 {
        return vec![Piece { taps: 0..taps, k: 0..k }];
    }
    if k >= budget {
        let parts = (k / budget).max(1);
        let cut = |i: usize| (i * k / parts).next_multiple_of(4).min(k);
        return (0..taps)
            .flat_map(|tap| (0..parts).map(move |i| Piece { taps: tap..tap + 1, k: cut(i)..cut(i + 1) }))
            .collect();
    }
    let parts = taps.div_ceil(budget / k);
    (0..parts).map(|i| Piece { taps: i * taps / parts..(i + 1) * taps / parts, k: 0..k }).collect()
}

/// The first cache of this size holds what follows beside the rows in use and their sums.
pub(super) const ROOMY: usize = 48 << 10;
/// Bytes of weights that are multiplied with one tile of rows after the other.
pub(super) const EACH_BYTES: usize = 32 << 10;

/// Products that are summed one after the other where that is to be exact, up to twice as many: rounding errors grow with the
/// square root of the length.
const SUMMED: usize = 128;

/// Cuts the sum over k into parts that are summed by themselves.
pub(super) fn cut_exactly(k: usize) -> Vec<Range<usize>> {
    cut(k, (k / SUMMED).max(1))
}

/// Cuts the sum over k so that a panel's weights stay in the first cache from tile to tile, if that is large enough: then
/// what is fetched into the second does not wait behind them.
pub(super) fn cut_each(k: usize, row_bytes: usize, first_cache: usize) -> Vec<Range<usize>> {
    cut(k, if first_cache < ROOMY { 1 } else { (k * row_bytes).div_ceil(EACH_BYTES).max(1) })
}

fn cut(k: usize, parts: usize) -> Vec<Range<usize>> {
    let bound = |i: usize| (i * k / parts).next_multiple_of(4).min(k);
    (0..parts).map(|i| bound(i)..bound(i + 1)).collect()
}
