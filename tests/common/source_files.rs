//! The Rust files of the project, for tests that hold its rules.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a file of test programs; a failure here is a failed test")]

use std::fs;
use std::path::Path;

/// Returns all Rust files below a directory of the project, each with its path from that directory, separated by `/`,
/// and its text; sorted by path.
pub fn source_files(directory: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    files
}

fn collect(root: &Path, below: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}
