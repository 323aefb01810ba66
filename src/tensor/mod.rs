//! `Tensor`: owned, contiguous, 64-byte aligned `f32`, logical NCHW (or any other rank).
//!
//! It stays small because it is not general: arithmetic belongs to `ndarray`, which is re-exported at the crate's root
//! and reached by zero-copy views ([`Tensor::view`], [`Tensor::view_mut`]) and by `From` in both directions.

mod init;
mod storage;

pub use init::Init;
pub use storage::AlignedBuf;
#[cfg(feature = "safetensors")]
pub(crate) use storage::bytes_mut;

use crate::error::{Error, Result};
use crate::shape::checked_volume;
use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, IxDyn};

/// An owned `f32` tensor in row-major order.
///
/// ```
/// use convzoo::Tensor;
/// let mut t = Tensor::zeros(&[1, 3, 2, 2]);
/// t.view_mut()[[0, 2, 1, 0]] = 5.0;
/// assert_eq!(t.as_slice()[10], 5.0);
/// ```
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    data: AlignedBuf,
}

impl Tensor {
    /// Zeros of the given shape.
    ///
    /// # Panics
    /// If the elements are more than memory can address. It aborts like `Vec` where memory runs out; [`Tensor::try_zeros`]
    /// does neither.
    pub fn zeros(shape: &[usize]) -> Self {
        let len = checked_volume(shape, "tensor").unwrap_or_else(|error| panic!("{error}"));
        Tensor { shape: shape.to_vec(), data: AlignedBuf::zeros(len) }
    }

    /// Zeros of the given shape, or an error if the elements cannot be counted or the memory is not to be had.
    pub fn try_zeros(shape: &[usize]) -> Result<Self> {
        let len = checked_volume(shape, "tensor")?;
        let data = AlignedBuf::try_zeros(len)
            .ok_or_else(|| Error::invalid("tensor", format!("no memory for {len} elements of {shape:?}")))?;
        Ok(Tensor { shape: shape.to_vec(), data })
    }

    /// Copies `values`, which must be as many as `shape` says.
    pub fn from_slice(shape: &[usize], values: &[f32]) -> Result<Self> {
        let mut tensor = Tensor::try_zeros(shape)?;
        if tensor.len() != values.len() {
            return Err(Error::mismatch("tensor", "number of elements", tensor.len(), values.len()));
        }
        tensor.data.copy_from_slice(values);
        Ok(tensor)
    }

    /// Fills a new tensor by calling `f` with each linear index.
    ///
    /// # Panics
    /// As [`Tensor::zeros`].
    pub fn from_fn(shape: &[usize], f: impl FnMut(usize) -> f32) -> Self {
        let mut tensor = Tensor::zeros(shape);
        tensor.data.iter_mut().zip((0..).map(f)).for_each(|(slot, value)| *slot = value);
        tensor
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True if some extent is zero.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements in row-major order.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// The elements in row-major order, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The same elements under another shape.
    pub fn reshaped(mut self, shape: &[usize]) -> Result<Self> {
        let wanted = checked_volume(shape, "reshape")?;
        if wanted != self.len() {
            return Err(Error::mismatch("reshape", "number of elements", wanted, self.len()));
        }
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// A zero-copy view for `ndarray`.
    pub fn view(&self) -> ArrayViewD<'_, f32> {
        ArrayViewD::from_shape(IxDyn(&self.shape), &self.data).expect("shape and length agree by construction")
    }

    /// A zero-copy view for `ndarray`, to write to.
    pub fn view_mut(&mut self) -> ArrayViewMutD<'_, f32> {
        ArrayViewMutD::from_shape(IxDyn(&self.shape), &mut self.data).expect("shape and length agree by construction")
    }
}

impl<D: ndarray::Dimension> From<ndarray::ArrayView<'_, f32, D>> for Tensor {
    fn from(view: ndarray::ArrayView<'_, f32, D>) -> Self {
        let mut tensor = Tensor::zeros(view.shape());
        tensor.data.iter_mut().zip(view.iter()).for_each(|(slot, &value)| *slot = value);
        tensor
    }
}

impl<D: ndarray::Dimension> From<ndarray::Array<f32, D>> for Tensor {
    fn from(array: ndarray::Array<f32, D>) -> Self {
        array.view().into()
    }
}

impl From<&Tensor> for ArrayD<f32> {
    fn from(tensor: &Tensor) -> Self {
        tensor.view().to_owned()
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.as_slice() == other.as_slice()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head: Vec<f32> = self.data.iter().take(8).copied().collect();
        write!(f, "Tensor{:?} {head:?}{}", self.shape, if self.len() > 8 { "…" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndarray_round_trip_keeps_order_even_from_a_transposed_view() {
        let tensor = Tensor::from_fn(&[2, 3], |i| i as f32);
        let array: ArrayD<f32> = (&tensor).into();
        let transposed = Tensor::from(array.t());
        assert_eq!(transposed.shape(), [3, 2]);
        assert_eq!(transposed.as_slice(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn wrong_element_counts_are_errors_with_both_numbers() {
        let error = Tensor::from_slice(&[2, 2], &[1.0]).unwrap_err().to_string();
        assert!(error.contains("expected 4, found 1"), "{error}");
        assert!(Tensor::try_zeros(&[usize::MAX, 3]).is_err());
        assert!(Tensor::zeros(&[4]).reshaped(&[5]).is_err());
    }

    #[test]
    fn volumes_that_wrap_around_panic_and_make_no_short_tensor() {
        // Their products are 0 and 4 where nothing looks.
        for shape in [[1 << 32, 1 << 32], [usize::MAX / 2 + 3, 2]] {
            let refused = |make: fn(&[usize]) -> Tensor| {
                let payload = std::panic::catch_unwind(|| make(&shape)).unwrap_err();
                payload.downcast_ref::<String>().is_some_and(|text| text.contains("more elements than memory"))
            };
            assert!(refused(Tensor::zeros) && refused(|shape| Tensor::from_fn(shape, |_| 1.0)));
        }
    }
}
