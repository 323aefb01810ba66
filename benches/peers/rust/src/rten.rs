//! rten, with graph optimisation and prepacked weights.

use crate::{Case, Outcome, Run};
use rten_tensor::{AsView, Tensor};

pub fn prepare(case: &Case) -> Outcome<Run> {
    let mut options = rten::ModelOptions::with_all_ops();
    options.enable_optimization(true).prepack_weights(true);
    let model = options.load_file(case.onnx())?;
    let image = Tensor::from_data(case.shape.as_slice(), case.input.clone());
    Ok(Box::new(move || {
        let logits: Tensor<f32> = model.run_one(image.view().into(), None)?.try_into()?;
        Ok(logits.to_vec())
    }))
}
