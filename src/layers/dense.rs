//! Dense connectivity.

use super::{AvgPool, BatchNorm, Conv2d, Dropout};
use crate::graph::{Layer, Node, concat};
use crate::tensor::Init;

/// One layer of a dense block: BN–ReLU–1×1–BN–ReLU–3×3, giving `growth` new channels. Huang et al. 2016
/// (arXiv 1608.06993), §3.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, growth, h, w]`. Parameters `norm1`, `conv1`, `norm2`, `conv2`; without a bottleneck `norm1` and
/// `conv1` (3×3) only.
///
/// # Defaults
/// A bottleneck of 4·growth channels (DenseNet-B), no dropout.
///
/// # Errors
/// A growth or bottleneck factor of zero; a dropout probability outside 0 .. 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseLayer {
    growth: usize,
    bottleneck: Option<usize>,
    dropout: f32,
    init: Init,
}

impl DenseLayer {
    /// Adds `growth` channels (the paper's k).
    pub const fn new(growth: usize) -> Self {
        DenseLayer { growth, bottleneck: Some(4), dropout: 0.0, init: Init::TorchDefault }
    }

    /// `factor`·growth channels between the 1×1 and the 3×3.
    pub const fn bottleneck(self, factor: usize) -> Self {
        DenseLayer { bottleneck: Some(factor), ..self }
    }

    /// BN–ReLU–3×3 alone.
    pub const fn no_bottleneck(self) -> Self {
        DenseLayer { bottleneck: None, ..self }
    }

    /// Dropout on the new channels.
    pub const fn dropout(self, p: f32) -> Self {
        DenseLayer { dropout: p, ..self }
    }

    /// How the convolutions start.
    pub const fn init(self, init: Init) -> Self {
        DenseLayer { init, ..self }
    }
}

impl Layer for DenseLayer {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let conv = |kernel, out| Conv2d::k(kernel, out).no_bias().init(self.init);
        let y = x.layer("norm1", BatchNorm::new()).relu();
        let y = match self.bottleneck {
            Some(factor) => y
                .layer("conv1", conv(1, factor.saturating_mul(self.growth)))
                .layer("norm2", BatchNorm::new())
                .relu()
                .layer("conv2", conv(3, self.growth)),
            None => y.layer("conv1", conv(3, self.growth)),
        };
        y.then(Dropout::new(self.dropout))
    }
}

/// `layers` dense layers, each reading the input and all layers before it: `x ← [x, layer(x)]`.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, c + layers·growth, h, w]`. Parameters under `denselayer1`, `denselayer2`, …
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::{DenseBlock, DenseLayer};
///
/// let graph = Graph::draw(64, &DenseBlock::new(6, DenseLayer::new(32)))?;
/// assert_eq!(graph.shapes([1, 64, 8, 8], false)?.last(), Some(&[1, 256, 8, 8]));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseBlock {
    layers: usize,
    layer: DenseLayer,
}

impl DenseBlock {
    /// A block of `layers` times `layer`.
    pub const fn new(layers: usize, layer: DenseLayer) -> Self {
        DenseBlock { layers, layer }
    }
}

impl Layer for DenseBlock {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        (1..=self.layers).fold(x, |x, i| concat([x, x.layer(&format!("denselayer{i}"), self.layer)]))
    }
}

/// Between dense blocks: BN–ReLU–1×1 to `⌊θ·c⌋` channels, then 2×2 average pooling.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, ⌊θ·c⌋, ⌊h/2⌋, ⌊w/2⌋]`. Parameters `norm`, `conv`.
///
/// # Errors
/// A compression outside 0 < θ ≤ 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    compression: f64,
    init: Init,
}

impl Transition {
    /// Keeps the share `compression` of the channels (the paper's θ).
    pub const fn new(compression: f64) -> Self {
        Transition { compression, init: Init::TorchDefault }
    }

    /// How the convolution starts.
    pub const fn init(self, init: Init) -> Self {
        Transition { init, ..self }
    }
}

impl Layer for Transition {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let theta = self.compression;
        if !(theta > 0.0 && theta <= 1.0) {
            return x.fail(format!("a transition needs a compression over 0 and at most 1, found {theta}"));
        }
        let out = (theta * x.channels() as f64).floor() as usize;
        x.layer("norm", BatchNorm::new())
            .relu()
            .layer("conv", Conv2d::k1(out).no_bias().init(self.init))
            .layer("pool", AvgPool::k(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn bad_settings_are_errors_with_the_path() {
        let block = |layer| Graph::draw(8, &(DenseBlock::new(2, layer),)).map(|_| ()).unwrap_err().to_string();
        assert!(block(DenseLayer::new(0)).starts_with("0.denselayer1.conv1: "));
        assert!(block(DenseLayer::new(4).bottleneck(0)).starts_with("0.denselayer1.conv1: "));
        assert!(block(DenseLayer::new(4).dropout(1.0)).starts_with("0.denselayer1: dropout"));
        for theta in [0.0, 1.5, f64::NAN] {
            assert!(Graph::draw(8, &Transition::new(theta)).is_err());
        }
    }

    #[test]
    fn without_a_bottleneck_a_layer_is_one_3x3() {
        let graph = Graph::draw(8, &DenseLayer::new(12).no_bottleneck()).unwrap();
        assert_eq!(graph.params().last().unwrap().shape, [12, 8, 3, 3]);
    }
}
