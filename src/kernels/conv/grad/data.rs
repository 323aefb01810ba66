//! The gradient of the input of a strided convolution.
//!
//! Input row `y` receives from output row `o` through tap `t` if `y + before = o·stride + t·dilation`. The taps that
//! remain for a row therefore depend on its remainder by the stride alone, and for all pixels of one pair of remainders
//! the gradient is a matrix product over those taps. Its rows lie `stride` pixels apart, so they are computed in scratch
//! memory first. No zeros are inserted, and no product is computed twice.

#![allow(unsafe_code, reason = "fills pointer tables and runs microkernels on raw maps")]

use super::super::grid::{Grid, Work};
use super::super::weights::{GemmPacking, Packing, learned_with};
use super::super::{ConvSpec, Learned};
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::light::{Light, Tiled};
use crate::kernels::{Io, Map, Store, WEIGHTS, Weights};
use crate::simd::{Isa, Simd};
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Any convolution; the rest is as for [`input_gradient`](super::input_gradient).
pub fn strided(spec: ConvSpec, store: Store, isa: Isa) -> Learned {
    let mut classes = Vec::new();
    let mut packed = 0;
    for ry in 0..spec.window.stride[0] {
        for rx in 0..spec.window.stride[1] {
            let Some(class) = Class::new(&spec, [ry, rx], packed, isa) else { continue };
            packed += class.packed_len(&spec);
            classes.push(class);
        }
    }
    let packing = Box::new(ClassPacking {
        parts: classes.iter().filter_map(|c| Some((c.packed, c.packing(&spec)?))).collect(),
        len: packed,
    });
    let all = classes.iter().map(|class| class.parts(&spec));
    let parts = all.fold([0; 3], |most: [usize; 3], parts| std::array::from_fn(|i| most[i].max(parts[i])));
    let zero = AlignedBuf::zeros(spec.output.c.next_multiple_of(16));
    let kernel = Strided { spec, store, classes, parts, zero };
    learned_with(Box::new(Light { isa, kernel }), packing, spec.output.c * spec.depth(), None)
}

/// The pixels of one remainder.
struct Class {
    /// First row and column.
    first: [usize; 2],
    /// Rows and columns.
    size: [usize; 2],
    /// Row and column of the output, relative to those of the class, that each tap reads, and its number.
    taps: Vec<([isize; 2], usize)>,
    /// None if no tap reaches these pixels.
    gemm: Option<Gemm>,
    /// Where the class's weights begin.
    packed: usize,
    /// Tiles of pixels and, of one group, panels of input channels.
    grid: Grid,
}

/// Multiply-adds of a tile of several groups, or of pixels that no tap reaches.
const MACS_PER_TILE: usize = 2_000_000;
/// Most pixels of a tile.
const MOST_ROWS: usize = 192;

/// Cuts the product for so many pixels into tiles; there is none if no tap reaches them.
fn cut(spec: &ConvSpec, gemm: Option<&Gemm>, pixels: usize) -> Grid {
    match gemm {
        Some(gemm) if spec.groups == 1 => {
            let Extent { taps, k, n } = gemm.extent();
            Grid::cut(Work {
                rows: pixels,
                panels: gemm.panels(),
                macs: pixels * taps * k * n,
                weights: gemm.packed_bytes(),
                activations: 4 * spec.output.c * spec.output.pixels(),
                prepared: if gemm.is_split() { 3 * pixels * taps * k } else { 0 },
                most_rows: MOST_ROWS,
                unit: 1,
            })
        }
        _ => {
            let taps = gemm.map_or(0, |gemm| gemm.extent().taps);
            let work = spec.input.c * (taps * spec.group_outputs()).max(16);
            let rows = (MACS_PER_TILE / work).clamp(24, MOST_ROWS);
            Grid::of([pixels, 1], [pixels.div_ceil(rows), 1])
        }
    }
}

