//! What the way back computes again: a value that was not kept is computed when it is first asked for, from what was kept
//! or from what is computed again in turn, and then stays until its last reader. So nothing is computed that is not read,
//! and nothing twice.

use super::forward::{Author, Task};
use super::fuse::cuts_off;
use super::sketch::{Fill, Life};
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::mode::Recompute;
use crate::exec::program::{Program, Unit};
use crate::graph::{Graph, NodeId, Op, ParamId};

impl Author<'_> {
    /// Where a value can be read on the way back; it is computed again if it was not kept.
    pub(super) fn kept_value(&mut self, value: NodeId) -> Result<Place> {
        if !std::mem::take(&mut self.again[value.index()]) {
            return Ok(self.value(value));
        }
        let program = self.program;
        let unit = self.producer(value).expect("a unit computed it");
        self.leave_to_reader(unit)?;
        for read in unit.reads() {
            // Of a norm that is applied on the way, what it reads.
            let absent = self.norm_of(read).filter(|_| self.absent[read.index()]);
            self.kept_value(absent.map_or(read, |norm| norm.inputs[0]))?;
        }
        self.absent[value.index()] = false;
        let place = self.sketch.map(program.shape(value));
        self.owners.push((place.buffer, value));
        self.values[value.index()] = Some(place);
        let (path, shape) = (self.sketch.path.clone(), self.sketch.shape);
        self.sketch.path.clone_from(&unit.path);
        self.sketch.shape = program.shape(value);
        self.unit_forward(unit)?;
        (self.sketch.path, self.sketch.shape) = (path, shape);
        Ok(place)
    }

    /// The memory of `value` for its gradient: where it has a buffer of its own that nobody reads any more once `unit` is
    /// done with it, neither a unit on its way back nor one whose output is to be computed again.
    pub(super) fn bequest(&self, unit: &Unit, value: NodeId) -> Option<Place> {
        let place = self.value(value);
        let own = self.owners.contains(&(place.buffer, value)) && self.may_share(value);
        let units = &self.program.units;
        let reads_output = |unit: &Unit| {
            let plain = matches!(unit.op, Op::Activation(_) | Op::Softmax);
            plain || unit.activation.is_some() && !matches!(unit.op, Op::BatchNorm { .. } if unit.residual.is_none())
        };
        let reads_inputs = |unit: &Unit| {
            let pools = matches!(unit.op, Op::AvgPool { .. } | Op::AdaptiveAvgPool { .. } | Op::MaxPool { .. });
            let moves = matches!(unit.op, Op::Flatten | Op::ChannelPad { .. } | Op::ChannelSlice { .. });
            !pools && !moves && !matches!(unit.op, Op::Add | Op::Concat)
        };
        // What this unit has made is not made again any more, if nobody is late.
        let late = |value: NodeId| self.late.iter().any(|unit| unit.reads().any(|read| read == value));
        let again =
            |other: &Unit| self.again[other.output.index()] && (other.output != unit.output || late(unit.output));
        // The units behind this one have been led through.
        let now = units.iter().position(|other| other.output == unit.output)?;
        let (producer, readers) = units[..now].split_at(units[..now].iter().position(|u| u.output == value)? + 1);
        let free = !reads_output(producer.last()?)
            && !readers.iter().any(|unit| unit.reads().any(|read| read == value) && reads_inputs(unit))
            && !late(value)
            && !units.iter().any(|other| again(other) && other.reads().any(|read| read == value));
        (own && free).then_some(place)
    }

    /// The units whose output may be computed again: it has a buffer of its own and stays inside.
    fn repeatable(&self) -> Vec<&Unit> {
        let mut tenants = vec![0; self.sketch.buffers.len()];
        for place in self.values.iter().flatten() {
            tenants[place.buffer] += 1;
        }
        let alone = |unit: &&Unit| {
            let place = self.value(unit.output);
            tenants[place.buffer] == 1 && !unit.inputs.is_empty() && !self.program.wanted.contains(&unit.output)
        };
        self.program.units.iter().filter(alone).collect()
    }
}

