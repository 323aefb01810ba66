//! Element-wise functions that could not be fused into the kernel before them.

use super::{Kernel, Map};
use crate::activation::Activation;
use crate::simd::Isa;

/// `y = activation(x)`. Input: a map of the output's shape. The output may be the input itself.
pub fn activation(input: Map, output: Map, activation: Activation, isa: Isa) -> impl Kernel {
    super::elementwise::activate(input, output, activation, isa)
}

#[cfg(test)]
mod tests {
    use super::super::light::testing::{assert_near, maps, nchw, run, spread, values};
    use super::super::naive;
    use super::*;

    #[test]
    fn every_function_agrees_with_the_oracle_on_every_isa() {
        use Activation::*;
        for map in maps() {
            let mut x: Vec<f32> = values(nchw(map).len(), 8).iter().map(|v| 4.0 * v).collect();
            x[0] = f32::NAN;
            let memory = spread(&x, map);
            for function in [Relu, Relu6, Silu, Sigmoid, HardSwish, HardSigmoid] {
                let expected = naive::activation(&x, function);
                for &isa in Isa::available() {
                    let y = run(&activation(map, map, function, isa), &[&memory], map);
                    assert_near(&y, &expected, 1e-6, &format!("{function:?} {map:?} {}", isa.name()));
                }
            }
        }
    }
}
