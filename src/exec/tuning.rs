//! Ways to compute convolutions that were found by timing, and the file that keeps them.

use crate::atomic::write_atomically;
use crate::error::{Error, Result};
use crate::kernels::conv::trial::{Others, fastest};
use crate::kernels::conv::{Algorithm, ConvSpec, Precision};
use crate::simd::{Isa, cpu_name};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

/// What a file begins with.
const HEADER: &str = "# convzoo: the fastest way to compute a convolution, by CPU, instruction set and shape";

/// A file larger than this is none of ours.
const MOST_BYTES: u64 = 16 << 20;

/// What has been found, by CPU, instruction set and shape.
type Found = BTreeMap<String, Algorithm>;

/// The choices of one plan.
pub(super) struct Tuning {
    path: PathBuf,
    known: Found,
    fresh: Found,
    others: Others,
}

impl Tuning {
    /// Goes on from what `path` holds, if it is there. `weight_bytes` are all weights of the network.
    pub(super) fn open(path: &Path, weight_bytes: usize) -> Result<Self> {
        let (path, known) = (path.to_owned(), read(path)?);
        Ok(Tuning { path, known, fresh: Found::new(), others: Others::new(weight_bytes) })
    }

    /// The way to compute a convolution: as known, else by timing all that can.
    pub(super) fn choose(&mut self, spec: ConvSpec, precision: Precision, isa: Isa) -> Algorithm {
        let usual = Algorithm::usual(&spec, precision, isa);
        let able = Algorithm::able(&spec, precision, isa);
        if able.len() < 2 {
            return usual;
        }
        let key = key(&spec, isa);
        let known = self.known.get(&key).or_else(|| self.fresh.get(&key));
        if let Some(&way) = known.filter(|way| able.contains(way)) {
            return way;
        }
        let way = fastest(spec, &able, usual, isa, &self.others);
        self.fresh.insert(key, way);
        way
    }

    /// Adds what is new to the file.
    pub(super) fn save(self) -> Result<()> {
        if self.fresh.is_empty() {
            return Ok(());
        }
        // Others may have written to it meanwhile.
        let mut all = read(&self.path)?;
        all.extend(self.fresh);
        let io = |error| Error::io(&self.path, error);
        write_atomically(&self.path, |file| {
            writeln!(file, "{HEADER}").map_err(io)?;
            all.iter().try_for_each(|(key, way)| writeln!(file, "{key}\t{way}").map_err(io))
        })
    }
}

/// All that decides how long a convolution takes.
fn key(spec: &ConvSpec, isa: Isa) -> String {
    let ConvSpec { input, output, placed, groups, epilogue, .. } = spec;
    let (cpu, isa, label) = (cpu_name(), isa.name(), spec.label());
    let mut key = format!(
        "{cpu}\t{isa}\t{label}g{groups}p{}x{} {}x{}x{}x{}/{} to {}x{}x{}/{}",
        placed.before[0],
        placed.before[1],
        input.n,
        input.h,
        input.w,
        input.c,
        input.ld,
        output.h,
        output.w,
        output.c,
        output.ld,
    );
    if let Some(ld) = epilogue.residual {
        key += &format!(" + /{ld}");
    }
    if let Some(function) = epilogue.activation {
        key += &format!(" {function:?}");
    }
    key
}

/// What a file holds; nothing if it is not there.
fn read(path: &Path) -> Result<Found> {
    let io = |error| Error::io(path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::new()),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(io)? as u64;
    let name = || path.display().to_string();
    if read > MOST_BYTES {
        return Err(Error::limit(name(), "bytes", MOST_BYTES, read));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::format(name(), format!("is not text from byte {at} on: expected a file beginning with `{HEADER}`"))
    })?;
    let entry = |(i, line): (usize, &str)| {
        let parsed = line.rsplit_once('\t').and_then(|(key, way)| Some((key.to_owned(), Algorithm::named(way)?)));
        parsed.ok_or_else(|| {
            Error::format(
                name(),
                format!(
                    "line {} names no way to compute a convolution: expected a file beginning with `{HEADER}`",
                    i + 1
                ),
            )
        })
    };
    text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.is_empty()).map(entry).collect()
}
