//! What no network can have, refused before any arithmetic: a configuration may come from a file.

use crate::error::Error;
use crate::graph::Node;
use std::ops::RangeInclusive;

/// Channels of a layer.
pub(super) const WIDTH: RangeInclusive<usize> = 1..=1 << 16;
/// Classes of a classifier.
pub(super) const CLASSES: RangeInclusive<usize> = 1..=1 << 20;
/// Layers or blocks in a row.
pub(super) const DEPTH: RangeInclusive<usize> = 1..=1024;
/// Stages of a network.
pub(super) const STAGES: RangeInclusive<usize> = 1..=16;

/// Draws with `draw` if every named setting is within its bounds, else keeps an error that names the setting.
pub(super) fn checked<'g>(
    x: Node<'g>,
    settings: impl IntoIterator<Item = (&'static str, usize, RangeInclusive<usize>)>,
    draw: impl FnOnce(Node<'g>) -> Node<'g>,
) -> Node<'g> {
    let odd = settings.into_iter().find(|(_, value, bounds)| !bounds.contains(value));
    match odd {
        None => draw(x),
        Some((what, value, bounds)) => {
            let wanted = format!("{} to {}", bounds.start(), bounds.end());
            x.fail_with(Error::mismatch(x.path(), what, wanted, value))
        }
    }
}
