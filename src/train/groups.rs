//! Parameter groups: which parameters learn, how fast, and which decay.

use super::optim::Share;
use crate::error::{Error, Result};
use crate::graph::{ParamDef, ParamKind};
use serde::{Deserialize, Serialize};

/// What distinguishes some parameters from others: a factor of the learning rate, whether they decay, whether they learn.
///
/// A rule applies to the parameter of its name and to all parameters of the scope of that name (`layer4` covers
/// `layer4.0.conv1.weight`, not `layer40.weight`); the empty name covers everything. Later rules win over earlier ones.
///
/// ```
/// use convzoo::train::Groups;
///
/// // Fine-tuning: a new classifier learns at the full rate, the features below at a tenth, the stem not at all.
/// let groups = Groups::new().weights_decay_alone().rate("", 0.1).rate("fc", 1.0).freeze("conv1");
/// # let _ = groups;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    rules: Vec<(String, Rule)>,
    spare: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Rule {
    Rate(f32),
    Decay(f32),
    Freeze,
    Thaw,
}

impl Groups {
    /// All parameters alike.
    pub fn new() -> Self {
        Groups::default()
    }

    /// No weight decay on biases, and none on the scales and shifts of norms: only the weights of convolutions and linear
    /// layers decay.
    pub fn weights_decay_alone(self) -> Self {
        Groups { spare: true, ..self }
    }

    /// The parameters under `scope` learn at `factor` times the rate.
    pub fn rate(self, scope: impl Into<String>, factor: f32) -> Self {
        self.rule(scope, Rule::Rate(factor))
    }

    /// The parameters under `scope` decay `factor` times as strongly.
    pub fn decay(self, scope: impl Into<String>, factor: f32) -> Self {
        self.rule(scope, Rule::Decay(factor))
    }

    /// The parameters under `scope` do not learn, and cost nothing in the backward pass; batch norms there keep their
    /// running statistics and normalise by them.
    pub fn freeze(self, scope: impl Into<String>) -> Self {
        self.rule(scope, Rule::Freeze)
    }

    /// The parameters under `scope` learn after all: `freeze("").thaw("fc")` trains the classifier alone.
    pub fn thaw(self, scope: impl Into<String>) -> Self {
        self.rule(scope, Rule::Thaw)
    }

    fn rule(mut self, scope: impl Into<String>, rule: Rule) -> Self {
        self.rules.push((scope.into(), rule));
        self
    }

    /// What applies to each parameter.
    ///
    /// # Errors
    /// A rule that covers no parameter; a factor that is negative or not a number; nothing left to learn.
    pub(super) fn resolve(&self, defs: &[ParamDef]) -> Result<Vec<Share>> {
        for (scope, rule) in &self.rules {
            if !defs.iter().any(|def| covers(scope, &def.name)) {
                return Err(Error::unknown("scope of a parameter group", scope, known(defs)));
            }
            if let Rule::Rate(factor) | Rule::Decay(factor) = rule
                && !(factor.is_finite() && *factor >= 0.0)
            {
                return Err(Error::mismatch(format!("group `{scope}`"), "factor", "a number from 0 on", factor));
            }
        }
        let shares: Vec<Share> = defs.iter().map(|def| self.share(def)).collect();
        if !shares.iter().any(|share| share.learns) {
            return Err(Error::invalid("parameter groups", "every parameter is frozen: there is nothing to learn"));
        }
        Ok(shares)
    }

    fn share(&self, def: &ParamDef) -> Share {
        let decays = !self.spare || def.kind == ParamKind::Weight;
        let mut share = Share { rate: 1.0, decay: f32::from(u8::from(decays)), learns: true };
        for (_, rule) in self.rules.iter().filter(|(scope, _)| covers(scope, &def.name)) {
            match *rule {
                Rule::Rate(factor) => share.rate = factor,
                Rule::Decay(factor) => share.decay = factor,
                Rule::Freeze => share.learns = false,
                Rule::Thaw => share.learns = true,
            }
        }
        share.learns &= def.kind.is_learned();
        share
    }

    /// The names of the parameters that are frozen, running statistics among them.
    pub fn frozen<'d>(&self, defs: &'d [ParamDef]) -> Vec<&'d str> {
        let frozen = |def: &&ParamDef| {
            let decides = |rule: &Rule| matches!(rule, Rule::Freeze | Rule::Thaw);
            let last = self.rules.iter().rfind(|(scope, rule)| decides(rule) && covers(scope, &def.name));
            last.is_some_and(|(_, rule)| *rule == Rule::Freeze)
        };
        defs.iter().filter(frozen).map(|def| def.name.as_str()).collect()
    }
}

/// Names of parameters and of the scopes around them, for suggestions.
fn known(defs: &[ParamDef]) -> impl Iterator<Item = &str> {
    let scopes = |name: &'_ str| name.match_indices('.').map(|(at, _)| at).collect::<Vec<_>>();
    defs.iter().flat_map(move |def| scopes(&def.name).into_iter().map(|at| &def.name[..at]).chain([def.name.as_str()]))
}

fn covers(scope: &str, name: &str) -> bool {
    name.strip_prefix(scope).is_some_and(|rest| scope.is_empty() || rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Init;

    fn defs() -> Vec<ParamDef> {
        let kinds = [
            ("conv1.weight", ParamKind::Weight),
            ("bn1.weight", ParamKind::NormScale),
            ("bn1.running_mean", ParamKind::RunningMean),
            ("conv10.weight", ParamKind::Weight),
            ("fc.weight", ParamKind::Weight),
            ("fc.bias", ParamKind::Bias),
        ];
        let def = |(name, kind): (&str, ParamKind)| ParamDef {
            name: name.to_owned(),
            shape: vec![1],
            kind,
            init: Init::Constant(0.0),
            auxiliary: false,
        };
        kinds.into_iter().map(def).collect()
    }

    #[test]
    fn later_rules_win_and_scopes_end_at_dots() {
        let groups = Groups::new().weights_decay_alone().rate("", 0.1).rate("fc", 1.0).freeze("conv1");
        let shares = groups.resolve(&defs()).unwrap();
        let rates: Vec<f32> = shares.iter().map(|s| s.rate).collect();
        assert_eq!(rates, [0.1, 0.1, 0.1, 0.1, 1.0, 1.0]);
        let learns: Vec<bool> = shares.iter().map(|s| s.learns).collect();
        assert_eq!(learns, [false, true, false, true, true, true]);
        let decays: Vec<f32> = shares.iter().map(|s| s.decay).collect();
        assert_eq!(decays, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(groups.frozen(&defs()), ["conv1.weight"]);
        let head = Groups::new().freeze("").thaw("fc");
        assert_eq!(head.frozen(&defs()), ["conv1.weight", "bn1.weight", "bn1.running_mean", "conv10.weight"]);
        assert!(head.resolve(&defs()).unwrap()[4].learns);
    }

    #[test]
    fn rules_that_cover_nothing_or_freeze_everything_are_errors() {
        let fails = |groups: Groups| groups.resolve(&defs()).unwrap_err().to_string();
        assert!(fails(Groups::new().freeze("conv")).contains("nearest: conv1"));
        assert!(fails(Groups::new().freeze("")).contains("nothing to learn"));
        assert!(fails(Groups::new().rate("fc", f32::NAN)).contains("NaN"));
    }
}
