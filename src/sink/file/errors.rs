//! Errors of results files that several of these files have: refusals of a file, and faults of the engine.

use std::fmt;
use std::path::Path;

use super::commit::Commits;
use crate::error::{Error, ErrorKind};

pub(super) fn refused(why: impl fmt::Display) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot go on with the results file").because(why)
}

pub(super) fn bug(what: impl Into<String>) -> Error {
    Error::new(what).help("this is a bug in Tidegate: please report it")
}

pub(super) fn missing_file(commit: &Path) -> Error {
    let commit = commit.display();
    refused(format!("it is missing, and its commit file {commit} is there"))
        .help(format!("put it back, or remove {commit} too and begin anew, with a new state directory"))
}

pub(super) fn is_locked(commits: &Commits) -> Error {
    let error = Error::of(ErrorKind::SinkFailed, "cannot open the results file");
    match commits.newest() {
        Ok(Some(commit)) => error
            .because(format!("it is being written by another job or output, lately by process {}", commit.process))
            .help("end that process, or name another file"),
        _ => error.because("it is being written by another job or output").help("name another file"),
    }
}
