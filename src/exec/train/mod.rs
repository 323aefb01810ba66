//! Planned training: one step, forward and backward, as a flat list of prepared kernels over one arena.
//!
//! [`TrainPlan`] reads the same drawing as [`Plan`](super::Plan), keeps batch norm, noise and auxiliary heads alive, and
//! appends the way back:
//!
//! - `fuse` joins what is computed in one pass: batch norm, the sum with a shortcut, the activation;
//! - `sketch` collects steps that name buffers instead of addresses. A buffer lives from the first step that touches it to
//!   the last, on the way back as on the way there, so what backward reads is kept, and nothing else;
//! - `forward` and `backward` write each operation's steps;
//! - `moments` measures what norms read, each map once;
//! - `deferred` completes the gradients of a dense block's maps once, after all norms that read them;
//! - `on_load` leaves norms to the convolutions behind them;
//! - `masked` leads gradients through ReLUs while a convolution computes them;
//! - `streamed` hands gradients on as soon as they are complete, if that is asked for;
//! - `again` chooses what the way back computes again instead of having it kept;
//! - `run` hands the memory to the kernels.
//!
//! What backward reads is mostly what convolutions read and wrote. The output of a norm and its activation is not kept: it
//! is computed again, in one pass, when the convolution behind it needs it. Gradients of concatenated values are slices of
//! the concatenation's gradient, and the gradient of a sum is that of its summands, not a copy.

mod again;
mod backward;
mod deferred;
mod forward;
mod fuse;
mod gate;
mod masked;
mod moments;
mod normed;
mod on_load;
mod plan;
mod run;
mod sketch;
mod streamed;
mod weighted;

pub use plan::TrainPlan;
pub use run::Workers;
