//! The closed list of operations, and the shape each one yields.
//!
//! Adding a variant is a compile error in the shape rule here, in the reference executor and in the planner until each
//! of them handles it.

use super::params::ParamId;
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::shape::{Window, checked_volume};

/// One operation of the drawing. Inputs are listed in the order the variant's documentation names them.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The image batch `[n, channels, h, w]`. No inputs.
    Input {
        /// Channels per pixel.
        channels: usize,
    },
    /// Convolution. Input `x`; weight `[out, in/groups, kh, kw]`.
    Conv {
        /// Kernel weights.
        weight: ParamId,
        /// One value per output channel.
        bias: Option<ParamId>,
        /// Kernel, stride, padding, dilation.
        window: Window,
        /// Independent channel groups.
        groups: usize,
    },
    /// Deformable convolution. Inputs `x`, `offset` (`[n, 2·offset_groups·taps, ho, wo]`, y before x for each tap) and,
    /// for version 2, `mask` (`[n, offset_groups·taps, ho, wo]`). Dai et al. 2017, Zhu et al. 2018.
    DeformConv {
        /// Kernel weights.
        weight: ParamId,
        /// One value per output channel.
        bias: Option<ParamId>,
        /// Kernel, stride, padding, dilation.
        window: Window,
        /// Independent channel groups.
        groups: usize,
        /// Channel groups that share one set of offsets.
        offset_groups: usize,
    },
    /// `y = W·x + b` on a vector. Input `x`; weight `[out, in]`.
    Linear {
        /// Matrix.
        weight: ParamId,
        /// One value per output.
        bias: Option<ParamId>,
    },
    /// `y = (x − mean) / √(var + eps) · scale + shift` per channel. Ioffe & Szegedy 2015.
    BatchNorm {
        /// γ.
        scale: Option<ParamId>,
        /// β.
        shift: Option<ParamId>,
        /// Running mean.
        mean: ParamId,
        /// Running variance.
        var: ParamId,
        /// Added to the variance.
        eps: f32,
        /// Share of the batch statistic in the running one, PyTorch's convention.
        momentum: f32,
    },
    /// `y = x / (k + alpha/size · Σ x²)^beta`, the sum over `size` neighbouring channels. Krizhevsky 2012, §3.3.
    LocalResponseNorm {
        /// Channels in the sum.
        size: usize,
        /// α.
        alpha: f32,
        /// β.
        beta: f32,
        /// k.
        k: f32,
    },
    /// Maximum over a window; padding counts as −∞.
    MaxPool {
        /// Window.
        window: Window,
    },
    /// Mean over a window.
    AvgPool {
        /// Window.
        window: Window,
        /// Whether padding counts in the divisor.
        count_include_pad: bool,
    },
    /// Mean over `output` windows that cover the map: rows `⌊i·h/oh⌋ .. ⌈(i+1)·h/oh⌉`. `[1, 1]` is global pooling.
    AdaptiveAvgPool {
        /// Output rows and columns.
        output: [usize; 2],
    },
    /// Element-wise function.
    Activation(Activation),
    /// Softmax over channels.
    Softmax,
    /// Sum of two maps of one shape.
    Add,
    /// Product of `x` and a gate of the same shape or of one value per image and channel.
    Mul,
    /// Channels of all inputs, one after the other.
    Concat,
    /// Zero channels before and after (shortcut A of He et al. 2015).
    ChannelPad {
        /// Zero channels in front.
        before: usize,
        /// Zero channels behind.
        after: usize,
    },
    /// Channels `start .. start + len`.
    ChannelSlice {
        /// First channel.
        start: usize,
        /// Number of channels.
        len: usize,
    },
    /// `[n, c, h, w]` to `[n, c·h·w]`.
    Flatten,
    /// Zeroes elements with probability `p` in training; the identity in evaluation.
    Dropout {
        /// Probability of being zeroed.
        p: f32,
    },
    /// Drops the whole branch of an image with probability `p` in training; the identity in evaluation. Huang et al. 2016.
    StochasticDepth {
        /// Probability of being dropped.
        p: f32,
    },
}

/// What a drawing knows of a map's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Follows the image.
    Free,
    /// The same whatever the image (after adaptive pooling): `[h, w]`.
    Fixed([usize; 2]),
    /// Not a map but a vector `[n, c]`.
    Vector,
}

