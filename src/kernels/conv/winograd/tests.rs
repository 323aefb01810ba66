use super::cost::{ONE, TWO, profitable_on};
use super::points::F4Short;
use super::*;
use crate::kernels::conv::testing::{SENTINEL, noise, position, to_map};
use crate::kernels::naive::{self, ConvShape, Nchw};
use crate::kernels::{Epilogue, Map};
use crate::shape::{Padding, Window};
use crate::simd::{Scalar, Simd};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    size: [usize; 2],
    channels: [usize; 2],
    pad: usize,
    /// Taps and stride along a side.
    window: [usize; 2],
    gap: usize,
    residual: bool,
    activation: Option<Activation>,
}

const BASE: Case = Case {
    batch: 1,
    size: [13, 13],
    channels: [16, 16],
    pad: 1,
    window: [3, 1],
    gap: 0,
    residual: false,
    activation: None,
};

fn spec(case: Case) -> ConvSpec {
    let [taps, stride] = case.window;
    let window = Window { padding: Padding::Symmetric([case.pad; 2]), stride: [stride; 2], ..Window::square(taps) };
    let placed = window.place(case.size, "test").unwrap();
    let map = |[h, w]: [usize; 2], c: usize| Map::new([case.batch, h, w, c], c + case.gap);
    let residual = case.residual.then_some(case.channels[1] + case.gap);
    ConvSpec {
        input: map(case.size, case.channels[0]),
        output: map(placed.output, case.channels[1]),
        window,
        placed,
        groups: 1,
        epilogue: Epilogue { activation: case.activation, residual },
    }
}

/// Inputs and weights of a case, and what comes out in f64.
struct Example {
    x: Vec<f32>,
    residual: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// In NCHW order.
    want: Vec<f64>,
    /// Root mean square of the sums, before anything is added.
    size: f64,
}

fn example(case: Case) -> Example {
    let ConvSpec { input, output, window, placed, .. } = spec(case);
    let [inputs, outputs] = case.channels;
    let (x, residual) = (noise(input.pixels() * inputs, 1), noise(output.pixels() * outputs, 2));
    let (weight, bias) = (noise(outputs * inputs * window.taps(), 3), noise(outputs, 4));
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let shape = ConvShape { out_channels: outputs, groups: 1, window, placed };
    let nchw = Nchw::new([case.batch, inputs, case.size[0], case.size[1]]);
    let mut want = naive::conv2d(&wide(&x), nchw, &wide(&weight), None, &shape);
    let size = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    let plane = output.h * output.w;
    for (i, y) in want.iter_mut().enumerate() {
        *y += f64::from(bias[i / plane % outputs]) + if case.residual { f64::from(residual[i]) } else { 0.0 };
    }
    let want = case.activation.map_or(want.clone(), |function| naive::activation(&want, function));
    Example { x, residual, weight, bias, want, size }
}

/// Runs the tiles last to first, the residual in place, and returns the output in NCHW order.
fn run(case: Case, example: &Example, kernel: &dyn Kernel) -> Vec<f32> {
    let spec = spec(case);
    let x = to_map(&example.x, spec.input, f32::NAN);
    let mut y = match case.residual {
        true => to_map(&example.residual, spec.output, SENTINEL),
        false => vec![SENTINEL; spec.output.extent()],
    };
    let mut scratch = AlignedBuf::zeros(kernel.scratch());
    let output = y.as_mut_ptr();
    let io = Io::new(&[x.as_ptr(), output.cast_const()], output);
    for tile in (0..kernel.tiles()).rev() {
        scratch.fill(f32::NAN);
        // SAFETY: the maps have their extents, the residual is the output, tiles run one after the other.
        unsafe { kernel.run(tile, &io, &mut scratch) };
    }
    let result = (0..example.want.len()).map(|i| std::mem::replace(&mut y[position(i, spec.output)], SENTINEL));
    let result = result.collect();
    assert!(y.iter().all(|&v| v == SENTINEL), "{} {case:?} writes between pixels", kernel.name());
    result
}

