//! Finds the processes that write to a folder, those that `tidegate up` has started among them.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

/// The processes whose command lines name this folder, with those.
pub(crate) fn naming(folder: &Path) -> Vec<(Pid, String)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some((Pid::from_raw(id), String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|(_, line)| line.contains(folder.to_str().unwrap())).collect()
}

/// Of those, the ones that `tidegate up` has started.
pub(crate) fn children(folder: &Path) -> Vec<(Pid, String)> {
    naming(folder).into_iter().filter(|(_, line)| line.contains(" -p ")).collect()
}
