//! What the kernels bound by memory share: work cut by shape, run with a chosen instruction set.

#![allow(unsafe_code, reason = "passes raw pointers from the kernel contract on to vector code")]

use super::{Io, Kernel, Stripes};
use crate::simd::{Isa, Simd, Task};
use std::ops::Range;

/// Floats touched per tile: small enough to share out, large enough that handing it out costs nothing.
const TILE: usize = 1 << 14;

/// `items` equal pieces of work in runs of `per_tile`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    items: usize,
    per_tile: usize,
}

impl Tiling {
    /// Tiles of about [`TILE`] floats when each item touches `cost` of them.
    pub(super) fn new(items: usize, cost: usize) -> Self {
        Tiling { items, per_tile: Self::fill(cost) }
    }

    /// Pixels in runs of so many.
    pub(super) fn runs(items: usize, per_tile: usize) -> Self {
        Tiling { items, per_tile }
    }

    /// The tiles, if the items are pixels of what is passed over or written.
    pub(super) fn stripes(&self) -> Stripes {
        let tiles = self.tiles();
        Stripes { units: tiles, pixels: self.per_tile, count: tiles, parts: 1 }
    }

    /// Items of this cost that fill a tile.
    pub(super) fn fill(cost: usize) -> usize {
        (TILE / cost.max(1)).max(1)
    }

    pub(super) fn tiles(&self) -> usize {
        self.items.div_ceil(self.per_tile)
    }

    /// The items of one tile.
    pub(super) fn range(&self, tile: usize) -> Range<usize> {
        debug_assert!(tile < self.tiles());
        tile * self.per_tile..self.items.min((tile + 1) * self.per_tile)
    }
}

/// A kernel written once for every instruction set; the methods mean what they mean on [`Kernel`].
pub(super) trait Tiled: Send + Sync {
    /// The name without the instruction set.
    fn name(&self) -> String;

    fn tiles(&self) -> usize;

    fn scratch(&self) -> usize {
        0
    }

    fn resident_bytes(&self) -> usize {
        0
    }

    fn reads(&self) -> [Option<(usize, usize)>; 2] {
        [None; 2]
    }

    fn stripes(&self) -> Option<Stripes> {
        None
    }

    /// Computes one tile. Mark it `#[inline(always)]`.
    ///
    /// # Safety
    /// As [`Kernel::run`], and the CPU has the instruction set of `S`.
    unsafe fn compute<S: Simd>(&self, tile: usize, io: &Io, scratch: &mut [f32]);
}

/// A [`Tiled`] kernel bound to an instruction set.
pub(super) struct Light<K> {
    pub(super) isa: Isa,
    pub(super) kernel: K,
}

struct Call<'a, K> {
    kernel: &'a K,
    tile: usize,
    io: &'a Io,
    scratch: &'a mut [f32],
}

impl<K: Tiled> Task for Call<'_, K> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: whoever runs the task vouches for the instruction set and for the contract of `Kernel::run`.
        unsafe { self.kernel.compute::<S>(self.tile, self.io, self.scratch) }
    }
}

impl<K: Tiled> Kernel for Light<K> {
    fn name(&self) -> String {
        format!("{} {}", self.kernel.name(), self.isa.vectors().name())
    }

    fn tiles(&self) -> usize {
        self.kernel.tiles()
    }

    fn scratch(&self) -> usize {
        self.kernel.scratch()
    }

    fn resident_bytes(&self) -> usize {
        self.kernel.resident_bytes()
    }

    fn reads(&self) -> [Option<(usize, usize)>; 2] {
        self.kernel.reads()
    }

    fn stripes(&self) -> Option<Stripes> {
        self.kernel.stripes()
    }

