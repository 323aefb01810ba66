//! Burn on its `flex` backend, from code that `build.rs` generates out of the ONNX files.

use crate::{Case, Outcome, Run};
use burn::tensor::{Device, Tensor, TensorData};

type Network = Box<dyn Fn(Tensor<4>) -> Tensor<2>>;

#[allow(dead_code, clippy::all, reason = "generated")]
mod networks {
    use super::{Device, Network};
    include!(concat!(env!("OUT_DIR"), "/burn.rs"));
    pub(super) fn load(name: &str, device: &Device) -> Option<Network> {
        network(name, device)
    }
}

pub fn prepare(case: &Case) -> Outcome<Run> {
    if case.batch != 1 {
        return Err("code was generated for batch 1 only".into());
    }
    let device = Device::flex();
    let network = networks::load(&case.model, &device).ok_or("no code was generated for it")?;
    let image = Tensor::<4>::from_data(TensorData::new(case.input.clone(), case.shape.clone()), &device);
    Ok(Box::new(move || Ok(network(image.clone()).into_data().try_to_vec().map_err(|e| format!("{e:?}"))?)))
}
