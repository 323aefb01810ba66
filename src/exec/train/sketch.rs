//! Steps whose buffers have no address yet.

use crate::exec::memory::{Buffer, Place, pack_tightly, pixel_stride};
use crate::exec::prepare::{Slot, Step};
use crate::graph::ParamId;
use crate::kernels::joined::{PASSED, fits, joined};
use crate::kernels::norm::train as norm;
use crate::kernels::{Kernel, MAX_INPUTS, Map, WEIGHTS};

/// Where a step reads or writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum At {
    /// Not used.
    None,
    /// Floats from the start of a buffer.
    Buffer(usize, usize),
    /// Floats from the start of memory outside the plan.
    Outside(usize, usize),
}

impl At {
    /// So many floats further on.
    pub(super) fn at(self, floats: usize) -> At {
        match self {
            At::Buffer(buffer, offset) => At::Buffer(buffer, offset + floats),
            At::Outside(number, offset) => At::Outside(number, offset + floats),
            At::None => At::None,
        }
    }

    /// The buffer it lies in.
    fn buffer(self) -> Option<usize> {
        if let At::Buffer(buffer, _) = self { Some(buffer) } else { None }
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

/// When a buffer is in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    /// Floats.
    pub(super) len: usize,
    /// The first and the last step that touch it.
    pub(super) first: usize,
    pub(super) last: usize,
    /// The last step of the way forward and the first of the way back that touch it: in between it is only kept.
    pub(super) parted: usize,
    pub(super) returned: usize,
}

impl Life {
    fn new(len: usize) -> Self {
        Life { len, first: usize::MAX, last: 0, parted: usize::MAX, returned: usize::MAX }
    }

    pub(super) fn alive_at(&self, step: usize) -> bool {
        self.first <= step && step <= self.last
    }

    /// Whether it waits at `step` for the way back.
    pub(super) fn waits_at(&self, step: usize) -> bool {
        self.parted < step && step < self.returned && self.alive_at(step)
    }
}

/// A step and the floats alive while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fill {
    pub(super) step: usize,
    pub(super) floats: usize,
}

/// What lies in memory while a step runs.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) floats: usize,
    /// The layer and the kernel that touch it first, and the steps between which it lives.
    pub(super) path: String,
    pub(super) kernel: String,
    pub(super) steps: [usize; 2],
}

/// A gradient that leaves the plan during the way back.
#[derive(Debug, Clone, Copy)]
pub(super) struct HandedOn {
    /// Whose it is.
    pub(super) id: ParamId,
    pub(super) buffer: usize,
    /// The step behind which it is handed on.
    pub(super) after: usize,
}

/// Steps whose buffers have addresses.
pub(super) struct Arranged {
    pub(super) steps: Vec<Step>,
    /// The address of each buffer.
    pub(super) offsets: Vec<usize>,
    /// Floats of the arena.
    pub(super) len: usize,
    /// Where memory is fullest, and what lies in it then, the largest first.
    pub(super) fullest: Fill,
    pub(super) held: Vec<Held>,
    /// Gradients handed on, in order.
    pub(super) handed: Vec<HandedOn>,
}

/// Steps and buffers so far.
pub(super) struct Sketch {
    /// Floats of every buffer.
    pub(super) buffers: Vec<usize>,
    steps: Vec<(Draft, String, [usize; 4])>,
    /// Steps of the way forward, as soon as it is written.
    pub(super) forward_steps: usize,
    /// Gradients that are complete and will be handed on, and those that are.
    pub(super) waiting: Vec<(ParamId, usize)>,
    pub(super) handed: Vec<HandedOn>,
    /// The layer whose steps are being written, and the shape of what it computes.
    pub(super) path: String,
    pub(super) shape: [usize; 4],
}

