//! Photographs to tensors, and class numbers to names.
//!
//! What a network sees must be what it saw while it was trained, or the best weights name the wrong thing. This room
//! therefore repeats the reference tools to the bit where that is possible: [`Image::resize`] equals Pillow's
//! antialiased resampling on 8-bit images, [`Image::center_crop`] rounds as torchvision does, and [`Preset`] holds
//! the whole recipe of a model. Decoding is the one step that can differ: JPEG decoders disagree by a level or two.
//!
//! It refuses to guess: a file is read by its content, never by its name, and one that is neither PNG nor JPEG, or is
//! cut short, is an error that says so.
//!
//! ```
//! use convzoo::vision::{Image, Preset, softmax, top_k};
//! # fn main() -> convzoo::Result<()> {
//! let photo = Image::from_rgb(640, 480, vec![128; 640 * 480 * 3])?;
//! let input = Preset::for_model("resnet50").expect("a registered model").apply(&photo)?;
//! assert_eq!(input.shape(), [1, 3, 224, 224]);
//!
//! let best = top_k(&softmax(&[0.1, 3.0, -1.0]), 1);
//! assert_eq!(best[0].0, 1);
//! # Ok(())
//! # }
//! ```

pub mod augment;
pub mod data;
mod decode;
mod encode;
mod image;
pub mod labels;
mod loader;
mod preset;
mod resize;

pub use decode::DecodeLimits;
pub use image::Image;
pub use labels::{softmax, top_k};
pub use loader::{Channels, Loader, LoaderOptions, Order};
pub use preset::{ChannelOrder, Preset};
pub use resize::{Interpolation, Resize};