/// Runs a case in every form for its window on every instruction set.
fn check(case: Case) {
    let example = example(case);
    for form in Form::ALL.into_iter().filter(|form| form.applies(&spec(case))) {
        for &isa in Isa::available() {
            let kernel = winograd(spec(case), form, &example.weight, Some(&example.bias), isa);
            let got = run(case, &example, &*kernel);
            let (mut square, mut worst) = (0.0, 0.0f64);
            for (i, (&got, want)) in got.iter().zip(&example.want).enumerate() {
                let error = (f64::from(got) - want).abs();
                assert!(error.is_finite(), "{} {case:?}: [{i}] {got} {want}", kernel.name());
                square += error * error;
                worst = worst.max(error);
            }
            // Rounding once costs 3·10⁻⁸ of a value; a transform has gains of 5 to 15 in either direction, whose errors
            // are independent, and chains of up to 100 products. Bias and residual add values of size 1.
            let (rms, size) = ((square / got.len() as f64).sqrt(), example.size + 1.0);
            assert!(rms <= 1.5e-6 * size, "{} {case:?}: error {rms} of {size}", kernel.name());
            assert!(worst <= 1e-5 * size, "{} {case:?}: worst {worst} of {size}", kernel.name());
        }
    }
}

#[test]
fn the_transforms_are_a_convolution_in_one_dimension() {
    /// Columns of the matrices, by transforming unit vectors.
    fn check<P: Points>() {
        let unit = |i: usize| std::array::from_fn(|k| std::array::from_fn(|_| if k == i { 1.0 } else { 0.0 }));
        for o in 0..P::OUT {
            for input in 0..P::IN {
                for tap in 0..P::TAPS {
                    // The weight of d[input]·g[tap] in y[o].
                    let mut weight = 0.0;
                    for position in 0..P::IN {
                        // SAFETY: the portable instruction set needs nothing.
                        let (before, after): (f32, f32) = unsafe {
                            (P::before::<Scalar>(unit(input))[position][0], P::after::<Scalar>(unit(position))[o][0])
                        };
                        weight += f64::from(before) * P::G[position][tap] * f64::from(after);
                    }
                    let want = if input == o * P::STRIDE + tap { 1.0 } else { 0.0 };
                    assert!((weight - want).abs() < 5e-7, "y[{o}] d[{input}] g[{tap}]: {weight}");
                }
            }
        }
    }
    /// The same for the way back through stride 2: the gradient of input `o` is that of output `d` by the tap `2·d + t − 1 = o`.
    fn check_back<P: Points>() {
        let unit = |i: usize| std::array::from_fn(|k| std::array::from_fn(|_| if k == i { 1.0 } else { 0.0 }));
        for (o, d, tap) in (0..4).flat_map(|o| (0..5).flat_map(move |d| (0..3).map(move |tap| (o, d, tap)))) {
            // SAFETY: the portable instruction set needs nothing.
            let of = |position: usize| unsafe {
                let (before, after) = (P::before::<Scalar>(unit(d)), P::after::<Scalar>(unit(position)));
                f64::from(before[position][0]) * P::G[position][2 - tap] * f64::from(after[o][0])
            };
            let weight: f64 = (0..P::IN).map(of).sum();
            let want = if 2 * d + tap == o + 1 { 1.0 } else { 0.0 };
            assert!(weight == want, "dx[{o}] dy[{d}] g[{tap}]: {weight}");
        }
    }
    const { assert!(Scalar::LANES == 4) };
    check_back::<Unstrided>();
    check::<F2>();
    check::<F4>();
    check::<F4Short>();
    check::<F2Five>();
    check::<F3Four>();
    check::<F2Strided>();
}

#[test]
fn squares_cover_every_output_once_and_those_of_a_block_are_ordered_by_the_positions_they_have() {
    let products = |size: usize| {
        let case = spec(Case { size: [size, size], ..BASE });
        Cut::fitting(Form::F4, &case).products()
    };
    assert_eq!([14, 13, 7, 8].map(products), [22 * 22, 21 * 21, 11 * 11, 12 * 12]);
    for (h, w) in (1..=17).flat_map(|h| (1..=17).map(move |w| (h, w))) {
        let case = spec(Case { size: [h, w], batch: 2, ..BASE });
        let cut = Cut::fitting(Form::F4, &case);
        let mut seen = vec![0; 2 * h * w];
        let mut order = vec![0; 2 * cut.squares()];
        let kinds = cut.arrange(0..order.len(), &mut order);
        for (i, &square) in order.iter().enumerate() {
            let squares::Origin { image, at, short } = cut.origin(square as usize);
            for position in 0..Form::F4.products() {
                let lacks = (short[0] && position / 6 == 0) || (short[1] && position % 6 == 0);
                assert_eq!(
                    kinds.having::<points::F4>(position).contains(&i),
                    !lacks,
                    "{h}×{w}: {position} of {square}"
                );
            }
            let [down, across] = short.map(|short| 4 - usize::from(short));
            for (y, x) in (at[0]..h.min(at[0] + down)).flat_map(|y| (at[1]..w.min(at[1] + across)).map(move |x| (y, x)))
            {
                seen[(image * h + y) * w + x] += 1;
            }
        }
        assert!(seen.iter().all(|&times| times == 1), "{h}×{w}");
    }
}

