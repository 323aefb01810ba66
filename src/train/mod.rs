//! Learning: losses, optimisers, schedules, and a loop that a person can read and replace.
//!
//! A loss gives a value and its gradient with respect to an output ([`CrossEntropy`] and others, or one's own), a
//! backward pass turns that into gradients of the weights, and [`Optimizer::step`] moves them at the rate of a
//! [`Schedule`].

mod batch;
mod gradients;
mod groups;
#[cfg(feature = "safetensors")]
mod log;
mod loss;
mod optim;
mod schedule;

pub use batch::{Batch, Source, Targets};
pub use gradients::{Clip, GradientSum};
pub use groups::Groups;
#[cfg(feature = "safetensors")]
pub use log::{Log, read_log};
pub use loss::{BinaryCrossEntropy, CrossEntropy, Loss, LossValue};
pub use optim::{AdamW, At, Optimizer, RmsPropTf, Rule, Sgd, Slot};
pub use schedule::{Decay, Schedule};
