use super::super::testing::{SENTINEL, noise, position, to_map};
use super::*;
use crate::kernels::naive::{self, ConvShape, Nchw};
use crate::tensor::AlignedBuf;

/// Images, size, channels in and between, kernel, stride, rows and columns of padding.
type Case = ([usize; 3], [usize; 2], usize, usize, [usize; 2]);

fn spec(([n, h, w], [k, c], kernel, stride, pad): Case, gap: usize, activation: Option<Activation>) -> ExpandSpec {
    let padding = Padding::Symmetric(pad);
    let window = Window { stride: [stride; 2], padding, ..Window::square(kernel) };
    let placed = window.place([h, w], "test").unwrap();
    let [oh, ow] = placed.output;
    let depthwise = ConvSpec {
        input: Map::dense([n, h, w, c]),
        output: Map::new([n, oh, ow, c], c + gap),
        window,
        placed,
        groups: c,
        epilogue: Epilogue { activation, residual: None },
    };
    ExpandSpec { input: Map::new([n, h, w, k], k + gap), activation, depthwise, sums: (gap > 0).then_some(c + gap) }
}

fn oracle(spec: &ExpandSpec, x: &[f32], [expand, depthwise]: [(&[f32], Option<&[f32]>); 2]) -> Vec<f64> {
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let act = |y: Vec<f64>, f: Option<Activation>| f.map_or(y.clone(), |f| naive::activation(&y, f));
    let conv = |x: &[f64], map: Map, (w, b): (&[f32], Option<&[f32]>), shape: ConvShape| {
        naive::conv2d(x, Nchw::new([map.n, map.c, map.h, map.w]), &wide(w), b.map(wide).as_deref(), &shape)
    };
    let (between, out) = (spec.depthwise.input, spec.depthwise.output);
    let window = Window { padding: Padding::Symmetric([0; 2]), ..Window::square(1) };
    let placed = window.place([between.h, between.w], "test").unwrap();
    let shape = ConvShape { out_channels: out.c, groups: 1, window, placed };
    let wide_map = act(conv(&wide(x), spec.input, expand, shape), spec.activation);
    let ConvSpec { window, placed, groups, epilogue, .. } = spec.depthwise;
    let shape = ConvShape { out_channels: out.c, groups, window, placed };
    act(conv(&wide_map, between, depthwise, shape), epilogue.activation)
}

fn check(case: Case, gap: usize, activation: Option<Activation>, band: usize) {
    let spec = spec(case, gap, activation);
    let (input, output) = (spec.input, spec.depthwise.output);
    let x = noise(input.pixels() * input.c, 1);
    let expand = (noise(input.c * output.c, 2), noise(output.c, 3));
    let filters = (noise(output.c * spec.depthwise.window.taps(), 4), noise(output.c, 5));
    let bias = |bias| (gap > 0).then_some(bias);
    let weights =
        ExpandWeights { expand: (&expand.0, bias(&expand.1[..])), depthwise: (&filters.0, bias(&filters.1[..])) };
    let want = oracle(&spec, &x, [(&expand.0, weights.expand.1), (&filters.0, weights.depthwise.1)]);
    let source = to_map(&x, input, f32::NAN);
    let expansion = expansion(&spec);
    let strassen = strassen::applicable(&expansion).then_some(Product::strassen as Prepare);
    for prepare in [Product::plain as Prepare].into_iter().chain(strassen) {
        for &isa in Isa::available() {
            let product = prepare(&expansion, weights.expand, isa);
            let cut = Cut::new(&spec, &product, 2);
            let kernel = ExpandDepthwise::new(&spec, product, cut, weights.depthwise, band);
            agrees(&kernel, &spec, &source, &want, &format!("{} {case:?} gap {gap} band {band}", kernel.name()));
        }
    }
}