#[test]
fn every_border_and_every_number_of_channels() {
    for size in [[1, 1], [2, 3], [5, 7], [13, 13], [14, 14], [8, 3]] {
        for (pad, gap) in [(1, 0), (2, 3), (0, 5)] {
            if size[0].min(size[1]) + 2 * pad >= 3 {
                check(Case { size, pad, gap, channels: [17, 33], batch: 2, ..BASE });
            }
        }
    }
    for window in [[5, 1], [4, 1], [3, 2]] {
        for size in [[1, 1], [2, 3], [5, 7], [13, 13], [14, 14], [8, 3]] {
            for (pad, gap) in [(window[0] / 2, 0), (4, 3), (0, 5)] {
                if size[0].min(size[1]) + 2 * pad >= window[0] {
                    check(Case { size, pad, gap, window, channels: [17, 33], batch: 2, ..BASE });
                }
            }
        }
    }
    for channels in [[12, 64], [3, 33], [16, 100], [100, 16], [33, 64], [64, 17], [64, 130], [3, 5]] {
        check(Case { channels, gap: 1, size: [9, 10], ..BASE });
    }
}

#[test]
fn every_activation_follows_bias_and_residual() {
    use Activation::*;
    for activation in [None, Some(Relu), Some(Relu6), Some(Silu), Some(Sigmoid), Some(HardSwish), Some(HardSigmoid)] {
        for residual in [false, true] {
            for inputs in [20, 12] {
                check(Case { activation, residual, channels: [inputs, 37], size: [6, 5], gap: 2, ..BASE });
            }
        }
    }
}

#[test]
fn many_blocks_and_panels_join_without_a_seam() {
    check(Case { size: [61, 40], channels: [64, 70], batch: 2, ..BASE });
    check(Case { size: [27, 27], channels: [64, 192], window: [5, 1], pad: 2, ..BASE });
    check(Case { size: [28, 29], channels: [48, 80], window: [3, 2], batch: 2, ..BASE });
    check(Case { size: [59, 40], channels: [12, 70], window: [4, 1], pad: 0, batch: 2, ..BASE });
    check(Case { size: [14, 14], channels: [128, 256], residual: true, gap: 16, ..BASE });
}

#[test]
fn bits_do_not_depend_on_the_batch() {
    // Blocks end elsewhere, and with them the microkernels that compute a square.
    for form in [Form::F2, Form::F3, Form::F4] {
        let [one, three] = [1, 3].map(|batch| Case { batch, size: [11, 9], channels: [40, 48], ..BASE });
        // The noise begins the same way whatever its length: the first image is the same in both.
        let (first, all) = (example(one), example(three));
        let [y, ys] = [(one, &first), (three, &all)].map(|(case, example)| {
            run(case, example, &*winograd(spec(case), form, &example.weight, Some(&all.bias), Isa::detect()))
        });
        assert_eq!(y[..], ys[..y.len()]);
    }
}

#[test]
fn nan_stays_where_it_is_seen() {
    let case = Case { size: [12, 12], activation: Some(Activation::Relu), ..BASE };
    let mut example = example(case);
    example.x[5 * 12 + 5] = f32::NAN;
    for form in [Form::F2, Form::F3, Form::F4] {
        for &isa in Isa::available() {
            let kernel = winograd(spec(case), form, &example.weight, None, isa);
            let y = run(case, &example, &*kernel);
            for (y, x) in [(4, 4), (5, 5), (6, 6)].map(|(i, j)| (y[i * 12 + j], [i, j])) {
                assert!(y.is_nan(), "{}: {x:?} is {y}", kernel.name());
            }
            assert!(y[0].is_finite() && y[143].is_finite());
        }
    }
}

