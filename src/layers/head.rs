//! Where a network ends: the classifier, and the auxiliary classifiers on the way.

use super::{AdaptiveAvgPool, AvgPool, Conv2d, ConvNormAct, Dropout, Flatten, GlobalAvgPool, Linear};
use crate::graph::{Layer, Node};
use crate::tensor::Init;

/// Global average pooling, dropout, a linear layer. Names the pooled vector as the feature `pre_logits`, so a network has
/// one of it.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, classes]`. Parameters under `fc`, or the name given.
///
/// # Defaults
/// No dropout; the linear layer starts as PyTorch's.
///
/// # Errors
/// Zero classes; a probability outside 0 .. 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassifierHead {
    name: &'static str,
    dropout: f32,
    linear: Linear,
}

impl ClassifierHead {
    /// For `classes` classes.
    pub const fn new(classes: usize) -> Self {
        ClassifierHead { name: "fc", dropout: 0.0, linear: Linear::new(classes) }
    }

    /// Calls the linear layer `name`.
    pub const fn named(self, name: &'static str) -> Self {
        ClassifierHead { name, ..self }
    }

    /// Dropout in front of the linear layer.
    pub const fn dropout(self, p: f32) -> Self {
        ClassifierHead { dropout: p, ..self }
    }

    /// How the linear layer's weight starts.
    pub const fn init(self, init: Init) -> Self {
        ClassifierHead { linear: self.linear.init(init), ..self }
    }

    /// How the linear layer's bias starts.
    pub const fn bias_init(self, init: Init) -> Self {
        ClassifierHead { linear: self.linear.bias_init(init), ..self }
    }
}

impl Layer for ClassifierHead {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let vector = x.layer("avgpool", GlobalAvgPool).then(Flatten).feature("pre_logits");
        vector.layer("dropout", Dropout::new(self.dropout)).layer(self.name, self.linear)
    }
}

/// GoogLeNet's auxiliary classifier: average pool to 4×4 → 1×1 convolution to 128 → linear 1024 → ReLU → dropout 0.7 →
/// linear. Szegedy et al. 2014 (arXiv 1409.4842), §5. Hang it on with [`Node::aux`].
///
/// # Shapes
/// `[n, c, h, w]` → `[n, classes]`. Parameters under `conv`, `fc1`, `fc2`.
///
/// # Defaults
/// torchvision's: adaptive pooling, so that any image size goes. The paper's windows of 5×5 with stride 3, which give 4×4
/// on 14×14, are [`AuxHead::windows`]; a map of another size is then pooled adaptively after them.
///
/// # Errors
/// Zero classes; a probability outside 0 .. 1.
///
/// ```
/// use convzoo::graph::{Graph, Node, Role, layer_fn};
/// use convzoo::layers::{AuxHead, ClassifierHead, Conv2d};
///
/// fn net(x: Node<'_>) -> Node<'_> {
///     let x = x.layer("stem", Conv2d::k3(8)).relu().aux("aux1", AuxHead::new(10), 0.3);
///     x.then(ClassifierHead::new(10))
/// }
/// let graph = Graph::draw(3, &layer_fn(net))?;
/// assert_eq!(graph.outputs()[0].role, Role::Auxiliary { weight: 0.3 });
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AuxHead {
    windows: bool,
    dropout: f32,
    unit: ConvNormAct,
    hidden: Linear,
    linear: Linear,
}

impl AuxHead {
    /// For `classes` classes.
    pub const fn new(classes: usize) -> Self {
        let unit = ConvNormAct::new(Conv2d::k1(128));
        AuxHead { windows: false, dropout: 0.7, unit, hidden: Linear::new(1024), linear: Linear::new(classes) }
    }

    /// Pools with the paper's 5×5 windows of stride 3.
    pub const fn windows(self) -> Self {
        AuxHead { windows: true, ..self }
    }

    /// Dropout in front of the last layer.
    pub const fn dropout(self, p: f32) -> Self {
        AuxHead { dropout: p, ..self }
    }

    /// Norm, activation, names and initialisers of the 1×1 convolution.
    pub const fn unit(self, unit: ConvNormAct) -> Self {
        AuxHead { unit: unit.around(Conv2d::k1(128)), ..self }
    }

    /// How the weights of the linear layers start.
    pub const fn init(self, init: Init) -> Self {
        AuxHead { hidden: self.hidden.init(init), linear: self.linear.init(init), ..self }
    }

    /// How the biases of the hidden and of the last layer start.
    pub const fn bias_init(self, [hidden, last]: [Init; 2]) -> Self {
        AuxHead { hidden: self.hidden.bias_init(hidden), linear: self.linear.bias_init(last), ..self }
    }
}

impl Layer for AuxHead {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.layer("pool", self.windows.then_some(AvgPool::k(5).stride(3)))
            .layer("avgpool", AdaptiveAvgPool::to(4)) // the identity on the 4×4 the paper's windows give
            .layer("conv", self.unit)
            .then(Flatten)
            .layer("fc1", self.hidden)
            .relu()
            .layer("dropout", Dropout::new(self.dropout))
            .layer("fc2", self.linear)
    }
}
