//! PyTorch checkpoints: the zip archive of `torch.save` since 1.6, and the legacy stream before it.

use super::archive::Archive;
use super::budget::Budget;
use super::pickle;
use super::pickle_tree::{Node, Ref, Storage, TensorRef, Tree};
use super::state_dict::{StateDict, shown};
use super::{Dtype, Limits};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::{HashMap, HashSet};

/// Reads the archive form: `NAME/data.pkl`, and `NAME/data/KEY` for each storage.
pub(super) fn read_zip(mut archive: Archive<'_>, limits: &Limits) -> Result<StateDict> {
    let file = archive.file().to_owned();
    let prefixes: Vec<String> = archive
        .names()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
        .map(str::to_owned)
        .collect();
    let [prefix] = prefixes.as_slice() else {
        return Err(Error::format(file, format!("has {} members named data.pkl, not one", prefixes.len())));
    };
    if let Some(order) = archive.stored(&format!("{prefix}byteorder"))?
        && order != b"little"
    {
        let problem = format!("is marked `{}`-endian; only little is read", order.escape_ascii());
        return Err(Error::format(file, problem));
    }
    let missing = || Error::format(&file, "has no data.pkl");
    let bytes = archive.stored(&format!("{prefix}data.pkl"))?.ok_or_else(missing)?;
    let tree = pickle::read(bytes, &file, limits)?;
    let mut known: HashMap<String, &[u8]> = HashMap::new();
    let storages = |storage: &Storage| {
        if let Some(bytes) = known.get(&storage.key) {
            return Ok(*bytes);
        }
        let problem = || Error::format(&file, format!("storage `{}` is not in the archive", shown(&storage.key)));
        let bytes = archive.stored(&format!("{prefix}data/{}", storage.key))?.ok_or_else(problem)?;
        known.insert(storage.key.clone(), bytes);
        Ok(bytes)
    };
    Builder { file: &file, tree: &tree, limits }.state_dict(storages)
}

/// Reads the legacy form: five pickles (magic number, version, system, object, storage keys), then the storages.
pub(super) fn read_legacy(bytes: &[u8], file: &str, limits: &Limits) -> Result<StateDict> {
    /// 0x1950a86a20f9469cfc6c as a pickle: LONG1 of ten bytes, STOP.
    const MAGIC: [u8; 13] = [0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    let fail = |problem: String| Error::format(file, problem);
    // The protocol comes first, and from protocol 4 on the length of a frame.
    let start = if bytes.get(2) == Some(&0x95) { 11 } else { 2 };
    if !bytes.get(start..).is_some_and(|rest| rest.starts_with(&MAGIC)) {
        let problem = "is a Python pickle but no PyTorch checkpoint; only the latter can be read without Python";
        return Err(fail(problem.to_owned()));
    }
    let mut at = start + MAGIC.len();
    let mut next = || -> Result<Tree<'_>> {
        let tree = pickle::read(&bytes[at..], file, limits)?;
        at += tree.end;
        Ok(tree)
    };
    let version = next()?;
    if !matches!(version.node(version.root), Node::Int(1001)) {
        return Err(fail("is a legacy checkpoint of an unknown version (1001 is read)".to_owned()));
    }
    let system = next()?;
    if let Some(order) = entry(&system, system.root, "little_endian")
        && !matches!(system.node(order), Node::Bool(true))
    {
        return Err(fail("was written on a big-endian machine; only little-endian is read".to_owned()));
    }
    let tree = next()?;
    let keys = next()?;
    let stored = legacy_storages(bytes, at, &tree, &keys, file)?;
    let storages = |storage: &Storage| {
        let problem = || fail(format!("storage `{}` is not in the file", shown(&storage.key)));
        stored.get(storage.key.as_str()).copied().ok_or_else(problem)
    };
    Builder { file, tree: &tree, limits }.state_dict(storages)
}

