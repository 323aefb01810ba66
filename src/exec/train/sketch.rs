//! Steps whose buffers have no address yet.

use crate::exec::memory::{Buffer, Place, pack, pixel_stride};
use crate::exec::prepare::{Slot, Step};
use crate::kernels::joined::{PASSED, fits, joined};
use crate::kernels::{Kernel, MAX_INPUTS, Map, WEIGHTS};

/// Where a step reads or writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum At {
    /// Not used.
    None,
    /// Floats from the start of a buffer.
    Buffer(usize, usize),
    /// Memory outside the plan.
    Outside(usize),
}

impl At {
    /// So many floats further on.
    pub(super) fn at(self, floats: usize) -> At {
        match self {
            At::Buffer(buffer, offset) => At::Buffer(buffer, offset + floats),
            other => other,
        }
    }
}

impl From<Place> for At {
    fn from(place: Place) -> Self {
        At::Buffer(place.buffer, place.offset)
    }
}

/// A step in the making.
pub(super) struct Draft {
    pub(super) kernel: Box<dyn Kernel>,
    pub(super) inputs: [At; MAX_INPUTS],
    pub(super) output: At,
    pub(super) also: [At; 2],
    pub(super) macs: u64,
}

impl Draft {
    /// `kernel` reads `inputs` in order and writes `output`.
    pub(super) fn new(kernel: impl Into<Box<dyn Kernel>>, inputs: &[At], output: impl Into<At>) -> Self {
        let mut all = [At::None; MAX_INPUTS];
        all[..inputs.len()].copy_from_slice(inputs);
        Draft { kernel: kernel.into(), inputs: all, output: output.into(), also: [At::None; 2], macs: 0 }
    }

    /// With packed weights.
    pub(super) fn weights(mut self, packed: At) -> Self {
        self.inputs[WEIGHTS] = packed;
        self
    }

    /// With further results.
    pub(super) fn also(mut self, also: [At; 2]) -> Self {
        self.also = also;
        self
    }

    /// With the multiply-adds that the direct form would need.
    pub(super) fn macs(mut self, macs: usize) -> Self {
        self.macs = macs as u64;
        self
    }
}

impl<K: Kernel + 'static> From<K> for Box<dyn Kernel> {
    fn from(kernel: K) -> Self {
        Box::new(kernel)
    }
}

/// Steps and buffers so far.
pub(super) struct Sketch {
    /// Floats of every buffer.
    pub(super) buffers: Vec<usize>,
    steps: Vec<(Draft, String, [usize; 4])>,
    /// The layer whose steps are being written, and the shape of what it computes.
    pub(super) path: String,
    pub(super) shape: [usize; 4],
}

impl Sketch {
    /// Starts with the buffers that values have been placed in.
    pub(super) fn new(buffers: &[Buffer]) -> Self {
        let buffers = buffers.iter().map(|buffer| buffer.len).collect();
        Sketch { buffers, steps: Vec::new(), path: String::new(), shape: [0; 4] }
    }

    /// Steps so far.
    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// A new buffer of `len` floats.
    pub(super) fn buffer(&mut self, len: usize) -> At {
        self.buffers.push(len);
        At::Buffer(self.buffers.len() - 1, 0)
    }

    /// A new buffer that holds a map of this shape.
    pub(super) fn map(&mut self, [n, c, h, w]: [usize; 4]) -> Place {
        let map = Map::new([n, h, w, c], pixel_stride(c, n * h * w));
        self.buffers.push(map.extent());
        Place { buffer: self.buffers.len() - 1, offset: 0, map }
    }

    /// Appends a step.
    pub(super) fn push(&mut self, draft: Draft) {
        self.steps.push((draft, self.path.clone(), self.shape));
    }

