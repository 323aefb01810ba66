//! Memory for `f32` values that starts on a 64-byte boundary: one cache line, one AVX-512 register.
#![allow(unsafe_code, reason = "allocates memory whose alignment and first touch are its own business")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
#[cfg(all(target_os = "linux", not(miri)))]
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One cache line.
const ALIGN: usize = 64;

/// What every allocator gives unasked. A stricter demand would make it clear the memory by hand; without one, large
/// zeroed memory comes from the system as pages that take no room before they are written.
const NATURAL: usize = 16;

/// A buffer of `len` floats aligned to 64 bytes, its memory a whole number of cache lines.
///
/// On Linux a buffer of several megabytes asks for pages of 2 MiB: touching it for the first time then costs a tenth, and
/// reading it misses fewer translations.
pub struct AlignedBuf {
    /// Invariant: `len` initialised floats, rounded up to a whole line, lie here on a 64-byte boundary.
    data: NonNull<f32>,
    len: usize,
    block: Block,
}

/// Whose memory it is.
enum Block {
    /// Nobody's: there are no floats.
    None,
    /// What the allocator gave for `layout(len)`.
    Heap(NonNull<u8>),
    /// The system's own; returned to it with the last buffer there.
    #[cfg(all(target_os = "linux", not(miri)))]
    #[expect(dead_code, reason = "owns what `data` points to")]
    Mapped(Arc<memmap2::MmapMut>),
}

// SAFETY: the buffer owns its memory, and floats may be used from any thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; writing needs `&mut`.
unsafe impl Sync for AlignedBuf {}

/// The memory of `len` floats in whole lines, wherever the first of them begins.
fn layout(len: usize) -> Option<Layout> {
    let bytes = len.checked_next_multiple_of(ALIGN / size_of::<f32>())?.checked_mul(size_of::<f32>())?;
    Layout::from_size_align(bytes.checked_add(ALIGN - NATURAL)?, NATURAL).ok()
}

impl AlignedBuf {
    /// `len` zeros, or `None` if the memory is not to be had.
    pub fn try_zeros(len: usize) -> Option<Self> {
        if len == 0 {
            #[repr(align(64))]
            struct Line;
            return Some(AlignedBuf { data: NonNull::<Line>::dangling().cast(), len, block: Block::None });
        }
        #[cfg(all(target_os = "linux", not(miri)))]
        if len >= LARGE_PAGE / size_of::<f32>() {
            return mapped(len);
        }
        // SAFETY: the layout is not empty.
        let block = NonNull::new(unsafe { alloc_zeroed(layout(len)?) })?;
        huge_pages(block, len * size_of::<f32>());
        // SAFETY: the block is aligned to `NATURAL`, so at most `ALIGN − NATURAL` bytes are skipped, which the layout has.
        let data = unsafe { block.add(block.align_offset(ALIGN)) }.cast();
        Some(AlignedBuf { data, len, block: Block::Heap(block) })
    }

    /// `len` zeros. Aborts like `Vec` when memory runs out.
    pub fn zeros(len: usize) -> Self {
        let refused = || match layout(len) {
            Some(layout) => handle_alloc_error(layout),
            None => panic!("{len} floats are more than can be addressed"),
        };
        AlignedBuf::try_zeros(len).unwrap_or_else(refused)
    }
}

impl AlignedBuf {
    /// `len` zeros to be kept as long as others like them: the packed weights of a plan. On Linux buffers of any length
    /// lie behind each other on pages of 2 MiB, which go back to the system when the last of their buffers does. Aborts
    /// like `Vec` when memory runs out.
    pub fn lasting_zeros(len: usize) -> Self {
        #[cfg(all(target_os = "linux", not(miri)))]
        if let Some(buf) = shared(len) {
            return buf;
        }
        AlignedBuf::zeros(len)
    }
}

/// Bytes mapped at a time for buffers that share pages.
#[cfg(all(target_os = "linux", not(miri)))]
const REGION: usize = 4 * LARGE_PAGE;

/// Where the next buffer goes: the map, and bytes from its start.
#[cfg(all(target_os = "linux", not(miri)))]
static REGION_IN_USE: Mutex<(Weak<memmap2::MmapMut>, usize)> = Mutex::new((Weak::new(), 0));

/// `len` zeros behind those asked for before; `None` if that is no place for so many or the system has no more.
#[cfg(all(target_os = "linux", not(miri)))]
fn shared(len: usize) -> Option<AlignedBuf> {
    let bytes = len.checked_next_multiple_of(ALIGN / size_of::<f32>())?.checked_mul(size_of::<f32>())?;
    if bytes == 0 || bytes > REGION / 2 {
        return None;
    }
    let mut in_use = REGION_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut map, mut start) = (in_use.0.upgrade(), in_use.1);
    if map.as_ref().is_none_or(|map| map.len() - start < bytes) {
        let fresh = memmap2::MmapMut::map_anon(REGION + LARGE_PAGE).ok()?;
        start = fresh.as_ptr().align_offset(LARGE_PAGE);
        // A wish: the memory is as good without.
        let _ = fresh.advise_range(memmap2::Advice::HugePage, start, REGION);
        map = Some(Arc::new(fresh));
    }
    let map = map?;
    *in_use = (Arc::downgrade(&map), start + bytes);
    // SAFETY: the bytes from `start` on lie in the map and in no other buffer; nobody looks at them through the map.
    let data = NonNull::new(unsafe { map.as_ptr().add(start) }.cast_mut())?.cast();
    Some(AlignedBuf { data, len, block: Block::Mapped(map) })
}

