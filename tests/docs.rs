//! What the documentation names is there: files, tests, headings, flags, metrics, formats, and code that compiles.
//!
//! It exists because documentation does not fail when the code moves away from it. Prose cannot be checked; names can.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/run.rs"]
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use run::run;

const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
const NEXMARK: &str = env!("CARGO_BIN_EXE_nexmark");
const QUERY: &str = "account_totals";
/// Commands of the tool whose flags are documented.
const COMMANDS: [&[&str]; 15] = [
    &["demo"],
    &["produce"],
    &["consume"],
    &["redrive"],
    &["snapshot", "ls"],
    &["snapshot", "inspect"],
    &["snapshot", "verify"],
    &["snapshot", "export"],
    &["snapshot", "prune"],
    &["why"],
    &["top"],
    &["plot"],
    &["up"],
    &["completions"],
    &["man"],
];
/// Flags of other programs that the documentation names.
const OF_OTHERS: [&str; 25] = [
    "--release",
    "--bin",
    "--bench",
    "--test",
    "--lib",
    "--features",
    "--nocapture",
    "--no-deps",
    "--open",
    "--check",
    "--all-targets",
    "--no-fail-fast",
    "--manifest-path",
    "--kafka-records",
    "--records",
    "--inputs",
    "--query",
    "--dbsp",
    "--version",
    "--help",
    "--keys",
    "--json",
    "--kill-every",
    "--build",
    "--generate",
];
/// Lines of the README: what is longer belongs to `docs/`.
const LONGEST_README: usize = 145;

/// A page: its path from the project's root, and its text.
struct Page {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// Lists all pages.
fn pages() -> Vec<Page> {
    let of = |below: &str| {
        let entries = fs::read_dir(root().join(below)).unwrap().map(|entry| entry.unwrap().file_name());
        let names = entries.map(|name| Path::new(below).join(name));
        names.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect::<Vec<_>>()
    };
    let mut paths = [of(""), of("docs")].concat();
    paths.sort();
    assert!(paths.len() > 8, "{paths:?}");
    paths.into_iter().map(|path| Page { text: read(&path), path }).collect()
}

/// Splits a page into text and code: lines outside fences, and the blocks inside, each with its language.
fn parts(text: &str) -> (Vec<&str>, Vec<(&str, Vec<&str>)>) {
    let (mut prose, mut blocks, mut open) = (Vec::new(), Vec::new(), None::<(&str, Vec<&str>)>);
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language, Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => block.push(line),
            (None, None) => prose.push(line),
        }
    }
    assert!(open.is_none(), "a block of code is not closed");
    (prose, blocks)
}

/// Lists what stands between single backticks in a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Names the anchor of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
}

fn anchors(text: &str) -> BTreeSet<String> {
    let (prose, _) = parts(text);
    let headings = prose.into_iter().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// Checks that all pages are without offences, which are told by page.
fn holds(offences: impl Fn(&Page) -> Vec<String>) {
    let told =
        |page: &Page| offences(page).into_iter().map(|told| format!("{}: {told}", page.path.display())).collect();
    let all: Vec<String> = pages().iter().flat_map(|page| -> Vec<String> { told(page) }).collect();
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= LONGEST_README, "{lines} lines");
}

#[test]
fn links_lead_to_pages_and_headings() {
    holds(|page| {
        let (prose, _) = parts(&page.text);
        let prose = prose.join("\n");
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let mut offences = Vec::new();
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { page.path.clone() } else { page.path.with_file_name(file) };
            if !root().join(&path).is_file() {
                offences.push(format!("{target}: no such file"));
                continue;
            }
            if !heading.is_empty() && !anchors(&read(&path)).contains(heading) {
                offences.push(format!("{target}: no such heading"));
            }
        }
        offences
    });
}

#[test]
fn files_that_are_named_are_there() {
    let rooms = ["src/", "tests/", "queries/", "benches/", "docs/", ".ci/"];
    holds(|page| {
        let (prose, _) = parts(&page.text);
        let named = prose.iter().flat_map(|line| spans(line)).filter_map(|span| span.split_whitespace().next());
        let paths = named.filter(|path| rooms.iter().any(|room| path.starts_with(room)));
        paths.filter(|path| !root().join(path).exists()).map(|path| format!("{path} is not there")).collect()
    });
}

