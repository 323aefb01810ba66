//! Single operators, one thread, at the shapes the zoo spends its time in.
//!
//! `cargo bench --bench operators [-- FILTER]`. Every case is checked against the oracle once before it is timed. The
//! throughput of products counts floating-point operations (two per product, taps in the padding included); that of
//! everything else, bytes read and written.
#![allow(unsafe_code, reason = "runs kernels on raw maps")]

use convzoo::Activation;
use convzoo::kernels::conv::{self, ConvSpec, LinearSpec, Sampling};
use convzoo::kernels::naive::{self, ConvShape, Nchw};
use convzoo::kernels::{Epilogue, Io, Kernel, Map};
use convzoo::shape::{Padding, Window};
use convzoo::simd::Isa;
use convzoo::tensor::AlignedBuf;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use std::time::Duration;

#[path = "operators/light.rs"]
mod light;

/// A kernel with the maps it works on.
struct Prepared {
    kernel: Box<dyn Kernel>,
    inputs: Vec<AlignedBuf>,
    output: AlignedBuf,
    scratch: AlignedBuf,
}

impl Prepared {
    /// Runs `kernel` on dense channels-last `inputs` and compares with `want`, which is NCHW as the oracle's results are.
    fn checked(kernel: Box<dyn Kernel>, inputs: Vec<AlignedBuf>, output: Map, want: &[f32]) -> Prepared {
        let scratch = AlignedBuf::zeros(kernel.scratch());
        let mut prepared = Prepared { kernel, inputs, output: AlignedBuf::zeros(output.extent()), scratch };
        prepared.run();
        let want = channels_last(want, output);
        let largest = want.iter().fold(1.0f32, |most, v| most.max(v.abs()));
        for (i, (&got, &want)) in prepared.output.iter().zip(want.iter()).enumerate() {
            let error = (got - want).abs() / largest;
            assert!(error < 1e-4, "{}: element {i} is {got}, not {want}", prepared.kernel.name());
        }
        prepared
    }

    fn run(&mut self) {
        let mut inputs = [std::ptr::null(); 4];
        inputs.iter_mut().zip(&self.inputs).for_each(|(slot, input)| *slot = input.as_ptr());
        let io = Io::new(&inputs, self.output.as_mut_ptr());
        for tile in 0..self.kernel.tiles() {
            // SAFETY: the buffers have the extents of the maps the kernel was prepared for.
            unsafe { self.kernel.run(tile, &io, &mut self.scratch) };
        }
    }
}

/// Times `prepare()` under `name`; it is not called if the name is filtered out.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, elements: usize, prepare: impl Fn() -> Prepared) {
    let mut prepared = None;
    group.throughput(Throughput::Elements(elements as u64));
    group.bench_function(name, |b| {
        let prepared = prepared.get_or_insert_with(&prepare);
        b.iter(|| prepared.run());
    });
}

/// Numbers in [-0.5, 0.5), the same ones for the same seed.
fn noise(len: usize, mut seed: u32) -> Vec<f32> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / 16_777_216.0 - 0.5
    })
    .take(len)
    .collect()
}

/// An NCHW batch as a map; zeros between its pixels, if there is room.
fn channels_last(nchw: &[f32], map: Map) -> AlignedBuf {
    let (mut data, plane) = (AlignedBuf::zeros(map.extent()), map.h * map.w);
    for (i, &v) in nchw.iter().enumerate() {
        let (n, c, pixel) = (i / plane / map.c, i / plane % map.c, i % plane);
        data[(n * plane + pixel) * map.ld + c] = v;
    }
    data
}

fn nchw(map: Map) -> Nchw {
    Nchw::new([map.n, map.c, map.h, map.w])
}

/// A convolution with half padding, as the peers are timed on: with bias, without activation.
#[derive(Clone, Copy)]
struct Conv {
    name: &'static str,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    groups: usize,
    size: usize,
}

const fn case(
    name: &'static str,
    channels: [usize; 2],
    [kernel, stride]: [usize; 2],
    groups: usize,
    size: usize,
) -> Conv {
    Conv { name, channels, kernel, stride, groups, size }
}