/// Channels and size of a drawn node; batch and, usually, height and width stay open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Channels.
    pub channels: usize,
    /// Size.
    pub size: Size,
}

impl Op {
    /// Lower-case name for listings.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Conv { .. } => "conv",
            Op::DeformConv { .. } => "deform_conv",
            Op::Linear { .. } => "linear",
            Op::BatchNorm { .. } => "batch_norm",
            Op::LocalResponseNorm { .. } => "local_response_norm",
            Op::MaxPool { .. } => "max_pool",
            Op::AvgPool { .. } => "avg_pool",
            Op::AdaptiveAvgPool { .. } => "adaptive_avg_pool",
            Op::Activation(a) => a.name(),
            Op::Softmax => "softmax",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Concat => "concat",
            Op::ChannelPad { .. } => "channel_pad",
            Op::ChannelSlice { .. } => "channel_slice",
            Op::Flatten => "flatten",
            Op::Dropout { .. } => "dropout",
            Op::StochasticDepth { .. } => "stochastic_depth",
        }
    }

    /// The parameters the operation reads, in the order of its definition.
    pub fn params(&self) -> Vec<ParamId> {
        match *self {
            Op::Conv { weight, bias, .. } | Op::DeformConv { weight, bias, .. } | Op::Linear { weight, bias } => {
                std::iter::once(weight).chain(bias).collect()
            }
            Op::BatchNorm { scale, shift, mean, var, .. } => {
                scale.into_iter().chain(shift).chain([mean, var]).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the drawing may know of the output, given its inputs and `out`, the output channels of a weighted layer.
    pub(super) fn draw(&self, at: &str, inputs: &[Drawn], out: Option<usize>) -> Result<Drawn> {
        let Some(&x) = inputs.first() else {
            let Op::Input { channels } = *self else { return Err(Error::invalid(at, "an operation needs an input")) };
            return Ok(Drawn { channels, size: Size::Free });
        };
        let channels = out.unwrap_or(x.channels);
        let map = || match x.size {
            Size::Vector => Err(Error::invalid(at, format!("{} needs a map, found a vector", self.name()))),
            _ => Ok(()),
        };
        let slid = |window: &Window| -> Result<Drawn> {
            map()?;
            let Size::Fixed(size) = x.size else { return Ok(Drawn { channels, size: Size::Free }) };
            Ok(Drawn { channels, size: Size::Fixed(window.place(size, at)?.output) })
        };
        match self {
            Op::Input { .. } => Err(Error::invalid(at, "the input takes no inputs")),
            Op::Conv { window, .. } | Op::DeformConv { window, .. } => slid(window),
            Op::MaxPool { window } | Op::AvgPool { window, .. } => slid(window),
            Op::Linear { .. } if x.size != Size::Vector => {
                Err(Error::invalid(at, "a linear layer needs a vector: flatten the map first"))
            }
            Op::Linear { .. } => Ok(Drawn { channels, size: Size::Vector }),
            Op::AdaptiveAvgPool { output } => {
                map()?;
                if output.contains(&0) {
                    return Err(Error::invalid(at, format!("adaptive pooling to {}×{}", output[0], output[1])));
                }
                Ok(Drawn { channels, size: Size::Fixed(*output) })
            }
            Op::LocalResponseNorm { size: 0, .. } => Err(Error::invalid(at, "local response norm over 0 channels")),
            Op::BatchNorm { .. }
            | Op::LocalResponseNorm { .. }
            | Op::Activation(_)
            | Op::Softmax
            | Op::Dropout { .. }
            | Op::StochasticDepth { .. } => Ok(x),
            Op::Add => same(at, "add", inputs),
            Op::Mul => {
                let gate = inputs[1];
                if gate.channels != x.channels {
                    return Err(Error::mismatch(at, "channels of the gate", x.channels, gate.channels));
                }
                Ok(x)
            }
            Op::Concat => {
                let channels = inputs.iter().map(|d| d.channels).sum();
                let fixed = inputs.iter().find(|d| matches!(d.size, Size::Fixed(_)));
                if let Some(odd) = inputs.iter().find(|d| (d.size == Size::Vector) != (x.size == Size::Vector)) {
                    return Err(Error::mismatch(
                        at,
                        "sizes to concatenate",
                        format!("{:?}", x.size),
                        format!("{:?}", odd.size),
                    ));
                }
                Ok(Drawn { channels, size: fixed.unwrap_or(&x).size })
            }
            Op::ChannelPad { before, after } => Ok(Drawn { channels: x.channels + before + after, ..x }),
            Op::ChannelSlice { start, len } => {
                if *len == 0 || start + len > x.channels {
                    let what = format!("channels {start}..{} of {}", start + len, x.channels);
                    return Err(Error::invalid(at, what));
                }
                Ok(Drawn { channels: *len, ..x })
            }
            Op::Flatten => match x.size {
                Size::Fixed(size) => {
                    let channels = checked_volume(&[x.channels, size[0], size[1]], at)?;
                    Ok(Drawn { channels, size: Size::Vector })
                }
                Size::Vector => Ok(x),
                Size::Free => Err(Error::invalid(
                    at,
                    "flatten needs a map of fixed size, found one that follows the image: pool it adaptively first",
                )),
            },
        }
    }

    /// The concrete output `[n, c, h, w]` (a vector has `h = w = 1`), given concrete inputs and the drawn channels.
    pub(super) fn infer(&self, at: &str, inputs: &[[usize; 4]], channels: usize) -> Result<[usize; 4]> {
        let Some(&[n, c, h, w]) = inputs.first() else { return Err(Error::invalid(at, "the input has no shape")) };
        let with = |[h, w]: [usize; 2]| [n, channels, h, w];
        match self {
            Op::Conv { window, .. } | Op::MaxPool { window } | Op::AvgPool { window, .. } => {
                Ok(with(window.place([h, w], at)?.output))
            }
            Op::DeformConv { window, offset_groups, .. } => {
                let [ho, wo] = window.place([h, w], at)?.output;
                for (input, per_tap) in inputs[1..].iter().zip([2, 1]) {
                    let wanted = [n, per_tap * offset_groups * window.taps(), ho, wo];
                    if *input != wanted {
                        let what = if per_tap == 2 { "offsets" } else { "mask" };
                        return Err(Error::mismatch(at, what, format!("{wanted:?}"), format!("{input:?}")));
                    }
                }
                Ok([n, channels, ho, wo])
            }
            Op::AdaptiveAvgPool { output } => Ok(with(*output)),
            Op::Linear { .. } => Ok(with([1, 1])),
            Op::Flatten => Ok(with([1, 1])),
            Op::Add => {
                if let Some(odd) = inputs.iter().find(|s| **s != inputs[0]) {
                    return Err(Error::mismatch(at, "shapes to add", format!("{:?}", inputs[0]), format!("{odd:?}")));
                }
                Ok(inputs[0])
            }
            Op::Mul => {
                let gate = inputs[1];
                if gate != inputs[0] && gate != [n, c, 1, 1] {
                    return Err(Error::mismatch(
                        at,
                        "shape of the gate",
                        format!("{:?}", [n, c, 1, 1]),
                        format!("{gate:?}"),
                    ));
                }
                Ok(inputs[0])
            }
            Op::Concat => {
                if let Some(odd) = inputs.iter().find(|s| s[2..] != [h, w]) {
                    let show = |s: &[usize]| format!("{}×{}", s[2], s[3]);
                    return Err(Error::mismatch(at, "sizes to concatenate", show(&inputs[0]), show(odd)));
                }
                Ok(with([h, w]))
            }
            _ => Ok(with([h, w])),
        }
    }
}

fn same(at: &str, what: &'static str, inputs: &[Drawn]) -> Result<Drawn> {
    let x = inputs[0];
    for y in &inputs[1..] {
        if y.channels != x.channels {
            return Err(Error::mismatch(at, "channels to add", x.channels, y.channels));
        }
        if let (Size::Fixed(a), Size::Fixed(b)) = (x.size, y.size)
            && a != b
        {
            return Err(Error::mismatch(at, "sizes to add", format!("{a:?}"), format!("{b:?}")));
        }
        if (x.size == Size::Vector) != (y.size == Size::Vector) {
            return Err(Error::invalid(at, format!("{what} of a map and a vector")));
        }
    }
    Ok(x)
}