    unsafe fn run(&self, tile: usize, io: &Io, scratch: &mut [f32]) {
        debug_assert!(tile < self.tiles() && scratch.len() >= self.scratch());
        // SAFETY: the caller keeps the contract of `Kernel::run`; `Isa::run` checks the instruction set.
        unsafe { self.isa.run(Call { kernel: &self.kernel, tile, io, scratch }) }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::super::naive::Nchw;
    use super::super::{Io, Kernel, MAX_INPUTS, Map};
    use crate::tensor::AlignedBuf;

    /// Fills what a kernel must not touch.
    const GUARD: f32 = -12345.5;

    /// Channels that end before, on and after the vector widths.
    pub(crate) const CHANNELS: [usize; 6] = [1, 3, 17, 33, 64, 100];

    /// Batches with their images' size.
    pub(crate) const IMAGES: [[usize; 3]; 4] = [[1, 1, 1], [2, 5, 7], [1, 14, 3], [3, 1, 2]];

    /// Every combination of the above, as maps without and with gaps between the pixels.
    pub(crate) fn maps() -> impl Iterator<Item = Map> {
        IMAGES.into_iter().flat_map(|[n, h, w]| {
            CHANNELS.into_iter().flat_map(move |c| [0, 5].map(|gap| Map::new([n, h, w, c], c + gap)))
        })
    }

    /// The oracle's shape of a map.
    pub(crate) fn nchw(map: Map) -> Nchw {
        Nchw::new([map.n, map.c, map.h, map.w])
    }

    /// Values in [-2, 2) that look random.
    pub(crate) fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn position(map: Map, nchw_index: usize) -> usize {
        let (w, h) = (nchw_index % map.w, nchw_index / map.w % map.h);
        let (c, n) = (nchw_index / (map.w * map.h) % map.c, nchw_index / (map.w * map.h * map.c));
        ((n * map.h + h) * map.w + w) * map.ld + c
    }

    /// Lays NCHW values out as the map; the gaps are NaN, so that a kernel that uses them shows.
    pub(crate) fn spread(values: &[f32], map: Map) -> Vec<f32> {
        let mut memory = vec![f32::NAN; map.extent()];
        values.iter().enumerate().for_each(|(i, &v)| memory[position(map, i)] = v);
        memory
    }

    /// Runs every tile, last first, and returns the output as NCHW after checking that nothing else was written.
    #[track_caller]
    pub(crate) fn run(kernel: &dyn Kernel, inputs: &[&[f32]], output: Map) -> Vec<f32> {
        let mut memory = vec![GUARD; output.extent() + 32];
        let mut pointers = [std::ptr::null(); MAX_INPUTS];
        pointers.iter_mut().zip(inputs).for_each(|(slot, input)| *slot = input.as_ptr());
        run_tiles(kernel, &Io::new(&pointers, memory.as_mut_ptr()));
        let len = nchw(output).len();
        let values: Vec<f32> = (0..len).map(|i| memory[position(output, i)]).collect();
        (0..len).for_each(|i| memory[position(output, i)] = GUARD);
        assert!(memory.iter().all(|&v| v == GUARD), "{}: wrote into gaps or past the end of {output:?}", kernel.name());
        values
    }

    /// Runs every tile, last first, with scratch memory full of NaN.
    pub(crate) fn run_tiles(kernel: &dyn Kernel, io: &Io) {
        let mut scratch = AlignedBuf::zeros(kernel.scratch());
        for tile in (0..kernel.tiles()).rev() {
            scratch.fill(f32::NAN);
            // SAFETY: the tests bring buffers of the extents their maps say, and run one tile at a time.
            unsafe { kernel.run(tile, io, &mut scratch) };
        }
    }

    /// Fails unless both are equal to `tolerance`, relative above 1; NaN matches NaN.
    #[track_caller]
    pub(crate) fn assert_near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
            let near = f == e || (f - e).abs() <= tolerance * e.abs().max(1.0) || (f.is_nan() && e.is_nan());
            assert!(near, "{what}: element {i} is {f}, expected {e}");
        }
    }
}
