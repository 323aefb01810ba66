//! Deformable convolution.

use super::conv::{Conv2d, Filters, Pad};
use crate::activation::Activation;
use crate::graph::{Layer, Node, Op, ParamKind};
use crate::shape::Window;
use crate::tensor::Init;

/// Deformable convolution with its own offset branch: `y(p) = Σ_k w_k · m_k(p) · x(p + p_k + Δp_k(p))`, `x` sampled
/// bilinearly (zero beyond the border). Dai et al. 2017 (arXiv 1703.06211); version 2, which adds the modulation `m`,
/// Zhu et al. 2018 (arXiv 1811.11168).
///
/// A plain convolution `conv_offset` of the same window predicts, for each tap of each offset group, first all offsets
/// (y before x) and, in version 2, then all masks, which pass a sigmoid. It starts at zero, so that version 1 begins as
/// the plain convolution and version 2 as half of it.
///
/// # Shapes
/// As [`Conv2d`]. Parameters in mmcv's order: `weight`, `bias` if asked for, `conv_offset.weight`
/// `[2·offset_groups·k², in, k, k]` (version 2: `3·…`), `conv_offset.bias`.
///
/// # Defaults
/// Stride 1, dilation 1, half padding, one group, one offset group, no bias.
///
/// # Errors
/// As [`Conv2d`], and offset groups that do not divide the input channels.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::DeformConv2d;
///
/// let graph = Graph::draw(64, &DeformConv2d::v2(3, 64))?;
/// let names: Vec<_> = graph.params().iter().map(|p| p.name.as_str()).collect();
/// assert_eq!(names, ["weight", "conv_offset.weight", "conv_offset.bias"]);
/// assert_eq!(graph.params()[1].shape, [27, 64, 3, 3]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeformConv2d {
    out: usize,
    kernel: usize,
    stride: usize,
    padding: Pad,
    dilation: usize,
    groups: usize,
    offset_groups: usize,
    modulated: bool,
    bias: bool,
    init: Init,
}

impl DeformConv2d {
    /// Version 1: offsets only.
    pub const fn v1(kernel: usize, out: usize) -> Self {
        DeformConv2d {
            out,
            kernel,
            stride: 1,
            padding: Pad::Half,
            dilation: 1,
            groups: 1,
            offset_groups: 1,
            modulated: false,
            bias: false,
            init: Init::TorchDefault,
        }
    }

    /// Version 2: offsets and a mask.
    pub const fn v2(kernel: usize, out: usize) -> Self {
        DeformConv2d { modulated: true, ..DeformConv2d::v1(kernel, out) }
    }

    /// Steps of `stride` between output pixels.
    pub const fn stride(self, stride: usize) -> Self {
        DeformConv2d { stride, ..self }
    }

    /// Exactly `padding` rows and columns on every side.
    pub const fn padding(self, padding: usize) -> Self {
        DeformConv2d { padding: Pad::Exact([padding; 2]), ..self }
    }

    /// Undeformed taps `dilation` pixels apart. Half padding grows with it.
    pub const fn dilation(self, dilation: usize) -> Self {
        DeformConv2d { dilation, ..self }
    }

    /// Splits inputs and outputs into `groups` independent convolutions.
    pub const fn groups(self, groups: usize) -> Self {
        DeformConv2d { groups, ..self }
    }

    /// Splits the input channels into `offset_groups`, each with offsets of its own.
    pub const fn offset_groups(self, offset_groups: usize) -> Self {
        DeformConv2d { offset_groups, ..self }
    }

    /// With a bias, starting at zero.
    pub const fn bias(self) -> Self {
        DeformConv2d { bias: true, ..self }
    }

    /// How the weight starts.
    pub const fn init(self, init: Init) -> Self {
        DeformConv2d { init, ..self }
    }
}

impl Layer for DeformConv2d {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let kernel = [self.kernel; 2];
        let padding = self.padding.resolve(kernel, self.dilation);
        let window = Window { kernel, stride: [self.stride; 2], padding, dilation: [self.dilation; 2], ceil: false };
        let (groups, offset_groups) = (self.groups, self.offset_groups);
        let weight = match (Filters { window, out: self.out, groups, init: self.init }).weight(x) {
            Ok(weight) => weight,
            Err(error) => return x.fail_with(error),
        };
        if offset_groups == 0 || !x.channels().is_multiple_of(offset_groups) {
            let channels = x.channels();
            return x.fail(format!("offset groups = {offset_groups} does not divide {channels} input channels"));
        }
        let bias = self.bias.then(|| x.param("bias", &[self.out], ParamKind::Bias, Init::Constant(0.0)));

        let fields = offset_groups.saturating_mul(window.taps());
        let moves = fields.saturating_mul(2);
        let predicted = if self.modulated { moves.saturating_add(fields) } else { moves };
        let zero = Init::Constant(0.0);
        let branch = Conv2d::k(self.kernel, predicted).stride(self.stride).dilation(self.dilation);
        let branch = if let Pad::Exact([padding, _]) = self.padding { branch.padding(padding) } else { branch };
        let field = x.layer("conv_offset", branch.init(zero).bias_init(zero));
        let mut inputs = vec![x, field];
        if self.modulated {
            inputs[1] = field.channel_slice(0, moves);
            inputs.push(field.channel_slice(moves, fields).activation(Activation::Sigmoid));
        }
        x.apply(Op::DeformConv { weight, bias, window, groups, offset_groups }, &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn offset_fields_follow_the_output_and_the_offset_groups() {
        let conv = DeformConv2d::v2(3, 12).stride(2).dilation(2).groups(2).offset_groups(4).bias();
        let graph = Graph::draw(8, &conv).unwrap();
        let shapes: Vec<_> = graph.params().iter().map(|p| p.shape.clone()).collect();
        assert_eq!(shapes, [vec![12, 4, 3, 3], vec![12], vec![108, 8, 3, 3], vec![108]]);
        assert_eq!(*graph.shapes([1, 8, 15, 9], false).unwrap().last().unwrap(), [1, 12, 8, 5]);
    }

    #[test]
    fn bad_settings_are_errors_and_none_panics() {
        for (conv, wanted) in [
            (DeformConv2d::v1(3, 12).offset_groups(3), "offset groups = 3 does not divide 8 input channels"),
            (DeformConv2d::v1(3, 12).offset_groups(0), "offset groups = 0"),
            (DeformConv2d::v1(3, 12).groups(5), "groups = 5 does not divide 8 input channels"),
            (DeformConv2d::v2(0, 12), "kernel must be at least 1"),
            (DeformConv2d::v2(3, 0), "found 0"),
        ] {
            let error = Graph::draw(8, &(conv,)).unwrap_err().to_string();
            assert!(error.starts_with("0: ") && error.contains(wanted), "{error}");
        }
    }
}
