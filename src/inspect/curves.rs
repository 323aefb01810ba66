//! Line charts: learning curves, and anything else that is a number over a number.

use super::chart::{COLORS, Canvas, Drawn, GRID, INK, document, log_ticks, text, ticks, upright, write};
use crate::error::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use std::path::Path;

/// How an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences, equal lengths.
    Linear,
    /// Equal factors, equal lengths; points not over 0 are left out.
    Logarithmic,
}

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A line.
    Solid,
    /// A dashed line: usually training beside a solid line of testing, as in He et al. 2015.
    Dashed,
}

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// Number of the colour; curves that belong together share it.
    pub color: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Horizontal and vertical position, in the order of drawing. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// A chart of curves.
///
/// ```
/// use convzoo::inspect::curves::{Chart, Curve, Scale, Stroke};
///
/// let points = vec![(1.0, 61.0), (2.0, 48.5), (3.0, 40.0)];
/// let curve = Curve { name: "resnet20".into(), color: 0, stroke: Stroke::Solid, points };
/// let chart = Chart { title: "Learning", x: "epoch", y: "error in percent", scale: Scale::Linear, curves: &[curve] };
/// assert!(chart.svg()?.contains("resnet20"));
/// # Ok::<(), convzoo::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Chart<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
    /// The vertical axis.
    pub scale: Scale,
    /// The lines.
    pub curves: &'a [Curve],
}

const SIZE: (i32, i32) = (1000, 620);
/// Left, top, right, bottom of the plot itself.
const PLOT: [i32; 4] = [84, 54, 780, 560];

impl Chart<'_> {
    /// The chart as an SVG document. Fails if no curve has a point that can be shown.
    pub fn svg(&self) -> Result<String> {
        let frame = self.frame()?;
        document("chart", SIZE, |root| self.draw(root, &frame))
    }

    /// Writes [`Chart::svg`] to a file, which appears complete or not at all.
    pub fn write_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        write(path.as_ref(), &self.svg()?)
    }

    fn shown<'c>(&self, curve: &'c Curve) -> impl Iterator<Item = (f64, f64)> + 'c {
        let log = self.scale == Scale::Logarithmic;
        curve.points.iter().copied().filter(move |(x, y)| x.is_finite() && y.is_finite() && (!log || *y > 0.0))
    }

    fn frame(&self) -> Result<Frame> {
        let (mut x, mut y) = ((f64::MAX, f64::MIN), (f64::MAX, f64::MIN));
        for (px, py) in self.curves.iter().flat_map(|curve| self.shown(curve)) {
            x = (x.0.min(px), x.1.max(px));
            y = (y.0.min(py), y.1.max(py));
        }
        if x.0 > x.1 {
            return Err(Error::invalid("chart", format!("no curve of `{}` has a point to draw", self.title)));
        }
        if x.0 == x.1 {
            x = (x.0 - 0.5, x.1 + 0.5);
        }
        let y = match self.scale {
            Scale::Logarithmic => (y.0 / 1.3, y.1 * 1.3),
            Scale::Linear => {
                let room = ((y.1 - y.0) * 0.04).max(1e-9 * y.0.abs().max(1.0));
                // Down to zero where that is near: a curve's height then means something.
                (if y.0 >= 0.0 && y.0 < 0.4 * y.1 { 0.0 } else { y.0 - room }, y.1 + room)
            }
        };
        Ok(Frame { x, y, scale: self.scale })
    }

    fn draw(&self, root: &Canvas<'_>, frame: &Frame) -> Drawn {
        let [left, top, right, bottom] = PLOT;
        for value in ticks(frame.x) {
            let (x, _) = frame.pixel((value, frame.y.0));
            root.draw(&PathElement::new(vec![(x, top), (x, bottom)], GRID))?;
            text(root, &format!("{value}"), (x, bottom + 15), (HPos::Center, 14), &INK)?;
        }
        let heights = match self.scale {
            Scale::Linear => ticks(frame.y).into_iter().map(|value| (value, true)).collect(),
            Scale::Logarithmic => log_ticks(frame.y),
        };
        for (value, major) in heights {
            let (_, y) = frame.pixel((frame.x.0, value));
            let shade = if major { GRID } else { RGBColor(243, 243, 243) };
            root.draw(&PathElement::new(vec![(left, y), (right, y)], shade))?;
            if major {
                let words = if (1e-3..1e5).contains(&value.abs()) || value == 0.0 {
                    format!("{value}")
                } else {
                    format!("{value:e}")
                };
                text(root, &words, (left - 8, y), (HPos::Right, 14), &INK)?;
            }
        }
        root.draw(&Rectangle::new([(left, top), (right, bottom)], INK.mix(0.6)))?;
        let middle = (left + right) / 2;
        text(root, self.title, (middle, 26), (HPos::Center, 20), &INK)?;
        text(root, self.x, (middle, bottom + 40), (HPos::Center, 15), &INK)?;
        upright(root, self.y, (20, (top + bottom) / 2), 15)?;
        for (i, curve) in self.curves.iter().enumerate() {
            let line: Vec<(i32, i32)> = self.shown(curve).map(|point| frame.pixel(point)).collect();
            let key = top + 14 + 22 * i as i32;
            draw_line(root, curve, line)?;
            draw_line(root, curve, vec![(right + 18, key), (right + 52, key)])?;
            text(root, &curve.name, (right + 60, key), (HPos::Left, 14), &INK)?;
        }
        Ok(())
    }
}