impl Sketch {
    /// Starts with the buffers that values have been placed in.
    pub(super) fn new(buffers: &[Buffer]) -> Self {
        let buffers = buffers.iter().map(|buffer| buffer.len).collect();
        Sketch {
            buffers,
            steps: Vec::new(),
            forward_steps: 0,
            waiting: Vec::new(),
            handed: Vec::new(),
            path: String::new(),
            shape: [0; 4],
        }
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

    /// Pixels of the blocks over which the map at `place` is summed up: what the step that wrote it makes together, or as many as
    /// suit its size.
    pub(super) fn block(&self, place: Place) -> usize {
        let writes = |step: &Draft| [step.output].iter().chain(&step.also).any(|at| at.buffer() == Some(place.buffer));
        let writer = self.steps.iter().rev().find(|(step, ..)| writes(step));
        let writer = writer.filter(|(step, ..)| step.output == place.into());
        writer.and_then(|(step, ..)| step.kernel.stripes()).map_or_else(|| norm::block(place.map), |made| made.pixels)
    }

    /// Appends a step that passes over the map that is its first input, or lets the step that writes this map do it where it
    /// can, block by block.
    pub(super) fn push_behind(&mut self, draft: Draft) {
        match self.writer_for(&draft) {
            None => self.push(draft),
            Some(at) => {
                let (mut writer, path, shape) = self.steps.remove(at);
                writer.kernel = joined(writer.kernel, draft.kernel).into();
                let passed = PASSED.into_iter().zip(&draft.inputs[1..]).filter(|&(_, &from)| from != At::None);
                passed.for_each(|(to, &from)| writer.inputs[to] = from);
                writer.also = [draft.output, draft.also[0]];
                self.steps.insert(at, (writer, path, shape));
            }
        }
    }

    /// The step that writes the first input of `draft`, if it can do what `draft` does besides: nothing has touched what
    /// `draft` reads or writes since then, but readers of a map that `draft` leaves as it is.
    fn writer_for(&self, draft: &Draft) -> Option<usize> {
        let map = draft.inputs[0];
        let buffer = |at: &At| at.buffer();
        let wrote = |step: &Draft, of: usize| [step.output].iter().chain(&step.also).any(|at| buffer(at) == Some(of));
        let read = |step: &Draft, of: usize| step.inputs.iter().any(|at| buffer(at) == Some(of));
        let of = buffer(&map)?;
        let at = self.steps.iter().rposition(|(step, ..)| wrote(step, of))?;
        let (writer, since) = (&self.steps[at].0, &self.steps[at + 1..]);
        let passed = PASSED.iter().zip(&draft.inputs[1..]);
        let free = passed.into_iter().all(|(&to, &from)| from == At::None || writer.inputs[to] == At::None);
        let free = free && writer.also == [At::None; 2];
        let free = free && draft.inputs[1 + PASSED.len()..].iter().all(|&input| input == At::None);
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

    /// Hands on the gradients that wait, behind the last step so far.
    pub(super) fn hand_on(&mut self) {
        let after = self.len().saturating_sub(1);
        self.handed.extend(self.waiting.drain(..).map(|(id, buffer)| HandedOn { id, buffer, after }));
    }

    /// When each buffer is in use. What was placed for a value that nothing computes has no floats.
    pub(super) fn lives(&self) -> Vec<Life> {
        let mut lives: Vec<Life> = self.buffers.iter().map(|&len| Life::new(len)).collect();
        for (i, (draft, ..)) in self.steps.iter().enumerate() {
            for at in draft.inputs.iter().chain([&draft.output]).chain(&draft.also) {
                let At::Buffer(buffer, _) = *at else { continue };
                let life = &mut lives[buffer];
                life.first = life.first.min(i);
                life.last = i;
                match i < self.forward_steps {
                    true => life.parted = i,
                    false => life.returned = life.returned.min(i),
                }
            }
        }
        for gradient in &self.handed {
            lives[gradient.buffer].last = gradient.after;
        }
        lives.iter_mut().filter(|life| life.first > life.last).for_each(|life| life.len = 0);
        lives
    }

    /// Where memory is fullest.
    pub(super) fn fullest(&self, lives: &[Life]) -> Fill {
        let mut changes = vec![0isize; self.steps.len() + 1];
        for life in lives.iter().filter(|life| life.len > 0) {
            let len = life.len.next_multiple_of(16) as isize;
            changes[life.first] += len;
            changes[life.last + 1] -= len;
        }
        let mut fullest = Fill { step: 0, floats: 0 };
        let mut floats = 0;
        for (step, change) in changes.into_iter().enumerate() {
            floats += change;
            if floats as usize > fullest.floats {
                fullest = Fill { step, floats: floats as usize };
            }
        }
        fullest
    }

    /// What lies in memory at `step`, the largest first.
    fn held(&self, lives: &[Life], step: usize) -> Vec<Held> {
        let alive = lives.iter().filter(|life| life.alive_at(step));
        let mut held: Vec<Held> = alive
            .map(|life| {
                let (draft, path, _) = &self.steps[life.first];
                let (path, kernel) = (path.clone(), draft.kernel.name());
                Held { floats: life.len, path, kernel, steps: [life.first, life.last] }
            })
            .collect();
        held.sort_by_key(|held| std::cmp::Reverse(held.floats));
        held
    }

    /// Gives every buffer its address.
    pub(super) fn arrange(self) -> Arranged {
        let lives = self.lives();
        let fullest = self.fullest(&lives);
        let held = self.held(&lives, fullest.step);
        let buffer = |life: &Life| Buffer { len: life.len, whole: true, first: life.first, last: life.last };
        let (offsets, len) = pack_tightly(&lives.iter().map(buffer).collect::<Vec<_>>());
        let slot = |at: At| match at {
            At::None => Slot::None,
            At::Buffer(buffer, offset) => Slot::Arena(offsets[buffer] + offset),
            At::Outside(number, offset) => Slot::Outside(number, offset),
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
        Arranged { steps, offsets, len, fullest, held, handed: self.handed }
    }
}
