//! Looking at networks: what each layer costs, how it hangs together, how networks compare.
//!
//! Everything here reads a [`Graph`](crate::graph::Graph) and computes no pixel.

mod dot;
#[cfg(feature = "plot")]
pub mod scatter;
mod summary;

pub use dot::{dot, dot_with_shapes};
pub use summary::{Row, Summary};