/// `true` for what can only be the name of a test: many words.
fn is_name_of_a_test(span: &str) -> bool {
    let fits = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    fits && span.matches('_').count() >= 3 && !span.starts_with("tidegate_")
}

/// Reads all Rust code below a path, or of a file.
fn code_below(path: &Path) -> String {
    if path.is_file() {
        return fs::read_to_string(path).unwrap();
    }
    let mut code = String::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|kind| kind == "rs") {
            code += &code_below(&path);
        }
    }
    code
}

#[test]
fn tests_that_are_named_are_in_the_files_that_are_named_with_them() {
    let everything = code_below(&root().join("src")) + &code_below(&root().join("tests"));
    let mut found = 0;
    for page in pages() {
        let (prose, _) = parts(&page.text);
        for cell in prose.iter().flat_map(|line| line.split(['|', ';'])) {
            let file = spans(cell).find(|span| span.ends_with(".rs") && root().join(span).is_file());
            let code = file.map_or_else(|| everything.clone(), read);
            for name in spans(cell).filter(|span| is_name_of_a_test(span)) {
                found += 1;
                let place = file.unwrap_or("src and tests");
                let is_there = ["(", "<"].iter().any(|next| code.contains(&format!("fn {name}{next}")));
                assert!(is_there, "{}: {name} is not in {place}", page.path.display());
            }
        }
    }
    assert!(found > 30, "only {found} names were found");
}

/// Lists the names that a span consists of, if it is one of types and their functions: `Job::http`, `Window::count(n)`.
fn names_in(span: &str) -> Vec<&str> {
    let path = span.split('(').next().unwrap_or_default();
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let names: Vec<&str> = path.split("::").collect();
    let is_type = path.starts_with(|c: char| c.is_ascii_uppercase()) && path.contains(|c: char| c.is_ascii_lowercase());
    if names.iter().all(|name| is_name(name)) && (names.len() > 1 || is_type) { names } else { Vec::new() }
}

#[test]
fn types_and_functions_that_are_named_are_in_the_code() {
    let code = code_below(&root().join("src")) + &code_below(&root().join("tests"));
    let words: BTreeSet<&str> = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    holds(|page| {
        let (prose, _) = parts(&page.text);
        let names = prose.iter().flat_map(|line| spans(line)).flat_map(names_in);
        names.filter(|name| !words.contains(name)).map(|name| format!("{name} is nowhere in the code")).collect()
    });
}

/// Lines without white space at their ends, and none that are empty.
fn trimmed<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    lines.into_iter().map(str::trim).filter(|line| !line.is_empty()).collect()
}

#[test]
fn code_is_compiled_elsewhere_line_for_line() {
    let (front, guide) = (read("src/lib.rs"), read("tests/guide.rs"));
    let front: Vec<&str> = trimmed(front.lines().filter_map(|line| line.strip_prefix("//!")));
    let guide = trimmed(guide.lines());
    let mut found = 0;
    for page in pages() {
        let (_, blocks) = parts(&page.text);
        for (_, block) in blocks.into_iter().filter(|(language, _)| *language == "rust") {
            found += 1;
            let block = trimmed(block);
            let is_there = |code: &[&str]| code.windows(block.len()).any(|lines| same(lines, &block));
            let path = page.path.display();
            assert!(is_there(&front) || is_there(&guide), "{path}: not in tests/guide.rs:\n{}", block.join("\n"));
        }
    }
    assert!(found > 8, "only {found} blocks were found");
}

/// Compares lines of code. A statement may go on behind the last line of a block.
fn same(code: &[&str], block: &[&str]) -> bool {
    let ends = |line: &str| line.trim_end_matches([';', ',']).to_owned();
    let (last, others) = block.split_last().unwrap();
    code[..others.len()] == *others && ends(code[others.len()]) == ends(last)
}

