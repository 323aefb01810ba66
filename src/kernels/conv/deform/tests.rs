use super::*;
use crate::activation::Activation;
use crate::kernels::Epilogue;
use crate::kernels::conv::testing::{SENTINEL, noise, position, to_map};
use crate::kernels::naive::{self, ConvShape, Nchw};
use crate::shape::{Padding, Window};

#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    size: [usize; 2],
    channels: [usize; 2],
    /// Weight groups and offset groups.
    groups: [usize; 2],
    window: Window,
    /// How far shifts reach, in pixels.
    reach: f32,
    modulated: bool,
    residual: bool,
    activation: Option<Activation>,
}

const BASE: Case = Case {
    batch: 1,
    size: [7, 9],
    channels: [8, 12],
    groups: [1, 1],
    window: Window { padding: Padding::Symmetric([1; 2]), ..Window::square(3) },
    reach: 2.0,
    modulated: true,
    residual: false,
    activation: None,
};

/// Spoils some shifts: what is not finite or far away samples outside.
fn spoil(offset: &mut [f32]) {
    let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38, 1e10, -1e10];
    for (i, &v) in wild.iter().enumerate() {
        let at = (i * 37 + 5) % offset.len();
        offset[at] = v;
    }
}

fn check(case: Case, gap: usize) {
    let placed = case.window.place(case.size, "test").unwrap();
    let map = |[h, w]: [usize; 2], c: usize| Map::new([case.batch, h, w, c], c + gap);
    let [groups, offset_groups] = case.groups;
    let (taps, [inputs, outputs]) = (case.window.taps(), case.channels);
    let spec = ConvSpec {
        input: map(case.size, inputs),
        output: map(placed.output, outputs),
        window: case.window,
        placed,
        groups,
        epilogue: Epilogue { activation: case.activation, residual: case.residual.then_some(outputs + gap) },
    };
    let offsets = map(placed.output, 2 * offset_groups * taps);
    let masks = map(placed.output, offset_groups * taps);
    let values = |map: Map, seed: u32| noise(map.pixels() * map.c, seed);
    let (x, residual, mask) = (values(spec.input, 1), values(spec.output, 2), values(masks, 3));
    let mut offset: Vec<f32> = values(offsets, 4).iter().map(|v| v * case.reach).collect();
    spoil(&mut offset);
    let (weight, bias) = (noise(outputs * inputs / groups * taps, 5), noise(outputs, 6));

    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let (offset64, mask64) = (wide(&offset), wide(&mask));
    let sampling =
        naive::Sampling { offset: &offset64, mask: case.modulated.then_some(&mask64[..]), groups: offset_groups };
    let input = Nchw::new([case.batch, inputs, case.size[0], case.size[1]]);
    let shape = ConvShape { out_channels: outputs, groups, window: case.window, placed };
    let mut want = naive::deform_conv2d(&wide(&x), input, sampling, &wide(&weight), Some(&wide(&bias)), &shape);
    if case.residual {
        want.iter_mut().zip(&residual).for_each(|(y, &r)| *y += f64::from(r));
    }
    let want = case.activation.map_or(want.clone(), |function| naive::activation(&want, function));

    let sampling = Sampling { offset: offsets, mask: case.modulated.then_some(masks), groups: offset_groups };
    let [x, offset, mask] = [(&x, spec.input), (&offset, offsets), (&mask, masks)].map(|(v, m)| to_map(v, m, f32::NAN));
    for &isa in Isa::available() {
        let kernel = deform(spec, sampling, &weight, Some(&bias), isa);
        let mut y = vec![SENTINEL; spec.output.extent()];
        if case.residual {
            y = to_map(&residual, spec.output, SENTINEL);
        }
        let mut scratch = AlignedBuf::zeros(kernel.scratch());
        scratch.fill(f32::NAN);
        let output = y.as_mut_ptr();
        let io = Io::new(&[x.as_ptr(), offset.as_ptr(), mask.as_ptr(), output.cast_const()], output);
        for tile in (0..kernel.tiles()).rev() {
            // SAFETY: all maps have their extent, the residual is the output, tiles run one after the other.
            unsafe { kernel.run(tile, &io, &mut scratch) };
        }
        for (i, &want) in want.iter().enumerate() {
            let got = f64::from(std::mem::replace(&mut y[position(i, spec.output)], SENTINEL));
            let close = (got - want).abs() <= 3e-5 * (1.0 + want.abs());
            assert!(close, "{} {case:?} gap {gap}: [{i}] {got} {want}", kernel.name());
        }
        assert!(y.iter().all(|&v| v == SENTINEL), "{} {case:?} writes between pixels", kernel.name());
    }
}

