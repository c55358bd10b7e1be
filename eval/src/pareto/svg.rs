//! Charts as SVG. Colours are the page's: elements carry classes only.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::charts::{Chart, Mark, OWN_STYLES, PEER_STYLES, Series, Style};
use super::html::escape;
use super::labels::{Placer, Rect, along};

/// Width and height of a drawing in pixels of the page, so that its text has the size of the page's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Size {
    pub(super) class: &'static str,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// For screens of a desk and of a phone: the page shows one of them.
pub(super) const SIZES: [Size; 2] = [
    Size { class: "wide", width: 600.0, height: 400.0 },
    Size { class: "narrow", width: 336.0, height: 320.0 },
];

/// Room around the plot for labels of ticks.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 40.0;
/// Least distance of ticks.
const X_SPACING: f64 = 62.0;
const Y_SPACING: f64 = 34.0;
/// Radius of a mark, and half the length of the line that ends a bar.
const RADIUS: f64 = 4.5;
const CAP: f64 = 3.0;

impl Style {
    /// The class whose colour it has.
    pub(super) fn class(self) -> String {
        match self {
            Self::Own(i) => format!("o{}", i % OWN_STYLES),
            Self::Peer(i) => format!("p{}", i % PEER_STYLES),
        }
    }

    /// The marker at a place.
    pub(super) fn marker(self, x: f64, y: f64) -> String {
        let path = |corners: &[(f64, f64)]| {
            let mut path = String::new();
            for (i, (dx, dy)) in corners.iter().enumerate() {
                let command = if i == 0 { 'M' } else { 'L' };
                let (x, y) = (x + dx * RADIUS, y + dy * RADIUS);
                let _ = write!(path, "{command}{x:.1} {y:.1}");
            }
            format!(r#"<path class="mark" d="{path}Z"/>"#)
        };
        match self {
            Self::Own(i) if i % 2 == 0 => {
                format!(r#"<circle class="mark" cx="{x:.1}" cy="{y:.1}" r="{RADIUS}"/>"#)
            }
            Self::Own(_) => path(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)]),
            Self::Peer(i) if i % 2 == 0 => {
                path(&[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
            }
            Self::Peer(_) => path(&[(0.0, -1.15), (1.15, 0.0), (0.0, 1.15), (-1.15, 0.0)]),
        }
    }
}

/// Draws a chart.
pub(super) fn draw(chart: &Chart, size: Size) -> String {
    let area =
        Rect { left: LEFT, top: TOP, right: size.width - RIGHT, bottom: size.height - BOTTOM };
    let marks = || chart.series.iter().flat_map(|series| &series.marks);
    let bounds =
        |value: f64, ci: Option<[f64; 2]>| ci.unwrap_or([value; 2]).into_iter().chain([value]);
    let xs = marks().flat_map(|mark| bounds(mark.x, mark.x_ci));
    let ys = marks().flat_map(|mark| bounds(mark.y, mark.y_ci));
    let ys = ys.chain(chart.guides.iter().map(|guide| guide.y));
    let drawing = Drawing {
        chart,
        area,
        x: Axis::new(Scale::Linear, xs, [area.left, area.right], X_SPACING),
        y: Axis::new(chart.y_scale, ys, [area.bottom, area.top], Y_SPACING),
        out: String::new(),
    };
    let Size { class, width, height } = size;
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n{}</svg>\n",
        escape(&format!("{}: {} against {}", chart.title, chart.y_title, chart.x_title)),
        drawing.finish(),
    )
}

struct Drawing<'a> {
    chart: &'a Chart,
    area: Rect,
    x: Axis,
    y: Axis,
    out: String,
}

