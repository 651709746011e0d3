//! A line chart as SVG: light or dark as its reader has it, with a title and a description for screen readers.
//!
//! Invariant: texts are escaped, so that no name is read as a part of the picture.

use std::fmt::Write;

use crate::time::EventTime;

/// Size of the picture.
const SIZE: (f64, f64) = (860.0, 420.0);
/// Room around the lines: left, right, above, below.
const ROOM: (f64, f64, f64, f64) = (78.0, 24.0, 48.0, 46.0);
/// Width of the legend, if there are several lines.
const LEGEND: f64 = 170.0;
/// Number of labels of each axis, about.
const LABELS: usize = 6;
/// Longest name in the legend, in characters.
const NAME: usize = 20;
/// Number of points of a line up to which each is marked.
const MARKED: usize = 60;

/// Colours of lines on a light and on a dark ground; each has a contrast of 3 to 1 at least with its ground.
const COLOURS: [(&str, &str); 8] = [
    ("#0a6ebd", "#58a6ff"),
    ("#b3141e", "#ff8a84"),
    ("#1a6b34", "#5ad17c"),
    ("#6639ba", "#c9a6ff"),
    ("#8a4b00", "#f0b35a"),
    ("#006d75", "#4fd1d9"),
    ("#8b2177", "#ff9ae2"),
    ("#57606a", "#9da7b3"),
];

/// A line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlotSeries {
    /// Its name in the legend; empty if it is the only one.
    pub(super) name: String,
    /// Times in milliseconds since 1970 with values, in order.
    pub(super) points: Vec<(i64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlotChart {
    pub(super) title: String,
    pub(super) series: Vec<PlotSeries>,
}

/// Positions of times and values in the picture.
struct PlotScale {
    times: (i64, i64),
    values: (f64, f64),
    right: f64,
}

impl PlotScale {
    fn x(&self, time: i64) -> f64 {
        let (first, last) = self.times;
        let width = self.right - ROOM.0;
        if last == first {
            ROOM.0 + width / 2.0
        } else {
            ROOM.0 + width * (time - first) as f64 / (last - first) as f64
        }
    }

    fn y(&self, value: f64) -> f64 {
        let (least, most) = self.values;
        SIZE.1 - ROOM.3 - (SIZE.1 - ROOM.2 - ROOM.3) * (value - least) / (most - least)
    }
}

impl PlotChart {
    /// Draws the chart.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let first = points().map(|point| point.0).min().unwrap_or_default();
        let last = points().map(|point| point.0).max().unwrap_or_default();
        // The axis begins at zero, so that heights compare.
        let extreme = |start: f64, pick: fn(f64, f64) -> f64| points().map(|point| point.1).fold(start, pick);
        let ticks = ticks(extreme(0.0, f64::min), extreme(0.0, f64::max));
        let values = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        let has_legend = self.series.len() > 1 || self.series.iter().any(|series| !series.name.is_empty());
        let right = SIZE.0 - ROOM.1 - if has_legend { LEGEND } else { 0.0 };
        let scale = PlotScale { times: (first, last), values, right };
        let mut text = self.head();
        self.draw_axes(&mut text, &scale, &ticks);
        for (at, series) in self.series.iter().enumerate() {
            draw_series(&mut text, &scale, at, series);
        }
        if has_legend {
            draw_legend(&mut text, right, &self.series);
        }
        text.push_str("</svg>\n");
        text
    }

    fn head(&self) -> String {
        let (title, (width, height)) = (escaped(&self.title), SIZE);
        let number: usize = self.series.iter().map(|series| series.points.len()).sum();
        let lines =
            if self.series.len() == 1 { String::from("One line") } else { format!("{} lines", self.series.len()) };
        let (mut light, mut dark) = (String::new(), String::new());
        for (at, (on_light, on_dark)) in COLOURS.iter().enumerate() {
            let rule = |colour: &str| format!(".c{at}{{stroke:{colour};fill:{colour}}}");
            light += &rule(on_light);
            dark += &rule(on_dark);
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-labelledby=\"title desc\">\n<title id=\"title\">{title}</title>\n\
             <desc id=\"desc\">{lines} of {number} points over event time, in UTC.</desc>\n<style>\n\
             text{{font:12px system-ui,sans-serif;fill:#1b1f24}}.title{{font-size:15px;font-weight:600}}\
             .ground{{fill:#fff}}.grid{{stroke:#d0d7de}}.line{{fill:none!important;stroke-width:2;stroke-linejoin:round}}{light}\n\
             @media (prefers-color-scheme:dark){{text{{fill:#e6edf3}}.ground{{fill:#0d1117}}.grid{{stroke:#3d444d}}{dark}}}\n\
             </style>\n<rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n\
             <text class=\"title\" x=\"16\" y=\"28\">{title}</text>\n"
        )
    }

    fn draw_axes(&self, text: &mut String, scale: &PlotScale, ticks: &[f64]) {
        // Writing to a string does not fail.
        for tick in ticks {
            let (y, label) = (scale.y(*tick), number(*tick));
            let _ = writeln!(
                text,
                "<line class=\"grid\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                ROOM.0, scale.right
            );
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                ROOM.0 - 8.0,
                y + 4.0
            );
        }
        let mut times: Vec<i64> = self.series.iter().flat_map(|series| &series.points).map(|point| point.0).collect();
        times.sort_unstable();
        times.dedup();
        let every = times.len().div_ceil(LABELS).max(1);
        let y = SIZE.1 - ROOM.3 + 20.0;
        let mut day = "";
        let names: Vec<String> = times.iter().map(|time| EventTime::from_millis(*time).to_string()).collect();
        for (time, name) in times.iter().zip(&names).step_by(every) {
            let (date, clock) = name.split_once('T').unwrap_or(("", name));
            let (x, clock) = (scale.x(*time), clock.trim_end_matches('Z').trim_end_matches(".000"));
            let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{}</text>", escaped(clock));
            if date != day {
                let _ = writeln!(
                    text,
                    "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                    y + 16.0,
                    escaped(date)
                );
                day = date;
            }
        }
    }
}

