//! The rules that keep the sources readable: dependencies between modules, and what files must not contain.
//!
//! Such rules hold only if a test fails when they are broken. Every rule is also tried on made-up violations, to show
//! that it finds them.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/source_files.rs"]
mod source_files;

use std::fmt::Write;

use source_files::source_files;

/// The modules of the crate, lowest layer first. A module may use those of its own layer and of lower ones.
const LAYERS: [&[&str]; 8] = [
    &["time"],
    &["error", "format", "metrics", "probe", "record", "status", "thread"],
    &["durable"],
    &["source", "sink", "view"],
    &["stream"],
    &["job"],
    &["testing", "cli"],
    &["main"],
];

/// Modules behind the short names that the crate's root re-exports.
const AT_ROOT: [(&str, &[&str]); 10] = [
    ("time", &["EventTime", "Epoch"]),
    ("durable", &["in_place"]),
    ("error", &["Error", "Result"]),
    ("record", &["Record", "Real", "Decimal"]),
    ("source", &["Transaction"]),
    ("stream", &["Stream", "Flow", "Window", "Closed", "Open", "Interval", "Collection"]),
    ("job", &["Job"]),
    ("sink", &["csv", "ndjson", "kafka"]),
    ("cli", &["Flags", "Query"]),
    ("view", &["Views"]),
];

/// Words that only some files may contain, with these files.
const ONLY_IN: [(&[&str], &[&str]); 3] = [
    (&["rdkafka"], &["src/source/kafka", "src/sink/kafka"]),
    (&["differential_dataflow::trace", "operators::arrange"], &["src/stream/arrange/", "src/durable/"]),
    (&["timely::execute", "timely::worker", "timely::Config", "timely::initialize"], &["src/job/", "src/testing/"]),
];

/// Names that a module without I/O and clocks must not contain.
const IMPURE: [&str; 9] =
    ["std::fs", "std::net", "std::io", "std::env", "std::process", "std::thread", "Instant", "SystemTime", "::now("];
/// Modules without I/O and clocks.
const PURE: [&str; 3] = ["src/time/", "src/durable/recovery", "src/durable/sources.rs"];

/// The only file that may have `unsafe` code.
const UNSAFE: &str = "src/durable/codec/abomonation.rs";

/// Ways to start a thread without the crate's guard, whose panics would go unnoticed.
const UNGUARDED: [&str; 3] = ["thread::spawn", "thread::Builder", "thread::scope"];
/// Exceptions, each with its reason.
const MAY_BE_UNGUARDED: [(&str, &str); 2] = [
    ("src/thread.rs", "the guarded way itself"),
    ("src/testing/", "processes of a test are joined at once, and their panics are errors"),
];

/// Macros that panic when the reader of the output has gone away.
const PRINTS: [&str; 4] = ["println!", "print!", "eprintln!", "eprint!"];

/// Maximum number of lines of a function, from `fn` to its last brace.
const LONGEST_FUNCTION: usize = 100;

/// A Rust file: its path from the project's root, its text, and its code, which is the text with comments and the
/// contents of literals blanked, line by line.
struct File {
    path: String,
    text: String,
    code: String,
}

impl File {
    fn new(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// Returns the top-level module of the file; `None` for the crate's root and for files outside `src`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let module = inside.split('/').next()?.trim_end_matches(".rs");
        (module != "lib").then_some(module)
    }

    /// Returns the numbers of lines whose code contains a word, not as a part of a longer name.
    fn lines_with(&self, word: &str) -> Vec<usize> {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let alone = |line: &str| {
            line.match_indices(word).any(|(at, _)| {
                let before = line[..at].chars().next_back().is_some_and(is_name);
                let after = line[at + word.len()..].chars().next().is_some_and(is_name);
                let longer = before && word.starts_with(is_name) || after && word.ends_with(is_name);
                !longer
            })
        };
        (1..).zip(self.code.lines()).filter(|(_, line)| alone(line)).map(|(number, _)| number).collect()
    }
}

/// Blanks comments, strings and characters, and keeps lines.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = literal_or_comment(rest, code.chars().next_back());
        let taken = if blank > 0 { blank } else { first.len_utf8() };
        let (piece, after) = rest.split_at(taken);
        if blank > 0 {
            code.extend(piece.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        } else {
            code.push(first);
        }
        rest = after;
    }
    code
}

