use super::*;
use crate::kernels::{Io, Kernel};
use crate::shape::Padding;
use crate::tensor::AlignedBuf;

/// What lies between pixels and behind the last channel: it must survive.
const SENTINEL: f32 = -77.25;

/// A repeatable stream of numbers.
pub(super) struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// In [-1, 1).
    fn value(&mut self) -> f32 {
        (self.bits() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }

    fn below(&mut self, n: usize) -> usize {
        self.bits() as usize % n
    }

    fn vec(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// A map's memory: noise in the channels, sentinels in the gaps.
    fn map(&mut self, map: &Map) -> AlignedBuf {
        let mut buf = AlignedBuf::zeros(map.pixels() * map.ld);
        for (i, v) in buf.iter_mut().enumerate() {
            *v = if i % map.ld < map.c { self.value() } else { SENTINEL };
        }
        buf
    }
}

/// A convolution and everything it reads.
struct Case {
    spec: ConvSpec,
    input: AlignedBuf,
    residual: Option<AlignedBuf>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    /// The output element and the sum of the magnitudes of its terms, in f64, by definition.
    fn reference(&self, n: usize, oy: usize, ox: usize, o: usize) -> (f64, f64) {
        let ConvSpec { input, output, window, placed, .. } = self.spec;
        let (channels, [kh, kw]) = (self.spec.group_inputs(), window.kernel);
        let group = o / self.spec.group_outputs();
        let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
        let (mut sum, mut magnitude) = (bias, bias.abs());
        for ky in 0..kh {
            for kx in 0..kw {
                let y = (oy * window.stride[0] + ky * window.dilation[0]) as isize - placed.before[0] as isize;
                let x = (ox * window.stride[1] + kx * window.dilation[1]) as isize - placed.before[1] as isize;
                if y < 0 || x < 0 || y as usize >= input.h || x as usize >= input.w {
                    continue;
                }
                let pixel = (n * input.h + y as usize) * input.w + x as usize;
                for i in 0..channels {
                    let w = self.weight[((o * channels + i) * kh + ky) * kw + kx];
                    let term = f64::from(w) * f64::from(self.input[pixel * input.ld + group * channels + i]);
                    sum += term;
                    magnitude += term.abs();
                }
            }
        }
        if let (Some(residual), Some(ld)) = (&self.residual, self.spec.epilogue.residual) {
            let r = f64::from(residual[((n * output.h + oy) * output.w + ox) * ld + o]);
            sum += r;
            magnitude += r.abs();
        }
        (self.spec.epilogue.activation.map_or(sum, |a| a.apply(sum)), magnitude)
    }

    /// Runs all tiles, last first, and compares every float of the output.
    fn check(&self, kernel: &dyn Kernel) {
        let output = self.spec.output;
        let mut y = AlignedBuf::zeros(output.pixels() * output.ld);
        y.fill(SENTINEL);
        let mut scratch = AlignedBuf::zeros(kernel.scratch());
        let residual = self.residual.as_ref().map_or(std::ptr::null(), |r| r.as_ptr());
        let io = Io::new(&[self.input.as_ptr(), residual], y.as_mut_ptr());
        for tile in (0..kernel.tiles()).rev() {
            scratch.fill(f32::NAN);
            // SAFETY: the buffers hold the maps of the specification.
            unsafe { kernel.run(tile, &io, &mut scratch) };
        }
        for (i, &value) in y.iter().enumerate() {
            let (pixel, o) = (i / output.ld, i % output.ld);
            if o >= output.c {
                assert_eq!(value, SENTINEL, "{}: gap at {i} of {:?}", kernel.name(), self.spec);
                continue;
            }
            let (n, oy, ox) = (pixel / (output.h * output.w), pixel / output.w % output.h, pixel % output.w);
            let (exact, magnitude) = self.reference(n, oy, ox, o);
            // Summing t terms one by one errs by at most t·2⁻²⁴ of their magnitudes: 3·10⁻⁵ for the 500 here, and in
            // practice by its root. No activation steepens that by more than 1.1.
            let allowed = 1e-5 * magnitude + 1e-6;
            let error = (f64::from(value) - exact).abs();
            assert!(
                error <= allowed,
                "{}: ({n}, {oy}, {ox}, {o}): {value} ≠ {exact} in {:?}",
                kernel.name(),
                self.spec
            );
        }
    }
}

/// The numbers of a case.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    size: [usize; 2],
    channels: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    pad: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
}

