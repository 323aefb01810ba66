//! The squares that an image is cut into.
//!
//! Where their sides do not divide those of the image, the last squares would reach over its edge, and what they compute there
//! is thrown away: of 14 rows four squares of four compute 16. Instead two of them are short by an output
//! ([`Points::Short`](super::points::Points::Short)), which saves them one position of six down or across:
//!
//! ```text
//! 14 = 3 + 4 + 4 + 3 outputs: 5 + 6 + 6 + 5 positions, 484 products for the image instead of 576
//!  7 = 4 + 3         outputs: 6 + 5         positions, 121 instead of 144
//! ```
//!
//! The products of a position are those of the squares that have it. So that these lie behind each other, a block takes its
//! squares in another [order](Cut::arrange) than that of the image.

use super::Form;
use super::points::Points;
use crate::kernels::Map;
use crate::kernels::conv::ConvSpec;
use crate::kernels::conv::weights::Folded;
use std::ops::Range;

/// How an image is cut into squares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Squares down and across.
    count: [usize; 2],
    /// How many of these are short by an output: half of them the first ones, the others the last.
    short: [usize; 2],
    /// Outputs and positions along a side of a square that is not.
    outputs: usize,
    positions: usize,
}

/// A square: its image, the row and the column of its first output, and whether it is short down or across.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) image: usize,
    pub(super) at: [usize; 2],
    pub(super) short: [bool; 2],
}

/// Floats of the pixels of a unit.
const LEAST_UNIT: usize = 1 << 13;

impl Cut {
    /// Squares of one size.
    pub(super) fn even(form: Form, spec: &ConvSpec) -> Self {
        let [positions, outputs, ..] = form.geometry();
        let count = [spec.output.h, spec.output.w].map(|size| size.div_ceil(outputs));
        Cut { count, short: [0; 2], outputs, positions }
    }

    /// Squares that are short rather than reach over the edge, where the form has such.
    pub(super) fn fitting(form: Form, spec: &ConvSpec) -> Self {
        let even = Cut::even(form, spec);
        let over = [0, 1].map(|axis| even.count[axis] * even.outputs - [spec.output.h, spec.output.w][axis]);
        let short = [0, 1].map(|axis| if form.shortens() { over[axis].min(even.count[axis]) } else { 0 });
        Cut { short, ..even }
    }

    /// Squares of an image.
    pub(super) fn squares(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// The fewest squares that cover whole rows of pixels, as many everywhere and enough to be worth a pass of their own, and these
    /// pixels: some rows of an image or, where squares down it differ, all of it.
    pub(super) fn unit(&self, output: Map) -> [usize; 2] {
        let [down, across] = self.count;
        let worth =
            |rows: &usize| down.is_multiple_of(*rows) && rows * self.outputs * output.w * output.c >= LEAST_UNIT;
        let rows = (1..down).find(worth).filter(|_| down * self.outputs == output.h);
        rows.map_or([down * across, output.h * output.w], |rows| [rows * across, rows * self.outputs * output.w])
    }

    /// Positions of all squares of an image.
    pub(super) fn products(&self) -> usize {
        [0, 1].map(|axis| self.count[axis] * self.positions - self.short[axis]).iter().product()
    }

    /// Square number `i` of a batch.
    #[inline(always)]
    pub(super) fn origin(&self, i: usize) -> Origin {
        let [_, across] = self.count;
        let (image, rest) = (i / self.squares(), i % self.squares());
        let place = [rest / across, rest % across];
        // Half of the short squares come first, the others last.
        let first = self.short.map(|short| short / 2);
        let last = [0, 1].map(|axis| self.count[axis] + first[axis] - self.short[axis]);
        let before = [0, 1].map(|axis| place[axis].min(first[axis]) + place[axis].saturating_sub(last[axis]));
        Origin {
            image,
            at: [0, 1].map(|axis| place[axis] * self.outputs - before[axis]),
            short: [0, 1].map(|axis| place[axis] < first[axis] || place[axis] >= last[axis]),
        }
    }
}

/// The squares of a block, in order: short across, not short, short down, short both ways. Their ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds([usize; 4]);

impl Cut {
    /// Writes the numbers of the squares of a block to `order`.
    pub(super) fn arrange(&self, squares: Range<usize>, order: &mut [u32]) -> Kinds {
        let order = &mut order[..squares.len()];
        if self.short == [0, 0] {
            order.iter_mut().zip(squares).for_each(|(to, square)| *to = square as u32);
            return Kinds([0, order.len(), order.len(), order.len()]);
        }
        let kind = |square: usize| match self.origin(square).short {
            [false, true] => 0,
            [false, false] => 1,
            [true, false] => 2,
            [true, true] => 3,
        };
        let mut count = 0;
        let ends = [0, 1, 2, 3].map(|of| {
            for square in squares.clone().filter(|&square| kind(square) == of) {
                order[count] = square as u32;
                count += 1;
            }
            count
        });
        Kinds(ends)
    }
}

impl Kinds {
    /// Each of them, and whether they are short down and across.
    pub(super) fn parts(&self) -> [(Range<usize>, [bool; 2]); 4] {
        let [across, whole, down, both] = self.0;
        [
            (0..across, [false, true]),
            (across..whole, [false, false]),
            (whole..down, [true, false]),
            (down..both, [true, true]),
        ]
    }

    /// Those of the squares that have this position, of a form whose short squares lack the first row or column of them.
    pub(super) fn having<P: Points>(&self, position: usize) -> Range<usize> {
        let [across, whole, down, both] = self.0;
        match [position / P::IN, position % P::IN] {
            _ if !P::SHORTENS => 0..both,
            [0, 0] => across..whole,
            [0, _] => 0..whole,
            [_, 0] => across..down,
            _ => 0..both,
        }
    }
}

/// The squares of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Squares<'a> {
    pub(super) spec: &'a ConvSpec,
    pub(super) cut: Cut,
    /// What lies in the padding: zeros as far as the channels of a pixel reach.
    pub(super) zero: *const f32,
    /// What the convolution was, if its image is folded.
    pub(super) folded: Option<Folded>,
}

/// How the channels of a pixel lie: all together or, if it is folded of several, in the rows that these lie in.
pub(super) struct Runs {
    pub(super) count: usize,
    /// Channels of a run.
    pub(super) len: usize,
    /// Floats from pixel to pixel and, in the memory of the image, from row to row.
    pub(super) ld: usize,
    pub(super) line: usize,
}

impl Runs {
    /// Floats from the first channel of a pixel to one past its last.
    pub(super) fn reach(&self) -> usize {
        (self.count - 1) * self.line + self.len
    }

    /// Those of the pixels of a map, which may be `folded`.
    pub(super) fn of(Map { w, c, ld, .. }: Map, folded: Option<Folded>) -> Self {
        match folded {
            None => Runs { count: 1, len: c, ld, line: w * ld },
            Some(folded) => {
                let [count, across] = folded.window.stride;
                let len = across * folded.channels;
                Runs { count, len, ld: len, line: w * len }
            }
        }
    }
}
