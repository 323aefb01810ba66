//! The inception block.

use super::{Conv2d, ConvNormAct, MaxPool};
use crate::graph::{Layer, Node, concat};

/// Four views of one map, concatenated: 1×1; 1×1 → 3×3; 1×1 → 5×5; 3×3 max pool → 1×1. Szegedy et al. 2014
/// (arXiv 1409.4842), fig. 2(b).
///
/// The 1×1 in front of the 5×5 is what makes it affordable: on a 14×14×480 map, 48 channels of 5×5 cost 112.9 M
/// multiply-adds directly and 5.3 M behind 16 channels of 1×1.
///
/// ```
/// let (pixels, input) = (14 * 14, 480);
/// let direct = pixels * 48 * 5 * 5 * input;
/// let reduced = pixels * 16 * input + pixels * 48 * 5 * 5 * 16;
/// assert_eq!((direct, reduced), (112_896_000, 5_268_480));
/// ```
///
/// # Shapes
/// `[n, c, h, w]` → `[n, one + three + five + pool, h, w]`. Parameters under `branch1`, `branch2.0`, `branch2.1`,
/// `branch3.0`, `branch3.1`, `branch4.1`, as torchvision's.
///
/// # Defaults
/// 5×5 in the third branch; units of convolution, batch norm and ReLU.
///
/// # Errors
/// A zero width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Inception {
    widths: [usize; 6],
    five: usize,
    unit: ConvNormAct,
}

impl Inception {
    /// One row of the paper's table 1: `#1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj`.
    pub const fn new(widths: [usize; 6]) -> Self {
        Inception { widths, five: 5, unit: ConvNormAct::new(Conv2d::k1(1)) }
    }

    /// The kernel of the third branch: torchvision has 3 there (pytorch/vision#906).
    pub const fn five(self, kernel: usize) -> Self {
        Inception { five: kernel, ..self }
    }

    /// Norm, activation, names and initialisers of every convolution.
    pub const fn unit(self, unit: ConvNormAct) -> Self {
        Inception { unit, ..self }
    }
}

impl Layer for Inception {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let [one, reduce3, three, reduce5, five, pool] = self.widths;
        let unit = |conv| self.unit.around(conv);
        concat([
            x.layer("branch1", unit(Conv2d::k1(one))),
            x.layer("branch2", (unit(Conv2d::k1(reduce3)), unit(Conv2d::k3(three)))),
            x.layer("branch3", (unit(Conv2d::k1(reduce5)), unit(Conv2d::k(self.five, five)))),
            x.layer("branch4", (MaxPool::k(3).stride(1).padding(1).ceil(), unit(Conv2d::k1(pool)))),
        ])
    }
}
