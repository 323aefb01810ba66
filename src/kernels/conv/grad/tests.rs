use super::pointwise::Source;
use super::*;
use crate::activation::Activation::Relu;
use crate::kernels::conv::testing::noise;
use crate::kernels::conv::winograd::{self, Form};
use crate::kernels::conv::{Sampling, learned_deform, learned_form, learned_stem, stem, weights};
use crate::kernels::gemm::{Extent, Gemm};
use crate::kernels::layout::from_nchw;
use crate::kernels::light::testing::{assert_near, nchw, run_tiles, spread};
use crate::kernels::naive::{self, ConvShape};
use crate::kernels::norm::train as norm;
use crate::kernels::{Epilogue, Io, Map, WEIGHTS};

/// Images, size, channels in and out, groups, kernel, stride, padding, dilation.
type Case = (usize, [usize; 2], [usize; 2], usize, usize, usize, usize, usize);

const CASES: [Case; 30] = [
    (2, [9, 11], [17, 20], 1, 5, 1, 2, 1), // Winograd
    (2, [5, 6], [3, 8], 1, 3, 1, 1, 1),
    (1, [7, 7], [20, 33], 1, 1, 1, 0, 1),
    (2, [9, 8], [16, 20], 1, 3, 1, 1, 1),   // Winograd
    (1, [13, 14], [33, 17], 1, 3, 1, 1, 1), // Winograd
    (2, [8, 9], [5, 70], 1, 3, 2, 1, 1),
    (1, [11, 7], [17, 12], 1, 7, 2, 3, 1),
    (2, [6, 7], [24, 16], 1, 1, 2, 0, 1), // pixels that no output reads
    (1, [9, 10], [6, 7], 1, 5, 3, 2, 1),
    (1, [10, 11], [12, 9], 1, 3, 2, 2, 2),
    (1, [10, 9], [9, 12], 1, 3, 1, 2, 2),
    (1, [6, 6], [4, 5], 1, 2, 1, 0, 1),
    (1, [5, 5], [4, 4], 1, 1, 1, 1, 1), // padding wider than the kernel reaches
    (2, [7, 6], [20, 20], 20, 3, 1, 1, 1),
    (2, [9, 7], [35, 35], 35, 5, 2, 2, 1),
    (1, [6, 9], [7, 7], 7, 3, 2, 1, 1),
    (1, [6, 6], [16, 16], 4, 3, 1, 1, 1),
    (1, [7, 8], [16, 32], 4, 3, 2, 1, 1),
    (1, [5, 4], [64, 32], 2, 3, 1, 1, 1),
    (3, [1, 1], [40, 21], 1, 1, 1, 0, 1),
    (4, [20, 19], [10, 30], 1, 3, 1, 1, 1),  // several slices and blocks of pixels
    (1, [40, 41], [70, 130], 1, 3, 2, 1, 1), // Winograd, as the next three
    (2, [41, 44], [16, 17], 1, 3, 2, 1, 1),
    (3, [4, 4], [33, 18], 1, 3, 2, 1, 1),
    (1, [8, 12], [20, 48], 1, 3, 2, 1, 1),
    (3, [14, 7], [18, 35], 1, 3, 1, 1, 1),    // Winograd's squares, some short, and
    (2, [3, 3], [16, 17], 1, 3, 1, 1, 1),     // all of them, so that some positions have none
    (1, [40, 41], [130, 256], 1, 1, 2, 0, 1), // in tiles of some panels, and
    (2, [23, 25], [70, 160], 1, 5, 2, 2, 1),  // for each remainder
    (1, [40, 41], [125, 256], 1, 1, 2, 0, 1), // on the matrix unit, where there is one
];

fn spec((n, size, [inputs, outputs], groups, kernel, stride, padding, dilation): Case) -> ConvSpec {
    let window = Window {
        stride: [stride; 2],
        padding: Padding::Symmetric([padding; 2]),
        dilation: [dilation; 2],
        ..Window::square(kernel)
    };
    let placed = window.place(size, "test").unwrap();
    ConvSpec {
        input: Map::new([n, size[0], size[1], inputs], inputs + 3),
        output: Map::new([n, placed.output[0], placed.output[1], outputs], outputs + 5),
        window,
        placed,
        groups,
        epilogue: Epilogue::default(),
    }
}

