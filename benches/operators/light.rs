//! The operators that memory bounds: pools, norms, activations, sums, softmax, copies and conversions of layout. Their
//! throughput is the bytes read and written.

use super::{Prepared, channels_last, nchw, noise};
use convzoo::Activation;
use convzoo::kernels::naive::{self, LocalResponse};
use convzoo::kernels::{Kernel, Map, activation, elementwise, layout, norm, pool, softmax};
use convzoo::shape::{Padding, Placed, Window};
use convzoo::simd::Isa;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};

/// The kernel, and what the oracle says of these inputs; both NCHW.
type Case = (Box<dyn Kernel>, Vec<f32>);

/// Times one operator from `inputs` to `output`; `case` is not called if the name is filtered out.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    inputs: &[Map],
    output: Map,
    case: impl Fn(&[Vec<f32>]) -> Case,
) {
    let floats: usize = inputs.iter().chain([&output]).map(|map| map.pixels() * map.c).sum();
    group.throughput(Throughput::Bytes(4 * floats as u64));
    let mut prepared = None;
    group.bench_function(name, |b| {
        let prepared = prepared.get_or_insert_with(|| {
            let values: Vec<_> = (1..).zip(inputs).map(|(seed, map)| noise(map.pixels() * map.c, seed)).collect();
            let (kernel, want) = case(&values);
            let buffers = values.iter().zip(inputs).map(|(values, &map)| channels_last(values, map)).collect();
            Prepared::checked(kernel, buffers, output, &want)
        });
        b.iter(|| prepared.run());
    });
}

const fn image(size: usize, channels: usize) -> Map {
    Map::dense([1, size, size, channels])
}

fn vectors(n: usize, features: usize) -> Map {
    Map::dense([n, 1, 1, features])
}

/// A square window on a map, and the map of its outputs.
fn windowed(map: Map, kernel: usize, stride: usize, padding: usize) -> (Window, Placed, Map) {
    let padding = Padding::Symmetric([padding; 2]);
    let window = Window { stride: [stride; 2], padding, ..Window::square(kernel) };
    let placed = window.place([map.h, map.w], "pool").expect("fits");
    (window, placed, Map::dense([map.n, placed.output[0], placed.output[1], map.c]))
}

fn pools(c: &mut Criterion, isa: Isa) {
    let mut group = c.benchmark_group("pool");
    let stem = image(112, 64);
    let (window, placed, output) = windowed(stem, 3, 2, 1);
    bench(&mut group, "max3x3s2_64_112", &[stem], output, |x| {
        let want = naive::max_pool(&x[0], nchw(stem), &window, &placed);
        (Box::new(pool::max(stem, output, window, placed, isa)), want)
    });
    let inception = image(28, 192);
    let (window, placed, output) = windowed(inception, 3, 1, 1);
    bench(&mut group, "max3x3_192_28", &[inception], output, |x| {
        let want = naive::max_pool(&x[0], nchw(inception), &window, &placed);
        (Box::new(pool::max(inception, output, window, placed, isa)), want)
    });
    let transition = image(56, 128);
    let (window, placed, output) = windowed(transition, 2, 2, 0);
    bench(&mut group, "average2x2s2_128_56", &[transition], output, |x| {
        let want = naive::avg_pool(&x[0], nchw(transition), &window, &placed, true);
        (Box::new(pool::average(transition, output, window, placed, true, isa)), want)
    });
    let last = image(7, 2048);
    bench(&mut group, "global_2048_7", &[last], vectors(1, 2048), |x| {
        let want = naive::adaptive_avg_pool(&x[0], nchw(last), [1, 1]);
        (Box::new(pool::adaptive_average(last, vectors(1, 2048), isa)), want)
    });
    let (from, to) = (image(13, 256), image(6, 256));
    bench(&mut group, "adaptive_average_256_13_6", &[from], to, |x| {
        (Box::new(pool::adaptive_average(from, to, isa)), naive::adaptive_avg_pool(&x[0], nchw(from), [6, 6]))
    });
    bench(&mut group, "adaptive_max_256_13_6", &[from], to, |x| {
        (Box::new(pool::adaptive_max(from, to, isa)), naive::adaptive_max_pool(&x[0], nchw(from), [6, 6]))
    });
}

