//! How the way back through deformable samples is shared out, and the weights packed for it.

use super::super::super::ConvSpec;
use super::super::super::weights::Packing;
use crate::kernels::Weights;
use crate::kernels::gemm::Gemm;
use crate::kernels::weights::whole;
use std::ops::Range;

/// Most input channels of a part, whole registers of any instruction set.
const CHANNELS: usize = 64;

/// How the input channels are shared out: those of a group evenly.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    /// Channels of a part, of which the last of a group may lack some.
    pub(super) width: usize,
    pub(super) all: Vec<Part>,
}

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) group: usize,
    /// Among all channels.
    pub(super) channels: Range<usize>,
    pub(super) runs: Vec<Run>,
}

/// Channels of a part that one offset group steers.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) channels: Range<usize>,
    pub(super) steered_by: usize,
    /// Its number among those of all parts, which are in the order of their channels.
    pub(super) nth: usize,
}

impl Parts {
    pub(super) fn new(spec: &ConvSpec, offset_groups: usize) -> Self {
        let (inputs, steered) = (spec.group_inputs(), spec.input.c / offset_groups);
        let width = inputs.div_ceil(inputs.div_ceil(CHANNELS)).next_multiple_of(16);
        let (mut all, mut nth) = (Vec::new(), 0);
        for group in 0..spec.groups {
            for first in (0..inputs).step_by(width) {
                let channels = group * inputs + first..group * inputs + inputs.min(first + width);
                let (mut runs, mut start) = (Vec::new(), channels.start);
                while start < channels.end {
                    let steered_by = start / steered;
                    let end = channels.end.min((steered_by + 1) * steered);
                    runs.push(Run { channels: start..end, steered_by, nth });
                    (start, nth) = (end, nth + 1);
                }
                all.push(Part { group, channels, runs });
            }
        }
        Parts { width, all }
    }

    /// The numbers of the runs that each offset group steers: they follow each other, as their channels do.
    pub(super) fn by_offset_group(&self, groups: usize) -> Vec<Range<usize>> {
        let steered: Vec<_> = self.all.iter().flat_map(|part| &part.runs).map(|run| run.steered_by).collect();
        let before = |group: usize| steered.partition_point(|&by| by < group);
        (0..groups).map(|group| before(group)..before(group + 1)).collect()
    }
}

/// The weights of every part by themselves: a column for each tap and channel.
pub(super) struct PartPacking {
    pub(super) gemm: Gemm,
    pub(super) spec: ConvSpec,
    pub(super) parts: Parts,
}

impl Packing for PartPacking {
    fn len(&self) -> usize {
        self.parts.all.len() * self.gemm.packed_len()
    }

    fn pieces(&self) -> usize {
        self.parts.all.len() * self.gemm.panels()
    }

    unsafe fn piece(&self, piece: usize, weight: &dyn Weights, _: Option<&[f32]>, packed: *mut f32) {
        let (nth, panel) = (piece / self.gemm.panels(), piece % self.gemm.panels());
        let Part { group, channels, .. } = &self.parts.all[nth];
        let (columns, width, rows) = (self.gemm.columns(panel), self.gemm.width(panel), self.gemm.extent().k);
        // SAFETY: every part has its own packed weights, every panel its own among them; pieces do not overlap.
        let (values, biases) = unsafe {
            let packed = packed.add(nth * self.gemm.packed_len());
            let values = self.gemm.weights_of(panel);
            (
                std::slice::from_raw_parts_mut(packed.add(values.start), values.len()),
                std::slice::from_raw_parts_mut(packed.add(self.gemm.bias_at() + columns.start), width),
            )
        };
        biases.fill(0.0);
        let (inputs, taps) = (self.spec.group_inputs(), self.spec.window.taps());
        let first = channels.start - group * inputs;
        // Where the weight of each column lies behind those of an output.
        let at = |column: usize| {
            let (tap, channel) = (column / self.parts.width, column % self.parts.width);
            (channel < channels.len()).then_some((first + channel) * taps + tap)
        };
        let at: Vec<_> = columns.map(at).collect();
        whole(weight, |weight| {
            let outputs = weight.chunks_exact(self.spec.depth()).skip(group * rows);
            for (row, from) in values.chunks_exact_mut(width).zip(outputs).take(rows) {
                row.iter_mut().zip(&at).for_each(|(to, at)| *to = at.map_or(0.0, |at| from[at]));
                row[at.len()..].fill(0.0);
            }
        });
        self.gemm.seal(panel, values);
    }
}
