//! [`StateDict`]: named tensors as a file held them.

use super::Dtype;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap};

/// Named tensors in the order of the file, converted to `f32`.
///
/// Names are unique; inserting a name twice is an error, because in a weight file it means that one of the two tensors
/// would silently win.
///
/// ```
/// use convzoo::{Tensor, weights::StateDict};
/// let mut state = StateDict::new("memory");
/// state.insert("linear.weight", Tensor::zeros(&[10, 64]))?;
/// state.rename(|name| name.strip_prefix("linear.").map(|rest| format!("fc.{rest}")))?;
/// assert_eq!(state.get("fc.weight").unwrap().shape(), [10, 64]);
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct StateDict {
    source: String,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    ignored: Vec<(String, &'static str)>,
}

/// One named tensor.
#[derive(Debug, Clone)]
struct Entry {
    name: String,
    tensor: Tensor,
    dtype: Dtype,
}

impl StateDict {
    /// An empty dictionary; `source` is what error messages call it (usually the file).
    pub fn new(source: impl Into<String>) -> Self {
        StateDict { source: source.into(), ..StateDict::default() }
    }

    /// The file, or what stands for it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Appends a tensor of `f32` elements. A name that is already there is an error.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) -> Result<()> {
        self.insert_as(name, tensor, Dtype::F32)
    }

    /// Appends a tensor that the file stored as `dtype`. A name that is already there is an error.
    pub(crate) fn insert_as(&mut self, name: impl Into<String>, tensor: Tensor, dtype: Dtype) -> Result<()> {
        let name = name.into();
        if self.index.insert(name.clone(), self.entries.len()).is_some() {
            return Err(Error::format(&self.source, format!("the name `{}` occurs twice", shown(&name))));
        }
        self.entries.push(Entry { name, tensor, dtype });
        Ok(())
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.entries[i].tensor)
    }

    /// The element type this tensor had in the file.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.index.get(name).map(|&i| self.entries[i].dtype)
    }

    /// Takes a tensor out; the others keep their order.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        let at = self.index.remove(name)?;
        let entry = self.entries.remove(at);
        self.index.values_mut().filter(|i| **i > at).for_each(|i| *i -= 1);
        Some(entry.tensor)
    }

    /// Names and tensors in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|e| (e.name.as_str(), &e.tensor))
    }

    /// Names in the order of the file.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Renames every tensor for which `new_name` returns a name; `None` keeps the old one. Two tensors ending up under
    /// one name is an error, and then nothing is renamed.
    pub fn rename(&mut self, new_name: impl FnMut(&str) -> Option<String>) -> Result<()> {
        let names: Vec<&str> = self.entries.iter().map(|e| e.name.as_str()).collect();
        let names = new_names(&self.source, &names, new_name)?;
        self.index = names.iter().enumerate().map(|(i, name)| (name.clone(), i)).collect();
        self.entries.iter_mut().zip(names).for_each(|(entry, name)| entry.name = name);
        Ok(())
    }

    /// Free text beside the tensors: the `__metadata__` of a safetensors file. Empty for the other formats.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Free text beside the tensors, to write to; only safetensors files keep it.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }

    /// Entries of the file that are no tensors and were left out, with the reason.
    pub fn ignored(&self) -> &[(String, &'static str)] {
        &self.ignored
    }

    /// Notes an entry that was left out.
    #[cfg(feature = "pth")]
    pub(super) fn ignore(&mut self, name: String, reason: &'static str) {
        self.ignored.push((name, reason));
    }

    /// Takes the dictionary apart: name, tensor and stored type, in the order of the file.
    pub(super) fn into_parts(self) -> impl Iterator<Item = (String, Tensor, Dtype)> {
        self.entries.into_iter().map(|e| (e.name, e.tensor, e.dtype))
    }
}

/// The names after renaming: what `new_name` returns, or the old one. Two that become one are an error.
pub(super) fn new_names(
    source: &str,
    names: &[&str],
    mut new_name: impl FnMut(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let renamed: Vec<String> = names.iter().map(|name| new_name(name).unwrap_or_else(|| (*name).to_owned())).collect();
    let mut index = HashMap::with_capacity(renamed.len());
    for (i, name) in renamed.iter().enumerate() {
        if let Some(first) = index.insert(name, i) {
            let (one, two) = (shown(names[first]), shown(names[i]));
            let problem = format!("`{one}` and `{two}` would both be named `{}`", shown(name));
            return Err(Error::invalid(format!("{source}: renaming"), problem));
        }
    }
    Ok(renamed)
}

/// A name from a file made fit for a message: control characters escaped, cut after 120 characters.
pub(super) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(120).flat_map(char::escape_debug).collect();
    if name.chars().nth(120).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters() -> StateDict {
        let mut state = StateDict::new("test");
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            state.insert(name, Tensor::from_fn(&[1], |_| i as f32)).unwrap();
        }
        state
    }

    #[test]
    fn removing_keeps_order_and_lookup() {
        let mut state = letters();
        assert_eq!(state.remove("a").unwrap().as_slice(), [0.0]);
        assert!(state.remove("a").is_none());
        assert_eq!(state.names().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(state.get("c").unwrap().as_slice(), [2.0]);
    }

    #[test]
    fn a_name_twice_is_an_error_whether_inserted_or_renamed() {
        let mut state = letters();
        assert!(state.insert("b", Tensor::zeros(&[1])).unwrap_err().to_string().contains("`b` occurs twice"));
        let error = letters().rename(|name| (name != "b").then(|| "x".to_owned())).unwrap_err().to_string();
        assert!(error.contains("`a` and `c`"), "{error}");
        let mut state = letters();
        state.rename(|name| Some(format!("{name}{name}"))).unwrap();
        assert_eq!(state.get("cc").unwrap().as_slice(), [2.0]);
    }

    #[test]
    fn hostile_names_are_made_harmless_for_the_terminal() {
        assert_eq!(shown("a\x1b[31m\n"), "a\\u{1b}[31m\\n");
        assert!(shown(&"x".repeat(5000)).chars().count() == 121);
    }
}
