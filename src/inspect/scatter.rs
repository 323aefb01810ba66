//! The chart every survey of networks opens with: accuracy against compute, circles as large as the model.
//!
//! Compute is on a logarithmic axis, accuracy on a linear one, and the *area* of a circle is proportional to the number
//! of parameters, so that twice the ink is twice the weights. Every circle is labelled; labels look for the free spot
//! nearest to their circle and are tied to it by a line where that is not beside it.

use super::chart::{COLORS, Canvas, Drawn, GRID, INK, document, log_ticks, text, upright, write};
use crate::error::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

/// One network on the chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Label beside the circle.
    pub name: String,
    /// Decides the colour; families appear in the legend in order of first appearance.
    pub family: String,
    /// Multiply-adds of one image in billions, over 0.
    pub gmacs: f64,
    /// Number of parameters.
    pub params: u64,
    /// Top-1 accuracy in percent, 0 to 100.
    pub top1: f64,
}

/// The chart as an SVG document.
///
/// ```
/// use convzoo::inspect::scatter::{Point, svg};
/// # fn main() -> convzoo::Result<()> {
/// let resnet50 = Point {
///     name: "resnet50".into(), family: "ResNet".into(), gmacs: 4.089, params: 25_557_032, top1: 80.858,
/// };
/// assert!(svg(&[resnet50])?.contains(">\nresnet50\n<"));
/// # Ok(())
/// # }
/// ```
///
/// Fails if there is no point, or one whose compute is not over 0 or whose accuracy is not within 0 to 100.
pub fn svg(points: &[Point]) -> Result<String> {
    let frame = Frame::around(points)?;
    document("scatter", (WIDTH, HEIGHT), |root| draw(root, points, &frame))
}

/// Writes [`svg`] to a file, which appears complete or not at all.
pub fn write_svg(path: impl AsRef<Path>, points: &[Point]) -> Result<()> {
    write(path.as_ref(), &svg(points)?)
}

const WIDTH: i32 = 1280;
const HEIGHT: i32 = 860;
/// Sides of the plot itself: left, top, right, bottom.
const PLOT: Rect = Rect { x0: 80, y0: 60, x1: 1060, y1: 790 };
/// Radius of a circle of a million parameters, so of `RADIUS * sqrt(params / 1e6)` for any other.
const RADIUS: f64 = 3.2;
/// Size of a label and, roughly, width of a character and height of a line in it.
const TEXT: i32 = 14;
const ADVANCE: f64 = 6.3;
const LINE: i32 = 13;

/// Pixels from `(x0, y0)`, inside, to `(x1, y1)`, outside.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rect {
    x0: i32,
    y0: i32,
    x1: i32,
    y1: i32,
}

impl Rect {
    fn overlap(&self, other: &Rect) -> i32 {
        let width = self.x1.min(other.x1) - self.x0.max(other.x0);
        let height = self.y1.min(other.y1) - self.y0.max(other.y0);
        width.max(0) * height.max(0)
    }

    fn within(&self, outer: &Rect) -> bool {
        outer.x0 <= self.x0 && outer.y0 <= self.y0 && self.x1 <= outer.x1 && self.y1 <= outer.y1
    }
}

/// Ranges of the axes, checked.
struct Frame {
    gmacs: (f64, f64),
    top1: (f64, f64),
    families: Vec<String>,
}

impl Frame {
    fn around(points: &[Point]) -> Result<Frame> {
        if points.is_empty() {
            return Err(Error::invalid("scatter", "there is no point to draw"));
        }
        let mut frame = Frame { gmacs: (f64::MAX, f64::MIN_POSITIVE), top1: (100.0, 0.0), families: Vec::new() };
        for point in points {
            let Point { name, gmacs, top1, .. } = point;
            if !(1e-9..=1e9).contains(gmacs) {
                return Err(Error::invalid(format!("scatter, `{name}`"), format!("{gmacs} GMACs: must be over 0")));
            }
            if !(0.0..=100.0).contains(top1) {
                let problem = format!("{top1} % top-1 accuracy: must be 0 to 100");
                return Err(Error::invalid(format!("scatter, `{name}`"), problem));
            }
            frame.gmacs = (frame.gmacs.0.min(*gmacs), frame.gmacs.1.max(*gmacs));
            frame.top1 = (frame.top1.0.min(*top1), frame.top1.1.max(*top1));
            if !frame.families.contains(&point.family) {
                frame.families.push(point.family.clone());
            }
        }
        // Room for the circles and labels at the border.
        let (low, high) = frame.gmacs;
        frame.gmacs = (low / 1.6, high * 1.8);
        let (low, high) = frame.top1;
        frame.top1 = ((low - 2.0).floor(), (high + 2.0).ceil());
        Ok(frame)
    }

