//! Norms while training against the naive ones, for every instruction set.

use super::*;
use crate::kernels::Store;
use crate::kernels::light::testing::{assert_near, maps, nchw, run_tiles, spread, values};
use crate::kernels::naive::{self, BatchNorm, backward::Statistics as Origin};

/// Pixels of a block: fewer than the images have, and not a divisor of these.
const BLOCK: usize = 20;

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn io(inputs: &[&[f32]], output: &mut [f32], also: [&mut [f32]; 2]) -> Io {
    let pointers: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    let mut io = Io::new(&pointers, output.as_mut_ptr());
    io.also = also.map(|values| if values.is_empty() { std::ptr::null_mut() } else { values.as_mut_ptr() });
    io
}

/// A norm, its activation and residual, and everything the oracle says about them.
struct Case {
    map: Map,
    x: Vec<f32>,
    residual: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    activation: Option<Activation>,
    with_residual: bool,
    /// A gate behind the activation and the gradient of the means it follows from; `dy` is then that of the product.
    gate: Option<[Vec<f32>; 2]>,
}

impl Case {
    fn new(map: Map, activation: Option<Activation>, with_residual: bool) -> Self {
        let len = nchw(map).len();
        // Far from zero, where squares would cancel.
        let x = values(len, 1).iter().map(|v| v + 50.0).collect();
        let [residual, dy] = [2, 3].map(|seed| values(len, seed));
        let [gamma, beta] = [4, 5].map(|seed| values(map.c, seed));
        Case { map, x, residual, dy, gamma, beta, activation, with_residual, gate: None }
    }

    fn gated(map: Map, activation: Option<Activation>) -> Self {
        let gate = Some([6, 7].map(|seed| values(map.n * map.c, seed)));
        Case { gate, ..Case::new(map, activation, false) }
    }

    /// y, dT, dx, dγ, dβ in f64.
    fn expected(&self) -> [Vec<f64>; 5] {
        let (shape, x) = (nchw(self.map), wide(&self.x));
        let [mean, variance] = naive::batch_statistics(&x, shape);
        let (gamma, beta) = (wide(&self.gamma), wide(&self.beta));
        let norm = BatchNorm { mean: &mean, variance: &variance, affine: Some((&gamma, &beta)), epsilon: 1e-5 };
        let mut t = naive::batch_norm(&x, shape, norm);
        if self.with_residual {
            t = naive::add(&t, &wide(&self.residual));
        }
        let y = self.activation.map_or(t.clone(), |a| naive::activation(&t, a));
        let mut dy = wide(&self.dy);
        if let Some([factor, means]) = &self.gate {
            let plane = self.map.h * self.map.w;
            for (i, d) in dy.iter_mut().enumerate() {
                *d = *d * f64::from(factor[i / plane]) + f64::from(means[i / plane]) / plane as f64;
            }
        }
        let dt = self.activation.map_or(dy.clone(), |a| naive::backward::activation(&t, a, &dy));
        let back = naive::backward::batch_norm(&x, shape, norm, &dt, Origin::Batch);
        [y, dt, back.input, back.scale, back.shift]
    }