type Prepare = fn(&ConvSpec, Filters<'_>, Isa) -> Product;

/// Runs the tiles last to first and compares what they write, sums of rows included.
fn agrees(kernel: &ExpandDepthwise, spec: &ExpandSpec, source: &[f32], want: &[f64], what: &str) {
    let output = spec.depthwise.output;
    let ld = spec.sums.unwrap_or(output.c);
    let mut y = vec![SENTINEL; output.extent()];
    let mut sums = vec![f32::NAN; output.n * output.h * ld];
    let mut io = Io::new(&[source.as_ptr()], y.as_mut_ptr());
    io.also[0] = if spec.sums.is_some() { sums.as_mut_ptr() } else { std::ptr::null_mut() };
    let mut scratch = AlignedBuf::zeros(kernel.scratch());
    for tile in (0..kernel.tiles()).rev() {
        scratch.fill(f32::NAN);
        // SAFETY: the maps have their extents, and tiles run one after the other.
        unsafe { kernel.run(tile, &io, &mut scratch) };
    }
    let mut rows = vec![0.0; sums.len()];
    for (i, &want) in want.iter().enumerate() {
        let at = position(i, output);
        let got = f64::from(std::mem::replace(&mut y[at], SENTINEL));
        assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{what}: [{i}] {got} {want}");
        let (pixel, c) = (at / output.ld, at % output.ld);
        rows[pixel / output.w * ld + c] += got;
    }
    assert!(y.iter().all(|&v| v == SENTINEL), "{what} writes between pixels");
    for (i, (&got, want)) in sums.iter().zip(&rows).enumerate().filter(|_| spec.sums.is_some()) {
        let is_gap = i % ld >= output.c;
        assert!(is_gap || (f64::from(got) - want).abs() <= 1e-4, "{what}: row sum {i} is {got}, not {want}");
        assert!(!is_gap || got.is_nan(), "{what}: wrote between the row sums");
    }
}

#[test]
fn the_fused_pair_agrees_with_the_oracle_on_every_isa() {
    let silu = Some(Activation::Silu);
    let cases: [Case; 13] = [
        ([1, 7, 7], [24, 144], 5, 1, [2; 2]),
        ([2, 14, 14], [16, 96], 3, 2, [1; 2]),
        ([1, 15, 13], [7, 40], 5, 2, [2; 2]),
        ([2, 9, 10], [3, 17], 3, 1, [1; 2]),
        ([1, 5, 4], [8, 5], 3, 1, [1; 2]),
        ([1, 30, 8], [16, 48], 3, 1, [1; 2]),
        ([3, 1, 1], [20, 130], 3, 1, [1; 2]),
        // A row of windows that lies in the padding, and none that does.
        ([1, 6, 9], [5, 33], 3, 1, [2, 2]),
        ([1, 11, 12], [4, 64], 5, 1, [0; 2]),
        ([1, 8, 8], [4, 32], 7, 2, [3; 2]),
        // Strassen's product: halves that end with half a register, an odd number of pixels, several panels and blocks.
        ([2, 7, 7], [48, 144], 5, 1, [2; 2]),
        ([1, 6, 5], [32, 80], 3, 2, [1; 2]),
        ([1, 9, 8], [80, 320], 3, 1, [1; 2]),
    ];
    for case in cases {
        // The whole image at once, and as few rows as can be.
        for band in [BAND, 1] {
            check(case, 0, silu, band);
            check(case, 5, silu, band);
        }
        check(case, 3, Some(Activation::Relu6), BAND);
        check(case, 3, None, 1);
    }
}

#[test]
fn large_maps_are_cut_into_parts_that_agree_with_the_oracle() {
    let case = ([1, 80, 40], [8, 70], 3, 1, [1; 2]);
    check(case, 5, Some(Activation::Silu), 9 * 40 * 64);
    let spec = spec(case, 0, None);
    let weights = noise(70 * 8, 1);
    let cut = Cut::new(&spec, &Product::plain(&expansion(&spec), (&weights, None), Isa::detect()), 2);
    assert!(cut.parts > 1 && cut.parts * cut.groups >= 6, "{} parts, {} groups", cut.parts, cut.groups);
}

#[test]
fn strassens_product_expands_where_a_panel_of_the_image_fits_the_buffer() {
    let name = |precision, [k, c]: [usize; 2], size: usize| {
        let spec = spec(([1, size, size], [k, c], 3, 1, [1; 2]), 0, Some(Activation::Silu));
        let (expand, filters) = (vec![0.0; k * c], vec![0.0; 9 * c]);
        let weights = ExpandWeights { expand: (&expand, None), depthwise: (&filters, None) };
        expand_depthwise(&spec, weights, precision, 2, Isa::detect()).name()
    };
    for (channels, size, wanted) in [([272, 1632], 12, true), ([272, 1632], 7, false), ([192, 1152], 96, false)] {
        let fast = name(Precision::Fast, channels, size);
        assert_eq!(fast.contains("strassen"), wanted && crate::simd::adds_apart(), "{channels:?} at {size}: {fast}");
        assert!(!name(Precision::Exact, channels, size).contains("strassen"));
    }
}
