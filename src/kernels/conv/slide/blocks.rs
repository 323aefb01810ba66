//! How channels are laid out in blocks of vectors, and weights packed for them.

use super::ConvSpec;
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::ops::Range;

/// Which [`Fetch`](super::strip::Fetch) a layout is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FetchKind {
    /// One channel in, one out.
    Plain,
    /// Whole groups inside a vector.
    Permute,
    /// Vectors inside a group.
    Broadcast,
}

/// One or two vectors of output channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// First input channel fetched.
    pub(super) input: usize,
    /// First output channel written.
    pub(super) output: usize,
    /// Input channels from `input` that exist, at most a vector; and output channels of the block to write.
    pub(super) readable: usize,
    pub(super) writable: usize,
    /// Leading channels that the block before writes too.
    pub(super) overlap: usize,
}

/// Shorter registers take the general loop: the others are not compiled for them.
pub(super) const MIN_LANES: usize = 8;

/// The blocks of a convolution.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) fetch: FetchKind,
    pub(super) blocks: Vec<Block>,
    /// Vectors per block.
    pub(super) vectors: usize,
    /// Fetches per tap: input channels per group.
    pub(super) steps: usize,
    /// Needs the general loop.
    pub(super) general: bool,
    /// Has registers for the large strips.
    pub(super) wide: bool,
    lanes: usize,
    inputs: usize,
    outputs: usize,
}

impl Layout {
    /// The blocks for a convolution.
    pub(super) fn new(spec: &ConvSpec, isa: Isa) -> Layout {
        let (groups, window) = (spec.groups, spec.window);
        let (inputs, outputs) = (spec.group_inputs(), spec.group_outputs());
        let (lanes, wide) = (isa.lanes(), isa.registers() >= 32);
        let fetch = match (inputs, outputs) {
            (1, 1) => FetchKind::Plain,
            _ if outputs < lanes && inputs <= lanes => FetchKind::Permute,
            _ => FetchKind::Broadcast,
        };
        let fits = |width: usize| match fetch {
            FetchKind::Plain => groups >= width,
            FetchKind::Permute => {
                let whole = (lanes / outputs).min(lanes / inputs);
                whole * outputs == lanes && groups >= whole && groups * inputs >= lanes
            }
            FetchKind::Broadcast => outputs >= width,
        };
        let known = match (window.kernel[1], window.stride[1], window.dilation[1]) {
            (3, 1 | 2, 1) => true,
            (5, 1 | 2, 1) => fetch == FetchKind::Plain,
            _ => false,
        };
        let general = !known || !fits(lanes) || spec.output.w < 4 || lanes < MIN_LANES;
        // Not if a last block that overlaps would be much of the work.
        let even = fetch != FetchKind::Plain || 20 * groups.div_ceil(2 * lanes) <= 11 * groups.div_ceil(lanes);
        let two = wide && !general && fetch != FetchKind::Permute && fits(2 * lanes) && even;
        let vectors = if two { 2 } else { 1 };
        let mut layout =
            Layout { fetch, blocks: Vec::new(), vectors, steps: inputs, general, wide, lanes, inputs, outputs };
        layout.blocks = match fetch {
            FetchKind::Plain | FetchKind::Permute => layout.whole_groups(groups),
            FetchKind::Broadcast => (0..groups).flat_map(|g| layout.parts_of_group(g)).collect(),
        };
        layout
    }

    /// Output channels a block has room for.
    fn width(&self) -> usize {
        self.vectors * self.lanes
    }

    /// Blocks of as many whole groups as fit. The last one overlaps the one before unless it may be partial.
    fn whole_groups(&self, groups: usize) -> Vec<Block> {
        let per_block = match self.fetch {
            FetchKind::Plain => self.width(),
            _ => (self.lanes / self.outputs).min(self.lanes / self.inputs),
        };
        let channels = groups * self.inputs;
        let block = |i: usize| {
            let regular = i * per_block;
            let first = if self.general { regular } else { regular.min(groups - per_block) };
            // The vector fetched may reach beyond the groups of the block, but not beyond the pixel.
            let input =
                if self.general { first * self.inputs } else { (first * self.inputs).min(channels - self.lanes) };
            Block {
                input,
                output: first * self.outputs,
                readable: (channels - input).min(self.lanes),
                writable: per_block.min(groups - first) * self.outputs,
                overlap: (regular - first) * self.outputs,
            }
        };
        (0..groups.div_ceil(per_block)).map(block).collect()
    }

