//! Holds the house to its plan: rooms import downward only, vector instructions, threads and `unsafe` stay in theirs.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may import. A file directly under `src` is a room of its own.
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("activation", &[]),
    ("shape", &["error"]),
    ("par", &[]),
    ("atomic", &["error"]),
    ("random", &[]),
    ("simd", &["activation"]),
    ("tensor", &["error", "shape"]),
    ("kernels", &["activation", "random", "shape", "simd", "tensor"]),
    ("graph", &["activation", "error", "shape", "tensor"]),
    ("layers", &["activation", "error", "graph", "shape", "tensor"]),
    ("models", &["activation", "error", "graph", "layers", "shape", "tensor"]),
    ("exec", &["activation", "atomic", "error", "graph", "kernels", "par", "random", "shape", "simd", "tensor"]),
    ("weights", &["atomic", "error", "graph", "shape", "tensor"]),
    ("train", &["error", "exec", "graph", "random", "tensor", "weights"]),
    ("vision", &["atomic", "error", "random", "shape", "tensor", "train"]),
    ("inspect", &["atomic", "error", "exec", "graph", "shape", "tensor"]),
    ("model", &["error", "exec", "graph", "inspect", "kernels", "tensor", "weights"]),
];

/// The files that may hold `unsafe`, besides the room `simd`.
fn may_be_unsafe(path: &str) -> bool {
    let kernel = path.starts_with("src/kernels/") && !path.contains("/naive/");
    path.starts_with("src/simd/")
        || kernel
        || path.starts_with("src/par")
        || ["src/tensor/storage.rs", "src/exec/run.rs", "src/exec/train/run.rs"].contains(&path)
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source folder can be read") {
        let path = entry.expect("the source folder can be read").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Path from the repository's root, and the code without comments and without its trailing test module.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    sources(&root.join("src"), &mut found);
    assert!(found.len() > 30, "only {} source files found", found.len());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").replace('\\', "/");
        let text = fs::read_to_string(&path).expect("a source file can be read");
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let code: Vec<&str> = code.lines().map(|l| l.split("//").next().unwrap_or_default()).collect();
        (name, code.join("\n"))
    };
    found.into_iter().map(read).collect()
}

fn room(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

/// Rooms named after `crate::`, also inside `use crate::{a, b}`.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = Vec::new();
    for part in code.split("crate::").skip(1) {
        match part.strip_prefix('{') {
            None => rooms.push(word(part)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            rooms.push(word(&list[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    rooms
}

#[test]
fn rooms_import_downward_only() {
    let mut wrong = Vec::new();
    for (path, code) in files() {
        let from = room(&path);
        if from == "lib" {
            continue;
        }
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!("{path}: `{from}` is not in the plan of the house"));
            continue;
        };
        for to in imports(&code) {
            let is_room = ROOMS.iter().any(|(name, _)| *name == to);
            let hoisted = ["Result", "Error", "Tensor", "Activation", "LoadReport", "Model"].contains(&to.as_str());
            if (is_room && to != from && !allowed.contains(&to.as_str())) || hoisted {
                wrong.push(format!("{path}: `{from}` imports `{to}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn rooms_are_listed_from_the_ground_up() {
    for (i, (name, allowed)) in ROOMS.iter().enumerate() {
        for to in *allowed {
            let at = ROOMS.iter().position(|(n, _)| n == to).unwrap_or_else(|| panic!("`{to}` is no room"));
            assert!(at < i, "`{name}` may import `{to}`, which stands above it");
        }
    }
}

#[test]
fn unsafe_rayon_and_intrinsics_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (path, code) in files() {
        let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if words.contains(&"unsafe") && !may_be_unsafe(&path) {
            wrong.push(format!("{path}: unsafe"));
        }
        if words.contains(&"rayon") && room(&path) != "par" {
            wrong.push(format!("{path}: rayon"));
        }
        if code.contains("std::arch") && !path.starts_with("src/simd/") {
            wrong.push(format!("{path}: vector instructions"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