impl Conv {
    fn spec(&self) -> ConvSpec {
        let padding = Padding::Symmetric([self.kernel / 2; 2]);
        let window = Window { stride: [self.stride; 2], padding, ..Window::square(self.kernel) };
        let placed = window.place([self.size; 2], self.name).expect("the kernel fits");
        let [inputs, outputs] = self.channels;
        ConvSpec {
            input: Map::dense([1, self.size, self.size, inputs]),
            output: Map::dense([1, placed.output[0], placed.output[1], outputs]),
            window,
            placed,
            groups: self.groups,
            epilogue: Epilogue::default(),
        }
    }

    fn shape(&self, spec: &ConvSpec) -> ConvShape {
        ConvShape { out_channels: spec.output.c, groups: spec.groups, window: spec.window, placed: spec.placed }
    }

    fn flops(&self) -> usize {
        let spec = self.spec();
        2 * spec.output.pixels() * spec.output.c * spec.depth()
    }

    /// As the planner runs it by default: 3×3 windows of many channels by Winograd.
    fn prepare(&self) -> Prepared {
        self.prepare_with(conv::Precision::Fast)
    }

    /// Plain sums only.
    fn prepare_exact(&self) -> Prepared {
        self.prepare_with(conv::Precision::Exact)
    }

    fn prepare_with(&self, precision: conv::Precision) -> Prepared {
        let spec = self.spec();
        let (x, weight) = (noise(spec.input.extent(), 1), noise(spec.output.c * spec.depth(), 2));
        let bias = noise(spec.output.c, 3);
        let want = naive::conv2d(&x, nchw(spec.input), &weight, Some(&bias), &self.shape(&spec));
        let kernel = conv::choose(spec, &weight, Some(&bias), precision, Isa::detect());
        Prepared::checked(kernel, vec![channels_last(&x, spec.input)], spec.output, &want)
    }

    /// The stem as the planner runs it: on an image that already carries its border.
    fn prepare_stem(&self) -> Prepared {
        let mut spec = self.spec();
        let (x, weight) = (noise(spec.input.extent(), 1), noise(spec.output.c * spec.depth(), 2));
        let bias = noise(spec.output.c, 3);
        let want = naive::conv2d(&x, nchw(spec.input), &weight, Some(&bias), &self.shape(&spec));
        let (inner, image, before) = (spec.input, channels_last(&x, spec.input), spec.placed.before);
        let padded = |axis: usize| spec.placed.input[axis] + 2 * before[axis];
        let [h, w] = [0, 1].map(|axis| padded(axis).next_multiple_of(spec.window.stride[axis]));
        spec.input = Map::dense([1, h, w, inner.c]);
        (spec.placed.input, spec.placed.before) = ([h, w], [0; 2]);
        let mut padded = AlignedBuf::zeros(spec.input.extent());
        for (y, row) in image.chunks_exact(inner.w * inner.c).enumerate() {
            padded[((y + before[0]) * w + before[1]) * inner.c..][..row.len()].copy_from_slice(row);
        }
        let kernel = conv::stem(spec, &weight, Some(&bias), conv::Precision::Fast, Isa::detect());
        Prepared::checked(kernel, vec![padded], spec.output, &want)
    }

    /// The same window, every tap shifted by up to two pixels and weighted: version 2, one offset group.
    fn prepare_deform(&self) -> Prepared {
        let spec = self.spec();
        let (taps, isa) = (spec.window.taps(), Isa::detect());
        let map = |c: usize| Map::dense([1, spec.output.h, spec.output.w, c]);
        let (offsets, masks) = (map(2 * taps), map(taps));
        let (x, weight) = (noise(spec.input.extent(), 1), noise(spec.output.c * spec.depth(), 2));
        let (mask, bias) = (noise(masks.extent(), 4), noise(spec.output.c, 3));
        let offset: Vec<f32> = noise(offsets.extent(), 5).iter().map(|v| 4.0 * v).collect();
        let sampling = naive::Sampling { offset: &offset, mask: Some(&mask), groups: 1 };
        let shape = self.shape(&spec);
        let want = naive::deform_conv2d(&x, nchw(spec.input), sampling, &weight, Some(&bias), &shape);
        let sampling = Sampling { offset: offsets, mask: Some(masks), groups: 1 };
        let kernel = conv::deform(spec, sampling, &weight, Some(&bias), isa);
        let inputs = [(&x, spec.input), (&offset, offsets), (&mask, masks)].map(|(v, map)| channels_last(v, map));
        Prepared::checked(kernel, inputs.into(), spec.output, &want)
    }
}

