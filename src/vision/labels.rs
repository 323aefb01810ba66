//! Class names, and the classes a network ranks highest.

use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

/// ILSVRC-2012's classes, one `synset names` line each, in the order every framework numbers them (by synset).
const IMAGENET: &str = include_str!("imagenet_classes.txt");

static IMAGENET_CLASSES: LazyLock<Box<[(&str, &str); 1000]>> = LazyLock::new(|| {
    let lines: Box<[_]> = IMAGENET.lines().map(|line| line.split_once(' ').unwrap_or((line, line))).collect();
    lines.try_into().expect("the bundled list has 1000 lines")
});
static IMAGENET_NAMES: LazyLock<[&str; 1000]> = LazyLock::new(|| IMAGENET_CLASSES.map(|(_, names)| names));
static IMAGENET_SYNSETS: LazyLock<[&str; 1000]> = LazyLock::new(|| IMAGENET_CLASSES.map(|(synset, _)| synset));

/// The 1000 ImageNet classes: names with their synonyms, such as `Egyptian cat` or `tench, Tinca tinca`.
pub fn imagenet() -> &'static [&'static str; 1000] {
    &IMAGENET_NAMES
}

/// The WordNet identifiers of the 1000 ImageNet classes, such as `n02124075`; sorted, as the class numbers are.
pub fn imagenet_synsets() -> &'static [&'static str; 1000] {
    &IMAGENET_SYNSETS
}

/// The ten classes of CIFAR-10.
pub fn cifar10() -> &'static [&'static str; 10] {
    &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
}

/// Longest labels file that is read.
const MOST_BYTES: u64 = 16 << 20;

/// Reads a labels file: UTF-8, one class a line, in class order. Blank lines at the end do not count.
///
/// Fails if the file cannot be read, is not text, is over 16 MiB or has no line.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    let name = path.display().to_string();
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Error::limit(name, "file size in bytes", MOST_BYTES, bytes.len() as u64));
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::format(&name, format!("line {line} is not UTF-8 text"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_end();
    if text.is_empty() {
        return Err(Error::format(name, "there is no label in it"));
    }
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// Probabilities: `exp(x_i - max) / Σ exp(x_j - max)`. A NaN among the logits makes all of them NaN, as in PyTorch.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|&x| (x - max).exp()).collect();
    let total: f64 = powers.iter().map(|&p| f64::from(p)).sum();
    powers.into_iter().map(|p| (f64::from(p) / total) as f32).collect()
}

/// The `k` largest values with their indices, largest first; all of them if there are fewer.
///
/// Equal values come in order of their index, and NaN after every number.
pub fn top_k(values: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
    // Zeros of either sign are equal to a reader; `total_cmp` would part them.
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v + 0.0 };
    ranked.sort_by(|a, b| a.1.is_nan().cmp(&b.1.is_nan()).then(key(b.1).total_cmp(&key(a.1))).then(a.0.cmp(&b.0)));
    ranked.truncate(k);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_names_stand_at_their_published_numbers() {
        let known = [(0, "tench"), (281, "tabby"), (285, "Egyptian cat"), (967, "espresso"), (999, "toilet tissue")];
        for (index, name) in known {
            assert!(imagenet()[index].starts_with(name), "{index}: {}", imagenet()[index]);
        }
        assert!(imagenet_synsets().is_sorted());
        assert!(imagenet_synsets().iter().all(|s| s.len() == 9 && s.starts_with('n')));
        assert!(imagenet().iter().all(|name| !name.is_empty()));
        assert_eq!(imagenet_synsets()[285], "n02124075");
        assert_eq!(cifar10()[9], "truck");
    }

    #[test]
    fn ties_go_by_index_and_nan_comes_last() {
        let values = [1.0, f32::NAN, 3.0, -0.0, 3.0, f32::NEG_INFINITY, 0.0];
        let order: Vec<usize> = top_k(&values, 99).into_iter().map(|(i, _)| i).collect();
        assert_eq!(order, [2, 4, 0, 3, 6, 5, 1]);
        assert_eq!(top_k(&values, 1), [(2, 3.0)]);
        assert!(top_k(&values, 0).is_empty() && top_k(&[], 3).is_empty());
    }

    #[test]
    fn softmax_neither_overflows_nor_hides_nan() {
        let p = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
        assert!(softmax(&[f32::NAN, 1.0]).iter().all(|p| p.is_nan()));
        assert!((softmax(&[0.0, 1.0])[1] - 0.731_058_6).abs() < 1e-7);
        assert!(softmax(&[]).is_empty());
    }

    #[test]
    fn label_files_lose_what_editors_add() {
        let dir = std::env::temp_dir().join(format!("convzoo-labels-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("labels.txt");
        std::fs::write(&path, "\u{feff}cat\r\n\r\ndog, hound\r\n\n\n").unwrap();
        assert_eq!(read(&path).unwrap(), ["cat", "", "dog, hound"]);
        std::fs::write(&path, b"cat\nd\xffg\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, "\n \n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no label"));
        assert!(matches!(read(dir.join("absent")), Err(Error::Io { .. })));
        assert!(read(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