    fn check(&self, isa: Isa) {
        let map = self.map;
        let other = Map::new([map.n, map.h, map.w, map.c], map.c + 1);
        let [y64, dt64, dx64, scale64, shift64] = self.expected();
        let what = format!("{map:?} {:?} {}", self.activation, isa.name());
        let (x, residual, dy) = (spread(&self.x, map), spread(&self.residual, other), spread(&self.dy, other));
        let mut partial = vec![f32::NAN; partial_len(map, BLOCK, 2)];
        let mut table = vec![f32::NAN; TABLE_ROWS * map.c];
        run_tiles(&moments(map, BLOCK, isa), &io(&[&x], &mut partial, [&mut [], &mut []]));
        let inputs = [&partial, &self.gamma, &self.beta].map(|v| &v[..]);
        run_tiles(&statistics(map, BLOCK, 1e-5, isa), &io(&inputs, &mut table, [&mut [], &mut []]));
        let ld = self.with_residual.then_some(other.ld);
        let mut y = vec![f32::NAN; map.extent()];
        let kernel = apply(map, map, ld, self.activation, isa);
        run_tiles(&kernel, &io(&[&x, &table, &residual], &mut y, [&mut [], &mut []]));
        assert_near(&y, &spread(&narrow(&y64), map), 2e-4, &what);
        self.check_product(&x, &table, isa);

        let through = match self.activation {
            None => Through::Nothing,
            Some(activation) if self.with_residual => Through::Output(activation, map.ld),
            Some(activation) => Through::Normalised(activation),
        };
        let per_image = Map::new([map.n, 1, 1, map.c], map.c + 2);
        let gate = self.gate.as_ref().map(|_| Gate { factor: per_image.ld, means: per_image.ld });
        let [factor, means] = match &self.gate {
            Some(maps) => maps.each_ref().map(|values| spread(values, per_image)),
            None => [y.clone(), Vec::new()],
        };
        let mut dt = spread(&values(nchw(map).len(), 9), map);
        let old = dt.clone();
        let back = Chain {
            gradient: other,
            gate,
            input: map.ld,
            through,
            sums: Sums::Norm,
            store: Some((map.ld, Store::Add)),
            scaled: false,
        };
        let mut partial = vec![f32::NAN; partial_len(map, BLOCK, 2)];
        run_tiles(
            &chain(back, BLOCK, isa),
            &io(&[&dy, &x, &table, &factor, &[], &means], &mut partial, [&mut dt, &mut []]),
        );
        let wanted = spread(&narrow(&dt64), map);
        let sum: Vec<f32> = wanted.iter().zip(&old).map(|(a, b)| a + b).collect();
        assert_near(&dt, &sum, 2e-4, &what);

        let mut coefficients = vec![f32::NAN; BACKWARD_ROWS * map.c];
        let size = 1e-5 * (map.pixels() as f32).max(1.0);
        let mut statistics = |partial: &[f32], of: Partial| {
            let [mut scale, mut shift] = [0.0, 0.0].map(|v| vec![v; map.c]);
            let kernel = backward_statistics(map, of, Statistic::Batch, isa);
            run_tiles(&kernel, &io(&[partial, &table], &mut coefficients, [&mut scale, &mut shift]));
            assert_near(&scale, &narrow(&scale64), 2e-4 + size, &what);
            assert_near(&shift, &narrow(&shift64), 2e-4 + size, &what);
        };
        statistics(&partial, Partial::Blocks(BLOCK));
        if let (Some(gate), None, false) = (gate, self.activation, self.with_residual) {
            let mut moments = vec![f32::NAN; GATED_ROWS * map.n * map.c];
            run_tiles(&gated_moments(other, map, isa), &io(&[&dy, &x, &table], &mut moments, [&mut [], &mut []]));
            let mut sums = vec![f32::NAN; 2 * map.n * map.c];
            let inputs = [&moments, &factor, &means].map(|v| &v[..]);
            run_tiles(&gated_sums(map, gate, isa), &io(&inputs, &mut sums, [&mut [], &mut []]));
            statistics(&sums, Partial::Images);
            let products: Vec<f64> = self.dy.iter().zip(&y64).map(|(&dy, y)| f64::from(dy) * y).collect();
            let want: Vec<f32> = products.chunks(map.h * map.w).map(|image| image.iter().sum::<f64>() as f32).collect();
            let mut found = vec![f32::NAN; per_image.extent()];
            let kernel = gate_gradient(map, per_image, Store::Set, isa);
            run_tiles(&kernel, &io(&[&moments, &table], &mut found, [&mut [], &mut []]));
            assert_near(&found, &spread(&want, per_image), 2e-4 + size, &what);
        }
        let mut dx = vec![f32::NAN; map.extent()];
        let last = Backward {
            gradient: other,
            gate,
            input: map.ld,
            through,
            output: (map.ld, Store::Set),
            coefficients: map.c,
        };
        let kernel = backward(last, isa);
        run_tiles(&kernel, &io(&[&dy, &x, &table, &factor, &coefficients, &means], &mut dx, [&mut [], &mut []]));
        assert_near(&dx, &spread(&narrow(&dx64), map), 1e-3, &what);
    }
}

