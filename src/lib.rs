//! The classic convolutional networks in pure Rust: exact where PyTorch is the yardstick, fast on a CPU, and written so
//! that the architectures can be learned from the source.
//!
//! A model is drawn once, as a static graph; everything else reads the drawing: the naive [`exec::reference`] executor
//! that defines what is correct, the [`Plan`] that makes it fast for one input shape, the summary, the weight loader.
//!
//! # Modules in reading order
//!
//! [`graph`] (the drawing) → [`layers`] (the vocabulary) → [`models`] (the papers) → [`exec`] (how a drawing is run) →
//! [`weights`] and `vision` (the outside world) → [`kernels`] and [`simd`] (where the time goes).

pub mod activation;
mod atomic;
pub mod error;
pub mod exec;
pub mod graph;
pub mod inspect;
pub mod kernels;
pub mod layers;
mod model;
pub mod models;
pub mod par;
pub mod random;
pub mod shape;
pub mod simd;
pub mod tensor;
pub mod train;
#[cfg(feature = "vision")]
pub mod vision;
pub mod weights;

pub use activation::Activation;
pub use error::{Error, LoadReport, Result};
pub use exec::{Outputs, Plan, PlanOptions, Precision};
pub use model::Model;
pub use ndarray;
pub use tensor::Tensor;

/// The README's examples, compiled and run with the other tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