fn draw_line(root: &Canvas<'_>, curve: &Curve, line: Vec<(i32, i32)>) -> Drawn {
    let style = COLORS[curve.color % COLORS.len()].stroke_width(2);
    if let [point] = line[..] {
        root.draw(&Circle::new(point, 3, style.filled()))?;
    } else if curve.stroke == Stroke::Solid {
        root.draw(&PathElement::new(line, style))?;
    } else {
        dashes(&line).into_iter().try_for_each(|dash| root.draw(&PathElement::new(dash, style)))?;
    }
    Ok(())
}

/// Cuts a line into dashes of 6 pixels with gaps of 4.
fn dashes(line: &[(i32, i32)]) -> Vec<Vec<(i32, i32)>> {
    let (dash, period) = (6.0, 10.0);
    let mut cut: Vec<Vec<(i32, i32)>> = Vec::new();
    let (mut done, mut drawing) = (0.0, false);
    for pair in line.windows(2) {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]].map(|(x, y)| (f64::from(x), f64::from(y)));
        let length = (x1 - x0).hypot(y1 - y0);
        let mut at = 0.0;
        while at < length {
            let phase = (done + at) % period;
            let (inside, left) = if phase < dash { (true, dash - phase) } else { (false, period - phase) };
            let end = (at + left.max(1e-6)).min(length);
            let point = |t: f64| {
                let share = t / length;
                ((x0 + share * (x1 - x0)).round() as i32, (y0 + share * (y1 - y0)).round() as i32)
            };
            match cut.last_mut().filter(|_| inside && drawing) {
                Some(last) => last.push(point(end)),
                None if inside => cut.push(vec![point(at), point(end)]),
                None => {}
            }
            (at, drawing) = (end, inside);
        }
        done += length;
    }
    cut
}

struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    scale: Scale,
}

impl Frame {
    fn pixel(&self, (x, y): (f64, f64)) -> (i32, i32) {
        let [left, top, right, bottom] = PLOT.map(f64::from);
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = match self.scale {
            Scale::Linear => (y - self.y.0) / (self.y.1 - self.y.0),
            Scale::Logarithmic => (y / self.y.0).ln() / (self.y.1 / self.y.0).ln(),
        };
        ((left + across * (right - left)).round() as i32, (bottom - up * (bottom - top)).round() as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: Vec<(f64, f64)>) -> Curve {
        Curve { name: "a & b".into(), color: 14, stroke: Stroke::Dashed, points }
    }

    fn chart(curves: &[Curve], scale: Scale) -> Result<String> {
        Chart { title: "T", x: "x", y: "y", scale, curves }.svg()
    }

    #[test]
    fn what_can_be_shown_is_and_the_rest_is_left_out() {
        let odd = [(0.0, f64::NAN), (1.0, 3.0), (2.0, -1.0), (3.0, f64::INFINITY), (4.0, 0.02)];
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let svg = chart(&[curve(odd.to_vec())], scale).unwrap();
            assert!(svg.contains("a &amp; b") && !svg.contains("NaN"), "{svg}");
        }
        assert!(chart(&[curve(vec![(1.0, 2.0)])], Scale::Linear).is_ok());
        assert!(chart(&[], Scale::Linear).unwrap_err().to_string().contains("`T`"));
        assert!(chart(&[curve(vec![(1.0, -2.0)])], Scale::Logarithmic).is_err());
    }

    #[test]
    fn points_lie_where_the_axes_say() {
        let frame = Frame { x: (0.0, 10.0), y: (0.01, 100.0), scale: Scale::Logarithmic };
        let [left, top, right, bottom] = PLOT;
        assert_eq!(frame.pixel((0.0, 0.01)), (left, bottom));
        assert_eq!(frame.pixel((10.0, 100.0)), (right, top));
        assert_eq!(frame.pixel((5.0, 1.0)), ((left + right) / 2, (top + bottom) / 2));
        assert_eq!(dashes(&[(0, 0), (4, 0), (14, 0)]), [vec![(0, 0), (4, 0), (6, 0)], vec![(10, 0), (14, 0)]]);
        assert_eq!(ticks((0.0, 1.0)), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]);
        assert_eq!(ticks((7.0, 31.0)), [10.0, 15.0, 20.0, 25.0, 30.0]);
    }
}
