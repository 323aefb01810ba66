//! Convolution as a matrix product over the image where it lies: pointers instead of copies.
//!
//! For every tile of output pixels a table of pointers is filled, one per tap and pixel (pixels in the padding get the
//! address of a row of zeros), and used for every panel of output channels.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::ConvSpec;
use super::grid::{Grid, Work};
use super::weights::{Direction, Form, GemmPacking, Packed, Packing, held};
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::light::Tiling;
use crate::kernels::{Io, Kernel, Map, Stripes, Weights};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Any convolution with groups that are wide enough to fill registers: window, stride, dilation and padding are free.
pub fn indirect(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Indirect::any(spec, isa)), weight, bias)
}

/// 1×1 with stride 1 and one group: a plain product.
pub fn pointwise(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Indirect::pointwise(spec, isa)), weight, bias)
}

/// For images of few channels: one tap is a row of the kernel, `kw · c` floats that lie together.
///
/// The input map is dense and already holds its padding: `placed.before` is zero, and the last window ends inside it.
/// One group, no dilation along the row.
pub fn rows(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(Box::new(Indirect::rows(spec, isa)), weight, bias)
}

/// How output pixels find their input.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taps {
    input: Map,
    output: Map,
    /// Taps down and across.
    pub(super) count: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    before: [usize; 2],
    /// Floats read at each tap.
    pub(super) run: usize,
}

impl Taps {
    /// One tap per kernel element, one group's channels at each.
    pub(super) fn of(spec: &ConvSpec) -> Self {
        Taps {
            input: spec.input,
            output: spec.output,
            count: spec.window.kernel,
            stride: spec.window.stride,
            dilation: spec.window.dilation,
            before: spec.placed.before,
            run: spec.group_inputs(),
        }
    }

    /// One tap per row of the kernel: the input is dense and holds its padding.
    pub(super) fn of_rows(spec: &ConvSpec) -> Self {
        let (window, placed) = (spec.window, spec.placed);
        assert!(spec.groups == 1 && spec.input.ld == spec.input.c);
        assert!(placed.before == [0, 0] && window.dilation[1] == 1);
        for axis in 0..2 {
            assert!((placed.output[axis] - 1) * window.stride[axis] + window.span(axis) <= placed.input[axis]);
        }
        Taps { count: [window.kernel[0], 1], run: window.kernel[1] * spec.input.c, ..Taps::of(spec) }
    }

    /// The extent of the product of a group.
    fn extent(&self, spec: &ConvSpec) -> Extent {
        Extent { taps: self.count[0] * self.count[1], k: self.run, n: spec.group_outputs() }
    }

    /// Writes the input address of every tap of the output pixels `rows` to `table[tap · stride + i]`, `zero` for those
    /// outside the image.
    ///
    /// # Safety
    /// `table` has room for `count · stride` pointers, `stride ≥ rows.len()`, `rows` are pixels of the output, and `input`
    /// points to the input map.
    pub(super) unsafe fn fill(
        &self,
        rows: Range<usize>,
        input: *const f32,
        zero: *const f32,
        table: *mut *const f32,
        stride: usize,
    ) {
        let (h, ow) = (self.input.h, self.output.w);
        let mut i = 0;
        // Output pixels of one row at a time: they step evenly through the input.
        while i < rows.len() {
            let pixel = rows.start + i;
            let (image, oy, ox) = (pixel / (self.output.h * ow), pixel / ow % self.output.h, pixel % ow);
            let count = (ow - ox).min(rows.len() - i);
            // Wrapping: a coordinate before the image becomes a huge one, and fails the same comparison as one after it.
            let y0 = (oy * self.stride[0]).wrapping_sub(self.before[0]);
            let x0 = (ox * self.stride[1]).wrapping_sub(self.before[1]);
            for ky in 0..self.count[0] {
                let y = y0.wrapping_add(ky * self.dilation[0]);
                let line = input.wrapping_add((image * h).wrapping_add(y).wrapping_mul(self.input.w * self.input.ld));
                for kx in 0..self.count[1] {
                    let x = x0.wrapping_add(kx * self.dilation[1]);
                    // SAFETY: the tap is one of `count`, and `i + count ≤ stride`.
                    unsafe {
                        let to = table.add((ky * self.count[1] + kx) * stride + i);
                        self.run(y < h, x, count, line, zero, to);
                    }
                }
            }
            i += count;
        }
    }

