//! The element-wise functions of the zoo, named once for the drawing and the kernels alike.

use num_traits::Float;
use serde::{Deserialize, Serialize};

/// An element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 6).
    Relu6,
    /// x · σ(x), also called swish.
    Silu,
    /// σ(x) = 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// x · min(max(x + 3, 0), 6) / 6.
    HardSwish,
    /// min(max(x + 3, 0), 6) / 6.
    HardSigmoid,
}

impl Activation {
    /// The function itself, for one value. NaN stays NaN.
    pub fn apply<T: Float>(self, x: T) -> T {
        let constant = |v: f64| T::from(v).expect("small constants fit every float");
        let clamp = |v: T, most: f64| if v.is_nan() { v } else { v.max(T::zero()).min(constant(most)) };
        let sigmoid = |v: T| T::one() / (T::one() + (-v).exp());
        match self {
            Activation::Relu if x.is_nan() => x,
            Activation::Relu => x.max(T::zero()),
            Activation::Relu6 => clamp(x, 6.0),
            Activation::Silu => x * sigmoid(x),
            Activation::Sigmoid => sigmoid(x),
            Activation::HardSwish => x * clamp(x + constant(3.0), 6.0) / constant(6.0),
            Activation::HardSigmoid => clamp(x + constant(3.0), 6.0) / constant(6.0),
        }
    }

    /// Lower-case name for listings.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::Silu => "silu",
            Activation::Sigmoid => "sigmoid",
            Activation::HardSwish => "hardswish",
            Activation::HardSigmoid => "hardsigmoid",
        }
    }
}