const fn shape(size: [usize; 2], channels: [usize; 2], kernel: usize, pad: usize) -> Shape {
    Shape { batch: 1, size, channels, kernel: [kernel; 2], stride: [1; 2], pad: [pad; 2], dilation: [1; 2], groups: 1 }
}

/// What is added to a shape to make a case.
#[derive(Clone, Copy)]
struct Extras {
    /// Floats between the pixels of the input, the output and the residual, which is left out without.
    gaps: [usize; 2],
    residual: Option<usize>,
    activation: Option<Activation>,
    bias: bool,
}

const PLAIN: Extras = Extras { gaps: [0; 2], residual: None, activation: None, bias: true };

fn case(shape: Shape, extras: Extras, noise: &mut Noise) -> Case {
    let Shape { batch, size, channels: [c, o], kernel, stride, pad, dilation, groups } = shape;
    let window = Window { kernel, stride, padding: Padding::Symmetric(pad), dilation, ceil: false };
    let placed = window.place(size, "test").unwrap();
    let input = Map::new([batch, size[0], size[1], c], c + extras.gaps[0]);
    let output = Map::new([batch, placed.output[0], placed.output[1], o], o + extras.gaps[1]);
    let residual = extras.residual.map(|gap| o + gap);
    let epilogue = Epilogue { activation: extras.activation, residual };
    let spec = ConvSpec { input, output, window, placed, groups, epilogue };
    Case {
        spec,
        input: noise.map(&input),
        residual: residual.map(|ld| noise.map(&Map { ld, ..output })),
        weight: noise.vec(o * spec.depth()),
        bias: extras.bias.then(|| noise.vec(o)),
    }
}

type Make = fn(ConvSpec, &dyn Weights, Option<&[f32]>, Isa) -> Box<dyn Kernel>;

/// The plain sum: its error is bounded by its own terms, as this file checks, that of Winograd's by its neighbours' too.
fn choose(spec: ConvSpec, weight: &dyn Weights, bias: Option<&[f32]>, isa: Isa) -> Box<dyn Kernel> {
    super::choose(spec, weight, bias, Precision::Exact, isa)
}

fn check_all(case: &Case, makes: &[Make]) {
    for &isa in Isa::available() {
        for make in makes {
            case.check(&*make(case.spec, &case.weight, case.bias.as_deref(), isa));
        }
    }
    if Isa::available().contains(&Isa::Amx) {
        case.check(&*split(case));
    }
}

/// On the matrix unit, which only what is large enough would be computed on.
fn split(case: &Case) -> Box<dyn Kernel> {
    super::weights::held(Box::new(super::indirect::Indirect::split(case.spec)), &case.weight, case.bias.as_deref())
}

/// The same as training goes forward.
fn split_exactly(case: &Case) -> Box<dyn Kernel> {
    let mut form = Box::new(super::indirect::Indirect::split(case.spec));
    form.exactly(Direction::Forward);
    super::weights::held(form, &case.weight, case.bias.as_deref())
}

#[test]
fn pointwise_agrees_with_the_definition_at_awkward_channel_counts() {
    let mut noise = Noise(1);
    let mut channels = Vec::new();
    for c in [1, 3, 17, 33, 65, 100] {
        channels.extend([1, 3, 17, 33, 65, 100, 130].map(|o| [c, o]));
    }
    for (i, channels) in channels.into_iter().enumerate() {
        let size = [[1, 1], [5, 7], [1, 13], [9, 3]][i % 4];
        let extras = Extras { gaps: [i % 3, i % 5], residual: (i % 2 == 0).then_some(i % 4), ..PLAIN };
        let shape = Shape { batch: 1 + i % 2, ..shape(size, channels, 1, 0) };
        check_all(&case(shape, extras, &mut noise), &[pointwise, indirect, im2col, choose]);
    }
}

