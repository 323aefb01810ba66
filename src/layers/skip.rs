//! Skip connections: around a body, by sum or by concatenation.

use super::Conv2d;
use crate::graph::{Layer, Node, concat};

/// `y = body(x) + shortcut(x)`, the shortcut being the identity or a projection drawn under `downsample`. He et al. 2015
/// (arXiv 1512.03385), eq. 1 and 2. The body is drawn in the block's own scope.
///
/// # Errors
/// If both sides differ in channels or size: the body changed them and nothing projects.
///
/// ```
/// use convzoo::Activation::Relu;
/// use convzoo::graph::Graph;
/// use convzoo::layers::{BatchNorm, Conv2d, Skip};
///
/// let body = (Conv2d::k3(32).stride(2), BatchNorm::new(), Relu, Conv2d::k3(32), BatchNorm::new());
/// let block = Skip::new(body).projected((Conv2d::k1(32).stride(2), BatchNorm::new()));
/// let graph = Graph::draw(16, &(block, Relu))?;
/// assert_eq!(graph.shapes([1, 16, 8, 8], false)?.last(), Some(&[1, 32, 4, 4]));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Skip<B, S = Conv2d> {
    body: B,
    shortcut: Option<S>,
}

impl<B: Layer> Skip<B> {
    /// With the identity as shortcut.
    pub const fn new(body: B) -> Self {
        Skip { body, shortcut: None }
    }

    /// With `shortcut` beside the body.
    pub fn projected<S: Layer>(self, shortcut: S) -> Skip<B, S> {
        Skip { body: self.body, shortcut: Some(shortcut) }
    }
}

impl<B: Layer, S: Layer> Layer for Skip<B, S> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let y = x.then(&self.body);
        let shortcut = self.shortcut.as_ref().map_or(x, |layer| x.layer("downsample", layer));
        y + shortcut
    }
}

/// `y = [x, body(x)]`: the channels of the input, then those of the body. Huang et al. 2016 (arXiv 1608.06993). The body
/// is drawn in the block's own scope.
///
/// # Errors
/// When the body changes height or width, found when the image size is known.
#[derive(Debug, Clone, PartialEq)]
pub struct ConcatSkip<B>(pub B);

impl<B: Layer> Layer for ConcatSkip<B> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        concat([x, x.then(&self.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn a_body_that_changes_the_channels_needs_a_projection() {
        let error = Graph::draw(3, &(Skip::new(Conv2d::k3(8)),)).unwrap_err().to_string();
        assert_eq!(error, "0: channels to add: expected 8, found 3");
        assert!(Graph::draw(3, &Skip::new(Conv2d::k3(8)).projected(Conv2d::k1(8))).is_ok());
    }

    #[test]
    fn concatenation_puts_the_input_first() {
        let graph = Graph::draw(3, &ConcatSkip(Conv2d::k3(8))).unwrap();
        let last = graph.nodes().last().unwrap();
        assert_eq!((last.drawn.channels, last.inputs[0].index()), (11, 0));
    }
}
