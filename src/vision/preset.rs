//! `Preset`: the recipe from a photograph to a network's input, one per model.

use super::{Image, Interpolation, Resize};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Which colour the tensor's channel 0 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelOrder {
    /// Red, green, blue: PyTorch and nearly everyone.
    Rgb,
    /// Blue, green, red: Caffe, which read images with OpenCV.
    Bgr,
}

/// Resize, crop, scale and normalise: `(value / scale - mean) / std` for every channel, in `f32` and in this order.
///
/// # Shapes
/// An image of any size becomes `[1, 3, H, W]`; with a crop, `[H, W]` is the crop.
///
/// ```
/// use convzoo::vision::{Image, Interpolation, Preset};
/// # fn main() -> convzoo::Result<()> {
/// let preset = Preset { crop: Some([160, 160]), ..Preset::imagenet(160, 182, Interpolation::Bilinear) };
/// let grey = Image::from_rgb(300, 200, vec![127; 300 * 200 * 3])?;
/// assert_eq!(preset.apply(&grey)?.shape(), [1, 3, 160, 160]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Resize rule; `None` leaves the size alone.
    pub resize: Option<Resize>,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// Centre crop `[height, width]` after the resize; `None` keeps everything.
    pub crop: Option<[usize; 2]>,
    /// Order of the tensor's channels.
    pub order: ChannelOrder,
    /// What a byte is divided by: 255 for the unit interval, 1 for Caffe.
    pub scale: f32,
    /// Mean per channel of the tensor (so blue first for [`ChannelOrder::Bgr`]).
    pub mean: [f32; 3],
    /// Standard deviation per channel of the tensor.
    pub std: [f32; 3],
}

/// Mean of ImageNet's training images in the unit interval, and the deviation everyone has used since.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

impl Preset {
    /// torchvision's evaluation recipe: shorter side to `resize`, centre crop of `crop`, RGB in the unit interval,
    /// mean (0.485, 0.456, 0.406), deviation (0.229, 0.224, 0.225).
    pub fn imagenet(crop: usize, resize: usize, interpolation: Interpolation) -> Self {
        Preset {
            resize: Some(Resize::Shorter(resize)),
            interpolation,
            crop: Some([crop; 2]),
            order: ChannelOrder::Rgb,
            scale: 255.0,
            mean: IMAGENET.0,
            std: IMAGENET.1,
        }
    }

    /// Caffe's: shorter side to `resize` (bilinear), centre crop of `crop`, BGR bytes minus (104, 117, 123).
    pub fn caffe(crop: usize, resize: usize) -> Self {
        Preset {
            order: ChannelOrder::Bgr,
            scale: 1.0,
            mean: [104.0, 117.0, 123.0],
            std: [1.0; 3],
            ..Preset::imagenet(crop, resize, Interpolation::Bilinear)
        }
    }

    /// CIFAR-10 as the ResNets of `akamaster/pytorch_resnet_cifar10` take it: the 32×32 image as it is, with
    /// ImageNet's mean and deviation.
    pub fn cifar10() -> Self {
        Preset { resize: None, crop: None, ..Preset::imagenet(32, 32, Interpolation::Bilinear) }
    }

    /// The same recipe with mean and deviation 0.5: values from -1 to 1.
    pub fn half(self) -> Self {
        Preset { mean: [0.5; 3], std: [0.5; 3], ..self }
    }

    /// Resizes and crops: the picture the network will see.
    pub fn prepare(&self, image: &Image) -> Result<Image> {
        let resized = match self.resize {
            Some(rule) => Some(image.resize(rule.target(image.size()), self.interpolation)?),
            None => None,
        };
        let resized = resized.as_ref().unwrap_or(image);
        match self.crop {
            Some(crop) => resized.center_crop(crop),
            None => Ok(resized.clone()),
        }
    }

    /// One image to `[1, 3, H, W]`.
    ///
    /// Fails if the preset cannot work (a size or a deviation of zero) or its target is monstrously large.
    pub fn apply(&self, image: &Image) -> Result<Tensor> {
        self.batch(std::slice::from_ref(image))
    }

