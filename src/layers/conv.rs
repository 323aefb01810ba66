//! Convolution.

use crate::error::Error;
use crate::graph::{Layer, Node, Op, ParamId, ParamKind, Size};
use crate::shape::{Padding, Window};
use crate::tensor::Init;

/// Two-dimensional convolution: `y[o, i, j] = b[o] + Σ w[o, c, u, v] · x[c, s·i + d·u − p, s·j + d·v − p]`, the sum over
/// the channels `c` of `o`'s group and the taps `(u, v)`.
///
/// # Shapes
/// `[n, in, h, w]` → `[n, out, ho, wo]` with `ho = ⌊(h + 2p − d·(k − 1) − 1) / s⌋ + 1`. Parameters: `weight`
/// `[out, in/groups, kh, kw]`, then `bias` `[out]`.
///
/// # Defaults
/// Stride 1, dilation 1, one group, a bias, and *half padding*: `p = d·(k − 1)/2`, which keeps the size of a map under an
/// odd kernel with stride 1 (0 for 1×1, 1 for 3×3, 3 for 7×7). Initialised as PyTorch does: weight and bias uniform in
/// ±1/√fan_in.
///
/// # Errors
/// While drawing: a zero kernel, stride, dilation or output width; groups that do not divide both channel counts; a
/// vector as input.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::Conv2d;
///
/// let graph = Graph::draw(3, &Conv2d::k(7, 64).stride(2).no_bias())?;
/// assert_eq!(graph.shapes([1, 3, 224, 224], false)?[1], [1, 64, 112, 112]);
/// let error = Graph::draw(64, &Conv2d::k3(96).groups(3)).unwrap_err().to_string();
/// assert!(error.contains("groups = 3 does not divide 64 input channels"));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2d {
    width: Width,
    kernel: [usize; 2],
    stride: usize,
    padding: Pad,
    dilation: usize,
    bias: bool,
    init: Init,
    bias_init: Option<Init>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Width {
    /// So many outputs, in so many groups.
    Out { channels: usize, groups: usize },
    /// One filter per input channel.
    Depthwise,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pad {
    Half,
    Exact([usize; 2]),
    Same,
}

impl Pad {
    /// The border rule for a kernel and a dilation.
    pub(super) fn resolve(self, kernel: [usize; 2], dilation: usize) -> Padding {
        match self {
            Pad::Half => Padding::Symmetric(kernel.map(|k| (k.saturating_sub(1) / 2).saturating_mul(dilation))),
            Pad::Exact(rows_columns) => Padding::Symmetric(rows_columns),
            Pad::Same => Padding::Same,
        }
    }
}

impl Conv2d {
    /// A `kernel`×`kernel` convolution to `out` channels.
    pub const fn k(kernel: usize, out: usize) -> Self {
        Conv2d::rect([kernel; 2], out)
    }

    /// 1×1: a linear map of the channels of each pixel.
    pub const fn k1(out: usize) -> Self {
        Conv2d::k(1, out)
    }

    /// 3×3, padded by 1.
    pub const fn k3(out: usize) -> Self {
        Conv2d::k(3, out)
    }

    /// A kernel of `[rows, columns]` to `out` channels.
    pub const fn rect(kernel: [usize; 2], out: usize) -> Self {
        let width = Width::Out { channels: out, groups: 1 };
        let (padding, init) = (Pad::Half, Init::TorchDefault);
        Conv2d { width, kernel, stride: 1, padding, dilation: 1, bias: true, init, bias_init: None }
    }

    /// One `kernel`×`kernel` filter per channel (`out = groups = in`); the number of channels comes from the input.
    pub const fn depthwise(kernel: usize) -> Self {
        Conv2d { width: Width::Depthwise, ..Conv2d::k(kernel, 1) }
    }

    /// Steps of `stride` between output pixels.
    pub const fn stride(self, stride: usize) -> Self {
        Conv2d { stride, ..self }
    }

    /// Exactly `padding` zero rows and columns on every side.
    pub const fn padding(self, padding: usize) -> Self {
        self.padding_rect([padding; 2])
    }

    /// Exactly `[rows, columns]` of zeros above and below, left and right.
    pub const fn padding_rect(self, padding: [usize; 2]) -> Self {
        Conv2d { padding: Pad::Exact(padding), ..self }
    }

    /// TensorFlow's `SAME`: output = ⌈input / stride⌉, the odd pixel of padding below and to the right.
    pub const fn same(self) -> Self {
        Conv2d { padding: Pad::Same, ..self }
    }

    /// Taps `dilation` pixels apart. Half padding grows with it.
    pub const fn dilation(self, dilation: usize) -> Self {
        Conv2d { dilation, ..self }
    }

    /// Splits inputs and outputs into `groups` independent convolutions. Without effect on a depthwise convolution.
    pub const fn groups(self, groups: usize) -> Self {
        match self.width {
            Width::Out { channels, .. } => Conv2d { width: Width::Out { channels, groups }, ..self },
            Width::Depthwise => self,
        }
    }

    /// Without a bias: the usual choice in front of a [`BatchNorm`](super::BatchNorm).
    pub const fn no_bias(self) -> Self {
        Conv2d { bias: false, ..self }
    }

    /// How the weight starts.
    pub const fn init(self, init: Init) -> Self {
        Conv2d { init, ..self }
    }

    /// How the bias starts.
    pub const fn bias_init(self, init: Init) -> Self {
        Conv2d { bias_init: Some(init), ..self }
    }

    /// Takes over how `other` starts.
    pub(super) const fn init_of(self, other: &Conv2d) -> Self {
        Conv2d { init: other.init, bias_init: other.bias_init, ..self }
    }

    /// Output channels and groups for so many input channels.
    fn resolve(&self, input: usize) -> (usize, usize) {
        match self.width {
            Width::Out { channels, groups } => (channels, groups),
            Width::Depthwise => (input, input),
        }
    }
}

/// A checked window and filter bank, shared by the plain and the deformable convolution.
pub(super) struct Filters {
    pub(super) window: Window,
    pub(super) out: usize,
    pub(super) groups: usize,
    pub(super) init: Init,
}

impl Filters {
    /// Defines `weight` on the node's channels, or says why there can be none.
    pub(super) fn weight(&self, x: Node<'_>) -> Result<ParamId, Error> {
        let (at, input) = (x.path(), x.channels());
        self.window.validate(&at)?;
        if x.size() == Size::Vector {
            return Err(Error::invalid(at, "a convolution needs a map, found a vector"));
        }
        if self.out == 0 {
            return Err(Error::invalid(at, "a convolution needs at least 1 output channel, found 0"));
        }
        for (channels, side) in [(input, "input"), (self.out, "output")] {
            if self.groups == 0 || !channels.is_multiple_of(self.groups) {
                let problem = format!("groups = {} does not divide {channels} {side} channels", self.groups);
                return Err(Error::invalid(at, problem));
            }
        }
        let [rows, columns] = self.window.kernel;
        Ok(x.param("weight", &[self.out, input / self.groups, rows, columns], ParamKind::Weight, self.init))
    }

    /// Inputs that meet in one output: what PyTorch's default bias depends on.
    pub(super) fn fan_in(&self, input: usize) -> usize {
        (input / self.groups).saturating_mul(self.window.taps())
    }
}

impl Layer for Conv2d {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let (out, groups) = self.resolve(x.channels());
        let window = Window {
            kernel: self.kernel,
            stride: [self.stride; 2],
            padding: self.padding.resolve(self.kernel, self.dilation),
            dilation: [self.dilation; 2],
            ceil: false,
        };
        let filters = Filters { window, out, groups, init: self.init };
        let weight = match filters.weight(x) {
            Ok(weight) => weight,
            Err(error) => return x.fail_with(error),
        };
        let default = Init::UniformFan { fan_in: filters.fan_in(x.channels()) };
        let bias = self.bias.then(|| x.param("bias", &[out], ParamKind::Bias, self.bias_init.unwrap_or(default)));
        x.apply(Op::Conv { weight, bias, window, groups }, &[x])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn output_sizes_follow_pytorch() {
        let cases = [
            (Conv2d::k3(4), 13, 13),
            (Conv2d::k3(4).stride(2), 13, 7),
            (Conv2d::k3(4).dilation(3), 13, 13),
            (Conv2d::k(7, 4).stride(2).padding(0), 13, 4),
            (Conv2d::k(4, 4), 13, 12), // even kernels lose a pixel under half padding
            (Conv2d::k(3, 4).stride(2).same(), 14, 7),
            (Conv2d::depthwise(5).stride(2), 13, 7),
        ];
        for (conv, input, output) in cases {
            let graph = Graph::draw(4, &conv).unwrap();
            assert_eq!(graph.shapes([2, 4, input, input], false).unwrap()[1], [2, 4, output, output], "{conv:?}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_errors_with_the_path_and_both_numbers() {
        let cases = [
            (Conv2d::k3(64).groups(3), "groups = 3 does not divide 8 input channels"),
            (Conv2d::k3(6).groups(4), "groups = 4 does not divide 6 output channels"),
            (Conv2d::k3(6).groups(0), "groups = 0"),
            (Conv2d::k3(0), "at least 1 output channel, found 0"),
            (Conv2d::k(0, 4), "kernel must be at least 1, found 0×0"),
            (Conv2d::k3(4).stride(0), "stride must be at least 1, found 0×0"),
            (Conv2d::k3(4).dilation(0), "dilation must be at least 1"),
            (Conv2d::k3(4).dilation(usize::MAX), "is over"),
            (Conv2d::k(usize::MAX, 4).same(), "is over"),
        ];
        for (conv, wanted) in cases {
            let error = Graph::draw(8, &(conv,)).unwrap_err().to_string();
            assert!(error.starts_with("0: ") && error.contains(wanted), "{error}");
        }
    }
}
