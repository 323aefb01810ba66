//! convzoo
pub mod activation;
pub mod error;
pub mod graph;
pub mod inspect;
pub mod kernels;
pub mod layers;
pub mod models;
pub mod shape;
pub mod simd;
pub mod tensor;
#[cfg(feature = "vision")]
pub mod vision;
pub mod weights;

pub use activation::Activation;
pub use error::{Error, LoadReport, Result};
pub use ndarray;
pub use tensor::Tensor;