/// Returns the length in bytes of a comment, string or character at the start of `rest`; 0 if there is none.
fn literal_or_comment(rest: &str, before: Option<char>) -> usize {
    let until = |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until("*/", 2);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with('r') && !in_name {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            return until(&format!("\"{}", "#".repeat(hashes)), 2 + hashes);
        }
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        // A lifetime has no closing quote behind its first character.
        let mut inside = inside.chars();
        return match (inside.next(), inside.next()) {
            (Some('\\'), _) => quoted(rest, '\''),
            (Some(one), Some('\'')) => 2 + one.len_utf8(),
            _ => 0,
        };
    }
    0
}

/// Returns the length in bytes of a quoted literal, with escapes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Returns the names after `crate::` in the code, with their lines.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let path = &code[at + "crate::".len()..];
        let name = |path: &str| path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(group) = path.strip_prefix('{') else {
            found.push((line, name(path)));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && (c.is_alphanumeric() || c == '_') => {
                    found.push((line, name(&group[at..])));
                    start = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn upward_references(file: &File) -> Vec<String> {
    let Some(module) = file.module() else { return Vec::new() };
    let Some(own) = layer(module) else { return vec![format!("{}:1: `{module}` is in no layer", file.path)] };
    let mut offences = Vec::new();
    for (line, name) in crate_paths(&file.code) {
        let at_root = AT_ROOT.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(module, _)| *module);
        let used = at_root.unwrap_or(&name);
        match layer(used) {
            Some(layer) if layer <= own => {}
            Some(_) => offences.push(format!("{}:{line}: `{module}` uses `{name}`, which is above it", file.path)),
            None => offences.push(format!("{}:{line}: `{name}` is in no layer", file.path)),
        }
    }
    offences
}

fn words_out_of_place(file: &File) -> Vec<String> {
    let mut offences = Vec::new();
    for (words, places) in ONLY_IN {
        if !file.path.starts_with("src/") || places.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for word in words {
            let told = |line| format!("{}:{line}: `{word}` is known only to {}", file.path, places.join(" and "));
            offences.extend(file.lines_with(word).into_iter().map(told));
        }
    }
    if PURE.iter().any(|place| file.path.starts_with(place)) {
        for word in IMPURE {
            let told = |line| format!("{}:{line}: `{word}` where there are no I/O and no clocks", file.path);
            offences.extend(file.lines_with(word).into_iter().map(told));
        }
    }
    offences
}

fn missing_header(file: &File) -> Vec<String> {
    let has_one = file.text.starts_with("//!");
    if has_one { Vec::new() } else { vec![format!("{}:1: no `//!` header that says what it is", file.path)] }
}

fn forbidden(file: &File) -> Vec<String> {
    let mut words = vec!["todo!", "unimplemented!", "#[allow("];
    if file.path != UNSAFE {
        words.push("unsafe");
    }
    if file.path.starts_with("src/") {
        words.push("#![allow(");
    }
    let mut offences = Vec::new();
    for word in words {
        offences.extend(file.lines_with(word).into_iter().map(|line| format!("{}:{line}: `{word}`", file.path)));
    }
    // Code that a test runs in a process of its own looks like an ignored test.
    let ignored = file.lines_with("#[ignore").into_iter().filter(|line| {
        file.text
            .lines()
            .nth(line - 1)
            .is_none_or(|line| !line.contains("run by another test, in a process of its own"))
    });
    offences.extend(ignored.map(|line| format!("{}:{line}: an ignored test", file.path)));
    // Split, so that this file does not break the rule.
    for path in [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/Us", "ers/")] {
        let lines = (1..).zip(file.text.lines()).filter(|(_, line)| line.contains(path));
        offences.extend(lines.map(|(line, _)| format!("{}:{line}: a path of somebody's machine", file.path)));
    }
    offences
}

/// Finds calls that the library and the programs must make in one place only; tests are exempt.
fn one_way_only(file: &File) -> Vec<String> {
    let ours = file.path.starts_with("src/") || file.path.starts_with("queries/");
    if !ours || file.path.contains("/tests/") || file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let tests = file.lines_with("#[cfg(test)]").into_iter().max().unwrap_or(usize::MAX);
    let mut offences = Vec::new();
    let mut look = |words: &[&str], instead: &str| {
        for word in words {
            let lines = file.lines_with(word).into_iter().filter(|line| *line < tests);
            offences.extend(lines.map(|line| format!("{}:{line}: `{word}`: use {instead}", file.path)));
        }
    };
    look(&PRINTS, "`cli::note`, or `say` in it");
    // What is stored and what processes say to each other is read without the names of fields.
    look(&["skip_serializing", "skip_serializing_if"], "a value that says that there is none");
    if !MAY_BE_UNGUARDED.iter().any(|(path, _why)| file.path.starts_with(path)) {
        look(&UNGUARDED, "`thread::start`");
    }
    offences
}

fn long_functions(file: &File) -> Vec<String> {
    let mut offences = Vec::new();
    for (at, _) in file.code.match_indices("fn ") {
        if file.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let first = file.code[..at].matches('\n').count() + 1;
        let name: String = file.code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let (mut depth, mut lines) = (0usize, 1usize);
        for c in file.code[at..].chars() {
            match c {
                '\n' => lines += 1,
                '{' => depth += 1,
                '}' if depth <= 1 => break,
                '}' => depth -= 1,
                ';' if depth == 0 => break,
                _ => {}
            }
        }
        if lines > LONGEST_FUNCTION && !name.is_empty() {
            offences.push(format!("{}:{first}: `{name}` has {lines} lines, more than {LONGEST_FUNCTION}", file.path));
        }
    }
    offences
}

/// Returns all Rust files of the project.
fn files() -> Vec<File> {
    let mut files = Vec::new();
    for below in ["src", "tests", "queries", "benches"] {
        let file = |(name, text): (String, String)| File::new(&format!("{below}/{name}"), &text);
        files.extend(source_files(below).into_iter().map(file));
    }
    assert!(files.len() > 30, "only {} files were found", files.len());
    files
}

type Rule = fn(&File) -> Vec<String>;

fn holds(rule: Rule) {
    let mut told = String::new();
    for offence in files().iter().flat_map(rule) {
        writeln!(told, "{offence}").unwrap();
    }
    assert!(told.is_empty(), "\n{told}");
}

#[test]
fn no_module_uses_one_of_a_layer_above() {
    holds(upward_references);
}

#[test]
fn some_things_are_known_in_one_place_only() {
    holds(words_out_of_place);
}

#[test]
fn every_file_says_what_it_is() {
    holds(missing_header);
}

#[test]
fn nothing_is_unfinished_ignored_or_unsafe() {
    holds(forbidden);
}

#[test]
fn threads_are_started_and_lines_written_in_one_way() {
    holds(one_way_only);
}

#[test]
fn functions_fit_on_a_few_screens() {
    holds(long_functions);
}

/// Checks what a rule reports of a made-up file: nothing, or messages with these beginnings.
fn check(rule: Rule, path: &str, text: &str, expected: &[&str]) {
    let said = rule(&File::new(path, text));
    assert_eq!(said.len(), expected.len(), "{said:?} of {text}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said} is not {expected}");
    }
}

