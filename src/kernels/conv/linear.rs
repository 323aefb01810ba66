//! Fully connected layers: `y[n, o] = activation(b[o] + Σ w[o, i] · x[n, i])`.

#![allow(unsafe_code, reason = "runs a product on raw maps")]

use super::grid::{Grid, Work};
use super::weights::{Direction, Form, GemmPacking, Packed, Packing, held};
use super::{ConvSpec, pointwise};
use crate::activation::Activation;
use crate::kernels::gemm::{Extent, Gemm, Target};
use crate::kernels::{Epilogue, Io, Kernel, Map, Weights};
use crate::shape::{Padding, Placed, Window};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;

/// The geometry of a fully connected layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearSpec {
    /// Rows.
    pub n: usize,
    /// Features in, and floats from row to row.
    pub input: [usize; 2],
    /// Features out, and floats from row to row.
    pub output: [usize; 2],
    /// Applied last.
    pub activation: Option<Activation>,
}

impl LinearSpec {
    /// The pointwise convolution of `n` one-pixel images that it is.
    pub fn convolution(&self) -> ConvSpec {
        let map = |[features, ld]: [usize; 2]| Map::new([self.n, 1, 1, features], ld);
        ConvSpec {
            input: map(self.input),
            output: map(self.output),
            window: Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) },
            placed: Placed { input: [1; 2], output: [1; 2], before: [0; 2] },
            groups: 1,
            epilogue: Epilogue { activation: self.activation, residual: None },
        }
    }
}

/// A fully connected layer, the weights as `[out, in]`: with few rows at the speed that memory has, with more a pointwise
/// convolution.
pub fn linear(spec: &LinearSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    if spec.n > MOST_ROWS {
        return pointwise(spec.convolution(), weight, bias, isa);
    }
    spec.convolution().check(weight, bias);
    held(Box::new(Few::new(*spec, isa)), weight, bias)
}

/// With more rows than this, multiplying takes longer than reading.
const MOST_ROWS: usize = 16;

/// A layer of few rows.
struct Few {
    spec: LinearSpec,
    gemm: Gemm,
    weights: Packed,
    grid: Grid,
}

impl Few {
    fn new(spec: LinearSpec, isa: Isa) -> Self {
        let extent = Extent { taps: 1, k: spec.input[0], n: spec.output[0] };
        let gemm = Gemm::new(extent, spec.activation, isa);
        // Rows stay together: nothing but weights is worth counting.
        let grid = Grid::cut(Work {
            rows: spec.n,
            panels: gemm.panels(),
            macs: spec.n * extent.k * extent.n,
            weights: gemm.packed_bytes(),
            activations: 0,
            prepared: 0,
            most_rows: spec.n.max(1),
            unit: 1,
        });
        Few { spec, gemm, weights: Packed::Given, grid }
    }
}

impl Form for Few {
    fn packing(&self, direction: Direction) -> Box<dyn Packing> {
        GemmPacking::boxed(&self.gemm, &self.spec.convolution(), direction)
    }

    fn hold(&mut self, packed: AlignedBuf) {
        self.weights = Packed::Held(packed);
    }
}

impl Kernel for Few {
    fn name(&self) -> String {
        format!("linear_few_rows {}", self.gemm.isa().name())
    }

    fn tiles(&self) -> usize {
        if self.spec.n == 0 { 0 } else { self.grid.tiles() }
    }

    fn scratch(&self) -> usize {
        self.gemm.scratch_of_few(self.spec.n)
    }

    fn resident_bytes(&self) -> usize {
        self.weights.bytes()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        assert!(tile < self.tiles());
        let (rows, panels) = self.grid.tile(tile);
        let target = Target::plain(io.output, self.spec.output[1]);
        // SAFETY: the weights were packed for this product; the caller brings both maps.
        unsafe {
            let a = (io.inputs[0], self.spec.input[1]);
            self.gemm.run_few(self.weights.of(io), rows.len(), a, panels, target, scratch);
        }
    }
}
