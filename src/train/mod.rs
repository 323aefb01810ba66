//! Learning: losses, optimisers, schedules, and a loop that a person can read and replace.
//!
//! A step is three calls of [`TrainPlan`](crate::exec::TrainPlan) and two of this room: forward, the gradient of a loss
//! with respect to every output ([`CrossEntropy`] and others, or one's own), backward, and [`Optimizer::step`] with the
//! rate of a [`Schedule`]. [`Trainer`] joins them, [`fit`] is the loop around it.
//!
//! Nothing here keeps hidden state: what happens in a step depends on the seed, the step's number and the values a
//! [checkpoint](Trainer::save) holds, so that training resumed is training never stopped, bit for bit.
//!
//! It refuses to go on with numbers that are none: a loss, a running statistic or a gradient that is not finite ends
//! training with [`Error::Diverged`](crate::error::Error::Diverged), and so does a test loss. No running statistic is moved
//! by such a step, and no weight; only where weights are moved on the way back ([`Trainer::step`] without clipping), those
//! are whose gradients were complete before the one that is not finite.

mod batch;
#[cfg(feature = "safetensors")]
mod checkpoint;
mod ema;
mod evaluate;
#[cfg(feature = "safetensors")]
mod fit;
mod gradients;
mod groups;
#[cfg(feature = "safetensors")]
mod log;
mod loss;
mod metrics;
mod optim;
mod recipe;
mod rule;
mod schedule;
mod statistics;
mod trainer;

pub use batch::{Batch, Batches, Targets};
pub use ema::Ema;
pub use evaluate::evaluate;
#[cfg(feature = "safetensors")]
pub use fit::{Epoch, Fit, Observer, Silent, fit};
pub use gradients::{Clip, GradientSum};
pub use groups::Groups;
#[cfg(feature = "safetensors")]
pub use log::{Log, read_log};
pub use loss::{BinaryCrossEntropy, CrossEntropy, Loss, LossValue};
pub use metrics::Metrics;
pub use optim::Optimizer;
pub use recipe::Recipe;
pub use rule::{AdamW, At, RmsPropTf, Rule, Sgd, Slot, update_shared};
pub use schedule::{Decay, Schedule};
pub use statistics::recompute_statistics;
pub use trainer::{Progress, Step, Trainer};
