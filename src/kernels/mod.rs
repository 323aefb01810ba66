//! Numeric routines on channels-last memory: no names, no graph, no errors, no allocation while running.
//!
//! A kernel is *prepared* once, for one geometry and one instruction set: its weights are packed, its work is cut into
//! tiles, no sum **but by shape**, so that the result does not depend on the number of threads. Running it is then a matter
//! of calling [`Kernel::run`] for every tile, in any order, from any thread. Kernels assert their contract when they
//! are prepared; whoever prepares them has checked the user's numbers before.

#![allow(unsafe_code, reason = "declares the contract of kernels that run on raw pointers")]
#![allow(
    clippy::needless_range_loop,
    reason = "register tiles are indexed alike in several arrays: an index reads better than zips"
)]

pub mod conv;
pub mod gemm;
pub mod naive;

mod light;

pub mod activation;
pub mod elementwise;
pub mod excite;
pub mod gradient;
pub mod joined;
pub mod layout;
pub mod noise;
pub mod norm;
pub mod pool;
pub mod softmax;
pub mod weights;

pub use weights::Weights;

use crate::activation::Activation;

/// A batch of channels-last images: element `(n, y, x, c)` lies at `((n·h + y)·w + x)·ld + c`.
///
/// `ld ≥ c` is the distance between pixels, so a slice of the channels of a wider map is a map too: that is how a
/// concatenation costs nothing. A vector `[n, c]` is a map with `h = w = 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Floats from one pixel to the next.
    pub ld: usize,
}

impl Map {
    /// A map whose pixels lie `ld` apart.
    pub const fn new([n, h, w, c]: [usize; 4], ld: usize) -> Self {
        assert!(ld >= c);
        Map { n, h, w, c, ld }
    }

    /// A map without gaps.
    pub const fn dense(nhwc: [usize; 4]) -> Self {
        Map::new(nhwc, nhwc[3])
    }

    /// Pixels in the batch.
    pub const fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Floats from the first element to one past the last.
    pub const fn extent(&self) -> usize {
        if self.pixels() == 0 { 0 } else { (self.pixels() - 1) * self.ld + self.c }
    }
}

/// What a convolution does to each sum before it stores it: `y = activation(sum + bias + residual)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epilogue {
    /// Applied last.
    pub activation: Option<Activation>,
    /// The pixel stride of a residual map of the output's shape, read from `inputs[1]`.
    pub residual: Option<usize>,
}

/// How a result meets what is in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// It replaces it.
    Set,
    /// It is added to it: a gradient with several sources.
    Add,
}

/// Most maps a kernel reads.
pub const MAX_INPUTS: usize = 6;

/// The input of a kernel whose packed weights come with every run.
pub const WEIGHTS: usize = 4;

/// A map of a kernel's output's shape that is read soon after it: pixel `p` lies at `at + p · ld`.
#[derive(Debug, Clone, Copy)]
pub struct Soon {
    /// The first element, or null.
    pub at: *const f32,
    /// Floats from pixel to pixel.
    pub ld: usize,
}

impl Soon {
    /// No such map.
    pub const NONE: Soon = Soon { at: std::ptr::null(), ld: 0 };

    /// From so many pixels and channels on.
    pub fn from(self, pixels: usize, channels: usize) -> Self {
        if self.at.is_null() { self } else { Soon { at: self.at.wrapping_add(pixels * self.ld + channels), ..self } }
    }
}

/// Where a kernel reads and writes: pointers to the first element of each map it was prepared for.
#[derive(Debug, Clone, Copy)]
pub struct Io {
    /// The maps read, in the order the kernel documents; unused ones are null.
    pub inputs: [*const f32; MAX_INPUTS],
    /// The map written.
    pub output: *mut f32,
    /// What kernels that document further results write; else null.
    pub also: [*mut f32; 2],
    /// What may be fetched meanwhile: nothing, one map, or two.
    pub soon: [Soon; 2],
}

impl Io {
    /// Reads `inputs`, in order, and writes `output`.
    pub fn new(inputs: &[*const f32], output: *mut f32) -> Self {
        let mut io = Io {
            inputs: [std::ptr::null(); MAX_INPUTS],
            output,
            also: [std::ptr::null_mut(); 2],
            soon: [Soon::NONE; 2],
        };
        io.inputs[..inputs.len()].copy_from_slice(inputs);
        io
    }
}

/// Blocks of pixels of a kernel's output, each written by tiles of its own: tile `t` of block `i` is number `t · count + i`. The
/// map is cut in units of pixels, as a pass over it cuts it in tiles; block `i` ends before unit `(i + 1) · units / count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripes {
    /// Units of pixels.
    pub units: usize,
    /// Pixels of a unit, of which the last may have fewer.
    pub pixels: usize,
    /// Blocks.
    pub count: usize,
    /// Tiles of a block.
    pub parts: usize,
}

/// A prepared computation.
pub trait Kernel: Send + Sync {
    /// What runs, for `explain()` and profiles, for example `pointwise_6x4 avx512`.
    fn name(&self) -> String;

    /// Independent pieces of work, fixed by shape (never by thread count).
    fn tiles(&self) -> usize;

    /// Floats of scratch memory each worker must bring (64-byte aligned, contents arbitrary).
    fn scratch(&self) -> usize {
        0
    }

    /// Bytes of packed weights and tables held.
    fn resident_bytes(&self) -> usize {
        0
    }

    /// Inputs that it reads pixel by pixel, as it does its input 0, each with its pixel stride, for a kernel before it to fetch:
    /// none, one or two, without a gap.
    fn reads(&self) -> [Option<(usize, usize)>; 2] {
        [None; 2]
    }

    /// How the tiles make blocks of whole pixels, if they do.
    fn stripes(&self) -> Option<Stripes> {
        None
    }

    /// Computes tile number `tile`.
    ///
    /// # Safety
    /// - `tile < self.tiles()`, and no other call computes the same tile of the same output at the same time;
    /// - every input pointer the kernel documents is readable over the extent of its map, and `output` is writable over
    ///   the elements of its map (the gaps between pixels belong to others: never read or write there); the output
    ///   overlaps no input unless the kernel documents that it works in place;
    /// - `scratch.len() ≥ self.scratch()` and starts on a 64-byte boundary.
    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]);
}