    fn color(&self, family: &str) -> RGBColor {
        let index = self.families.iter().position(|f| f == family).unwrap_or(0);
        COLORS[index % COLORS.len()]
    }

    fn pixel(&self, gmacs: f64, top1: f64) -> (i32, i32) {
        let across = (gmacs / self.gmacs.0).ln() / (self.gmacs.1 / self.gmacs.0).ln();
        let up = (top1 - self.top1.0) / (self.top1.1 - self.top1.0);
        let x = f64::from(PLOT.x0) + across * f64::from(PLOT.x1 - PLOT.x0);
        let y = f64::from(PLOT.y1) - up * f64::from(PLOT.y1 - PLOT.y0);
        (x.round() as i32, y.round() as i32)
    }
}

/// Radius in pixels; the area is proportional to the parameters.
fn radius(params: u64) -> f64 {
    RADIUS * (params as f64 / 1e6).sqrt()
}

fn draw(root: &Canvas<'_>, points: &[Point], frame: &Frame) -> Drawn {
    draw_axes(root, frame)?;
    // Large circles first, so that small ones stay visible on top of them.
    let mut order: Vec<&Point> = points.iter().collect();
    order.sort_by(|a, b| b.params.cmp(&a.params).then_with(|| a.name.cmp(&b.name)));
    for point in &order {
        let color = frame.color(&point.family);
        let (center, r) = (frame.pixel(point.gmacs, point.top1), radius(point.params).round().max(1.0));
        root.draw(&Circle::new(center, r, color.mix(0.30).filled()))?;
        root.draw(&Circle::new(center, r, color.mix(0.95)))?;
        root.draw(&Circle::new(center, 2, color.filled()))?;
    }
    let labels = place_labels(&order, frame);
    for (point, label) in order.iter().zip(&labels) {
        let color = frame.color(&point.family);
        if let Some(anchor) = label.leader {
            let line = vec![frame.pixel(point.gmacs, point.top1), anchor];
            root.draw(&PathElement::new(line, color.mix(0.6)))?;
        }
    }
    for (point, label) in order.iter().zip(&labels) {
        let RGBColor(r, g, b) = frame.color(&point.family);
        let dark = RGBColor(r / 10 * 7, g / 10 * 7, b / 10 * 7);
        let middle = (label.area.y0 + label.area.y1) / 2;
        text(root, &point.name, (label.area.x0, middle), (HPos::Left, TEXT), &dark)?;
    }
    draw_legend(root, frame)
}

