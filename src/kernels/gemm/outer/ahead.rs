//! What the next block will read, fetched a line at a time while this one is computed.

use crate::kernels::gemm::micro::LINE;

/// Pixels that will be read after these: so many cache lines of each, one row after the other.
#[derive(Debug, Clone, Copy)]
pub struct Ahead {
    /// The line that comes next, and how many are left in its row and in all.
    at: *const f32,
    in_row: usize,
    left: usize,
    /// Lines of a row, and floats from the end of one to the next.
    row: usize,
    jump: isize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Ahead = Ahead { at: std::ptr::null(), in_row: 1, left: 0, row: 1, jump: 0 };

    /// The pixels of a map from `at` on, of `c` channels and `ld` floats apart.
    pub fn new(at: *const f32, pixels: usize, [c, ld]: [usize; 2]) -> Self {
        let whole = 4 * ld <= 5 * c;
        let (lines, rows) = if whole { ((pixels * ld).div_ceil(LINE), 1) } else { (c.div_ceil(LINE), pixels) };
        // Back a little where the last line of a row reaches into the next.
        let jump = if whole { 0 } else { ld as isize - (lines * LINE) as isize };
        Ahead { at, in_row: lines.max(1), left: lines * rows, row: lines.max(1), jump }
    }

    /// Lines that are left.
    pub(super) fn lines(&self) -> usize {
        self.left
    }

    /// The next line.
    #[inline(always)]
    pub(super) fn next(&mut self) -> *const f32 {
        let at = self.at;
        self.at = at.wrapping_add(LINE);
        self.in_row -= 1;
        if self.in_row == 0 {
            self.at = self.at.wrapping_offset(self.jump);
            self.in_row = self.row;
        }
        at
    }

    /// Up to `most` of the lines.
    fn take(&mut self, most: usize) -> Self {
        let first = Ahead { left: self.left.min(most), ..*self };
        let done = self.row - self.in_row + first.left;
        let rows = done / self.row;
        self.at = self.at.wrapping_add(first.left * LINE).wrapping_offset(rows as isize * self.jump);
        (self.in_row, self.left) = (self.row - done % self.row, self.left - first.left);
        first
    }
}

/// Up to four parts of maps, fetched one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Queue([Ahead; 4]);

impl Queue {
    /// Nothing.
    pub const NONE: Queue = Queue([Ahead::NONE; 4]);

    /// These.
    pub fn of<const N: usize>(parts: [Ahead; N]) -> Self {
        Queue(std::array::from_fn(|i| parts.get(i).copied().unwrap_or(Ahead::NONE)))
    }

    /// Lines that are left.
    pub(in crate::kernels::gemm) fn lines(&self) -> usize {
        self.0.iter().map(|part| part.left).sum()
    }

    /// The next line of any part, if there is one.
    #[inline(always)]
    pub(in crate::kernels::gemm) fn next(&mut self) -> Option<*const f32> {
        for _ in 0..self.0.len() {
            let [first, ..] = &mut self.0;
            if first.left > 0 {
                first.left -= 1;
                return Some(first.next());
            }
            self.0.rotate_left(1);
        }
        None
    }

    /// Up to `most` lines, of one of the parts.
    pub(super) fn take(&mut self, most: usize) -> Ahead {
        self.0.iter_mut().find(|ahead| ahead.left > 0).map_or(Ahead::NONE, |ahead| ahead.take(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_every_part_is_fetched_once_in_portions_of_any_size() {
        let at = |float: usize| std::ptr::null::<f32>().wrapping_add(float);
        // Rows of three lines in pixels of seven; pixels without gaps.
        let parts = || Queue::of([Ahead::new(at(0), 5, [40, 112]), Ahead::new(at(1600), 4, [24, 24])]);
        let rows = (0..5).flat_map(|pixel| (0..3).map(move |line| pixel * 112 + line * 16));
        let want: Vec<_> = rows.chain((0..6).map(|line| 1600 + line * 16)).map(at).collect();
        for most in [1, 2, 3, 4, 7, 100] {
            let (mut queue, mut got) = (parts(), vec![]);
            loop {
                let mut portion = queue.take(most);
                if portion.lines() == 0 {
                    break;
                }
                assert!(portion.lines() <= most);
                got.extend((0..portion.lines()).map(|_| portion.next()).collect::<Vec<_>>());
            }
            assert_eq!(got, want, "{most} at a time");
        }
        let mut queue = parts();
        assert_eq!(queue.lines(), want.len());
        assert_eq!(std::iter::from_fn(|| queue.next()).collect::<Vec<_>>(), want, "one by one");
        assert_eq!((queue.lines(), queue.next()), (0, None));
    }
}