    /// Blocks of consecutive output channels of one group.
    fn parts_of_group(&self, group: usize) -> impl Iterator<Item = Block> + use<> {
        let (width, outputs, inputs, general) = (self.width(), self.outputs, self.inputs, self.general);
        (0..outputs.div_ceil(width)).map(move |i| {
            let first = if general { i * width } else { (i * width).min(outputs - width) };
            Block {
                input: group * inputs,
                output: group * outputs + first,
                readable: 0,
                writable: width.min(outputs - first),
                overlap: i * width - first,
            }
        })
    }

    /// Cuts the blocks into about `wanted` runs. Blocks that overlap stay together.
    pub(super) fn chunks(&self, wanted: usize) -> Vec<Range<usize>> {
        let (count, mut chunks, mut start) = (self.blocks.len(), Vec::new(), 0);
        let most = count.div_ceil(wanted.clamp(1, count.max(1)));
        for end in 1..=count {
            if end == count || (end - start >= most && self.blocks[end].overlap == 0) {
                chunks.push(start..end);
                start = end;
            }
        }
        chunks
    }

    /// The input channel, counted inside the group, that output channel `output` meets in step `step`.
    fn input_of(&self, output: usize, step: usize) -> usize {
        match self.fetch {
            FetchKind::Plain | FetchKind::Broadcast => step,
            // Each lane starts with the channel of its own number: if groups are square, step 0 shuffles nothing.
            FetchKind::Permute => (output % self.outputs + step) % self.inputs,
        }
    }

    /// Floats of the packed weights and biases.
    pub(super) fn packed_len(&self, [kh, kw]: [usize; 2]) -> usize {
        self.blocks.len() * (kh * self.steps * kw + 1) * self.width()
    }

    /// Where the weights and the biases of a block lie among the packed floats.
    pub(super) fn packed_of(&self, block: usize, [kh, kw]: [usize; 2]) -> [Range<usize>; 2] {
        let (width, weights) = (self.width(), kh * self.steps * kw * self.width());
        let biases = self.blocks.len() * weights + block * width;
        [block * weights..(block + 1) * weights, biases..biases + width]
    }

    /// `weight(output, input of the group, tap)` of a block as `[kernel row][step][kernel column][vector][lane]`.
    pub(super) fn pack_weights(
        &self,
        block: usize,
        [kh, kw]: [usize; 2],
        weight: impl Fn(usize, usize, usize) -> f32,
        into: &mut [f32],
    ) {
        let block = &self.blocks[block];
        let places = (0..kh * self.steps * kw).map(|i| (i / kw / self.steps, i / kw % self.steps, i % kw));
        for (slot, (ky, step, kx)) in into.chunks_exact_mut(self.width()).zip(places) {
            for (lane, value) in slot.iter_mut().enumerate() {
                let output = block.output + lane;
                let inside = lane < block.writable;
                *value = if inside { weight(output, self.input_of(output, step), ky * kw + kx) } else { 0.0 };
            }
        }
    }

    /// The biases `bias [out]` of a block as `[vector][lane]`; zeros if there are none.
    pub(super) fn pack_bias(&self, block: usize, bias: Option<&[f32]>, into: &mut [f32]) {
        let block = &self.blocks[block];
        into.fill(0.0);
        if let Some(bias) = bias {
            into[..block.writable].copy_from_slice(&bias[block.output..][..block.writable]);
        }
    }

    /// The lane each output lane fetches from, as `[block][step][lane]`; empty if nothing is permuted.
    pub(super) fn pack_lanes(&self) -> AlignedBuf {
        if self.fetch != FetchKind::Permute {
            return AlignedBuf::zeros(0);
        }
        let mut packed = AlignedBuf::zeros(self.blocks.len() * self.steps * self.lanes);
        let mut slots = packed.chunks_exact_mut(self.lanes);
        for block in &self.blocks {
            for step in 0..self.steps {
                let slot = slots.next().expect("one for each block and step");
                for (lane, index) in slot.iter_mut().enumerate().take(block.writable) {
                    let output = block.output + lane;
                    let input = output / self.outputs * self.inputs + self.input_of(output, step);
                    *index = f32::from_bits((input - block.input) as u32);
                }
            }
        }
        packed
    }
}
