//! A chart as an SVG text: a frame, axes, and marks in the coordinates of the data.

use std::fmt::Write as _;

/// Width and height of a chart, in pixels.
const SIZE: [f64; 2] = [640.0, 400.0];
/// Margins on the left, the right, the top and the bottom.
const MARGINS: [f64; 4] = [64.0, 16.0, 40.0, 52.0];

/// Colours of series: Okabe and Ito's, which the colour-blind tell apart, in an order that differs in grey.
pub(crate) const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555"];

/// Scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    /// Powers of ten; values are positive.
    Logarithmic,
}

/// An axis from its least value to its greatest.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    scale: Scale,
    least: f64,
    greatest: f64,
}

impl Axis {
    /// Makes a linear axis from 0 to a bit more than `greatest`.
    pub(crate) fn from_zero(greatest: f64) -> Self {
        let greatest = if greatest > 0.0 && greatest.is_finite() { greatest * 1.08 } else { 1.0 };
        Axis { scale: Scale::Linear, least: 0.0, greatest }
    }

    /// Makes a linear axis of places, from half a place before the first to half a place after the last.
    pub(crate) fn places(count: usize) -> Self {
        Axis { scale: Scale::Linear, least: -0.5, greatest: count as f64 - 0.5 }
    }

    /// Makes a logarithmic axis of whole powers of ten around values; those that are not positive are ignored.
    pub(crate) fn logarithmic(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (least, greatest) = (least.min(value), greatest.max(value));
        }
        if least > greatest {
            (least, greatest) = (0.1, 1.0);
        }
        let (least, greatest) = (10_f64.powf(least.log10().floor()), 10_f64.powf(greatest.log10().ceil()));
        let greatest = if greatest > least { greatest } else { least * 10.0 };
        Axis { scale: Scale::Logarithmic, least, greatest }
    }

    /// Returns the place of a value: 0 at the least one, 1 at the greatest.
    fn share(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.least) / (self.greatest - self.least),
            Scale::Logarithmic => (value.max(self.least) / self.least).log10() / (self.greatest / self.least).log10(),
        };
        share.clamp(0.0, 1.0)
    }

    /// Returns the values of about six ticks.
    fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Logarithmic {
            let powers = (self.greatest / self.least).log10().round() as i32;
            return (0..=powers).map(|power| self.least * 10_f64.powi(power)).collect();
        }
        let rough = (self.greatest - self.least) / 6.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..).map(|number| f64::from(number) * step).take_while(|tick| *tick <= self.greatest).collect()
    }
}

/// A chart that is being drawn.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    x: Axis,
    y: Axis,
    body: String,
    /// Number of series in the legend.
    legend: usize,
    /// `true` if the legend is on the left.
    legend_left: bool,
}

