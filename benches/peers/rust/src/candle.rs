//! candle: its own network where `candle-transformers` has one that takes a batch of images, the ONNX file otherwise.

use crate::{Case, Outcome, Run};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_onnx::onnx::{AttributeProto, attribute_proto::AttributeType};
use candle_transformers::models::{efficientnet, resnet};

pub fn prepare(case: &Case) -> Outcome<Run> {
    let image = Tensor::from_vec(case.input.clone(), case.shape.as_slice(), &Device::Cpu)?;
    if let Some(network) = network(case)? {
        return Ok(Box::new(move || Ok(network.forward(&image)?.flatten_all()?.to_vec1()?)));
    }
    let mut model = candle_onnx::read_file(case.onnx())?;
    for node in model.graph.iter_mut().flat_map(|graph| &mut graph.node) {
        // Not among the operations candle-onnx knows: the same as a mean over the last two axes.
        if node.op_type == "GlobalAveragePool" {
            let axes = AttributeProto { name: "axes".into(), ints: vec![2, 3], ..Default::default() };
            node.attribute.push(AttributeProto { r#type: AttributeType::Ints as i32, ..axes });
            node.op_type = "ReduceMean".into();
        }
    }
    Ok(Box::new(move || {
        let mut outputs = candle_onnx::simple_eval(&model, [("input".to_string(), image.clone())].into())?;
        Ok(outputs.remove("logits").ok_or("no logits")?.flatten_all()?.to_vec1()?)
    }))
}

fn network(case: &Case) -> Outcome<Option<Box<dyn Module>>> {
    const CLASSES: usize = 1000;
    let file = case.folder.join(format!("{}.safetensors", case.model));
    let weights = VarBuilder::from_buffered_safetensors(std::fs::read(file)?, DType::F32, &Device::Cpu)?;
    Ok(Some(match case.model.as_str() {
        "resnet18" => Box::new(resnet::resnet18(CLASSES, weights)?),
        "resnet50" => Box::new(resnet::resnet50(CLASSES, weights)?),
        "resnet152" => Box::new(resnet::resnet152(CLASSES, weights)?),
        "efficientnet_b0" => {
            Box::new(efficientnet::EfficientNet::new(weights, efficientnet::MBConvConfig::b0(), CLASSES)?)
        }
        "efficientnet_b4" => {
            Box::new(efficientnet::EfficientNet::new(weights, efficientnet::MBConvConfig::b4(), CLASSES)?)
        }
        _ => return Ok(None),
    }))
}