impl Class {
    fn new(spec: &ConvSpec, first: [usize; 2], packed: usize, isa: Isa) -> Option<Self> {
        let (window, placed) = (spec.window, spec.placed);
        let along = |axis: usize| -> Vec<(isize, usize)> {
            let stride = window.stride[axis] as isize;
            let at = |tap: usize| (first[axis] + placed.before[axis]) as isize - (tap * window.dilation[axis]) as isize;
            let taps = (0..window.kernel[axis]).filter(|&tap| at(tap).rem_euclid(stride) == 0);
            taps.map(|tap| (at(tap).div_euclid(stride), tap)).collect()
        };
        let size = [0, 1].map(|axis| placed.input[axis].saturating_sub(first[axis]).div_ceil(window.stride[axis]));
        if size.contains(&0) {
            return None;
        }
        let (down, across) = (along(0), along(1));
        let taps: Vec<_> = down
            .iter()
            .flat_map(|&(y, ty)| across.iter().map(move |&(x, tx)| ([y, x], ty * window.kernel[1] + tx)))
            .collect();
        let extent = Extent { taps: taps.len(), k: spec.group_outputs(), n: spec.group_inputs() };
        let pixels = spec.input.n * size[0] * size[1];
        let gemm = (!taps.is_empty()).then(|| Gemm::fastest(extent, None, pixels, isa));
        let grid = cut(spec, gemm.as_ref(), pixels);
        Some(Class { first, size, taps, gemm, packed, grid })
    }

    fn packed_len(&self, spec: &ConvSpec) -> usize {
        self.gemm.as_ref().map_or(0, |gemm| spec.groups * gemm.packed_len())
    }

    fn packing(&self, spec: &ConvSpec) -> Option<GemmPacking> {
        // The weights are applied backwards: from outputs to inputs.
        let turned = ConvSpec { input: spec.output, output: spec.input, ..*spec };
        Some(GemmPacking::of_taps(self.gemm.as_ref()?, &turned, self.taps.iter().map(|&(_, tap)| tap).collect()))
    }

    /// The input channels of panels.
    fn columns(&self, spec: &ConvSpec, panels: Range<usize>) -> Range<usize> {
        match &self.gemm {
            Some(gemm) if spec.groups == 1 => gemm.columns(panels.start).start..gemm.columns(panels.end - 1).end,
            _ => 0..spec.input.c,
        }
    }

    /// Floats of the pointers of a tile, of its products, and of what multiplying them takes.
    fn parts(&self, spec: &ConvSpec) -> [usize; 3] {
        let rows = self.grid.tile_rows();
        let columns = |tile: usize| self.columns(spec, self.grid.tile(tile).1).len().next_multiple_of(16);
        let products = (0..self.grid.tiles()).map(|tile| rows * columns(tile)).max().unwrap_or(0);
        let product = self.gemm.as_ref().map_or(0, |gemm| gemm.scratch(rows));
        [(2 * self.taps.len() * rows).next_multiple_of(16), products, product]
    }

    /// Image, row and column within the class of pixel `i`.
    fn place(&self, i: usize) -> [usize; 3] {
        let [h, w] = self.size;
        [i / (h * w), i / w % h, i % w]
    }

    /// Fills the table with the address of every tap of every pixel.
    ///
    /// # Safety
    /// As [`Taps::fill`](super::super::indirect::Taps), with the gradient of the output at `from`.
    unsafe fn fill(
        &self,
        output: Map,
        range: Range<usize>,
        from: *const f32,
        zero: *const f32,
        table: *mut *const f32,
    ) {
        let stride = range.len();
        for (i, pixel) in range.enumerate() {
            let [image, y, x] = self.place(pixel);
            for (t, &([dy, dx], _)) in self.taps.iter().enumerate() {
                let (oy, ox) = (y.wrapping_add_signed(dy), x.wrapping_add_signed(dx));
                let inside = oy < output.h && ox < output.w;
                let at = ((image * output.h).wrapping_add(oy).wrapping_mul(output.w)).wrapping_add(ox);
                let at = if inside { from.wrapping_add(at.wrapping_mul(output.ld)) } else { zero };
                // SAFETY: the table has room for every tap of every pixel of the range.
                unsafe { *table.add(t * stride + i) = at };
            }
        }
    }
}