impl Case {
    /// A gate behind the norm, with and without a shortcut.
    fn check_product(&self, x: &[f32], table: &[f32], isa: Isa) {
        let Some([factor, _]) = &self.gate else { return };
        let (map, plane) = (self.map, self.map.h * self.map.w);
        let per_image = Map::new([map.n, 1, 1, map.c], map.c + 2);
        let [scale, shift] = [SCALE, SHIFT].map(|row| &table[row * map.c..][..map.c]);
        for residual in [None, Some(map.ld)] {
            let (shortcut, mut want) = (spread(&self.residual, map), Vec::new());
            for (i, &x) in self.x.iter().enumerate() {
                let c = i / plane % map.c;
                let norm = f64::from(x) * f64::from(scale[c]) + f64::from(shift[c]);
                let r = if residual.is_some() { f64::from(self.residual[i]) } else { 0.0 };
                let y = norm * f64::from(factor[i / plane]) + r;
                want.push(self.activation.map_or(y, |a| a.apply(y)) as f32);
            }
            let mut y = vec![f32::NAN; map.extent()];
            let kernel = apply_gated(map, map, per_image.ld, residual, self.activation, isa);
            let inputs = [x, table, &shortcut, &spread(factor, per_image)];
            run_tiles(&kernel, &io(&inputs, &mut y, [&mut [], &mut []]));
            assert_near(&y, &spread(&want, map), 2e-5, &format!("{} {map:?} {residual:?}", kernel.name()));
        }
    }
}

#[test]
fn norms_agree_with_the_oracle_forward_and_back() {
    use Activation::{HardSwish, Relu, Relu6, Silu};
    for map in maps().filter(|map| map.pixels() > 2) {
        for &isa in Isa::available() {
            for activation in [None, Some(Relu), Some(Silu), Some(HardSwish), Some(Relu6)] {
                Case::new(map, activation, false).check(isa);
                Case::gated(map, activation).check(isa);
            }
            for activation in [None, Some(Relu), Some(Relu6)] {
                Case::new(map, activation, true).check(isa);
            }
        }
    }
}

/// Three norms of one map; a fourth that normalises by running statistics, whose mean is another one, leaves nothing.
#[test]
fn what_norms_of_one_map_leave_undone_adds_up() {
    for map in maps().filter(|map| map.pixels() > 2) {
        let seeded = |seed: u32, activation| {
            let [gamma, beta] = [seed, seed + 1].map(|seed| values(map.c, seed));
            Case { dy: values(nchw(map).len(), seed + 2), gamma, beta, ..Case::new(map, activation, false) }
        };
        let relu = Case::new(map, Some(Activation::Relu), false);
        let cases = [relu, seeded(20, None), seeded(30, Some(Activation::Silu))];
        let mut want = vec![0.0; nchw(map).len()];
        for case in &cases {
            let [_, _, dx, ..] = case.expected();
            want.iter_mut().zip(dx).for_each(|(sum, d)| *sum += d);
        }
        let ld = map.c + 3;
        for &isa in Isa::available() {
            let x = spread(&cases[0].x, map);
            let mut dx = spread(&values(want.len(), 9), map);
            let mut undone = vec![f32::NAN; BACKWARD_ROWS * ld];
            for (case, store) in cases.iter().zip([Store::Set, Store::Add, Store::Add]) {
                let mut partial = vec![f32::NAN; partial_len(map, BLOCK, 2)];
                let mut table = vec![f32::NAN; TABLE_ROWS * map.c];
                run_tiles(&moments(map, BLOCK, isa), &io(&[&x], &mut partial, [&mut [], &mut []]));
                let inputs = [&partial, &case.gamma, &case.beta].map(|v| &v[..]);
                run_tiles(&statistics(map, BLOCK, 1e-5, isa), &io(&inputs, &mut table, [&mut [], &mut []]));
                let through = case.activation.map_or(Through::Nothing, Through::Normalised);
                let store_dx = Some((map.ld, store));
                let back = Chain {
                    gradient: map,
                    gate: None,
                    input: map.ld,
                    through,
                    sums: Sums::Norm,
                    store: store_dx,
                    scaled: true,
                };
                let dy = spread(&case.dy, map);
                run_tiles(&chain(back, BLOCK, isa), &io(&[&dy, &x, &table], &mut partial, [&mut dx, &mut []]));
                let kernel = deferred_statistics(map, BLOCK, Statistic::Batch, (ld, store), isa);
                run_tiles(&kernel, &io(&[&partial, &table], &mut undone, [&mut [], &mut []]));
            }
            let before = undone.clone();
            let (zeros, mut table) = (vec![0.0; partial_len(map, BLOCK, 2)], vec![0.5; TABLE_ROWS * map.c]);
            table[MEAN * map.c..][..map.c].fill(-7.0);
            let kernel = deferred_statistics(map, BLOCK, Statistic::Running, (ld, Store::Add), isa);
            run_tiles(&kernel, &io(&[&zeros, &table], &mut undone, [&mut [], &mut []]));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&undone), bits(&before), "running statistics have no mean to take away");

            let (through, output) = (Through::Nothing, (map.ld, Store::Set));
            let last = Backward { gradient: map, gate: None, input: map.ld, through, output, coefficients: ld };
            let gradient = dx.clone();
            run_tiles(&backward(last, isa), &io(&[&gradient, &x, &[], &[], &undone], &mut dx, [&mut [], &mut []]));
            assert_near(&dx, &spread(&narrow(&want), map), 2e-3, &format!("{map:?} {}", isa.name()));
        }
    }
}

