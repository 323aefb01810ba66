//! Convolution as a matrix product over the image where it lies: pointers instead of copies.
//!
//! For every tile of output pixels a table of pointers is filled, one per tap and pixel (pixels in the padding get the
//! address of a row of zeros), and used for every panel of output channels.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::ConvSpec;
use super::grid::{Grid, Work};
use crate::kernels::gemm::{EmptyPanel, Extent, Gemm, Rows, Target};
use crate::kernels::weights::{Weights, fill, transpose};
use crate::kernels::{Io, Kernel, Map};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Any convolution with groups that are wide enough to fill registers: window, stride, dilation and padding are free.
pub fn indirect(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    let name = format!("indirect_{}", spec.label());
    Box::new(Indirect::new(name, spec, Taps::of(&spec), weight, bias, isa))
}

/// 1×1 with stride 1 and one group: a plain product.
pub fn pointwise(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    assert!(spec.groups == 1 && spec.window.is_pointwise());
    Box::new(Indirect::new("pointwise".into(), spec, Taps::of(&spec), weight, bias, isa))
}

/// For images of few channels: one tap is a row of the kernel, `kw · c` floats that lie together.
///
/// The input map is dense and already holds its padding: `placed.before` is zero, and the last window ends inside it.
/// One group, no dilation along the row.
pub fn rows(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    let (window, placed) = (spec.window, spec.placed);
    assert!(spec.groups == 1 && spec.input.ld == spec.input.c && placed.before == [0, 0] && window.dilation[1] == 1);
    for axis in 0..2 {
        assert!((placed.output[axis] - 1) * window.stride[axis] + window.span(axis) <= placed.input[axis]);
    }
    let taps = Taps { count: [window.kernel[0], 1], run: window.kernel[1] * spec.input.c, ..Taps::of(&spec) };
    Box::new(Indirect::new(format!("rows_{}", spec.label()), spec, taps, weight, bias, isa))
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
    run: usize,
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
        let Map { h, w, ld, .. } = self.input;
        let (oh, ow) = (self.output.h, self.output.w);
        let (mut image, mut oy, mut ox) = (rows.start / (oh * ow), rows.start / ow % oh, rows.start % ow);
        for i in 0..rows.len() {
            // Wrapping: a coordinate before the image becomes a huge one, and fails the same comparison as one after it.
            let y0 = (oy * self.stride[0]).wrapping_sub(self.before[0]);
            let x0 = (ox * self.stride[1]).wrapping_sub(self.before[1]);
            let mut tap = 0;
            for ky in 0..self.count[0] {
                let y = y0.wrapping_add(ky * self.dilation[0]);
                let line = input.wrapping_add((image * h).wrapping_add(y).wrapping_mul(w * ld));
                for kx in 0..self.count[1] {
                    let x = x0.wrapping_add(kx * self.dilation[1]);
                    let at = if y < h && x < w { line.wrapping_add(x * ld) } else { zero };
                    // SAFETY: `tap < count` and `i < stride`.
                    unsafe { *table.add(tap * stride + i) = at };
                    tap += 1;
                }
            }
            ox += 1;
            if ox == ow {
                (ox, oy) = (0, oy + 1);
                if oy == oh {
                    (oy, image) = (0, image + 1);
                }
            }
        }
    }
}

/// A prepared convolution; the products of all groups share the table of pointers.
struct Indirect {
    name: String,
    spec: ConvSpec,
    taps: Taps,
    /// One per group.
    gemms: Vec<Gemm>,
    /// What lies in the padding: zeros for every channel.
    zero: AlignedBuf,
    grid: Grid,
}

/// Most rows of a tile: bounds the table of pointers.
const MOST_ROWS: usize = 512;

impl Indirect {
    fn new(name: String, spec: ConvSpec, taps: Taps, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Self {
        let count = taps.count[0] * taps.count[1];
        let extent = Extent { taps: count, k: taps.run, n: spec.group_outputs() };
        let gemms = pack_groups(&spec, extent, weight, bias, isa);
        let rows = spec.output.pixels();
        let work = Work {
            rows,
            panels: spec.groups * gemms[0].panels(),
            macs: rows * spec.output.c * spec.depth(),
            weights: gemms.iter().map(Gemm::resident_bytes).sum(),
            activations: 4 * spec.input.c * spec.input.pixels(),
            most_rows: MOST_ROWS,
        };
        let name = format!("{name}_{} {}", gemms[0].tile_name(), isa.name());
        Indirect { name, spec, taps, gemms, zero: AlignedBuf::zeros(spec.input.c), grid: Grid::cut(work) }
    }
}

/// Packs the weights of every group: tap `t`, position `k` of the run.
pub(super) fn pack_groups(
    spec: &ConvSpec,
    extent: Extent,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    isa: Isa,
) -> Vec<Gemm> {
    let (channels, taps, outputs) = (spec.group_inputs(), spec.window.taps(), spec.group_outputs());
    let depth = channels * taps;
    // Runs longer than the channels continue with the next tap of the same kernel row.
    assert_eq!(extent.taps * extent.k, depth);
    (0..spec.groups)
        .map(|group| {
            let pack = |panels: Vec<EmptyPanel<'_>>| {
                fill(weight, [group * outputs, depth], panels, |values, first, panel| {
                    transpose(values, [channels, taps], first, panel);
                });
            };
            let bias = bias.map(|b| &b[group * outputs..][..outputs]);
            Gemm::packed(extent, pack, bias, spec.epilogue.activation, isa)
        })
        .collect()
}

/// The rows of `C` from pixel `row` and the first channel of `group`.
///
/// # Safety
/// `io` fits `spec`; `row` is a pixel of the output.
pub(super) unsafe fn target(spec: &ConvSpec, io: &Io, row: usize, group: usize) -> Target {
    let (ld, channel) = (spec.output.ld, group * spec.group_outputs());
    // SAFETY: within the output map, and the residual's, which has the same pixels.
    unsafe {
        let c = io.output.add(row * ld + channel);
        match spec.epilogue.residual {
            None => Target::plain(c, ld),
            Some(ld_residual) => Target { c, ld, residual: io.inputs[1].add(row * ld_residual + channel), ld_residual },
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
        // Pointers take two floats each.
        2 * self.taps.count[0] * self.taps.count[1] * self.grid.tile_rows()
    }

    fn resident_bytes(&self) -> usize {
        self.gemms.iter().map(Gemm::resident_bytes).sum::<usize>() + 4 * self.zero.len()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        let (rows, panels) = self.grid.tile(tile);
        let (first, m, stride) = (rows.start, rows.len(), rows.len());
        let table = scratch.as_mut_ptr().cast::<*const f32>();
        // SAFETY: the scratch holds a pointer for every tap and row and is aligned to 64 bytes; `io` fits the maps.
        unsafe { self.taps.fill(rows, io.inputs[0], self.zero.as_ptr(), table, stride) };
        let per_group = self.gemms[0].panels();
        let mut panel = panels.start;
        while panel < panels.end {
            let group = panel / per_group;
            let until = panels.end.min((group + 1) * per_group);
            let rows = Rows { table, stride, skip: group * self.spec.group_inputs() };
            let range = panel - group * per_group..until - group * per_group;
            // SAFETY: the table was just filled; the group's channels exist behind every pointer and in the output.
            unsafe { self.gemms[group].run(m, rows, range, target(&self.spec, io, first, group)) };
            panel = until;
        }
    }
}