    /// The addresses of the input pixels `x`, `x + s`, … of a row, which lies in the image or not.
    ///
    /// # Safety
    /// `to` has room for `count` pointers.
    unsafe fn run(
        &self,
        inside: bool,
        x: usize,
        count: usize,
        line: *const f32,
        zero: *const f32,
        to: *mut *const f32,
    ) {
        let (w, ld, step) = (self.input.w, self.input.ld, self.stride[1]);
        // Pixels whose coordinate is below zero, and pixels whose coordinate is below the width.
        let below = |end: usize| (end.wrapping_sub(x) as isize).max(0).unsigned_abs().div_ceil(step).min(count);
        let (before, until) = if inside { (below(0), below(w)) } else { (0, 0) };
        // SAFETY: `before ≤ until ≤ count`.
        unsafe {
            (0..before).for_each(|i| *to.add(i) = zero);
            for i in before..until {
                *to.add(i) = line.wrapping_add(x.wrapping_add(i * step).wrapping_mul(ld));
            }
            (until..count).for_each(|i| *to.add(i) = zero);
        }
    }
}

/// A prepared convolution; the products of all groups share the table of pointers.
pub(super) struct Indirect {
    name: String,
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

/// Most rows of a tile: bounds the table of pointers.
const MOST_ROWS: usize = 512;
/// Most rows of a unit.
const MOST_UNIT: usize = 256;
/// Floats of a block of rows that are still in the second cache when it is done.
const STRIPE: usize = 128 << 10;

impl Indirect {
    /// See [`indirect`].
    pub(super) fn any(spec: ConvSpec, isa: Isa) -> Self {
        Indirect::new(format!("indirect_{}", spec.label()), spec, Taps::of(&spec), isa)
    }

    /// See [`pointwise`].
    pub(super) fn pointwise(spec: ConvSpec, isa: Isa) -> Self {
        assert!(spec.groups == 1 && spec.window.is_pointwise());
        Indirect::new("pointwise".into(), spec, Taps::of(&spec), isa)
    }

    /// See [`rows`].
    pub(super) fn rows(spec: ConvSpec, isa: Isa) -> Self {
        Indirect::new(format!("rows_{}", spec.label()), spec, Taps::of_rows(&spec), isa)
    }

    fn new(name: String, spec: ConvSpec, taps: Taps, isa: Isa) -> Self {
        let extent = taps.extent(&spec);
        let gemm = Gemm::fastest(extent, spec.epilogue.activation, spec.output.pixels(), isa);
        Indirect::of(name, spec, taps, gemm)
    }

    /// On the matrix unit, however small.
    #[cfg(test)]
    pub(super) fn split(spec: ConvSpec) -> Self {
        let taps = Taps::of(&spec);
        let gemm = Gemm::split(taps.extent(&spec), spec.epilogue.activation);
        Indirect::of("indirect".into(), spec, taps, gemm)
    }

    fn of(name: String, spec: ConvSpec, taps: Taps, gemm: Gemm) -> Self {
        let name = format!("{name}_{} {}", gemm.tile_name(), gemm.isa().name());
        let zero = AlignedBuf::zeros(spec.input.c);
        let grid = Indirect::grid(&spec, &gemm, [MOST_ROWS, 1]);
        Indirect { name, spec, taps, gemm, weights: Packed::Given, zero, grid }
    }

