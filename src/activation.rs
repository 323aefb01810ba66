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

    /// The derivative at `x`. At a kink it is PyTorch's choice: 0 at the corner of ReLU, at both ends of ReLU6 and of the
    /// hard sigmoid, and the flat side's value at both ends of the hard swish. At NaN it is PyTorch's too: 1 for ReLU and
    /// the hard swish, 0 for the clipped ones, NaN for the smooth ones.
    pub fn derivative<T: Float>(self, x: T) -> T {
        let constant = |v: f64| T::from(v).expect("small constants fit every float");
        let step = |yes: bool| if yes { T::one() } else { T::zero() };
        let sigmoid = T::one() / (T::one() + (-x).exp());
        let three = constant(3.0);
        match self {
            Activation::Relu => step(x > T::zero() || x.is_nan()),
            Activation::Relu6 => step(x > T::zero() && x < constant(6.0)),
            Activation::Silu => sigmoid * (T::one() + x * (T::one() - sigmoid)),
            Activation::Sigmoid => sigmoid * (T::one() - sigmoid),
            Activation::HardSwish if x.abs() < three => x / three + constant(0.5),
            Activation::HardSwish => step(x > T::zero() || x.is_nan()),
            Activation::HardSigmoid => step(x.abs() < three) / constant(6.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_at_kinks_and_beyond_are_pytorchs() {
        let at = [-3.0, 3.0, 0.0, 6.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -4.0, 7.0, 1.0];
        let cases = [
            (Activation::Relu, [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
            (Activation::Relu6, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
            (Activation::HardSwish, [0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 5.0 / 6.0]),
            (Activation::HardSigmoid, [0.0, 0.0, 1.0 / 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0 / 6.0]),
        ];
        for (function, expected) in cases {
            let found = at.map(|x| function.derivative(x));
            let same = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-15);
            assert!(same, "{}: {found:?}, expected {expected:?}", function.name());
        }
        // torch.nn.functional.silu, torch.sigmoid
        for (function, x, expected) in [
            (Activation::Silu, -3.0, -0.08810410601516962),
            (Activation::Silu, 1.0, 0.9276705118714869),
            (Activation::Sigmoid, -3.0, 0.04517665973091214),
            (Activation::Sigmoid, 7.0, 0.000910221180121784),
        ] {
            assert!((function.derivative(x) - expected).abs() < 1e-15, "{} at {x}", function.name());
        }
        assert!(Activation::Silu.derivative(f64::NAN).is_nan() && Activation::Sigmoid.derivative(f32::NAN).is_nan());
    }
}
