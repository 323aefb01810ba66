//! From a [`StateDict`] into the parameters of a network, with one report of everything that does not fit.

use super::stored::{Stored, StoredTensor};
use super::{Limits, StateDict};
use crate::error::{Error, LoadReport, Result};
use crate::graph::{ParamDef, ParamKind, Params};
use crate::tensor::Tensor;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The network's name for a name in the file; `None` keeps it.
pub type Rename<'f> = &'f dyn Fn(&str) -> Option<String>;

/// How [`load`] treats what does not fit.
///
/// ```
/// use convzoo::graph::{Graph, Params};
/// use convzoo::layers::{Flatten, GlobalAvgPool, Linear};
/// use convzoo::weights::{LoadOptions, StateDict, load};
/// use convzoo::Tensor;
///
/// let graph = Graph::draw(4, &(GlobalAvgPool, Flatten, Linear::new(2)))?;
/// let mut params = Params::blank(graph.params());
/// let mut state = StateDict::new("from elsewhere");
/// state.insert("linear.weight", Tensor::from_fn(&[2, 4], |i| i as f32))?;
/// // The file says `linear` for `2`, and has no bias.
/// let rename = |name: &str| name.strip_prefix("linear.").map(|rest| format!("2.{rest}"));
/// let report = load(&mut params, state, &LoadOptions::lenient().renamed(&rename))?;
/// assert_eq!((report.loaded, report.missing), (1, vec!["2.bias".to_owned()]));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Clone, Copy, Default)]
pub struct LoadOptions<'f> {
    /// Load what fits and report the rest, instead of refusing all. Default `false`. Parameters that found no tensor of
    /// their name and shape keep the values they had, as for a new classifier on old features.
    pub lenient: bool,
    /// The network's name for a name in the file; `None` keeps it. Called before anything else, for files with foreign
    /// names: Caffe's, or `linear` where torchvision says `fc`.
    pub rename: Option<Rename<'f>>,
}

impl<'f> LoadOptions<'f> {
    /// Everything must fit, names as they are.
    pub fn strict() -> Self {
        LoadOptions::default()
    }

    /// Load what fits, report the rest.
    pub fn lenient() -> Self {
        LoadOptions { lenient: true, ..LoadOptions::default() }
    }

    /// With names translated by `rename`.
    pub fn renamed(self, rename: Rename<'f>) -> Self {
        LoadOptions { rename: Some(rename), ..self }
    }
}

/// Reads a weight file and loads it: [`StateDict::read_with`] followed by [`load`], but each tensor of a safetensors file
/// is read straight into its place.
pub fn load_file(
    params: &mut Params,
    path: impl AsRef<Path>,
    options: &LoadOptions,
    limits: &Limits,
) -> Result<LoadReport> {
    fill(params, Stored::open(path.as_ref(), limits)?, options)
}

/// Copies every tensor of `state` into the parameter of its name, or leaves `params` untouched.
///
/// These are no faults, and are listed in [`LoadReport::ignored`]:
/// - `num_batches_tracked`, which counts training steps and has no use here;
/// - auxiliary heads that the checkpoint has none of (evaluation does not read them; their parameters keep their values),
///   or that the network was drawn without;
/// - what the checkpoint holds beside its weights.
///
/// The first torchvision DenseNets named their layers `denselayer1.norm.1.weight`; where the network says
/// `denselayer1.norm1.weight` they are understood. Not-a-number and infinite weights are loaded, as PyTorch does.
///
/// # Errors
/// [`Error::Load`] with all names that are missing, unexpected or misshapen, unless [`LoadOptions::lenient`], which
/// returns the same report. A tensor of integers is never taken for weights: it is in `ignored`, its parameter missing.
/// In both modes: a running variance below zero; two tensors renamed to one name.
pub fn load(params: &mut Params, state: StateDict, options: &LoadOptions) -> Result<LoadReport> {
    fill(params, state.into(), options)
}

fn fill(params: &mut Params, mut stored: Stored, options: &LoadOptions) -> Result<LoadReport> {
    let (pairs, report) = fit(params.defs(), &mut stored, options)?;
    // Everything is read before anything is changed.
    pairs.iter().try_for_each(|&(_, tensor)| stored.fetch(tensor).map(drop))?;
    for (def, tensor) in pairs {
        let value = std::mem::replace(stored.fetch(tensor)?, Tensor::zeros(&[0]));
        let name = params.defs()[def].name.clone();
        params.set(&name, value)?; // cannot fail: name and shape were compared
    }
    Ok(report)
}