#[test]
fn running_statistics_are_constants_on_the_way_back() {
    let map = Map::new([2, 3, 4, 21], 24);
    let case = Case::new(map, None, false);
    let (mean, variance) = (values(21, 6), values(21, 7).iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>());
    let (mean64, variance64, gamma64, beta64) = (wide(&mean), wide(&variance), wide(&case.gamma), wide(&case.beta));
    let norm = BatchNorm { mean: &mean64, variance: &variance64, affine: Some((&gamma64, &beta64)), epsilon: 1e-3 };
    let back = naive::backward::batch_norm(&wide(&case.x), nchw(map), norm, &wide(&case.dy), Origin::Running);
    let (x, dy) = (spread(&case.x, map), spread(&case.dy, map));
    for &isa in Isa::available() {
        let mut table = vec![f32::NAN; TABLE_ROWS * 21];
        let inputs = [&mean, &variance, &case.gamma, &case.beta].map(|v| &v[..]);
        run_tiles(&fixed_statistics(map, 1e-3, isa), &io(&inputs, &mut table, [&mut [], &mut []]));
        let mut partial = vec![f32::NAN; partial_len(map, BLOCK, 2)];
        let through = Through::Nothing;
        let sums =
            Chain { gradient: map, gate: None, input: map.ld, through, sums: Sums::Norm, store: None, scaled: false };
        run_tiles(&chain(sums, BLOCK, isa), &io(&[&dy, &x, &table], &mut partial, [&mut [], &mut []]));
        let mut coefficients = vec![f32::NAN; BACKWARD_ROWS * 21];
        let kernel = backward_statistics(map, Partial::Blocks(BLOCK), Statistic::Running, isa);
        run_tiles(&kernel, &io(&[&partial, &table], &mut coefficients, [&mut [], &mut []]));
        let mut dx = vec![f32::NAN; map.extent()];
        let last = Backward {
            gradient: map,
            gate: None,
            input: map.ld,
            through,
            output: (map.ld, Store::Set),
            coefficients: map.c,
        };
        run_tiles(&backward(last, isa), &io(&[&dy, &x, &table, &[], &coefficients], &mut dx, [&mut [], &mut []]));
        assert_near(&dx, &spread(&narrow(&back.input), map), 1e-5, isa.name());
    }
}

#[test]
fn sums_of_biases_and_plain_activations_agree_with_the_oracle() {
    use Activation::*;
    for map in maps() {
        let shape = nchw(map);
        let (x, dy) = (values(shape.len(), 1), values(shape.len(), 2));
        let (xm, dm) = (spread(&x, map), spread(&dy, map));
        for function in [Relu, Relu6, Silu, Sigmoid, HardSwish, HardSigmoid] {
            let expected = naive::backward::activation(&x, function, &dy);
            let total_expected = naive::backward::channel_sums(&wide(&expected), shape);
            let y = spread(&naive::activation(&x, function), map);
            for &isa in Isa::available() {
                let what = format!("{function:?} {map:?} {}", isa.name());
                let mut ways = vec![Through::Input(function)];
                if crate::simd::has_output_gradient(function) {
                    ways.push(Through::Output(function, map.ld));
                }
                for through in ways {
                    let store = Some((map.ld, Store::Set));
                    let back = Chain {
                        gradient: map,
                        gate: None,
                        input: map.ld,
                        through,
                        sums: Sums::Bias,
                        store,
                        scaled: false,
                    };
                    let mut partial = vec![f32::NAN; partial_len(map, BLOCK, 1)];
                    let mut dt = vec![f32::NAN; map.extent()];
                    run_tiles(&chain(back, BLOCK, isa), &io(&[&dm, &xm, &[], &y], &mut partial, [&mut dt, &mut []]));
                    assert_near(&dt, &spread(&expected, map), 2e-6, &what);
                    let mut sums = vec![f32::NAN; map.c];
                    run_tiles(&total(map, BLOCK, isa), &io(&[&partial], &mut sums, [&mut [], &mut []]));
                    assert_near(&sums, &narrow(&total_expected), 1e-5, &what);
                }
            }
        }
    }
}
