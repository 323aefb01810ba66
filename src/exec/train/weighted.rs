//! The way back of the units with weights: convolution, deformable convolution, linear layer.

use super::forward::{Author, slice};
use super::sketch::{At, Draft};
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::Op;
use crate::kernels::conv::Sampling;
use crate::kernels::conv::grad::{self, weight::WeightGradient};
use crate::kernels::{Map, Store, WEIGHTS};

impl<'a> Author<'a> {
    /// The way back of a convolution or linear layer: bias, input and weights.
    pub(super) fn weighted_backward(&mut self, unit: &'a Unit) -> Result<()> {
        let (Op::Conv { weight, bias, .. } | Op::DeformConv { weight, bias, .. } | Op::Linear { weight, bias }) =
            unit.op
        else {
            return Ok(());
        };
        let to_bias = bias.map_or(At::None, |id| self.gradient_of(id));
        self.activation_and_bias(unit, to_bias)?;
        let from = self.arrival(unit.output);
        let kept = self.weight(weight);
        if let Some(sampling) = self.sampling(unit) {
            let to_weight = self.gradient_of(weight);
            return self.deform_backward(unit, sampling, from, [kept, to_weight]);
        }
        let input = unit.inputs[0];
        if self.learned[weight.index()] && self.masked_backward(unit, from, kept)? {
            return Ok(());
        }
        let data = match self.needed[input.index()] {
            true => self.data_gradient(unit, from, kept)?,
            false => None,
        };
        // What was computed again for the gradient of the weights alone need not meet the gradient of the input.
        let passing = self.again[input.index()];
        let buffers = &self.sketch.buffers;
        let small = |at: At| matches!(at, At::Buffer(packed, _) if buffers[packed] < from.map.extent());
        let later = data.as_ref().is_some_and(|step| passing && small(step.inputs[WEIGHTS]));
        let (first, last) = if later { (None, data) } else { (data, None) };
        first.into_iter().for_each(|step| self.sketch.push(step));
        if self.learned[weight.index()] && !self.put_off(unit)? {
            let to = self.gradient_of(weight);
            self.product_gradient(unit, from, to)?;
        }
        last.into_iter().for_each(|step| self.sketch.push(step));
        Ok(())
    }

    /// The gradient of a convolution's weights.
    pub(super) fn product_gradient(&mut self, unit: &Unit, from: Place, to: At) -> Result<()> {
        if self.weight_gradient_on_load(unit, from, to)? {
            return Ok(());
        }
        let x = self.kept_value(unit.inputs[0])?;
        let (mut spec, bordered) = self.spec(unit, x.map)?;
        spec.epilogue = Default::default();
        spec.output = from.map;
        let gradient = match bordered {
            true => grad::weight::weight_gradient_stem(spec, self.options.precision, self.isa),
            false => grad::weight::weight_gradient(spec, self.options.precision, self.isa),
        };
        let macs = spec.output.pixels() * spec.output.c * spec.depth();
        self.weight_gradient(gradient, &[x.into(), from.into()], to, macs);
        Ok(())
    }

    /// Packs the weights at `kept` for the gradient of the unit's input and gives the step that computes it from the
    /// gradient at `from`, the last of them if they are several. The weights themselves are not read any more.
    fn data_gradient(&mut self, unit: &Unit, from: Place, kept: At) -> Result<Option<Draft>> {
        let (to, mut store) = self.contribute(unit.inputs[0]);
        let (mut spec, _) = self.spec(unit, to.map)?;
        spec.epilogue = Default::default();
        let mut last: Option<Draft> = None;
        for rows in self.pieces(unit) {
            last.into_iter().for_each(|step| self.sketch.push(step));
            let from = slice(from, rows.start, rows.len());
            spec.output = from.map;
            let learned = grad::input_gradient(spec, store, self.options.precision, self.isa);
            let packed = self.sketch.buffer(learned.packed);
            self.sketch.push(Draft::new(learned.packing, &[kept.at(rows.start * spec.depth())], packed));
            let old = if store == Store::Add { to.into() } else { At::None };
            let macs = spec.output.pixels() * spec.output.c * spec.depth();
            last = Some(Draft::new(learned.kernel, &[from.into(), old], to).weights(packed).macs(macs));
            store = Store::Add;
        }
        Ok(last)
    }

