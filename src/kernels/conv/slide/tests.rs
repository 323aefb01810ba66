//! Depthwise and grouped kernels against the oracle in `f64`, for every instruction set.

use crate::activation::Activation;
use crate::kernels::conv::testing::{SENTINEL, noise, position, to_map};
use crate::kernels::conv::{ConvSpec, depthwise, depthwise_sums, grouped};
use crate::kernels::naive::{self, ConvShape, Nchw};
use crate::kernels::{Epilogue, Io, Map};
use crate::shape::{Padding, Window};
use crate::simd::Isa;
use crate::tensor::AlignedBuf;

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    size: [usize; 2],
    /// Groups, and channels of each, in and out.
    groups: [usize; 3],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: Padding,
    dilation: [usize; 2],
    activation: Option<Activation>,
    residual: bool,
}

impl Case {
    const fn new(size: [usize; 2], groups: [usize; 3], kernel: usize, stride: usize) -> Case {
        Case {
            batch: 1,
            size,
            groups,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: Padding::Symmetric([kernel / 2; 2]),
            dilation: [1; 2],
            activation: None,
            residual: false,
        }
    }

    fn spec(&self, gap: usize) -> ConvSpec {
        let [groups, inputs, outputs] = self.groups;
        let window = Window {
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
            dilation: self.dilation,
            ceil: false,
        };
        let placed = window.place(self.size, "test").unwrap();
        let map = |[h, w]: [usize; 2], c: usize| Map::new([self.batch, h, w, c], c + gap);
        ConvSpec {
            input: map(self.size, groups * inputs),
            output: map(placed.output, groups * outputs),
            window,
            placed,
            groups,
            epilogue: Epilogue {
                activation: self.activation,
                residual: self.residual.then_some(groups * outputs + gap),
            },
        }
    }
}

fn oracle(spec: &ConvSpec, x: &[f32], weight: &[f32], bias: Option<&[f32]>, residual: Option<&[f32]>) -> Vec<f64> {
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let input = Nchw::new([spec.input.n, spec.input.c, spec.input.h, spec.input.w]);
    let shape =
        ConvShape { out_channels: spec.output.c, groups: spec.groups, window: spec.window, placed: spec.placed };
    let mut y = naive::conv2d(&wide(x), input, &wide(weight), bias.map(wide).as_deref(), &shape);
    if let Some(residual) = residual {
        y.iter_mut().zip(residual).for_each(|(y, &r)| *y += f64::from(r));
    }
    match spec.epilogue.activation {
        Some(function) => naive::activation(&y, function),
        None => y,
    }
}

fn check(case: Case, gap: usize) {
    let spec = case.spec(gap);
    let (input, output) = (spec.input, spec.output);
    let x = noise(input.pixels() * input.c, 1);
    let weight = noise(output.c * case.groups[1] * spec.window.taps(), 2);
    let bias = (gap != 0).then(|| noise(output.c, 3));
    let residual = case.residual.then(|| noise(output.pixels() * output.c, 4));
    let want = oracle(&spec, &x, &weight, bias.as_deref(), residual.as_deref());
    // Whatever reads a gap spoils its result.
    let source = to_map(&x, input, f32::NAN);
    for &isa in Isa::available() {
        let kernel = match case.groups {
            [_, 1, 1] => depthwise(spec, &weight, bias.as_deref(), isa),
            _ => grouped(spec, &weight, bias.as_deref(), isa),
        };
        // The residual is the output itself, which is the harder case.
        let mut y = match &residual {
            Some(residual) => to_map(residual, output, SENTINEL),
            None => vec![SENTINEL; output.extent()],
        };
        let mut scratch = AlignedBuf::zeros(kernel.scratch());
        let mut inputs = [source.as_ptr(), y.as_ptr(), std::ptr::null(), std::ptr::null()];
        inputs[1] = y.as_mut_ptr();
        let io = Io::new(&inputs, y.as_mut_ptr());
        for tile in (0..kernel.tiles()).rev() {
            // SAFETY: both maps have their extent, the residual is the output, and tiles run one after the other.
            unsafe { kernel.run(tile, &io, &mut scratch) };
        }
        let name = kernel.name();
        let mut seen = vec![false; y.len()];
        for (i, &want) in want.iter().enumerate() {
            let at = position(i, output);
            let got = f64::from(y[at]);
            assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{name} {case:?} gap {gap}: [{i}] {got} {want}");
            seen[at] = true;
        }
        let untouched = y.iter().zip(&seen).all(|(&v, &seen)| seen || v == SENTINEL);
        assert!(untouched, "{name} {case:?} writes between pixels");
    }
}

