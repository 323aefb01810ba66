//! ResNet with deformable convolutions. Dai et al. 2017, *Deformable convolutional networks* (arXiv 1703.06211); Zhu et
//! al. 2018, *Deformable ConvNets v2: more deformable, better results* (arXiv 1811.11168).
//!
//! A ResNet whose 3×3 are deformable from a given stage on: the first paper deforms the three of conv5, the second all
//! thirteen of conv3 to conv5. Names are mmcv's: `layer4.0.conv2.weight`, `layer4.0.conv2.conv_offset.weight`, …

use super::resnet::ResNet;
use crate::layers::DeformConv2d;
use crate::tensor::Init;
use serde::{Deserialize, Serialize};

/// Version of deformable convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeformVersion {
    /// Offsets.
    V1,
    /// Offsets and masks.
    V2,
}

/// Which 3×3 of a ResNet are deformable, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deform {
    /// Version.
    pub version: DeformVersion,
    /// The first stage with deformable 3×3, counted from 1: the papers' conv5 is stage 4.
    pub from_stage: usize,
    /// Channel groups with offsets of their own.
    pub offset_groups: usize,
}

impl Deform {
    /// The deformable 3×3.
    pub(super) fn conv(&self, out: usize) -> DeformConv2d {
        let conv = match self.version {
            DeformVersion::V1 => DeformConv2d::v1(3, out),
            DeformVersion::V2 => DeformConv2d::v2(3, out),
        };
        conv.offset_groups(self.offset_groups).init(Init::KaimingFanOut)
    }
}

impl ResNet {
    /// With deformable 3×3 from stage `from_stage` (1 to 4) on, one offset group.
    pub fn deform(self, version: DeformVersion, from_stage: usize) -> Self {
        ResNet { deform: Some(Deform { version, from_stage, offset_groups: 1 }), ..self }
    }

    /// ResNet-50, DCNv1 on conv5: the first paper's choice.
    pub fn deform_resnet50_v1_c5() -> Self {
        ResNet::resnet50().deform(DeformVersion::V1, 4)
    }

    /// ResNet-50, DCNv1 on conv3 to conv5.
    pub fn deform_resnet50_v1_c3() -> Self {
        ResNet::resnet50().deform(DeformVersion::V1, 2)
    }

    /// ResNet-50, DCNv2 on conv3 to conv5: the second paper's choice.
    pub fn deform_resnet50_v2_c3() -> Self {
        ResNet::resnet50().deform(DeformVersion::V2, 2)
    }
}
