//! Kernels against the machine, one thread: percent of the measured multiply-add peak for the convolutions that matter
//! (Winograd's may exceed 100: products it saves count), percent of the memory's speed for layers that only read weights.
//!
//! `cargo bench --bench kernels [-- FILTER]`. Before a time is told, some of the outputs are compared with the definition.
#![allow(unsafe_code, reason = "runs kernels on raw maps")]

use convzoo::Activation;
use convzoo::kernels::conv::{self, ConvSpec, LinearSpec};
use convzoo::kernels::{Epilogue, Io, Kernel, Map};
use convzoo::shape::{Padding, Window};
use convzoo::simd::{Isa, Simd, Task, peak_gflops};
use convzoo::tensor::AlignedBuf;
use std::hint::black_box;
use std::time::Instant;

/// Sums a buffer on eight registers.
struct Read<'a>(&'a [f32]);

impl Task for Read<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: every block lies within the slice.
        unsafe {
            let mut acc = [S::zero(); 8];
            for block in self.0.chunks_exact(8 * S::LANES) {
                for (i, x) in acc.iter_mut().enumerate() {
                    *x = S::add(*x, S::load(block.as_ptr().add(i * S::LANES)));
                }
            }
            acc.iter().map(|&x| S::hsum(x)).sum()
        }
    }
}

/// The shortest of many runs, in seconds.
fn best_of(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.1 {
        let t = Instant::now();
        run();
        best = best.min(t.elapsed().as_secs_f64());
    }
    best
}

fn noise(len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeros(len);
    let mut state = 1u32;
    for v in buf.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *v = (state >> 8) as f32 / 16_777_216.0 - 0.5;
    }
    buf
}

/// Seconds for all tiles of `kernel`, one after the other: the sum of the shortest time of each, so that a busy machine
/// does not show. `spec`, `weight` and `bias` say what it must compute.
fn time(kernel: &dyn Kernel, spec: &ConvSpec, weight: &[f32], bias: f32) -> f64 {
    let (x, mut y) = (noise(spec.input.extent()), noise(spec.output.extent()));
    let mut scratch = AlignedBuf::zeros(kernel.scratch());
    let io = Io::new(&[x.as_ptr()], y.as_mut_ptr());
    let mut best = vec![f64::INFINITY; kernel.tiles()];
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.3 {
        for (tile, best) in best.iter_mut().enumerate() {
            let t = Instant::now();
            // SAFETY: the buffers have the extents of the maps the kernel was prepared for.
            unsafe { kernel.run(tile, &io, &mut scratch) };
            *best = best.min(t.elapsed().as_secs_f64());
        }
    }
    check(spec, [&x, weight, &y], bias, &kernel.name());
    best.iter().sum()
}

/// Compares every 997th output with its definition, in f64.
fn check(spec: &ConvSpec, [x, weight, y]: [&[f32]; 3], bias: f32, name: &str) {
    let (from, to, [kh, kw]) = (spec.input, spec.output, spec.window.kernel);
    let (per_group, inputs) = (to.c / spec.groups, from.c / spec.groups);
    for at in (0..to.pixels() * to.c).step_by(997) {
        let (pixel, output) = (at / to.c, at % to.c);
        let (image, oy, ox) = (pixel / (to.h * to.w), pixel / to.w % to.h, pixel % to.w);
        let [mut sum, mut size] = [f64::from(bias); 2];
        for (tap, channel) in (0..kh * kw).flat_map(|tap| (0..inputs).map(move |channel| (tap, channel))) {
            let place = |o: usize, tap: usize, axis: usize| {
                (o * spec.window.stride[axis] + tap).wrapping_sub(spec.placed.before[axis])
            };
            let (row, column) = (place(oy, tap / kw, 0), place(ox, tap % kw, 1));
            if row < from.h && column < from.w {
                let x = x[((image * from.h + row) * from.w + column) * from.ld + output / per_group * inputs + channel];
                let product = f64::from(x) * f64::from(weight[(output * inputs + channel) * kh * kw + tap]);
                (sum, size) = (sum + product, size + product.abs());
            }
        }
        let want = if spec.epilogue.activation.is_some() { sum.max(0.0) } else { sum };
        let got = f64::from(y[pixel * to.ld + output]);
        assert!((got - want).abs() <= 1e-5 * size, "{name}: output {at} is {got}, not {want}");
    }
}