impl Chart {
    /// Draws the frame: the title, the names of the axes, and the ticks of the upright one.
    pub(crate) fn new(title: &str, (x, x_name): (Axis, &str), (y, y_name): (Axis, &str)) -> Self {
        let mut chart = Chart { x, y, body: String::new(), legend: 0, legend_left: false };
        let [left, right, top, bottom] = MARGINS;
        let (width, height) = (SIZE[0] - left - right, SIZE[1] - top - bottom);
        chart.put(&format!(r#"<rect width="{}" height="{}" fill="white"/>"#, SIZE[0], SIZE[1]));
        chart.text([SIZE[0] / 2.0, 22.0], "middle", "bold", title);
        chart.text([left + width / 2.0, SIZE[1] - 12.0], "middle", "normal", x_name);
        let middle = top + height / 2.0;
        chart.put(&format!(
            r#"<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{}</text>"#,
            escaped(y_name)
        ));
        for tick in chart.y.ticks() {
            let at = chart.y_of(tick);
            chart.line([left, at], [left + width, at], "#dddddd", 1.0);
            chart.text([left - 6.0, at + 4.0], "end", "normal", &number(tick));
        }
        chart.put(&format!(
            r#"<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="black"/>"#
        ));
        chart
    }

    /// Draws the ticks of the level axis at its own values.
    pub(crate) fn x_ticks(&mut self) {
        for tick in self.x.ticks() {
            self.x_tick(tick, &number(tick));
        }
    }

    /// Draws a tick of the level axis.
    pub(crate) fn x_tick(&mut self, value: f64, name: &str) {
        let (at, foot) = (self.x_of(value), SIZE[1] - MARGINS[3]);
        self.line([at, foot], [at, foot + 4.0], "black", 1.0);
        self.text([at, foot + 17.0], "middle", "normal", name);
    }

    /// Draws a bar from 0, with the range of its runs.
    pub(crate) fn bar(&mut self, at: f64, width: f64, value: f64, range: [f64; 2], colour: &str) {
        let (from, to) = (self.x_of(at - width / 2.0), self.x_of(at + width / 2.0));
        let (top, foot) = (self.y_of(value), SIZE[1] - MARGINS[3]);
        self.put(&format!(
            r#"<rect class="bar" x="{from:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="{colour}"/>"#,
            to - from,
            foot - top
        ));
        self.range(at, range);
    }

    /// Draws the range of runs at a value.
    pub(crate) fn range(&mut self, at: f64, [least, greatest]: [f64; 2]) {
        let (x, low, high) = (self.x_of(at), self.y_of(least), self.y_of(greatest));
        self.put(&format!(
            r#"<path class="range" d="M{:.1} {low:.1}h8m-4 0V{high:.1}m-4 0h8" fill="none" stroke="black"/>"#,
            x - 4.0
        ));
    }

    /// Draws a line through points, which are marked if there are few.
    pub(crate) fn curve(&mut self, points: &[[f64; 2]], colour: &str, dashed: bool) {
        let mut path = String::new();
        for (number, [x, y]) in points.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if number == 0 { 'M' } else { 'L' }, self.x_of(*x), self.y_of(*y));
        }
        let dashes = if dashed { r#" stroke-dasharray="6 4""# } else { "" };
        self.put(&format!(
            r#"<path class="curve" d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>"#
        ));
        if points.len() < 12 && !dashed {
            for [x, y] in points {
                let (x, y) = (self.x_of(*x), self.y_of(*y));
                self.put(&format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#));
            }
        }
    }

    /// Draws an upright dashed line at a value, with a note.
    pub(crate) fn upright(&mut self, value: f64, note: &str) {
        let (x, top) = (self.x_of(value), MARGINS[2]);
        let foot = SIZE[1] - MARGINS[3];
        self.put(&format!(r##"<path d="M{x:.1} {top}V{foot}" stroke="#888888" stroke-dasharray="2 3"/>"##));
        let (at, anchor) = if x > SIZE[0] / 2.0 { (x - 4.0, "end") } else { (x + 4.0, "start") };
        self.text([at, foot - 8.0], anchor, "normal", note);
    }

    /// Writes a note at a point of the data.
    pub(crate) fn note(&mut self, [x, y]: [f64; 2], note: &str) {
        let at = [self.x_of(x), self.y_of(y) - 6.0];
        self.text(at, "middle", "normal", note);
    }

    /// Adds a series to the legend.
    pub(crate) fn legend(&mut self, name: &str, colour: &str) {
        let y = MARGINS[2] + 18.0 + 16.0 * self.legend as f64;
        self.legend += 1;
        let (x, anchor, text_x) = match self.legend_left {
            true => (MARGINS[0] + 10.0, "start", MARGINS[0] + 26.0),
            false => (SIZE[0] - MARGINS[1] - 20.0, "end", SIZE[0] - MARGINS[1] - 26.0),
        };
        self.put(&format!(r#"<rect x="{x}" y="{}" width="10" height="10" fill="{colour}"/>"#, y - 9.0));
        self.text([text_x, y], anchor, "normal", name);
    }

    /// Moves the legend to the left, where rising curves are not.
    pub(crate) fn legend_left(&mut self) {
        self.legend_left = true;
    }

    /// Returns the drawing.
    pub(crate) fn finish(self) -> String {
        let [width, height] = SIZE;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n{}</svg>\n",
            self.body
        )
    }

    fn x_of(&self, value: f64) -> f64 {
        MARGINS[0] + self.x.share(value) * (SIZE[0] - MARGINS[0] - MARGINS[1])
    }

    fn y_of(&self, value: f64) -> f64 {
        SIZE[1] - MARGINS[3] - self.y.share(value) * (SIZE[1] - MARGINS[2] - MARGINS[3])
    }

    fn put(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    fn line(&mut self, [x, y]: [f64; 2], to: [f64; 2], colour: &str, width: f64) {
        self.put(&format!(
            r#"<path d="M{x:.1} {y:.1}L{:.1} {:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            to[0], to[1]
        ));
    }

    fn text(&mut self, [x, y]: [f64; 2], anchor: &str, weight: &str, text: &str) {
        let text = escaped(text);
        self.put(&format!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>"#
        ));
    }
}

/// Formats a tick: no more digits than it has.
fn number(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
