use super::*;
use crate::kernels::conv::testing::{SENTINEL, noise, position, to_map};
use crate::kernels::light::testing::run_tiles;
use crate::kernels::naive::{self, ConvShape, Nchw};
use crate::kernels::{Epilogue, Map};
use crate::shape::Window;

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    size: [usize; 2],
    channels: [usize; 2],
    stride: usize,
    gap: usize,
    residual: bool,
    activation: Option<Activation>,
    /// The activation of the prologue, if there is one.
    prologue: Option<Option<Activation>>,
}

const BASE: Case = Case {
    batch: 1,
    size: [6, 7],
    channels: [64, 64],
    stride: 1,
    gap: 0,
    residual: false,
    activation: None,
    prologue: None,
};

fn spec(case: Case) -> ConvSpec {
    let window = Window { stride: [case.stride; 2], ..Window::square(1) };
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

/// Inputs and parameters of a case, and what comes out in f64, in NCHW order.
struct Example {
    x: Vec<f32>,
    residual: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    prologue: Option<Prologue>,
    want: Vec<f64>,
    /// Root mean square of the sums, before anything is added.
    size: f64,
}

fn example(case: Case) -> Example {
    let ConvSpec { input, output, window, placed, .. } = spec(case);
    let [inputs, outputs] = case.channels;
    let (x, residual) = (noise(input.pixels() * inputs, 1), noise(output.pixels() * outputs, 2));
    let (weight, bias) = (noise(outputs * inputs, 3), noise(outputs, 4));
    let prologue =
        case.prologue.map(|activation| Prologue { scale: noise(inputs, 5), shift: noise(inputs, 6), activation });
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let mut seen = wide(&x);
    if let Some(Prologue { scale, shift, activation }) = &prologue {
        for (i, v) in seen.iter_mut().enumerate() {
            let c = i / (input.h * input.w) % inputs;
            let y = f64::from(scale[c]) * *v + f64::from(shift[c]);
            *v = activation.map_or(y, |a| a.apply(y));
        }
    }
    let shape = ConvShape { out_channels: outputs, groups: 1, window, placed };
    let mut want =
        naive::conv2d(&seen, Nchw::new([case.batch, inputs, input.h, input.w]), &wide(&weight), None, &shape);
    let size = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
    for (i, y) in want.iter_mut().enumerate() {
        *y += f64::from(bias[i / (output.h * output.w) % outputs]);
        *y += if case.residual { f64::from(residual[i]) } else { 0.0 };
    }
    let want = case.activation.map_or(want.clone(), |function| naive::activation(&want, function));
    Example { x, residual, weight, bias, prologue, want, size }
}

/// Runs the tiles last to first, the residual in place, and returns the output in NCHW order.
fn run(case: Case, example: &Example, isa: Isa) -> Vec<f32> {
    let spec = spec(case);
    let kernel = strassen(spec, example.prologue.clone(), &example.weight, Some(&example.bias), isa);
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

fn check(case: Case) {
    let example = example(case);
    for &isa in Isa::available() {
        let got = run(case, &example, isa);
        let (mut square, mut worst) = (0.0, 0.0f64);
        for (i, (&got, want)) in got.iter().zip(&example.want).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(error.is_finite(), "{} {case:?}: [{i}] {got} {want}", isa.name());
            square += error * error;
            worst = worst.max(error);
        }
        // Up to 512 products, each rounded to 6·10⁻⁸ of a sum that is at most a few times the result.
        let (rms, size) = ((square / got.len() as f64).sqrt(), example.size + 1.0);
        assert!(rms <= 1e-6 * size, "{} {case:?}: error {rms} of {size}", isa.name());
        assert!(worst <= 1e-5 * size, "{} {case:?}: worst {worst} of {size}", isa.name());
    }
}

#[test]
fn sizes_channels_strides_and_gaps_of_every_kind() {
    for size in [[1, 1], [1, 2], [3, 3], [7, 7], [5, 16]] {
        for (batch, stride, gap) in [(1, 1, 0), (3, 1, 5), (2, 2, 16)] {
            check(Case { batch, size, stride, gap, channels: [32, 64], ..BASE });
        }
    }
    for channels in
        [[32, 32], [96, 128], [64, 288], [416, 64], [1024, 96], [32, 16], [96, 48], [64, 272], [48, 64], [272, 80]]
    {
        check(Case { channels, gap: 3, batch: 2, size: [3, 7], ..BASE });
    }
}

#[test]
fn activations_follow_bias_and_residual_and_a_norm_comes_first() {
    use Activation::{HardSwish, Relu, Relu6, Silu};
    for activation in [None, Some(Relu), Some(Relu6), Some(Silu), Some(HardSwish)] {
        for residual in [false, true] {
            for prologue in [None, Some(None), Some(Some(Relu)), Some(Some(Relu6))] {
                check(Case { activation, residual, prologue, channels: [96, 64], size: [5, 5], gap: 2, ..BASE });
            }
        }
    }
}

#[test]
fn weights_and_norms_that_come_with_every_run_give_the_same_bits() {
    use super::super::weights::learned;
    use crate::kernels::WEIGHTS;
    use crate::kernels::norm::train::{SCALE, SHIFT, TABLE_ROWS};
    let relu = Some(Activation::Relu);
    for prologue in [None, Some(None), Some(relu)] {
        let case = Case { channels: [96, 160], size: [5, 7], batch: 2, gap: 2, prologue, ..BASE };
        let (spec, mut example) = (spec(case), example(case));
        example.bias.fill(0.0);
        let mut table = vec![f32::NAN; TABLE_ROWS * 96];
        if let Some(Prologue { scale, shift, .. }) = &example.prologue {
            table[SCALE * 96..][..96].copy_from_slice(scale);
            table[SHIFT * 96..][..96].copy_from_slice(shift);
        }
        for &isa in Isa::available() {
            let expected = run(case, &example, isa);
            let before = prologue.map_or(Before::Nothing, Before::Table);
            let form = Box::new(StrassenProduct::new(spec, before, isa));
            let learned = learned(form, Direction::Forward, 96 * 160, None);
            let mut packed = AlignedBuf::zeros(learned.packed);
            packed.fill(f32::NAN);
            run_tiles(&*learned.packing, &Io::new(&[example.weight.as_ptr()], packed.as_mut_ptr()));
            let x = to_map(&example.x, spec.input, f32::NAN);
            let mut y = vec![SENTINEL; spec.output.extent()];
            let mut io = Io::new(&[x.as_ptr(), std::ptr::null(), table.as_ptr()], y.as_mut_ptr());
            io.inputs[WEIGHTS] = packed.as_ptr();
            run_tiles(&*learned.kernel, &io);
            let found: Vec<f32> = (0..expected.len()).map(|i| y[position(i, spec.output)]).collect();
            assert_eq!(found, expected, "{} {prologue:?}", learned.kernel.name());
        }
    }
}

#[test]
fn many_blocks_and_panels_join_without_a_seam() {
    let prologue = Some(Some(Activation::Relu));
    check(Case { size: [41, 30], channels: [128, 192], batch: 2, ..BASE });
    check(Case { size: [14, 14], channels: [512, 320], residual: true, gap: 16, prologue, ..BASE });
}

#[test]
fn bits_do_not_depend_on_the_batch_and_images_do_not_reach_each_other() {
    let [one, three] = [1, 3].map(|batch| Case { batch, size: [7, 5], channels: [64, 96], ..BASE });
    // The noise begins the same way whatever its length: the first image is the same in both.
    let (first, mut all) = (example(one), example(three));
    let image = first.x.len();
    all.x[image..2 * image].fill(f32::NAN);
    let [y, ys] = [(one, &first), (three, &all)].map(|(case, example)| run(case, example, Isa::detect()));
    assert_eq!(y[..], ys[..y.len()]);
    assert!(ys[y.len()..2 * y.len()].iter().all(|v| v.is_nan()));
    assert!(ys[2 * y.len()..].iter().all(|v| v.is_finite()));
}

#[test]
fn the_cost_model_wants_depth_width_and_pixels() {
    use Input::{Gated, Raw, Ready};
    for (channels, size, input, wanted) in [
        ([1024, 256], 14, Ready, true),
        ([256, 128], 56, Ready, true),
        ([512, 128], 14, Raw, true),
        ([128, 128], 7, Raw, true),
        ([256, 1024], 14, Ready, false),
        ([2048, 512], 7, Ready, false),
        ([256, 64], 56, Ready, false),
        ([64, 128], 56, Raw, false),
        ([256, 32], 28, Raw, false),
        ([1024, 256], 1, Raw, false),
        ([1000, 250], 14, Ready, false),
        ([512, 144], 14, Ready, false),
        ([1632, 272], 12, Gated, true),
        ([480, 80], 14, Gated, false),
    ] {
        let spec = spec(Case { channels, size: [size; 2], ..BASE });
        let wanted = wanted && (input == Raw || adds_apart());
        assert_eq!(profitable(&spec, input), wanted, "{channels:?} at {size}, {input:?}");
    }
}
