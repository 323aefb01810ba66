//! What the charts share: colours, words, ticks, and files that appear whole.

use crate::atomic::write_atomically;
use crate::error::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::io::Write;
use std::path::Path;

pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub(super) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Twelve hues that stay apart from each other; more start over.
pub(super) const COLORS: [RGBColor; 12] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(23, 160, 180),
    RGBColor(227, 119, 194),
    RGBColor(140, 86, 75),
    RGBColor(110, 110, 110),
    RGBColor(170, 160, 20),
    RGBColor(20, 60, 120),
    RGBColor(0, 110, 80),
];
pub(super) const INK: RGBColor = RGBColor(60, 60, 60);
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);

/// A document of this size, drawn by `draw`; `what` stands for it in errors.
pub(super) fn document(what: &str, size: (i32, i32), draw: impl FnOnce(&Canvas<'_>) -> Drawn) -> Result<String> {
    let mut document = String::new();
    let root = SVGBackend::with_string(&mut document, (size.0 as u32, size.1 as u32)).into_drawing_area();
    let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&root));
    drawn.map_err(|e| Error::invalid(what, format!("cannot be drawn: {e}")))?;
    drop(root);
    Ok(document)
}

/// Writes a document to a file, which appears complete or not at all.
pub(super) fn write(path: &Path, document: &str) -> Result<()> {
    write_atomically(path, |out| out.write_all(document.as_bytes()).map_err(|e| Error::io(path, e)))
}

/// Text centred vertically on `at`.
pub(super) fn text(
    root: &Canvas<'_>,
    words: &str,
    at: (i32, i32),
    (anchor, size): (HPos, i32),
    color: &RGBColor,
) -> Drawn {
    let style = TextStyle::from(("sans-serif", size).into_font()).color(color).pos(Pos::new(anchor, VPos::Center));
    root.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

/// Text that reads upwards, centred on `at`.
pub(super) fn upright(root: &Canvas<'_>, words: &str, at: (i32, i32), size: i32) -> Drawn {
    let font = ("sans-serif", size).into_font().transform(FontTransform::Rotate270);
    let style = TextStyle::from(font).color(&INK).pos(Pos::new(HPos::Center, VPos::Center));
    root.draw(&Text::new(words.to_owned(), at, style))?;
    Ok(())
}

/// 1, 2, 5 of every decade within the range (major), and the rest of 1 to 9 (minor).
pub(super) fn log_ticks((low, high): (f64, f64)) -> Vec<(f64, bool)> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    // More than four decades leave room for the powers of ten alone.
    let wide = (high / low).log10() > 4.0;
    let mut ticks = Vec::new();
    for decade in decades {
        for digit in 1..10 {
            // Written and read as text, so that 0.3 is 0.3 and not 0.30000000000000004.
            let value: f64 = format!("{digit}e{decade}").parse().unwrap_or(f64::NAN);
            if (low..=high).contains(&value) {
                ticks.push((value, if wide { digit == 1 } else { matches!(digit, 1 | 2 | 5) }));
            }
        }
    }
    ticks
}

/// Round numbers within the range, about ten of them.
pub(super) fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low).max(f64::MIN_POSITIVE) / 10.0;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * decade).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * decade);
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    (first..=last).map(|i| format!("{:.decimals$}", i as f64 * step).parse().unwrap_or(0.0)).collect()
}
