//! A record that holds an `f64` is told what to hold instead.

use tidegate::source::memory::MemorySource;

#[derive(Clone, Debug, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
struct Reading {
    celsius: f64,
    at_ms: i64,
}

fn main() {
    let _ = MemorySource::new(vec![vec![Reading { celsius: 20.5, at_ms: 0 }]], |reading: &Reading| reading.at_ms);
}