    /// Several images to `[N, 3, H, W]`.
    ///
    /// Fails as [`Preset::apply`] does, on no image at all, and where images end up with different sizes, which a
    /// crop rules out.
    pub fn batch(&self, images: &[Image]) -> Result<Tensor> {
        let tables = self.tables()?;
        let Some(first) = images.first() else {
            return Err(Error::invalid("batch", "there is no image in it"));
        };
        let first = self.prepare(first)?;
        let [height, width] = first.size();
        let plane = height * width;
        let mut tensor = Tensor::try_zeros(&[images.len(), 3, height, width])?;
        for (i, out) in tensor.as_mut_slice().chunks_exact_mut(3 * plane).enumerate() {
            let later = if i == 0 { None } else { Some(self.prepare(&images[i])?) };
            let image = later.as_ref().unwrap_or(&first);
            if image.size() != first.size() {
                let show = |[h, w]: [usize; 2]| format!("{h}×{w} (height × width, as image 0)");
                let found = format!("{}×{}", image.height(), image.width());
                return Err(Error::mismatch(format!("image {i}"), "size in a batch", show(first.size()), found));
            }
            tables.write(image, out);
        }
        Ok(tensor)
    }

    /// The value of every byte in every channel: a byte can only be 256 things.
    pub(super) fn tables(&self) -> Result<Tables> {
        let usable = |v: f32| v.is_finite() && v != 0.0;
        if !usable(self.scale) || !self.std.into_iter().all(usable) || !self.mean.into_iter().all(f32::is_finite) {
            let Preset { scale, mean, std, .. } = self;
            let problem = format!("scale {scale}, mean {mean:?}, std {std:?}: all must be finite, scale and std not 0");
            return Err(Error::invalid("preset", problem));
        }
        let value = |byte: usize, c: usize| (byte as f32 / self.scale - self.mean[c]) / self.std[c];
        let values = std::array::from_fn(|channel| std::array::from_fn(|byte| value(byte, channel)));
        Ok(Tables { values, order: self.order })
    }

    /// The recipe of a registered model's published weights, `None` for an unknown name.
    ///
    /// These are the weights the registry quotes: torchvision's first generation (`IMAGENET1K_V1`), timm's for the SE
    /// networks; see [`Preset::for_weights`] for later ones. `googlenet` takes values from -1 to 1: its weights were
    /// trained so, and torchvision's network re-normalises its input inside (`transform_input`), which here belongs to
    /// the preset. `googlenet_paper` takes Caffe's BGR, as the weights BVLC trained do. A network without published
    /// weights gets the recipe of its nearest relative.
    pub fn for_model(name: &str) -> Option<Preset> {
        use Interpolation::{Bicubic, Bilinear};
        let imagenet = Preset::imagenet;
        Some(match name {
            "alexnet"
            | "vgg11"
            | "vgg13"
            | "vgg16"
            | "vgg19"
            | "vgg11_bn"
            | "vgg13_bn"
            | "vgg16_bn"
            | "vgg19_bn"
            | "resnet18"
            | "resnet34"
            | "resnet50"
            | "resnet101"
            | "resnet152"
            | "resnet50_v1"
            | "resnet101_v1"
            | "resnet152_v1"
            | "resnext50_32x4d"
            | "resnext101_32x8d"
            | "wide_resnet50_2"
            | "wide_resnet101_2"
            | "densenet121"
            | "densenet161"
            | "densenet169"
            | "densenet201"
            | "densenet264"
            | "squeezenet1_0"
            | "squeezenet1_1"
            | "mobilenet_v2"
            | "legacy_seresnet50"
            | "legacy_seresnet101"
            | "legacy_seresnet152"
            | "legacy_seresnext50_32x4d"
            | "legacy_seresnext101_32x4d"
            | "legacy_senet154"
            | "deform_resnet50_v1_c5"
            | "deform_resnet50_v1_c3"
            | "deform_resnet50_v2_c3" => imagenet(224, 256, Bilinear),
            "alexnet_paper" => imagenet(227, 256, Bilinear),
            "googlenet" | "googlenet_paper_bn" => imagenet(224, 256, Bilinear).half(),
            "googlenet_paper" => Preset::caffe(224, 256),
            "resnext101_64x4d" => imagenet(224, 232, Bilinear),
            "seresnet50" | "efficientnet_b0" => imagenet(224, 256, Bicubic),
            "efficientnet_b1" => imagenet(240, 256, Bicubic),
            "efficientnet_b2" => imagenet(288, 288, Bicubic),
            "efficientnet_b3" => imagenet(300, 320, Bicubic),
            "efficientnet_b4" => imagenet(380, 384, Bicubic),
            "efficientnet_b5" => imagenet(456, 456, Bicubic),
            "efficientnet_b6" => imagenet(528, 528, Bicubic),
            "efficientnet_b7" => imagenet(600, 600, Bicubic),
            "efficientnet_v2_s" => imagenet(384, 384, Bilinear),
            "efficientnet_v2_m" => imagenet(480, 480, Bilinear),
            "efficientnet_v2_l" => imagenet(480, 480, Bicubic).half(),
            _ if is_cifar(name) => Preset::cifar10(),
            _ => return None,
        })
    }