#[test]
fn every_activation_is_applied_after_bias_and_residual() {
    let all = [
        None,
        Some(Activation::Relu),
        Some(Activation::Relu6),
        Some(Activation::Silu),
        Some(Activation::Sigmoid),
        Some(Activation::HardSwish),
        Some(Activation::HardSigmoid),
    ];
    let mut noise = Noise(2);
    for activation in all {
        for residual in [None, Some(3)] {
            for bias in [false, true] {
                let extras = Extras { gaps: [1, 2], residual, activation, bias };
                check_all(&case(shape([6, 5], [20, 37], 3, 1), extras, &mut noise), &[indirect, im2col]);
            }
        }
    }
}

#[test]
fn windows_of_every_kind_meet_every_border() {
    let base = shape([9, 11], [17, 33], 3, 1);
    let shapes = [
        base,
        Shape { batch: 2, stride: [2; 2], ..base },
        Shape { stride: [3, 2], pad: [0, 2], ..base },
        Shape { dilation: [2, 3], pad: [2, 3], ..base },
        Shape { kernel: [2; 2], ..base }, // even: one more column of padding than it needs
        Shape { kernel: [4, 2], stride: [2, 1], pad: [3, 1], ..base }, // even and uneven
        Shape { pad: [5; 2], ..base },    // some windows see nothing but padding
        Shape { kernel: [1, 7], pad: [0, 3], ..base },
        Shape { kernel: [7, 1], pad: [3, 0], ..base },
        Shape { kernel: [1; 2], stride: [2; 2], pad: [0; 2], ..base }, // the shortcut of a residual block
        Shape { kernel: [1; 2], pad: [2; 2], ..base },                 // bias alone in the frame
        Shape { size: [1, 1], ..base },
        Shape { size: [1, 1], kernel: [5; 2], pad: [2; 2], ..base },
        Shape { size: [2, 40], channels: [3, 65], kernel: [5; 2], pad: [2; 2], stride: [2; 2], ..base },
    ];
    let mut noise = Noise(3);
    for shape in shapes {
        check_all(&case(shape, Extras { gaps: [3, 1], ..PLAIN }, &mut noise), &[indirect, im2col, choose]);
    }
}

#[test]
fn groups_see_their_own_channels_only() {
    let mut noise = Noise(4);
    for (channels, groups) in [([6, 4], 2), ([34, 66], 2), ([32, 32], 8), ([5, 10], 5), ([12, 130], 2), ([9, 9], 3)] {
        let shape = Shape { groups, batch: 2, ..shape([6, 7], channels, 3, 1) };
        let extras = Extras { gaps: [2, 3], residual: Some(1), activation: Some(Activation::Relu), bias: true };
        check_all(&case(shape, extras, &mut noise), &[indirect, im2col, choose]);
    }
}

#[test]
fn long_sums_are_cut_into_pieces_without_a_seam() {
    // A piece holds 768 k on AVX-512: these need several, by taps, within a tap, and through an in-place C.
    let mut noise = Noise(5);
    let wide = [
        shape([3, 3], [500, 70], 3, 1),
        shape([2, 3], [1700, 65], 1, 0),
        shape([2, 2], [1300, 18], 2, 1),
        Shape { groups: 2, ..shape([2, 2], [3000, 20], 1, 0) },
    ];
    for shape in wide {
        let extras = Extras { gaps: [4, 7], residual: Some(2), activation: Some(Activation::Relu), bias: true };
        let makes: &[Make] = if shape.kernel == [1, 1] { &[indirect, im2col] } else { &[indirect] };
        let mut case = case(shape, extras, &mut noise);
        // Thousands of terms: keep them of one size, so that the tolerance stays a bound.
        case.weight.iter_mut().for_each(|w| *w *= 0.1);
        check_all(&case, makes);
    }
}

