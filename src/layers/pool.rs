//! Pooling.

use crate::graph::{Layer, Node, Op};
use crate::shape::{Padding, Window};

/// Maximum over a sliding window; padding counts as −∞.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, c, ho, wo]` with `ho = ⌊(h + 2p − k) / s⌋ + 1`, rounded up under [`MaxPool::ceil`].
///
/// # Defaults
/// Stride equal to the kernel, no padding, dilation 1, rounding down: PyTorch's.
///
/// # Errors
/// A zero kernel, stride or dilation; padding over half the window.
///
/// ```
/// use convzoo::graph::Graph;
/// use convzoo::layers::MaxPool;
///
/// let shape = |pool| Graph::draw(1, &pool)?.shapes([1, 1, 112, 112], false).map(|s| s[1][2]);
/// assert_eq!((shape(MaxPool::k(3).stride(2))?, shape(MaxPool::k(3).stride(2).ceil())?), (55, 56));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool(Window);

impl MaxPool {
    /// `kernel`×`kernel`, not overlapping.
    pub const fn k(kernel: usize) -> Self {
        MaxPool(Window { stride: [kernel; 2], ..Window::square(kernel) })
    }

    /// Steps of `stride` between windows.
    pub const fn stride(self, stride: usize) -> Self {
        MaxPool(Window { stride: [stride; 2], ..self.0 })
    }

    /// So many rows and columns of −∞ on every side.
    pub const fn padding(self, padding: usize) -> Self {
        MaxPool(Window { padding: Padding::Symmetric([padding; 2]), ..self.0 })
    }

    /// Taps `dilation` pixels apart.
    pub const fn dilation(self, dilation: usize) -> Self {
        MaxPool(Window { dilation: [dilation; 2], ..self.0 })
    }

    /// Rounds the output size up: a last window may reach beyond the input (PyTorch's `ceil_mode`, Caffe's habit).
    pub const fn ceil(self) -> Self {
        MaxPool(Window { ceil: true, ..self.0 })
    }
}

impl Layer for MaxPool {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.apply(Op::MaxPool { window: self.0 }, &[x])
    }
}

/// Mean over a sliding window.
///
/// # Shapes
/// As [`MaxPool`].
///
/// # Defaults
/// Stride equal to the kernel, no padding, rounding down; padding counts in the divisor, as in PyTorch.
///
/// # Errors
/// As [`MaxPool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvgPool {
    window: Window,
    count_include_pad: bool,
}

impl AvgPool {
    /// `kernel`×`kernel`, not overlapping.
    pub const fn k(kernel: usize) -> Self {
        AvgPool { window: MaxPool::k(kernel).0, count_include_pad: true }
    }

    /// Steps of `stride` between windows.
    pub const fn stride(self, stride: usize) -> Self {
        AvgPool { window: MaxPool(self.window).stride(stride).0, ..self }
    }

    /// So many zero rows and columns on every side.
    pub const fn padding(self, padding: usize) -> Self {
        AvgPool { window: MaxPool(self.window).padding(padding).0, ..self }
    }

    /// Rounds the output size up. What lies beyond the padding never counts in the divisor.
    pub const fn ceil(self) -> Self {
        AvgPool { window: MaxPool(self.window).ceil().0, ..self }
    }

    /// Divides by the number of pixels inside the image only.
    pub const fn exclude_padding(self) -> Self {
        AvgPool { count_include_pad: false, ..self }
    }
}

impl Layer for AvgPool {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        let AvgPool { window, count_include_pad } = *self;
        x.apply(Op::AvgPool { window, count_include_pad }, &[x])
    }
}

/// Mean over a fixed number of windows that cover the map: row `i` of `oh` takes rows `⌊i·h/oh⌋ .. ⌈(i+1)·h/oh⌉`.
///
/// # Shapes
/// `[n, c, h, w]` → `[n, c, oh, ow]` for any `h` and `w`.
///
/// # Errors
/// A zero output size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveAvgPool {
    output: [usize; 2],
}

impl AdaptiveAvgPool {
    /// To `size`×`size`.
    pub const fn to(size: usize) -> Self {
        AdaptiveAvgPool { output: [size; 2] }
    }

    /// To `[rows, columns]`.
    pub const fn rect(output: [usize; 2]) -> Self {
        AdaptiveAvgPool { output }
    }
}

impl Layer for AdaptiveAvgPool {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.apply(Op::AdaptiveAvgPool { output: self.output }, &[x])
    }
}

/// Mean over the whole map: `[n, c, h, w]` → `[n, c, 1, 1]`. Lin et al. 2013 (arXiv 1312.4400).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalAvgPool;

impl Layer for GlobalAvgPool {
    fn build<'g>(&self, x: Node<'g>) -> Node<'g> {
        x.global_avg_pool()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;

    #[test]
    fn windows_that_could_lie_in_the_padding_are_refused() {
        let error = Graph::draw(1, &(MaxPool::k(3).padding(2),)).unwrap_err().to_string();
        assert_eq!(error, "0: padding = 2 is over half of a window spanning 3");
        assert!(Graph::draw(1, &AvgPool::k(2).padding(1)).is_ok());
        assert!(Graph::draw(1, &MaxPool::k(3).dilation(2).padding(2)).is_ok());
        for bad in [MaxPool::k(0), MaxPool::k(2).stride(0), MaxPool::k(2).dilation(0)] {
            assert!(Graph::draw(1, &bad).is_err());
        }
        assert!(Graph::draw(1, &AdaptiveAvgPool::to(0)).is_err());
    }
}
