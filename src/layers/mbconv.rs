//! The inverted residual of MobileNetV2 and EfficientNet.

use super::{BatchNorm, Conv2d, ConvNormAct, SeBlock, StochasticDepth};
use crate::activation::Activation;
use crate::graph::{Layer, Node};
use crate::tensor::Init;

/// Rounds a channel count to the nearest multiple of `divisor`, at least one of it, and up one more if that lost over
/// the share `1 − keep`: the rule of MobileNet and EfficientNet, with 8 and `keep = 0.9`.
///
/// ```
/// use convzoo::layers::round_channels;
/// assert_eq!([35.2, 17.6, 3.0].map(|c| round_channels(c, 8, 0.9)), [32, 16, 8]);
/// assert_eq!(round_channels(11.9, 8, 0.9), 16, "8 would lose a third");
/// ```
pub fn round_channels(channels: f64, divisor: usize, keep: f64) -> usize {
    let divisor = divisor.max(1);
    let rounded = ((channels + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    if (rounded as f64) < keep * channels { rounded.saturating_add(divisor) } else { rounded }
}

/// MBConv, the inverted residual: 1×1 expansion → depthwise k×k → squeeze-and-excitation → 1×1 projection without
/// activation, beside the identity when the block changes neither size nor width. Sandler et al. 2018
/// (arXiv 1801.04381); with the squeeze, Tan & Le 2019 (arXiv 1905.11946).
///
/// The *fused* form (Tan & Le 2021, arXiv 2104.00298) has one dense k×k in place of expansion and depthwise, and no
/// squeeze.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, out, ⌈h/s⌉, ⌈w/s⌉]`. Parameters under `block.0`, `block.1`, … as torchvision's. An expansion of 1
/// leaves out the 1×1 (or, fused, the projection).
///
/// # Defaults
/// 3×3, stride 1, expansion 6, SiLU, a squeeze to a quarter of the block's *input*, no stochastic depth.
///
/// # Errors
/// Zero widths, kernel, stride or expansion; a probability outside 0 .. 1.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::MbConv;
///
/// let graph = Graph::draw(16, &MbConv::new(24).kernel(5).stride(2))?;
/// assert_eq!(graph.params()[5].name, "block.1.0.weight");
/// assert_eq!(graph.params()[5].shape, [96, 1, 5, 5]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MbConv {
    out: usize,
    kernel: usize,
    stride: usize,
    expand: usize,
    fused: bool,
    squeeze: Option<usize>,
    activation: Activation,
    norm: BatchNorm,
    init: Init,
    drop: f32,
    same: bool,
    mobile_names: bool,
}

impl MbConv {
    /// To `out` channels.
    pub const fn new(out: usize) -> Self {
        MbConv {
            out,
            kernel: 3,
            stride: 1,
            expand: 6,
            fused: false,
            squeeze: Some(4),
            activation: Activation::Silu,
            norm: BatchNorm::new(),
            init: Init::TorchDefault,
            drop: 0.0,
            same: false,
            mobile_names: false,
        }
    }

    /// The fused form.
    pub const fn fused(out: usize) -> Self {
        MbConv { fused: true, squeeze: None, ..MbConv::new(out) }
    }

    /// Side of the kernel.
    pub const fn kernel(self, kernel: usize) -> Self {
        MbConv { kernel, ..self }
    }

    /// Steps between output pixels. Only a block with stride 1 has a shortcut.
    pub const fn stride(self, stride: usize) -> Self {
        MbConv { stride, ..self }
    }

    /// Factor from the input's channels to the inner ones.
    pub const fn expand(self, factor: usize) -> Self {
        MbConv { expand: factor, ..self }
    }

    /// Squeezes to the block's input channels divided by `by`, at least 1.
    pub const fn squeeze(self, by: usize) -> Self {
        MbConv { squeeze: Some(by), ..self }
    }

    /// Without squeeze-and-excitation.
    pub const fn no_squeeze(self) -> Self {
        MbConv { squeeze: None, ..self }
    }

    /// The activation after every convolution but the last, and inside the squeeze.
    pub const fn activation(self, activation: Activation) -> Self {
        MbConv { activation, ..self }
    }

    /// The norm after every convolution.
    pub const fn norm(self, norm: BatchNorm) -> Self {
        MbConv { norm, ..self }
    }

    /// How the weights start; with any choice but PyTorch's default the squeeze's biases start at zero.
    pub const fn init(self, init: Init) -> Self {
        MbConv { init, ..self }
    }

    /// Drops the branch of an image with probability `p` in training.
    pub const fn drop(self, p: f32) -> Self {
        MbConv { drop: p, ..self }
    }

    /// TensorFlow's padding.
    pub const fn same(self) -> Self {
        MbConv { same: true, ..self }
    }

    /// torchvision's names for MobileNetV2: `conv` for `block`, and the projection's convolution and norm side by side.
    pub const fn mobilenet_names(self) -> Self {
        MbConv { mobile_names: true, ..self }
    }

    /// The layers of the branch, in order.
    fn branch(&self, input: usize) -> Vec<Box<dyn Layer>> {
        let unit = |conv: Conv2d| {
            let conv = if self.same { conv.same() } else { conv };
            ConvNormAct::new(conv.init(self.init)).norm(self.norm).activation(self.activation)
        };
        let inner = round_channels(input as f64 * self.expand as f64, 8, 0.9);
        let expands = inner != input;
        let projection = Conv2d::k1(self.out).no_bias().init(self.init);
        let mut layers: Vec<Box<dyn Layer>> = vec![];
        if self.fused {
            let out = if expands { inner } else { self.out };
            layers.push(Box::new(unit(Conv2d::k(self.kernel, out).stride(self.stride))));
            if !expands {
                return layers;
            }
        } else {
            if expands {
                layers.push(Box::new(unit(Conv2d::k1(inner))));
            }
            layers.push(Box::new(unit(Conv2d::depthwise(self.kernel).stride(self.stride))));
        }
        if let Some(by) = self.squeeze {
            let se = SeBlock::width((input / by.max(1)).max(1)).activation(self.activation).init(self.init);
            let default = self.init == Init::TorchDefault;
            layers.push(Box::new(if default { se } else { se.bias_init(Init::Constant(0.0)) }));
        }
        if self.mobile_names {
            layers.push(Box::new(projection));
            layers.push(Box::new(self.norm));
        } else {
            layers.push(Box::new(unit(projection).linear()));
        }
        layers
    }
}

impl Layer for MbConv {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        if self.expand == 0 || self.squeeze == Some(0) {
            return x.fail(format!("MBConv with expansion {} and squeeze {:?}", self.expand, self.squeeze));
        }
        let scope = if self.mobile_names { "conv" } else { "block" };
        let y = x.layer(scope, self.branch(x.channels()));
        if self.stride == 1 && x.channels() == self.out {
            y.layer("stochastic_depth", StochasticDepth::new(self.drop)) + x
        } else {
            y
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    fn names(layer: impl Layer, input: usize) -> Vec<String> {
        let graph = Graph::draw(input, &layer).unwrap();
        graph.params().iter().filter(|p| p.name.ends_with("weight")).map(|p| p.name.clone()).collect()
    }

    #[test]
    fn an_expansion_of_one_leaves_out_its_convolution() {
        let wanted =
            ["block.0.0.weight", "block.0.1.weight", "block.1.fc1.weight", "block.1.fc2.weight", "block.2.0.weight"];
        assert_eq!(names(MbConv::new(16).expand(1), 32)[..5], wanted);
        assert_eq!(names(MbConv::fused(24).expand(1), 24), ["block.0.0.weight", "block.0.1.weight"]);
        let mobile = names(MbConv::new(16).expand(1).no_squeeze().mobilenet_names(), 32);
        assert_eq!(mobile, ["conv.0.0.weight", "conv.0.1.weight", "conv.1.weight", "conv.2.weight"]);
    }

    #[test]
    fn the_shortcut_depends_on_stride_and_channels_alone() {
        let adds = |layer: MbConv, input| {
            let graph = Graph::draw(input, &layer).unwrap();
            graph.nodes().iter().any(|n| n.op.name() == "add")
        };
        assert!(adds(MbConv::new(16), 16) && adds(MbConv::fused(16), 16));
        assert!(!adds(MbConv::new(16).stride(2), 16) && !adds(MbConv::new(24), 16));
    }

    #[test]
    fn zeros_are_errors() {
        for layer in [MbConv::new(0), MbConv::new(8).expand(0), MbConv::new(8).squeeze(0), MbConv::new(8).kernel(0)] {
            assert!(Graph::draw(8, &layer).is_err(), "{layer:?}");
        }
        assert!(Graph::draw(8, &MbConv::new(8).drop(1.0)).is_err());
    }
}