/// The bytes of each storage, which follow the pickles in the order of `keys`, each after its number of elements.
fn legacy_storages<'a>(
    bytes: &'a [u8],
    mut at: usize,
    tree: &Tree<'a>,
    keys: &Tree<'a>,
    file: &str,
) -> Result<HashMap<&'a str, &'a [u8]>> {
    let fail = |problem: String| Error::format(file, problem);
    let mut described: HashMap<&str, &Storage> = HashMap::new();
    for node in tree.nodes() {
        if let Node::Storage(storage) = node {
            let first = *described.entry(&storage.key).or_insert(storage);
            if (first.dtype, first.len) != (storage.dtype, storage.len) {
                return Err(fail(format!("storage `{}` is described in two ways", shown(&storage.key))));
            }
        }
    }
    let Node::List(list) = keys.node(keys.root) else {
        return Err(fail("the storage keys are not a list".to_owned()));
    };
    let mut stored = HashMap::new();
    for &key in list {
        let key = keys.text(key).ok_or_else(|| fail("a storage key is not text".to_owned()))?;
        let storage = described.get(key).ok_or_else(|| fail(format!("storage `{}` is used nowhere", shown(key))))?;
        let count = bytes[at..].first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
        let count = count.ok_or_else(|| fail(format!("ends before storage `{}`", shown(key))))?;
        if count != storage.len {
            let problem = format!("storage `{}` has {count} elements, not {} as described", shown(key), storage.len);
            return Err(fail(problem));
        }
        let rest = &bytes[at + 8..];
        let size = u128::from(count) * storage.dtype.size() as u128;
        if size > rest.len() as u128 {
            let problem = format!("storage `{}` takes {size} bytes, but only {} follow", shown(key), rest.len());
            return Err(fail(problem));
        }
        if stored.insert(key, &rest[..size as usize]).is_some() {
            return Err(fail(format!("storage `{}` occurs twice", shown(key))));
        }
        at += 8 + size as usize;
    }
    Ok(stored)
}

/// The value under a text key of a dictionary, the last one if it is repeated.
fn entry(tree: &Tree, dict: Ref, key: &str) -> Option<Ref> {
    let Node::Dict(entries) = tree.node(dict) else { return None };
    entries.iter().rev().find(|(k, _)| tree.text(*k) == Some(key)).map(|(_, value)| *value)
}

/// Makes the state dict out of a pickle.
struct Builder<'t> {
    file: &'t str,
    tree: &'t Tree<'t>,
    limits: &'t Limits,
}

impl<'t> Builder<'t> {
    fn fail(&self, problem: impl Into<String>) -> Error {
        Error::format(self.file, problem)
    }

    /// Finds the dictionary of tensors, decodes each, and takes `module.` off the names if all carry it. `storages`
    /// gives the bytes of a storage.
    fn state_dict<'a>(&self, mut storages: impl FnMut(&Storage) -> Result<&'a [u8]>) -> Result<StateDict> {
        let mut state = StateDict::new(self.file);
        let entries = self.unwrap(&mut state)?;
        let mut budget = Budget::new(self.limits);
        let mut backing = Backing::default();
        for &(key, value) in entries {
            let name = self.tree.text(key).ok_or_else(|| self.fail("a key of the state dict is not text"))?;
            match self.tree.node(value) {
                Node::Tensor(tensor) => {
                    let Node::Storage(storage) = self.tree.node(tensor.storage) else {
                        return Err(self.fail("a tensor lies in what is not a storage"));
                    };
                    let held = Held { storage, bytes: storages(storage)? };
                    let value = self.decode(name, tensor, &held, &mut budget, &mut backing)?;
                    state.insert_as(name, value, storage.dtype)?;
                }
                _ => state.ignore(name.to_owned(), "not a tensor"),
            }
        }
        if !state.is_empty() && state.names().all(|name| name.starts_with("module.")) {
            state.rename(|name| name.strip_prefix("module.").map(str::to_owned))?;
        }
        Ok(state)
    }

    /// Follows wrapper keys from the root to the dictionary that holds tensors.
    fn unwrap(&self, state: &mut StateDict) -> Result<&'t [(Ref, Ref)]> {
        const WRAPPERS: [&str; 9] = [
            "state_dict",
            "model_state_dict",
            "model",
            "params",
            "net",
            "network",
            "weights",
            "state_dict_ema",
            "model_ema",
        ];
        let mut at = self.tree.root;
        // Real files wrap once, some twice; the bound keeps a dictionary within itself from going on for ever.
        for _ in 0..4 {
            let Node::Dict(entries) = self.tree.node(at) else {
                return Err(self.fail("holds no dictionary of tensors; save a state dict"));
            };
            self.refuse_duplicates(entries)?;
            let inner = WRAPPERS.iter().find_map(|wrapper| {
                let value = entry(self.tree, at, wrapper)?;
                matches!(self.tree.node(value), Node::Dict(_)).then_some((*wrapper, value))
            });
            let keys = || entries.iter().filter_map(|(key, _)| self.tree.text(*key));
            // A wrapper goes first: training scripts put tensors (the best accuracy) beside the state dict.
            let Some((wrapper, value)) = inner else {
                if entries.is_empty() || entries.iter().any(|(_, v)| matches!(self.tree.node(*v), Node::Tensor(_))) {
                    return Ok(entries);
                }
                let some: Vec<String> = keys().take(8).map(shown).collect();
                return Err(self.fail(format!("holds no tensors under a known key {WRAPPERS:?}; its keys: {some:?}")));
            };
            for key in keys().filter(|key| *key != wrapper) {
                state.ignore(key.to_owned(), "beside the weights in the checkpoint");
            }
            at = value;
        }
        Err(self.fail("wraps its tensors too deep"))
    }

    fn refuse_duplicates(&self, entries: &[(Ref, Ref)]) -> Result<()> {
        let mut seen = HashSet::with_capacity(entries.len());
        for key in entries.iter().filter_map(|(key, _)| self.tree.text(*key)) {
            if !seen.insert(key) {
                return Err(self.fail(format!("the name `{}` occurs twice", shown(key))));
            }
        }
        Ok(())
    }

    fn decode(
        &self,
        name: &str,
        tensor: &TensorRef,
        held: &Held,
        budget: &mut Budget,
        backing: &mut Backing,
    ) -> Result<Tensor> {
        let Held { storage: Storage { key, dtype, len, view }, bytes } = held;
        let (name, dtype) = (shown(name), *dtype);
        let wanted = u128::from(*len) * dtype.size() as u128;
        if bytes.len() as u128 != wanted {
            return Err(self.fail(format!(
                "`{name}`: storage `{}` of {len} {dtype} takes {wanted} bytes, but {} are stored",
                shown(key),
                bytes.len()
            )));
        }
        let count = budget.take(&name, &tensor.shape)?;
        let last = last_element(tensor);
        if count > 0 && last >= i128::from(view.1) {
            return Err(self.fail(format!(
                "`{name}`: {:?} with strides {:?} from {} reaches element {last} of a storage of {}",
                tensor.shape, tensor.strides, tensor.offset, view.1
            )));
        }
        backing.admit(key, *len, budget.elements(), self.limits, &name)?;
        let mut out = Tensor::try_zeros(&tensor.shape)?;
        if count > 0 {
            // Within bounds by the check above, so it fits the length of a slice.
            let first = (view.0 + tensor.offset) as usize * dtype.size();
            gather(tensor, dtype, &bytes[first..], out.as_mut_slice());
        }
        Ok(out)
    }
}

