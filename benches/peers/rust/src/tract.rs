//! tract, with its optimised graph and its threaded matrix product.

use crate::{Case, Outcome, Run};
use tract_onnx::prelude::*;

pub fn prepare(case: &Case) -> Outcome<Run> {
    if case.threads > 1 {
        multithread::set_default_executor(multithread::Executor::multithread(case.threads));
    }
    let fact = f32::fact(case.shape.as_slice());
    let model = tract_onnx::onnx().model_for_path(case.onnx())?.with_input_fact(0, fact.into())?;
    let model = model.into_optimized()?.into_runnable()?;
    let image: Tensor = tract_ndarray::ArrayD::from_shape_vec(case.shape.clone(), case.input.clone())?.into();
    let image: TValue = image.into();
    Ok(Box::new(move || {
        let logits = model.run(tvec!(image.clone()))?;
        Ok(logits[0].to_plain_array_view::<f32>()?.iter().copied().collect())
    }))
}
