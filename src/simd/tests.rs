use super::*;
use crate::activation::Activation;

/// Runs the check `T` for every instruction set of this CPU.
fn on_every_isa<T: Task<Output = ()> + Copy>(task: T) {
    for &isa in Isa::available() {
        // SAFETY: the checks have no conditions of their own.
        unsafe { isa.run(task) };
    }
}

#[derive(Clone, Copy)]
struct Memory;
impl Task for Memory {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let from: [f32; 16] = std::array::from_fn(|i| i as f32 + 1.0);
        for n in 0..=S::LANES {
            let mut to = [-1.0f32; 17];
            // SAFETY: both arrays have room for 16 lanes.
            unsafe { S::store_partial(to.as_mut_ptr(), S::load(from.as_ptr()), n) };
            for (i, &v) in to.iter().enumerate() {
                assert_eq!(v, if i < n { from[i] } else { -1.0 }, "{} store {n}", S::ISA.name());
            }
            // SAFETY: as above.
            let sum = unsafe { S::hsum(S::load_partial(from.as_ptr(), n)) };
            assert_eq!(sum, (n * (n + 1) / 2) as f32, "{} load {n}", S::ISA.name());
        }
    }
}

#[test]
fn partial_access_touches_only_its_lanes() {
    on_every_isa(Memory);
}

#[derive(Clone, Copy)]
struct Permutation;
impl Task for Permutation {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let values: [f32; 16] = std::array::from_fn(|i| i as f32);
        let from = |i: usize| (5 * i + 3) % S::LANES;
        let lanes: [f32; 16] = std::array::from_fn(|i| f32::from_bits(from(i) as u32));
        let mut to = [0.0f32; 16];
        // SAFETY: every array has room for 16 lanes.
        unsafe { S::store(to.as_mut_ptr(), S::permute(S::load(values.as_ptr()), S::load(lanes.as_ptr()))) };
        for (i, &v) in to[..S::LANES].iter().enumerate() {
            assert_eq!(v, from(i) as f32, "{} lane {i}", S::ISA.name());
        }
    }
}

#[test]
fn permutations_read_the_lanes_they_name() {
    on_every_isa(Permutation);
}

#[derive(Clone, Copy)]
struct Squares;
impl Task for Squares {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const LD: [usize; 2] = [19, 17];
        let from: [f32; 16 * LD[0]] = std::array::from_fn(|i| i as f32);
        let mut to = [-1.0f32; 16 * LD[1]];
        // SAFETY: both have room for sixteen rows of sixteen.
        unsafe { S::transpose((from.as_ptr(), LD[0]), (to.as_mut_ptr(), LD[1])) };
        for (at, &v) in to.iter().enumerate() {
            let (j, i) = (at / LD[1], at % LD[1]);
            let inside = i < S::LANES && j < S::LANES;
            assert_eq!(v, if inside { from[i * LD[0] + j] } else { -1.0 }, "{} {i} {j}", S::ISA.name());
        }
    }
}

#[test]
fn squares_are_transposed_and_nothing_beside_them_is_written() {
    on_every_isa(Squares);
}

#[derive(Clone, Copy)]
struct Wide;
impl Task for Wide {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        assert_eq!(2 * S::D::LANES, S::LANES, "{}", S::ISA.name());
        let from: [f32; 8] = std::array::from_fn(|i| 1.0 + i as f32 * f32::EPSILON);
        let mut to = [-1.0f32; 9];
        // SAFETY: both have room for eight lanes.
        unsafe {
            let (x, third) = (S::D::widen(from.as_ptr()), S::D::splat(1.0 / 3.0));
            // Less than half of the last place of an `f32` survives until the end.
            x.mul(third).add(S::D::splat(1e-12)).sub(third).narrow(to.as_mut_ptr());
        }
        for (i, &v) in to.iter().enumerate() {
            let exact = |x: f32| (f64::from(x) * (1.0 / 3.0) + 1e-12 - 1.0 / 3.0) as f32;
            assert_eq!(v, if i < S::D::LANES { exact(from[i]) } else { -1.0 }, "{} lane {i}", S::ISA.name());
        }
    }
}

#[test]
fn doubles_are_rounded_to_floats_once() {
    on_every_isa(Wide);
}

