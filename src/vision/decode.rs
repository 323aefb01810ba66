//! PNG and JPEG files to [`Image`], by content and never by name.
//!
//! Every file becomes what `PIL.Image.open(file).convert("RGB")` gives, with one addition: the EXIF orientation is
//! applied, so that a photograph held upright is upright.
//!
//! - Grey and palette images are spread over three channels; alpha, and the transparency of a palette, is dropped
//!   without blending.
//! - 16-bit channels keep their high byte, except in 16-bit grey without alpha, which Pillow clips: values over 255
//!   become 255.
//! - CMYK and YCCK JPEGs are taken to be stored inverted, as Adobe's are: `R = C·K / 255` of the stored bytes.
//! - Colour profiles and gamma are ignored. Of an animated PNG the still image is read.
//!
//! Headers are checked against [`DecodeLimits`] before any pixel memory is allocated. A JPEG must reach its
//! end-of-image marker: decoders paint the missing part grey, and a grey half would be classified without complaint.

use super::Image;
use crate::error::{Error, Result};
use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use ::image::{ColorType, ImageDecoder};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

/// How large an image file may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels, width times height. Default 100 million.
    pub pixels: u64,
    /// Most bytes of the encoded file. Default 1 GiB.
    pub bytes: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        DecodeLimits { pixels: 100_000_000, bytes: 1 << 30 }
    }
}

impl Image {
    /// Reads a PNG or JPEG file with the default [`DecodeLimits`].
    ///
    /// Fails if the file cannot be read, is not a PNG or JPEG image, is damaged or cut short, or is over a limit.
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        Image::open_with(path, DecodeLimits::default())
    }

    /// As [`Image::open`], with limits of the caller's choice.
    pub fn open_with(path: impl AsRef<Path>, limits: DecodeLimits) -> Result<Image> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        // The first bytes decide, so that a film or a device is refused without being read whole.
        let mut bytes = Vec::new();
        (&mut file).take(HEAD as u64).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        let name = path.display().to_string();
        Kind::of(&name, &bytes)?;
        let rest = limits.bytes.saturating_add(1).saturating_sub(bytes.len() as u64);
        file.take(rest).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        Image::decode_with(&name, &bytes, limits)
    }

    /// Reads a PNG or JPEG image from memory; `name` stands for it in errors. See [`Image::open`].
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Image> {
        Image::decode_with(name, bytes, DecodeLimits::default())
    }

    /// As [`Image::decode`], with limits of the caller's choice.
    pub fn decode_with(name: &str, bytes: &[u8], limits: DecodeLimits) -> Result<Image> {
        if bytes.len() as u64 > limits.bytes {
            return Err(Error::limit(name, "file size in bytes", limits.bytes, bytes.len() as u64));
        }
        let damaged = |error| Error::format(name, describe(error));
        match Kind::of(name, bytes)? {
            Kind::Png => {
                // Size, depth and colour type stand at fixed places, so a bomb is refused before anything is parsed.
                let word =
                    |at: usize| bytes.get(at..at + 4).map_or(1, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
                check_pixels(name, (word(16), word(20)), limits)?;
                let plain_grey16 = bytes.get(24..26) == Some(&[16, 0]);
                // Text and profile chunks are held in memory too; the pixels are checked below.
                let alloc = limits.pixels.saturating_mul(8).saturating_add(64 << 20);
                let mut bounds = ::image::Limits::no_limits();
                bounds.max_alloc = Some(alloc);
                let decoder = PngDecoder::with_limits(Cursor::new(bytes), bounds).map_err(damaged)?;
                read(name, decoder, limits, if plain_grey16 { clipped } else { high })
            }
            Kind::Jpeg => {
                let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
                check_pixels(name, decoder.dimensions(), limits)?;
                check_jpeg_end(bytes).map_err(|problem| Error::format(name, problem))?;
                read(name, decoder, limits, high)
            }
        }
    }
}

/// Bytes that tell every format apart that [`foreign`] knows.
const HEAD: usize = 16;

#[derive(Clone, Copy)]
enum Kind {
    Png,
    Jpeg,
}

impl Kind {
    fn of(name: &str, bytes: &[u8]) -> Result<Kind> {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Kind::Png);
        }
        if bytes.starts_with(b"\xff\xd8\xff") {
            return Ok(Kind::Jpeg);
        }
        let what = if bytes.is_empty() {
            "the file is empty".to_owned()
        } else if let Some(format) = foreign(bytes) {
            format!("this is {format}")
        } else {
            let head: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("not an image of a known format (it begins with {})", head.join(" "))
        };
        Err(Error::format(name, format!("{what}; PNG and JPEG are read")))
    }
}

/// Names a common format that is not read.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let brand = bytes.get(4..12).unwrap_or_default();
    match bytes {
        [b'G', b'I', b'F', b'8', ..] => Some("a GIF image"),
        [b'R', b'I', b'F', b'F', ..] if bytes.get(8..12) == Some(b"WEBP") => Some("a WebP image"),
        [b'B', b'M', ..] => Some("a BMP image"),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some("a TIFF image"),
        [0xff, 0x0a, ..] => Some("a JPEG XL image"),
        _ if brand.starts_with(b"ftypavif") => Some("an AVIF image"),
        _ if brand.starts_with(b"ftyphei") || brand.starts_with(b"ftypmif1") => Some("a HEIC image"),
        _ if brand.starts_with(b"JXL ") => Some("a JPEG XL image"),
        _ if brand.starts_with(b"jP  ") => Some("a JPEG 2000 image"),
        _ => None,
    }
}

