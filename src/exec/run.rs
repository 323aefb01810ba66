//! Running a plan: the file where the arena's memory is handed to kernels.
#![allow(unsafe_code, reason = "kernels run on raw pointers into one arena; the layout proves them apart")]

use super::plan::Plan;
use super::prepare::{IMAGE, Slot, Step};
use crate::error::{Error, Result};
use crate::kernels::{Io, MAX_INPUTS, Soon};
use crate::par::{Progress, Steps, Team};
use crate::tensor::{AlignedBuf, Tensor};
use std::ops::Range;
use std::time::Instant;

/// What a runner makes room for.
pub(super) struct Sizes {
    /// Floats of the arena.
    pub(super) arena: usize,
    /// Floats from lane to lane.
    pub(super) lane: usize,
    /// Pieces of memory outside the plan.
    pub(super) outside: usize,
}

/// What a plan needs while running, allocated once.
pub(super) struct Runner {
    pub(super) team: Team,
    arena: AlignedBuf,
    /// One scratch area of `scratch_len` floats per worker.
    scratch: AlignedBuf,
    scratch_len: usize,
    lane: usize,
    turns: Turns,
    progress: Vec<Progress>,
    /// What [`Slot::Outside`] stands for in the current run.
    pub(super) outside: Vec<Pointer>,
}

/// How often steps are run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turns {
    /// Steps.
    pub(super) steps: usize,
    /// So many of them run once for every portion of the batch, all of them for one portion after the other.
    pub(super) repeated: usize,
    /// Portions of the batch.
    pub(super) portions: usize,
    /// Portions that can be worked on at the same time: 1, or one per worker.
    pub(super) lanes: usize,
}

impl Turns {
    /// Every step once.
    pub(super) fn once(steps: usize) -> Self {
        Turns { steps, repeated: 0, portions: 1, lanes: 1 }
    }

    pub(super) fn len(self) -> usize {
        self.repeated * self.portions + self.steps - self.repeated
    }

    /// The step that comes at `turn`, and the portion it works on.
    pub(super) fn at(self, turn: usize) -> (usize, usize) {
        let repeats = self.repeated * self.portions;
        if turn < repeats { (turn % self.repeated, turn / self.repeated) } else { (turn - repeats + self.repeated, 0) }
    }
}

/// Memory outside the plan, valid during one run.
#[derive(Clone, Copy)]
pub(super) struct Pointer(*mut f32);

impl Pointer {
    /// Memory of another kind, that steps read only.
    pub(super) fn of<T>(value: &T) -> Self {
        Pointer(std::ptr::from_ref(value).cast_mut().cast())
    }

    pub(super) const NONE: Pointer = Pointer(std::ptr::null_mut());

    /// Memory that steps read only.
    pub(super) fn to(values: &[f32]) -> Self {
        Pointer(values.as_ptr().cast_mut())
    }

    /// Memory that steps may write.
    pub(super) fn to_mut(values: &mut [f32]) -> Self {
        Pointer(values.as_mut_ptr())
    }
}

// SAFETY: the pointer is only followed inside `Runner::run`, whose caller vouches for it.
unsafe impl Send for Pointer {}
// SAFETY: as above; workers write through it at disjoint tiles.
unsafe impl Sync for Pointer {}

impl Runner {
    pub(super) fn new(team: Team, steps: &[Step], turns: Turns, sizes: Sizes) -> Result<Self> {
        let Sizes { arena, lane, outside } = sizes;
        let longest = steps.iter().map(|s| s.kernel.scratch()).max().unwrap_or(0);
        let scratch_len = longest.next_multiple_of(16);
        let buffer = |len: usize| {
            let found = AlignedBuf::try_zeros(len);
            found.ok_or_else(|| Error::invalid("plan", format!("no memory for {len} floats of activations")))
        };
        Ok(Runner {
            arena: buffer(arena)?,
            scratch: buffer(scratch_len * team.threads())?,
            scratch_len,
            lane,
            turns,
            progress: (0..turns.len()).map(|_| Progress::default()).collect(),
            outside: vec![Pointer::NONE; outside],
            team,
        })
    }

    pub(super) fn arena_bytes(&self) -> usize {
        self.arena.len() * size_of::<f32>()
    }

    /// Bytes of what workers need beside the arena.
    pub(super) fn scratch_bytes(&self) -> usize {
        self.scratch.len() * size_of::<f32>()
    }

    /// The arena, to read between runs.
    pub(super) fn arena(&self) -> &[f32] {
        &self.arena
    }

    /// Turns of the steps.
    pub(super) fn turns(&self) -> Turns {
        self.turns
    }