fn draw_series(text: &mut String, scale: &PlotScale, at: usize, series: &PlotSeries) {
    let class = at % COLOURS.len();
    let points = series.points.iter().map(|(time, value)| format!("{:.1},{:.1}", scale.x(*time), scale.y(*value)));
    let points: Vec<_> = points.collect();
    let _ = writeln!(text, "<polyline class=\"line c{class}\" points=\"{}\"/>", points.join(" "));
    if series.points.len() <= MARKED {
        for ((time, value), place) in series.points.iter().zip(&points) {
            let (x, y) = place.split_once(',').unwrap_or_default();
            let said = escaped(&format!("{} {}: {value}", series.name, EventTime::from_millis(*time)));
            let _ = writeln!(
                text,
                "<circle class=\"c{class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"><title>{}</title></circle>",
                said.trim()
            );
        }
    }
}

fn draw_legend(text: &mut String, right: f64, series: &[PlotSeries]) {
    for (at, series) in series.iter().enumerate() {
        let (x, y, class) = (right + 18.0, ROOM.2 + 8.0 + 20.0 * at as f64, at % COLOURS.len());
        let name: String = series.name.chars().take(NAME).collect();
        let cut = if series.name.chars().count() > NAME { "…" } else { "" };
        let _ = writeln!(
            text,
            "<line class=\"line c{class}\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            x + 16.0
        );
        let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\">{}{cut}</text>", x + 22.0, y + 4.0, escaped(&name));
    }
}

/// Returns round values, from one at or below `least` to one at or above `most`.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let rough = ((most - least) / LABELS as f64).max(f64::MIN_POSITIVE);
    if most <= least || !rough.is_finite() || rough < 1e-300 {
        return vec![least.min(0.0), least.min(0.0) + 1.0];
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((least / step).floor() as i64, (most / step).ceil() as i64);
    (first..=last).map(|number| number as f64 * step).collect()
}

/// Formats a round value: 1,200 as `1.2 k`.
fn number(value: f64) -> String {
    let units = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    let (size, unit) = units.into_iter().find(|(size, _)| value.abs() >= *size).unwrap_or((1.0, ""));
    let rounded = format!("{:.3}", value / size);
    format!("{}{unit}", rounded.trim_end_matches('0').trim_end_matches('.'))
}

/// Escapes a text; characters that XML does not allow are replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_have_all_values() {
        assert_eq!(ticks(0.0, 7.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        for (least, most) in
            [(-30.0, 70.0), (0.0, 0.0), (-5.0, 0.0), (0.0, 1e18), (0.0, 1e-9), (-1e300, 1e300), (0.0, 1e-320)]
        {
            let ticks = ticks(least, most);
            assert!((2..=20).contains(&ticks.len()), "{least} {most}: {ticks:?}");
            assert!(ticks[0] <= least && ticks[ticks.len() - 1] >= most, "{least} {most}: {ticks:?}");
            assert!(ticks.is_sorted_by(|one, other| one < other), "{ticks:?}");
        }
        assert_eq!([0.0, 0.25, 1_200.0, -2e6].map(number), ["0", "0.25", "1.2 k", "-2 M"]);
    }

    #[test]
    fn a_picture_has_a_point_for_each_value_and_names_are_text() {
        let series =
            |name: &str| PlotSeries { name: name.into(), points: vec![(0, 1.0), (1_000, 3.0), (2_000, 1e300)] };
        let chart = PlotChart {
            title: "a & <b>".into(),
            series: vec![series("<script>alert(1)</script>"), series("\u{1b}x\"")],
        };
        let text = chart.svg();
        assert_eq!(text.matches("<circle ").count(), 6, "{text}");
        assert_eq!(text.matches("<polyline ").count(), 2, "{text}");
        assert!(!text.contains("<script") && !text.contains("<b>") && !text.contains('\u{1b}'), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        let one = PlotChart {
            title: String::new(),
            series: vec![PlotSeries { name: String::new(), points: vec![(5, 0.0)] }],
        };
        assert!(!one.svg().contains("NaN"), "{}", one.svg());
    }
}
