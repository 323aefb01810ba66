//! Rewrites of the lowered program, one per file, in the order they run.
//!
//! Each pass looks for one pattern, and where the pattern is there but the rewrite may not fire it leaves a note that
//! `explain()` prints.

mod expand;
mod fold_norm;
mod fuse_activation;
mod fuse_residual;
mod identities;
mod norm_on_load;
mod pool_first;
mod squeeze;

pub(super) use fold_norm::fold_affine;

use super::program::Program;
use crate::error::Result;
use crate::graph::ParamSource;
use crate::kernels::conv::Precision;

/// Runs every pass.
pub(super) fn run(program: &mut Program, source: &dyn ParamSource, precision: Precision) -> Result<()> {
    identities::run(program);
    fold_norm::run(program, source)?;
    fuse_residual::run(program);
    fuse_activation::run(program);
    pool_first::run(program);
    norm_on_load::run(program, source, precision)?;
    squeeze::run(program);
    expand::run(program);
    Ok(())
}
