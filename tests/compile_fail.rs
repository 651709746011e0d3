//! Queries that cannot work do not compile, and the compiler says what to do instead.
//!
//! Most mistakes in a typed query appear as a trait that is not implemented; the message of such an error is part of
//! the interface. The expected messages are beside the programs, in `tests/compile_fail/*.stderr`; after a change,
//! `OVERWRITE=1 cargo test --test compile_fail` writes them anew: read them before they are committed.
//!
//! The compiler is called directly, with the library that this test is linked with, so nothing is built a second time.
//! Its output is compared exactly, except for what an unrelated edit changes: line numbers outside the program itself,
//! the width of the margin, and the number of other types that implement a trait.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const PROGRAMS: &str = "tests/compile_fail";

/// A program that must compile with the library and the `serde` that the library is built with.
const SOUND: &str = "fn is_serde<T: serde::Serialize>() {} fn main() { is_serde::<tidegate::EventTime>() }";

/// The compiler and the libraries to compile programs with.
struct Compiler {
    /// Directory of the libraries of this build.
    libraries: PathBuf,
    tidegate: PathBuf,
    serde: PathBuf,
    /// Directory of the outputs.
    made: tempfile::TempDir,
}

impl Compiler {
    fn new() -> Self {
        let libraries = env::current_exe().unwrap().parent().unwrap().to_owned();
        let tidegate = built(&libraries, "tidegate").swap_remove(0);
        let made = tempfile::tempdir().unwrap();
        let mut compiler = Compiler { libraries, tidegate, serde: PathBuf::new(), made };
        let mut said = String::new();
        // There may be another one for build scripts, or one of another build.
        for serde in built(&compiler.libraries, "serde") {
            compiler.serde = serde;
            let output = compiler.compile("-", SOUND);
            if output.status.success() {
                return compiler;
            }
            said += &String::from_utf8_lossy(&output.stderr);
        }
        panic!("a program without a mistake does not compile:\n{said}");
    }

    /// Compiles a program: a file, or the given text if the name is `-`.
    fn compile(&self, program: &str, text: &str) -> Output {
        let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "program", "--emit", "metadata"]);
        command.args(["--error-format", "human", "--color", "never", "--diagnostic-width", "200"]);
        command.arg("--out-dir").arg(self.made.path());
        command.arg("-L").arg(format!("dependency={}", self.libraries.display()));
        for (name, library) in [("tidegate", &self.tidegate), ("serde", &self.serde)] {
            command.arg("--extern").arg(format!("{name}={}", library.display()));
        }
        command.arg(program).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// Returns the libraries of a crate, the newest first.
fn built(libraries: &Path, name: &str) -> Vec<PathBuf> {
    let beginning = format!("lib{name}-");
    let files = fs::read_dir(libraries).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with(&beginning) && file.ends_with(".rlib")
    };
    let mut found: Vec<PathBuf> = files.filter(is_one).collect();
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().modified().unwrap()));
    assert!(!found.is_empty(), "no {beginning}*.rlib in {}", libraries.display());
    found
}

/// Normalizes the compiler's output: removes what unrelated edits change.
fn normal(said: &str) -> String {
    let (mut normal, mut in_program) = (String::new(), true);
    let last = |line: &&str| !line.starts_with("error: aborting due to") && !line.starts_with("For more information");
    for line in said.lines().take_while(last) {
        let margin = line.trim_start();
        let behind = margin.trim_start_matches(|c: char| c.is_ascii_digit());
        let (number, text) = (&margin[..margin.len() - behind.len()], behind.trim_start());
        if let Some(place) = text.strip_prefix("--> ").or_else(|| text.strip_prefix("::: ")) {
            in_program = place.starts_with(PROGRAMS);
            let shown = if in_program { place } else { place.split(':').next().unwrap() };
            writeln!(normal, "   {} {shown}", &text[..3]).unwrap();
        } else if ["|", "+ ", "- ", "~ ", "= "].iter().any(|mark| text.starts_with(mark)) && line != behind {
            let number = if in_program { number } else { "" };
            writeln!(normal, "{number:>3} {text}").unwrap();
        } else if line.starts_with(' ') {
            // A continuation of the line before, such as a list of types.
            let count = text.strip_prefix("and ").and_then(|rest| rest.strip_suffix(" others"));
            let text = count.map_or(margin.to_owned(), |_| "and $N others".to_owned());
            writeln!(normal, "          {text}").unwrap();
        } else {
            in_program |= line != "...";
            writeln!(normal, "{line}").unwrap();
        }
    }
    normal.trim_end().to_owned() + "\n"
}

#[test]
fn mistakes_are_explained_by_the_compiler() {
    let (compiler, overwrites) = (Compiler::new(), env::var_os("OVERWRITE").is_some());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut programs, mut failed) = (0, String::new());
    for entry in fs::read_dir(root.join(PROGRAMS)).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "rs") {
            assert!(file.with_extension("rs").exists(), "{} belongs to no program", file.display());
            continue;
        }
        programs += 1;
        let name = format!("{PROGRAMS}/{}", file.file_name().unwrap().to_str().unwrap());
        let output = compiler.compile(&name, "");
        let (said, expected) = (normal(&String::from_utf8(output.stderr).unwrap()), file.with_extension("stderr"));
        if output.status.success() {
            writeln!(failed, "{name} compiles:\n{said}").unwrap();
        } else if overwrites {
            fs::write(expected, said).unwrap();
        } else if fs::read_to_string(&expected).ok().as_ref() != Some(&said) {
            writeln!(failed, "{name} is not answered as {} says, but by:\n{said}", expected.display()).unwrap();
        }
    }
    assert!(programs > 0, "no program is in {PROGRAMS}");
    assert!(failed.is_empty(), "\n{failed}");
}

#[test]
fn messages_that_the_guide_explains_are_those_of_the_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/guide.md")).unwrap();
    let (_, table) = guide.split_once("\n## Messages of the compiler\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows: Vec<Vec<&str>> = (table.lines().filter(|line| line.starts_with("| `")))
        .map(|line| line.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`'])).collect())
        .collect();
    for row in &rows {
        let [message, _, _, program] = row[..] else { panic!("four cells: {row:?}") };
        let said = fs::read_to_string(root.join(PROGRAMS).join(program).with_extension("stderr")).unwrap();
        assert!(said.replace('`', "").contains(&message.replace('`', "")), "{program} does not get: {message}\n{said}");
    }
    assert!(rows.len() >= 6, "{rows:?}");
}

#[test]
fn only_what_unrelated_edits_change_is_left_out() {
    let own = "error[E1]: no\n  --> tests/compile_fail/a.rs:9:3\n   |\n9  |   a();\n   |   ^ no\n   = help: b\n";
    let foreign = |line| format!("note: c\n  --> src/d.rs:{line}:2\n   |\n{line} |  fn d();\n...\n{line} |  e\n");
    let (one, other) = (own.to_owned() + &foreign("12"), own.replace('9', "8") + &foreign("12"));
    assert_eq!(normal(&one), normal(&(own.to_owned() + &foreign("34"))));
    assert_ne!(normal(&one), normal(&other));
    assert!(normal(&one).contains("   --> tests/compile_fail/a.rs:9:3\n    |\n  9 |   a();\n"), "{}", normal(&one));
    assert!(normal(&one).ends_with("   --> src/d.rs\n    |\n    |  fn d();\n...\n    |  e\n"), "{}", normal(&one));
    assert_eq!(
        normal("no:\n    A\n  and 12 others\n\nerror: aborting due to 2\n"),
        "no:\n          A\n          and $N others\n"
    );
}
