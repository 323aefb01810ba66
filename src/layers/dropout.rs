//! Noise of training: identities in evaluation.

use crate::graph::{Layer, Node, Op};

/// Zeroes each element with probability `p` in training and divides the rest by `1 − p`; the identity in evaluation.
/// Srivastava et al. 2014.
///
/// # Errors
/// A probability outside 0 .. 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    p: f32,
}

impl Dropout {
    /// Zeroes with probability `p`. With 0 it draws nothing.
    pub const fn new(p: f32) -> Self {
        Dropout { p }
    }
}

impl Layer for Dropout {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        noise(x, "dropout", self.p, Op::Dropout { p: self.p })
    }
}

/// Zeroes the whole branch of an image with probability `p` in training and divides it by `1 − p` otherwise; the identity
/// in evaluation. Huang et al. 2016 (arXiv 1603.09382).
///
/// # Errors
/// A probability outside 0 .. 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StochasticDepth {
    p: f32,
}

impl StochasticDepth {
    /// Drops the branch with probability `p`. With 0 it draws nothing.
    pub const fn new(p: f32) -> Self {
        StochasticDepth { p }
    }
}

impl Layer for StochasticDepth {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        noise(x, "stochastic depth", self.p, Op::StochasticDepth { p: self.p })
    }
}

fn noise<'g>(x: Node<'g>, what: &str, p: f32, op: Op) -> Node<'g> {
    match p {
        0.0 => x,
        p if p > 0.0 && p < 1.0 => x.apply(op, &[x]),
        p => x.fail(format!("{what} needs a probability of at least 0 and below 1, found {p}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn probabilities_outside_0_to_1_are_errors() {
        for p in [1.0, -0.1, 7.0, f32::NAN, f32::INFINITY] {
            let error = Graph::draw(1, &(Dropout::new(p),)).unwrap_err().to_string();
            assert!(error.contains("below 1, found"), "{error}");
            assert!(Graph::draw(1, &StochasticDepth::new(p)).is_err());
        }
        assert_eq!(Graph::draw(1, &Dropout::new(0.0)).unwrap().nodes().len(), 1);
        assert_eq!(Graph::draw(1, &Dropout::new(0.5)).unwrap().nodes().len(), 2);
    }
}
