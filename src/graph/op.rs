//! The closed list of operations, and the shape each one yields.
//!
//! Adding a variant is a compile error in the shape rule here, in the reference executor and in the planner until each
//! of them handles it.

use super::params::{ParamDef, ParamId};
use crate::activation::Activation;
use crate::error::{Error, Result};
use crate::shape::{Window, check_map, checked_volume};

/// Channels a local response norm may sum over.
const MOST_NEIGHBOURS: usize = 1 << 20;

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

    /// What the drawing may know of the output, given its inputs and the parameters drawn so far.
    pub(super) fn draw(&self, at: &str, inputs: &[Drawn], params: &[ParamDef]) -> Result<Drawn> {
        let Some(&x) = inputs.first() else { return Err(Error::invalid(at, "an operation needs an input")) };
        let wanted = match self {
            Op::Input { .. } => return Err(Error::invalid(at, "the input takes no inputs")),
            Op::Concat => 1..=usize::MAX,
            Op::DeformConv { .. } => 2..=3,
            Op::Add | Op::Mul => 2..=2,
            _ => 1..=1,
        };
        if !wanted.contains(&inputs.len()) {
            let expected = format!("{} to {}", wanted.start(), wanted.end());
            return Err(Error::mismatch(at, "inputs", expected, inputs.len()));
        }
        let channels = self.check_params(at, x.channels, params)?;
        let drawn = self.drawn(at, inputs, channels)?;
        let [h, w] = if let Size::Fixed(size) = drawn.size { size } else { [1, 1] };
        check_map(&[drawn.channels, h, w], at)?;
        Ok(drawn)
    }

    /// The output channels of a layer with weights, otherwise those of its input; fails unless the parameters fit it.
    fn check_params(&self, at: &str, channels: usize, params: &[ParamDef]) -> Result<usize> {
        let def =
            |id: ParamId| params.get(id.0).ok_or_else(|| Error::invalid(at, "a parameter of another drawing is read"));
        let fits = |id: ParamId, wanted: &[usize]| {
            let ParamDef { name, shape, .. } = def(id)?;
            if shape != wanted {
                return Err(Error::mismatch(name, "shape", format!("{wanted:?}"), format!("{shape:?}")));
            }
            Ok(())
        };
        let divides = |what: &str, groups: usize, channels: usize, side: &str| match groups {
            0 => Err(Error::invalid(at, format!("{what} = 0"))),
            _ if channels.is_multiple_of(groups) => Ok(()),
            _ => Err(Error::invalid(at, format!("{what} = {groups} does not divide {channels} {side} channels"))),
        };
        if let Op::DeformConv { offset_groups, .. } = *self {
            divides("offset groups", offset_groups, channels, "input")?;
        }
        match *self {
            Op::Conv { weight, bias, window, groups } | Op::DeformConv { weight, bias, window, groups, .. } => {
                let out = def(weight)?.shape.first().copied().unwrap_or(0);
                divides("groups", groups, channels, "input")?;
                divides("groups", groups, out, "output")?;
                let [rows, columns] = window.kernel;
                fits(weight, &[out, channels / groups, rows, columns])?;
                bias.map_or(Ok(out), |bias| fits(bias, &[out]).map(|()| out))
            }
            Op::Linear { weight, bias } => {
                let out = def(weight)?.shape.first().copied().unwrap_or(0);
                fits(weight, &[out, channels])?;
                bias.map_or(Ok(out), |bias| fits(bias, &[out]).map(|()| out))
            }
            Op::BatchNorm { .. } => {
                self.params().into_iter().try_for_each(|id| fits(id, &[channels])).map(|()| channels)
            }
            _ => Ok(channels),
        }
    }

    /// As [`draw`](Self::draw), with as many inputs as the operation has and `channels` where those follow from weights.
    fn drawn(&self, at: &str, inputs: &[Drawn], channels: usize) -> Result<Drawn> {
        let x = inputs[0];
        let map = || match x.size {
            Size::Vector => Err(Error::invalid(at, format!("{} needs a map, found a vector", self.name()))),
            _ => Ok(()),
        };
        let slid = |window: &Window| -> Result<Drawn> {
            map()?;
            window.validate(at)?;
            let Size::Fixed(size) = x.size else { return Ok(Drawn { channels, size: Size::Free }) };
            Ok(Drawn { channels, size: Size::Fixed(window.place(size, at)?.output) })
        };
        match self {
            Op::Input { channels } => Ok(Drawn { channels: *channels, size: Size::Free }),
            Op::Conv { window, .. } | Op::DeformConv { window, .. } => slid(window),
            Op::MaxPool { window } | Op::AvgPool { window, .. } => {
                window.validate_pooling(at)?;
                slid(window)
            }
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
            Op::LocalResponseNorm { size, .. } if !(1..=MOST_NEIGHBOURS).contains(size) => {
                let problem = format!("local response norm over {size} channels, not 1 to {MOST_NEIGHBOURS}");
                Err(Error::invalid(at, problem))
            }
            Op::BatchNorm { .. }
            | Op::LocalResponseNorm { .. }
            | Op::Activation(_)
            | Op::Softmax
            | Op::Dropout { .. }
            | Op::StochasticDepth { .. } => Ok(x),
            Op::Add => same(at, "add", inputs),
            Op::Mul if inputs[1].channels != x.channels => {
                Err(Error::mismatch(at, "channels of the gate", x.channels, inputs[1].channels))
            }
            Op::Mul => Ok(x),
            Op::Concat => joined(at, inputs),
            Op::ChannelPad { before, after } => {
                let padded = before.checked_add(*after).and_then(|more| x.channels.checked_add(more));
                let problem = || format!("{before} channels before and {after} after {} are too many", x.channels);
                Ok(Drawn { channels: padded.ok_or_else(|| Error::invalid(at, problem()))?, ..x })
            }
            Op::ChannelSlice { start, len } => {
                let end = start.checked_add(*len).filter(|end| *len > 0 && *end <= x.channels);
                let problem = || format!("{len} channels from {start} on, of {}", x.channels);
                end.ok_or_else(|| Error::invalid(at, problem()))?;
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
                    let wanted = [n, checked_volume(&[per_tap, *offset_groups, window.taps()], at)?, ho, wo];
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

fn joined(at: &str, inputs: &[Drawn]) -> Result<Drawn> {
    let x = inputs[0];
    if let Some(odd) = inputs.iter().find(|d| (d.size == Size::Vector) != (x.size == Size::Vector)) {
        return Err(Error::mismatch(at, "sizes to concatenate", format!("{:?}", x.size), format!("{:?}", odd.size)));
    }
    let channels = inputs.iter().try_fold(0usize, |sum, d| sum.checked_add(d.channels));
    let too_many = || Error::invalid(at, format!("the channels of {} maps are too many to count", inputs.len()));
    let fixed = inputs.iter().find(|d| matches!(d.size, Size::Fixed(_)));
    Ok(Drawn { channels: channels.ok_or_else(too_many)?, size: fixed.unwrap_or(&x).size })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, Node, ParamKind, concat, layer_fn};
    use crate::shape::Padding;
    use crate::tensor::Init;

    fn error(draw: impl for<'g> Fn(Node<'g>) -> Node<'g>) -> String {
        Graph::draw(8, &layer_fn(|x: Node<'_>| x.layer("here", layer_fn(&draw)))).unwrap_err().to_string()
    }

    #[test]
    fn channels_that_wrap_around_are_refused_and_read_nothing() {
        const MOST: usize = usize::MAX;
        for (start, len) in [(MOST, 2), (MOST - 3, 8), (2, MOST), (7, 2), (0, 0)] {
            let found = error(|x| x.channel_slice(start, len));
            assert_eq!(found, format!("here: {len} channels from {start} on, of 8"));
        }
        for (before, after) in [(MOST - 50, 52), (MOST, MOST), (MOST - 8, 1), (MOST / 2, 0)] {
            let found = error(|x| x.apply(Op::ChannelPad { before, after }, &[x]));
            assert!(found.starts_with("here: "), "{found}");
        }
        fn half(x: Node<'_>) -> Node<'_> {
            x.apply(Op::ChannelPad { before: 1 << 45, after: 0 }, &[x])
        }
        assert!(error(|x| concat(vec![half(x); 1 << 19])).contains("too many to count"));
        assert!(error(|x| concat([half(x), half(x)])).contains("more elements than memory can address"));
        assert!(Graph::draw(MOST, &layer_fn(|x: Node<'_>| x.relu())).is_err());
        for size in [0, MOST, MOST - 6] {
            let norm = Op::LocalResponseNorm { size, alpha: 1.0, beta: 1.0, k: 1.0 };
            assert!(error(|x| x.apply(norm.clone(), &[x])).contains("not 1 to 1048576"));
        }
    }

    #[test]
    fn sizes_that_wrap_around_are_refused() {
        let pooled = |side: usize| error(move |x| x.apply(Op::AdaptiveAvgPool { output: [side; 2] }, &[x]));
        for side in [usize::MAX, 1 << 32, 1 << 31] {
            assert!(pooled(side).contains("more elements than memory can address"), "{side}");
        }
    }

    #[test]
    fn windows_of_layers_of_ones_own_are_checked_too() {
        let good = Window::square(3);
        let bad = [
            Window::square(0),
            Window { stride: [1, 0], ..good },
            Window { dilation: [usize::MAX, 1], ..good },
            Window { padding: Padding::Symmetric([usize::MAX, 0]), ..good },
            Window { padding: Padding::Symmetric([2, 2]), ..good },
        ];
        for window in bad {
            for op in [Op::MaxPool { window }, Op::AvgPool { window, count_include_pad: false }] {
                let found = error(|x| x.apply(op.clone(), &[x]));
                assert!(found.starts_with("here: "), "{found}");
            }
        }
    }

    #[test]
    fn parameters_and_inputs_that_do_not_fit_their_operation_are_refused() {
        let param = |x: Node<'_>, shape: &[usize]| x.param("w", shape, ParamKind::Weight, Init::Constant(0.0));
        for (shape, groups) in [(&[4, 8, 3, 3][..], 1), (&[4, 8, 1, 1], 2), (&[4], 1), (&[], 1), (&[4, 8, 1, 1], 0)] {
            let conv = |weight| Op::Conv { weight, bias: None, window: Window::square(1), groups };
            let found = error(|x| x.apply(conv(param(x, shape)), &[x]));
            assert!(found.contains("here") && (found.contains("shape") || found.contains("groups")), "{found}");
        }
        let found = error(|x| {
            let w = param(x, &[7]);
            x.apply(Op::BatchNorm { scale: None, shift: None, mean: w, var: w, eps: 1.0, momentum: 0.0 }, &[x])
        });
        assert_eq!(found, "here.w: shape: expected [8], found [7]");
        let foreign = ParamId(9);
        let found = error(|x| x.global_avg_pool().flatten().apply(Op::Linear { weight: foreign, bias: None }, &[x]));
        assert!(found.contains("another drawing"), "{found}");
        for op in [Op::Add, Op::Mul, Op::Input { channels: 3 }] {
            assert!(error(|x| x.apply(op.clone(), &[x])).contains("input"));
        }
        assert!(error(|x| x.apply(Op::Flatten, &[x, x])).contains("inputs: expected 1 to 1, found 2"));
        assert!(error(|x| x.apply(Op::Concat, &[])).contains("needs an input"));
    }
}