fn check_all(cases: &[Case]) {
    for &case in cases {
        for gap in [0, 5] {
            check(case, gap);
        }
    }
}

/// `c` groups of one channel.
const fn dw(c: usize) -> [usize; 3] {
    [c, 1, 1]
}

#[test]
fn depthwise_fixed_loops_agree_with_the_oracle() {
    let mut cases = Vec::new();
    for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
        // Every strip width, with and without overlap: rows of 1 to 15 and 28 pixels.
        for size in [[1, 1], [2, 3], [4, 5], [7, 7], [9, 8], [6, 12], [5, 15], [11, 28]] {
            cases.push(Case::new(size, dw(48), kernel, stride));
        }
        // One vector, several, and a last block that overlaps.
        for c in [16, 32, 17, 40, 100] {
            cases.push(Case { batch: 2, ..Case::new([9, 10], dw(c), kernel, stride) });
        }
    }
    check_all(&cases);
}

#[test]
fn depthwise_general_loop_agrees_with_the_oracle() {
    let base = Case::new([9, 11], dw(20), 3, 1);
    check_all(&[
        Case { dilation: [2, 3], padding: Padding::Symmetric([2, 3]), ..base },
        // Only the rows are dilated: a fixed loop still.
        Case { dilation: [3, 1], padding: Padding::Symmetric([3, 1]), ..base },
        Case { kernel: [2, 4], padding: Padding::Symmetric([1, 2]), ..base },
        Case { kernel: [1, 7], padding: Padding::Symmetric([0, 3]), batch: 2, ..base },
        Case { kernel: [7, 3], padding: Padding::Symmetric([3, 1]), ..base },
        Case { stride: [1, 3], ..base },
        Case { stride: [3, 1], padding: Padding::Same, ..base },
        Case { stride: [2, 2], padding: Padding::Same, ..base },
        Case { kernel: [5, 5], padding: Padding::Symmetric([6, 6]), ..base },
        Case { kernel: [3, 3], padding: Padding::Symmetric([0, 0]), ..base },
        // Fewer channels than a register has lanes.
        Case { groups: dw(3), ..base },
        Case { groups: dw(1), ..base },
        Case { groups: dw(9), kernel: [5, 5], stride: [2, 1], ..base },
    ]);
}

#[test]
fn grouped_convolutions_agree_with_the_oracle() {
    let mut cases = Vec::new();
    // ResNeXt's square groups, SENet-154's rectangular ones, channel multipliers, and shapes that fit no register.
    let groups = [
        [8, 4, 4],
        [9, 4, 4],
        [3, 8, 8],
        [2, 16, 16],
        [2, 32, 32],
        [2, 48, 40],
        [16, 2, 4],
        [5, 4, 8],
        [3, 8, 16],
        [2, 16, 32],
        [20, 1, 2],
        [7, 2, 1],
        [6, 3, 3],
        [3, 5, 6],
        [2, 12, 20],
        [1, 3, 2],
        [4, 20, 3],
        [33, 2, 2],
    ];
    for groups in groups {
        for (size, stride) in [([9, 14], 1), ([6, 7], 2), ([5, 30], 1), ([8, 31], 2), ([3, 4], 1)] {
            cases.push(Case { batch: 2, ..Case::new(size, groups, 3, stride) });
        }
        cases.push(Case { dilation: [2; 2], padding: Padding::Symmetric([2; 2]), ..Case::new([7, 9], groups, 3, 1) });
        cases.push(Case { kernel: [2, 5], padding: Padding::Same, ..Case::new([7, 9], groups, 3, 1) });
        cases.push(Case::new([4, 5], groups, 1, 1));
    }
    check_all(&cases);
}

#[test]
fn every_epilogue_agrees_with_the_oracle_even_on_top_of_its_residual() {
    use Activation::{HardSigmoid, HardSwish, Relu, Relu6, Sigmoid, Silu};
    let mut cases = Vec::new();
    for activation in [None, Some(Relu), Some(Relu6), Some(Silu), Some(Sigmoid), Some(HardSwish), Some(HardSigmoid)] {
        for residual in [false, true] {
            for groups in [dw(40), dw(5), [9, 4, 4], [2, 20, 20]] {
                cases.push(Case { activation, residual, batch: 2, ..Case::new([9, 9], groups, 3, 1) });
            }
        }
    }
    check_all(&cases);
}

