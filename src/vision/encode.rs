//! [`Image`] to PNG files.

use super::Image;
use crate::atomic::write_atomically;
use crate::error::{Error, Result};
use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

impl Image {
    /// Writes a PNG file, which appears complete or not at all.
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write_atomically(path, |out| {
            let (width, height) = (self.width() as u32, self.height() as u32);
            let written = PngEncoder::new(out).write_image(self.pixels(), width, height, ExtendedColorType::Rgb8);
            written.map_err(|e| Error::format(path.display().to_string(), e.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let path = std::env::temp_dir().join(format!("convzoo-png-{}.png", std::process::id()));
        let image = Image::from_rgb(3, 2, (0..18).map(|v| v * 14).collect()).unwrap();
        image.write_png(&path).unwrap();
        assert_eq!(Image::open(&path).unwrap(), image);
        std::fs::remove_file(&path).unwrap();
        assert!(image.write_png("/no/such/folder/a.png").is_err());
    }
}
