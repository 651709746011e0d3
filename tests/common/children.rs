//! Processes of one job: where they are to be, and which ones write to a folder, those that `tidegate up` has started among
//! them.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use nix::unistd::Pid;

/// Writes a file of hosts for so many processes: ports of this machine that nobody listens at now.
pub(crate) fn write_hosts(file: &Path, processes: usize) {
    let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let lines = listeners.iter().map(|listener| format!("{}\n", listener.local_addr().unwrap()));
    fs::write(file, lines.collect::<String>()).unwrap();
}

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