fn describe(error: ::image::ImageError) -> String {
    format!("damaged or not supported: {error}")
}

fn check_pixels(name: &str, (width, height): (u32, u32), limits: DecodeLimits) -> Result<()> {
    let found = u64::from(width) * u64::from(height);
    if found > limits.pixels {
        return Err(Error::limit(name, "number of pixels", limits.pixels, found));
    }
    if found == 0 {
        return Err(Error::format(name, format!("{width}×{height} (width × height) has no pixels")));
    }
    Ok(())
}

/// The steps both formats share: check, decode, spread to RGB, turn upright. `narrow` makes bytes of 16-bit samples.
fn read(name: &str, mut decoder: impl ImageDecoder, limits: DecodeLimits, narrow: fn(u16) -> u8) -> Result<Image> {
    let (width, height) = decoder.dimensions();
    check_pixels(name, (width, height), limits)?;
    let damaged = |error| Error::format(name, describe(error));
    let color = decoder.color_type();
    // Metadata that cannot be parsed is no reason to refuse the pixels.
    let orientation = decoder.orientation().map_or(1, |o| o.to_exif());
    let len = usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX);
    let mut samples = Vec::new();
    let no_memory = |_| Error::invalid(name, format!("no memory for the {len} bytes of {width}×{height} pixels"));
    samples.try_reserve_exact(len).map_err(no_memory)?;
    samples.resize(len, 0);
    decoder.read_image(&mut samples).map_err(damaged)?;
    let pixels = match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 => spread::<1>(&samples),
        ColorType::La8 => spread::<2>(&samples),
        ColorType::Rgba8 => spread::<4>(&samples),
        ColorType::L16 => spread::<1>(&to_bytes(&samples, narrow)),
        ColorType::La16 => spread::<2>(&to_bytes(&samples, narrow)),
        ColorType::Rgb16 => to_bytes(&samples, narrow),
        ColorType::Rgba16 => spread::<4>(&to_bytes(&samples, narrow)),
        other => return Err(Error::format(name, format!("pixels of type {other:?} are not read"))),
    };
    Ok(Image::from_rgb(width as usize, height as usize, pixels)?.oriented(orientation))
}

/// Pixels of `N` samples to RGB: grey (1, 2) thrice, colour (4) without its alpha.
fn spread<const N: usize>(samples: &[u8]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<N>();
    let mut rgb = Vec::with_capacity(pixels.len() * 3);
    for pixel in pixels {
        rgb.extend(if N < 3 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] });
    }
    rgb
}

/// Native-endian 16-bit samples to bytes.
fn to_bytes(samples: &[u8], narrow: fn(u16) -> u8) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().map(|&pair| narrow(u16::from_ne_bytes(pair))).collect()
}

fn high(value: u16) -> u8 {
    (value >> 8) as u8
}

fn clipped(value: u16) -> u8 {
    value.min(255) as u8
}

/// Walks the markers of a JPEG up to its end-of-image marker, or says where the file breaks off.
fn check_jpeg_end(bytes: &[u8]) -> Result<(), String> {
    const EOI: u8 = 0xd9;
    let cut = || format!("cut short: {} bytes end before the end-of-image marker", bytes.len());
    let mut at = 2;
    loop {
        // Entropy-coded data is passed over: in it 0xff is followed by 0 or a restart marker.
        let gap = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)).ok_or_else(cut)?;
        at += gap + 1;
        match *bytes.get(at).ok_or_else(cut)? {
            EOI => return Ok(()),
            0xff => {}
            0 | 1 | 0xd0..=0xd8 => at += 1,
            _ => {
                let length = bytes.get(at + 1..at + 3).ok_or_else(cut)?;
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_formats_are_named_and_so_is_what_is_read() {
        let heads: [(&[u8], &str); 8] = [
            (b"GIF89a\x01\x00\x01\x00", "GIF"),
            (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "WebP"),
            (b"BM6\x00\x00\x00", "BMP"),
            (b"II*\x00\x08\x00\x00\x00", "TIFF"),
            (b"\x00\x00\x00\x1cftypavif", "AVIF"),
            (b"\x00\x00\x00\x18ftypheic", "HEIC"),
            (b"", "empty"),
            (b"hello there", "68 65 6c 6c"),
        ];
        for (bytes, word) in heads {
            let error = Image::decode("cat.jpg", bytes).unwrap_err().to_string();
            assert!(
                error.starts_with("cat.jpg: ") && error.contains(word) && error.contains("PNG and JPEG"),
                "{error}"
            );
        }
    }

    #[test]
    fn markers_inside_segments_and_entropy_data_do_not_end_a_jpeg() {
        let tail = [0xff, 0xda, 0, 2, 9, 0xff, 0, 7, 0xff, 0xd3, 8, 0xff, 0xff, 0xd9];
        let thumbnail = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 1, 2]; // an end marker inside APP1
        let whole = [&thumbnail[..], &tail].concat();
        assert_eq!(check_jpeg_end(&whole), Ok(()));
        for len in 0..whole.len() {
            assert!(check_jpeg_end(&whole[..len]).is_err(), "{len}");
        }
    }
}
