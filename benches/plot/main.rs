//! Drawings of result files.
//!
//! Each measurement of a file, that is the lines of one title, becomes SVG files named by it: bars of throughput with the
//! least and the greatest run, throughput over workers with the COST of the program, or the complementary distribution of
//! latencies on logarithmic axes. Fonts are generic, and colours differ in grey, too, so that a paper can print them.
//!
//! `cargo run -p benches --bin plot -- figures.ndjson --out charts`

mod chart;
mod kinds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kit::ResultLine;

/// Draws result files of the benchmarks as SVG
#[derive(Debug, Parser)]
struct Arguments {
    /// Result files, as --json prints them; lines of one title are drawn together
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Directory of the drawings
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

fn main() -> ExitCode {
    kit::exit_code(draw_files(&Arguments::parse()))
}

fn draw_files(arguments: &Arguments) -> Result<(), String> {
    let mut lines = Vec::new();
    for file in &arguments.files {
        let text = std::fs::read_to_string(file).map_err(|why| format!("cannot read {}: {why}", file.display()))?;
        lines.extend(ResultLine::read_all(&text).map_err(|why| format!("{}: {why}", file.display()))?);
    }
    if lines.is_empty() {
        return Err(String::from("there are no results: the benchmarks print them with --json"));
    }
    let cannot = |why: std::io::Error| format!("cannot write into {}: {why}", arguments.out.display());
    std::fs::create_dir_all(&arguments.out).map_err(cannot)?;
    for (name, svg) in draw(&lines) {
        let path = arguments.out.join(name);
        std::fs::write(&path, svg).map_err(cannot)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Draws all measurements: names of files, and their texts.
fn draw(lines: &[ResultLine]) -> Vec<(String, String)> {
    let mut titles: BTreeMap<&str, Vec<&ResultLine>> = BTreeMap::new();
    for line in lines {
        titles.entry(&line.title).or_default().push(line);
    }
    let mut drawings = Vec::new();
    for (title, lines) in titles {
        let words: Vec<_> = title.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let name = words.join("-").to_lowercase();
        let mut add =
            |kind: &str, svg: Option<String>| drawings.extend(svg.map(|svg| (format!("{name}-{kind}.svg"), svg)));
        add("throughput", kinds::throughput(title, &lines));
        add("cpu", kinds::cpu(title, &lines));
        add("scaling", kinds::scaling(title, &lines));
        add("latency", kinds::latency(title, &lines));
    }
    drawings
}
