//! The commit file beside a results file: records how far that file is published, and by which incarnation.
//!
//! * A [`Commit`] is one line of JSON: the state, the sink and the incarnation that wrote it, the last published epoch,
//!   the length of the results file up to there and the CRC-32 of those bytes, the same of a prefix of it, and finally its
//!   own CRC-32. Its file is called `<results file>.commit-<incarnation>`. A start reads what is after the prefix.
//! * The **newest** commit, of the greatest incarnation, is valid; the next writer removes the others.
//!
//! Invariants: a commit file is swapped in whole, and is durable when the call returns. It is written under a temporary
//! name that contains the incarnation; between that and the swap the writer checks that its incarnation is still the
//! current one. A later incarnation, once it has been claimed, removes the temporary files of earlier ones, and reads
//! the newest commit only then. So whatever an earlier incarnation still does when it wakes has either been seen or has
//! no effect: its swap was before the removal, or finds nothing to swap in, or is never tried.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::growing_checksum::Prefix;
use crate::durable::disk::{Disk, is_temporary, parent};
use crate::durable::journal::JournalEnds;
use crate::durable::recovery::ReportedSink;
use crate::durable::{Incarnation, PublishedEpoch, StateId, io_reason, replace_while_current};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Epoch;

/// Version of the format.
const FORMAT: u32 = 3;
/// First version; it had no ends of journals. The second had no prefix. Both can still be read.
const FIRST_FORMAT: u32 = 1;
/// Text between the checksummed part of a line and the checksum.
const CHECKSUM_KEY: &str = ",\"check\":\"";
const LINE_END: &str = "\"}\n";
/// Largest number of chained symbolic links that are followed, as in the system.
const MAX_LINKS: usize = 40;

/// Progress of publishing a results file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) state: StateId,
    pub(super) sink: String,
    pub(super) incarnation: u64,
    /// Last published epoch; `None` before the first.
    pub(super) epoch: Option<Epoch>,
    /// Number of bytes that are published.
    pub(super) length: u64,
    /// CRC-32 of those bytes.
    pub(super) checksum: u32,
    /// Prefix of those bytes, of which the next start need not read more than what is after it.
    pub(super) prefix: Prefix,
    /// Id of the process that wrote the commit.
    pub(super) process: u32,
    /// Ends of the incarnation's journals at the epoch.
    pub(super) ends: JournalEnds,
}

impl Commit {
    /// Returns the published epoch with its incarnation and journal ends; `None` if nothing is published.
    pub(super) fn published(&self) -> Option<PublishedEpoch> {
        let ends = self.ends.clone();
        self.epoch.map(|epoch| PublishedEpoch { incarnation: self.incarnation, epoch, ends })
    }
}

/// JSON form of a commit in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitLine {
    tidegate: String,
    format: u32,
    state: String,
    sink: String,
    incarnation: u64,
    epoch: Option<u64>,
    length: u64,
    crc32: String,
    /// Length of the prefix, and its CRC-32; before the third version nothing.
    #[serde(default)]
    prefix: Option<(u64, String)>,
    process: u32,
    #[serde(default)]
    journal: JournalEnds,
}

/// Fields that every version of the format has.
#[derive(Deserialize)]
struct CommitHeader {
    tidegate: String,
    format: u32,
}

impl Commit {
    fn to_line(&self) -> serde_json::Result<String> {
        let line = CommitLine {
            tidegate: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            state: self.state.to_string(),
            sink: self.sink.clone(),
            incarnation: self.incarnation,
            epoch: self.epoch.map(|epoch| epoch.0),
            length: self.length,
            crc32: format!("{:08x}", self.checksum),
            prefix: Some((self.prefix.length, format!("{:08x}", self.prefix.checksum))),
            process: self.process,
            journal: self.ends.clone(),
        };
        let mut line = serde_json::to_string(&line)?;
        line.pop();
        let check = crc32fast::hash(line.as_bytes());
        line.push_str(&format!("{CHECKSUM_KEY}{check:08x}{LINE_END}"));
        Ok(line)
    }

    /// Parses a line, or returns the reason why it is not a commit.
    fn from_line(bytes: &[u8]) -> std::result::Result<Commit, String> {
        let damaged = |_| String::from("it is damaged");
        let text = std::str::from_utf8(bytes).map_err(|_| "it is damaged")?;
        let (body, check) =
            text.strip_suffix(LINE_END).and_then(|text| text.rsplit_once(CHECKSUM_KEY)).ok_or("it is damaged")?;
        if check != format!("{:08x}", crc32fast::hash(body.as_bytes())) {
            return Err("it is damaged: its checksum is another one".into());
        }
        let body = format!("{body}}}");
        let CommitHeader { tidegate, format } = serde_json::from_str(&body).map_err(|_| "it is damaged")?;
        if !(FIRST_FORMAT..=FORMAT).contains(&format) {
            return Err(format!(
                "Tidegate {tidegate} wrote it, in format {format}; this program reads the formats {FIRST_FORMAT} to {FORMAT}"
            ));
        }
        let line: CommitLine = serde_json::from_str(&body).map_err(|_| "it is damaged")?;
        let crc32 = |text: &str| u32::from_str_radix(text, 16).map_err(damaged);
        let prefix = match line.prefix {
            Some((length, checksum)) => Prefix { length, checksum: crc32(&checksum)? },
            None => Prefix::default(),
        };
        Ok(Commit {
            state: StateId(u64::from_str_radix(&line.state, 16).map_err(damaged)?),
            sink: line.sink,
            incarnation: line.incarnation,
            epoch: line.epoch.map(Epoch),
            length: line.length,
            checksum: crc32(&line.crc32)?,
            prefix,
            process: line.process,
            ends: line.journal,
        })
    }
}

