//! Judging weights: the network in evaluation over batches.

use super::{Batch, Loss, Metrics};
use crate::error::Result;
use crate::exec::{Plan, PlanOptions};
use crate::graph::{Graph, LOGITS, Params};

/// Loss, top-1 and top-5 of the primary output over `batches`, evaluated by a [`Plan`]: batch norms by their running
/// statistics, no dropout, no auxiliary heads.
///
/// ```
/// use convzoo::random::Stream;
/// use convzoo::train::{Batch, CrossEntropy, Targets, evaluate};
/// use convzoo::{Model, PlanOptions, Tensor, models};
///
/// let (graph, params) = Model::new(&models::build("resnet20", None)?, &mut Stream::new(0).rng())?.into_parts();
/// let batch = Batch { images: Tensor::zeros(&[2, 3, 8, 8]), targets: Targets::Labels(vec![3, 7]) };
/// let metrics = evaluate(&graph, &params, [Ok(batch)], &CrossEntropy::new(), &PlanOptions::new())?;
/// assert!(metrics.images() == 2 && metrics.loss() > 0.0);
/// # Ok::<(), convzoo::Error>(())
/// ```
///
/// # Errors
/// Those of the batches, the plan and the loss. Without batches there is no image in what it gives; a loss that is not
/// finite is given as it is.
pub fn evaluate(
    graph: &Graph,
    params: &Params,
    batches: impl IntoIterator<Item = Result<Batch>>,
    loss: &dyn Loss,
    options: &PlanOptions,
) -> Result<Metrics> {
    let mut metrics = Metrics::default();
    // One plan for the batches, and one for the smaller last of them.
    let mut plans: Vec<Plan> = Vec::new();
    for batch in batches {
        let batch = batch?;
        let shape = batch.shape()?;
        let known = plans.iter().position(|plan| plan.input_shape() == shape);
        let at = match known {
            Some(at) => at,
            None => {
                plans.truncate(1);
                plans.push(Plan::new(graph, params, shape, options)?);
                plans.len() - 1
            }
        };
        let logits = plans[at].run(&batch.images)?.logits();
        let value = loss.evaluate(logits, &batch.targets)?.value;
        metrics.add(&[(LOGITS, value, 1.0)], logits, &batch.targets);
    }
    Ok(metrics)
}
