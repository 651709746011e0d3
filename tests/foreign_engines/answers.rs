//! Asks an engine, by `tests/foreign/engines`, and reads its rows.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::model::{Case, JoinRow, WindowRow};

/// Answers of an engine to a case: rows of text by the name of the output.
pub(crate) type Answers = BTreeMap<u64, BTreeMap<String, Vec<String>>>;

/// Asks an engine; `None` if it cannot run on this machine.
pub(crate) fn ask(engine: &str, cases: &[Case]) -> Option<Answers> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("cases"), folder.path().join("answers"));
    let lines: String = cases.iter().map(|case| format!("{}\n", case.json())).collect();
    fs::write(&input, lines).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/engines");
    let ended = Command::new(script).arg(engine).args([&input, &output]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    match ended.status.code() {
        Some(0) => {}
        Some(4) if std::env::var("CI").as_deref() != Ok("true") => {
            // Not by `eprintln`, which the test runner captures.
            let line = format!("SKIPPED: no {engine} here: {}\n", said.trim());
            std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
            return None;
        }
        code => panic!("{engine} fails ({code:?}): {said}"),
    }
    let answers = fs::read_to_string(&output).unwrap();
    let answers: Answers = answers
        .lines()
        .map(|line| {
            let answer: Value = serde_json::from_str(line).unwrap();
            (answer["seed"].as_u64().unwrap(), serde_json::from_value(answer["rows"].clone()).unwrap())
        })
        .collect();
    assert!(answers.keys().eq(cases.iter().map(|case| &case.seed)), "an answer to each case");
    Some(answers)
}

/// Parses `k1 10 20 3,4` or, if a window is gone, `k1 10 20 -`.
pub(crate) fn window_row(text: &str) -> WindowRow {
    let fields: Vec<&str> = text.split(' ').collect();
    let [key, start, end, ids] = fields[..] else { panic!("no row of a window: {text}") };
    let mut ids: Vec<u32> = ids.split(',').filter(|id| *id != "-").map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    (key[1..].parse().unwrap(), start.parse().unwrap(), end.parse().unwrap(), ids)
}

/// Parses `k1 20 3 4`, or `k1 20 3 -` if there is no pair.
pub(crate) fn join_row(text: &str) -> JoinRow {
    let fields: Vec<&str> = text.split(' ').collect();
    let [key, time, left, right] = fields[..] else { panic!("no row of a join: {text}") };
    (key[1..].parse().unwrap(), time.parse().unwrap(), left.parse().unwrap(), right.parse().ok())
}

pub(crate) fn parsed<T: Ord>(rows: &[String], parse: fn(&str) -> T) -> Vec<T> {
    let mut rows: Vec<_> = rows.iter().map(|row| parse(row)).collect();
    rows.sort();
    rows
}
