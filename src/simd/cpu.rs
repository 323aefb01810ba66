//! What kernels ask about the CPU beside its instruction set. How a kernel is cut changes no result; which one is chosen
//! changes the last bits.

use std::sync::OnceLock;

/// Bytes of a core's first cache for data; what is meant to stay in it is cut accordingly.
pub fn first_cache() -> usize {
    const WHERE_NOT_TOLD: usize = 32 << 10;
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| asked::first_cache().unwrap_or(WHERE_NOT_TOLD))
}

/// Whether sums are made in other units than products, as in AMD's cores: additions that save multiplications are free
/// there. Elsewhere both wait for the same units.
pub fn adds_apart() -> bool {
    static APART: OnceLock<bool> = OnceLock::new();
    *APART.get_or_init(asked::adds_apart)
}

/// What the CPU calls itself, or at least its architecture.
pub fn cpu_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| asked::name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}

#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "safe in later versions of the standard library")]
mod asked {
    use std::arch::x86_64::{__cpuid_count, CpuidResult};

    fn leaf(leaf: u32, sub: u32) -> CpuidResult {
        // SAFETY: every CPU of this architecture has the instruction.
        unsafe { __cpuid_count(leaf, sub) }
    }

    /// Intel and AMD describe their caches alike, in different leaves.
    pub(super) fn first_cache() -> Option<usize> {
        const DATA: u32 = 1;
        let described =
            [(0, 4), (0x8000_0000, 0x8000_001d)].into_iter().filter(|&(range, at)| leaf(range, 0).eax >= at);
        described.flat_map(|(_, at)| (0..4).map(move |sub| leaf(at, sub))).find_map(|cache| {
            let [kind, level] = [cache.eax & 31, cache.eax >> 5 & 7];
            let [ways, partitions, line] = [cache.ebx >> 22, cache.ebx >> 12 & 0x3ff, cache.ebx & 0xfff];
            let bytes = [ways, partitions, line, cache.ecx].iter().map(|&less_one| less_one as usize + 1).product();
            ([kind, level] == [DATA, 1]).then_some(bytes)
        })
    }

    pub(super) fn name() -> Option<String> {
        const PARTS: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
        if leaf(0x8000_0000, 0).eax < *PARTS.end() {
            return None;
        }
        let parts = PARTS.map(|at| leaf(at, 0)).flat_map(|CpuidResult { eax, ebx, ecx, edx }| [eax, ebx, ecx, edx]);
        let bytes: Vec<u8> = parts.flat_map(u32::to_le_bytes).take_while(|&byte| byte != 0).collect();
        let name = String::from_utf8_lossy(&bytes).split_whitespace().collect::<Vec<_>>().join(" ");
        (!name.is_empty()).then_some(name)
    }

    pub(super) fn adds_apart() -> bool {
        let CpuidResult { ebx, ecx, edx, .. } = leaf(0, 0);
        [ebx, edx, ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod asked {
    pub(super) fn first_cache() -> Option<usize> {
        None
    }

    pub(super) fn adds_apart() -> bool {
        false
    }

    pub(super) fn name() -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_cache_has_a_size_that_some_cpu_has() {
        let bytes = super::first_cache();
        assert!((8 << 10..=1 << 20).contains(&bytes), "{bytes}");
    }
}