impl Drawing<'_> {
    fn finish(mut self) -> String {
        self.axes();
        let mut lines = Vec::new();
        for guide in &self.chart.guides {
            if let Some(y) = self.y.place(guide.y) {
                let ends = [(self.area.left, y), (self.area.right, y)];
                self.line("guide", ends[0], ends[1]);
                lines.extend(along(ends[0], ends[1]));
            }
        }
        let mut taken = Vec::new();
        // Ours last, so that they lie on top.
        for series in self.chart.series.iter().rev() {
            let _ = writeln!(self.out, r#"<g class="{}">"#, series.style.class());
            lines.extend(self.front(series));
            for mark in &series.marks {
                taken.extend(self.mark(series.style, mark));
            }
            self.out.push_str("</g>\n");
        }
        self.names(Placer::new(self.area, taken, lines));
        self.out
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.out,
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        );
    }

    fn text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        let _ = writeln!(self.out, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#);
    }

    fn axes(&mut self) {
        let area = self.area;
        for tick in self.x.ticks.clone() {
            let x = self.x.clamped(tick.value);
            self.line("grid", (x, area.top), (x, area.bottom));
            self.text("tick middle", (x, area.bottom + 15.0), &tick.label);
        }
        for tick in self.y.ticks.clone() {
            let y = self.y.clamped(tick.value);
            self.line("grid", (area.left, y), (area.right, y));
            self.text("tick end", (area.left - 6.0, y + 4.0), &tick.label);
        }
        self.line("axis", (area.left, area.bottom), (area.right, area.bottom));
        // Above the plot, where it reads without turning the head and takes no width.
        self.text("title", (2.0, 12.0), self.chart.y_title);
        let middle = (area.left + area.right) / 2.0;
        self.text("title middle", (middle, area.bottom + 33.0), &self.chart.x_title);
    }

    /// The line through the points that no other of the series beats; returns where it runs.
    fn front(&mut self, series: &Series) -> Vec<Rect> {
        let places = series.front.iter().filter_map(|&i| self.places(&series.marks[i]));
        let places: Vec<(f64, f64)> = places.collect();
        if places.len() > 1 {
            let points: Vec<String> =
                places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let points = points.join(" ");
            let _ = writeln!(self.out, r#"<polyline class="front" points="{points}"/>"#);
        }
        places.windows(2).flat_map(|pair| along(pair[0], pair[1])).collect()
    }

    /// Where a mark lies; `None` when an axis has no place for it.
    fn places(&self, mark: &Mark) -> Option<(f64, f64)> {
        Some((self.x.place(mark.x)?, self.y.place(mark.y)?))
    }

    /// A mark with its bars; returns what it covers.
    fn mark(&mut self, style: Style, mark: &Mark) -> Vec<Rect> {
        let Some((x, y)) = self.places(mark) else { return Vec::new() };
        let mut taken = vec![Rect::around(x, y, RADIUS + 1.0)];
        let _ = writeln!(self.out, "<g><title>{}</title>", escape(&mark.title));
        if let Some([low, high]) = mark.y_ci.map(|ci| ci.map(|v| self.y.clamped(v))) {
            self.line("bar", (x, low), (x, high));
            for end in [low, high] {
                self.line("bar", (x - CAP, end), (x + CAP, end));
            }
            let (top, bottom) = (low.min(high), low.max(high));
            taken.push(Rect { left: x - CAP, top, right: x + CAP, bottom });
        }
        if let Some([low, high]) = mark.x_ci.map(|ci| ci.map(|v| self.x.clamped(v))) {
            self.line("bar", (low, y), (high, y));
            for end in [low, high] {
                self.line("bar", (end, y - CAP), (end, y + CAP));
            }
            taken.push(Rect { left: low, top: y - CAP, right: high, bottom: y + CAP });
        }
        let marker = style.marker(x, y);
        let _ = writeln!(self.out, "{marker}</g>");
        taken
    }

    /// The names: of lines across, of our points, of those on the fronts of others, of the rest.
    fn names(&mut self, mut placer: Placer) {
        let chart = self.chart;
        for guide in &chart.guides {
            let place = self.y.place(guide.y).and_then(|y| placer.place_on_line(y, &guide.label));
            if let Some(rect) = place {
                self.text("tick", (rect.left, rect.bottom - 2.5), &guide.label);
            }
        }
        let rank = |series: &Series, i: usize| match series.style {
            Style::Own(_) => 0,
            Style::Peer(_) if series.front.contains(&i) => 1,
            Style::Peer(_) => 2,
        };
        let mut marks: Vec<(usize, &Series, &Mark)> = chart
            .series
            .iter()
            .flat_map(|series| {
                let marks = series.marks.iter().enumerate();
                marks.map(move |(i, mark)| (rank(series, i), series, mark))
            })
            .collect();
        marks.sort_by_key(|(rank, ..)| *rank);
        for (_, series, mark) in marks {
            let Some((x, y)) = self.places(mark) else { continue };
            if let Some(rect) = placer.place(x, y, &mark.label) {
                let class = format!("label {}", series.style.class());
                self.text(&class, (rect.left, rect.bottom - 2.5), &mark.label);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pareto::charts::Guide;
    use crate::pareto::testing::check_markup;

    fn mark(x: f64, y: f64, label: &str) -> Mark {
        let ci = |v: f64| Some([v * 0.9, v * 1.1]);
        Mark { x, y, x_ci: ci(x), y_ci: ci(y), label: label.into(), title: format!("<{label}>") }
    }

    fn chart() -> Chart {
        Chart {
            id: "a-b",
            title: "a & b".into(),
            x_title: "bytes".into(),
            y_title: "loss",
            y_scale: Scale::Log,
            series: vec![
                Series {
                    name: "own".into(),
                    style: Style::Own(0),
                    marks: vec![mark(40.0, 1.0, "a<b"), mark(140.0, 0.001, "c")],
                    front: vec![0, 1],
                },
                Series {
                    name: "peer".into(),
                    style: Style::Peer(1),
                    marks: vec![mark(90.0, 0.1, "d"), mark(90.0, 0.0, "nowhere")],
                    front: vec![0],
                },
            ],
            guides: vec![Guide { y: 0.5, label: "original".into() }],
            notes: vec![],
        }
    }

    #[test]
    fn drawings_are_well_formed_and_escaped_in_every_size() {
        for size in SIZES {
            let svg = draw(&chart(), size);
            check_markup(&svg);
            assert!(svg.contains("a&lt;b") && svg.contains("a &amp; b"), "{svg}");
            assert!(
                !svg.contains("<a<b>") && !svg.contains("NaN") && !svg.contains("inf"),
                "{svg}"
            );
            // A value of 0 has no place on a logarithmic axis.
            assert!(!svg.contains("nowhere"), "{svg}");
            assert_eq!(svg.matches("class=\"front\"").count(), 1, "a line needs two points");
            assert_eq!(svg.matches("<circle").count(), 2);
            assert!(svg.contains("original"));
        }
    }

    #[test]
    fn better_is_lower_on_the_page_and_larger_is_to_the_right() {
        let svg = draw(&chart(), SIZES[0]);
        let circles: Vec<(f64, f64)> = svg
            .lines()
            .filter(|line| line.contains("<circle"))
            .map(|line| {
                let field = |name: &str| {
                    let rest = line.split(&format!("{name}=\"")).nth(1).expect("a field");
                    rest.split('"').next().expect("an end").parse::<f64>().expect("a number")
                };
                (field("cx"), field("cy"))
            })
            .collect();
        assert!(circles[0].0 < circles[1].0 && circles[0].1 < circles[1].1, "{circles:?}");
        for (x, y) in circles {
            assert!((LEFT..=600.0 - RIGHT).contains(&x) && (TOP..=400.0 - BOTTOM).contains(&y));
        }
    }

    #[test]
    fn an_empty_chart_is_drawn() {
        let empty = Chart { series: vec![], guides: vec![], ..chart() };
        check_markup(&draw(&empty, SIZES[1]));
    }
}
