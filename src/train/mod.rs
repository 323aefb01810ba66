//! Learning: losses, optimisers, schedules, and a loop that a person can read and replace.
//!
//! A step is three calls of [`TrainPlan`](crate::exec::TrainPlan) and two of this room: forward, the gradient of a loss
//! with respect to every output ([`CrossEntropy`] and others, or one's own), backward, and [`Optimizer::step`] with the
//! rate of a [`Schedule`]. [`Trainer`] joins them, [`fit`] is the loop around it.
//!
//! Nothing here keeps hidden state: what happens in a step depends on the seed, the step's number and the values a
//! [checkpoint](Trainer::save) holds, so that training resumed is training never stopped, bit for bit.
//!
//! It refuses to go on with numbers that are none: a loss or a gradient that is not finite ends training with
//! [`Error::Diverged`](crate::error::Error::Diverged) before a weight is touched.

mod batch;
mod gradients;
mod groups;
mod loss;
mod optim;
mod schedule;

pub use batch::{Batch, Source, Targets};
pub use gradients::{Clip, GradientSum};
pub use groups::Groups;
pub use loss::{BinaryCrossEntropy, CrossEntropy, Loss, LossValue};
pub use optim::{AdamW, At, Optimizer, RmsPropTf, Rule, Sgd, Slot};
pub use schedule::{Decay, Schedule};
