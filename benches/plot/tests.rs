//! Drawings have what a reader looks for, whatever the results are.

use kit::result_file::VERSION;
use kit::{Distribution, ResultLine, Sample};

use crate::draw;

fn line(program: &str, workers: usize, seconds: &[f64]) -> ResultLine {
    let sample = |seconds: &f64| Sample { seconds: *seconds, cpu_seconds: *seconds, peak_mib: 10.0 };
    ResultLine {
        version: VERSION,
        title: String::from("Tumbling, <Memory>"),
        program: program.to_owned(),
        workers,
        processes: 1,
        records: 1_000_000,
        samples: seconds.iter().map(sample).collect(),
        ..ResultLine::default()
    }
}

/// Draws lines as the program does: written to a file, and read again.
fn drawn(lines: &[ResultLine]) -> Vec<(String, String)> {
    let text: String = lines.iter().map(|line| line.to_json().unwrap_or_default() + "\n").collect();
    let read = ResultLine::read_all(&format!("     Running benches\n{text}"));
    assert_eq!(read.as_deref(), Ok(lines));
    let drawings = draw(lines);
    for (name, svg) in &drawings {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}: {svg}");
        for opened in svg.split('<').skip(1).filter(|tag| !tag.starts_with('/')) {
            let is_closed = opened.contains("/>") || opened.starts_with("svg") || opened.starts_with("text");
            assert!(is_closed, "{name}: <{opened}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count(), "{name}");
    }
    drawings
}

fn of_kind<'a>(drawings: &'a [(String, String)], kind: &str) -> &'a str {
    drawings.iter().find(|(name, _)| name.ends_with(kind)).map_or("", |(_, svg)| svg)
}

#[test]
fn throughput_has_a_bar_with_a_range_for_each_program() {
    let drawings = drawn(&[line("ByHand", 1, &[0.5, 0.4, 0.6]), line("Tidegate", 1, &[1.0, 0.9, 1.3])]);
    let names: Vec<_> = drawings.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["tumbling-memory-throughput.svg", "tumbling-memory-cpu.svg"]);
    let svg = of_kind(&drawings, "throughput.svg");
    assert_eq!(svg.matches(r#"class="bar""#).count(), 2);
    assert_eq!(svg.matches(r#"class="range""#).count(), 2);
    assert!(svg.contains("Tumbling, &lt;Memory&gt;") && svg.contains("Tidegate, 1"), "{svg}");
    // The program by hand is twice as fast: its bar is twice as high.
    let heights = svg.split(r#"class="bar""#).skip(1).filter_map(|bar| {
        bar.split(r#"height=""#)
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .and_then(|text| text.parse::<f64>().ok())
    });
    let heights: Vec<f64> = heights.collect();
    assert!((heights[0] / heights[1] - 2.0).abs() < 0.01, "{heights:?}");
}

#[test]
fn scaling_has_a_curve_and_the_cost() {
    let lines = [
        line("ByHand", 1, &[0.5]),
        line("Tidegate", 1, &[0.8]),
        line("Tidegate", 2, &[0.4]),
        line("Tidegate", 4, &[0.3]),
    ];
    let drawings = drawn(&lines);
    let svg = of_kind(&drawings, "scaling.svg");
    assert!(svg.contains("COST: 2 workers"), "{svg}");
    assert_eq!(svg.matches(r#"class="range""#).count(), 3);
    let two_processes = ResultLine { processes: 2, ..line("Tidegate", 1, &[0.45]) };
    let slow = [lines[0].clone(), line("Tidegate", 1, &[0.9]), line("Tidegate", 2, &[0.7]), two_processes];
    let drawings = drawn(&slow);
    let svg = of_kind(&drawings, "scaling.svg");
    assert!(svg.contains("Tidegate, 2 processes") && svg.contains("COST: 2 workers"), "{svg}");
    let drawings = drawn(&slow[..3]);
    assert!(of_kind(&drawings, "scaling.svg").contains("COST: more workers than measured"));
}

#[test]
fn latency_is_drawn_on_logarithmic_axes() {
    let ccdf = vec![[5.0, 0.5], [20.0, 0.01], [300.0, 0.0]];
    let percentiles = vec![[50.0, 5.0], [99.0, 20.0]];
    let run = Distribution { percentiles, ccdf };
    let lines = [
        ResultLine { latencies: vec![run.clone(), run.clone()], ..line("Journal", 1, &[10.0, 10.0]) },
        ResultLine { latencies: vec![run], ..line("Full", 1, &[10.0]) },
    ];
    let drawings = drawn(&lines);
    assert_eq!(drawings.len(), 1, "no bars of runs whose length is given");
    let svg = of_kind(&drawings, "latency.svg");
    assert_eq!(svg.matches(r#"class="curve""#).count(), 2);
    for text in [">1<", ">10<", ">100<", ">1000<", ">0.01<", "Journal, 1", "milliseconds"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }
}

#[test]
fn damaged_and_later_files_are_refused_by_their_line() {
    let good = line("Tidegate", 1, &[1.0]).to_json().unwrap_or_default();
    let later = good.replace(r#""version":1"#, r#""version":9"#);
    let refused = |text: &str| ResultLine::read_all(text).err().unwrap_or_default();
    assert!(refused(&format!("{good}\n{later}")).starts_with("line 2 has the format 9"));
    assert!(refused(r#"{"input":"old"}"#).starts_with("line 1 is no result"));
    assert!(drawn(&[]).is_empty());
}