fn draw_axes(root: &Canvas<'_>, frame: &Frame) -> Drawn {
    for (value, major) in log_ticks(frame.gmacs) {
        let (x, _) = frame.pixel(value, frame.top1.0);
        let shade = if major { GRID } else { RGBColor(243, 243, 243) };
        root.draw(&PathElement::new(vec![(x, PLOT.y0), (x, PLOT.y1)], shade))?;
        if major {
            text(root, &format!("{value}"), (x, PLOT.y1 + 16), (HPos::Center, 16), &INK)?;
        }
    }
    let (low, high) = frame.top1;
    let step = [0.5, 1.0, 2.0, 5.0, 10.0].into_iter().find(|step| (high - low) / step <= 12.0).unwrap_or(20.0);
    let mut value = (low / step).ceil() * step;
    while value <= high.min(100.0) {
        let (_, y) = frame.pixel(frame.gmacs.0, value);
        root.draw(&PathElement::new(vec![(PLOT.x0, y), (PLOT.x1, y)], GRID))?;
        text(root, &format!("{value}"), (PLOT.x0 - 10, y), (HPos::Right, 16), &INK)?;
        value += step;
    }
    root.draw(&Rectangle::new([(PLOT.x0, PLOT.y0), (PLOT.x1, PLOT.y1)], INK.mix(0.6)))?;
    let middle = (PLOT.x0 + PLOT.x1) / 2;
    text(root, "Accuracy against compute", (middle, 28), (HPos::Center, 24), &INK)?;
    let caption = "multiply-adds per image in billions (convolutions and linear layers, log scale)";
    text(root, caption, (middle, PLOT.y1 + 46), (HPos::Center, 17), &INK)?;
    upright(root, "top-1 accuracy in percent", (24, (PLOT.y0 + PLOT.y1) / 2), 17)
}

fn draw_legend(root: &Canvas<'_>, frame: &Frame) -> Drawn {
    let (x, mut y) = (PLOT.x1 + 34, PLOT.y0 + 12);
    for family in &frame.families {
        let color = frame.color(family);
        root.draw(&Circle::new((x, y), 7, color.mix(0.35).filled()))?;
        root.draw(&Circle::new((x, y), 7, color.mix(0.95)))?;
        text(root, family, (x + 16, y), (HPos::Left, 16), &INK)?;
        y += 22;
    }
    y += 24;
    text(root, "circle area = parameters", (x - 8, y), (HPos::Left, 15), &INK)?;
    y += 14;
    for millions in [1u64, 10, 50, 140] {
        let r = radius(millions * 1_000_000).round() as i32;
        y += r + 6;
        root.draw(&Circle::new((x + 36, y), r, INK.mix(0.7)))?;
        text(root, &format!("{millions} million"), (x + 90, y), (HPos::Left, 15), &INK)?;
        y += r + 6;
    }
    Ok(())
}

/// Where a label stands, and where its line to the circle ends if it needs one.
struct Label {
    area: Rect,
    leader: Option<(i32, i32)>,
}

/// One label a point, in the same order. Greedy: each takes the cheapest place left, where covering another label is
/// worst, then leaving the plot, covering dots, standing in someone else's circle, and distance.
fn place_labels(points: &[&Point], frame: &Frame) -> Vec<Label> {
    let centers: Vec<(i32, i32)> = points.iter().map(|p| frame.pixel(p.gmacs, p.top1)).collect();
    let square = |(x, y): (i32, i32), r: i32| Rect { x0: x - r, y0: y - r, x1: x + r, y1: y + r };
    let dots: Vec<Rect> = centers.iter().map(|&center| square(center, 4)).collect();
    // The square of a circle's area stands for it.
    let side = |point: &Point| (radius(point.params) * 0.886) as i32;
    let discs: Vec<Rect> = points.iter().zip(&centers).map(|(point, &center)| square(center, side(point))).collect();
    let mut placed: Vec<Rect> = Vec::with_capacity(points.len());
    let mut labels = Vec::with_capacity(points.len());
    for (i, (point, &center)) in points.iter().zip(&centers).enumerate() {
        let width = (point.name.chars().count() as f64 * ADVANCE).ceil() as i32;
        let cost = |candidate: &(Rect, i32)| {
            let (area, distance) = candidate;
            let outside = i64::from(!area.within(&PLOT)) * 20_000;
            let labels: i64 = placed.iter().map(|other| i64::from(area.overlap(other))).sum();
            let dots: i64 = dots.iter().map(|dot| i64::from(area.overlap(dot))).sum();
            let others = discs.iter().enumerate().filter(|(j, _)| *j != i);
            let discs: i64 = others.map(|(_, disc)| i64::from(area.overlap(disc))).sum();
            outside + labels * 100 + dots * 8 + discs / 12 + i64::from(*distance) * 4
        };
        let candidates = candidates(center, radius(point.params), width);
        let (area, distance) = candidates.into_iter().min_by_key(cost).unwrap_or((dots[0], 0));
        placed.push(area);
        let nearest = (center.0.clamp(area.x0, area.x1), center.1.clamp(area.y0, area.y1));
        labels.push(Label { area, leader: (distance > 6).then_some(nearest) });
    }
    labels
}