#[test]
fn the_rule_of_layers_bites() {
    let rule = upward_references;
    check(rule, "src/time/mod.rs", "use crate::time::watermark;\n", &[]);
    check(rule, "src/time/mod.rs", "\nuse crate::stream::Flow;\n", &["src/time/mod.rs:2: `time` uses `stream`"]);
    check(rule, "src/source/csv.rs", "use crate::{time, job::Job};", &["src/source/csv.rs:1: `source` uses `job`"]);
    check(rule, "src/source/csv.rs", "use crate::{time::{Epoch, job}, error};", &[]);
    check(rule, "src/sink/mod.rs", "fn f() {\n    crate::job::run()\n}", &["src/sink/mod.rs:2: `sink` uses `job`"]);
    check(rule, "src/sink/mod.rs", "fn f(_: crate::Job) {}", &["src/sink/mod.rs:1: `sink` uses `Job`"]);
    check(rule, "src/sink/mod.rs", "/// See [`crate::job`].\nfn f() { g(\"crate::job\") }", &[]);
    check(rule, "src/misc.rs", "", &["src/misc.rs:1: `misc` is in no layer"]);
    check(rule, "src/job/mod.rs", "use crate::helpers;", &["src/job/mod.rs:1: `helpers` is in no layer"]);
    check(rule, "src/lib.rs", "pub use crate::job::Job;", &[]);
}

