//! convzoo
pub mod error;
pub mod shape;
pub mod tensor;

pub use error::{Error, LoadReport, Result};
pub use ndarray;
pub use tensor::Tensor;