    fn grid(spec: &ConvSpec, gemm: &Gemm, [most_rows, unit]: [usize; 2]) -> Grid {
        let rows = spec.output.pixels();
        Grid::cut(Work {
            rows,
            panels: spec.groups * gemm.panels(),
            macs: rows * spec.output.c * spec.depth(),
            weights: spec.groups * gemm.packed_bytes(),
            activations: 4 * spec.input.c * spec.input.pixels(),
            // To split a number takes as long as three bytes of weights from memory.
            prepared: if gemm.is_split() { 3 * rows * spec.groups * spec.depth() } else { 0 },
            most_rows,
            unit,
        })
    }

    /// Floats of the table of pointers: two each, in whole cache lines.
    fn table(&self) -> usize {
        (2 * self.taps.count[0] * self.taps.count[1] * self.grid.tile_rows()).next_multiple_of(16)
    }
}

impl Form for Indirect {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        GemmPacking::boxed(&self.gemm, &self.spec, direction)
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }

    fn exactly(&mut self, direction: Direction) {
        // On the matrix unit gradients are exact enough as they are.
        if direction == Direction::Forward || !self.gemm.is_split() {
            self.gemm = self.gemm.clone().exactly();
        }
    }

    fn striped(&mut self) {
        let unit = Tiling::fill(self.spec.output.c);
        let unit = if unit <= MOST_UNIT { unit } else { 1 };
        let most_rows = (STRIPE / self.spec.output.c).clamp(unit, MOST_ROWS);
        self.grid = Indirect::grid(&self.spec, &self.gemm, [most_rows, unit]);
    }
}

/// The rows of `C` from pixel `row` and the first channel of `group`.
///
/// # Safety
/// `io` fits `spec`; `row` is a pixel of the output.
pub(super) unsafe fn target(spec: &ConvSpec, io: &Io, row: usize, group: usize) -> Target {
    let (ld, channel) = (spec.output.ld, group * spec.group_outputs());
    let soon = io.soon.map(|soon| soon.from(row, channel));
    // SAFETY: within the output map, and the residual's, which has the same pixels.
    unsafe {
        let c = io.output.add(row * ld + channel);
        match spec.epilogue.residual {
            None => Target { soon, ..Target::plain(c, ld) },
            Some(ld_residual) => {
                Target { c, ld, residual: io.inputs[1].add(row * ld_residual + channel), ld_residual, soon }
            }
        }
    }
}

impl Kernel for Indirect {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn tiles(&self) -> usize {
        if self.spec.output.pixels() == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.table() + self.gemm.scratch(self.grid.tile_rows())
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes() + 4 * self.zero.len()
    }

    fn stripes(&self) -> Option<Stripes> {
        self.grid.stripes()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (rows, panels) = self.grid.tile(tile);
        let (first, m, stride) = (rows.start, rows.len(), rows.len());
        let (table, scratch) = scratch.split_at_mut(self.table());
        let table = table.as_mut_ptr().cast::<*const f32>();
        // SAFETY: the scratch holds a pointer for every tap and row and is aligned to 64 bytes; `io` fits the maps.
        unsafe { self.taps.fill(rows, io.inputs[0], self.zero.as_ptr(), table, stride) };
        let (per_group, packed) = (self.gemm.panels(), self.weights.of(io));
        let mut panel = panels.start;
        while panel < panels.end {
            let group = panel / per_group;
            let until = panels.end.min((group + 1) * per_group);
            let rows = Rows { table, stride, skip: group * self.spec.group_inputs() };
            let range = panel - group * per_group..until - group * per_group;
            // SAFETY: the table was just filled; the group's channels exist behind every pointer and in the output; its
            // weights were packed.
            unsafe {
                let packed = packed.add(group * self.gemm.packed_len());
                self.gemm.run(packed, m, rows, range, target(&self.spec, io, first, group), scratch);
            }
            panel = until;
        }
    }
}
