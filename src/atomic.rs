//! Files that are either complete or not there: written beside their final name, flushed to disk, then renamed.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Removes the temporary file unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path); // nothing better can be done with a failure here
        }
    }
}

/// Creates or replaces `path` with what `write` produces. If anything fails, an existing file keeps its old content and
/// no temporary file is left behind.
pub(crate) fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let io = |source| Error::io(path, source);
    let name = path.file_name().ok_or_else(|| Error::invalid(path.display().to_string(), "is not a file name"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{unique}.tmp", std::process::id()));
    let temporary = folder.join(hidden);

    let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(io)?;
    let mut guard = Temporary(Some(temporary.clone()));
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    write(&mut writer)?;
    writer.flush().map_err(io)?;
    let file = writer.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)?;
    drop(file); // Windows does not rename open files
    fs::rename(&temporary, path).map_err(io)?;
    guard.0 = None;
    // The rename itself must survive a power cut too; folders cannot be opened everywhere, so this is best effort.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("convzoo-atomic-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("weights.bin");
        write_atomically(&path, |w| w.write_all(b"old").map_err(|e| Error::io("w", e))).unwrap();
        let error = write_atomically(&path, |w| {
            w.write_all(b"half of the new").map_err(|e| Error::io("w", e))?;
            Err(Error::invalid("tensor", "cannot be written"))
        });
        assert!(error.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_the_path() {
        let error = write_atomically(Path::new("/no/such/folder/w.bin"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder/w.bin"), "{error}");
    }
}
