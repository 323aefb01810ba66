//! convzoo
pub mod error;
pub mod activation;
pub mod shape;
pub mod tensor;
pub mod kernels;

pub use activation::Activation;
pub use error::{Error, LoadReport, Result};
pub use ndarray;
pub use tensor::Tensor;
