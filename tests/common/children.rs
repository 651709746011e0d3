//! Finds the processes that `tidegate up` has started.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

/// The processes of a query whose command lines name this folder, with those.
pub(crate) fn children(folder: &Path) -> Vec<(Pid, String)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(process.path().join("cmdline")).ok()?.replace('\0', " ");
        (line.contains(" -p ") && line.contains(folder.to_str()?)).then_some((Pid::from_raw(id), line))
    });
    lines.collect()
}
