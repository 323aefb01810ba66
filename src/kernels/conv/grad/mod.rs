//! The way back through a convolution: the gradient of its input and that of its weights.
//!
//! With one stride the gradient of the input is a convolution itself, of the output's gradient with the taps reversed and
//! the channels exchanged, and every form of the way forward serves ([`Direction::Backward`](super::Direction)). With
//! larger strides it falls apart into one such convolution for each remainder of the pixel's position ([`data`]), of which
//! Winograd's method saves products too ([`winograd::Form::Unstrided`]).

pub mod data;
pub mod deform;
pub mod depthwise;
pub mod pointwise;
mod split;
pub mod weight;

use super::{ConvSpec, Direction, Learned, Precision, learned, learned_mask, winograd};
use crate::kernels::{Epilogue, Store};
use crate::shape::{Padding, Placed, Window};
use crate::simd::Isa;

/// The gradient of the input: `inputs[0]` is that of the output, its packed weights `inputs[WEIGHTS]`. With
/// [`Store::Add`], `inputs[1]` must be the output itself.
///
/// `spec` is the convolution's own, without its epilogue.
pub fn input_gradient(spec: ConvSpec, store: Store, precision: Precision, isa: Isa) -> Learned {
    match adjoint(spec, store) {
        Some(spec) => learned(spec, Direction::Backward, None, precision, isa),
        None if spec.groups == spec.input.c && spec.groups == spec.output.c => depthwise::data(spec, store, isa),
        None => {
            let form = (precision == Precision::Fast).then(|| winograd::unstrided(spec, store, isa)).flatten();
            form.unwrap_or_else(|| data::strided(spec, store, isa))
        }
    }
}

/// As [`input_gradient`] with [`Store::Set`], and on through the ReLU that the input is the output of: zero where the input,
/// `inputs[1]`, is not positive. The gradient may be written over it. None where a pass of its own does as well.
pub fn masked_input_gradient(spec: ConvSpec, precision: Precision, isa: Isa) -> Option<Learned> {
    learned_mask(adjoint(spec, Store::Add)?, precision, isa)
}

/// The convolution that leads from the gradient of the output to that of the input, if it is one.
fn adjoint(spec: ConvSpec, store: Store) -> Option<ConvSpec> {
    let (window, placed) = (spec.window, spec.placed);
    let mut before = [0; 2];
    for axis in 0..2 {
        before[axis] = (window.span(axis) - 1).checked_sub(placed.before[axis])?;
    }
    let residual = (store == Store::Add).then_some(spec.input.ld);
    (window.stride == [1, 1]).then_some(ConvSpec {
        input: spec.output,
        output: spec.input,
        window: Window { padding: Padding::Symmetric(before), ..window },
        placed: Placed { input: placed.output, output: placed.input, before },
        groups: spec.groups,
        epilogue: Epilogue { activation: None, residual },
    })
}

#[cfg(test)]
mod tests;
