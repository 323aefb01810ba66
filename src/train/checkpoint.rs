//! Checkpoints: everything the next step depends on, in one safetensors file.
//!
//! Weights lie under `params/`, an average of them under `ema/`, the optimiser's memory under `optimizer/SLOT/`, and the
//! numbers in the file's metadata. There is no state of a random generator to keep: all randomness is a function of the
//! seed and of the counters (see [`crate::random`]).

use super::ema::EmaState;
use super::metrics::{Metrics, MetricsState};
use super::{Progress, Trainer};
use crate::error::{Error, Result};
use crate::graph::Params;
use crate::weights::{Dtype, LoadOptions, StateDict, load};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What the metadata holds, as JSON under one key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    progress: Progress,
    updates: Vec<u64>,
    metrics: MetricsState,
    ema: Option<EmaState>,
    recipe: String,
    /// What [`Trainer::save`] was given to keep.
    note: String,
}

const KEY: &str = "convzoo.checkpoint.1";

impl Trainer {
    /// Writes a checkpoint, complete or not at all, with `note` in it for the caller's own bookkeeping. Training resumed
    /// from it continues bit for bit as if it had never stopped.
    ///
    /// # Errors
    /// Gradients accumulated but not applied; training that has diverged; the system's refusals.
    pub fn save(&mut self, path: impl AsRef<Path>, note: &str) -> Result<()> {
        self.check_settled()?;
        let path = path.as_ref();
        let mut state = StateDict::new(path.display().to_string());
        insert(&mut state, "params", &self.params)?;
        if let Some(ema) = &self.ema {
            insert(&mut state, "ema", ema.params())?;
        }
        let defs = self.params.defs();
        for (i, slot, values) in self.optimizer.remembered() {
            state.insert(format!("optimizer/{slot}/{}", defs[i].name), values.clone())?;
        }
        let numbers = Numbers {
            progress: self.progress.clone(),
            updates: self.optimizer.updates().collect(),
            metrics: self.metrics.state(),
            ema: self.ema.as_ref().map(|ema| ema.state()),
            recipe: self.description().to_owned(),
            note: note.to_owned(),
        };
        let text = serde_json::to_string(&numbers).map_err(|e| Error::invalid("checkpoint", e.to_string()))?;
        state.metadata_mut().insert(KEY.to_owned(), text);
        state.write_safetensors(path, Dtype::F32)?;
        self.checkpoint = Some(path.to_owned());
        Ok(())
    }

    /// Takes up training where a checkpoint left it, and gives the note in it.
    ///
    /// # Errors
    /// A file that is no checkpoint; one of another network, with all the names that differ; one made with another
    /// recipe, which could not go on as if it had never stopped. Nothing is changed then.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        let mut state = StateDict::read(path)?;
        let at = path.display().to_string();
        let text = state.metadata().get(KEY).ok_or_else(|| {
            Error::format(&at, "holds no training state: it is a weight file, which `Model::load` reads")
        })?;
        let numbers: Numbers = serde_json::from_str(text).map_err(|e| Error::format(&at, format!("{KEY}: {e}")))?;
        let params = take(&mut state, "params", &self.params)?;
        if numbers.recipe != self.description() {
            let [expected, found] = differences(self.description(), &numbers.recipe);
            return Err(Error::mismatch(at, "recipe", expected, found));
        }
        let ema = match (&self.ema, numbers.ema) {
            (Some(ema), Some(counts)) => Some((counts, take(&mut state, "ema", ema.params())?)),
            _ => None,
        };
        let defs = self.params.defs();
        self.optimizer.restore(&numbers.updates, |i, slot| {
            let name = format!("optimizer/{slot}/{}", defs[i].name);
            state.remove(&name).ok_or_else(|| Error::format(&at, format!("`{name}` is missing")))
        })?;
        if let (Some(ema), Some((counts, average))) = (&mut self.ema, ema) {
            ema.restore(counts, average);
        }
        self.params = params;
        self.progress = numbers.progress;
        self.metrics = Metrics::restore(numbers.metrics);
        self.checkpoint = Some(path.to_owned());
        self.forget();
        Ok(numbers.note)
    }
}