#[test]
fn the_stem_reads_whole_kernel_rows_of_a_padded_image() {
    let mut noise = Noise(6);
    let base = Shape { stride: [2; 2], ..shape([23, 29], [3, 64], 7, 0) };
    let shapes = [
        base,
        Shape { kernel: [3; 2], channels: [3, 32], batch: 2, ..base },
        Shape { kernel: [11; 2], stride: [4; 2], channels: [3, 70], ..base },
        Shape { kernel: [5; 2], stride: [1; 2], channels: [1, 6], ..base },
        Shape { kernel: [3, 2], stride: [1, 3], channels: [4, 17], dilation: [2, 1], ..base },
    ];
    for shape in shapes {
        let extras = Extras { gaps: [0, 5], activation: Some(Activation::Relu), ..PLAIN };
        check_all(&case(shape, extras, &mut noise), &[rows, indirect, im2col]);
    }
}

#[test]
fn a_residual_may_be_the_output_itself() {
    let mut noise = Noise(7);
    let extras = Extras { residual: Some(3), gaps: [0, 3], activation: Some(Activation::Silu), ..PLAIN };
    let case = case(shape([4, 5], [900, 40], 1, 0), extras, &mut noise);
    let plain = Isa::available().iter().map(|&isa| pointwise(case.spec, &case.weight, case.bias.as_deref(), isa));
    for kernel in plain.chain(Isa::available().contains(&Isa::Amx).then(|| split(&case))) {
        let residual = case.residual.as_ref().unwrap();
        let (mut apart, mut inside) = (residual.clone(), residual.clone());
        let mut scratch = AlignedBuf::zeros(kernel.scratch());
        for tile in 0..kernel.tiles() {
            let apart = apart.as_mut_ptr();
            let inside = inside.as_mut_ptr();
            let x = case.input.as_ptr();
            // SAFETY: the maps have the extents of the specification; the residual in place is documented.
            unsafe {
                kernel.run(tile, &Io::new(&[x, residual.as_ptr()], apart), &mut scratch);
                kernel.run(tile, &Io::new(&[x, inside], inside), &mut scratch);
            }
        }
        assert_eq!(apart[..], inside[..], "{}", kernel.name());
    }
}

#[test]
fn linear_layers_of_any_height() {
    let mut noise = Noise(8);
    for (n, c, o) in [(1, 700, 1000), (2, 33, 10), (3, 1, 65), (5, 129, 40), (8, 100, 100), (16, 7, 20), (70, 17, 3)] {
        let case = case(
            Shape { batch: n, ..shape([1, 1], [c, o], 1, 0) },
            Extras { gaps: [5, 2], activation: Some(Activation::Relu), ..PLAIN },
            &mut noise,
        );
        let ConvSpec { input, output, .. } = case.spec;
        let spec =
            LinearSpec { n, input: [c, input.ld], output: [o, output.ld], activation: case.spec.epilogue.activation };
        for &isa in Isa::available() {
            case.check(&*linear(&spec, &case.weight, case.bias.as_deref(), isa));
        }
    }
}

#[test]
fn a_row_of_a_linear_layer_gives_the_same_bits_among_few_others() {
    let (c, o, mut noise) = (517, 90, Noise(9));
    let case = case(Shape { batch: 11, ..shape([1, 1], [c, o], 1, 0) }, Extras { gaps: [3, 0], ..PLAIN }, &mut noise);
    for &isa in Isa::available() {
        let run = |n: usize| {
            let spec = LinearSpec { n, input: [c, case.spec.input.ld], output: [o, o], activation: None };
            let kernel = linear(&spec, &case.weight, case.bias.as_deref(), isa);
            let (mut y, mut scratch) = (vec![0.0; n * o], AlignedBuf::zeros(kernel.scratch()));
            let io = Io::new(&[case.input.as_ptr()], y.as_mut_ptr());
            // SAFETY: the case has more rows.
            (0..kernel.tiles()).for_each(|tile| unsafe { kernel.run(tile, &io, &mut scratch) });
            y
        };
        let all = run(11);
        for n in [1, 2, 3, 6] {
            assert!(run(n).iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits()), "{n} rows, {}", isa.name());
        }
    }
}

