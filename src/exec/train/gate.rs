//! The way back through a product of a map with a gate, or with another map.
//!
//! Where the gate follows from the means of the very map it is applied to, and a norm has made that map, as in
//! squeeze-and-excitation, nothing is written: the gradient of the map is `dz · gate + dm / pixels`, with `dz` the gradient of
//! the product and `dm` that of the means, and the passes of the norm compute it from these while they read. Without a function
//! behind the norm, the gradient of the gate and the norm's sums follow from the same few moments of every image.

use super::forward::Author;
use super::sketch::{At, Draft};
use crate::error::Result;
use crate::exec::memory::Place;
use crate::exec::program::Unit;
use crate::graph::Op;
use crate::kernels::gradient::{self, Factor};
use crate::kernels::norm::train as norm;
use crate::kernels::{Map, Store, elementwise};

/// What the gradient of a gated map is computed from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gated {
    /// The gradient of the product.
    from: Place,
    factor: Place,
    /// The gradient of the means, once it has arrived.
    means: Option<Place>,
    /// Whether nobody else reads the gradient of the product any more.
    pub(super) alone: bool,
    /// The moments of every image that the sums of the norm follow from, if no function stands behind it.
    moments: Option<At>,
}

impl Gated {
    /// What the passes of the norm are to do.
    pub(super) fn rule(self) -> norm::Gate {
        norm::Gate { factor: self.factor.map.ld, means: self.arrived().map.ld }
    }

    /// The gate and the gradient of the means.
    pub(super) fn maps(self) -> [At; 2] {
        [self.factor.into(), self.arrived().into()]
    }

    fn arrived(self) -> Place {
        self.means.expect("the means lie between the norm and the product")
    }
}