#[test]
fn the_cost_model_knows_where_weights_decide() {
    let chosen = |core, batch, size, channels| {
        profitable_on(core, &spec(Case { batch, size: [size; 2], channels, ..BASE }), Kept::Held)
    };
    // With two multipliers and with one.
    for (batch, size, channels, forms) in [
        (1, 56, [64, 64], [Some(Form::F4); 2]),
        (1, 28, [128, 128], [Some(Form::F4); 2]),
        (1, 14, [256, 256], [Some(Form::F3), Some(Form::F4)]),
        (2, 14, [256, 256], [Some(Form::F3), Some(Form::F4)]),
        (4, 14, [256, 256], [Some(Form::F4); 2]),
        (1, 7, [512, 512], [None, Some(Form::F2)]),
        (1, 14, [96, 208], [Some(Form::F3), Some(Form::F4)]),
        (1, 7, [160, 320], [Some(Form::F2); 2]),
        (2, 7, [512, 512], [Some(Form::F2), Some(Form::F4)]),
        (1, 4, [512, 512], [None; 2]),
        (1, 7, [128, 32], [None, Some(Form::F2)]),
        (8, 7, [512, 512], [Some(Form::F4); 2]),
        (1, 13, [256, 384], [Some(Form::F3), Some(Form::F4)]),
        (1, 224, [64, 64], [Some(Form::F4); 2]),
        (1, 28, [128, 32], [Some(Form::F4); 2]),
        (1, 1, [64, 64], [None; 2]),
        (1, 56, [3, 64], [Some(Form::F4); 2]),
        (1, 32, [3, 16], [None; 2]),
        (1, 56, [64, 8], [None; 2]),
    ] {
        let found = [TWO, ONE].map(|core| chosen(core, batch, size, channels));
        assert_eq!(found, forms, "{channels:?} at {size}, batch {batch}");
    }
    let learns = |batch| profitable(&spec(Case { batch, size: [14; 2], channels: [256; 2], ..BASE }), Kept::Learned);
    assert_eq!([1, 4, 16].map(learns), [Some(Form::F4); 3]);
    let of = |window, size, channels| {
        profitable(&spec(Case { window, size: [size; 2], channels, pad: window[0] / 2, ..BASE }), Kept::Held)
    };
    assert_eq!(of([5, 1], 27, [64, 192]), Some(Form::F2Five));
    assert_eq!(of([3, 2], 56, [128, 128]), Some(Form::F2Strided));
    assert_eq!(of([3, 2], 14, [512, 512]), None);
    assert_eq!(of([7, 2], 56, [64, 64]), None);
    let strided = ConvSpec { window: Window { stride: [3; 2], ..Window::square(3) }, ..spec(BASE) };
    let dilated = ConvSpec { window: Window { dilation: [2; 2], ..Window::square(3) }, ..spec(BASE) };
    assert!(
        [strided, dilated, ConvSpec { groups: 2, ..spec(BASE) }]
            .iter()
            .all(|spec| profitable(spec, Kept::Held).is_none())
    );
}

#[test]
fn tiles_suffice_for_a_few_threads() {
    for (batch, size, channels) in [(1, 56, [64, 64]), (1, 28, [128, 128]), (1, 14, [256, 256]), (8, 7, [512, 512])] {
        let case = Case { batch, size: [size; 2], channels, ..BASE };
        let form = profitable(&spec(case), Kept::Held).unwrap();
        let weight = vec![0.0; channels[0] * channels[1] * 9];
        let kernel = winograd(spec(case), form, &weight, None, Isa::detect());
        assert!(kernel.tiles() >= 4 && kernel.tiles().is_multiple_of(2), "{case:?}: {}", kernel.tiles());
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn machine_code_of_the_transforms_keeps_what_fits_in_registers() {
    use super::columns::{Columns, SIDE};
    use super::points::F4;
    use super::transform::{After, Before};
    use crate::simd::codegen;
    for &isa in Isa::available().iter().filter(|isa| isa.lanes() >= 8) {
        if isa.registers() >= 32 && !codegen::arithmetic_is_checked() {
            let loops = codegen::loops(isa.entry::<Columns<'static, F3Four>>() as *const ());
            let what = format!("F3Four columns {}", isa.name());
            codegen::with_products(&loops, isa, 6 * SIDE, &what).assert_in_registers(&what, 0);
        }
        for (what, entry) in [
            ("F4 before", isa.entry::<Before<'static, F4, F4>>() as *const ()),
            ("F4 after", isa.entry::<After<'static, F4, F4>>() as *const ()),
        ] {
            let loops = codegen::loops(entry);
            assert!(!loops.is_empty(), "{what} {}: no loop was found", isa.name());
            // A square of 36 and what is worked on; what is too much for the registers is stored and read once.
            let allowed = 2 * (36 + 10 - isa.registers());
            loops.iter().for_each(|l| l.assert_in_registers(what, allowed));
        }
    }
}