    /// The recipe of weights that share an architecture's name with others: torchvision's `IMAGENET1K_V1`,
    /// `IMAGENET1K_V2` and (`vgg16`) `IMAGENET1K_FEATURES`, timm's `a1_in1k` and `ra2_in1k` of `seresnet50`, and `caffe`
    /// for the Caffe originals of `googlenet_paper` (crop 224) and `squeezenet1_0` (crop 227). `None` if there are no
    /// such weights.
    ///
    /// A `resnet50-0676ba61.pth` is of the first generation, a `resnet50-11ad3fa6.pth` of the second.
    pub fn for_weights(model: &str, weights: &str) -> Option<Preset> {
        let first = Preset::for_model(model)?;
        let second = matches!(
            model,
            "resnet50"
                | "resnet101"
                | "resnet152"
                | "resnext50_32x4d"
                | "resnext101_32x8d"
                | "wide_resnet50_2"
                | "wide_resnet101_2"
                | "mobilenet_v2"
                | "efficientnet_b1"
        );
        let torchvision = second
            || matches!(model, "alexnet" | "googlenet" | "resnet18" | "resnet34" | "resnext101_64x4d")
            || ["vgg", "squeezenet", "efficientnet"].iter().any(|family| model.starts_with(family))
            || matches!(model, "densenet121" | "densenet161" | "densenet169" | "densenet201");
        Some(match (model, weights) {
            (_, "IMAGENET1K_V1") if torchvision => first,
            ("efficientnet_b1", "IMAGENET1K_V2") => Preset::imagenet(240, 255, Interpolation::Bilinear),
            (_, "IMAGENET1K_V2") if second => Preset::imagenet(224, 232, Interpolation::Bilinear),
            // Caffe's means over 255, in RGB: the published digits.
            ("vgg16", "IMAGENET1K_FEATURES") => {
                Preset { mean: [0.48235, 0.45882, 0.40784], std: [1.0 / 255.0; 3], ..first }
            }
            ("seresnet50", "ra2_in1k") => first,
            // timm: crop_pct 0.95, floor(224 / 0.95).
            ("seresnet50", "a1_in1k") => Preset::imagenet(224, 235, Interpolation::Bicubic),
            ("googlenet_paper", "caffe") => first,
            ("squeezenet1_0", "caffe") => Preset::caffe(227, 256),
            _ => return None,
        })
    }
}

/// Bytes to normalised values.
pub(super) struct Tables {
    values: [[f32; 256]; 3],
    order: ChannelOrder,
}

impl Tables {
    /// Writes an image as planes: as many channels as `out` has room for, from the first on.
    pub(super) fn write(&self, image: &Image, out: &mut [f32]) {
        let planes = out.chunks_exact_mut(image.width() * image.height());
        for ((channel, out), table) in planes.enumerate().zip(&self.values) {
            let color = if self.order == ChannelOrder::Rgb { channel } else { 2 - channel };
            for (value, pixel) in out.iter_mut().zip(image.pixels().as_chunks::<3>().0) {
                *value = table[usize::from(pixel[color])];
            }
        }
    }
}