impl Author<'_> {
    pub(super) fn multiply_backward(&mut self, unit: &Unit) -> Result<()> {
        let isa = self.isa;
        self.activation_and_bias(unit, At::None)?;
        let from = self.arrival(unit.output);
        let b = self.kept_value(unit.inputs[1])?;
        let gated = self.follows_from_means(unit);
        let moments = if gated { self.gate_from_moments(unit, from)? } else { None };
        if moments.is_none() {
            self.gate_backward(unit, from)?;
        }
        let inherits = unit.residual.is_some_and(|value| self.needed[value.index()] && self.may_share(value));
        if gated {
            let gated = Gated { from, factor: b, means: None, alone: !inherits, moments };
            self.gated[unit.inputs[0].index()] = Some(gated);
        } else if self.needed[unit.inputs[0].index()] {
            let heir = self.bequest(unit, unit.inputs[0]);
            heir.into_iter().for_each(|place| self.gradients[unit.inputs[0].index()] = Some(place));
            let (to, store) = self.contribute(unit.inputs[0]);
            let draft = match store {
                Store::Set => {
                    let kernel = elementwise::multiply(from.map, b.map, to.map, None, isa);
                    Draft::new(kernel, &[from.into(), b.into()], to)
                }
                Store::Add => {
                    let kernel = elementwise::multiply_add(from.map, b.map, to.map, to.map, None, isa);
                    Draft::new(kernel, &[from.into(), b.into(), to.into()], to)
                }
            };
            self.sketch.push(draft);
        }
        if let Some(shortcut) = unit.residual.filter(|value| self.needed[value.index()]) {
            match inherits {
                true => self.share(shortcut, from),
                false => self.pass(shortcut, from),
            }
        }
        Ok(())
    }

    /// The gradient of a gate from moments of every image, and where these are, if what is gated is a norm's output as it is.
    fn gate_from_moments(&mut self, unit: &Unit, from: Place) -> Result<Option<At>> {
        let (first, isa) = (unit.inputs[0], self.isa);
        let plain = self.norm_of(first).filter(|unit| unit.activation.is_none());
        let Some(behind) = plain.filter(|_| self.needed[unit.inputs[1].index()]) else { return Ok(None) };
        let (x, table) = (self.kept_value(behind.inputs[0])?, self.tables[first.index()]);
        let moments = self.sketch.buffer(norm::GATED_ROWS * x.map.n * x.map.c);
        let kernel = norm::gated_moments(from.map, x.map, isa);
        self.sketch.push(Draft::new(kernel, &[from.into(), x.into(), table], moments));
        let (to, store) = self.contribute(unit.inputs[1]);
        self.sketch.push(Draft::new(norm::gate_gradient(x.map, to.map, store, isa), &[moments, table], to));
        Ok(Some(moments))
    }

    /// The sums of a norm that is gated, by images, if moments were taken of these.
    pub(super) fn sums_from_moments(&mut self, gated: Gated, map: Map) -> Option<At> {
        let (moments, [factor, means]) = (gated.moments?, gated.maps());
        let sums = self.sketch.buffer(norm::Sums::Norm.rows() * map.n * map.c);
        let kernel = norm::gated_sums(map, gated.rule(), self.isa);
        self.sketch.push(Draft::new(kernel, &[moments, factor, means], sums));
        Some(sums)
    }

    /// The gradient of the second factor of a product, from that of the product at `from`.
    fn gate_backward(&mut self, unit: &Unit, from: Place) -> Result<()> {
        if !self.needed[unit.inputs[1].index()] {
            return Ok(());
        }
        let (isa, first) = (self.isa, unit.inputs[0]);
        let whole = self.program.shape(first) == self.program.shape(unit.inputs[1]);
        // What a norm makes is not made again for this alone.
        if let Some(norm) = self.norm_of(first).filter(|_| !whole && self.again[first.index()]) {
            let (x, table) = (self.kept_value(norm.inputs[0])?, self.tables[first.index()]);
            let (to, store) = self.contribute(unit.inputs[1]);
            let kernel = gradient::gate(from.map, x.map, Factor::Normalised(norm.activation), to.map, store, isa);
            self.sketch.push(Draft::new(kernel, &[from.into(), x.into(), table], to));
            return Ok(());
        }
        let a = self.kept_value(first)?;
        let (to, store) = self.contribute(unit.inputs[1]);
        let draft = match (whole, store) {
            (false, store) => {
                let kernel = gradient::gate(from.map, a.map, Factor::Kept, to.map, store, isa);
                Draft::new(kernel, &[from.into(), a.into()], to)
            }
            (true, Store::Set) => {
                let kernel = elementwise::multiply(from.map, a.map, to.map, None, isa);
                Draft::new(kernel, &[from.into(), a.into()], to)
            }
            (true, Store::Add) => {
                let kernel = elementwise::multiply_add(from.map, a.map, to.map, to.map, None, isa);
                Draft::new(kernel, &[from.into(), a.into(), to.into()], to)
            }
        };
        self.sketch.push(draft);
        Ok(())
    }

    /// Whether a norm alone has made the first factor of a product, and the second one follows from its means by layers that
    /// stand between the two and read nothing else.
    pub(super) fn follows_from_means(&self, unit: &Unit) -> bool {
        let (units, x) = (&self.program.units, unit.inputs[0]);
        let at = |value| units.iter().position(|unit| unit.output == value);
        let (Some(norm), Some(product)) = (at(x), at(unit.output)) else { return false };
        let mut value = x;
        for between in &units[norm + 1..product] {
            if between.inputs[..] != [value] || between.residual.is_some() {
                return false;
            }
            value = between.output;
            if self.program.shape(value)[2..] != [1, 1] {
                return false;
            }
        }
        let averages = matches!(units[norm + 1].op, Op::AdaptiveAvgPool { .. });
        let readers = units.iter().flat_map(Unit::reads).filter(|&read| read == x).count();
        let unmet = self.may_share(x) && !self.program.wanted.contains(&x);
        averages && value == unit.inputs[1] && readers == 2 && unmet && self.norm_of(x).is_some()
    }

    /// The gradient of the means of a gated map has arrived, and with it all of the map's.
    pub(super) fn means_backward(&mut self, unit: &Unit) {
        let (input, means) = (unit.inputs[0], self.arrival(unit.output));
        let gated = self.gated[input.index()].as_mut().expect("the map is gated");
        gated.means = Some(means);
        let from = gated.from;
        self.share(input, from);
    }
}
