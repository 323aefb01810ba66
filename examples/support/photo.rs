//! From a photograph to what a network of the zoo takes.

use convzoo::vision::{Preset, Resize};
use convzoo::{Error, Result, models};

/// The recipe of the model's weights. Networks for small images, whose recipe takes them as they are, get the photograph
/// resized to the size they were made for.
pub(crate) fn preset(model: &str) -> Result<Preset> {
    let preset = Preset::for_model(model).ok_or_else(|| Error::invalid(model, "no preprocessing is known for it"))?;
    let side = models::get(model)?.input;
    Ok(match preset.crop {
        Some(_) => preset,
        None => Preset { resize: Some(Resize::Shorter(side)), crop: Some([side; 2]), ..preset },
    })
}
