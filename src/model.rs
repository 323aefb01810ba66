//! `Model`: a drawing and its parameters, the type a user holds.

use crate::error::{LoadReport, Result};
use crate::exec::{Plan, PlanOptions, reference};
use crate::graph::{Graph, Layer, Params, check_same};
use crate::kernels::naive::Real;
use crate::tensor::Tensor;
#[cfg(feature = "safetensors")]
use crate::weights::{Dtype, StateDict};
use crate::weights::{Limits, LoadOptions, WeightFile, load_file};
use rand::Rng;
use std::path::Path;

/// A network with values for its parameters.
///
/// ```
/// use convzoo::{Model, Tensor, models::ResNet};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let model = Model::new(&ResNet::resnet18().classes(10), &mut StdRng::seed_from_u64(0))?;
/// let mut plan = model.plan([1, 3, 64, 64])?;
/// let out = plan.run(&Tensor::zeros(&[1, 3, 64, 64]))?;
/// assert_eq!(out.logits().shape(), [1, 10]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    graph: Graph,
    params: Params,
}

impl Model {
    /// Draws `network` for RGB images and initialises its parameters as each layer says.
    ///
    /// # Errors
    /// The first mistake in the drawing, with the layer's path; memory for a parameter that is not to be had.
    pub fn new(network: &(impl Layer + ?Sized), rng: &mut impl Rng) -> Result<Self> {
        Model::with_channels(3, network, rng)
    }

    /// Draws `network` for images of `channels` channels and initialises its parameters as each layer says.
    ///
    /// # Errors
    /// Those of [`Model::new`]; no channels.
    pub fn with_channels(channels: usize, network: &(impl Layer + ?Sized), rng: &mut impl Rng) -> Result<Self> {
        let graph = Graph::draw(channels, network)?;
        let params = Params::try_init(graph.params(), rng)?;
        Ok(Model { graph, params })
    }

    /// Draws `network` for RGB images and leaves its parameters blank, to be loaded.
    ///
    /// # Errors
    /// Those of [`Model::new`].
    pub fn blank(network: &(impl Layer + ?Sized)) -> Result<Self> {
        Model::blank_with_channels(3, network)
    }

    /// Draws `network` for images of `channels` channels and leaves its parameters blank, to be loaded.
    ///
    /// # Errors
    /// Those of [`Model::with_channels`].
    pub fn blank_with_channels(channels: usize, network: &(impl Layer + ?Sized)) -> Result<Self> {
        let graph = Graph::draw(channels, network)?;
        let params = Params::try_blank(graph.params())?;
        Ok(Model { graph, params })
    }

    /// A drawing and parameters made elsewhere. They must belong together.
    ///
    /// # Errors
    /// Parameters that are not those drawn: the first that differs is named, with both shapes.
    pub fn from_parts(graph: Graph, params: Params) -> Result<Self> {
        check_same("model", graph.params(), params.defs())?;
        Ok(Model { graph, params })
    }

    /// The drawing and the parameters, for who holds them from now on.
    pub fn into_parts(self) -> (Graph, Params) {
        (self.graph, self.params)
    }

    /// The drawing.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The parameters, to write to.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// Loads a weight file (safetensors, `.pth`, `.npz`, told apart by content): every name and shape must fit, see
    /// [`load`](crate::weights::load). Nothing is changed when it does not.
    ///
    /// # Errors
    /// [`Error::Load`](crate::Error::Load) with all names that are missing, unexpected or misshapen; a file that is broken,
    /// hostile or of an unknown kind; a size over its limit; the system's refusals.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport> {
        self.load_with(path, &LoadOptions::strict(), &Limits::default())
    }

    /// Loads a weight file with options: lenient, renamed, other limits.
    ///
    /// # Errors
    /// Those of [`Model::load`], but for [`LoadOptions::lenient`], which reports what does not fit; names that clash once
    /// they are renamed.
    pub fn load_with(&mut self, path: impl AsRef<Path>, options: &LoadOptions, limits: &Limits) -> Result<LoadReport> {
        load_file(&mut self.params, path, options, limits)
    }

    /// Writes the parameters as safetensors under their PyTorch names. The file appears whole or not at all.
    ///
    /// # Errors
    /// The system's refusals.
    #[cfg(feature = "safetensors")]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        StateDict::from_params(&self.params, "model")?.write_safetensors(path, Dtype::F32)
    }

    /// Plans evaluation for inputs of shape `[n, c, h, w]` with the default options.
    ///
    /// # Errors
    /// A shape the network cannot take: the layer and both numbers are named. Memory that is not to be had.
    pub fn plan(&self, input: [usize; 4]) -> Result<Plan> {
        self.plan_with(input, &PlanOptions::new())
    }

    /// Plans evaluation for inputs of shape `[n, c, h, w]`.
    ///
    /// # Errors
    /// Those of [`Model::plan`] and of [`Plan::new`]: options that cannot be met.
    pub fn plan_with(&self, input: [usize; 4], options: &PlanOptions) -> Result<Plan> {
        Plan::new(&self.graph, &self.params, input, options)
    }

    /// Plans evaluation and gives up the parameters: each weight is freed once it is packed, so that a network never lies
    /// in memory twice. For one in a file, [`Model::plan_file`] needs less still.
    ///
    /// # Errors
    /// Those of [`Model::plan_with`].
    pub fn into_plan(self, input: [usize; 4], options: &PlanOptions) -> Result<Plan> {
        let Model { graph, mut params } = self;
        Plan::from_source(&graph, &mut params, input, options)
    }

    /// Plans evaluation of `network` straight from its weight file, which must fit as for [`Model::load`]: the quickest
    /// start, with little more memory than the packed weights take. See [`WeightFile`] for more options.
    ///
    /// # Errors
    /// Those of [`Model::blank_with_channels`], [`Model::load`] and [`Model::plan_with`].
    pub fn plan_file(
        network: &(impl Layer + ?Sized),
        path: impl AsRef<Path>,
        input: [usize; 4],
        options: &PlanOptions,
    ) -> Result<Plan> {
        let graph = Graph::draw(input[1], network)?;
        let (mut file, _) = WeightFile::open(graph.params(), path, &LoadOptions::strict(), &Limits::default())?;
        Plan::from_source(&graph, &mut file, input, options)
    }

    /// Evaluates the primary output naively, every intermediate in `T` (`f32` or `f64`): slow, and the definition of
    /// correct.
    ///
    /// # Errors
    /// A shape the network cannot take.
    pub fn reference<T: Real>(&self, input: &Tensor) -> Result<reference::Value<T>> {
        let wanted = [self.graph.find(crate::graph::LOGITS)?];
        Ok(reference::evaluate(&self.graph, &self.params, input, &wanted)?.remove(0))
    }
}
