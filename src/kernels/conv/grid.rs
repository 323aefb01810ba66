//! How a convolution is cut into tiles: a grid of row blocks and panel groups, by shape alone.

use crate::kernels::Stripes;
use std::ops::Range;

/// A grid of tiles over `rows` output pixels and `panels` panels of output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    rows: usize,
    panels: usize,
    row_parts: usize,
    panel_parts: usize,
    /// Row blocks begin at multiples of this.
    unit: usize,
    /// Whether that is how a pass over the output is cut.
    striped: bool,
}

/// What the cut depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// Output pixels in the batch.
    pub(super) rows: usize,
    /// Panels of output channels.
    pub(super) panels: usize,
    /// Multiply-accumulates in all.
    pub(super) macs: usize,
    /// Bytes of packed weights.
    pub(super) weights: usize,
    /// Bytes of the activations read.
    pub(super) activations: usize,
    /// What preparing its rows costs every panel group, as if so many bytes were read.
    pub(super) prepared: usize,
    /// Most rows a tile may have.
    pub(super) most_rows: usize,
    /// Rows that stay together.
    pub(super) unit: usize,
}

/// About 20 µs of one core.
const MACS_PER_TILE: usize = 2_500_000;
/// About 20 µs of reading weights from memory.
const WEIGHTS_PER_TILE: usize = 256 << 10;
/// Activations of a tile should stay in the second cache.
const ACTIVATIONS_PER_TILE: usize = 512 << 10;
/// Fewer row blocks than this leave threads waiting for each other.
pub(super) const LEAST_STRIPES: usize = 8;
/// Where rows are prepared, tiles are so much larger, but there are at least so many.
const LARGE: usize = 4;
const FEW_TILES: usize = 4;
/// Rows that are prepared and multiplied at once.
const PREPARED_ROWS: usize = 32;
/// Fewer rows than this do not pay for the weights they pull in.
const LEAST_ROWS: usize = 48;

impl Grid {
    /// `row_parts` by `panel_parts` tiles.
    pub(super) fn of([rows, panels]: [usize; 2], [row_parts, panel_parts]: [usize; 2]) -> Self {
        debug_assert!(row_parts <= rows.max(1) && panel_parts <= panels);
        Grid { rows, panels, row_parts, panel_parts, unit: 1, striped: false }
    }

    /// As many tiles, cut at multiples of `unit` rows.
    pub(super) fn in_units(self, unit: usize) -> Self {
        Grid { unit, ..self }
    }

    /// Parts of rows and of panels.
    pub(super) fn parts(&self) -> [usize; 2] {
        [self.row_parts, self.panel_parts]
    }

    /// Enough tiles for every thread to have some, each worth starting; of the ways to cut that many, the one that
    /// reads the least: every row block reads all weights, every panel group all activations.
    pub(super) fn cut(work: Work) -> Self {
        let Work { rows, panels, macs, weights, activations, prepared, most_rows, unit } = work;
        let striped = unit > 1;
        let unit = if prepared > 0 && !striped { PREPARED_ROWS } else { unit };
        let worth = (macs / MACS_PER_TILE).max(weights / WEIGHTS_PER_TILE);
        let cap = if weights > 1 << 20 { 16 } else { 32 };
        let most_wanted = match prepared {
            0 => cap,
            // The first rows of a tile are prepared before anything else: a few large ones, for an even number of threads.
            _ => (worth / LARGE).clamp(FEW_TILES, cap).next_multiple_of(2),
        };
        let wanted = worth.clamp(1, most_wanted);
        let least = activations.div_ceil(ACTIVATIONS_PER_TILE).max(rows.div_ceil(most_rows)).max(1);
        let most = (rows / LEAST_ROWS).max(least).min(rows.div_ceil(unit).max(1));
        let cut = |panel_parts: usize| {
            let row_parts = wanted.div_ceil(panel_parts).clamp(least.min(most), most);
            // A few large tiles: as many for each of two threads.
            let odd = prepared > 0 && row_parts * panel_parts % 2 == 1 && row_parts < most;
            Grid { rows, panels, row_parts: row_parts + usize::from(odd), panel_parts, unit, striped }
        };
        let cost = |grid: &Grid| {
            let (tiles, few) = (grid.tiles(), prepared > 0 && grid.tiles() < 16);
            let missing = wanted.saturating_sub(tiles) + if few && tiles > 1 { tiles % 2 } else { 0 };
            (missing, grid.row_parts * weights + grid.panel_parts * (activations + prepared))
        };
        (1..=panels.min(4 * wanted)).map(cut).min_by_key(cost).expect("at least one panel")
    }

    pub(super) fn tiles(&self) -> usize {
        self.row_parts * self.panel_parts
    }

    /// Rows of the largest tile.
    pub(super) fn tile_rows(&self) -> usize {
        (self.rows.div_ceil(self.unit).div_ceil(self.row_parts) * self.unit).min(self.rows)
    }

    /// The rows and panels of tile `i`. Tiles that share weights follow each other.
    pub(super) fn tile(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let part = |i: usize, parts: usize, all: usize| i * all / parts..(i + 1) * all / parts;
        (self.stripe(i % self.row_parts), part(i / self.row_parts, self.panel_parts, self.panels))
    }

    /// The rows of row block `i`.
    fn stripe(&self, i: usize) -> Range<usize> {
        let (units, at) = (self.rows.div_ceil(self.unit), |row: usize| self.rows.min(row * self.unit));
        at(i * units / self.row_parts)..at((i + 1) * units / self.row_parts)
    }

    /// The row blocks, if they are cut in units and enough for a few threads.
    pub(super) fn stripes(&self) -> Option<Stripes> {
        let (units, count) = (self.rows.div_ceil(self.unit), self.row_parts);
        (self.striped && count >= LEAST_STRIPES).then_some(Stripes {
            units,
            pixels: self.unit,
            count,
            parts: self.panel_parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_once_and_suffice_for_many_threads() {
        // rows, panels, k, whether eight threads should all find work
        for (rows, panels, k, busy, unit) in [
            (3136, 4, 64, true, 1),
            (3136, 4, 64, true, 64),
            (49, 8, 4608, true, 1),
            (49, 8, 4608, true, 8),
            (1, 64, 25088, true, 1),
            (196, 4, 1024, true, 1),
            (1, 1, 8, false, 1),
        ] {
            let (weights, activations) = (panels * 64 * k * 4, rows * k * 4);
            let macs = rows * panels * 64 * k;
            let plain = Work { rows, panels, macs, weights, activations, prepared: 0, most_rows: rows, unit };
            assert_eq!(Grid::cut(plain).tiles() >= 8, busy, "{plain:?}");
            covers_once(plain);
            let prepared = Work { prepared: 3 * rows * k, ..plain };
            let tiles = Grid::cut(prepared).tiles();
            assert!(
                tiles <= Grid::cut(plain).tiles() && (!busy || tiles >= 4 && tiles.is_multiple_of(2)),
                "{prepared:?}: {tiles}"
            );
            covers_once(prepared);
        }
    }

    fn covers_once(work: Work) {
        let Work { rows, panels, unit, .. } = work;
        let grid = Grid::cut(work);
        let mut seen = vec![0; rows * panels];
        for i in 0..grid.tiles() {
            let (r, p) = grid.tile(i);
            assert!(!r.is_empty() && r.len() <= grid.tile_rows() && !p.is_empty() && r.start % unit == 0);
            for row in r {
                p.clone().for_each(|panel| seen[row * panels + panel] += 1);
            }
        }
        assert!(seen.iter().all(|&times| times == 1), "{work:?} {grid:?}");
    }
}