#[test]
fn the_rules_of_words_bite() {
    let rule = words_out_of_place;
    check(rule, "src/source/kafka/reader.rs", "use rdkafka::Message;", &[]);
    check(rule, "src/source/csv.rs", "use rdkafka::Message;", &["src/source/csv.rs:1: `rdkafka` is known only to"]);
    check(rule, "src/source/csv.rs", "// as rdkafka does", &[]);
    check(rule, "src/stream/window.rs", "use differential_dataflow::trace::Cursor;", &["src/stream/window.rs:1"]);
    check(rule, "src/stream/window.rs", "\ntimely::execute(f)", &["src/stream/window.rs:2: `timely::execute`"]);
    check(rule, "src/time/mod.rs", "let now = std::time::Instant::now();", &["src/time", "src/time"]);
    check(rule, "tests/api.rs", "use rdkafka::Message;", &[]);
}

#[test]
fn the_rules_of_files_bite() {
    check(missing_header, "src/a.rs", "// A file.\n", &["src/a.rs:1"]);
    check(missing_header, "src/a.rs", "//! A file.\n", &[]);
    check(forbidden, "src/a.rs", "fn f() {\n    todo!()\n}", &["src/a.rs:2: `todo!`"]);
    check(forbidden, "src/a.rs", "#![allow(dead_code)]", &["src/a.rs:1: `#![allow(`"]);
    check(forbidden, "tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", &["tests/a.rs:2: an ignored test"]);
    check(forbidden, "tests/a.rs", "#[ignore = \"run by another test, in a process of its own\"]", &[]);
    check(forbidden, "src/a.rs", "let unsafely = \"unsafe\"; // unsafe", &[]);
    check(forbidden, "src/a.rs", "unsafe { f() }", &["src/a.rs:1: `unsafe`"]);
    check(forbidden, UNSAFE, "unsafe { f() }", &[]);
    check(forbidden, "src/a.rs", concat!("open(\"/ho", "me/me/a\")"), &["src/a.rs:1: a path"]);
    check(one_way_only, "src/a.rs", "std::thread::spawn(f);", &["src/a.rs:1: `thread::spawn`: use `thread::start`"]);
    check(one_way_only, "src/a.rs", "thread::Builder::new()", &["src/a.rs:1: `thread::Builder`"]);
    check(one_way_only, "queries/a.rs", "fn f() {\n    println!();\n}", &["queries/a.rs:2: `println!`"]);
    check(one_way_only, "src/a.rs", "eprintln!();", &["src/a.rs:1: `eprintln!`"]);
    check(one_way_only, "src/a.rs", "/// println!\n#[cfg(test)]\nmod tests {\n    println!();\n}", &[]);
    check(one_way_only, "src/a.rs", "#[serde(skip_serializing_if = \"f\")]", &["src/a.rs:1: `skip_serializing_if`"]);
    check(one_way_only, "src/thread.rs", "thread::Builder::new()", &[]);
    check(one_way_only, "src/a/tests.rs", "thread::spawn(f)", &[]);
    check(one_way_only, "benches/a.rs", "println!()", &[]);
    let long = format!("fn short() {{}}\nfn long() {{\n{}}}\n", "    f(\"}\");\n".repeat(LONGEST_FUNCTION));
    check(long_functions, "src/a.rs", &long, &["src/a.rs:2: `long` has 102 lines"]);
    check(long_functions, "src/a.rs", &long.replacen("    f(\"}\");\n", "", 2), &[]);
}

#[test]
fn literals_and_comments_are_not_code() {
    let text = "a('\\'', 'x', \"\\\"b\", r#\"c\"d\"#) /* e\nf */ <'g>(h) // i";
    let code = code_of(text);
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a(", ",", ",", ",", ")", "<'g>(h)"]);
    assert_eq!(code.lines().count(), 2);
}
