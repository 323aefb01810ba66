//! What can be drawn: the `Layer` trait, and sequences of layers.

use super::node::Node;
use crate::activation::Activation;

/// A piece of network: takes a node, draws, gives back the node it ends in.
///
/// Tuples, arrays and `Vec`s of layers are sequences whose children are named `0`, `1`, …, as PyTorch's `Sequential`
/// names them; `None` draws nothing; references and boxes draw what they point to. Nothing here is reserved to the
/// crate's own layers:
///
/// ```
/// use convzoo::graph::{Graph, Layer, Node};
/// use convzoo::layers::{BatchNorm, Conv2d};
///
/// struct Residual(usize);
///
/// impl Layer for Residual {
///     fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
///         let y = x.layer("conv", Conv2d::k3(self.0)).layer("bn", BatchNorm::new());
///         (y + x).relu()
///     }
/// }
///
/// let graph = Graph::draw(8, &(Conv2d::k1(16), Residual(16)))?;
/// assert_eq!(graph.params()[2].name, "1.conv.weight");
/// # Ok::<(), convzoo::Error>(())
/// ```
pub trait Layer {
    /// Draws this layer behind `x`.
    fn build<'g>(&self, x: Node<'g>) -> Node<'g>;
}

impl<L: Layer + ?Sized> Layer for &L {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        (**self).build(x)
    }
}

impl<L: Layer + ?Sized> Layer for Box<L> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        (**self).build(x)
    }
}

impl<L: Layer> Layer for Option<L> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        self.as_ref().map_or(x, |layer| layer.build(x))
    }
}

impl<L: Layer> Layer for [L] {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        self.iter().enumerate().fold(x, |x, (i, layer)| x.layer(&i.to_string(), layer))
    }
}

impl<L: Layer> Layer for Vec<L> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        self.as_slice().build(x)
    }
}

impl<L: Layer, const N: usize> Layer for [L; N] {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        self.as_slice().build(x)
    }
}

impl Layer for Activation {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.activation(*self)
    }
}

macro_rules! sequence {
    ($($layer:ident $index:tt),+) => {
        impl<$($layer: Layer),+> Layer for ($($layer,)+) {
            fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
                $(let x = x.layer(stringify!($index), &self.$index);)+
                x
            }
        }
    };
}

sequence!(A 0);
sequence!(A 0, B 1);
sequence!(A 0, B 1, C 2);
sequence!(A 0, B 1, C 2, D 3);
sequence!(A 0, B 1, C 2, D 3, E 4);
sequence!(A 0, B 1, C 2, D 3, E 4, F 5);
sequence!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
sequence!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// A layer from a closure.
///
/// ```
/// use convzoo::graph::{Graph, Node, layer_fn};
/// use convzoo::layers::Conv2d;
/// fn net(x: Node<'_>) -> Node<'_> {
///     x.layer("stem", Conv2d::k3(8)).relu()
/// }
/// assert_eq!(Graph::draw(3, &layer_fn(net))?.params().len(), 2);
/// # Ok::<(), convzoo::Error>(())
/// ```
pub fn layer_fn<F: for<'g> Fn(Node<'g>) -> Node<'g>>(f: F) -> LayerFn<F> {
    LayerFn(f)
}

/// The layer [`layer_fn`] makes.
pub struct LayerFn<F>(F);

impl<F: for<'g> Fn(Node<'g>) -> Node<'g>> Layer for LayerFn<F> {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        (self.0)(x)
    }
}
