//! What a way to compute a convolution costs here: timed on made-up numbers.

#![allow(unsafe_code, reason = "runs kernels on raw maps")]

use super::{Algorithm, ConvSpec};
use crate::kernels::{Epilogue, Io, Kernel, Map};
use crate::shape::Window;
use crate::simd::Isa;
use crate::tensor::AlignedBuf;
use std::time::{Duration, Instant};

/// Runs of each way, of which the shortest counts.
const RUNS: usize = 7;

/// Another way must be faster than the usual one by this much: less is noise.
const LEAST_GAIN: f64 = 1.04;

/// How long a core works before it is timed: wide registers and a matrix unit that have not been used for a while are slow at first,
/// as they are not in a network.
const WARM: Duration = Duration::from_millis(1);

/// What lies between two runs of a layer: the rest of the network, whose weights come through the cache.
pub struct Others(AlignedBuf);

impl Others {
    /// More than this makes no difference.
    const MOST: usize = 64 << 20;

    /// Weights of so many bytes.
    pub fn new(bytes: usize) -> Self {
        let mut others = AlignedBuf::zeros(bytes.min(Self::MOST) / 4);
        // Pages that were never written are all one and the same.
        others.fill(1.0);
        Others(others)
    }

    /// Reads one float of every cache line; as weights, they are not written, which would keep memory busy afterwards.
    fn pass(&self) {
        std::hint::black_box(self.0.iter().step_by(16).sum::<f32>());
    }
}

/// The fastest of `able` on one thread; `usual`, one of them, unless another is clearly faster.
pub fn fastest(spec: ConvSpec, able: &[Algorithm], usual: Algorithm, isa: Isa, others: &Others) -> Algorithm {
    let weight: Vec<f32> = (0..spec.output.c * spec.depth()).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut before = Trial::before(isa);
    let mut trials: Vec<Trial> = able.iter().map(|&way| Trial::new(spec, way, &weight, isa)).collect();
    let mut times = vec![Duration::MAX; able.len()];
    // In turn, so that what slows the machine down for a while slows all of them.
    for _ in 0..RUNS {
        for (trial, least) in trials.iter_mut().zip(&mut times) {
            others.pass();
            let started = Instant::now();
            while started.elapsed() < WARM {
                before.run();
            }
            *least = trial.run().min(*least);
        }
    }
    let timed = || able.iter().copied().zip(times.iter().map(Duration::as_secs_f64));
    let clearly = |&(_, least): &(_, f64)| timed().any(|(way, time)| way == usual && least * LEAST_GAIN < time);
    timed().min_by(|a, b| a.1.total_cmp(&b.1)).filter(clearly).map_or(usual, |(best, _)| best)
}

/// A kernel and the maps it works on.
struct Trial {
    kernel: Box<dyn Kernel>,
    input: AlignedBuf,
    residual: AlignedBuf,
    output: AlignedBuf,
    scratch: AlignedBuf,
}

impl Trial {
    fn new(spec: ConvSpec, way: Algorithm, weight: &[f32], isa: Isa) -> Self {
        let kernel = way.prepare(spec, &weight, None, isa);
        let residual = spec.epilogue.residual.map_or(0, |ld| spec.output.pixels() * ld);
        Trial {
            input: AlignedBuf::zeros(spec.input.extent()),
            residual: AlignedBuf::zeros(residual),
            output: AlignedBuf::zeros(spec.output.extent()),
            scratch: AlignedBuf::zeros(kernel.scratch()),
            kernel,
        }
    }

    /// A product of few weights, by the means of the instruction set.
    fn before(isa: Isa) -> Self {
        let map = Map::dense([1, 32, 32, 64]);
        let window = Window::square(1);
        let placed = window.place([32; 2], "before").expect("a window of one pixel fits");
        let spec = ConvSpec { input: map, output: map, window, placed, groups: 1, epilogue: Epilogue::default() };
        let way = if isa == isa.vectors() { Algorithm::Plain } else { Algorithm::MatrixUnit };
        Trial::new(spec, way, &[0.5; 64 * 64], isa)
    }

    /// How long one run takes whose input was written just before.
    fn run(&mut self) -> Duration {
        self.input.fill(1.0);
        let io = Io::new(&[self.input.as_ptr(), self.residual.as_ptr()], self.output.as_mut_ptr());
        let started = Instant::now();
        for tile in 0..self.kernel.tiles() {
            // SAFETY: the buffers have the extents of the maps the kernel was prepared for, and as much scratch as it asks for;
            // one tile runs after the other.
            unsafe { self.kernel.run(tile, &io, &mut self.scratch) };
        }
        started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::conv::Precision;
    use crate::shape::Padding;

    #[test]
    fn where_fewer_multiplications_tell_a_way_with_fewer_is_found() {
        let window = Window { padding: Padding::Symmetric([1; 2]), ..Window::square(3) };
        let map = Map::dense([1, 28, 28, 64]);
        let placed = window.place([28; 2], "test").unwrap();
        let residual = Epilogue { residual: Some(64), activation: None };
        let spec = ConvSpec { input: map, output: map, window, placed, groups: 1, epilogue: residual };
        let isa = Isa::detect();
        let able = Algorithm::able(&spec, Precision::Fast, isa);
        let found = fastest(spec, &able, Algorithm::Plain, isa, &Others::new(1 << 20));
        assert!(matches!(found, Algorithm::Winograd(_)), "{found}");
        assert_eq!(fastest(spec, &[Algorithm::Plain], Algorithm::Plain, isa, &Others::new(0)), Algorithm::Plain);
    }
}