struct ClassPacking {
    parts: Vec<(usize, GemmPacking)>,
    len: usize,
}

impl Packing for ClassPacking {
    fn len(&self) -> usize {
        self.len
    }

    fn pieces(&self) -> usize {
        self.parts.iter().map(|(_, packing)| packing.pieces()).sum()
    }

    unsafe fn piece(&self, mut piece: usize, weight: &dyn Weights, bias: Option<&[f32]>, packed: *mut f32) {
        for (start, packing) in &self.parts {
            if piece < packing.pieces() {
                // SAFETY: every class has its own part of the packed weights.
                return unsafe { packing.piece(piece, weight, bias, packed.add(*start)) };
            }
            piece -= packing.pieces();
        }
    }
}

struct Strided {
    spec: ConvSpec,
    store: Store,
    classes: Vec<Class>,
    /// Floats of the pointers, of the products and of what multiplying takes, for any tile.
    parts: [usize; 3],
    /// What lies outside the output: zeros for every channel.
    zero: AlignedBuf,
}

impl Tiled for Strided {
    fn name(&self) -> String {
        format!("input_gradient_{}", self.spec.label())
    }

    fn tiles(&self) -> usize {
        self.classes.iter().map(|class| class.grid.tiles()).sum()
    }

    fn scratch(&self) -> usize {
        self.parts.iter().sum()
    }

    #[inline(always)]
    unsafe fn compute<S: Simd>(&self, mut tile: usize, io: &Io, scratch: &mut [f32]) {
        let mut class = &self.classes[0];
        for next in &self.classes {
            class = next;
            if tile < class.grid.tiles() {
                break;
            }
            tile -= class.grid.tiles();
        }
        let (range, panels) = class.grid.tile(tile);
        let columns = class.columns(&self.spec, panels.clone());
        let (table, rest) = scratch.split_at_mut(self.parts[0]);
        let (products, scratch) = rest.split_at_mut(self.parts[1]);
        let (table, products) = (table.as_mut_ptr().cast::<*const f32>(), products.as_mut_ptr());
        let (m, ld) = (range.len(), columns.len().next_multiple_of(16));
        // SAFETY: the scratch holds the pointers of all taps of the tile, a row of products for each pixel and what they take; the pixels
        // of a class lie in the input map.
        unsafe {
            if let Some(gemm) = &class.gemm {
                class.fill(self.spec.output, range.clone(), io.inputs[0], self.zero.as_ptr(), table);
                let panels = if self.spec.groups == 1 { panels } else { 0..gemm.panels() };
                for group in 0..self.spec.groups {
                    let rows = Rows { table, stride: m, skip: group * self.spec.group_outputs() };
                    let packed = io.inputs[WEIGHTS].add(class.packed + group * gemm.packed_len());
                    let first = products.wrapping_add(group * self.spec.group_inputs()).wrapping_sub(columns.start);
                    gemm.run(packed, m, rows, panels.clone(), Target::plain(first, ld), scratch);
                }
            } else if self.store == Store::Set {
                std::slice::from_raw_parts_mut(products, m * ld).fill(0.0);
            } else {
                return;
            }
            for (i, pixel) in range.enumerate() {
                let [image, y, x] = class.place(pixel);
                let [y, x] = [0, 1].map(|axis| class.first[axis] + [y, x][axis] * self.spec.window.stride[axis]);
                let Map { h, w, ld: ld_x, .. } = self.spec.input;
                let to = io.output.add(((image * h + y) * w + x) * ld_x + columns.start);
                let to = std::slice::from_raw_parts_mut(to, columns.len());
                let from = std::slice::from_raw_parts(products.add(i * ld), columns.len());
                match self.store {
                    Store::Set => to.copy_from_slice(from),
                    Store::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
                }
            }
        }
    }
}
