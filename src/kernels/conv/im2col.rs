//! Convolution by copying every window into a row first: for runs of channels too short to follow pointers.

#![allow(unsafe_code, reason = "gathers windows from raw maps and runs microkernels on them")]

use super::ConvSpec;
use super::grid::{Grid, Work};
use super::indirect::{Taps, target};
use super::weights::{Direction, Form, GemmPacking, Packed, Packing, held};
use crate::kernels::gemm::{Extent, Gemm, Rows};
use crate::kernels::{Io, Kernel, Weights};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;

/// Any convolution at all, any groups.
pub fn im2col(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Im2col::new(spec, isa)), weight, bias)
}

/// Floats of gathered windows per tile, so that they stay in the second cache.
const COLUMNS: usize = 64 << 10;

/// A prepared convolution. Tiles are cut between groups, never within one: its windows are gathered once.
pub(super) struct Im2col {
    spec: ConvSpec,
    taps: Taps,
    /// The product of every group.
    gemm: Gemm,
    /// Group after group.
    weights: Packed,
    /// What lies in the padding: zeros for every channel.
    zero: AlignedBuf,
    grid: Grid,
}

impl Im2col {
    pub(super) fn new(spec: ConvSpec, isa: Isa) -> Self {
        let extent = Extent { taps: 1, k: spec.depth(), n: spec.group_outputs() };
        let gemm = Gemm::new(extent, spec.epilogue.activation, isa);
        let rows = spec.output.pixels();
        let grid = Grid::cut(Work {
            rows,
            panels: spec.groups,
            macs: rows * spec.output.c * spec.depth(),
            weights: spec.groups * gemm.packed_bytes(),
            activations: 4 * spec.input.c * spec.input.pixels(),
            prepared: 0,
            most_rows: (COLUMNS / spec.depth()).clamp(24, 512),
            unit: 1,
        });
        let zero = AlignedBuf::zeros(spec.input.c);
        Im2col { spec, taps: Taps::of(&spec), gemm, weights: Packed::Given, zero, grid }
    }

    /// Floats that the pointers of a tile take, a whole number of cache lines: taps for every row, then the rows.
    fn table_floats(&self) -> usize {
        (2 * (self.spec.window.taps() + 1) * self.grid.tile_rows()).next_multiple_of(16)
    }
}

impl Form for Im2col {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        GemmPacking::boxed(&self.gemm, &self.spec, direction)
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }
}

impl Kernel for Im2col {
    fn name(&self) -> String {
        format!("im2col_{}_{} {}", self.spec.label(), self.gemm.tile_name(), self.gemm.isa().name())
    }

    fn tiles(&self) -> usize {
        if self.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.table_floats() + self.grid.tile_rows() * self.spec.depth()
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes() + 4 * self.zero.len()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (rows, groups) = self.grid.tile(tile);
        let (first, m) = (rows.start, rows.len());
        let (taps, channels, depth) = (self.spec.window.taps(), self.spec.group_inputs(), self.spec.depth());
        let (table, columns) = scratch.split_at_mut(self.table_floats());
        let (table, columns) = (table.as_mut_ptr().cast::<*const f32>(), columns.as_mut_ptr());
        // SAFETY: the table has room for a pointer per tap and row, then one per row; the columns for `depth` floats per
        // row; every pointer of the first table has all channels behind it.
        unsafe {
            self.taps.fill(rows, io.inputs[0], self.zero.as_ptr(), table, m);
            let gathered = table.add(taps * m);
            for i in 0..m {
                *gathered.add(i) = columns.add(i * depth);
            }
            for group in groups {
                for i in 0..m {
                    for tap in 0..taps {
                        let from = (*table.add(tap * m + i)).add(group * channels);
                        let to = columns.add(i * depth + tap * channels);
                        (0..channels).for_each(|c| *to.add(c) = *from.add(c));
                    }
                }
                let (gemm, packed) = (&self.gemm, self.weights.of(io));
                let rows = Rows { table: gathered, stride: m, skip: 0 };
                let packed = packed.add(group * gemm.packed_len());
                gemm.run(packed, m, rows, 0..gemm.panels(), target(&self.spec, io, first, group), &mut []);
            }
        }
    }
}