    pub(super) fn weight_gradient(&mut self, gradient: WeightGradient, inputs: &[At], to: At, macs: usize) {
        let Some(gather) = gradient.gather else {
            return self.sketch.push(Draft::new(gradient.kernel, inputs, to).macs(macs));
        };
        let partial = self.sketch.buffer(gradient.partial);
        self.sketch.push(Draft::new(gradient.kernel, inputs, partial).macs(macs));
        self.sketch.push(Draft::new(gather, &[partial], to));
    }

    fn deform_backward(
        &mut self,
        unit: &Unit,
        sampling: Sampling,
        from: Place,
        [kept, to_weight]: [At; 2],
    ) -> Result<()> {
        let sources: Vec<Place> = unit.inputs.iter().map(|&value| self.kept_value(value)).collect::<Result<_>>()?;
        let (mut spec, _) = self.spec(unit, sources[0].map)?;
        spec.epilogue = Default::default();
        spec.output = from.map;
        let mut inputs = vec![At::None; 3];
        inputs.iter_mut().zip(&sources).for_each(|(at, &place)| *at = place.into());
        if unit.inputs.iter().any(|value| self.needed[value.index()]) {
            // Shifts and factors are set, never added to: what has arrived before is added afterwards.
            let mut targets = [None; 3];
            let mut late = Vec::new();
            for (i, &value) in unit.inputs.iter().enumerate() {
                if !self.needed[value.index()] {
                    continue;
                }
                let (place, store) = self.contribute(value);
                targets[i] = Some((place, store));
                if i > 0 && store == Store::Add {
                    let apart = self.sketch.map(self.program.shape(value));
                    targets[i] = Some((apart, Store::Set));
                    late.push((apart, place));
                }
            }
            let map = |i: usize, default: Map| targets[i].map_or(default, |(place, _): (Place, Store)| place.map);
            let mask = sampling.mask.unwrap_or(sampling.offset);
            let maps = [map(0, spec.input), map(1, sampling.offset), map(2, mask)];
            let store = targets[0].map_or(Store::Set, |(_, store)| store);
            let gradient = grad::deform::data(spec, sampling, maps, store, self.isa);
            let (learned, sums) = (gradient.input, self.sketch.buffer(gradient.sums));
            let packed = self.sketch.buffer(learned.packed);
            self.sketch.push(Draft::new(learned.packing, &[kept], packed));
            let [dx, offset, mask] = targets.map(|target| target.map_or(At::None, |(place, _)| place.into()));
            let all = [inputs[0], inputs[1], inputs[2], from.into()];
            let macs = spec.output.pixels() * spec.output.c * spec.depth();
            let draft = Draft::new(learned.kernel, &all, dx).weights(packed).also([sums, At::None]).macs(macs);
            self.sketch.push(draft);
            if targets[1].or(targets[2]).is_some() {
                self.sketch.push(Draft::new(gradient.steering, &[sums, inputs[2]], offset).also([mask, At::None]));
            }
            late.into_iter().for_each(|(apart, place)| self.meet(apart, place, Store::Add));
        }
        if to_weight != At::None {
            let gradient = grad::deform::weight_gradient(spec, sampling, self.isa);
            let samples = self.sketch.buffer(gradient.samples.extent());
            self.sketch.push(Draft::new(gradient.sample, &inputs, samples));
            let macs = spec.output.pixels() * spec.output.c * spec.depth();
            self.weight_gradient(gradient.product, &[samples, from.into()], to_weight, macs);
        }
        Ok(())
    }
}