/// Writes a whole training step that does not keep the values `again`.
pub(super) fn write<'a>(task: Task<'a>, again: &[bool]) -> Result<Author<'a>> {
    let mut author = Author::new(task, again.to_vec());
    let own = author.repeatable().into_iter().map(|unit| (author.value(unit.output).buffer, unit.output));
    author.owners = own.collect();
    author.forward()?;
    author.backward()?;
    Ok(author)
}

/// The training step with the values computed again that the options' [`Recompute`] asks for, and the share of a step's work
/// that this is estimated to be.
pub(super) fn choose(task: Task<'_>) -> Result<(Author<'_>, f64)> {
    let (program, count) = (task.program, task.program.shapes.len());
    let mut costs = vec![None; count];
    let sketched = Author::new(task, vec![false; count]);
    let repeatable = sketched.repeatable();
    repeatable.iter().for_each(|unit| costs[unit.output.index()] = Some(cost(unit, program, task.graph)));
    let step: f64 = 3.0 * program.units.iter().map(|unit| cost(unit, program, task.graph)).sum::<f64>();
    let (share, starts, enough) = match task.options.recompute {
        Recompute::Cheap => (0.035, 1, layers(task) / 2),
        Recompute::Thorough => (0.2, 5, 0),
    };
    let mut search = Search { task, costs, trials: 0, enough };
    let mut best: Option<Choice<'_>> = None;
    for start in 0..starts {
        let (again, spent) = search.start(&repeatable, start, share * step);
        search.trials = TRIALS;
        let found = search.improve(Choice::new(task, again, share * step - spent)?)?;
        if best.as_ref().is_none_or(|best| found.fullest.floats < best.fullest.floats) {
            best = Some(found);
        }
    }
    let best = search.reprieve(best.expect("there is a start"))?;
    Ok((best.author, share - best.left / step))
}

/// Floats of what all layers make, each in memory of its own but for sums and for activations whose way back needs nothing else:
/// these are made in place. A max-pool makes the places of its maxima, too.
fn layers(task: Task<'_>) -> usize {
    use Op::{Activation, Add, Dropout, Flatten, Input, MaxPool, StochasticDepth};
    let made = |op: &Op| match op {
        Activation(activation) => usize::from(!cuts_off(*activation)),
        Input { .. } | Add | Flatten | Dropout { .. } | StochasticDepth { .. } => 0,
        MaxPool { .. } => 2,
        _ => 1,
    };
    let nodes = task.graph.nodes().iter().zip(&task.program.shapes);
    nodes.map(|(node, shape)| made(&node.op) * shape.iter().product::<usize>()).sum()
}

/// Most steps that are written from one start to find the best one.
const TRIALS: usize = 1000;
/// Most of them to see what keeping one value makes possible.
const AHEAD: usize = 16;

/// The search for what is best computed again.
struct Search<'a> {
    task: Task<'a>,
    /// What each value costs to compute again, if it may be.
    costs: Vec<Option<f64>>,
    /// Steps that may still be written to find the best one.
    trials: usize,
    /// Floats of memory that are few enough.
    enough: usize,
}

impl<'a> Search<'a> {
    /// What to begin with, and its work: nothing but what takes one pass over memory, next to the one that would read it
    /// back; or, from the first start on, everything but every sum of a residual block, every second and so on, as far as
    /// the `most` work allows.
    fn start(&self, repeatable: &[&Unit], start: usize, most: f64) -> (Vec<bool>, f64) {
        let mut again = vec![false; self.costs.len()];
        let mut dear = Vec::new();
        let mut sums = 0;
        for unit in repeatable {
            let value = unit.output.index();
            let is_sum = unit.residual.is_some() || matches!(unit.op, Op::Add);
            if is_plain_norm(unit) {
                again[value] = true;
                continue;
            }
            sums += usize::from(is_sum);
            let stays = start == 0 || matches!(unit.op, Op::MaxPool { .. }) || is_sum && sums % start == 0;
            if let Some(cost) = self.costs[value].filter(|_| !stays) {
                let floats: usize = self.task.program.shapes[value].iter().product();
                again[value] = true;
                dear.push((cost / floats as f64, cost, value));
            }
        }
        dear.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut spent: f64 = dear.iter().map(|(_, cost, _)| cost).sum();
        for (_, cost, value) in dear {
            if spent <= most {
                break;
            }
            spent -= cost;
            again[value] = false;
        }
        (again, spent)
    }