#[test]
fn deformable_convolutions_agree_with_the_oracle() {
    let window = |kernel: [usize; 2], stride, dilation, padding| Window {
        kernel,
        stride: [stride; 2],
        dilation: [dilation; 2],
        padding,
        ceil: false,
    };
    let cases = [
        BASE,
        Case { modulated: false, ..BASE },
        Case { batch: 2, channels: [32, 48], reach: 0.9, ..BASE },
        Case { channels: [20, 70], groups: [1, 2], batch: 2, ..BASE },
        Case { channels: [12, 6], groups: [3, 4], reach: 10.0, ..BASE },
        Case { channels: [3, 5], reach: 30.0, modulated: false, ..BASE },
        Case { channels: [17, 33], window: window([2, 3], 2, 1, Padding::Same), ..BASE },
        Case { window: window([3, 3], 1, 2, Padding::Symmetric([2; 2])), batch: 2, ..BASE },
        Case { window: window([4, 1], 1, 1, Padding::Symmetric([3, 0])), groups: [2, 2], ..BASE },
        Case { size: [1, 1], ..BASE },
        Case { size: [23, 31], channels: [40, 64], groups: [2, 2], batch: 2, ..BASE },
        Case { residual: true, activation: Some(Activation::Relu), ..BASE },
        // Enough of everything for the matrix unit.
        Case { size: [17, 13], channels: [64, 96], batch: 2, residual: true, ..BASE },
        Case { residual: true, groups: [2, 1], activation: Some(Activation::Silu), ..BASE },
    ];
    for case in cases {
        for gap in [0, 3] {
            check(case, gap);
        }
    }
}

#[test]
fn without_shifts_it_is_a_convolution() {
    let window = Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ..Window::square(3) };
    let placed = window.place([9, 8], "test").unwrap();
    let map = |[h, w]: [usize; 2], c: usize| Map::dense([1, h, w, c]);
    let spec = ConvSpec {
        input: map([9, 8], 16),
        output: map(placed.output, 24),
        window,
        placed,
        groups: 1,
        epilogue: Epilogue::default(),
    };
    let (x, weight) = (noise(spec.input.extent(), 1), noise(24 * 16 * 9, 2));
    let offset = vec![0.0f32; 18 * spec.output.pixels()];
    let sampling = Sampling { offset: map(placed.output, 18), mask: None, groups: 1 };
    let isa = Isa::detect();
    let [plain, deformed] =
        [super::super::indirect(spec, &weight, None, isa), deform(spec, sampling, &weight, None, isa)].map(|kernel| {
            let mut y = vec![0.0f32; spec.output.extent()];
            let mut scratch = AlignedBuf::zeros(kernel.scratch());
            let io = Io::new(&[x.as_ptr(), offset.as_ptr()], y.as_mut_ptr());
            for tile in 0..kernel.tiles() {
                // SAFETY: dense maps of their extents, no mask and no residual, one tile after the other.
                unsafe { kernel.run(tile, &io, &mut scratch) };
            }
            y
        });
    assert!(plain.iter().zip(&deformed).all(|(a, b)| (a - b).abs() < 1e-5));
}
