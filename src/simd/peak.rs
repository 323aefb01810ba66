//! What the machine could do: the yardstick for "percent of peak".

use super::{Isa, Simd, Task};
use std::hint::black_box;
use std::time::Instant;

/// Multiply-adds on twelve independent registers, enough to hide the latency of two units: nothing is faster.
#[derive(Clone, Copy)]
struct Peak {
    rounds: usize,
}

impl Task for Peak {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: touches no memory; the instruction set is the caller's.
        unsafe {
            let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(1e-3)));
            let mut sums = [a; 12];
            for _ in 0..self.rounds {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            sums.iter().map(|&sum| S::hsum(sum)).sum()
        }
    }
}

/// The multiply-add rate of `threads` threads together, in 10⁹ floating-point operations per second, measured now: the
/// best of several runs of a few milliseconds each.
pub fn peak_gflops(isa: Isa, threads: usize) -> f64 {
    const ROUNDS: usize = 400_000;
    let one_run = || {
        let started = Instant::now();
        // SAFETY: `Peak` has no condition of its own.
        black_box(unsafe { isa.run(Peak { rounds: ROUNDS }) });
        started.elapsed().as_secs_f64()
    };
    let best = |_| (0..12).map(|_| one_run()).fold(f64::INFINITY, f64::min);
    let seconds: Vec<f64> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..threads.max(1)).map(|i| scope.spawn(move || best(i))).collect();
        helpers.into_iter().map(|h| h.join().unwrap_or(f64::INFINITY)).collect()
    });
    let flops = (2 * 12 * isa.lanes() * ROUNDS) as f64;
    seconds.iter().map(|s| flops / s / 1e9).sum()
}
