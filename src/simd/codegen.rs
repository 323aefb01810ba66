//! What the compiler made of a kernel, read back from the machine code of the running test: the loops around its
//! multiply-adds, and whether anything in them goes through the stack or leaves the function.
//!
//! A spilled accumulator or a call that was not inlined costs a kernel half its speed or more and breaks nothing else,
//! so no other test would notice.

use super::{Isa, Routine, Simd};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loop {
    /// Multiply-adds on whole registers of 16, and of 8 lanes.
    pub(crate) fma: [usize; 2],
    /// Calls.
    pub(crate) calls: usize,
    /// Vectors stored to or read from the stack.
    pub(crate) spills: usize,
    /// Vectors copied from register to register.
    pub(crate) moves: usize,
    /// Everything in it.
    pub(crate) instructions: usize,
}

impl Loop {
    /// Fails if the loop calls anything, or has more than `spills` vectors on the stack.
    #[track_caller]
    pub(crate) fn assert_in_registers(&self, what: &str, spills: usize) {
        assert_eq!(self.calls, 0, "{what}: something in the loop is not inlined: {self:?}");
        let within = self.spills <= spills || arithmetic_is_checked();
        assert!(within, "{what}: at most {spills} vectors may go through the stack: {self:?}");
    }
}

/// The loop with so many multiply-adds on registers of `isa`. Fails if there is none.
#[track_caller]
pub(crate) fn with_products(loops: &[Loop], isa: Isa, products: usize, what: &str) -> Loop {
    let fma = if isa.lanes() == 16 { [products, 0] } else { [0, products] };
    let found = loops.iter().find(|l| l.fma == fma);
    *found.unwrap_or_else(|| panic!("{what}: no loop has {products} multiply-adds: {loops:?}"))
}

/// The instructions of a function that can be reached without an indirect jump, by address.
type Code = BTreeMap<u64, Instruction>;

/// The innermost loops that multiply and add, of the function at `entry` (not of those that it calls), by address.
pub(crate) fn loops(entry: *const ()) -> Vec<Loop> {
    let code = reach(entry as u64, CALLS);
    let bodies = bodies(&code, entry as u64);
    let multiplies = |body: &BTreeSet<u64>| body.iter().any(|at| fma_lanes(&code[at]).is_some());
    let bodies: Vec<_> = bodies.into_values().filter(multiplies).collect();
    let innermost = |body: &&BTreeSet<u64>| !bodies.iter().any(|b| b.len() < body.len() && b.is_subset(body));
    // A function with a frame of its own addresses it by RBP; in others that is a register like any other.
    let is_frame = |i: &Instruction| {
        i.mnemonic() == Mnemonic::Mov && i.op0_register() == Register::RBP && i.op1_register() == Register::RSP
    };
    let frame = if code.values().any(is_frame) { Register::RBP } else { Register::RSP };
    bodies.iter().filter(innermost).map(|body| describe(body.iter().map(|at| &code[at]), frame)).collect()
}

fn describe<'a>(instructions: impl Iterator<Item = &'a Instruction>, frame: Register) -> Loop {
    let mut found = Loop { fma: [0; 2], calls: 0, spills: 0, moves: 0, instructions: 0 };
    for instruction in instructions {
        found.instructions += 1;
        match fma_lanes(instruction) {
            Some(16) => found.fma[0] += 1,
            Some(8) => found.fma[1] += 1,
            _ => {}
        }
        found.calls += usize::from(is_call(instruction));
        let operands = || 0..instruction.op_count();
        let is_vector = |i| instruction.op_register(i).is_vector_register();
        let in_memory = operands().any(|i| instruction.op_kind(i) == OpKind::Memory);
        let on_stack = in_memory && [Register::RSP, frame].contains(&instruction.memory_base());
        found.spills += usize::from(on_stack && operands().any(is_vector));
        let moves = matches!(instruction.mnemonic(), Mnemonic::Vmovaps | Mnemonic::Vmovups | Mnemonic::Vmovdqa64);
        found.moves += usize::from(moves && operands().all(is_vector));
    }
    found
}

fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

/// Lanes of a multiply-add.
fn fma_lanes(instruction: &Instruction) -> Option<usize> {
    use Mnemonic::{Vfmadd132ps, Vfmadd213ps, Vfmadd231ps};
    if !matches!(instruction.mnemonic(), Vfmadd132ps | Vfmadd213ps | Vfmadd231ps) {
        return None;
    }
    Some(instruction.op0_register().size() / 4)
}

/// Calls of calls that are looked into to see whether they return. What panics is deeper than that.
const CALLS: usize = 3;

