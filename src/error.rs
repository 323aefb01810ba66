//! Errors as values: what was expected, what was found, and where.
//!
//! This room imports nothing from the crate. `at` is always the place a user can look for: a layer path such as
//! `layer2.0.conv2`, a tensor name, a file, an argument.

use std::fmt;
use std::path::PathBuf;

/// The result type of every fallible call in the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each variant naming the place and both numbers.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two sizes that had to agree did not.
    #[error("{at}: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// Layer path, tensor name or argument.
        at: String,
        /// The quantity compared, for example `input channels`.
        what: &'static str,
        /// What had to be there.
        expected: String,
        /// What was there.
        found: String,
    },
    /// A setting that cannot work whatever it meets (stride 0, groups that do not divide, ...).
    #[error("{at}: {problem}")]
    Invalid {
        /// Layer path or argument.
        at: String,
        /// The rule that was broken, with the numbers.
        problem: String,
    },
    /// A name that nothing answers to.
    #[error("unknown {kind} `{name}`{}", suggest(nearest))]
    Unknown {
        /// What was looked for: `model`, `output`, `parameter`, ...
        kind: &'static str,
        /// The name that was asked for.
        name: String,
        /// The nearest names that exist.
        nearest: Vec<String>,
    },
    /// Weights that do not fit the network; the report lists every name.
    #[error("{0}")]
    Load(Box<LoadReport>),
    /// A file whose content is broken or hostile.
    #[error("{file}: {problem}")]
    Format {
        /// File name, or what stands for it when reading from memory.
        file: String,
        /// What is wrong, where in the file, and both numbers.
        problem: String,
    },
    /// A size beyond the configured limit.
    #[error("{at}: {what} is {found}, over the limit of {limit}")]
    Limit {
        /// File or argument.
        at: String,
        /// The quantity limited.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// What was asked for.
        found: u64,
    },
    /// Training arrived at a number that is none. Running statistics are as they were before that step, and so are weights
    /// unless they are moved on the way back ([`Trainer::step`](crate::train::Trainer::step) without clipping): then those
    /// whose gradients were complete before the one that is not finite have moved, and the optimiser's memory with them.
    #[error(
        "training diverged at step {step}: the {what} is {value} with learning rate {rate:.3e}; {}",
        last_good(checkpoint)
    )]
    Diverged {
        /// The quantity that is not finite.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The step, from 0.
        step: u64,
        /// The learning rate of the step.
        rate: f64,
        /// The last checkpoint written.
        checkpoint: Option<PathBuf>,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// The same text as [`Display`](fmt::Display): it is what a `main` that returns an error prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// Two sizes that had to agree did not.
    pub fn mismatch(at: impl Into<String>, what: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Error::Mismatch { at: at.into(), what, expected: expected.to_string(), found: found.to_string() }
    }

    /// A setting that cannot work.
    pub fn invalid(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Invalid { at: at.into(), problem: problem.into() }
    }

    /// A broken file.
    pub fn format(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Error::Format { file: file.into(), problem: problem.into() }
    }

    /// A failed system call on `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// A size over its limit.
    pub fn limit(at: impl Into<String>, what: &'static str, limit: u64, found: u64) -> Self {
        Error::Limit { at: at.into(), what, limit, found }
    }

    /// An unknown name, with up to five of the `known` names that resemble it.
    pub fn unknown<'a>(kind: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let mut ranked: Vec<(usize, &str)> =
            known.into_iter().map(|k| (edit_distance(name, k), k)).filter(|(d, k)| *d <= k.len().max(3) / 2).collect();
        ranked.sort();
        ranked.dedup();
        let nearest = ranked.into_iter().take(5).map(|(_, k)| k.to_owned()).collect();
        Error::Unknown { kind, name: name.to_owned(), nearest }
    }
}

fn last_good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "no checkpoint was written".to_owned(),
    }
}

fn suggest(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
}

/// Levenshtein distance on bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What a checkpoint and a network disagree about, complete: every name, not the first one met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// The file, or what stands for it.
    pub source: String,
    /// Parameters that were filled.
    pub loaded: usize,
    /// Parameters of the network that the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors of the checkpoint that the network has no place for.
    pub unexpected: Vec<String>,
    /// Tensors present on both sides with different shapes: name, shape in the network, shape in the checkpoint.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Tensors left out knowingly, with the reason (auxiliary heads, batch counters).
    pub ignored: Vec<(String, &'static str)>,
}

impl LoadReport {
    /// True if nothing is missing, unexpected or misshapen.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} loaded, {} missing, {} unexpected, {} misshapen",
            self.source,
            self.loaded,
            self.missing.len(),
            self.unexpected.len(),
            self.misshapen.len()
        )?;
        for name in &self.missing {
            write!(f, "\n  missing     {name}")?;
        }
        for name in &self.unexpected {
            write!(f, "\n  unexpected  {name}")?;
        }
        for (name, expected, found) in &self.misshapen {
            write!(f, "\n  misshapen   {name}: expected {expected:?}, found {found:?}")?;
        }
        // Grouped by reason: a network has hundreds of batch counters, and one line says it.
        let mut reasons: Vec<&str> = self.ignored.iter().map(|(_, reason)| *reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        for reason in reasons {
            let mut names = self.ignored.iter().filter(|(_, r)| *r == reason).map(|(name, _)| name);
            write!(f, "\n  ignored     {}", names.next().map_or("", String::as_str))?;
            match names.count() {
                0 => write!(f, " ({reason})")?,
                more => write!(f, " and {more} more ({reason})")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_name_lists_the_nearest_ones() {
        let error = Error::unknown("model", "resnet5", ["resnet50", "vgg16", "resnet18"]);
        let Error::Unknown { nearest, .. } = &error else { panic!("wrong variant") };
        assert_eq!(nearest[0], "resnet50");
        assert!(error.to_string().contains("unknown model `resnet5`; nearest: resnet50"));
    }

    #[test]
    fn a_name_that_is_known_several_times_is_suggested_once() {
        let error = Error::unknown("scope", "layer", ["layer1", "layer2", "layer1", "layer1"]).to_string();
        assert_eq!(error, "unknown scope `layer`; nearest: layer1, layer2");
    }

    #[test]
    fn a_main_that_returns_an_error_prints_its_lines_and_no_struct() {
        let misshapen = vec![("fc.weight".to_owned(), vec![10, 512], vec![1000, 512])];
        let error = Error::Load(Box::new(LoadReport { source: "w.pth".into(), misshapen, ..LoadReport::default() }));
        let text = format!("{error:?}");
        assert_eq!(text, error.to_string());
        assert!(text.contains("\n  misshapen   fc.weight: expected [10, 512], found [1000, 512]"), "{text}");
    }
}
