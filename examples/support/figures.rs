//! Figures of training, from its log.
#![allow(dead_code, reason = "every example uses its part of this file")]

use convzoo::Result;
use convzoo::inspect::curves::{Chart, Curve, Scale, Stroke};
use convzoo::train::read_log;
use std::path::{Path, PathBuf};

/// Training error (dashed) and test error (solid) by epoch, as in He et al. 2015.
pub(crate) fn error_curves(name: &str, color: usize, log: &Path) -> Result<Vec<Curve>> {
    let lines = read_log(log)?;
    let curve = |part: &str, stroke| {
        let point = |line: &serde_json::Map<String, serde_json::Value>| {
            Some((line.get("epoch")?.as_f64()?, 100.0 - line.get(part)?.get("top1")?.as_f64()?))
        };
        Curve { name: format!("{name}, {part}"), color, stroke, points: lines.iter().filter_map(point).collect() }
    };
    Ok(vec![curve("train", Stroke::Dashed), curve("test", Stroke::Solid)])
}

/// Loss of every head (dashed) and of the test (solid) by epoch.
pub(crate) fn loss_curves(name: &str, color: usize, log: &Path) -> Result<Vec<Curve>> {
    let lines = read_log(log)?;
    let heads = lines.first().and_then(|line| line.get("train")?.get("heads")?.as_object());
    let heads: Vec<String> = heads.map_or(Vec::new(), |heads| heads.keys().cloned().collect());
    let mut curves = Vec::new();
    for (i, (part, head)) in heads.iter().map(|head| ("train", head.as_str())).chain([("test", "logits")]).enumerate() {
        let point = |line: &serde_json::Map<String, serde_json::Value>| {
            Some((line.get("epoch")?.as_f64()?, line.get(part)?.get("heads")?.get(head)?.as_f64()?))
        };
        let (color, stroke) = if part == "test" { (color, Stroke::Solid) } else { (color + i, Stroke::Dashed) };
        let name = format!("{name}, {part} {head}");
        curves.push(Curve { name, color, stroke, points: lines.iter().filter_map(point).collect() });
    }
    Ok(curves)
}

/// Draws curves into `folder`.
pub(crate) fn draw(
    folder: &Path,
    file: &str,
    chart: (&str, &str, &str),
    curves: &[Curve],
    scale: Scale,
) -> Result<PathBuf> {
    let (title, x, y) = chart;
    let path = folder.join(file);
    Chart { title, x, y, scale, curves }.write_svg(&path)?;
    Ok(path)
}