fn norms(c: &mut Criterion, isa: Isa) {
    let mut group = c.benchmark_group("norm");
    let map = image(28, 256);
    bench(&mut group, "scale_shift_relu_256_28", &[map], map, |x| {
        let (scale, shift) = (noise(map.c, 8), noise(map.c, 9));
        let channel = |i: usize| i / (map.h * map.w) % map.c;
        let of = |(i, &v): (usize, &f32)| (v * scale[channel(i)] + shift[channel(i)]).max(0.0);
        let want = x[0].iter().enumerate().map(of).collect();
        (Box::new(norm::scale_shift(map, map, &scale, &shift, Some(Activation::Relu), isa)), want)
    });
    let map = image(55, 96);
    bench(&mut group, "local_response5_96_55", &[map], map, |x| {
        let response = LocalResponse { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 };
        let want = naive::local_response_norm(&x[0], nchw(map), response);
        (Box::new(norm::local_response(map, map, response, isa)), want)
    });
}

fn elementwise(c: &mut Criterion, isa: Isa) {
    use Activation::{HardSigmoid, HardSwish, Relu, Relu6, Sigmoid, Silu};
    let map = image(28, 256);
    let mut group = c.benchmark_group("activation");
    for function in [Relu, Relu6, Silu, Sigmoid, HardSwish, HardSigmoid] {
        bench(&mut group, &format!("{}_256_28", function.name()), &[map], map, |x| {
            (Box::new(activation::activation(map, map, function, isa)), naive::activation(&x[0], function))
        });
    }
    group.finish();
    let mut group = c.benchmark_group("elementwise");
    let gate = vectors(1, 256);
    let relu = |values: Vec<f32>| naive::activation(&values, Relu);
    bench(&mut group, "add_relu_256_28", &[map, map], map, |x| {
        (Box::new(elementwise::add(map, map, map, Some(Relu), isa)), relu(naive::add(&x[0], &x[1])))
    });
    bench(&mut group, "gate_256_28", &[map, gate], map, |x| {
        let want = naive::multiply(&x[0], nchw(map), &x[1]);
        (Box::new(elementwise::multiply(map, gate, map, None, isa)), want)
    });
    bench(&mut group, "gate_add_relu_256_28", &[map, gate, map], map, |x| {
        let want = relu(naive::add(&naive::multiply(&x[0], nchw(map), &x[1]), &x[2]));
        (Box::new(elementwise::multiply_add(map, gate, map, map, Some(Relu), isa)), want)
    });
    group.finish();
    let mut group = c.benchmark_group("softmax");
    for n in [1, 8] {
        let map = vectors(n, 1000);
        bench(&mut group, &format!("{n}x1000"), &[map], map, |x| {
            (Box::new(softmax::softmax(map, map, isa)), naive::softmax(&x[0], nchw(map)))
        });
    }
}

fn copies(c: &mut Criterion, isa: Isa) {
    let mut group = c.benchmark_group("copy");
    // A part of a concatenation: 128 of 480 channels.
    let (part, slice) = (image(28, 128), Map::new([1, 28, 28, 128], 480));
    bench(&mut group, "concat_128_of_480_28", &[part], slice, |x| {
        (Box::new(elementwise::copy(part, slice, isa)), x[0].clone())
    });
    let (narrow, wide) = (image(16, 32), image(16, 64));
    bench(&mut group, "channel_pad_32_64_16", &[narrow], wide, |x| {
        let want = naive::channel_pad(&x[0], nchw(narrow), [16, 16]);
        (Box::new(elementwise::channel_pad(narrow, wide, 16, isa)), want)
    });
    group.finish();
    let mut group = c.benchmark_group("layout");
    // What lies in NCHW order is one long vector to `bench`.
    let (photo, bordered) = (vectors(1, 3 * 224 * 224), image(230, 3));
    bench(&mut group, "from_nchw_border3_3_224", &[photo], bordered, |x| {
        let mut want = vec![0.0; 3 * 230 * 230];
        for (row, values) in x[0].chunks_exact(224).enumerate() {
            want[(row / 224 * 230 + row % 224 + 3) * 230 + 3..][..224].copy_from_slice(values);
        }
        (Box::new(layout::from_nchw([1, 3, 224, 224], bordered, [3, 3], isa)), want)
    });
    let (map, flat) = (image(7, 512), vectors(1, 512 * 49));
    bench(&mut group, "flatten_512_7", &[map], flat, |x| (Box::new(layout::flatten(map, flat, isa)), x[0].clone()));
    let (map, flat) = (image(56, 64), vectors(1, 64 * 56 * 56));
    bench(&mut group, "to_nchw_64_56", &[map], flat, |x| (Box::new(layout::to_nchw(map, isa)), x[0].clone()));
}

/// All of them.
pub(crate) fn all(c: &mut Criterion) {
    let isa = Isa::detect();
    pools(c, isa);
    norms(c, isa);
    elementwise(c, isa);
    copies(c, isa);
}