/// Lists the flags that a command's `--help` has.
fn flags_of(program: &str, command: &[&str]) -> BTreeSet<String> {
    let ended = run(program, command.iter().copied().chain(["--help"]));
    flags_in(ended.code(0).stdout())
}

/// Lists words that begin with two dashes.
fn flags_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let flags = words.filter(|word| word.len() > 3 && word.starts_with("--") && !word.starts_with("---"));
    flags.map(str::to_owned).collect()
}

#[test]
fn flags_are_documented_and_those_that_are_documented_are_there() {
    let of_queries = flags_of(QUERY, &[]);
    let documented = flags_in(&read("docs/reference.md"));
    let missing: Vec<_> = of_queries.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/reference.md lacks {missing:?}");
    let mut known = of_queries;
    known.extend(COMMANDS.iter().flat_map(|command| flags_of(TIDEGATE, command)));
    known.extend(flags_of(NEXMARK, &[]));
    known.extend(OF_OTHERS.map(str::to_owned));
    holds(|page| {
        let (prose, blocks) = parts(&page.text);
        let code = prose.iter().flat_map(|line| spans(line)).chain(blocks.into_iter().flat_map(|(_, block)| block));
        let named = code.flat_map(flags_in).filter(|flag| !known.contains(flag));
        named.map(|flag| format!("no program has {flag}")).collect()
    });
}

#[test]
fn metrics_are_documented_and_those_that_are_documented_are_there() {
    let code = read("src/job/prometheus.rs");
    let (code, _tests) = code.split_once("#[cfg(test)]").unwrap();
    let reference = read("docs/reference.md");
    let (_, reference) = reference.split_once("\n## Metrics").unwrap();
    let (reference, _) = reference.split_once("\n## ").unwrap();
    let in_code: BTreeSet<&str> =
        code.split('"').filter(|text| text.starts_with("tidegate_") && text.len() > 9).collect();
    let in_text: BTreeSet<&str> = spans(reference).filter(|span| span.starts_with("tidegate_")).collect();
    assert_eq!(in_code, in_text);
}

/// Returns the names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("tidegate_")).collect()
}

#[test]
fn the_dashboard_and_the_alerts_use_metrics_that_are_there() {
    let reference = read("docs/reference.md");
    let known = metrics_in(&reference);
    let dashboard = read("docs/grafana-dashboard.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let expressions =
        parsed["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    assert!(expressions.clone().count() >= 12, "{dashboard}");
    for expression in expressions.map(|target| target["expr"].as_str().unwrap()) {
        assert!(!metrics_in(expression).is_empty(), "no metric: {expression}");
    }
    let alerts = read("docs/prometheus-alerts.yml");
    let rules: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(rules.len() >= 9, "{alerts}");
    for rule in rules {
        let expression = rule.lines().find_map(|line| line.trim().strip_prefix("expr: ")).unwrap();
        assert!(!metrics_in(expression).is_empty(), "no metric: {rule}");
        for part in ["for: ", "severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "no {part}: {rule}");
        }
    }
    for (file, text) in [("dashboard", &dashboard), ("alerts", &alerts)] {
        let unknown: Vec<_> = metrics_in(text).difference(&known).copied().collect();
        assert!(unknown.is_empty(), "the {file} has {unknown:?}");
    }
}

#[test]
fn the_changelog_names_each_format_with_its_version() {
    let changelog = read("CHANGELOG.md");
    let code = code_below(&root().join("src/durable"));
    let kinds = code.split("magic: *b\"").skip(1).filter_map(|rest| {
        let (magic, rest) = rest.split_once("\", version: ")?;
        Some((magic, rest.chars().take_while(char::is_ascii_digit).collect::<String>()))
    });
    let kinds: Vec<_> = kinds.filter(|(magic, _)| *magic != "TGTRIAL").collect();
    assert!(kinds.len() > 5, "{kinds:?}");
    for (magic, version) in kinds {
        let row = changelog.lines().find(|line| line.contains(&format!("`{magic}`")));
        let row = row.unwrap_or_else(|| panic!("CHANGELOG.md lacks the format {magic}"));
        assert_eq!(row.split('|').nth(3).map(str::trim), Some(&*version), "{row}");
    }
}