/// Commit files of one results file.
#[derive(Clone, Debug)]
pub(super) struct Commits {
    disk: Arc<dyn Disk>,
    results: PathBuf,
}

impl Commits {
    pub(super) fn of(disk: &Arc<dyn Disk>, results: &Path) -> Self {
        Commits { disk: Arc::clone(disk), results: results.to_owned() }
    }

    /// Returns the path of an incarnation's commit file.
    pub(super) fn path(&self, incarnation: u64) -> PathBuf {
        self.beside(&format!(".commit-{incarnation}"))
    }

    /// Returns the path of the copy of the results file that an incarnation makes before it replaces the file.
    pub(super) fn path_of_copy(&self, incarnation: u64) -> PathBuf {
        self.beside(&format!(".copy-{incarnation}.temporary"))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.results.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.results.with_file_name(name)
    }

    fn failed(&self, what: &str, why: impl std::fmt::Display) -> Error {
        let what = format!("cannot {what} the commit file of the results");
        Error::of(ErrorKind::SinkFailed, what).at(self.results.display()).because(why)
    }

    fn failed_by(&self, what: &str, why: io::Error) -> Error {
        self.failed(what, io_reason(&why)).caused_by(why)
    }

    /// Lists the files beside the results file whose names begin with its name and `kind`, without that prefix.
    fn names(&self, kind: &str) -> Result<Vec<String>> {
        let listed = self.disk.list(parent(&self.results)).map_err(|why| self.failed_by("find", why))?;
        let prefix = self.results.file_name().unwrap_or_default().to_string_lossy().into_owned() + kind;
        Ok(listed.iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    /// Returns the incarnations that have a commit file, in order.
    fn incarnations(&self) -> Result<Vec<u64>> {
        let names = self.names(".commit-")?;
        let mut lives: Vec<u64> = names.iter().filter_map(|rest| number(rest)).collect();
        lives.sort_unstable();
        Ok(lives)
    }

    /// Returns the newest commit; `None` if there is none.
    ///
    /// # Errors
    /// Fails if it is damaged, or cannot be read.
    pub(super) fn newest(&self) -> Result<Option<Commit>> {
        let Some(newest) = self.incarnations()?.pop() else { return Ok(None) };
        let path = self.path(newest);
        let bytes = self.disk.read(&path).map_err(|why| self.failed_by("read", why))?;
        match Commit::from_line(&bytes) {
            Ok(commit) if commit.incarnation == newest => Ok(Some(commit)),
            Ok(commit) => Err(refused(&path, format!("it is of incarnation {}", commit.incarnation))),
            Err(why) => Err(refused(&path, why)),
        }
    }

    /// Swaps in a commit, durably.
    ///
    /// # Errors
    /// Fails if the disk fails, or if a later incarnation has started. After a failure of the disk the commit may exist
    /// nevertheless.
    pub(super) fn publish(&self, commit: &Commit, life: &Incarnation) -> Result<()> {
        let path = self.path(commit.incarnation);
        let line = commit.to_line().map_err(|why| self.failed("write", why))?;
        let cannot = |why| self.failed_by("write", why);
        replace_while_current(&*self.disk, &path, line.as_bytes(), &life.still_current, cannot)
    }

    /// Removes the temporary files that incarnations up to `through` did not swap in.
    ///
    /// # Errors
    /// Fails if the disk fails.
    pub(super) fn remove_temporaries(&self, through: u64) -> Result<()> {
        for kind in [".commit-", ".copy-"] {
            for rest in self.names(kind)? {
                let life = rest.split_once('.').and_then(|(life, _)| number(life));
                if is_temporary(&rest) && life.is_some_and(|life| life <= through) {
                    self.remove(&self.beside(&format!("{kind}{rest}")))?;
                }
            }
        }
        Ok(())
    }

    /// Removes the commit files of incarnations before this one.
    ///
    /// # Errors
    /// Fails if the disk fails.
    pub(super) fn remove_before(&self, incarnation: u64) -> Result<()> {
        let lives = self.incarnations()?;
        lives.into_iter().filter(|life| *life < incarnation).try_for_each(|life| self.remove(&self.path(life)))
    }

    /// Removes all commit files, durably.
    ///
    /// # Errors
    /// Fails if the disk fails.
    pub(super) fn remove_all(&self) -> Result<()> {
        // The newest one is removed last, so that no older one becomes valid again.
        for life in self.incarnations()? {
            self.remove(&self.path(life))?;
            self.disk.sync_directory(parent(&self.results)).map_err(|why| self.failed_by("remove", why))?;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|why| self.failed_by("remove", why)),
        }
    }
}

fn refused(path: &Path, why: String) -> Error {
    Error::new("cannot use the commit file of the results")
        .at(path.display())
        .because(why)
        .help("restore it, or move it and the results file away and start with a new state directory")
}

/// Parses a number without a sign or leading zeros: no two file names have the same one.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Reads from its commit file what a results file of a job with a state has published. Returns the id of the state that
/// wrote it, and what a recovery of that state would find; `None` if there is no commit file. Nothing is locked or
/// written.
///
/// # Errors
/// Fails if the commit file is damaged, or cannot be read.
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "the command-line tool uses it"))]
pub(crate) fn published_in(disk: &Arc<dyn Disk>, file: &Path) -> Result<Option<(StateId, ReportedSink)>> {
    let commit = Commits::of(disk, &resolved(file)).newest()?;
    // Only queries that have changed need to know whether it is a collection.
    let found = |commit: Commit| {
        let published = commit.published();
        (commit.state, ReportedSink { name: commit.sink, published, on_change: false })
    };
    Ok(commit.map(found))
}