/// What two descriptions of recipes differ in, as the one has it and as the other.
fn differences(one: &str, other: &str) -> [String; 2] {
    const PARTS: [&str; 7] = ["loss", "optimiser", "schedule", "groups", "clip", "ema", "seed"];
    let [ours, theirs] = [one, other].map(|text| text.split("; ").collect::<Vec<_>>());
    if ours.len() != PARTS.len() || theirs.len() != PARTS.len() {
        return [one, other].map(str::to_owned); // a loss or rule of one's own may describe itself with semicolons
    }
    let settings = |text| str::split(text, [',', '{', '}', '(', ')', '[', ']']).map(str::trim).collect::<Vec<_>>();
    let mut lists = [Vec::new(), Vec::new()];
    for (part, pair) in PARTS.iter().zip(ours.into_iter().zip(theirs)).filter(|(_, (a, b))| a != b) {
        let [a, b] = [pair.0, pair.1].map(settings);
        let apart: Vec<_> = a.iter().copied().zip(b.iter().copied()).filter(|(a, b)| a != b).collect();
        // Settings that have names are told apart by them, anything else is shown whole.
        let named = a.len() == b.len() && apart.iter().all(|(a, b)| a.contains(": ") && b.contains(": "));
        for (a, b) in if named { apart } else { vec![pair] } {
            for (list, text) in lists.iter_mut().zip([a, b]) {
                list.push(if text.starts_with(part) { text.to_owned() } else { format!("{part} {text}") });
            }
        }
    }
    lists.map(|list| list.join(", "))
}

fn insert(state: &mut StateDict, prefix: &str, params: &Params) -> Result<()> {
    params.iter().try_for_each(|(def, value)| state.insert(format!("{prefix}/{}", def.name), value.clone()))
}

/// The tensors under `prefix` as parameters like `params`; they must fit one for one.
fn take(state: &mut StateDict, prefix: &str, params: &Params) -> Result<Params> {
    let names: Vec<String> = state.names().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect();
    let mut part = StateDict::new(format!("{}, {prefix}", state.source()));
    for name in names {
        if let (Some(short), Some(tensor)) = (name.strip_prefix(&format!("{prefix}/")), state.remove(&name)) {
            part.insert(short, tensor)?;
        }
    }
    let mut filled = params.clone();
    load(&mut filled, part, &LoadOptions::strict())?;
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{AdamW, Clip, Recipe, Schedule, Sgd};

    #[test]
    fn only_what_differs_between_recipes_is_named() {
        let text = |steps| Recipe::new(Sgd::default(), Schedule::one_cycle(0.1, steps)).describe();
        assert_eq!(differences(&text(75), &text(45)), ["schedule steps: 75", "schedule steps: 45"]);
        let one = Recipe { seed: 1, ..Recipe::new(Sgd::default(), Schedule::cosine(0.1, 9)) };
        let other = Recipe { clip: Some(Clip::Norm(5.0)), ..Recipe::new(Sgd::default(), Schedule::cosine(0.2, 9)) };
        let [one, other] = differences(&one.describe(), &other.describe());
        assert_eq!(one, "schedule rate: 0.1, clip None, seed 1");
        assert_eq!(other, "schedule rate: 0.2, clip Some(Norm(5.0)), seed 0");
        let adam = Recipe::new(AdamW::default(), Schedule::one_cycle(0.1, 75)).describe();
        let [one, other] = differences(&text(75), &adam);
        assert!(one.starts_with("optimiser Sgd {") && other.starts_with("optimiser AdamW {"), "{one} / {other}");
        assert_eq!(differences("a; b", "c"), ["a; b", "c"]);
    }
}
