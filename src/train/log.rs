//! A log of one JSON object a line, which any tool can read while training runs.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A JSON-lines file that grows by one object at a time.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// An empty log; what the file held is gone.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        Ok(Log { path: path.to_owned(), file })
    }

    /// A log that goes on after step `step`: lines of later steps, written after the checkpoint that training is resumed
    /// from, are dropped, and so is a line cut short. A file that is not there is created.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = path.as_ref();
        let old = if path.exists() { read_log(path)? } else { Vec::new() };
        let mut log = Log::create(path)?;
        let kept = old.iter().filter(|line| line.get("step").and_then(Value::as_u64).is_none_or(|s| s <= step));
        kept.into_iter().try_for_each(|line| log.write(line.clone()))?;
        let path = path.to_owned();
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Log { path, file })
    }

    /// Appends one object.
    pub fn write(&mut self, line: Map<String, Value>) -> Result<()> {
        let text = format!("{}\n", Value::Object(line));
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

/// The objects of a log, but for a last line cut short.
///
/// # Errors
/// A file that cannot be read; a line before the last that is no object, by its number.
pub fn read_log(path: impl AsRef<Path>) -> Result<Vec<Map<String, Value>>> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut lines = Vec::new();
    for (i, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(object) => lines.push(object),
            Err(_) if !line.ends_with('\n') => break,
            Err(e) => return Err(Error::format(path.display().to_string(), format!("line {}: {e}", i + 1))),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> Map<String, Value> {
        let serde_json::Value::Object(map) = serde_json::json!({ "step": step, "loss": 0.5 }) else { unreachable!() };
        map
    }

    #[test]
    fn a_resumed_log_forgets_what_came_after_the_checkpoint() {
        let path = std::env::temp_dir().join(format!("convzoo-log-{}.jsonl", std::process::id()));
        let mut log = Log::create(&path).unwrap();
        (1..=3).for_each(|step| log.write(line(step)).unwrap());
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":4,").unwrap();
        Log::resume(&path, 2).unwrap().write(line(9)).unwrap();
        assert_eq!(read_log(&path).unwrap(), [line(1), line(2), line(9)]);
        std::fs::write(&path, "{}\nnonsense\n{}\n").unwrap();
        assert!(read_log(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::remove_file(&path).unwrap();
    }
}