fn shape(spec: &ConvSpec) -> ConvShape {
    ConvShape { out_channels: spec.output.c, groups: spec.groups, window: spec.window, placed: spec.placed }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Packs the weights into memory full of NaN.
fn pack(learned: &Learned, weight: &[f32], bias: Option<&[f32]>) -> AlignedBuf {
    let mut packed = AlignedBuf::zeros(learned.packed);
    packed.fill(f32::NAN);
    let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
    run_tiles(&*learned.packing, &Io::new(&[weight.as_ptr(), bias], packed.as_mut_ptr()));
    packed
}

fn run(learned: &Learned, inputs: &[*const f32], packed: &AlignedBuf, output: *mut f32) {
    let mut io = Io::new(inputs, output);
    io.inputs[WEIGHTS] = packed.as_ptr();
    run_tiles(&*learned.kernel, &io);
}

use crate::tensor::AlignedBuf;

fn scale(values: &[f64]) -> f32 {
    values.iter().fold(0.0, |most: f64, v| most.max(v.abs())).max(1.0) as f32
}

#[test]
fn weights_that_come_with_every_run_give_what_held_ones_do() {
    for case in CASES {
        let spec = spec(case);
        let x = spread(&noise(nchw(spec.input).len(), 1), spec.input);
        let (weight, bias) = (noise(spec.output.c * spec.depth(), 2), noise(spec.output.c, 3));
        for &isa in Isa::available() {
            let forward = learned(spec, Direction::Forward, Some(bias.len()), Precision::Fast, isa);
            let mut form = learned_form(spec, Direction::Forward, Precision::Fast, isa);
            form.exactly(Direction::Forward);
            let held = weights::held(form, &weight, Some(&bias[..]));
            let packed = pack(&forward, &weight, Some(&bias));
            let [mut found, mut expected] = [0.0, 0.0].map(|v| vec![v; spec.output.extent()]);
            run(&forward, &[x.as_ptr()], &packed, found.as_mut_ptr());
            run_tiles(&*held, &Io::new(&[x.as_ptr()], expected.as_mut_ptr()));
            assert_eq!(found, expected, "{} of {case:?}", held.name());
        }
    }
}

#[test]
fn input_gradients_agree_with_the_oracle_and_add_to_what_is_there() {
    let mut names = std::collections::BTreeSet::new();
    for case in CASES {
        let spec = spec(case);
        let (dy, weight) = (noise(nchw(spec.output).len(), 1), noise(spec.output.c * spec.depth(), 2));
        let expected = naive::backward::conv2d_input(&wide(&dy), nchw(spec.input), &wide(&weight), &shape(&spec));
        let old = noise(nchw(spec.input).len(), 3);
        let sum: Vec<f64> = expected.iter().zip(&old).map(|(a, &b)| a + f64::from(b)).collect();
        let dy = spread(&dy, spec.output);
        for &isa in Isa::available() {
            for (store, expected) in [(Store::Set, &expected), (Store::Add, &sum)] {
                for precision in [Precision::Fast, Precision::Exact] {
                    let learned = input_gradient(spec, store, precision, isa);
                    let packed = pack(&learned, &weight, None);
                    let mut dx = spread(&old, spec.input);
                    let output = dx.as_mut_ptr();
                    run(&learned, &[dy.as_ptr(), output.cast_const()], &packed, output);
                    let what = format!("{} of {case:?}", learned.kernel.name());
                    // Winograd rounds more, and differently on every instruction set.
                    let tolerance = scale(expected) * if precision == Precision::Fast { 4e-6 } else { 1e-6 };
                    assert_near(&dx, &spread(&narrow(expected), spec.input), tolerance, &what);
                    names.insert(learned.kernel.name().split('_').next().unwrap_or_default().to_owned());
                }
            }
            // Over the output of a ReLU, through which it is led.
            if let Some(learned) = masked_input_gradient(spec, Precision::Fast, isa) {
                let packed = pack(&learned, &weight, None);
                let mut dx = spread(&old, spec.input);
                let output = dx.as_mut_ptr();
                run(&learned, &[dy.as_ptr(), output.cast_const()], &packed, output);
                let masked = |(&y, &old)| if old > 0.0 { y } else { 0.0 };
                let expected: Vec<f64> = expected.iter().zip(&old).map(masked).collect();
                let what = format!("{} of {case:?}", learned.kernel.name());
                assert_near(&dx, &spread(&narrow(&expected), spec.input), 4e-6 * scale(&expected), &what);
                names.insert("masking".to_owned());
            }
        }
    }
    for form in ["masking", "pointwise", "winograd", "unstrided", "indirect", "im2col", "depthwise", "grouped", "input"]
    {
        assert!(names.contains(form), "{form} in {names:?}");
    }
    assert!(winograd::Form::F4.applies(&spec(CASES[3])));
    assert!(Gemm::splits(Extent { taps: 1, k: 256, n: 125 }, 20 * 21), "{:?}", CASES[29]);
}

#[test]
fn weight_gradients_agree_with_the_oracle() {
    for case in CASES {
        let spec = spec(case);
        let (x, dy) = (noise(nchw(spec.input).len(), 1), noise(nchw(spec.output).len(), 2));
        let expected = naive::backward::conv2d_weight(&wide(&x), nchw(spec.input), &wide(&dy), &shape(&spec));
        let (x, dy) = (spread(&x, spec.input), spread(&dy, spec.output));
        for &isa in Isa::available() {
            let mut gradients = vec![weight::weight_gradient(spec, Precision::Exact, isa)];
            let forms =
                [Form::F2, Form::F4, Form::F2Five, Form::F2Strided].into_iter().filter(|form| form.applies(&spec));
            gradients.extend(forms.map(|form| winograd::grad::weight_gradient(spec, form, Source::Ready, isa)));
            for gradient in gradients {
                check_weights(&gradient, &[&x, &dy], &expected, &format!("{} of {case:?}", gradient.kernel.name()));
            }
        }
    }
}

#[track_caller]
fn check_weights(gradient: &weight::WeightGradient, inputs: &[&[f32]], expected: &[f64], what: &str) {
    let mut partial = vec![f32::NAN; gradient.partial];
    let mut found = vec![f32::NAN; expected.len()];
    let to = if gradient.gather.is_some() { partial.as_mut_ptr() } else { found.as_mut_ptr() };
    let inputs: Vec<*const f32> = inputs.iter().map(|values| values.as_ptr()).collect();
    run_tiles(&*gradient.kernel, &Io::new(&inputs, to));
    if let Some(gather) = &gradient.gather {
        run_tiles(&**gather, &Io::new(&[partial.as_ptr()], found.as_mut_ptr()));
    }
    let tolerance = if what.contains("winograd") || what.contains("strassen") { 4e-6 } else { 1e-6 };
    assert_near(&found, &narrow(expected), tolerance * scale(expected), what);
}

/// Batch, size, channels in and out, stride.
type Pointwise = (usize, [usize; 2], [usize; 2], usize);

/// Holds a form of the gradient of 1×1 weights to the oracle, behind a norm or not.
#[track_caller]
fn check_pointwise(cases: &[Pointwise], form: fn(ConvSpec, Source, Isa) -> weight::WeightGradient, isas: &[Isa]) {
    for &(n, size, channels, stride) in cases {
        let spec = spec((n, size, channels, 1, 1, stride, 0, 1));
        let (x, dy) = (noise(nchw(spec.input).len(), 1), noise(nchw(spec.output).len(), 2));
        let table = noise(norm::TABLE_ROWS * spec.input.c, 3);
        for source in [Source::Ready, Source::Norm(None), Source::Norm(Some(Relu))] {
            let seen = behind(source, &x, &table, spec.input);
            let expected = naive::backward::conv2d_weight(&seen, nchw(spec.input), &wide(&dy), &shape(&spec));
            let (x, dy) = (spread(&x, spec.input), spread(&dy, spec.output));
            for &isa in isas {
                let gradient = form(spec, source, isa);
                let what = format!("{} {channels:?} {source:?}", gradient.kernel.name());
                check_weights(&gradient, &[&x, &dy, &table], &expected, &what);
            }
        }
    }
}

#[test]
fn seven_products_give_the_weights_gradient_and_apply_the_norm_before_it() {
    let cases = [
        (1, [1, 1], [32, 32], 1),
        (2, [9, 7], [64, 96], 1),
        (3, [20, 19], [96, 192], 1),
        (1, [13, 24], [160, 288], 2),
        (2, [33, 40], [128, 32], 1),
    ];
    check_pointwise(&cases, pointwise::weight_gradient, Isa::available());
}

#[test]
fn the_matrix_unit_gives_the_weights_gradient_and_applies_the_norm_before_it() {
    // One block and several, one slice and several, parts of either side, pixels that fill no square or block.
    let cases = [
        (1, [5, 3], [32, 48], 1),
        (2, [17, 19], [144, 560], 1),
        (3, [20, 19], [528, 64], 1),
        (1, [13, 24], [1040, 160], 2),
        (8, [23, 24], [176, 272], 1),
    ];
    let isas: Vec<_> = Isa::available().iter().copied().filter(|&isa| isa == Isa::Amx).collect();
    check_pointwise(&cases, split::weight_gradient, &isas);
}

#[test]
fn winograds_weight_gradients_of_many_channels_agree_with_the_oracle_in_strips_and_in_blocks() {
    // One slice: few squares, whose sums are transformed back strip by strip, and several blocks of squares.
    for (form, n, size, channels, stride) in
        [(Form::F4, 2, [13, 14], [216, 230], 1), (Form::F2Strided, 1, [60, 59], [260, 256], 2)]
    {
        let spec = spec((n, size, channels, 1, 3, stride, 1, 1));
        let (x, dy) = (noise(nchw(spec.input).len(), 1), noise(nchw(spec.output).len(), 2));
        let table = noise(norm::TABLE_ROWS * spec.input.c, 3);
        for source in [Source::Ready, Source::Norm(Some(Relu))] {
            let seen = behind(source, &x, &table, spec.input);
            let expected = naive::backward::conv2d_weight(&seen, nchw(spec.input), &wide(&dy), &shape(&spec));
            let (x, dy) = (spread(&x, spec.input), spread(&dy, spec.output));
            for &isa in Isa::available() {
                let gradient = winograd::grad::weight_gradient(spec, form, source, isa);
                assert!(gradient.gather.is_none() && gradient.kernel.tiles() == 4, "one slice, halves of either side");
                let what = format!("{} {channels:?} {source:?}", gradient.kernel.name());
                check_weights(&gradient, &[&x, &dy, &table], &expected, &what);
            }
        }
    }
}

/// What the norm of `source` makes of `x`.
fn behind(source: Source, x: &[f32], table: &[f32], map: Map) -> Vec<f64> {
    let row = |row: usize, c: usize| f64::from(table[row * map.c + c]);
    let seen = |(i, &x): (usize, &f32)| {
        let c = i / (map.h * map.w) % map.c;
        let Source::Norm(activation) = source else { return f64::from(x) };
        let y = f64::from(x) * row(norm::SCALE, c) + row(norm::SHIFT, c);
        if activation.is_some() { y.max(0.0) } else { y }
    };
    x.iter().enumerate().map(seen).collect()
}

#[test]
fn winograds_transforms_apply_the_norm_before_them_and_leave_the_padding_zero() {
    // Borders on one side and on all, whole squares in between, channels that fill registers and do not.
    for (n, size, channels, stride, padding) in [
        (2, [9, 7], [16, 16], 1, 1),
        (1, [22, 19], [40, 24], 1, 1),
        (3, [4, 4], [21, 17], 1, 1),
        (1, [12, 14], [32, 48], 1, 0),
        (2, [13, 10], [19, 32], 2, 1),
    ] {
        let spec = spec((n, size, channels, 1, 3, stride, padding, 1));
        let (x, dy) = (noise(nchw(spec.input).len(), 1), noise(nchw(spec.output).len(), 2));
        let (table, weight) = (noise(norm::TABLE_ROWS * spec.input.c, 3), noise(spec.output.c * spec.depth(), 4));
        for clamp in [None, Some(Relu)] {
            let seen = behind(Source::Norm(clamp), &x, &table, spec.input);
            let expected = naive::conv2d(&seen, nchw(spec.input), &wide(&weight), None, &shape(&spec));
            let to_weights = naive::backward::conv2d_weight(&seen, nchw(spec.input), &wide(&dy), &shape(&spec));
            let (x, dy) = (spread(&x, spec.input), spread(&dy, spec.output));
            for (&isa, form) in Isa::available().iter().flat_map(|isa| Form::ALL.map(|form| (isa, form))) {
                if !form.applies(&spec) {
                    continue;
                }
                let kernel = Box::new(winograd::Winograd::new(spec, form, isa).behind(clamp));
                let forward = weights::learned(kernel, Direction::Forward, weight.len(), None);
                let packed = pack(&forward, &weight, None);
                let what = format!("{} {size:?} {channels:?} {clamp:?}", forward.kernel.name());
                let mut found = vec![f32::NAN; spec.output.extent()];
                let inputs = [x.as_ptr(), std::ptr::null(), table.as_ptr()];
                run(&forward, &inputs, &packed, found.as_mut_ptr());
                assert_near(&found, &spread(&narrow(&expected), spec.output), 4e-6 * scale(&expected), &what);
                if matches!(form, Form::F2 | Form::F4 | Form::F2Strided) {
                    let gradient = winograd::grad::weight_gradient(spec, form, Source::Norm(clamp), isa);
                    check_weights(&gradient, &[&x, &dy, &table], &to_weights, &what);
                }
            }
        }
    }
}

#[test]
fn a_stem_reads_its_border_forward_and_back_and_folds_its_image() {
    // Channels in and out, window, stride and padding; at stride 2, 3 and 4, and 9 taps make 5.
    let mut folds = 0;
    for (channels, [taps, stride, pad], size) in [
        ([3, 9], [7, 2, 3], [10, 11]),
        ([3, 64], [7, 2, 3], [30, 25]),
        ([3, 70], [11, 4, 2], [35, 47]),
        ([4, 20], [9, 2, 4], [19, 22]),
        ([3, 33], [5, 2, 0], [21, 18]),
        ([2, 16], [7, 3, 1], [40, 31]),
        ([3, 64], [3, 1, 1], [24, 32]),
    ] {
        let ([inputs, outputs], n) = (channels, 2);
        let window = Window { stride: [stride; 2], padding: Padding::Symmetric([pad; 2]), ..Window::square(taps) };
        let placed = window.place(size, "test").unwrap();
        let reach = [0, 1].map(|axis| ((placed.output[axis] - 1) * stride + taps).max(pad + size[axis]));
        let output = Map::dense([n, placed.output[0], placed.output[1], outputs]);
        let map = Map::dense([n, size[0], size[1], inputs]);
        let (x, dy) = (noise(nchw(map).len(), 1), noise(nchw(output).len(), 2));
        let (weight, bias) = (noise(outputs * inputs * taps * taps, 3), noise(outputs, 4));
        let conv = ConvShape { out_channels: outputs, groups: 1, window, placed };
        let y = naive::conv2d(&wide(&x), nchw(map), &wide(&weight), Some(&wide(&bias)), &conv);
        let expected = naive::backward::conv2d_weight(&wide(&x), nchw(map), &wide(&dy), &conv);
        let dy = spread(&dy, output);
        let [h, w] = reach.map(|reach| reach.next_multiple_of(stride));
        let padded = Map::dense([n, h, w, inputs]);
        let placed = Placed { input: [h, w], before: [0; 2], ..placed };
        let spec = ConvSpec { input: padded, output, window, placed, groups: 1, epilogue: Epilogue::default() };
        for &isa in Isa::available() {
            let mut image = vec![f32::NAN; padded.extent()];
            let packing = from_nchw([n, inputs, size[0], size[1]], padded, [pad; 2], isa);
            run_tiles(&packing, &Io::new(&[x.as_ptr()], image.as_mut_ptr()));
            let mut found = vec![0.0; output.extent()];
            let near = |found: &[f32], name: &str| {
                let tolerance = if name.contains("winograd") { 4e-6 } else { 1e-6 };
                let what = format!("{name} of {taps} taps, {}", isa.name());
                assert_near(found, &spread(&narrow(&y), output), tolerance * scale(&y), &what);
            };
            let learned = learned_stem(spec, Some(outputs), isa);
            run(&learned, &[image.as_ptr()], &pack(&learned, &weight, Some(&bias)), found.as_mut_ptr());
            near(&found, &learned.kernel.name());
            for precision in [Precision::Exact, Precision::Fast] {
                let held = stem(spec, &&weight[..], Some(&bias), precision, isa);
                run_tiles(&*held, &Io::new(&[image.as_ptr()], found.as_mut_ptr()));
                near(&found, &held.name());
                let gradient = weight::weight_gradient_stem(spec, precision, isa);
                let what = format!("{} of {taps} taps, {}", gradient.kernel.name(), isa.name());
                check_weights(&gradient, &[&image, &dy], &expected, &what);
                folds += [held.name(), what].iter().filter(|name| name.contains("winograd")).count();
            }
        }
    }
    // All of 16 outputs and more, forward and back, but for the way back without strides.
    assert_eq!(folds, (2 * 6 - 1) * Isa::available().len());
}

#[test]
fn deformable_gradients_agree_with_the_oracle() {
    // Channels, groups and offset groups, stride, whether shifts are whole pixels (kinks), modulation.
    for ([inputs, outputs], [groups, offset_groups], stride, whole, modulated) in [
        ([8, 12], [1, 1], 1, false, true),
        ([20, 6], [2, 1], 2, false, false),
        ([36, 8], [1, 2], 1, true, true),
        ([24, 24], [2, 4], 1, false, true),
        // Several parts of the channels, the last with fewer and steered in two; enough pixels for the matrix unit.
        ([80, 32], [1, 2], 1, false, true),
        ([96, 64], [1, 1], 1, true, true),
    ] {
        let size = if outputs < 32 { [7, 6] } else { [13, 11] };
        let spec = spec((2, size, [inputs, outputs], groups, 3, stride, 1, 1));
        let pixels = |c: usize| Map::new([2, spec.output.h, spec.output.w, c], c + 1);
        let (offsets, masks) = (pixels(18 * offset_groups), pixels(9 * offset_groups));
        let (x, dy) = (noise(nchw(spec.input).len(), 1), noise(nchw(spec.output).len(), 2));
        let mask = noise(nchw(masks).len(), 3);
        // Sums of many products are as large as those of a few hundred.
        let scale = f32::min(1.0, 18.0 / (spec.depth() as f32).sqrt());
        let weight: Vec<f32> = noise(outputs * spec.depth(), 4).into_iter().map(|w| scale * w).collect();
        let shift = |v: f32| if whole { (2.0 * v).round() } else { 2.0 * v };
        let offset: Vec<f32> = noise(nchw(offsets).len(), 5).into_iter().map(shift).collect();
        let (wide_offset, wide_mask) = (wide(&offset), wide(&mask));
        let sampling =
            naive::Sampling { offset: &wide_offset, mask: modulated.then_some(&wide_mask[..]), groups: offset_groups };
        let (x64, w64, dy64) = (wide(&x), wide(&weight), wide(&dy));
        let expected = naive::backward::deform_conv2d(&x64, nchw(spec.input), sampling, &w64, &dy64, &shape(&spec));
        let y = naive::deform_conv2d(&x64, nchw(spec.input), sampling, &w64, None, &shape(&spec));
        let sampling = Sampling { offset: offsets, mask: modulated.then_some(masks), groups: offset_groups };
        let [x, dy, offset, mask] = [(&x, spec.input), (&dy, spec.output), (&offset, offsets), (&mask, masks)]
            .map(|(values, map)| spread(values, map));
        for &isa in Isa::available() {
            let what = format!("{groups} groups, {offset_groups} offset groups, {}", isa.name());
            let forward = learned_deform(spec, sampling, None, isa);
            let mut found = spread(&narrow(&y), spec.output);
            let inputs = [x.as_ptr(), offset.as_ptr(), mask.as_ptr()];
            run(&forward, &inputs, &pack(&forward, &weight, None), found.as_mut_ptr());
            assert_near(&found, &spread(&narrow(&y), spec.output), 1e-5, &what);

            let data = deform::data(spec, sampling, [spec.input, offsets, masks], Store::Set, isa);
            let packed = pack(&data.input, &weight, None);
            let mut sums = vec![f32::NAN; data.sums];
            let [mut dx, mut d_offset, mut d_mask] =
                [spec.input, offsets, masks].map(|map| vec![f32::NAN; map.extent()]);
            let mut io = Io::new(&[x.as_ptr(), offset.as_ptr(), mask.as_ptr(), dy.as_ptr()], dx.as_mut_ptr());
            io.inputs[WEIGHTS] = packed.as_ptr();
            io.also[0] = sums.as_mut_ptr();
            run_tiles(&*data.input.kernel, &io);
            let mut io = Io::new(&[sums.as_ptr(), mask.as_ptr()], d_offset.as_mut_ptr());
            io.also[0] = if modulated { d_mask.as_mut_ptr() } else { std::ptr::null_mut() };
            run_tiles(&*data.steering, &io);
            assert_near(&dx, &spread(&narrow(&expected.input), spec.input), 2e-5, &what);
            assert_near(&d_offset, &spread(&narrow(&expected.offset), offsets), 5e-5, &what);
            if let Some(expected) = &expected.mask {
                assert_near(&d_mask, &spread(&narrow(expected), masks), 2e-5, &what);
            }

            let gradient = deform::weight_gradient(spec, sampling, isa);
            let mut samples = vec![f32::NAN; gradient.samples.extent()];
            let io = Io::new(&[x.as_ptr(), offset.as_ptr(), mask.as_ptr()], samples.as_mut_ptr());
            run_tiles(&*gradient.sample, &io);
            check_weights(&gradient.product, &[&samples, &dy], &expected.weight, &what);
        }
    }
}
