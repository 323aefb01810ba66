//! The expansion: the product that makes rows of the wide map, a panel of channels at a time.

use super::Filters;
use crate::kernels::conv::ConvSpec;
use crate::kernels::conv::strassen::{self, StrassenProduct};
use crate::kernels::conv::weights::{Direction, GemmPacking, pack};
use crate::kernels::gemm::{Extent, Gemm, Rows, Target};
use crate::kernels::{Io, Kernel, Map};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// An expansion prepared.
pub(super) enum Product {
    /// Any rows, straight from the input.
    Plain { input: Map, gemm: Box<Gemm>, packed: AlignedBuf },
    /// All pixels of an image, whose sums all panels share. A panel has as many channels of either half.
    Strassen(Box<StrassenProduct>),
}

impl Product {
    /// The plain product for the 1×1 convolution `spec`.
    pub(super) fn plain(spec: &ConvSpec, (weight, bias): Filters<'_>, isa: Isa) -> Product {
        spec.check(weight, bias);
        let extent = Extent { taps: 1, k: spec.input.c, n: spec.output.c };
        let gemm = Gemm::new(extent, spec.epilogue.activation, isa);
        let packed = pack(&*GemmPacking::boxed(&gemm, spec, Direction::Forward), weight, bias);
        Product::Plain { input: spec.input, gemm: Box::new(gemm), packed }
    }

    /// Strassen's, where it is applicable.
    pub(super) fn strassen(spec: &ConvSpec, (weight, bias): Filters<'_>, isa: Isa) -> Product {
        spec.check(weight, bias);
        Product::Strassen(Box::new(StrassenProduct::of_image(one_image(spec), weight, bias, isa)))
    }

    /// Whether a panel of Strassen's has room in a buffer of `band` floats.
    pub(super) fn fits(spec: &ConvSpec, isa: Isa, band: usize) -> bool {
        let ld = 2 * strassen::product(spec, isa).width(0);
        spec.input.h * spec.input.w * ld <= band
    }

    /// Whether every panel is computed for a whole image at once.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Product::Strassen(_))
    }

    fn gemm(&self) -> &Gemm {
        match self {
            Product::Plain { gemm, .. } => gemm,
            Product::Strassen(product) => product.gemm(),
        }
    }

    pub(super) fn isa(&self) -> Isa {
        self.gemm().isa()
    }

    pub(super) fn panels(&self) -> usize {
        self.gemm().panels()
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.gemm().packed_bytes()
    }

    pub(super) fn resident_bytes(&self) -> usize {
        match self {
            Product::Plain { packed, .. } => 4 * packed.len(),
            Product::Strassen(product) => product.resident_bytes(),
        }
    }

    pub(super) fn name(&self) -> String {
        let strassen = if self.is_whole() { "strassen_" } else { "" };
        format!("{strassen}{}", self.gemm().tile_name())
    }

    /// The channels of a panel, a run of them or two, which [`run`](Self::run) writes [`apart`](Self::apart) from each other.
    pub(super) fn runs(&self, panel: usize) -> impl Iterator<Item = Range<usize>> {
        let columns = self.gemm().columns(panel);
        let second = match self {
            Product::Plain { .. } => None,
            Product::Strassen(product) => {
                let half = product.gemm().extent().n;
                Some(columns.start + half..columns.end + half)
            }
        };
        std::iter::once(columns).chain(second)
    }

    /// Floats from a channel of the first run to its like in the second.
    pub(super) fn apart(&self) -> usize {
        self.gemm().width(0)
    }

    /// Floats from pixel to pixel of what [`run`](Self::run) writes.
    pub(super) fn ld(&self) -> usize {
        self.apart() * if self.is_whole() { 2 } else { 1 }
    }

    /// Floats of scratch memory for so many pixels.
    pub(super) fn scratch(&self, pixels: usize) -> usize {
        match self {
            // Pointers take two floats each.
            Product::Plain { .. } => 2 * pixels,
            Product::Strassen(product) => product.scratch(),
        }
    }

    /// What all panels of the image at `io.inputs[0]` share.
    ///
    /// # Safety
    /// As [`Kernel::run`] for one image.
    pub(super) unsafe fn prepare(&self, io: &Io, scratch: &mut [f32]) {
        if let Product::Strassen(product) = self {
            // SAFETY: passed on.
            unsafe { product.sum(product.first_image(), io, scratch) }
        }
    }

    /// Computes `pixels` of the channels of one panel, to `buffer`.
    ///
    /// # Safety
    /// As [`Kernel::run`] for one image, behind [`prepare`](Self::prepare); `buffer` has [`ld`](Self::ld) floats for every
    /// pixel.
    pub(super) unsafe fn run(
        &self,
        panel: usize,
        pixels: Range<usize>,
        io: &Io,
        buffer: *mut f32,
        scratch: &mut [f32],
    ) {
        let to = buffer.wrapping_sub(self.gemm().columns(panel).start);
        match self {
            Product::Plain { input, gemm, packed } => {
                let table = scratch[..2 * pixels.len()].as_mut_ptr().cast::<*const f32>();
                // SAFETY: the table has an entry for every pixel.
                unsafe {
                    let x = io.inputs[0].add(pixels.start * input.ld);
                    (0..pixels.len()).for_each(|i| *table.add(i) = x.add(i * input.ld));
                    let rows = Rows { table, stride: pixels.len(), skip: 0 };
                    let to = Target::plain(to, self.ld());
                    gemm.run(packed.as_ptr(), pixels.len(), rows, panel..panel + 1, to, &mut []);
                }
            }
            Product::Strassen(product) => {
                debug_assert!(pixels.start == 0, "all of an image at once");
                let io = Io::new(&[io.inputs[0]], to);
                // SAFETY: passed on.
                unsafe { product.panel(product.first_image(), panel, &io, scratch) }
            }
        }
    }
}

/// The same convolution of the first image alone.
fn one_image(spec: &ConvSpec) -> ConvSpec {
    ConvSpec { input: Map { n: 1, ..spec.input }, output: Map { n: 1, ..spec.output }, ..*spec }
}