#[test]
fn many_rows_and_panels_on_the_matrix_unit_join_without_a_seam() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    let mut noise = Noise(11);
    let shapes = [
        // Weights that stay in the cache: block after block of rows; then several tiles of both.
        shape([23, 29], [64, 96], 1, 0),
        Shape { batch: 2, stride: [2; 2], ..shape([31, 30], [96, 48], 3, 1) },
        // Weights that do not: all rows at once, in several pieces of k.
        Shape { batch: 3, ..shape([8, 7], [1056, 300], 1, 0) },
        shape([17, 17], [160, 320], 3, 1),
    ];
    for shape in shapes {
        for activation in [None, Some(Activation::Relu6), Some(Activation::Silu)] {
            let extras = Extras { gaps: [16, 5], residual: activation.map(|_| 3), activation, bias: true };
            let case = case(shape, extras, &mut noise);
            for kernel in [split(&case), split_exactly(&case)] {
                assert!(kernel.name().contains("split"), "{}", kernel.name());
                case.check(&*kernel);
            }
        }
    }
}

#[test]
fn products_on_the_matrix_unit_err_no_more_than_sums_of_f32() {
    if !Isa::available().contains(&Isa::Amx) {
        return;
    }
    let mut noise = Noise(12);
    for channels in [64, 256, 1024] {
        let case = case(shape([8, 8], [channels, 64], 1, 0), PLAIN, &mut noise);
        let error = |kernel: &dyn Kernel| {
            let mut y = AlignedBuf::zeros(case.spec.output.extent());
            let mut scratch = AlignedBuf::zeros(kernel.scratch());
            let io = Io::new(&[case.input.as_ptr()], y.as_mut_ptr());
            // SAFETY: the buffers hold the maps of the specification.
            (0..kernel.tiles()).for_each(|tile| unsafe { kernel.run(tile, &io, &mut scratch) });
            let off = |i: usize| f64::from(y[i]) - case.reference(0, i / 64 / 8, i / 64 % 8, i % 64).0;
            (0..y.len()).map(|i| off(i) * off(i)).sum::<f64>().sqrt()
        };
        let plain = error(&*pointwise(case.spec, &case.weight, case.bias.as_deref(), Isa::Avx512));
        let found = error(&*split(&case));
        assert!(found <= plain, "{channels} channels: {found:e}, of plain sums {plain:e}");
        let exact = error(&*split_exactly(&case));
        assert!(exact < 0.8 * found, "{channels} channels: {exact:e}, with small products in between {found:e}");
    }
}

#[test]
fn nothing_is_computed_for_an_empty_batch() {
    let mut noise = Noise(9);
    let case = case(Shape { batch: 0, ..shape([4, 4], [8, 8], 3, 1) }, PLAIN, &mut noise);
    check_all(&case, &[indirect, im2col, choose]);
}

#[test]
fn random_convolutions_agree_with_the_definition() {
    let mut noise = Noise(10);
    for _ in 0..60 {
        let groups = [1, 1, 1, 2, 3][noise.below(5)];
        let mut pick = |from: &[usize]| from[noise.below(from.len())];
        let kernel = [pick(&[1, 2, 3, 5]), pick(&[1, 2, 3, 4])];
        let dilation = [pick(&[1, 1, 2]), pick(&[1, 1, 3])];
        let shape = Shape {
            batch: pick(&[1, 1, 2]),
            size: [pick(&[8, 9, 13]), pick(&[10, 11, 12])],
            channels: [groups * pick(&[1, 2, 5, 8, 16, 31]), groups * pick(&[1, 4, 15, 16, 40, 70])],
            kernel,
            stride: [pick(&[1, 1, 2, 3]), pick(&[1, 1, 2])],
            pad: [pick(&[0, 1, 2, 4]), pick(&[0, 1, 3])],
            dilation,
            groups,
        };
        let extras = Extras {
            gaps: [pick(&[0, 3]), pick(&[0, 9])],
            residual: [None, Some(0), Some(6)][pick(&[0, 1, 2])],
            activation: [None, Some(Activation::Relu), Some(Activation::HardSwish)][pick(&[0, 1, 2])],
            bias: pick(&[0, 1]) == 1,
        };
        check_all(&case(shape, extras, &mut noise), &[indirect, im2col, choose]);
    }
}
