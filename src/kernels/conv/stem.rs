//! Stems: convolutions of images, which are packed with their zero border.
//!
//! An image has three channels. Where the convolution takes strides of `s`, `s × s` pixels of it can be seen as one of `s²·c`
//! channels ("space to depth"): then it is a convolution without strides, with `⌈k/s⌉` taps for `k`,
//!
//! ```text
//! y[oy, ox] = Σ w[ky, kx] · x[s·oy + ky, s·ox + kx]                  ky = s·ty + ry,  kx = s·tx + rx
//!           = Σ w[s·ty + ry, s·tx + rx] · x'[oy + ty, ox + tx][ry, rx]
//! ```
//!
//! and [Winograd's method](super::winograd) saves most of its multiplications: 7×7 at stride 2 is 4×4, of which nine outputs
//! take 36 · 12 instead of 9 · 147; 11×11 at stride 4 is 3×3. The image lies as it did: its transform reads the channels of a
//! folded pixel from `s` rows. A stem without strides needs no folding. What that method does not suit is read a row of the
//! window at a time ([`rows`](super::rows)), and so is all that decides in training on which side of its kink a unit is.

use super::weights::{self, Direction, Folded, Learned, held, learned};
use super::winograd::{self, Kept, Winograd};
use super::{ConvSpec, Precision, indirect};
use crate::kernels::{Kernel, Map, Weights};
use crate::shape::{Padding, Placed, Window};
use crate::simd::Isa;

/// The convolution of the folded image and what it is of that which holds its border, if that consists of whole folded pixels.
pub(super) fn folded(spec: &ConvSpec) -> Option<(ConvSpec, Folded)> {
    let (window, Map { n, h, w, c, .. }) = (spec.window, spec.input);
    let [down, right] = window.stride;
    let whole = h.is_multiple_of(down) && w.is_multiple_of(right) && spec.placed.before == [0; 2];
    if !whole || window.dilation != [1, 1] || spec.groups != 1 {
        return None;
    }
    let kernel = [window.kernel[0].div_ceil(down), window.kernel[1].div_ceil(right)];
    let input = Map::dense([n, h / down, w / right, c * down * right]);
    let placed = Placed { input: [input.h, input.w], ..spec.placed };
    let of = Window { kernel, stride: [1; 2], padding: Padding::Symmetric([0; 2]), ..window };
    Some((ConvSpec { input, window: of, placed, ..*spec }, Folded { window, channels: c }))
}

/// A convolution of an image that holds its border: `placed.before` is zero and the map is dense.
pub fn stem(
    spec: ConvSpec,
    weight: &dyn Weights,
    bias: Option<&[f32]>,
    precision: Precision,
    isa: Isa,
) -> Box<dyn Kernel> {
    spec.check(weight, bias);
    held(form(spec, precision, isa), weight, bias)
}

fn form(spec: ConvSpec, precision: Precision, isa: Isa) -> Box<dyn weights::Form> {
    let folds = folded(&spec).filter(|_| precision == Precision::Fast);
    let form = folds.and_then(|(of, folded)| Some((of, folded, winograd::profitable(&of, Kept::Held)?)));
    match form {
        Some((of, folded, form)) => Box::new(Winograd::new(of, form, isa).folded(folded)),
        None => Box::new(indirect::Indirect::rows(spec, isa)),
    }
}

/// As [`stem`], with weights that come with every run, and by plain sums.
pub fn learned_stem(spec: ConvSpec, bias: Option<usize>, isa: Isa) -> Learned {
    spec.check_sizes();
    let form = Box::new(indirect::Indirect::rows(spec, isa.vectors()));
    learned(form, Direction::Forward, spec.output.c * spec.depth(), bias)
}