/// Places around a circle in 16 directions, near ones first, each with its distance from the circle's edge. For a large
/// circle also inside it, just beside its centre.
fn candidates(center: (i32, i32), radius: f64, width: i32) -> Vec<(Rect, i32)> {
    let mut places = Vec::new();
    let starts = if radius > 12.0 { vec![4.0, radius + 3.0] } else { vec![radius.max(3.0) + 3.0] };
    for (inside, start) in starts.iter().enumerate().map(|(i, &s)| (i + 1 < starts.len(), s)) {
        let rings: &[i32] = if inside { &[0] } else { &[0, 8, 18, 30, 44, 60, 80, 105] };
        for &distance in rings {
            for direction in [0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11] {
                let (sin, cos) = (f64::from(direction) * std::f64::consts::TAU / 16.0).sin_cos();
                let reach = start + f64::from(distance);
                let x = f64::from(center.0) + cos * reach;
                let y = f64::from(center.1) - sin * reach;
                // The box hangs off the spot on the side away from the circle.
                let x0 = (x - (1.0 - cos) / 2.0 * f64::from(width)).round() as i32;
                let y0 = (y - (1.0 + sin) / 2.0 * f64::from(LINE)).round() as i32;
                let area = Rect { x0, y0, x1: x0 + width, y1: y0 + LINE };
                places.push((area, distance + if inside { 3 } else { 0 }));
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(name: &str, family: &str, gmacs: f64, params: u64, top1: f64) -> Point {
        Point { name: name.into(), family: family.into(), gmacs, params, top1 }
    }

    fn zoo() -> Vec<Point> {
        [
            ("alexnet", "AlexNet", 0.714, 61_100_840, 56.522),
            ("vgg11", "VGG", 7.609, 132_863_336, 69.02),
            ("vgg16", "VGG", 15.470, 138_357_544, 71.592),
            ("vgg16_bn", "VGG", 15.470, 138_365_992, 73.36),
            ("vgg19", "VGG", 19.632, 143_667_240, 72.376),
            ("vgg19_bn", "VGG", 19.632, 143_678_248, 74.218),
            ("googlenet", "GoogLeNet", 1.498, 6_624_904, 69.778),
            ("resnet18", "ResNet", 1.814, 11_689_512, 69.758),
            ("resnet34", "ResNet", 3.664, 21_797_672, 73.314),
            ("resnet50", "ResNet", 4.089, 25_557_032, 80.858),
            ("resnet101", "ResNet", 7.801, 44_549_160, 81.886),
            ("resnet152", "ResNet", 11.514, 60_192_808, 82.284),
            ("resnext50_32x4d", "ResNeXt", 4.23, 25_028_904, 81.198),
            ("resnext101_32x8d", "ResNeXt", 16.414, 88_791_336, 82.834),
            ("resnext101_64x4d", "ResNeXt", 15.46, 83_455_272, 83.246),
            ("wide_resnet50_2", "Wide ResNet", 11.398, 68_883_240, 81.602),
            ("wide_resnet101_2", "Wide ResNet", 22.753, 126_886_696, 82.51),
            ("densenet121", "DenseNet", 2.834, 7_978_856, 74.434),
            ("densenet161", "DenseNet", 7.728, 28_681_000, 77.138),
            ("densenet169", "DenseNet", 3.36, 14_149_480, 75.6),
            ("densenet201", "DenseNet", 4.291, 20_013_928, 76.896),
            ("legacy_seresnet50", "SENet", 3.86, 28_088_024, 77.63),
            ("legacy_seresnet101", "SENet", 7.575, 49_326_872, 78.25),
            ("legacy_seresnext50_32x4d", "SENet", 4.233, 27_559_896, 79.03),
            ("legacy_seresnext101_32x4d", "SENet", 7.975, 48_955_416, 80.19),
            ("legacy_senet154", "SENet", 20.688, 115_088_984, 81.32),
            ("efficientnet_b0", "EfficientNet", 0.386, 5_288_548, 77.692),
            ("efficientnet_b1", "EfficientNet", 0.687, 7_794_184, 79.838),
            ("efficientnet_b2", "EfficientNet", 1.088, 9_109_994, 80.608),
            ("efficientnet_b3", "EfficientNet", 1.827, 12_233_232, 82.008),
            ("efficientnet_b4", "EfficientNet", 4.394, 19_341_616, 83.384),
            ("efficientnet_b5", "EfficientNet", 10.266, 30_389_784, 83.444),
            ("efficientnet_b6", "EfficientNet", 19.068, 43_040_704, 84.008),
            ("efficientnet_b7", "EfficientNet", 37.746, 66_347_960, 84.122),
            ("efficientnet_v2_s", "EfficientNetV2", 8.366, 21_458_488, 84.228),
            ("efficientnet_v2_m", "EfficientNetV2", 24.582, 54_139_356, 85.112),
            ("efficientnet_v2_l", "EfficientNetV2", 56.08, 118_515_272, 85.808),
            ("squeezenet1_0", "SqueezeNet", 0.819, 1_248_424, 58.092),
            ("squeezenet1_1", "SqueezeNet", 0.349, 1_235_496, 58.178),
            ("mobilenet_v2", "MobileNet", 0.301, 3_504_872, 72.154),
        ]
        .map(|(name, family, gmacs, params, top1)| point(name, family, gmacs, params, top1))
        .to_vec()
    }

    #[test]
    fn circle_area_is_proportional_to_the_parameters() {
        let area = |params| radius(params).powi(2);
        assert!((area(50_000_000) / area(1_000_000) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn labels_of_the_whole_zoo_stay_inside_and_off_each_other() {
        let points = zoo();
        let frame = Frame::around(&points).unwrap();
        let order: Vec<&Point> = points.iter().collect();
        let labels = place_labels(&order, &frame);
        for (i, a) in labels.iter().enumerate() {
            assert!(a.area.within(&PLOT), "{} leaves the plot: {:?}", points[i].name, a.area);
            for (j, b) in labels.iter().enumerate().skip(i + 1) {
                assert_eq!(a.area.overlap(&b.area), 0, "{} covers {}", points[i].name, points[j].name);
            }
        }
    }

    #[test]
    fn every_point_and_family_is_in_the_drawing_and_names_are_escaped() {
        let mut points = zoo();
        points.push(point("<script>&\"", "Odd & sons", 1.0, 1, 60.0));
        let drawing = svg(&points).unwrap();
        for point in &zoo() {
            assert!(drawing.contains(&point.name) && drawing.contains(&point.family), "{}", point.name);
        }
        assert!(drawing.contains("&lt;script&gt;&amp;") && !drawing.contains("<script"));
        assert!(drawing.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn points_that_no_axis_can_show_are_errors_naming_them() {
        assert!(svg(&[]).unwrap_err().to_string().contains("no point"));
        for (gmacs, top1) in [(0.0, 50.0), (-1.0, 50.0), (f64::NAN, 50.0), (f64::INFINITY, 50.0), (1.0, 101.0)] {
            let error = svg(&[point("odd", "f", gmacs, 1, top1)]).unwrap_err().to_string();
            assert!(error.contains("`odd`"), "{error}");
        }
        assert!(svg(&[point("one", "f", 1e-9, 0, 0.0), point("two", "f", 1e9, u64::MAX, 100.0)]).is_ok());
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = std::env::temp_dir().join(format!("convzoo-scatter-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("zoo.svg");
        write_svg(&path, &zoo()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), svg(&zoo()).unwrap());
        write_svg(&path, &zoo()[..3]).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "a temporary file was left behind");
        assert!(write_svg(&path, &[]).is_err());
        assert!(path.exists(), "a failed drawing keeps the old file");
        assert!(write_svg(dir.join("absent/zoo.svg"), &zoo()).is_err());
        assert!(write_svg("/", &zoo()).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
