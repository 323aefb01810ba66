//! Grad-CAM: where in the photograph the evidence for a class lies. Selvaraju et al. 2016 (arXiv 1610.02391).

use crate::error::{Error, Result};
use crate::exec::{Noise, Plan, PlanOptions, TrainOptions, TrainPlan};
use crate::graph::{Graph, LOGITS, Params, Role};
use crate::tensor::Tensor;

/// Where the evidence for a class lies.
#[derive(Debug, Clone, PartialEq)]
pub struct GradCam {
    /// `[h, w]` of the feature map, from 0 to 1; all 0 if nothing speaks for the class.
    pub map: Tensor,
    /// The class explained.
    pub class: usize,
    /// What the network answered, `[classes]`.
    pub logits: Vec<f32>,
}

/// Explains one answer of a network in evaluation: `ReLU(Σₖ αₖ·Aᵏ)` over the channels of the feature map `A`, weighted by
/// `αₖ`, the mean over the map of `∂logit/∂Aᵏ`; then divided by its maximum.
///
/// `feature` is a map between image and answer, usually the last before pooling (`stage4` of a ResNet; `None` takes the
/// last feature that is a map); `class` is what to explain, by default the network's first choice. Where global pooling
/// and a linear layer follow the map, this is the class activation map of Zhou et al. 2015.
///
/// # Shapes
/// `image` is `[1, c, h, w]`.
///
/// # Errors
/// An unknown feature, or one that the answer reaches past; a class the network does not have; more than one image.
pub fn grad_cam(
    graph: &Graph,
    params: &Params,
    image: &Tensor,
    feature: Option<&str>,
    class: Option<usize>,
) -> Result<GradCam> {
    let shape = <[usize; 4]>::try_from(image.shape()).ok().filter(|shape| shape[0] == 1);
    let shape = shape.ok_or_else(|| {
        Error::mismatch("grad-cam", "shape of the image", "[1, c, h, w]", format!("{:?}", image.shape()))
    })?;
    let feature = match feature {
        Some(name) => name,
        None => last_map(graph)?,
    };
    let behind = graph.behind(graph.find(feature)?)?;
    let mut plan = Plan::new(graph, params, shape, &PlanOptions::new().feature(feature))?;
    let outputs = plan.run(image)?;
    let (maps, logits) = (outputs.get(feature)?, outputs.logits().as_slice());
    let &[1, channels, h, w] = maps.shape() else {
        let problem = format!("{:?} is not a map: Grad-CAM needs one before pooling", maps.shape());
        return Err(Error::invalid(feature, problem));
    };
    let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
    let class = class.unwrap_or(best);
    if class >= logits.len() {
        return Err(Error::mismatch("grad-cam", "class", format!("below {}", logits.len()), class));
    }

    // Frozen throughout, the rest of the network runs as in evaluation, and the gradient of its input is what is asked.
    let options = TrainOptions::new().freeze("").noise(Noise::Off).input_gradient();
    let mut rest = TrainPlan::new(&behind, params, [1, channels, h, w], &options)?;
    rest.forward(&mut params.clone(), maps, 0)?;
    let one = Tensor::from_fn(&[1, logits.len()], |i| f32::from(u8::from(i == class)));
    let gradients = rest.backward(&[(LOGITS, &one)])?;
    let slopes = gradients.input().ok_or_else(|| Error::invalid("grad-cam", "the gradient of the input is missing"))?;

    let mut map = vec![0f64; h * w];
    for (map_k, slope_k) in maps.as_slice().chunks_exact(h * w).zip(slopes.as_slice().chunks_exact(h * w)) {
        let alpha = slope_k.iter().map(|&g| f64::from(g)).sum::<f64>() / (h * w) as f64;
        map.iter_mut().zip(map_k).for_each(|(sum, &a)| *sum += alpha * f64::from(a));
    }
    let most = map.iter().copied().fold(0.0, f64::max);
    let share = |value: f64| if most > 0.0 { (value / most).max(0.0) as f32 } else { 0.0 };
    Ok(GradCam { map: Tensor::from_fn(&[h, w], |i| share(map[i])), class, logits: logits.to_vec() })
}

/// The last named feature that is a map and that everything behind it goes through.
fn last_map(graph: &Graph) -> Result<&str> {
    let features = graph.outputs().iter().filter(|o| o.role == Role::Feature);
    let maps = features.filter(|o| graph.node(o.node).drawn.size == crate::graph::Size::Free);
    maps.max_by_key(|o| o.node).map(|o| o.name.as_str()).ok_or_else(|| {
        Error::invalid("grad-cam", "the network names no feature that is a map: say which layer's to take")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Node, layer_fn};
    use crate::layers::{BatchNorm, ClassifierHead, Conv2d};
    use crate::random::Stream;

    fn net(x: Node<'_>) -> Node<'_> {
        let x = x.layer("conv", Conv2d::k3(5)).layer("bn", BatchNorm::new()).relu().feature("stage1");
        x.then(ClassifierHead::new(3).dropout(0.5))
    }

    #[test]
    fn before_pooling_and_a_linear_layer_it_is_the_class_activation_map() {
        let graph = Graph::draw(3, &layer_fn(net)).unwrap();
        let params = Params::init(graph.params(), &mut Stream::new(4).rng());
        let image = Tensor::from_fn(&[1, 3, 6, 7], |i| (i * 37 % 101) as f32 / 50.0 - 1.0);
        let mut plan = Plan::new(&graph, &params, [1, 3, 6, 7], &PlanOptions::new().feature("stage1")).unwrap();
        let maps = plan.run(&image).unwrap().get("stage1").unwrap().clone();
        let weight = params.get("fc.weight").unwrap();
        for class in 0..3 {
            let cam = grad_cam(&graph, &params, &image, None, Some(class)).unwrap();
            let row = &weight.as_slice()[class * 5..][..5];
            let wanted: Vec<f32> = (0..42)
                .map(|i| row.iter().enumerate().map(|(k, w)| w * maps.as_slice()[k * 42 + i]).sum::<f32>().max(0.0))
                .collect();
            let most = wanted.iter().copied().fold(0.0, f32::max);
            assert!(most > 0.0, "class {class} has no evidence at all: the test would check nothing");
            for (found, wanted) in cam.map.as_slice().iter().zip(&wanted) {
                assert!((found - wanted / most).abs() < 1e-5, "{class}: {found} for {}", wanted / most);
            }
        }
        let error = |feature, class| grad_cam(&graph, &params, &image, feature, class).unwrap_err().to_string();
        assert!(error(None, Some(3)).contains("below 3"));
        assert!(error(Some("stage2"), None).contains("nearest: stage1"));
        assert!(error(Some("pre_logits"), None).contains("not a map"));
        let two = Tensor::zeros(&[2, 3, 6, 7]);
        assert!(grad_cam(&graph, &params, &two, None, None).unwrap_err().to_string().contains("[2, 3, 6, 7]"));
    }
}