/// For each parameter that fits, its place among `defs` and its tensor's in `stored`; and the report. An error where
/// [`load`] has one.
pub(super) fn fit(
    defs: &[ParamDef],
    stored: &mut Stored,
    options: &LoadOptions,
) -> Result<(Vec<(usize, usize)>, LoadReport)> {
    if let Some(rename) = options.rename {
        stored.rename(rename)?;
    }
    let known: HashMap<&str, usize> = defs.iter().enumerate().map(|(i, def)| (def.name.as_str(), i)).collect();
    stored.rename(|name| old_densenet_name(name).filter(|new| !known.contains_key(name) && knows(&known, new)))?;

    let mut report =
        LoadReport { source: stored.source.clone(), ignored: stored.ignored.clone(), ..LoadReport::default() };
    let heads: HashSet<&str> = defs.iter().map(|def| first_part(&def.name)).collect();
    let mut pairs = Vec::with_capacity(stored.tensors.len());
    let mut met = HashSet::with_capacity(stored.tensors.len());
    for (i, StoredTensor { name, shape, dtype, .. }) in stored.tensors.iter().enumerate() {
        let Some(&at) = known.get(name.as_str()) else {
            match reason_to_ignore(name, &heads) {
                Some(reason) => report.ignored.push((name.clone(), reason)),
                None => report.unexpected.push(name.clone()),
            }
            continue;
        };
        if !dtype.is_float() {
            report.ignored.push((name.clone(), "integers are no weights"));
            continue;
        }
        met.insert(defs[at].name.as_str());
        if defs[at].shape != *shape {
            report.misshapen.push((name.clone(), defs[at].shape.clone(), shape.clone()));
            continue;
        }
        pairs.push((at, i));
    }
    for &(def, tensor) in pairs.iter().filter(|(def, _)| defs[*def].kind == ParamKind::RunningVar) {
        check_variance(&defs[def], stored.fetch(tensor)?, &report.source)?;
    }
    note_missing(defs, &met, &mut report);
    report.loaded = pairs.len();
    if !options.lenient && !report.is_clean() {
        return Err(Error::Load(Box::new(report)));
    }
    Ok((pairs, report))
}

impl StateDict {
    /// The parameters of a network as a dictionary to be written, in the order of definition. PyTorch's strict loading
    /// takes what this writes: it supplies `num_batches_tracked` itself.
    pub fn from_params(params: &Params, source: impl Into<String>) -> Result<Self> {
        let mut state = StateDict::new(source);
        params.iter().try_for_each(|(def, value)| state.insert(&*def.name, value.clone()))?;
        Ok(state)
    }
}

const COUNTER: &str = "num_batches_tracked";

fn first_part(name: &str) -> &str {
    name.split_once('.').map_or(name, |(first, _)| first)
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// True for a parameter of the network, and for the batch counter beside one.
fn knows(known: &HashMap<&str, usize>, name: &str) -> bool {
    known.contains_key(name)
        || name.strip_suffix(COUNTER).is_some_and(|norm| known.contains_key(format!("{norm}running_mean").as_str()))
}

/// `features.denseblock1.denselayer1.norm.1.weight` → `features.denseblock1.denselayer1.norm1.weight`.
fn old_densenet_name(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = name.split('.').collect();
    let layer = parts.iter().rposition(|part| part.starts_with("denselayer"))?;
    let [kind @ ("norm" | "conv" | "relu"), number @ ("1" | "2"), _] = parts[layer + 1..] else { return None };
    let joined = format!("{kind}{number}");
    parts.splice(layer + 1..=layer + 2, [joined.as_str()]);
    Some(parts.join("."))
}

/// Why a tensor the network has no place for may be left out.
fn reason_to_ignore(name: &str, heads: &HashSet<&str>) -> Option<&'static str> {
    let head = first_part(name);
    if last_part(name) == COUNTER {
        Some("batch counter")
    } else if head.to_ascii_lowercase().starts_with("aux") && !heads.contains(head) {
        Some("auxiliary head the network was drawn without")
    } else {
        None
    }
}

/// Sorts the parameters that met no tensor into missing ones and auxiliary heads the checkpoint has nothing of.
fn note_missing(defs: &[ParamDef], met: &HashSet<&str>, report: &mut LoadReport) {
    let some_heads = defs.iter().any(|def| def.auxiliary && met.contains(def.name.as_str()));
    for def in defs.iter().filter(|def| !met.contains(def.name.as_str())) {
        if def.auxiliary && !some_heads {
            report.ignored.push((def.name.clone(), "auxiliary head the checkpoint is without"));
        } else {
            report.missing.push(def.name.clone());
        }
    }
}