const POINTWISE: &[Conv] = &[
    case("64_256_56", [64, 256], [1, 1], 1, 56),
    case("256_64_56", [256, 64], [1, 1], 1, 56),
    case("1024_256_14", [1024, 256], [1, 1], 1, 14),
];
const CONV3X3: &[Conv] = &[
    case("64_56", [64, 64], [3, 1], 1, 56),
    case("128_28", [128, 128], [3, 1], 1, 28),
    case("256_14", [256, 256], [3, 1], 1, 14),
    case("512_7", [512, 512], [3, 1], 1, 7),
];
// ResNet, AlexNet, EfficientNet, VGG.
const STEM: &[Conv] = &[
    case("7x7s2_3_64_224", [3, 64], [7, 2], 1, 224),
    case("11x11s4_3_64_224", [3, 64], [11, 4], 1, 224),
    case("3x3s2_3_32_224", [3, 32], [3, 2], 1, 224),
    case("3x3_3_64_224", [3, 64], [3, 1], 1, 224),
];
const DEPTHWISE: &[Conv] = &[
    case("3x3_32_112", [32, 32], [3, 1], 32, 112),
    case("3x3s2_96_112", [96, 96], [3, 2], 96, 112),
    case("5x5_240_28", [240, 240], [5, 1], 240, 28),
    case("5x5_672_14", [672, 672], [5, 1], 672, 14),
    case("5x5_1152_7", [1152, 1152], [5, 1], 1152, 7),
];
// ResNeXt-50 32x4d, stage by stage, and the first of SENet-154.
const GROUPED: &[Conv] = &[
    case("32x4_56", [128, 128], [3, 1], 32, 56),
    case("32x8_28", [256, 256], [3, 1], 32, 28),
    case("32x16_14", [512, 512], [3, 1], 32, 14),
    case("32x32_7", [1024, 1024], [3, 1], 32, 7),
    case("64x2to4_56", [128, 256], [3, 1], 64, 56),
];
const DEFORM: &[Conv] = &[
    case("256_56", [256, 256], [3, 1], 1, 56),
    case("256_28", [256, 256], [3, 1], 1, 28),
    case("64_56", [64, 64], [3, 1], 1, 56),
];

fn convolutions(c: &mut Criterion) {
    type Prepare = fn(&Conv) -> Prepared;
    let groups: [(&str, &[Conv], Prepare); 7] = [
        ("pointwise", POINTWISE, Conv::prepare),
        ("conv3x3", CONV3X3, Conv::prepare),
        ("conv3x3_exact", CONV3X3, Conv::prepare_exact),
        ("stem", STEM, Conv::prepare_stem),
        ("depthwise", DEPTHWISE, Conv::prepare),
        ("grouped", GROUPED, Conv::prepare),
        ("deform", DEFORM, Conv::prepare_deform),
    ];
    for (name, cases, prepare) in groups {
        let mut group = c.benchmark_group(name);
        for case in cases {
            bench(&mut group, case.name, case.flops(), || prepare(case));
        }
    }
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (n, inputs, outputs) in [(1, 2048, 1000), (1, 4096, 4096), (8, 2048, 1000)] {
        bench(&mut group, &format!("{n}x{inputs}_{outputs}"), 2 * n * inputs * outputs, || {
            let (x, weight) = (noise(n * inputs, 1), noise(inputs * outputs, 2));
            let bias = noise(outputs, 3);
            let mut want = naive::linear(&x, &weight, Some(&bias), outputs);
            want.iter_mut().for_each(|v| *v = v.max(0.0));
            let spec = LinearSpec {
                n,
                input: [inputs, inputs],
                output: [outputs, outputs],
                activation: Some(Activation::Relu),
            };
            let kernel = conv::linear(&spec, &weight, Some(&bias), Isa::detect());
            let [x_map, y_map] = [inputs, outputs].map(|features| Map::dense([n, 1, 1, features]));
            Prepared::checked(kernel, vec![channels_last(&x, x_map)], y_map, &want)
        });
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(300))
}

fn main() {
    let mut criterion = settings().configure_from_args();
    convolutions(&mut criterion);
    linear(&mut criterion);
    light::all(&mut criterion);
    criterion.final_summary();
}