#[test]
fn large_maps_are_cut_into_tiles_of_rows_and_of_channels() {
    for (size, c) in [([40, 41], 72), ([12, 11], 600)] {
        let case = Case { batch: 2, ..Case::new(size, dw(c), 5, 1) };
        let tiles = depthwise(case.spec(0), &noise(c * 25, 1), None, Isa::detect()).tiles();
        assert!(tiles >= 8, "{tiles} tiles for {case:?}");
        check_all(&[case]);
    }
}

#[test]
fn row_sums_are_those_of_what_was_written_on_every_isa() {
    let silu = Some(Activation::Silu);
    for (size, c, kernel, stride, activation) in [
        ([9, 10], 48, 3, 1, silu),
        ([7, 7], 40, 5, 1, silu),
        ([13, 9], 100, 3, 2, Some(Activation::Relu)),
        ([5, 3], 5, 3, 1, None),
        ([6, 20], 17, 7, 1, Some(Activation::HardSwish)),
    ] {
        let spec = Case { batch: 2, activation, ..Case::new(size, dw(c), kernel, stride) }.spec(0);
        let (output, ld) = (spec.output, c + 3);
        let (x, weight) = (noise(spec.input.extent(), 1), noise(c * kernel * kernel, 2));
        for &isa in Isa::available() {
            let kernel = depthwise_sums(spec, ld, &weight, None, isa);
            let (mut y, mut sums) = (vec![0.0f32; output.extent()], vec![SENTINEL; output.n * output.h * ld]);
            let mut io = Io::new(&[x.as_ptr()], y.as_mut_ptr());
            io.also[0] = sums.as_mut_ptr();
            for tile in (0..kernel.tiles()).rev() {
                // SAFETY: dense maps of these extents, room for every row's sums, no residual and no scratch.
                unsafe { kernel.run(tile, &io, &mut []) };
            }
            for (i, &sum) in sums.iter().enumerate() {
                let (row, channel) = (i / ld, i % ld);
                let value = |x: usize| y[(row * output.w + x) * c + channel];
                let want = if channel < c { (0..output.w).map(value).sum() } else { SENTINEL };
                assert!((sum - want).abs() < 1e-5, "{}: {size:?} {c}: [{row}, {channel}]", kernel.name());
            }
        }
    }
}

#[test]
fn results_are_the_same_wherever_a_row_is_cut() {
    // A wider image moves the strips; pixels far from the right border must not notice.
    let run = |w: usize| {
        let spec = Case::new([5, w], dw(32), 3, 1).spec(0);
        let row = noise(5 * 64 * 32, 7);
        let at = |y: usize, x: usize| &row[(y * 64 + x) * 32..][..32];
        let x: Vec<f32> = (0..5).flat_map(|y| (0..w).flat_map(move |x| at(y, x).iter().copied())).collect();
        let kernel = depthwise(spec, &noise(32 * 9, 8), None, Isa::detect());
        let mut y = vec![0.0f32; spec.output.extent()];
        let io = Io::new(&[x.as_ptr()], y.as_mut_ptr());
        for tile in 0..kernel.tiles() {
            // SAFETY: dense maps of these extents, one tile at a time, no residual and no scratch.
            unsafe { kernel.run(tile, &io, &mut []) };
        }
        (0..5).flat_map(|row| y[row * w * 32..][..20 * 32].to_vec()).collect::<Vec<_>>()
    };
    let (narrow, wide) = (run(23), run(64));
    assert!(narrow.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn machine_code_of_depthwise_strips_multiplies_in_registers_alone() {
    use super::{Tile, strip::Plain};
    use crate::simd::codegen;
    for &isa in Isa::available().iter().filter(|isa| isa.lanes() >= 8) {
        let entries = [
            (3, isa.entry::<Tile<'static, Plain, 3, 1>>() as *const ()),
            (3, isa.entry::<Tile<'static, Plain, 3, 2>>() as *const ()),
            (5, isa.entry::<Tile<'static, Plain, 5, 1>>() as *const ()),
            (5, isa.entry::<Tile<'static, Plain, 5, 2>>() as *const ()),
        ];
        for (i, (taps, entry)) in entries.into_iter().enumerate() {
            let what = format!("{taps} taps at stride {} {}", 1 + i % 2, isa.name());
            let loops = codegen::loops(entry);
            // The strip of seven pixels, two vectors of them where there are registers.
            let vectors = if isa.registers() >= 32 { 2 } else { 1 };
            codegen::with_products(&loops, isa, 7 * vectors * taps, &what);
            loops.iter().for_each(|l| l.assert_in_registers(&what, 0));
        }
    }
}
