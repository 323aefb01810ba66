//! Batch norm's statistics computed anew, as a true average.

use crate::error::{Error, Result};
use crate::exec::{Noise, TrainOptions, TrainPlan};
use crate::graph::{Graph, Op, ParamId, Params};
use crate::tensor::Tensor;

/// Replaces every batch norm's running mean and variance by the mean of the batches' own, all weights as they are.
///
/// Running statistics lag behind weights that still move, and an average of weights has none of its own. He et al. used
/// such a true average in the networks they published. Dropout is off meanwhile. Gives the number of batches.
///
/// # Errors
/// Those of the batches and of the plan; no batch at all. Nothing is changed then.
pub fn recompute_statistics(
    graph: &Graph,
    params: &mut Params,
    images: impl IntoIterator<Item = Result<Tensor>>,
    options: &TrainOptions,
) -> Result<u64> {
    let norms: Vec<(f32, [ParamId; 2])> = graph
        .nodes()
        .iter()
        .filter_map(|node| match node.op {
            // With momentum 0 the statistics are meant to stay.
            Op::BatchNorm { mean, var, momentum, .. } if momentum > 0.0 => Some((momentum, [mean, var])),
            _ => None,
        })
        .collect();
    let mut scratch = params.clone();
    let mut sums: Vec<[Vec<f64>; 2]> =
        norms.iter().map(|(_, ids)| ids.map(|id| vec![0.0; params.value(id).len()])).collect();
    let options = options.clone().noise(Noise::Off);
    let mut plan: Option<([usize; 4], TrainPlan)> = None;
    let mut batches = 0;
    for images in images {
        let images = images?;
        let shape = <[usize; 4]>::try_from(images.shape()).map_err(|_| {
            Error::mismatch("statistics", "shape of the images", "[n, c, h, w]", format!("{:?}", images.shape()))
        })?;
        let plan = match &mut plan {
            Some((planned, plan)) if *planned == shape => plan,
            slot => &mut slot.insert((shape, TrainPlan::new(graph, params, shape, &options)?)).1,
        };
        // From zero, a step leaves momentum × the batch's own statistics behind.
        let defs = graph.params();
        norms.iter().flat_map(|(_, ids)| ids).try_for_each(|id| {
            let def = &defs[id.index()];
            scratch.set(&def.name, Tensor::zeros(&def.shape))
        })?;
        plan.forward(&mut scratch, &images, batches)?;
        for ((momentum, ids), sums) in norms.iter().zip(&mut sums) {
            for (id, sum) in ids.iter().zip(sums) {
                let values = scratch.value(*id).as_slice();
                sum.iter_mut().zip(values).for_each(|(s, &v)| *s += f64::from(v) / f64::from(*momentum));
            }
        }
        batches += 1;
    }
    if batches == 0 {
        return Err(Error::invalid("statistics", "there is no batch to compute them from"));
    }
    for ((_, ids), sums) in norms.iter().zip(&sums) {
        for (id, sum) in ids.iter().zip(sums) {
            let def = &graph.params()[id.index()];
            params.set(&def.name, Tensor::from_fn(&def.shape, |i| (sum[i] / batches as f64) as f32))?;
        }
    }
    Ok(batches)
}
