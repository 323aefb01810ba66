//! Colours: brightness, contrast, saturation and hue, each to the bit as Pillow and torchvision change them.

use super::Draws;
use crate::vision::Image;
use serde::{Deserialize, Serialize};

/// Changes brightness, contrast, saturation and hue, in random order. torchvision's `ColorJitter` on 8-bit images.
///
/// The first three are factors within `1 ± value`, never below 0; hue turns by a share of the circle within `± value`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ColorJitter {
    /// Towards black and away from it. 0 leaves it alone, as in all four.
    pub brightness: f64,
    /// Towards the mean grey of the image and away from it.
    pub contrast: f64,
    /// Towards the grey of each pixel and away from it.
    pub saturation: f64,
    /// At most 0.5, which reaches the opposite colour.
    pub hue: f64,
}

impl ColorJitter {
    pub(super) fn fits(&self) -> bool {
        let factors = [self.brightness, self.contrast, self.saturation];
        factors.iter().all(|f| f.is_finite() && *f >= 0.0) && (0.0..=0.5).contains(&self.hue)
    }

    pub(super) fn apply(&self, mut image: Image, draws: &mut Draws) -> Image {
        let mut order = [0, 1, 2, 3];
        for i in (1..4).rev() {
            order.swap(i, draws.below(i + 1));
        }
        let factor = |value: f64, unit: f64| {
            let low = (1.0 - value).max(0.0);
            (low + (1.0 + value - low) * unit) as f32
        };
        for change in order {
            let unit = draws.unit();
            match change {
                0 if self.brightness > 0.0 => brightness(image.pixels_mut(), factor(self.brightness, unit)),
                1 if self.contrast > 0.0 => contrast(image.pixels_mut(), factor(self.contrast, unit)),
                2 if self.saturation > 0.0 => saturation(image.pixels_mut(), factor(self.saturation, unit)),
                3 if self.hue > 0.0 => hue(image.pixels_mut(), self.hue * (2.0 * unit - 1.0)),
                _ => {}
            }
        }
        image
    }
}

/// From `from` (factor 0) to `to` (factor 1) and beyond, towards zero and clipped.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(from), f32::from(to));
    (from + factor * (to - from)).clamp(0.0, 255.0) as u8
}

/// ITU-R 601, in 16-bit fixed point.
fn grey(&[r, g, b]: &[u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn brightness(pixels: &mut [u8], factor: f32) {
    pixels.iter_mut().for_each(|v| *v = blend(0, *v, factor));
}

fn contrast(pixels: &mut [u8], factor: f32) {
    let (rgb, _) = pixels.as_chunks::<3>();
    let total: u64 = rgb.iter().map(|p| u64::from(grey(p))).sum();
    let mean = (total as f64 / rgb.len() as f64 + 0.5) as u8;
    pixels.iter_mut().for_each(|v| *v = blend(mean, *v, factor));
}

fn saturation(pixels: &mut [u8], factor: f32) {
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let grey = grey(pixel);
        *pixel = pixel.map(|v| blend(grey, v, factor));
    }
}

/// Turns the hue by a share of the circle, over Pillow's 8-bit HSV.
fn hue(pixels: &mut [u8], turn: f64) {
    let turn = (turn * 255.0) as i32 as u8; // a negative turn wraps around, as the sum does
    for pixel in pixels.as_chunks_mut::<3>().0 {
        let [h, s, v] = to_hsv(*pixel);
        *pixel = from_hsv([h.wrapping_add(turn), s, v]);
    }
}

fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let below = |c: u8| f64::from(f32::from(max - c) / range);
    let sector = match max {
        _ if r == max => below(b) - below(g),
        _ if g == max => 2.0 + below(r) - below(b),
        _ => 4.0 + below(g) - below(r),
    };
    // The intermediate results are single precision in Pillow, and each product double.
    let h = ((f64::from(sector as f32) / 6.0 + 1.0) % 1.0) as f32;
    let s = range / f32::from(max);
    [(f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max]
}

fn from_hsv([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let place = f64::from(h) * 6.0 / 255.0;
    let sector = place.floor();
    let f = f64::from((place - sector) as f32);
    let fs = f64::from((f64::from(s) / 255.0) as f32);
    let value = f64::from(v);
    let [p, q, t] = [1.0 - fs, 1.0 - fs * f, 1.0 - fs * (1.0 - f)].map(|share| (value * share).round() as u8);
    match sector as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pixels goldens/learn.py makes, and what Pillow and torchvision make of them.
    fn cases() -> (Vec<u8>, serde_json::Value) {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/goldens/learn.json")).unwrap();
        let pixels = (0..64 * 3).map(|i: usize| ((i * 7919 + i * i * 31 + 13) % 256) as u8).collect();
        (pixels, golden["colors"].clone())
    }

    #[test]
    fn each_change_is_pillows_to_the_bit() {
        let (pixels, golden) = cases();
        type Change = fn(&mut [u8], f64);
        let changes: [(&str, Change, [f64; 2]); 4] = [
            ("brightness", |p, f| brightness(p, f as f32), [0.6, 1.7]),
            ("contrast", |p, f| contrast(p, f as f32), [0.3, 1.4]),
            ("saturation", |p, f| saturation(p, f as f32), [0.0, 1.9]),
            ("hue", hue, [0.11, -0.4]),
        ];
        for (name, change, factors) in changes {
            for factor in factors {
                let mut changed = pixels.clone();
                change(&mut changed, factor);
                let wanted: Vec<u8> = serde_json::from_value(golden[name][format!("{factor:?}")].clone()).unwrap();
                assert_eq!(changed, wanted, "{name} {factor}");
            }
        }
    }
}