    /// Runs all turns. If there are lanes, workers take whole portions as long as these last.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    pub(super) unsafe fn run_all(&mut self, steps: &[Step]) {
        let (turns, repeats) = (self.turns, self.turns.repeated * self.turns.portions);
        // SAFETY: passed on.
        unsafe {
            if turns.lanes > 1 {
                let memory = self.memory();
                let run = self.begin(memory, steps, 0..repeats);
                self.team.run(&Lanes(run), &self.progress[..1]);
                self.run(steps, repeats..turns.len());
            } else {
                self.run(steps, 0..turns.len());
            }
        }
    }

    /// Runs the turns `range` of the steps the runner was made for.
    ///
    /// # Safety
    /// Every address of the steps lies in the arena with the extent its kernel was prepared for, apart from what is alive
    /// at the same time; `outside` holds memory of the extent the kernels expect for every number they use, valid until
    /// this returns, and none of it overlaps what is written.
    pub(super) unsafe fn run(&mut self, steps: &[Step], range: Range<usize>) {
        let memory = self.memory();
        let run = self.begin(memory, steps, range.clone());
        // SAFETY: passed on; `&mut self` keeps everyone else out of the arena.
        unsafe { self.team.run(&run, &self.progress[range]) };
    }

    /// The arena and the scratch areas.
    fn memory(&mut self) -> [*mut f32; 2] {
        [self.arena.as_mut_ptr(), self.scratch.as_mut_ptr()]
    }

    fn begin<'a>(&'a self, [arena, scratch]: [*mut f32; 2], steps: &'a [Step], range: Range<usize>) -> Run<'a> {
        Run {
            steps,
            turns: self.turns,
            first: range.start,
            count: range.len(),
            arena,
            lane: self.lane,
            scratch,
            scratch_len: self.scratch_len,
            outside: &self.outside,
        }
    }
}

/// One run in progress.
struct Run<'a> {
    steps: &'a [Step],
    turns: Turns,
    /// The turns that are run: the first of them, and how many.
    first: usize,
    count: usize,
    arena: *mut f32,
    lane: usize,
    scratch: *mut f32,
    scratch_len: usize,
    outside: &'a [Pointer],
}

/// What a tile of a step works on.
#[derive(Clone, Copy)]
struct At {
    portion: usize,
    /// Whose buffers of a portion.
    lane: usize,
    /// Whose scratch area.
    worker: usize,
}

// SAFETY: workers follow the pointers only inside `compute`, at the disjoint tiles and scratch areas handed to them.
unsafe impl Sync for Run<'_> {}

impl Run<'_> {
    fn address(&self, slot: Slot, at: At) -> *mut f32 {
        match slot {
            Slot::None => std::ptr::null_mut(),
            // SAFETY: the layout keeps every address inside the arena.
            Slot::Arena(offset) => unsafe { self.arena.add(offset) },
            // SAFETY: the same, for every lane.
            Slot::Lane(offset) => unsafe { self.arena.add(offset + at.lane * self.lane) },
            // SAFETY: the same, for every portion.
            Slot::Portioned { offset, stride } => unsafe { self.arena.add(offset + at.portion * stride) },
            Slot::Outside(i, offset) => self.outside[i].0.wrapping_add(offset),
            // SAFETY: the images have as many portions as the plan.
            Slot::Images(stride) => unsafe { self.outside[IMAGE].0.add(at.portion * stride) },
        }
    }

    /// # Safety
    /// As [`Steps::compute`]; nobody else works in this lane on another step or portion.
    unsafe fn tile(&self, step: &Step, tile: usize, at: At) {
        let mut inputs = [std::ptr::null(); MAX_INPUTS];
        inputs.iter_mut().zip(step.inputs).for_each(|(p, slot)| *p = self.address(slot, at).cast_const());
        let [output, also] = [[step.output, Slot::None], step.also].map(|slots| slots.map(|s| self.address(s, at)));
        let io = Io { inputs, output: output[0], also, soon: [Soon::NONE; 2] };
        // SAFETY: worker numbers are distinct, so the scratch areas are; the layout keeps maps that are alive at the
        // same time apart and inside the arena; the image was checked to have the planned shape; nothing writes to it.
        unsafe {
            let scratch = self.scratch.add(at.worker * self.scratch_len);
            let scratch = std::slice::from_raw_parts_mut(scratch, self.scratch_len);
            step.kernel.run(tile, &io, scratch);
        }
    }
}

/// The repeated steps of a run, a portion per tile: whoever takes it computes all of it, in the lane of its own.
struct Lanes<'a>(Run<'a>);

impl Steps for Lanes<'_> {
    fn steps(&self) -> usize {
        1
    }

    fn tiles(&self, _: usize) -> usize {
        self.0.turns.portions
    }

    unsafe fn compute(&self, _: usize, portion: usize, worker: usize) {
        let at = At { portion, lane: worker, worker };
        for step in &self.0.steps[..self.0.turns.repeated] {
            for tile in 0..step.tiles {
                // SAFETY: one thread, in order, in a lane of its own; portions of what holds the whole batch lie apart.
                unsafe { self.0.tile(step, tile, at) };
            }
        }
    }
}

impl Steps for Run<'_> {
    fn steps(&self) -> usize {
        self.count
    }

    fn tiles(&self, turn: usize) -> usize {
        self.steps[self.turns.at(self.first + turn).0].tiles
    }

    unsafe fn compute(&self, turn: usize, tile: usize, worker: usize) {
        let (step, portion) = self.turns.at(self.first + turn);
        // SAFETY: passed on; steps follow each other, so one lane does.
        unsafe { self.tile(&self.steps[step], tile, At { portion, lane: 0, worker }) };
    }
}

