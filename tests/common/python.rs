//! A Python with packages that we did not write, which `tests/kafka/python` installs.
//!
//! Without Python, tests that need it are skipped with a line on standard error; with `CI=true` they fail.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns the path of a script in `tests/kafka`.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka").join(name)
}

/// Returns what a script has printed; `None` if it lacks a program on this machine.
pub fn printed(output: &Output, what: &str) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()),
        Some(4) if std::env::var("CI").as_deref() != Ok("true") => {
            // Not by `eprintln`, which the test runner captures.
            let line = format!("SKIPPED: no {what} here: {}\n", said.trim());
            std::io::stderr().lock().write_all(line.as_bytes()).unwrap();
            None
        }
        code => panic!("no {what} ({code:?}): {said}"),
    }
}

/// A Python with clients of Kafka, and with DuckDB.
pub struct Python(PathBuf);

impl Python {
    /// Finds or makes it; `None` if there can be none on this machine.
    pub fn find() -> Option<Python> {
        let output = Command::new(script("python")).output().unwrap();
        printed(&output, "Python").map(|path| Python(path.into()))
    }

    /// Runs `tests/kafka/registry_client.py` and returns its output.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.run_script(&script("registry_client.py"), arguments)
    }

    /// Runs a script and returns its output.
    pub fn run_script(&self, script: &Path, arguments: &[&str]) -> String {
        let output = Command::new(&self.0).arg(script).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}