    /// Gives up one value after the other, and keeps one after all where that lets others go.
    fn improve(&mut self, start: Choice<'a>) -> Result<Choice<'a>> {
        let mut fixed = vec![false; self.costs.len()];
        let mut best = self.descend(start, &fixed, TRIALS)?;
        while best.fullest.floats > self.enough {
            let Some(better) = self.keep_one(&best, &mut fixed)? else { break };
            best = better;
        }
        Ok(best)
    }

    /// A better choice that keeps a value which `best` computes again, if there is one; it stays `fixed`.
    fn keep_one(&mut self, best: &Choice<'a>, fixed: &mut [bool]) -> Result<Option<Choice<'a>>> {
        for value in best.returned() {
            let Some(cost) = self.costs[value.index()].filter(|_| !fixed[value.index()] && self.trials > 0) else {
                continue;
            };
            self.trials -= 1;
            fixed[value.index()] = true;
            let mut next = best.with(self.task, value, -cost)?;
            if next.fullest.floats >= best.fullest.floats {
                next = self.descend(next, fixed, AHEAD)?;
            }
            if next.fullest.floats < best.fullest.floats {
                return self.descend(next, fixed, TRIALS).map(Some);
            }
            fixed[value.index()] = false;
        }
        Ok(None)
    }

    /// Keeps after all what need not have been given up, what is most work for its memory first: where memory is fullest, it
    /// becomes no fuller than it is, or than enough.
    fn reprieve(&self, mut best: Choice<'a>) -> Result<Choice<'a>> {
        let most = best.fullest.floats.max(self.enough);
        let program = self.task.program;
        let made_again = best.made_again();
        let given_up = program.units.iter().filter(|unit| {
            best.again[unit.output.index()] && (!is_plain_norm(unit) || made_again.contains(&unit.output))
        });
        let worth = |value: NodeId, cost: f64| cost / program.shape(value).iter().product::<usize>() as f64;
        let costs = given_up.filter_map(|unit| Some((unit, self.costs[unit.output.index()]?)));
        let mut costs: Vec<(&Unit, f64)> = costs.collect();
        costs.sort_by(|a, b| worth(b.0.output, b.1).total_cmp(&worth(a.0.output, a.1)));
        for (unit, cost) in costs {
            // What was given up at no charge is kept at none.
            let charged = if is_plain_norm(unit) { 0.0 } else { cost };
            let next = best.with(self.task, unit.output, -charged)?;
            if next.fullest.floats <= most {
                best = next;
            }
        }
        Ok(best)
    }

    /// Gives up one value after the other as long as memory becomes less full where it is fullest, and is not empty enough,
    /// none of the `fixed`, in so many trials.
    fn descend(&mut self, start: Choice<'a>, fixed: &[bool], trials: usize) -> Result<Choice<'a>> {
        let (mut best, mut hopeless, mut better) = (start, fixed.to_vec(), false);
        let end = self.trials.saturating_sub(trials);
        while self.trials > end && best.fullest.floats > self.enough {
            let Some((value, cost)) = best.candidate(&self.costs, &hopeless) else {
                // What did not help may do so now.
                if !std::mem::take(&mut better) {
                    break;
                }
                hopeless.copy_from_slice(fixed);
                continue;
            };
            self.trials -= 1;
            let next = best.with(self.task, value, cost)?;
            if next.fullest.floats < best.fullest.floats {
                (best, better) = (next, true);
            } else {
                hopeless[value.index()] = true;
            }
        }
        Ok(best)
    }
}

/// Whether a unit is a norm that adds no shortcut: its output is made again by the pass that reads it, or next to it.
fn is_plain_norm(unit: &Unit) -> bool {
    matches!(unit.op, Op::BatchNorm { .. }) && unit.residual.is_none()
}

/// Multiply-adds in the time of reading or writing one float.
const PASS: f64 = 11.0;

/// The work of computing a unit again, in multiply-adds.
fn cost(unit: &Unit, program: &Program, graph: &Graph) -> f64 {
    let floats = |value: NodeId| program.shape(value).iter().product::<usize>() as f64;
    let passes = PASS * (unit.reads().map(floats).sum::<f64>() + floats(unit.output));
    let [n, _, h, w] = program.shape(unit.output);
    let product = |weight: ParamId, factor: f64| {
        let weights = graph.params()[weight.index()].len() as f64;
        factor * (n * h * w) as f64 * weights + 3.0 * PASS * weights
    };
    match &unit.op {
        // Winograd's method.
        Op::Conv { weight, window, groups: 1, .. } if window.kernel == [3, 3] && window.stride == [1, 1] => {
            passes.max(product(*weight, 0.45))
        }
        // Few products for what is read and written, and none of them at full speed.
        Op::Conv { weight, groups, .. } if *groups > 1 => passes + product(*weight, 2.0),
        Op::Conv { weight, .. } | Op::Linear { weight, .. } => passes.max(product(*weight, 1.0)),
        Op::DeformConv { weight, .. } => passes + product(*weight, 2.0),
        _ => passes,
    }
}

/// What is computed again, the training step that follows, and where it fills memory most.
struct Choice<'a> {
    again: Vec<bool>,
    /// Work that may still be done again.
    left: f64,
    author: Author<'a>,
    lives: Vec<Life>,
    fullest: Fill,
}

impl<'a> Choice<'a> {
    fn new(task: Task<'a>, again: Vec<bool>, left: f64) -> Result<Self> {
        let author = write(task, &again)?;
        let lives = author.sketch.lives();
        let fullest = author.sketch.fullest(&lives);
        Ok(Choice { again, left, author, lives, fullest })
    }

    /// The choice that differs in one value, for so much more work.
    fn with(&self, task: Task<'a>, value: NodeId, cost: f64) -> Result<Self> {
        let mut again = self.again.clone();
        again[value.index()] = !again[value.index()];
        Choice::new(task, again, self.left - cost)
    }

    /// Values that lie in memory where it is fullest, and the lives of their buffers.
    fn lying(&self) -> impl Iterator<Item = (NodeId, Life)> + '_ {
        let owners = self.author.owners.iter().map(|&(buffer, value)| (value, self.lives[buffer]));
        owners.filter(|(_, life)| life.alive_at(self.fullest.step))
    }

    /// Of the values that only wait where memory is fullest, the one that frees most for the least work, and that work.
    fn candidate(&self, costs: &[Option<f64>], hopeless: &[bool]) -> Option<(NodeId, f64)> {
        let waiting = self.lying().filter(|(value, life)| {
            life.waits_at(self.fullest.step) && !self.again[value.index()] && !hopeless[value.index()]
        });
        let worth = waiting.filter_map(|(value, life)| {
            let cost = costs[value.index()].filter(|&cost| cost <= self.left)?;
            Some((life.len as f64 / cost, value, cost))
        });
        worth.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, value, cost)| (value, cost))
    }

    /// The values that are computed again, in memory of their own: not those of norms that are applied on the way.
    fn made_again(&self) -> Vec<NodeId> {
        let owners = self.author.owners.iter().filter(|&&(buffer, _)| self.lives[buffer].parted == usize::MAX);
        owners.map(|&(_, value)| value).collect()
    }

    /// The values that have been computed again where memory is fullest, the largest first, down to a small share of it.
    fn returned(&self) -> Vec<NodeId> {
        let returned = |&(value, life): &(NodeId, Life)| {
            self.again[value.index()] && life.parted == usize::MAX && 64 * life.len > self.fullest.floats
        };
        let mut found: Vec<(NodeId, Life)> = self.lying().filter(returned).collect();
        found.sort_by_key(|(_, life)| std::cmp::Reverse(life.len));
        found.into_iter().map(|(value, _)| value).collect()
    }
}