impl Plan {
    /// Runs the network on a batch of the planned shape, `[n, c, h, w]`.
    ///
    /// The outputs borrow the plan's own memory: copy what must outlive the next run. NaN in the image is passed on
    /// as arithmetic does.
    ///
    /// # Errors
    /// An image of another shape.
    pub fn run(&mut self, image: &Tensor) -> Result<Outputs<'_>> {
        self.lend(image)?;
        // SAFETY: the layout keeps maps that are alive at the same time apart and inside the arena; the image was checked
        // to have the planned shape, the outputs have theirs.
        unsafe { self.runner.run_all(&self.steps) };
        Ok(Outputs { values: &self.outputs, taps: &self.taps })
    }

    /// Runs the network step by step, timing each: where the time goes. Slower than [`Plan::run`] by a wake-up of the
    /// workers per step.
    pub fn profile(&mut self, image: &Tensor) -> Result<Vec<StepTime>> {
        let turns = self.runner.turns();
        let mut seconds = vec![0.0; self.steps.len()];
        self.lend(image)?;
        for turn in 0..turns.len() {
            let started = Instant::now();
            // SAFETY: as in `run`.
            unsafe { self.runner.run(&self.steps, turn..turn + 1) };
            seconds[turns.at(turn).0] += started.elapsed().as_secs_f64();
        }
        let times = self.steps.iter().zip(seconds).map(|(step, seconds)| StepTime {
            path: step.path.clone(),
            shape: step.shape,
            kernel: step.kernel.name(),
            seconds,
            macs: step.macs,
        });
        Ok(times.collect())
    }

    /// Tells the steps where the image and the outputs are.
    fn lend(&mut self, image: &Tensor) -> Result<()> {
        if image.shape() != self.input {
            return Err(Error::mismatch("input", "shape", format!("{:?}", self.input), format!("{:?}", image.shape())));
        }
        self.runner.outside[IMAGE] = Pointer::to(image.as_slice());
        let outputs = self.outputs.iter_mut().map(|(_, tensor)| Pointer::to_mut(tensor.as_mut_slice()));
        self.runner.outside[IMAGE + 1..].iter_mut().zip(outputs).for_each(|(slot, pointer)| *slot = pointer);
        Ok(())
    }
}

/// How long one step took.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTime {
    /// Path of the layer.
    pub path: String,
    /// `[n, c, h, w]` of what it writes.
    pub shape: [usize; 4],
    /// The kernel.
    pub kernel: String,
    /// Wall time.
    pub seconds: f64,
    /// Multiply-adds of convolutions and linear layers, as the direct form would need them; 0 for everything else.
    pub macs: u64,
}

/// The outputs of one run, by name.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::{Model, PlanOptions, Tensor, models};
///
/// let model = Model::new(&models::build("resnet20", None)?, &mut Stream::new(0).rng())?;
/// let mut plan = model.plan_with([2, 3, 32, 32], &PlanOptions::new().feature("stage1"))?;
/// let outputs = plan.run(&Tensor::zeros(&[2, 3, 32, 32]))?;
/// assert_eq!(outputs.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["logits", "stage1"]);
/// assert_eq!(outputs.get("stage1")?.shape(), [2, 16, 32, 32]);
/// let error = outputs.get("stage2").unwrap_err().to_string();
/// assert!(error.contains("PlanOptions::feature"));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Outputs<'a> {
    pub(super) values: &'a [(String, Tensor)],
    /// What else the drawing has and a plan can be asked for.
    pub(super) taps: &'a [String],
}

impl<'a> Outputs<'a> {
    /// The output or feature `name`: `[n, c]` for vectors, `[n, c, h, w]` for maps.
    ///
    /// # Errors
    /// A name that is none of the outputs, which are listed; whether [`PlanOptions::feature`](super::PlanOptions::feature)
    /// would have it computed is said.
    pub fn get(&self, name: &str) -> Result<&'a Tensor> {
        let found = self.values.iter().find(|(n, _)| n == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let known = || self.values.iter().map(|(n, _)| n.as_str());
        const SHOWN: usize = 8;
        let listed = known().take(SHOWN).collect::<Vec<_>>().join(", ");
        let more = self.values.len().saturating_sub(SHOWN);
        let listed = if more > 0 { format!("{listed} and {more} more") } else { listed };
        if self.taps.iter().any(|tap| tap == name) {
            let problem = format!("this plan computes {listed}; ask for this one with `PlanOptions::feature`");
            return Error::invalid(format!("output `{name}`"), problem);
        }
        match Error::unknown("output", name, known().chain(self.taps.iter().map(String::as_str))) {
            Error::Unknown { kind, name, nearest } if nearest.is_empty() => {
                Error::Unknown { kind, name, nearest: known().take(SHOWN).map(str::to_owned).collect() }
            }
            error => error,
        }
    }

    /// The primary output.
    pub fn logits(&self) -> &'a Tensor {
        &self.values[0].1
    }

    /// Names and values in order, the primary output first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a Tensor)> {
        self.values.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}