/// A variance below zero is no variance: its square root would turn every activation into NaN far from the cause.
fn check_variance(def: &ParamDef, tensor: &Tensor, source: &str) -> Result<()> {
    match tensor.as_slice().iter().enumerate().find(|(_, v)| **v < 0.0) {
        None => Ok(()),
        Some((channel, value)) => Err(Error::invalid(
            format!("{source}: {}", def.name),
            format!("the variance of channel {channel} is {value}, below zero"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Init;
    use crate::weights::Dtype;

    fn def(name: &str, shape: &[usize], kind: ParamKind, auxiliary: bool) -> ParamDef {
        ParamDef { name: name.to_owned(), shape: shape.to_vec(), kind, init: Init::Constant(9.0), auxiliary }
    }

    fn network() -> Params {
        let defs = [
            def("conv1.weight", &[2, 1, 1, 1], ParamKind::Weight, false),
            def("bn1.running_mean", &[2], ParamKind::RunningMean, false),
            def("bn1.running_var", &[2], ParamKind::RunningVar, false),
            def("aux1.fc.weight", &[3, 2], ParamKind::Weight, true),
            def("aux2.fc.weight", &[3, 2], ParamKind::Weight, true),
            def("fc.weight", &[3, 2], ParamKind::Weight, false),
        ];
        Params::init(&defs, &mut rand::rng())
    }

    /// A checkpoint that fits the network but for its auxiliary heads, changed by `edit`.
    fn checkpoint(edit: impl FnOnce(&mut StateDict)) -> StateDict {
        let mut state = StateDict::new("test");
        for (name, shape) in [
            ("conv1.weight", &[2, 1, 1, 1][..]),
            ("bn1.running_mean", &[2]),
            ("bn1.running_var", &[2]),
            ("fc.weight", &[3, 2]),
        ] {
            state.insert(name, Tensor::from_fn(shape, |i| i as f32)).unwrap();
        }
        edit(&mut state);
        state
    }

    fn report(result: Result<LoadReport>) -> LoadReport {
        match result {
            Err(Error::Load(report)) => *report,
            other => panic!("expected a load report, found {other:?}"),
        }
    }

    #[test]
    fn a_checkpoint_without_heads_loads_and_counters_are_ignored() {
        let mut params = network();
        let state = checkpoint(|s| {
            s.insert_as("bn1.num_batches_tracked", Tensor::zeros(&[]), Dtype::I64).unwrap();
            s.insert("AuxLogits.fc.weight", Tensor::zeros(&[1])).unwrap();
        });
        let report = load(&mut params, state, &LoadOptions::strict()).unwrap();
        assert_eq!((report.loaded, report.ignored.len()), (4, 4), "{report:?}");
        assert_eq!(params.get("fc.weight").unwrap().as_slice(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(params.get("aux1.fc.weight").unwrap().as_slice(), [9.0; 6]);
    }

    #[test]
    fn half_of_the_auxiliary_heads_is_a_fault() {
        let state = checkpoint(|s| s.insert("aux1.fc.weight", Tensor::zeros(&[3, 2])).unwrap());
        assert_eq!(report(load(&mut network(), state, &LoadOptions::strict())).missing, ["aux2.fc.weight"]);
    }

    #[test]
    fn strict_loading_lists_everything_and_changes_nothing() {
        let mut params = network();
        let edit = |s: &mut StateDict| {
            s.remove("conv1.weight");
            s.remove("fc.weight");
            s.insert("fc.weight", Tensor::zeros(&[1000, 2])).unwrap();
            s.insert("extra", Tensor::zeros(&[1])).unwrap();
        };
        let found = report(load(&mut params, checkpoint(edit), &LoadOptions::strict()));
        assert_eq!(found.missing, ["conv1.weight"]);
        assert_eq!(found.unexpected, ["extra"]);
        assert_eq!(found.misshapen, [("fc.weight".to_owned(), vec![3, 2], vec![1000, 2])]);
        let text = Error::Load(Box::new(found.clone())).to_string();
        assert!(
            text.contains("missing     conv1.weight") && text.contains("expected [3, 2], found [1000, 2]"),
            "{text}"
        );
        assert!(params.iter().all(|(_, value)| value.as_slice().iter().all(|&v| v == 9.0)));

        let lenient = load(&mut params, checkpoint(edit), &LoadOptions::lenient()).unwrap();
        assert_eq!(lenient, found);
        assert_eq!(params.get("bn1.running_var").unwrap().as_slice(), [0.0, 1.0]);
        assert_eq!(params.get("fc.weight").unwrap().as_slice(), [9.0; 6]);
    }

    #[test]
    fn integers_are_not_taken_for_weights() {
        let state = checkpoint(|s| {
            let tensor = s.remove("fc.weight").unwrap();
            s.insert_as("fc.weight", tensor, Dtype::I8).unwrap();
        });
        let found = report(load(&mut network(), state, &LoadOptions::strict()));
        assert_eq!(found.missing, ["fc.weight"]);
        assert!(found.ignored.contains(&("fc.weight".to_owned(), "integers are no weights")));
    }

    #[test]
    fn a_negative_variance_is_refused_but_not_a_number_loads_elsewhere() {
        let bad = checkpoint(|s| {
            s.remove("bn1.running_var");
            s.insert("bn1.running_var", Tensor::from_slice(&[2], &[1.0, -0.5]).unwrap()).unwrap();
        });
        let mut params = network();
        let error = load(&mut params, bad, &LoadOptions::lenient()).unwrap_err().to_string();
        assert!(error.contains("bn1.running_var") && error.contains("channel 1 is -0.5"), "{error}");
        assert_eq!(params.get("conv1.weight").unwrap().as_slice(), [9.0; 2]);
        let odd = checkpoint(|s| {
            s.remove("conv1.weight");
            s.insert("conv1.weight", Tensor::from_slice(&[2, 1, 1, 1], &[f32::NAN, f32::INFINITY]).unwrap()).unwrap();
        });
        load(&mut params, odd, &LoadOptions::strict()).unwrap();
        assert!(params.get("conv1.weight").unwrap().as_slice()[0].is_nan());
    }

    #[test]
    fn foreign_names_are_translated_and_collisions_refused() {
        let mut state = checkpoint(|_| ());
        state.rename(|name| name.strip_prefix("fc").map(|rest| format!("linear{rest}"))).unwrap();
        let rename = |name: &str| name.strip_prefix("linear").map(|rest| format!("fc{rest}"));
        load(&mut network(), state, &LoadOptions::strict().renamed(&rename)).unwrap();
        let all_one = |_: &str| Some("fc.weight".to_owned());
        assert!(load(&mut network(), checkpoint(|_| ()), &LoadOptions::lenient().renamed(&all_one)).is_err());
    }

    #[test]
    fn the_first_densenets_names_are_understood() {
        let norm = "features.denseblock1.denselayer1.norm1";
        let defs = [
            def(&format!("{norm}.weight"), &[1], ParamKind::NormScale, false),
            def(&format!("{norm}.running_mean"), &[1], ParamKind::RunningMean, false),
        ];
        let mut params = Params::blank(&defs);
        let mut state = StateDict::new("densenet121.pth");
        for last in ["weight", "running_mean", "num_batches_tracked"] {
            let name = format!("features.denseblock1.denselayer1.norm.1.{last}");
            state.insert(name, Tensor::from_fn(if last == COUNTER { &[] } else { &[1] }, |_| 4.0)).unwrap();
        }
        let report = load(&mut params, state, &LoadOptions::strict()).unwrap();
        assert_eq!((report.loaded, report.ignored.len()), (2, 1));
        assert_eq!(params.get(&format!("{norm}.weight")).unwrap().as_slice(), [4.0]);
    }

    #[cfg(all(feature = "pth", feature = "safetensors"))]
    #[test]
    fn a_network_goes_through_a_file_and_back() {
        let defs = [
            def("conv.weight", &[2, 3, 2, 2], ParamKind::Weight, false),
            def("conv.bias", &[2], ParamKind::Bias, false),
            def("scale", &[], ParamKind::NormScale, false),
            def("empty", &[0, 4], ParamKind::Weight, false),
        ];
        let (mut params, mut again) = (Params::blank(&defs), Params::blank(&defs));
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights/wrapped.pth");
        let report = load_file(&mut params, file, &LoadOptions::strict(), &Limits::default()).unwrap();
        assert_eq!((report.loaded, report.ignored.len()), (4, 5), "{report}");

        let saved = std::env::temp_dir().join(format!("convzoo-params-{}.safetensors", std::process::id()));
        let state = StateDict::from_params(&params, "network").unwrap();
        state.write_safetensors(&saved, Dtype::F32).unwrap();
        let report = load_file(&mut again, &saved, &LoadOptions::strict(), &Limits::default()).unwrap();
        std::fs::remove_file(&saved).unwrap();
        assert_eq!(report.loaded, 4);
        assert!(params.iter().zip(again.iter()).all(|(one, two)| one.1 == two.1));
        assert_eq!(again.get("scale").unwrap().as_slice(), [1.5]);
    }
}
