//! Looking at networks: what they cost, how they compare.

#[cfg(feature = "plot")]
pub mod scatter;
