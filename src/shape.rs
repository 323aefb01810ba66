//! Window arithmetic: kernel, stride, padding, dilation and the ceil rule, written once for every layer that slides.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a window meets the border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Padding {
    /// The same number of rows above and below, and of columns left and right: `[rows, columns]`.
    Symmetric([usize; 2]),
    /// TensorFlow's `SAME`: output = ceil(input / stride); the odd pixel goes below and to the right.
    Same,
}

/// A sliding window, `[vertical, horizontal]` in every field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Extent of the kernel in taps.
    pub kernel: [usize; 2],
    /// Step between output pixels.
    pub stride: [usize; 2],
    /// Border rule.
    pub padding: Padding,
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Round the output size up instead of down (pooling only). A window that would start in the padding beyond the
    /// input is dropped, as in PyTorch.
    pub ceil: bool,
}

impl Window {
    /// A square window with stride 1, no padding, no dilation.
    pub const fn square(kernel: usize) -> Self {
        Window {
            kernel: [kernel; 2],
            stride: [1; 2],
            padding: Padding::Symmetric([0; 2]),
            dilation: [1; 2],
            ceil: false,
        }
    }

    /// Number of taps.
    pub const fn taps(&self) -> usize {
        self.kernel[0].saturating_mul(self.kernel[1])
    }

    /// True for 1×1, stride 1, no padding: a plain matrix product over pixels.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == [1, 1]
            && matches!(self.padding, Padding::Symmetric([0, 0]) | Padding::Same)
    }

    /// Checks the settings that no input can make valid. `at` is the layer path.
    pub fn validate(&self, at: &str) -> Result<()> {
        for (what, pair) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if pair.contains(&0) {
                return Err(Error::invalid(at, format!("{what} must be at least 1, found {}×{}", pair[0], pair[1])));
            }
        }
        const MOST: usize = 1 << 20;
        let p = if let Padding::Symmetric(p) = self.padding { p } else { [0; 2] };
        for value in self.kernel.into_iter().chain(self.stride).chain(self.dilation).chain(p) {
            if value > MOST {
                return Err(Error::invalid(at, format!("window setting {value} is over {MOST}")));
            }
        }
        // Both fit wherever an address has 64 bits.
        checked_volume(&self.kernel, at)?;
        (0..2).try_for_each(|axis| checked_volume(&[self.kernel[axis], self.dilation[axis]], at).map(drop))
    }

    /// As [`validate`](Self::validate) for a pooling window, of which at most half may lie in the padding, so that none is
    /// empty: PyTorch's rule.
    pub fn validate_pooling(&self, at: &str) -> Result<()> {
        self.validate(at)?;
        let Padding::Symmetric(padding) = self.padding else { return Ok(()) };
        for (axis, found) in padding.into_iter().enumerate() {
            let span = self.span(axis);
            if found > span / 2 {
                return Err(Error::invalid(at, format!("padding = {found} is over half of a window spanning {span}")));
            }
        }
        Ok(())
    }

    /// Rows or columns the dilated kernel spans.
    pub const fn span(&self, axis: usize) -> usize {
        self.kernel[axis].saturating_sub(1).saturating_mul(self.dilation[axis]).saturating_add(1)
    }

    /// Places the window on an input of `size = [height, width]`.
    ///
    /// `output = floor((input + 2·padding − span) / stride) + 1`, or the ceil of it. Fails if nothing fits, and where
    /// [`validate`](Self::validate) does.
    pub fn place(&self, size: [usize; 2], at: &str) -> Result<Placed> {
        self.validate(at)?;
        size.iter().try_for_each(|&side| checked_volume(&[side], at).map(drop))?;
        let mut placed = Placed { input: size, output: [0; 2], before: [0; 2] };
        for axis in 0..2 {
            let (input, span, stride) = (size[axis], self.span(axis), self.stride[axis]);
            let (before, total) = match self.padding {
                Padding::Symmetric(p) => (p[axis], 2 * p[axis]),
                Padding::Same => {
                    let output = input.div_ceil(stride);
                    let total = ((output.max(1) - 1) * stride + span).saturating_sub(input);
                    (total / 2, total)
                }
            };
            let padded = input + total;
            if input == 0 || padded < span {
                let side = ["height", "width"][axis];
                return Err(Error::mismatch(
                    at,
                    if axis == 0 { "input height" } else { "input width" },
                    format!(
                        "at least {} ({side} for a window spanning {span} with padding {total})",
                        span.saturating_sub(total).max(1)
                    ),
                    input,
                ));
            }
            let room = padded - span;
            let mut output = if self.ceil { room.div_ceil(stride) } else { room / stride } + 1;
            if self.ceil && (output - 1) * stride >= input + before {
                output -= 1; // the last window must start inside the input or the padding before it
            }
            placed.output[axis] = output;
            placed.before[axis] = before;
        }
        Ok(placed)
    }
}

