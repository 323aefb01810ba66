//! Mean and variance of what a batch norm reads.
//!
//! The norms of a dense block read longer and longer concatenations of the same maps, whose statistics are those of the
//! maps: each is measured once, and its rows are kept in the order in which the channels lie in their common buffer.

use super::forward::Author;
use super::sketch::{At, Draft};
use crate::exec::memory::{Place, parts};
use crate::graph::{NodeId, Op};
use crate::kernels::norm::train as norm;
use crate::kernels::{Map, elementwise};

impl Author<'_> {
    /// Writes the table of a norm of `value` by the batch's statistics; `affine` are its scale and shift.
    pub(super) fn batch_statistics(&mut self, value: NodeId, epsilon: f64, affine: [At; 2], table: At) {
        let x = self.value(value);
        let mut maps = Vec::new();
        self.joined(value, &mut maps);
        let end = x.offset + x.map.c;
        if maps.len() < 2 || end > x.map.ld {
            return self.measure(x, epsilon, affine, table);
        }
        let ld = x.map.ld;
        let known = self.measured.iter().find(|(buffer, _)| *buffer == x.buffer).map(|&(_, rows)| rows);
        let rows = known.unwrap_or_else(|| self.sketch.buffer(2 * ld));
        if known.is_none() {
            self.measured.push((x.buffer, rows));
        }
        for (map, place) in maps {
            if std::mem::replace(&mut self.is_measured[map.index()], true) {
                continue;
            }
            let own = self.sketch.buffer(norm::TABLE_ROWS * place.map.c);
            self.measure(place, epsilon, [At::None; 2], own);
            let row = Map::dense([1, 1, 1, place.map.c]);
            for (from, to) in [(0, 0), (norm::VARIANCE * place.map.c, ld)] {
                let kernel = elementwise::copy(row, row, self.isa);
                self.sketch.push(Draft::new(kernel, &[own.at(from)], rows.at(to + place.offset)));
            }
        }
        let inputs = [rows.at(x.offset), rows.at(ld + x.offset), affine[0], affine[1]];
        self.sketch.push(Draft::new(norm::fixed_statistics(x.map, epsilon, self.isa), &inputs, table));
    }

    /// Measures one map.
    fn measure(&mut self, x: Place, epsilon: f64, [scale, shift]: [At; 2], table: At) {
        // Not what the writer makes together: what is rounded forward stays as training was verified with.
        let block = norm::block(x.map);
        let partial = self.sketch.buffer(norm::partial_len(x.map, block, 2));
        self.sketch.push_behind(Draft::new(norm::moments(x.map, block, self.isa), &[x.into()], partial));
        let statistics = norm::statistics(x.map, block, epsilon, self.isa);
        self.sketch.push(Draft::new(statistics, &[partial, scale, shift], table));
    }

    /// The maps that `value` consists of, in order: itself, or the parts of a concatenation that its producers wrote in place.
    fn joined(&self, value: NodeId, maps: &mut Vec<(NodeId, Place)>) {
        let whole = self.value(value);
        let unit = self.producer(value).filter(|unit| matches!(unit.op, Op::Concat));
        let parts = unit.map(|unit| parts(self.program, whole, &unit.inputs)).unwrap_or_default();
        if parts.is_empty() || parts.iter().any(|&(part, there)| self.value(part) != there) {
            return maps.push((value, whole));
        }
        parts.into_iter().for_each(|(part, _)| self.joined(part, maps));
    }
}
