//! Weights and inputs that need no files: every value follows from a name and an index.
//!
//! The same rule stands in `goldens/recipe.py`, which explains it; both must agree bit for bit.

use convzoo::Tensor;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
const OFFSET_SCALE: f64 = 0.7;

/// What the manifest says about a model's weights and input.
pub(crate) struct Knobs {
    /// Factor on every norm's weight.
    pub(crate) gain: f64,
    /// Suffixes of the weights that are damped: norms that close a residual branch, layers in front of a gate.
    pub(crate) damped: Vec<String>,
    /// Factor on those, so that deep sums neither explode nor drown their input.
    pub(crate) damping: f64,
    /// Factor on the input.
    pub(crate) input_scale: f64,
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

/// The `i`-th number of the sequence `seed`, in [0, 1), a multiple of 2⁻²⁴.
#[inline]
pub(crate) fn unit(seed: u64, i: u64) -> f64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    // 24 bits fit a signed 32-bit integer, whose conversion has a vector instruction.
    f64::from((z >> 40) as i32) * (1.0 / 16_777_216.0)
}

/// (low, width): the parameter is `low + width * u`.
fn span(name: &str, shape: &[usize], knobs: &Knobs) -> (f64, f64) {
    let damped = knobs.damped.iter().any(|suffix| name.ends_with(suffix.as_str()));
    let damping = if damped { knobs.damping } else { 1.0 };
    if name.ends_with("conv_offset.bias") {
        (-0.5, 1.0)
    } else if name.ends_with("running_var") {
        (0.75, 0.5)
    } else if shape.len() >= 2 {
        let fan_in: usize = shape[1..].iter().product();
        let mut bound = (6.0 / fan_in as f64).sqrt() * damping;
        if name.ends_with("conv_offset.weight") {
            bound *= OFFSET_SCALE;
        }
        (-bound, 2.0 * bound)
    } else if name.ends_with("weight") {
        let gain = knobs.gain * damping;
        (0.75 * gain, 0.5 * gain)
    } else {
        (-0.1, 0.2) // biases and running means
    }
}

/// Writes a parameter's values, on two threads if it is large.
pub(crate) fn parameter(name: &str, shape: &[usize], knobs: &Knobs, out: &mut [f32]) {
    let (low, width) = span(name, shape, knobs);
    let seed = fnv1a(name.as_bytes());
    let fill = |first: usize, part: &mut [f32]| {
        for (i, slot) in part.iter_mut().enumerate() {
            *slot = (low + width * unit(seed, (first + i) as u64)) as f32;
        }
    };
    if out.len() < 1 << 18 {
        return fill(0, out);
    }
    let half = out.len() / 2;
    let (head, tail) = out.split_at_mut(half);
    std::thread::scope(|scope| {
        scope.spawn(|| fill(half, tail));
        fill(0, head);
    });
}

/// An NCHW input: patches of one colour, a third of the shorter side wide, under fine noise.
pub(crate) fn image(shape: [usize; 4], scale: f64, name: &str) -> Tensor {
    let [_, _, h, w] = shape;
    let patch = (h.min(w) / 3).max(1);
    let (fine, coarse) = (fnv1a(name.as_bytes()), fnv1a(format!("{name}.coarse").as_bytes()));
    Tensor::from_fn(&shape, |i| {
        let (plane, y, x) = (i / (h * w), i / w % h, i % w);
        let cell = (plane * 64 + y / patch) * 64 + x / patch;
        let (c, f) = (unit(coarse, cell as u64), unit(fine, i as u64));
        (scale * ((2.0 * c - 1.0) * 1.5 + (2.0 * f - 1.0) * 0.5)) as f32
    })
}