#[derive(Clone, Copy)]
struct Arithmetic;
impl Task for Arithmetic {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let nan = f32::NAN;
        // SAFETY: no memory is touched but the local array.
        unsafe {
            let first = |v: S::V| {
                let mut out = [0.0f32; 16];
                S::store(out.as_mut_ptr(), v);
                out[0]
            };
            let (two, three) = (S::splat(2.0), S::splat(3.0));
            let sums = [S::add(two, three), S::sub(two, three), S::mul(two, three), S::fma(two, three, two)];
            assert_eq!(sums.map(first), [5.0, -1.0, 6.0, 8.0]);
            assert_eq!([S::div(three, two), S::sqrt(S::splat(9.0)), S::max(two, three)].map(first), [1.5, 3.0, 3.0]);
            assert_eq!(
                [S::min(two, three), S::round(S::splat(2.5)), S::round(S::splat(-3.6))].map(first),
                [2., 2., -4.]
            );
            assert!(first(S::max(two, S::splat(nan))).is_nan() && first(S::min(two, S::splat(nan))).is_nan());
            assert!(first(S::max_nan(S::splat(nan), two)).is_nan() && first(S::max_nan(two, S::splat(nan))).is_nan());
            assert_eq!(first(S::max_nan(three, two)), 3.0);
            let chosen = [(2.0, 1.0), (1.0, 1.0), (1.0, nan), (nan, 1.0), (nan, nan)]
                .map(|(a, b)| first(S::where_greater(S::splat(a), S::splat(b), three, two)));
            assert_eq!(chosen, [3.0, 2.0, 2.0, 3.0, 3.0]);
            let kept = [1.0, 0.0, -1.0, nan].map(|x| first(S::where_positive(S::splat(x), two)));
            assert_eq!(kept, [2.0, 0.0, 0.0, 0.0]);
            assert_eq!((S::hmax(three), S::hsum(two)), (3.0, 2.0 * S::LANES as f32));
            assert!(S::hmax(S::splat(nan)).is_nan());
            assert_eq!(first(S::scale_by_power(three, S::splat(-3.0))), 0.375);
        }
    }
}

#[test]
fn operations_mean_what_they_say() {
    on_every_isa(Arithmetic);
}

#[derive(Clone, Copy)]
struct Apply<'a>(Option<Activation>, &'a [f32], *mut f32);
impl Task for Apply<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, &x) in self.1.iter().enumerate() {
            // SAFETY: the output has as many elements as the input.
            unsafe { S::store_partial(self.2.add(i), apply_activation::<S>(self.0, S::splat(x)), 1) }
        }
    }
}

#[test]
fn activations_agree_with_f64_to_a_few_ulp() {
    let kinds = [
        Activation::Relu,
        Activation::Relu6,
        Activation::Silu,
        Activation::Sigmoid,
        Activation::HardSwish,
        Activation::HardSigmoid,
    ];
    let inputs: Vec<f32> = (-4000..4000)
        .map(|i| i as f32 * 0.0217)
        .chain([0.0, -0.0, 1e-30, -1e-30, 100.0, -104.5, 300.0, -300.0, 3e38, -3e38])
        .collect();
    for kind in kinds {
        for &isa in Isa::available() {
            let mut out = vec![0.0f32; inputs.len()];
            // SAFETY: `out` is as long as `inputs`.
            unsafe { isa.run(Apply(Some(kind), &inputs, out.as_mut_ptr())) };
            for (&x, &y) in inputs.iter().zip(&out) {
                let exact = kind.apply(f64::from(x));
                // Four roundings; 2^-125 absolute lets results that are not normal numbers be zero.
                let allowed = 4.0 * 6e-8 * exact.abs() + 2.4e-38 * f64::from(x).abs().clamp(1.0, 100.0);
                // Silu of the most negative x is x·0; the reference may be −0.
                assert!((f64::from(y) - exact).abs() <= allowed, "{kind:?} {} at {x}: {y} ≠ {exact}", isa.name());
            }
        }
    }
}

#[test]
fn activations_keep_nan() {
    for kind in [Activation::Relu, Activation::Relu6, Activation::Silu, Activation::Sigmoid, Activation::HardSwish] {
        for &isa in Isa::available() {
            let mut out = [0.0f32];
            // SAFETY: one element in, one out.
            unsafe { isa.run(Apply(Some(kind), &[f32::NAN], out.as_mut_ptr())) };
            assert!(out[0].is_nan(), "{kind:?} {}", isa.name());
        }
    }
}

#[test]
fn the_best_instruction_set_is_chosen_unless_told_otherwise() {
    assert_eq!(Isa::available()[0], Isa::Scalar);
    assert!(Isa::available().contains(&Isa::detect()));
    if std::env::var_os("CONVZOO_ISA").is_none() {
        assert_eq!(Some(&Isa::detect()), Isa::available().last());
    }
}

#[test]
fn three_parts_hold_a_number() {
    use super::tiles::{DEPTH, ROWS, split};
    let mut numbers = [0.0f32; DEPTH];
    for (i, x) in numbers.iter_mut().enumerate() {
        *x = [1.0, -1.0][i % 2] * (1.0 + i as f32 * 0.031_415_9) * 10f32.powi(i as i32 - 16);
    }
    numbers[5] = 0.0;
    let parts = split(&numbers);
    for (i, &x) in numbers.iter().enumerate() {
        let words = parts.map(|part| part[i % ROWS] >> (16 * (i / ROWS)) & 0xffff);
        let sum: f64 = words.iter().map(|&bits| f64::from(f32::from_bits(bits << 16))).sum();
        assert!((sum - f64::from(x)).abs() <= f64::from(x).abs() * 2f64.powi(-24), "{x}: {words:x?} make {sum}");
    }
}