/// A window placed on an input of known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Input height and width.
    pub input: [usize; 2],
    /// Output height and width.
    pub output: [usize; 2],
    /// Padding rows above and columns to the left.
    pub before: [usize; 2],
}

/// Multiplies extents with overflow checked; `at` names the place in the error.
pub fn checked_volume(dims: &[usize], at: &str) -> Result<usize> {
    dims.iter()
        .try_fold(1usize, |volume, &d| volume.checked_mul(d))
        .filter(|&v| v <= isize::MAX as usize / 8)
        .ok_or_else(|| too_large(dims, at))
}

/// Fails for a map of more elements than processors address as floats: so few that planning can count bytes, whole cache
/// lines per pixel and all maps of a network together without an overflow.
pub fn check_map(dims: &[usize], at: &str) -> Result<()> {
    match checked_volume(dims, at)? as u64 >> 46 {
        0 => Ok(()),
        _ => Err(too_large(dims, at)),
    }
}

fn too_large(dims: &[usize], at: &str) -> Error {
    Error::invalid(at, format!("{dims:?} has more elements than memory can address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceil_windows_do_not_start_in_the_padding() {
        // PyTorch: MaxPool2d(2, 2, padding=1, ceil_mode=True) on 3 gives 2, not 3.
        let window = Window { stride: [2; 2], padding: Padding::Symmetric([1; 2]), ceil: true, ..Window::square(2) };
        assert_eq!(window.place([3, 3], "pool").unwrap().output, [2, 2]);
        // GoogLeNet's 3×3/2 pool: 112 -> 56 with ceil, 55 without.
        let pool = Window { stride: [2; 2], ceil: true, ..Window::square(3) };
        assert_eq!(pool.place([112, 112], "pool").unwrap().output, [56, 56]);
    }

    #[test]
    fn same_padding_puts_the_odd_pixel_after() {
        let window = Window { stride: [2; 2], padding: Padding::Same, ..Window::square(3) };
        let placed = window.place([224, 225], "stem").unwrap();
        assert_eq!((placed.output, placed.before), ([112, 113], [0, 1]));
    }

    #[test]
    fn too_small_an_input_names_both_numbers() {
        let error = Window::square(7).place([5, 9], "features.0").unwrap_err().to_string();
        assert!(error.contains("features.0") && error.contains("at least 7") && error.contains("found 5"), "{error}");
    }

    #[test]
    fn windows_and_sizes_of_any_numbers_are_placed_or_refused_without_wrapping() {
        let most = usize::MAX;
        assert_eq!((Window::square(0).span(0), Window::square(most).taps()), (1, most));
        assert_eq!(Window { dilation: [most; 2], ..Window::square(3) }.span(1), most);
        let odd = [
            Window::square(0),
            Window { stride: [0, 1], ..Window::square(1) },
            Window { dilation: [most, 1], ..Window::square(3) },
            Window { padding: Padding::Symmetric([most / 2 + 1, 0]), ..Window::square(1) },
        ];
        for window in odd {
            assert!(window.place([8, 8], "w").unwrap_err().to_string().starts_with("w: "), "{window:?}");
        }
        let padded = Window { padding: Padding::Symmetric([1; 2]), ..Window::square(3) };
        for window in [padded, Window { padding: Padding::Same, ..padded }] {
            let error = window.place([8, most], "w").unwrap_err().to_string();
            assert!(error.contains(&most.to_string()), "{error}");
        }
    }
}
