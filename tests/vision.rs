//! The vision room against Pillow and torchvision, and against files that mean harm.
//!
//! `tests/fixtures/vision/make.py` makes the fixtures; nothing here needs Python.

#![cfg(feature = "vision")]

use convzoo::vision::{DecodeLimits, Image, Interpolation, Preset};
use convzoo::{Error, Result};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vision").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The lines of a table of fixtures, each split at blanks; an empty table is a failure.
fn table(name: &str) -> Vec<Vec<String>> {
    let text = String::from_utf8(bytes(name)).unwrap();
    let rows: Vec<_> = text.lines().map(|l| l.split(' ').map(str::to_owned).collect()).collect();
    assert!(!rows.is_empty(), "{name} is empty");
    rows
}

/// FNV-1a, 64 bits, in hexadecimal.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The recipe picture of make.py: noise with hard edges.
fn recipe(width: usize, height: usize) -> Image {
    let mut state = (width * 1000 + height) as u64;
    let pixels = (0..width * height * 3).map(|i| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let byte = (state >> 56) as u8;
        if (i / (width * 3)).is_multiple_of(3) { 255 * (byte >> 7) } else { byte }
    });
    Image::from_rgb(width, height, pixels.collect()).unwrap()
}

fn number(field: &str) -> usize {
    field.parse().unwrap()
}

#[test]
fn resize_equals_pillow_bit_for_bit() {
    for row in table("resize.txt") {
        let size = [number(&row[3]), number(&row[2])];
        let filter = if row[4] == "bicubic" { Interpolation::Bicubic } else { Interpolation::Bilinear };
        let resized = recipe(number(&row[0]), number(&row[1])).resize(size, filter).unwrap();
        assert_eq!(fnv(resized.pixels().iter().copied()), row[5], "{row:?}");
    }
}

#[test]
fn centre_crop_equals_torchvision() {
    for row in table("crop.txt") {
        let crop = [number(&row[2]), number(&row[3])];
        let cropped = recipe(number(&row[0]), number(&row[1])).center_crop(crop).unwrap();
        assert_eq!(cropped.size(), crop);
        assert_eq!(fnv(cropped.pixels().iter().copied()), row[4], "{row:?}");
    }
}

#[test]
fn presets_equal_the_transforms_of_torchvision_and_timm_bit_for_bit() {
    for row in table("preset.txt") {
        let preset = Preset::for_weights(&row[0], &row[1]).or(Preset::for_model(&row[0])).unwrap();
        let tensor = preset.apply(&recipe(number(&row[2]), number(&row[3]))).unwrap();
        assert_eq!(tensor.shape(), [1, 3, number(&row[4]), number(&row[5])], "{row:?}");
        assert_eq!(fnv(tensor.as_slice().iter().flat_map(|v| v.to_le_bytes())), row[6], "{row:?}");
    }
}

#[test]
fn every_registered_model_has_a_preset_of_its_input_size() {
    for model in convzoo::models::list() {
        let preset = Preset::for_model(model.name).unwrap_or_else(|| panic!("{} has no preset", model.name));
        let expected = if model.is_cifar() { None } else { Some([model.input; 2]) };
        assert_eq!(preset.crop, expected, "{}", model.name);
    }
}

#[test]
fn every_kind_of_file_decodes_as_pillow_does() {
    for row in table("decode.txt") {
        let image = Image::open(fixture(&row[0])).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(image.size(), [number(&row[2]), number(&row[1])], "{}", row[0]);
        let Some(stem) = row[0].strip_suffix(".jpg") else {
            assert_eq!(fnv(image.pixels().iter().copied()), row[3], "{}", row[0]);
            continue;
        };
        // JPEG decoders round differently: a level or two, and a little more where chroma is interpolated.
        let expected = bytes(&format!("{stem}.rgb"));
        let differences = image.pixels().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
        let worst = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / expected.len() as f64;
        println!("{stem}.jpg: worst {worst}, mean {mean:.3}");
        assert!(worst <= 4 && mean < 0.6, "{stem}.jpg: worst {worst}, mean {mean}");
    }
}

