//! The other direction: from the gradient `dy` of a loss with respect to an operation's output to those with respect to
//! its inputs and parameters, as PyTorch's autograd gives them.
//!
//! Functions bear the name of the forward one, where it needs one; `dy` has the shape of its output. Some need none: the
//! gradient of [`add`](super::add) is `dy` for both summands, of [`concat`](super::concat) a
//! [`channel_slice`](super::channel_slice) of `dy` for each part, of a slice a [`channel_pad`](super::channel_pad) and the
//! reverse; [`dropout`](super::dropout) and [`stochastic_depth`](super::stochastic_depth) are their own.

mod conv;
mod deform;
mod elementwise;
mod norm;
mod pool;

pub use conv::{channel_sums, conv2d_input, conv2d_weight, linear_input, linear_weight};
pub use deform::{DeformGradients, deform_conv2d};
pub use elementwise::{activation, multiply, softmax};
pub use norm::{NormGradients, Statistics, batch_norm, local_response_norm};
pub use pool::{adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool};
