//! Running a training step: the file where its memory is handed to kernels.
#![allow(unsafe_code, reason = "kernels run on raw pointers into one arena; lifetimes keep buffers apart")]

use super::forward::{IMAGE_GRADIENT, IMAGES};
use super::plan::TrainPlan;
use crate::error::{Error, Result};
use crate::exec::run::Pointer;
use crate::exec::{Gradients, Outputs, StepTime};
use crate::graph::{ParamId, Params};
use crate::par::Team;
use crate::tensor::Tensor;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The threads of a plan, for work between its steps.
#[derive(Clone, Copy)]
pub struct Workers<'a>(&'a Team);

impl Workers<'_> {
    /// Calls `work` with every one of `pieces`, from several threads and in any order.
    pub fn share<T>(&self, pieces: impl ExactSizeIterator<Item = T> + Send, work: impl Fn(T) + Sync) {
        let (count, pieces) = (pieces.len(), Mutex::new(pieces));
        self.0.share(count, &|_| {
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            next.into_iter().for_each(&work);
        });
    }
}

impl TrainPlan {
    /// Runs the network in training mode on a batch of the planned shape: batch norm by the batch's statistics, noise by
    /// the seed, `step` and layer, auxiliary heads live. Moves the running statistics in `params`.
    ///
    /// The outputs, by name, borrow the plan's memory: copy what must outlive the next run.
    ///
    /// # Errors
    /// Images of another shape, parameters of another network.
    pub fn forward(&mut self, params: &mut Params, images: &Tensor, step: u64) -> Result<Outputs<'_>> {
        self.forward_still(params, images, step)?;
        self.follow(params);
        Ok(self.outputs())
    }

    /// As [`forward`](Self::forward), but leaves the running statistics where they are until [`follow`](Self::follow),
    /// which must come before the way back.
    pub(crate) fn forward_still(&mut self, params: &mut Params, images: &Tensor, step: u64) -> Result<()> {
        self.prepare(params, images, step)?;
        self.run(0..self.forward_steps);
        self.ready = true;
        Ok(())
    }

    /// Leads the gradients of a loss with respect to outputs, by name and in their shape, back to the parameters. Outputs
    /// that are not named count as unread. Each [`forward`](Self::forward) can be led back once.
    ///
    /// # Errors
    /// No way forward to lead back, an output that does not exist, a gradient of another shape, an output named twice; a
    /// plan that [streams](crate::exec::TrainOptions::stream_gradients) its gradients.
    pub fn backward(&mut self, of: &[(&str, &Tensor)]) -> Result<&Gradients> {
        if self.options.streamed {
            return Err(Error::invalid(
                "training step",
                "the plan streams its gradients: have each of them handed over",
            ));
        }
        self.prepare_back(of)?;
        self.run(self.forward_steps..self.steps.len());
        self.ready = false;
        Ok(&self.gradients)
    }

    /// As [`backward`](Self::backward), but calls `each` with a parameter's number, its value in `params`, which may be
    /// changed, its gradient, and the plan's workers, who wait meanwhile: for every parameter that has one, once. With
    /// [streamed](crate::exec::TrainOptions::stream_gradients) gradients that is as soon as a gradient is complete, and its
    /// memory is used again; the order is then that of the way back.
    ///
    /// ```
    /// # use convzoo::exec::{TrainOptions, TrainPlan};
    /// # use convzoo::{Model, Tensor, models};
    /// # use convzoo::random::Stream;
    /// let (graph, mut params) = Model::new(&models::build("resnet20", None)?, &mut Stream::new(0).rng())?.into_parts();
    /// let mut plan = TrainPlan::new(&graph, &params, [2, 3, 32, 32], &TrainOptions::new().stream_gradients())?;
    /// let slope = plan.forward(&mut params, &Tensor::zeros(&[2, 3, 32, 32]), 0)?.logits().clone();
    /// plan.backward_each(&mut params, &[("logits", &slope)], |_, weight, gradient, _| {
    ///     weight.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 0.1 * g);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), convzoo::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`backward`](Self::backward); parameters of another network; the first error of `each`, which ends the way
    /// back there.
    pub fn backward_each(
        &mut self,
        params: &mut Params,
        of: &[(&str, &Tensor)],
        mut each: impl FnMut(ParamId, &mut [f32], &[f32], Workers<'_>) -> Result<()>,
    ) -> Result<()> {
        self.check(params)?;
        self.prepare_back(of)?;
        self.ready = false;
        let mut from = self.forward_steps;
        let mut done = 0;
        while from < self.steps.len() {
            let to = self.handed.get(done).map_or(self.steps.len(), |next| next.after + 1);
            self.point_to(params);
            self.run(from..to);
            from = to;
            let complete = self.handed[done..].iter().take_while(|next| next.after < to);
            for gradient in complete {
                done += 1;
                let (_, weight) = params.iter_mut().nth(gradient.id.index()).expect("the parameters were checked");
                let at = self.offsets[gradient.buffer];
                each(gradient.id, weight, &self.runner.arena()[at..at + weight.len()], Workers(&self.runner.team))?;
            }
        }
        let kept = params.iter_mut().enumerate();
        for (id, (_, weight)) in kept.map(|(id, param)| (ParamId(id), param)) {
            if let Some(gradient) = self.gradients.of(id) {
                each(id, weight, gradient.as_slice(), Workers(&self.runner.team))?;
            }
        }
        Ok(())
    }

    /// The threads of this plan, while it does not run.
    pub fn workers(&self) -> Workers<'_> {
        Workers(&self.runner.team)
    }

    /// Runs one step forward and back, timing each kernel. The gradient of every output is the output itself.
    pub fn profile(&mut self, params: &mut Params, images: &Tensor, step: u64) -> Result<Vec<StepTime>> {
        self.prepare(params, images, step)?;
        let mut times: Vec<StepTime> = (0..self.forward_steps).map(|i| self.timed(i)).collect();
        self.follow(params);
        self.ready = true;
        let seeds: Vec<(String, Tensor)> = self.outputs.clone();
        let seeds: Vec<(&str, &Tensor)> = seeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        self.point_to(params);
        self.prepare_back(&seeds)?;
        times.extend((self.forward_steps..self.steps.len()).map(|i| self.timed(i)));
        self.ready = false;
        Ok(times)
    }

    fn timed(&mut self, i: usize) -> StepTime {
        let started = Instant::now();
        self.run(i..i + 1);
        let seconds = started.elapsed().as_secs_f64();
        let step = &self.steps[i];
        StepTime { path: step.path.clone(), shape: step.shape, kernel: step.kernel.name(), seconds, macs: step.macs }
    }

    /// Checks what comes from outside and notes where it lies.
    fn prepare(&mut self, params: &mut Params, images: &Tensor, step: u64) -> Result<()> {
        if images.shape() != self.input {
            return Err(Error::mismatch(
                "input",
                "shape",
                format!("{:?}", self.input),
                format!("{:?}", images.shape()),
            ));
        }
        self.check(params)?;
        self.ready = false;
        self.gradients.complete()?;
        for (stream, &node) in self.streams.iter_mut().zip(&self.noisy) {
            *stream = self.options.stream(step, node);
        }
        let (outside, pointers) = (self.outside, &mut self.runner.outside);
        pointers[IMAGES] = Pointer::to(images.as_slice());
        let outputs = self.outputs.iter_mut().map(|(_, tensor)| Pointer::to_mut(tensor.as_mut_slice()));
        pointers[outside.outputs..outside.seeds].iter_mut().zip(outputs).for_each(|(slot, value)| *slot = value);
        self.point_to(params);
        self.point_inside();
        Ok(())
    }

    /// Fails unless `params` are those of the network planned.
    fn check(&self, params: &Params) -> Result<()> {
        if params.defs().len() != self.defs.len() {
            return Err(Error::mismatch("training step", "parameters", self.defs.len(), params.defs().len()));
        }
        for ((def, value), planned) in params.iter().zip(&self.defs) {
            if def.name != planned.name || value.shape() != planned.shape {
                let show = |name: &str, shape: &[usize]| format!("`{name}` {shape:?}");
                let expected = show(&planned.name, &planned.shape);
                return Err(Error::mismatch("training step", "parameter", expected, show(&def.name, value.shape())));
            }
        }
        Ok(())
    }

    /// Notes where the parameters lie.
    fn point_to(&mut self, params: &Params) {
        let pointers = &mut self.runner.outside[self.outside.params..self.outside.gradients];
        let values = params.iter().map(|(_, value)| Pointer::to(value.as_slice()));
        pointers.iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
    }

    /// Notes where the plan's own tensors lie: gradients, which hold weights between forward and back, and streams.
    fn point_inside(&mut self) {
        let (outside, pointers) = (self.outside, &mut self.runner.outside);
        for (id, slot) in pointers[outside.gradients..outside.streams].iter_mut().enumerate() {
            let values = self.gradients.of_mut(crate::graph::ParamId(id));
            *slot = values.map_or(Pointer::NONE, Pointer::to_mut);
        }
        if let Some(values) = self.gradients.input_mut() {
            pointers[IMAGE_GRADIENT] = Pointer::to_mut(values);
        }
        for (slot, stream) in pointers[outside.streams..].iter_mut().zip(&self.streams) {
            *slot = Pointer::of(stream);
        }
    }

    fn prepare_back(&mut self, of: &[(&str, &Tensor)]) -> Result<()> {
        if !self.ready {
            return Err(Error::invalid("training step", "backward without a forward before it"));
        }
        let seeds = self.outside.seeds;
        for (slot, zeros) in self.runner.outside[seeds..].iter_mut().zip(&self.zeros) {
            *slot = Pointer::to(zeros.as_slice());
        }
        for (i, (name, gradient)) in of.iter().enumerate() {
            let known = || self.outputs.iter().map(|(known, _)| known.as_str());
            let at = known().position(|known| known == *name);
            let at = at.ok_or_else(|| Error::unknown("output", name, known()))?;
            let shape = self.outputs[at].1.shape();
            if gradient.shape() != shape {
                let found = format!("{:?}", gradient.shape());
                return Err(Error::mismatch(*name, "shape of the gradient", format!("{shape:?}"), found));
            }
            if of[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::invalid(*name, "named twice: add the gradients first"));
            }
            self.runner.outside[seeds + at] = Pointer::to(gradient.as_slice());
        }
        self.point_inside();
        Ok(())
    }

    fn run(&mut self, range: Range<usize>) {
        // SAFETY: buffers that are alive at the same time lie apart in the arena, each as long as the map it was made for.
        // What lies outside was checked to have the planned shape: images, parameters and gradients by `prepare` and
        // `prepare_back`, whose callers still hold them borrowed, outputs, gradients and streams because the plan made them
        // itself and is held mutably. The steps of the way forward write to outputs and gradients only; those of the way
        // back read no parameters, unless gradients are streamed: then `backward_each` holds the parameters borrowed, and
        // `profile` does.
        unsafe { self.runner.run(&self.steps, range) };
    }
}
