//! The vocabulary models are written in.
//!
//! Each layer is a small value: build it with its constructor, refine it with the methods, hand it to
//! [`Node::layer`](crate::graph::Node::layer). It draws what it says and names its parameters as PyTorch's layer of that
//! kind does. Input channels are never written: they come from the node. A setting that cannot work becomes an error
//! with the layer's path, which [`Graph::draw`](crate::graph::Graph::draw) returns.
//!
//! In reading order: the elementary layers ([`Conv2d`], [`DeformConv2d`], [`MaxPool`], …, [`Linear`], [`Dropout`]), then
//! the units the papers are made of ([`ConvNormAct`], [`SeBlock`], [`Skip`], [`Inception`], [`DenseBlock`], [`MbConv`],
//! the heads).
//!
//! ```
//! use convzoo::graph::Graph;
//! use convzoo::layers::{ClassifierHead, Conv2d, ConvNormAct, MaxPool};
//!
//! let net = (ConvNormAct::new(Conv2d::k3(16)), MaxPool::k(2), ConvNormAct::new(Conv2d::k3(32)), ClassifierHead::new(10));
//! let graph = Graph::draw(3, &net)?;
//! assert_eq!(graph.param_count(false), 27 * 16 + 32 + 9 * 16 * 32 + 64 + 330);
//! # Ok::<(), convzoo::Error>(())
//! ```

mod conv;
mod deform;
mod dense;
mod dropout;
mod head;
mod inception;
mod linear;
mod mbconv;
mod norm;
mod pool;
mod se;
mod skip;
mod unit;

pub use conv::Conv2d;
pub use deform::DeformConv2d;
pub use dense::{DenseBlock, DenseLayer, Transition};
pub use dropout::{Dropout, StochasticDepth};
pub use head::{AuxHead, ClassifierHead};
pub use inception::Inception;
pub use linear::{Flatten, Linear};
pub use mbconv::{MbConv, round_channels};
pub use norm::{BatchNorm, LocalResponseNorm};
pub use pool::{AdaptiveAvgPool, AvgPool, GlobalAvgPool, MaxPool};
pub use se::SeBlock;
pub use skip::{ConcatSkip, Skip};
pub use unit::ConvNormAct;