/// Resolves the links of a path, whether the file exists or not: commit files are beside the file itself, not beside a
/// link to it.
pub(super) fn resolved(path: &Path) -> PathBuf {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&target) else { break };
        target = parent(&target).join(next);
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::WorkerEnd;

    fn commit() -> Commit {
        Commit {
            state: StateId(0xfeed_0000_0000_0001),
            sink: "totals, \"late\"".into(),
            incarnation: 12,
            epoch: Some(Epoch(1_700_000_000_000)),
            length: 77,
            checksum: 0x00ab_cdef,
            prefix: Prefix { length: 70, checksum: 0x0fed_cba9 },
            process: 4_711,
            ends: [WorkerEnd { process: 0, worker: 1, epoch: Epoch(1_699_999_999_998) }].into_iter().collect(),
        }
    }

    #[test]
    fn a_commit_is_one_line_that_people_can_read() {
        let line = commit().to_line().unwrap();
        let expected = concat!(
            r#"{"tidegate":""#,
            env!("CARGO_PKG_VERSION"),
            r#"","format":3,"state":"feed000000000001","sink":"totals, \"late\"","incarnation":12,"#,
            r#""epoch":1700000000000,"length":77,"crc32":"00abcdef","prefix":[70,"0fedcba9"],"process":4711,"#,
            r#""journal":[[0,1,1699999999998]],"check":""#
        );
        assert!(line.starts_with(expected), "{line}");
        assert!(line.lines().count() == 1 && line.ends_with("\"}\n"), "{line}");
        assert_eq!(Commit::from_line(line.as_bytes()), Ok(commit()));
        let new = Commit { epoch: None, ..commit() };
        assert_eq!(Commit::from_line(new.to_line().unwrap().as_bytes()), Ok(new));
    }

    #[test]
    fn whatever_byte_is_damaged_the_commit_is_refused() {
        let line = commit().to_line().unwrap().into_bytes();
        for at in 0..line.len() {
            for flip in [1, 0x20, 0x80, 0xff] {
                let mut damaged = line.clone();
                damaged[at] ^= flip;
                assert!(Commit::from_line(&damaged).unwrap_err().starts_with("it is damaged"), "byte {at}");
            }
            assert!(Commit::from_line(&line[..at]).is_err(), "{at} bytes");
        }
        assert!(Commit::from_line(&[line.as_slice(), b"\n"].concat()).is_err());
    }

    #[test]
    fn lines_of_earlier_formats_are_read() {
        let first = r#"{"tidegate":"0.1.0","format":1,"state":"feed000000000001","sink":"totals, \"late\"","incarnation":12,"epoch":1700000000000,"length":77,"crc32":"00abcdef","process":4711"#;
        let second = first.replace("format\":1", "format\":2") + r#","journal":[[0,1,1699999999998]]"#;
        let read = |body: &str| {
            let line = format!("{body}{CHECKSUM_KEY}{:08x}{LINE_END}", crc32fast::hash(body.as_bytes()));
            Commit::from_line(line.as_bytes())
        };
        let expected = Commit { prefix: Prefix::default(), ..commit() };
        assert_eq!(read(&second), Ok(expected.clone()));
        assert_eq!(read(first), Ok(Commit { ends: JournalEnds::default(), ..expected }));
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let body = r#"{"tidegate":"9.1.0","format":4,"new":true"#;
        let line = format!("{body}{CHECKSUM_KEY}{:08x}{LINE_END}", crc32fast::hash(body.as_bytes()));
        let why = Commit::from_line(line.as_bytes()).unwrap_err();
        assert_eq!(why, "Tidegate 9.1.0 wrote it, in format 4; this program reads the formats 1 to 3");
    }

    #[test]
    fn names_that_only_look_like_a_number_are_not_lives() {
        for (text, expected) in [("7", Some(7)), ("07", None), ("+7", None), ("7.1-2.temporary", None), ("", None)] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