/// A storage and its bytes.
struct Held<'s> {
    storage: &'s Storage,
    bytes: &'s [u8],
}

/// offset + Σ (extent − 1) · stride, the last element touched; in 128 bits.
fn last_element(tensor: &TensorRef) -> i128 {
    let reach = tensor.shape.iter().zip(&tensor.strides);
    // Saturating, for only the comparison with the storage's end matters.
    reach.fold(i128::from(tensor.offset), |sum, (&n, &stride)| {
        let span = (n as i128 - 1).max(0).saturating_mul(i128::from(stride));
        sum.saturating_add(span)
    })
}

/// Copies a strided tensor into row-major order; `bytes` begins at its first element and bounds were checked.
fn gather(tensor: &TensorRef, dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let size = dtype.size();
    // The longest tail of dimensions that lies in memory as it will lie in the tensor is decoded in one go.
    let mut run = 1usize;
    let mut outer = tensor.shape.len();
    while outer > 0 && (tensor.shape[outer - 1] == 1 || tensor.strides[outer - 1] == run as u64) {
        run *= tensor.shape[outer - 1];
        outer -= 1;
    }
    let (shape, strides) = (&tensor.shape[..outer], &tensor.strides[..outer]);
    let mut index = vec![0usize; outer];
    let mut at = 0usize;
    let element = dtype.element();
    for chunk in out.chunks_exact_mut(run) {
        if run == 1 {
            chunk[0] = element(&bytes[at * size..][..size]);
        } else {
            dtype.decode(&bytes[at * size..][..run * size], chunk);
        }
        for axis in (0..outer).rev() {
            index[axis] += 1;
            at = at.wrapping_add(strides[axis] as usize); // wraps only where an extent of 1 takes it back below
            if index[axis] < shape[axis] {
                break;
            }
            at = at.wrapping_sub((strides[axis] as usize).wrapping_mul(shape[axis]));
            index[axis] = 0;
        }
    }
}

/// Counts the elements of the storages in use, to bound what sharing and expansion can make of them.
#[derive(Default)]
struct Backing {
    seen: HashSet<String>,
    elements: u64,
}

impl Backing {
    fn admit(&mut self, key: &str, len: u64, granted: u64, limits: &Limits, name: &str) -> Result<()> {
        if !self.seen.contains(key) {
            self.seen.insert(key.to_owned());
            self.elements = self.elements.saturating_add(len);
        }
        let most = self.elements.saturating_add(limits.max_unfolded);
        if granted > most {
            let at = format!("tensor `{name}`");
            return Err(Error::limit(at, "number of elements unfolded from the stored ones", most, granted));
        }
        Ok(())
    }
}
