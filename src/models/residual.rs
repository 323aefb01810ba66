//! The residual blocks that ResNet, ResNeXt, SENet and the deformable ResNets share.

use super::deform_resnet::Deform;
use crate::graph::{Layer, Node, Op};
use crate::layers::{BatchNorm, Conv2d, MaxPool, SeBlock};
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// Which convolution of a bottleneck block carries the stride.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StrideIn {
    /// The first 1×1, as in the paper and in Caffe ("v1").
    First,
    /// The 3×3, as in torchvision ("v1.5"): half a point more accurate for 6 % more work.
    Middle,
}

/// What runs beside the body of a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Shortcut {
    /// The identity; a 1×1 projection where the shape changes (the paper's option B).
    Projection,
    /// As [`Shortcut::Projection`], by 3×3 (SENet-154, from its second stage on).
    Projection3x3,
    /// The identity; where the shape changes every second pixel and zero channels on both sides (option A, without
    /// parameters).
    ZeroPad,
    /// Nothing: the *plain* network whose training error rises with its depth.
    Absent,
}

/// A convolution as torchvision's ResNet starts it.
pub(super) fn conv(kernel: usize, out: usize) -> Conv2d {
    Conv2d::k(kernel, out).no_bias().init(Init::KaimingFanOut)
}

/// What both blocks do with their body: attention, the sum with the shortcut, ReLU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Join {
    pub(super) stride: usize,
    pub(super) shortcut: Shortcut,
    /// Name and block of the squeeze-and-excitation on the residual branch.
    pub(super) attention: Option<(&'static str, SeBlock)>,
    /// Where the last norm's scale starts.
    pub(super) last_scale: f32,
}

impl Join {
    fn join<'g>(&self, x: Node<'g>, y: Node<'g>) -> Node<'g> {
        let y = self.attention.map_or(y, |(name, se)| y.layer(name, se));
        let out = y.channels();
        let changes = self.stride != 1 || x.channels() != out;
        let projection = |kernel| (conv(kernel, out).stride(self.stride), BatchNorm::new());
        let shortcut = match self.shortcut {
            Shortcut::Absent => return y.relu(),
            _ if !changes => x,
            Shortcut::Projection => x.layer("downsample", projection(1)),
            Shortcut::Projection3x3 => x.layer("downsample", projection(3)),
            Shortcut::ZeroPad => x.layer("shortcut", (MaxPool::k(1).stride(self.stride), ZeroChannels(out))),
        };
        (y + shortcut).relu()
    }

    fn last_norm(&self) -> BatchNorm {
        BatchNorm::new().scale(self.last_scale)
    }
}

/// Pads with zero channels on both sides to `0` channels.
struct ZeroChannels(usize);

impl Layer for ZeroChannels {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let more = self.0.saturating_sub(x.channels());
        x.apply(Op::ChannelPad { before: more / 2, after: more - more / 2 }, &[x])
    }
}

/// 3×3 → 3×3 beside a shortcut. He et al. 2015, fig. 5 left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Basic {
    pub(super) width: usize,
    pub(super) join: Join,
}

impl Layer for Basic {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let y = x
            .layer("conv1", conv(3, self.width).stride(self.join.stride))
            .layer("bn1", BatchNorm::new())
            .relu()
            .layer("conv2", conv(3, self.width))
            .layer("bn2", self.join.last_norm());
        self.join.join(x, y)
    }
}

/// 1×1 → 3×3 → 1×1 beside a shortcut. He et al. 2015, fig. 5 right; with groups, Xie et al. 2016, fig. 3(c).
#[derive(Debug, Clone, Copy)]
pub(super) struct Bottleneck {
    /// Channels behind the first 1×1.
    pub(super) reduce: usize,
    /// Channels behind the 3×3.
    pub(super) width: usize,
    /// Channels behind the last 1×1.
    pub(super) out: usize,
    pub(super) groups: usize,
    pub(super) stride_in: StrideIn,
    /// A deformable 3×3.
    pub(super) deform: Option<Deform>,
    pub(super) join: Join,
}

impl Bottleneck {
    fn middle(&self, stride: usize) -> Box<dyn Layer> {
        match self.deform {
            None => Box::new(conv(3, self.width).stride(stride).groups(self.groups)),
            Some(deform) => Box::new(deform.conv(self.width).stride(stride).groups(self.groups)),
        }
    }
}

impl Layer for Bottleneck {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let (first, middle) = match self.stride_in {
            StrideIn::First => (self.join.stride, 1),
            StrideIn::Middle => (1, self.join.stride),
        };
        let y = x
            .layer("conv1", conv(1, self.reduce).stride(first))
            .layer("bn1", BatchNorm::new())
            .relu()
            .layer("conv2", self.middle(middle))
            .layer("bn2", BatchNorm::new())
            .relu()
            .layer("conv3", conv(1, self.out))
            .layer("bn3", self.join.last_norm());
        self.join.join(x, y)
    }
}
