//! Processes of one job: their addresses, and the processes that belong to a test's folder, such as those that
//! `tidegate up` has started.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::Path;

use nix::unistd::Pid;

use crate::ports::free_address;

/// Writes a hostfile for so many processes of this machine.
pub(crate) fn write_hosts(file: &Path, processes: usize) {
    let lines = (0..processes).map(|_| free_address() + "\n");
    fs::write(file, lines.collect::<String>()).unwrap();
}

/// Returns the processes whose command lines contain this folder, with the command lines.
pub(crate) fn naming(folder: &Path) -> Vec<(Pid, String)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| {
        let id = process.file_name().to_str()?.parse().ok()?;
        let line = fs::read(process.path().join("cmdline")).ok()?;
        Some((Pid::from_raw(id), String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|(_, line)| line.contains(folder.to_str().unwrap())).collect()
}

/// Returns those of them that `tidegate up` has started.
pub(crate) fn children(folder: &Path) -> Vec<(Pid, String)> {
    naming(folder).into_iter().filter(|(_, line)| line.contains(" -p ")).collect()
}