struct Case {
    label: &'static str,
    size: usize,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn case(label: &'static str, size: usize, channels: [usize; 2], kernel: usize, stride: usize) -> Case {
    Case { label, size, channels, kernel, stride, groups: 1 }
}

const fn depthwise(label: &'static str, size: usize, channels: usize, kernel: usize, stride: usize) -> Case {
    Case { label, size, channels: [channels; 2], kernel, stride, groups: channels }
}

const CASES: &[Case] = &[
    case("1x1 64->64 @56", 56, [64, 64], 1, 1),
    case("1x1 64->256 @56", 56, [64, 256], 1, 1),
    case("1x1 256->64 @56", 56, [256, 64], 1, 1),
    case("1x1 256->128 @56", 56, [256, 128], 1, 1),
    case("1x1 128->512 @28", 28, [128, 512], 1, 1),
    case("1x1 512->128 @28", 28, [512, 128], 1, 1),
    case("1x1 256->1024 @14", 14, [256, 1024], 1, 1),
    case("1x1 1024->256 @14", 14, [1024, 256], 1, 1),
    case("1x1 512->2048 @7", 7, [512, 2048], 1, 1),
    case("1x1 2048->512 @7", 7, [2048, 512], 1, 1),
    case("1x1/2 256->512 @56", 56, [256, 512], 1, 2),
    case("3x3 64->64 @56", 56, [64, 64], 3, 1),
    case("3x3 128->128 @28", 28, [128, 128], 3, 1),
    case("3x3 256->256 @14", 14, [256, 256], 3, 1),
    case("3x3 512->512 @7", 7, [512, 512], 3, 1),
    case("3x3/2 128->128 @56", 56, [128, 128], 3, 2),
    case("3x3 128->32 @28", 28, [128, 32], 3, 1),
    case("1x1 32->16 @112", 112, [32, 16], 1, 1),
    case("1x1 16->96 @112", 112, [16, 96], 1, 1),
    case("1x1 144->24 @56", 56, [144, 24], 1, 1),
    case("7x7/2 3->64 @224 stem", 230, [3, 64], 7, 2),
    depthwise("dw3x3 32 @112", 112, 32, 3, 1),
    depthwise("dw3x3/2 96 @112", 112, 96, 3, 2),
    depthwise("dw5x5 240 @28", 28, 240, 5, 1),
    depthwise("dw5x5/2 672 @14", 14, 672, 5, 2),
    depthwise("dw5x5 1152 @7", 7, 1152, 5, 1),
];

fn convolution(case: &Case, isa: Isa) -> (Box<dyn Kernel>, f64, f64) {
    let stem = case.channels[0] == 3;
    let pad = if stem { 0 } else { case.kernel / 2 };
    let window =
        Window { stride: [case.stride; 2], padding: Padding::Symmetric([pad; 2]), ..Window::square(case.kernel) };
    let placed = window.place([case.size; 2], "bench").expect("fits");
    let input = Map::dense([1, case.size, case.size, case.channels[0]]);
    let output = Map::dense([1, placed.output[0], placed.output[1], case.channels[1]]);
    let epilogue = Epilogue { activation: Some(Activation::Relu), residual: None };
    let spec = ConvSpec { input, output, window, placed, groups: case.groups, epilogue };
    let weight = noise(output.c * spec.depth());
    let bias = vec![0.1; output.c];
    let kernel = match stem {
        true => conv::stem(spec, &weight, Some(&bias), conv::Precision::Fast, isa),
        false => conv::choose(spec, &weight, Some(&bias), conv::Precision::Fast, isa),
    };
    let seconds = time(&*kernel, &spec, &weight, bias[0]);
    (kernel, seconds, 2.0 * (output.pixels() * output.c * spec.depth()) as f64)
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let isa = Isa::detect();
    for case in CASES.iter().filter(|c| c.label.contains(&filter)) {
        // Clocks drift: the peak is measured beside every case.
        let peak = 1e9 * peak_gflops(isa, 1);
        let (kernel, seconds, flops) = convolution(case, isa);
        let (us, percent) = (seconds * 1e6, 100.0 * flops / seconds / peak);
        let (tiles, name) = (kernel.tiles(), kernel.name());
        println!("{:22} {us:8.1} us {percent:5.1} % of {:5.1} GFLOP/s  {tiles:3} × {name}", case.label, peak / 1e9);
    }
    // The memory's own speed, beside layers that are nothing but reading weights.
    let memory = noise(16 << 20);
    // SAFETY: reads the buffer.
    let seconds = best_of(|| _ = black_box(unsafe { isa.run(Read(&memory)) }));
    let speed = 4.0 * memory.len() as f64 / seconds / 1e9;
    println!("reading 64 MB: {speed:.1} GB/s");
    for (n, [k, m]) in [(1, [4096, 4096]), (1, [2048, 1000]), (2, [4096, 4096]), (8, [4096, 4096])] {
        if !"linear".contains(&filter) {
            continue;
        }
        let spec = LinearSpec { n, input: [k, k], output: [m, m], activation: None };
        let weight = noise(k * m);
        let kernel = conv::linear(&spec, &weight, None, isa);
        let seconds = time(&*kernel, &spec.convolution(), &weight, 0.0);
        let rate = kernel.resident_bytes() as f64 / seconds / 1e9;
        let (us, percent) = (seconds * 1e6, 100.0 * rate / speed);
        println!(
            "linear {n}x{k}->{m}: {us:.1} us, {rate:.1} GB/s, {percent:.0} % of reading, {} tiles",
            kernel.tiles()
        );
    }
}
