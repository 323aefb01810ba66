//! Looking at networks: what each layer costs, how it hangs together, how networks compare, how they learned and what
//! they look at.
//!
//! All but [`grad_cam`], which runs the network, read a [`Graph`](crate::graph::Graph) and compute nothing.

#[cfg(feature = "plot")]
mod chart;
#[cfg(feature = "plot")]
pub mod curves;
mod dot;
mod grad_cam;
#[cfg(feature = "plot")]
pub mod scatter;
mod summary;

pub use dot::{dot, dot_with_shapes};
pub use grad_cam::{GradCam, grad_cam};
pub use summary::{Row, Summary};
