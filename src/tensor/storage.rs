//! Memory for `f32` values that starts on a 64-byte boundary: one cache line, one AVX-512 register.
#![allow(unsafe_code, reason = "views a vector of 64-byte blocks as the floats inside it")]

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growable-once buffer of `len` floats aligned to 64 bytes.
#[derive(Clone)]
pub struct AlignedBuf {
    /// Invariant: `lines.len() * 16 >= len`, and every float in it is initialised.
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBuf {
    /// `len` zeros, or `None` if the memory is not to be had.
    pub fn try_zeros(len: usize) -> Option<Self> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16)).ok()?;
        lines.resize(len.div_ceil(16), Line([0.0; 16]));
        Some(AlignedBuf { lines, len })
    }

    /// `len` zeros. Aborts like `Vec` when memory runs out.
    pub fn zeros(len: usize) -> Self {
        AlignedBuf { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: by the invariant the lines hold at least `len` initialised floats, and `Line` is `repr(C)` around
        // them without padding (64 bytes, alignment 64).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_exactly_long() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let buf = AlignedBuf::zeros(len);
            assert_eq!((buf.len(), buf.as_ptr() as usize % 64), (len, 0));
            assert!(buf.iter().all(|&v| v == 0.0));
        }
    }
}