/// Where an instruction may lead.
fn next(instruction: &Instruction, calls: usize) -> Vec<u64> {
    match instruction.flow_control() {
        FlowControl::Call if !returns(instruction.near_branch_target(), calls) => Vec::new(),
        FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => vec![instruction.next_ip()],
        FlowControl::ConditionalBranch => vec![instruction.next_ip(), instruction.near_branch_target()],
        FlowControl::UnconditionalBranch => vec![instruction.near_branch_target()],
        _ => Vec::new(),
    }
}

/// Whether the function at `entry` comes back. Behind a call that does not, there may be another function.
fn returns(entry: u64, calls: usize) -> bool {
    let leaves = |i: &Instruction| matches!(i.flow_control(), FlowControl::Return | FlowControl::IndirectBranch);
    calls > 0 && reach(entry, calls - 1).values().any(leaves)
}

/// Decodes what can be reached from `entry`.
fn reach(entry: u64, calls: usize) -> Code {
    /// No instruction is longer.
    const LONGEST: usize = 15;
    let mut code = Code::new();
    let mut todo = vec![entry];
    while let Some(at) = todo.pop() {
        if code.contains_key(&at) {
            continue;
        }
        // SAFETY: reached from a function of this process, so code; what follows the last function of a program is
        // mapped too (its exception tables).
        let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, LONGEST) };
        let instruction = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
        assert!(!instruction.is_invalid(), "no instruction at {at:#x}");
        todo.extend(next(&instruction, calls));
        code.insert(at, instruction);
    }
    code
}

/// Whether this build checks arithmetic for overflow. The branches for that split a loop into many blocks, between which
/// the compiler moves sums to the stack: `.ci/codegen` builds without.
pub(crate) fn arithmetic_is_checked() -> bool {
    #[inline(never)]
    fn sum(a: usize, b: usize) -> usize {
        a + b
    }
    reach(sum as fn(usize, usize) -> usize as usize as u64, 0).len() > 4
}

/// The natural loops, by the address of their first instruction: of every jump back to an instruction on the way to
/// it, all that can reach the jump without passing that instruction.
fn bodies(code: &Code, entry: u64) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut before: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut back = Vec::new();
    // Depth first: instructions on the present path are open, and jumps to them are jumps back.
    let (mut open, mut done) = (BTreeSet::from([entry]), BTreeSet::new());
    let mut path = vec![(entry, next(&code[&entry], CALLS))];
    while let Some((at, rest)) = path.last_mut() {
        let at = *at;
        let Some(to) = rest.pop() else {
            open.remove(&at);
            done.insert(at);
            path.pop();
            continue;
        };
        before.entry(to).or_default().push(at);
        if open.contains(&to) {
            back.push((at, to));
        } else if !done.contains(&to) {
            open.insert(to);
            path.push((to, next(&code[&to], CALLS)));
        }
    }
    let mut bodies: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (from, head) in back {
        let body = bodies.entry(head).or_insert_with(|| BTreeSet::from([head]));
        let mut todo = vec![from];
        while let Some(at) = todo.pop() {
            if body.insert(at) {
                todo.extend(before.get(&at).into_iter().flatten());
            }
        }
    }
    bodies
}

/// Sums of `N` products at once, over a loop.
struct Products<const N: usize>;

impl<const N: usize> Routine for Products<N> {
    type Args = (Range<*const f32>, *mut f32);

    #[inline(always)]
    unsafe fn run<S: Simd>((factors, out): &Self::Args) {
        // SAFETY: only compiled, never run.
        unsafe {
            let (mut sums, mut at) = ([S::zero(); N], factors.start);
            while at < factors.end {
                let x = S::splat(*at);
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(x, S::load(at.add(n * S::LANES)), *sum);
                }
                at = at.add(1);
            }
            for (n, &sum) in sums.iter().enumerate() {
                S::store(out.add(n * S::LANES), sum);
            }
        }
    }
}

#[test]
fn machine_code_with_more_sums_than_registers_is_seen_to_spill() {
    for &isa in Isa::available().iter().filter(|isa| isa.lanes() >= 8) {
        let (few, many) = match isa {
            Isa::Avx2 => (isa.routine::<Products<12>>() as *const (), isa.routine::<Products<20>>() as *const ()),
            _ => (isa.routine::<Products<24>>() as *const (), isa.routine::<Products<40>>() as *const ()),
        };
        let products = if isa == Isa::Avx2 { 12 } else { 24 };
        with_products(&loops(few), isa, products, "few sums").assert_in_registers("few sums", 0);
        assert!(loops(many).iter().any(|l| l.spills > 0), "{:?}", loops(many));
    }
}