/// `resnet20` … `resnet110` and `resnet1202`, their plain twins, and the CIFAR DenseNets `densenet_bc_<depth>_<growth>`;
/// all with or without `cifar_` in front.
fn is_cifar(name: &str) -> bool {
    let name = name.strip_prefix("cifar_").unwrap_or(name);
    let depth = name.strip_prefix("resnet").or_else(|| name.strip_prefix("plain"));
    matches!(depth, Some("20" | "32" | "44" | "56" | "110" | "1202"))
        || matches!(name.strip_prefix("densenet_bc_"), Some("100_12" | "250_24" | "190_40"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_follow_the_order_and_planes_are_contiguous() {
        let image = Image::from_rgb(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap();
        let plain = Preset { scale: 1.0, mean: [0.0; 3], std: [1.0; 3], ..Preset::cifar10() };
        assert_eq!(plain.apply(&image).unwrap().as_slice(), [10., 40., 20., 50., 30., 60.]);
        let caffe = Preset { resize: None, crop: None, ..Preset::caffe(1, 1) };
        let expected = [30. - 104., 60. - 104., 20. - 117., 50. - 117., 10. - 123., 40. - 123.];
        assert_eq!(caffe.apply(&image).unwrap().as_slice(), expected);
    }

    #[test]
    fn googlenet_takes_minus_one_to_one() {
        let preset = Preset::for_model("googlenet").unwrap();
        let ends = Image::from_rgb(2, 1, vec![0, 0, 0, 255, 255, 255]).unwrap();
        let tensor = Preset { resize: None, crop: None, ..preset }.apply(&ends).unwrap();
        assert_eq!(tensor.as_slice(), [-1., 1., -1., 1., -1., 1.]);
    }

    #[test]
    fn a_batch_stacks_what_apply_gives_and_refuses_mixed_sizes() {
        let a = Image::from_rgb(5, 4, (0..60).collect()).unwrap();
        let b = Image::from_rgb(4, 7, (0..84).rev().collect()).unwrap();
        let preset = Preset::imagenet(3, 4, Interpolation::Bicubic);
        let both = preset.batch(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(both.shape(), [2, 3, 3, 3]);
        assert_eq!(both.as_slice()[..27], *preset.apply(&a).unwrap().as_slice());
        assert_eq!(both.as_slice()[27..], *preset.apply(&b).unwrap().as_slice());

        let error = Preset::cifar10().batch(&[a, b]).unwrap_err().to_string();
        assert!(error.contains("image 1") && error.contains("4×5") && error.contains("7×4"), "{error}");
        assert!(preset.batch(&[]).unwrap_err().to_string().contains("no image"));
    }

    #[test]
    fn presets_that_cannot_work_say_why() {
        let image = Image::from_rgb(2, 2, vec![0; 12]).unwrap();
        let good = Preset::imagenet(2, 2, Interpolation::Bilinear);
        let bad = [
            Preset { std: [1.0, 0.0, 1.0], ..good.clone() },
            Preset { mean: [f32::NAN; 3], ..good.clone() },
            Preset { scale: 0.0, ..good.clone() },
            Preset { crop: Some([0, 3]), ..good.clone() },
            Preset { crop: Some([usize::MAX; 2]), ..good.clone() },
            Preset { resize: Some(Resize::Shorter(0)), ..good.clone() },
            Preset { resize: Some(Resize::Shorter(usize::MAX)), ..good.clone() },
        ];
        for preset in bad {
            assert!(preset.apply(&image).is_err(), "{preset:?}");
        }
        assert!(good.apply(&image).is_ok());
    }

    #[test]
    fn presets_survive_json_and_unknown_fields_do_not() {
        let preset = Preset::for_model("efficientnet_v2_l").unwrap();
        let json = serde_json::to_string(&preset).unwrap();
        assert_eq!(serde_json::from_str::<Preset>(&json).unwrap(), preset);
        assert!(serde_json::from_str::<Preset>(&json.replacen('{', "{\"antialias\":true,", 1)).is_err());
    }

    #[test]
    fn every_family_has_its_published_recipe() {
        use Interpolation::{Bicubic, Bilinear};
        let cases = [
            ("alexnet", "", 224, 256, Bilinear),
            ("resnet50", "", 224, 256, Bilinear),
            ("resnet50", "IMAGENET1K_V2", 224, 232, Bilinear),
            ("resnext101_64x4d", "IMAGENET1K_V1", 224, 232, Bilinear),
            ("efficientnet_b1", "", 240, 256, Bicubic),
            ("efficientnet_b1", "IMAGENET1K_V2", 240, 255, Bilinear),
            ("efficientnet_b7", "IMAGENET1K_V1", 600, 600, Bicubic),
            ("seresnet50", "", 224, 256, Bicubic),
            ("seresnet50", "a1_in1k", 224, 235, Bicubic),
            ("alexnet_paper", "", 227, 256, Bilinear),
            ("deform_resnet50_v2_c3", "", 224, 256, Bilinear),
        ];
        for (model, weights, crop, resize, interpolation) in cases {
            let found = if weights.is_empty() { Preset::for_model(model) } else { Preset::for_weights(model, weights) };
            assert_eq!(found, Some(Preset::imagenet(crop, resize, interpolation)), "{model} {weights}");
        }
        for model in ["resnet20", "cifar_plain110", "densenet_bc_100_12", "cifar_densenet_bc_190_40"] {
            assert_eq!(Preset::for_model(model), Some(Preset::cifar10()), "{model}");
        }
        for (model, weights) in [("resnet18", "IMAGENET1K_V2"), ("densenet264", "IMAGENET1K_V1"), ("resnet51", "V1")] {
            assert_eq!(Preset::for_weights(model, weights), None, "{model} {weights}");
        }
        assert_eq!(Preset::for_model("resnet21"), None);
        assert_eq!(Preset::for_weights("squeezenet1_0", "caffe"), Some(Preset::caffe(227, 256)));
    }
}