    /// Appends a step that passes over the map that is its first input, or lets the step that writes this map do it where it
    /// can, block by block.
    pub(super) fn push_behind(&mut self, draft: Draft) {
        match self.writer_for(&draft) {
            None => self.push(draft),
            Some(at) => {
                let (mut writer, path, shape) = self.steps.remove(at);
                writer.kernel = joined(writer.kernel, draft.kernel).into();
                PASSED.into_iter().zip(&draft.inputs[1..]).for_each(|(to, &from)| writer.inputs[to] = from);
                writer.also = [draft.output, draft.also[0]];
                self.steps.insert(at, (writer, path, shape));
            }
        }
    }

    /// The step that writes the first input of `draft`, if it can do what `draft` does besides: nothing has touched what
    /// `draft` reads or writes since then, but readers of a map that `draft` leaves as it is.
    fn writer_for(&self, draft: &Draft) -> Option<usize> {
        let map = draft.inputs[0];
        let buffer = |at: &At| if let At::Buffer(buffer, _) = *at { Some(buffer) } else { None };
        let wrote = |step: &Draft, of: usize| [step.output].iter().chain(&step.also).any(|at| buffer(at) == Some(of));
        let read = |step: &Draft, of: usize| step.inputs.iter().any(|at| buffer(at) == Some(of));
        let of = buffer(&map)?;
        let at = self.steps.iter().rposition(|(step, ..)| wrote(step, of))?;
        let (writer, since) = (&self.steps[at].0, &self.steps[at + 1..]);
        let free = PASSED.iter().all(|&input| writer.inputs[input] == At::None) && writer.also == [At::None; 2];
        if writer.output != map || !free || !fits(&*writer.kernel, &*draft.kernel) {
            return None;
        }
        let inputs = draft.inputs[1..].iter().filter_map(buffer);
        let outputs = [draft.output].into_iter().chain(draft.also);
        let outside = outputs.clone().any(|at| matches!(at, At::Outside(..)));
        let settled =
            inputs.into_iter().all(|of| !wrote(writer, of) && since.iter().all(|(step, ..)| !wrote(step, of)));
        let unseen = outputs.filter_map(|at| buffer(&at)).all(|to| {
            let untouched = since.iter().all(|(step, ..)| !wrote(step, to) && !read(step, to));
            untouched && (to == of || !read(writer, to))
        });
        let whole = draft.also.iter().all(|at| buffer(at) != Some(of) || *at == map);
        (settled && unseen && whole && !outside && draft.also[1] == At::None).then_some(at)
    }

    /// Gives every buffer its address: the steps, the address of each buffer, and the floats of the arena.
    pub(super) fn arrange(self) -> (Vec<Step>, Vec<usize>, usize) {
        let unused = |&len: &usize| Buffer { len, whole: true, first: usize::MAX, last: 0 };
        let mut buffers: Vec<Buffer> = self.buffers.iter().map(unused).collect();
        for (i, (draft, ..)) in self.steps.iter().enumerate() {
            for at in draft.inputs.iter().chain([&draft.output]).chain(&draft.also) {
                if let At::Buffer(buffer, _) = *at {
                    buffers[buffer].first = buffers[buffer].first.min(i);
                    buffers[buffer].last = i;
                }
            }
        }
        for buffer in buffers.iter_mut().filter(|buffer| buffer.first > buffer.last) {
            buffer.len = 0; // placed for a value that nothing computes
        }
        let (offsets, len) = pack(&buffers);
        let slot = |at: At| match at {
            At::None => Slot::None,
            At::Buffer(buffer, offset) => Slot::Arena(offsets[buffer] + offset),
            At::Outside(i) => Slot::Outside(i),
        };
        let step = |(draft, path, shape): (Draft, String, [usize; 4])| Step {
            tiles: draft.kernel.tiles(),
            kernel: draft.kernel,
            inputs: draft.inputs.map(slot),
            output: slot(draft.output),
            also: draft.also.map(slot),
            path,
            shape,
            fused: Vec::new(),
            macs: draft.macs,
        };
        let steps = self.steps.into_iter().map(step).collect();
        (steps, offsets, len)
    }
}
