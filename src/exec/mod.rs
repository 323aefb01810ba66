//! Turning a drawing into numbers.
//!
//! Two executors read the same [`Graph`](crate::graph::Graph): [`mod@reference`] computes it node by node, naively, in `f64`
//! or `f32`, and is the definition of correct, in training too; [`Plan`] lowers it for one input shape: prunes what
//! evaluation does not need, folds and fuses (`passes/`), places every value in one arena (`memory`), prepares a kernel
//! per step (`prepare`), and then runs that flat list without allocating (`run`).

mod gradients;
mod memory;
mod mode;
mod passes;
mod plan;
mod portions;
mod prepare;
mod program;
pub mod reference;
mod run;
mod train;
mod tuning;
mod unpacked;

pub use crate::kernels::conv::Precision;
pub use gradients::Gradients;
pub use mode::{Noise, Recompute, RunningStatistics, TrainOptions};
pub use plan::{Plan, PlanOptions};
pub use run::{Outputs, StepTime};
pub use train::{TrainPlan, Workers};