#[cfg(all(target_os = "linux", not(miri)))]
const LARGE_PAGE: usize = 2 << 20;

/// `len` zeros on large pages, as far as they are filled: where less than a sixteenth would be wasted, the last one too.
#[cfg(all(target_os = "linux", not(miri)))]
fn mapped(len: usize) -> Option<AlignedBuf> {
    let bytes = layout(len)?.size();
    // One page more than needed, to begin at a boundary; what is never touched takes no memory.
    let room = bytes.checked_next_multiple_of(LARGE_PAGE)?;
    let mut map = memmap2::MmapMut::map_anon(room.checked_add(LARGE_PAGE)?).ok()?;
    let skipped = map.as_ptr().align_offset(LARGE_PAGE);
    let whole = if room - bytes <= bytes / 16 { room } else { room - LARGE_PAGE };
    // A wish: the memory is as good without.
    let _ = map.advise_range(memmap2::Advice::HugePage, skipped, whole);
    let data = NonNull::from(&mut map[skipped..][..bytes]).cast();
    Some(AlignedBuf { data, len, block: Block::Mapped(Arc::new(map)) })
}

/// Asks for pages of 2 MB where a fresh block is larger than a few of them: reading it from end to end is half as fast
/// again when addresses are looked up once in 2 MB instead of once in 4 KB. A hint; nothing depends on it.
#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
fn huge_pages(block: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    const PAGE: usize = 2 << 20;
    const MADV_HUGEPAGE: c_int = 14;
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    let skipped = block.as_ptr().align_offset(PAGE);
    let pages = bytes.saturating_sub(skipped) / PAGE;
    if pages > 0 {
        // SAFETY: whole pages inside the block, which is ours; how they are backed changes nothing of what they hold.
        unsafe { madvise(block.as_ptr().add(skipped).cast(), pages * PAGE, MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
fn huge_pages(_: NonNull<u8>, _: usize) {}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (Block::Heap(block), Some(layout)) = (&self.block, layout(self.len)) {
            // SAFETY: `try_zeros` allocated the block with this layout.
            unsafe { dealloc(block.as_ptr(), layout) };
        }
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> Self {
        let mut copy = AlignedBuf::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: by the invariant.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: by the invariant, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

/// The bytes of floats, to read a file into.
#[cfg(feature = "safetensors")]
pub(crate) fn bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory, borrowed the same way; any bytes are floats, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_exactly_long() {
        for len in [0, 1, 15, 16, 17, 1000, 1 << 19, (1 << 20) + 3] {
            let mut buf = AlignedBuf::zeros(len);
            assert_eq!((buf.len(), buf.as_ptr() as usize % 64), (len, 0));
            assert!(buf.iter().all(|&v| v == 0.0));
            buf.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let copy = buf.clone();
            drop(buf);
            assert!(copy.iter().enumerate().all(|(i, &v)| v == i as f32));
        }
    }

    #[test]
    fn buffers_on_shared_pages_are_apart_and_outlive_each_other() {
        let lengths = [1, 0, 17, 400_000, 70_001, 900_000, 1_000_000, 16, 3 << 20, 5];
        let mut bufs: Vec<_> = lengths.iter().map(|&len| AlignedBuf::lasting_zeros(len)).collect();
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert_eq!((buf.len(), buf.as_ptr() as usize % 64), (lengths[i], 0));
            assert!(buf.iter().all(|&v| v == 0.0));
            buf.fill(i as f32 + 1.0);
        }
        for i in (0..bufs.len()).rev().step_by(2) {
            assert!(bufs[i].iter().all(|&v| v == i as f32 + 1.0));
            bufs[i] = AlignedBuf::lasting_zeros(lengths[i]);
        }
        for (i, buf) in bufs.iter().enumerate() {
            let wanted = if i % 2 == 1 { 0.0 } else { i as f32 + 1.0 };
            assert!(buf.iter().all(|&v| v == wanted), "buffer {i}");
        }
    }

    #[test]
    fn more_than_can_be_addressed_is_none() {
        assert!([usize::MAX, usize::MAX / 4, usize::MAX / 8].iter().all(|&len| AlignedBuf::try_zeros(len).is_none()));
    }

    #[test]
    #[cfg(feature = "safetensors")]
    fn bytes_of_floats_are_theirs() {
        let mut values = [0.0, 1.0];
        bytes_mut(&mut values)[..4].copy_from_slice(&2.5f32.to_ne_bytes());
        assert_eq!(values, [2.5, 1.0]);
    }
}