#[test]
fn the_content_decides_and_not_the_name() {
    let dir = std::env::temp_dir().join(format!("convzoo-vision-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let disguised = dir.join("really-a-png.jpg");
    std::fs::copy(fixture("rgb.png"), &disguised).unwrap();
    assert_eq!(Image::open(&disguised).unwrap(), Image::open(fixture("rgb.png")).unwrap());
    let gif = dir.join("cat.png");
    std::fs::write(&gif, b"GIF89a\x01\0\x01\0\x80\0\0").unwrap();
    let error = Image::open(&gif).unwrap_err().to_string();
    assert!(error.contains("cat.png") && error.contains("GIF") && error.contains("PNG and JPEG"), "{error}");
    assert!(matches!(Image::open(dir.join("absent.png")), Err(Error::Io { .. })));
    assert!(Image::open(&dir).is_err(), "a directory");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Decodes hostile bytes: an error is fine, and so is an image; a panic is not.
fn survive(name: &str, bytes: &[u8]) -> Result<Image> {
    let limits = DecodeLimits { pixels: 1_000_000, ..DecodeLimits::default() };
    Image::decode_with(name, bytes, limits)
}

#[test]
fn a_file_cut_anywhere_is_an_error_naming_it() {
    for row in table("decode.txt") {
        let whole = bytes(&row[0]);
        let image = Image::decode(&row[0], &whole).unwrap();
        for len in 0..whole.len() {
            match Image::decode(&row[0], &whole[..len]) {
                Err(error) => assert!(error.to_string().starts_with(&row[0]), "{error}"),
                // The last chunks of a PNG carry no pixels.
                Ok(cut) => assert!(cut == image && row[0].ends_with("png") && len + 24 > whole.len(), "{row:?} {len}"),
            }
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut state = 1u64;
    for row in table("decode.txt") {
        let whole = bytes(&row[0]);
        for _ in 0..400 {
            let mut damaged = whole.clone();
            for _ in 0..1 + state % 3 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % damaged.len();
                damaged[at] = (state >> 24) as u8;
            }
            if let Ok(image) = survive(&row[0], &damaged) {
                assert_eq!(image.pixels().len(), image.width() * image.height() * 3);
            }
        }
    }
}

/// A PNG header of the given size with a valid checksum and no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut crc = u32::MAX;
    for &byte in &chunk {
        crc ^= u32::from(byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    }
    let idat = [0, 0, 0, 0, b'I', b'D', b'A', b'T', 0x35, 0xaf, 0x06, 0x1e];
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", &chunk[..], &(!crc).to_be_bytes(), &idat].concat()
}

#[test]
fn bombs_are_refused_by_their_header() {
    let error = Image::decode("bomb.png", &png_header(30_000, 30_000)).unwrap_err();
    assert!(matches!(&error, Error::Limit { limit: 100_000_000, found: 900_000_000, .. }), "{error}");
    assert!(error.to_string().starts_with("bomb.png: number of pixels is 900000000"), "{error}");
    assert!(matches!(Image::decode("bomb.png", &png_header(u32::MAX >> 1, u32::MAX >> 1)), Err(Error::Limit { .. })));

    let mut jpeg = bytes("rgb.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    assert!(matches!(Image::decode("bomb.jpg", &jpeg), Err(Error::Limit { found: 4_294_836_225, .. })));

    let tight = DecodeLimits { pixels: 34, ..DecodeLimits::default() };
    assert!(matches!(Image::open_with(fixture("rgb.png"), tight), Err(Error::Limit { limit: 34, found: 35, .. })));
    let tight = DecodeLimits { bytes: 100, ..DecodeLimits::default() };
    assert!(matches!(Image::open_with(fixture("rgb.png"), tight), Err(Error::Limit { limit: 100, .. })));
}

#[test]
fn images_without_pixels_are_errors() {
    for (width, height) in [(0, 5), (5, 0), (0, 0)] {
        assert!(Image::decode("empty.png", &png_header(width, height)).is_err(), "{width}×{height}");
        let mut jpeg = bytes("rgb.jpg");
        let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&(height as u16).to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&(width as u16).to_be_bytes());
        assert!(Image::decode("empty.jpg", &jpeg).is_err(), "{width}×{height}");
    }
}
