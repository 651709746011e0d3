//! The locks of a state: their signature, how they are taken over, and who holds them.
//!
//! Two files are locked. A user may remove `LOCK` to be rid of a stale lock, and the next process then creates and
//! locks a new one; `STATE` cannot be removed unnoticed. Two cases are not covered: a store whose locks other machines
//! do not see, and a process that took a state over (`--take-over`) while its predecessor still had `STATE` locked, and
//! whose `LOCK` is then removed as well. In these cases the incarnation number alone decides: the older process ends,
//! and results stay exact.

use std::fs;
use std::io;
use std::path::Path;

use super::incarnation_records::{INCARNATION_RECORD, latest};
use crate::durable::clock::now_ms;
use crate::durable::disk::{Disk, Lock};
use crate::durable::recovery::ProcessInfo;
use crate::error::{Error, ErrorKind};
use crate::time::EventTime;

impl ProcessInfo {
    /// The calling process, with the present time.
    pub(crate) fn this_process() -> ProcessInfo {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
        let host = host.unwrap_or_default().trim().replace(char::is_whitespace, "-");
        let host = if host.is_empty() { "unknown".into() } else { host };
        ProcessInfo { pid: std::process::id(), host, since_ms: now_ms() }
    }
}

pub(super) fn signature(holder: &ProcessInfo) -> String {
    format!("{} {} {}\n", holder.pid, holder.host, holder.since_ms)
}

pub(super) fn read_signature(text: &str) -> Option<ProcessInfo> {
    let mut words = text.split_whitespace();
    let (pid, host, since) = (words.next()?, words.next()?, words.next()?);
    Some(ProcessInfo { pid: pid.parse().ok()?, host: host.to_owned(), since_ms: since.parse().ok()? })
}

/// Replaces a lock that another process holds with a lock of our own. `None` if even that cannot be locked.
pub(super) fn take_lock_over(disk: &dyn Disk, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
    disk.take_over_lock(&path.join("LOCK"), &path.join(format!("LOCK.{}", std::process::id())))
}

pub(super) fn in_use(disk: &dyn Disk, path: &Path) -> Error {
    let error = Error::of(ErrorKind::StateInUse, "the state is in use").at(path.display());
    let take_over = "where it cannot be ended, --take-over goes on without it";
    let text = disk.read(&path.join("LOCK")).unwrap_or_default();
    let signed = read_signature(&String::from_utf8_lossy(&text));
    let Some(holder) = signed.or_else(|| last_holder(disk, &path.join("lives"))) else {
        return error.because("another process has it").help(format!("wait for it or end it; {take_over}"));
    };
    let ProcessInfo { pid, host, since_ms } = &holder;
    let since = EventTime::from_millis(i64::try_from(*since_ms).unwrap_or(i64::MAX));
    let who = format!("process {pid} on {host} has it since {since}");
    if *host == ProcessInfo::this_process().host && is_stopped(*pid) {
        return error
            .because(format!("{who}; it is stopped"))
            .help(format!("let it go on (kill -CONT {pid}) or end it (kill -KILL {pid}); {take_over}"));
    }
    error.because(who).help(format!("wait for it or end it; {take_over}"))
}

/// The process of the last incarnation that has begun, if no process has signed the lock.
fn last_holder(disk: &dyn Disk, lives: &Path) -> Option<ProcessInfo> {
    let record = disk.read(&lives.join(latest(disk, lives).ok()?.to_string())).ok()?;
    INCARNATION_RECORD.open(&record).ok()
}

/// `true` if a process of this machine has been stopped, as by Ctrl-Z.
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name before the state is in parentheses, and may itself contain some.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}
