//! Manifests: each names one consistent cut of a job at an epoch, and every file that belongs to it.
//!
//! A **snapshot** is a manifest and what it names. A manifest holds what the replay of the journal's later epochs needs:
//! how far the sources were read, the segments of the durable steps, what had closed, and how far the sinks had shown.
//!
//! Promise kept here: **a manifest is one cut, and no sink is behind it**. It is written whole under a name of its own,
//! by a life of the state that is still the current one, after all that it names is on the disk for good.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::journal::Bound;
use super::sealed::Kind;
use super::segment::SegmentInfo;
use super::{StateId, StillCurrent, disk_error, replace_while_current, sources};
use crate::error::{Error, Result};
use crate::time::{Epoch, EventTime};

/// Version 1 differs only in what a [`StepPrint`] says.
const KIND: Kind = Kind { magic: *b"TGMANIF", version: 2, name: "manifest" };

/// One consistent cut of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The state.
    pub state: StateId,
    /// The job's name.
    pub job: String,
    /// The life that wrote it.
    pub incarnation: u64,
    /// The epoch: everything up to it is in the cut, nothing after it.
    pub epoch: Epoch,
    /// When it was written: milliseconds since 1970, by the wall clock, for people.
    pub made_ms: u64,
    /// Whether all sources had ended and all windows had closed: it is never gone on from.
    pub ended: bool,
    /// The query that made it.
    pub query: QueryPrint,
    /// How far the sources were read.
    pub sources: Vec<SourceState>,
    /// The durable steps.
    pub steps: Vec<StepState>,
    /// How far the sinks had shown.
    pub sinks: Vec<SinkState>,
}

/// What a query is told by: whether two runs give equal output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryPrint {
    /// The program's build id.
    pub build: String,
    /// Every flag that affects output, with its value.
    pub flags: Vec<(String, String)>,
    /// Its steps, in order.
    pub steps: Vec<StepPrint>,
}

/// What a step of a query is told by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepPrint {
    /// What it is: "aggregate".
    pub kind: String,
    /// Its name in the query.
    pub name: String,
    /// How it was asked for: "tumbling 10s".
    pub detail: String,
    /// Stands for the shape of the rows that it keeps or may retract, or for the identity of a source; 0 if that is unknown,
    /// or there is none.
    pub fingerprint: u64,
}

impl QueryPrint {
    /// Makes the print that a file of this version has comparable with those of today. In version 1 the compiler's names of
    /// types were a part of details and, but for sources, of fingerprints. Segments still say what shape their rows have.
    pub(super) fn upgrade(&mut self, version: u8) {
        if version > 1 {
            return;
        }
        for step in &mut self.steps {
            let before_types = if step.keeps_rows() { ": " } else { " of " };
            if let Some((detail, _)) = step.detail.rsplit_once(before_types) {
                step.detail = detail.to_owned();
            }
            if step.kind != sources::KIND {
                step.fingerprint = 0;
            }
        }
    }
}

impl StepPrint {
    /// `true` if snapshots have rows of it.
    pub(super) fn keeps_rows(&self) -> bool {
        !matches!(&*self.kind, sources::KIND | "sink" | "view")
    }

    /// `true` if it is known to hold other rows than that step.
    pub(super) fn differs_in_shape(&self, other: &StepPrint) -> bool {
        self.fingerprint != other.fingerprint && self.fingerprint != 0 && other.fingerprint != 0
    }
}

/// Name prefix of those [`SourceState`]s that are no sources, but watermarks of combined streams.
pub const COMBINED: &str = "concat of ";

/// How far a source was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// The name under which the flow reads it.
    pub name: String,
    /// Each partition, at the epoch.
    pub bounds: Vec<Bound>,
    /// The stream's watermark at the epoch.
    pub watermark: EventTime,
    /// Partitions with their floors.
    pub floors: Vec<(u32, EventTime)>,
}

impl SourceState {
    /// `true` for the combined watermark of streams, which has no partitions of its own.
    pub fn is_combined(&self) -> bool {
        self.bounds.is_empty() && self.name.starts_with(COMBINED)
    }
}

/// The state of a durable step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepState {
    /// Its name in the query.
    pub name: String,
    /// Windows that end here or before are dead.
    pub closed: EventTime,
    /// Its rows.
    pub segments: Vec<SegmentInfo>,
}

/// How far a sink had shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkState {
    /// Its name in the query.
    pub name: String,
    /// The last epoch that it had shown; `None` if it had shown none.
    pub shown: Option<Epoch>,
    /// Whether it holds a collection whose rows may still be retracted.
    pub on_change: bool,
}

/// Names a manifest's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ManifestId {
    /// The epoch of the cut.
    pub epoch: Epoch,
    /// The life that wrote it.
    pub incarnation: u64,
}

impl ManifestId {
    /// The manifest with a file of this name, if one can have it.
    pub fn parse(name: &str) -> Option<ManifestId> {
        let (epoch, incarnation) = name.strip_suffix(".manifest")?.split_once('-')?;
        let id = ManifestId { epoch: Epoch(epoch.parse().ok()?), incarnation: incarnation.parse().ok()? };
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.manifest", self.epoch, self.incarnation)
    }
}

impl Manifest {
    /// The name of its file.
    pub fn id(&self) -> ManifestId {
        ManifestId { epoch: self.epoch, incarnation: self.incarnation }
    }

    /// The names of the segments that belong to it.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().flat_map(|step| &step.segments).map(|segment| segment.file.as_str())
    }

    /// Writes it for good into the directory of manifests, if the life is still the current one just before it gets
    /// its name.
    ///
    /// # Errors
    /// If it contradicts itself, if a later life has begun, or if the disk does not let it.
    pub fn write(&self, disk: &dyn Disk, directory: &Path, still_current: &StillCurrent) -> Result<ManifestId> {
        self.check()?;
        let path = directory.join(self.id().to_string());
        let cannot = |why: io::Error| disk_error("cannot write the manifest", path.display(), why);
        replace_while_current(disk, &path, &KIND.seal(self)?, still_current, cannot).map(|()| self.id())
    }

    /// Reads the bytes of the manifest `id` of a state.
    ///
    /// # Errors
    /// If they are damaged, in another format, or of another manifest or state.
    pub fn read(state: StateId, id: ManifestId, bytes: &[u8]) -> Result<Manifest> {
        let opened = KIND.open_any(bytes).map_err(|broken| KIND.refusal(broken, id))?;
        let (mut manifest, version): (Manifest, u8) = opened;
        manifest.query.upgrade(version);
        if manifest.state != state {
            let why = format!("it belongs to the state {}, and this is {state}", manifest.state);
            return Err(Error::new("a manifest is of another state").at(id).because(why));
        }
        if manifest.id() != id {
            let why = format!("it was written as {}", manifest.id());
            return Err(Error::new("a manifest has the name of another").at(id).because(why));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// What must hold of every manifest, by itself: checked when it is written, and when it is read back.
    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::new("the manifest contradicts itself").at(self.id()).because(why));
        let (mut steps, mut files) = (BTreeSet::new(), BTreeSet::new());
        for step in &self.steps {
            if !steps.insert(&step.name) {
                return wrong(format!("it has two states of the step {}", step.name));
            }
            for segment in &step.segments {
                let SegmentInfo { file, from, to, .. } = segment;
                if segment.step != step.name {
                    return wrong(format!("the step {} has the segment {file} of {}", step.name, segment.step));
                }
                if from > to || *to > self.epoch {
                    return wrong(format!("the segment {file} is of the epochs {from} to {to}"));
                }
                if !files.insert(file) {
                    return wrong(format!("it names the segment {file} twice"));
                }
            }
        }
        let mut sinks = BTreeSet::new();
        match self.sinks.iter().find(|sink| !sinks.insert(&sink.name)) {
            Some(sink) => wrong(format!("it has two states of the sink {}", sink.name)),
            None => Ok(()),
        }
    }

    /// Whether every segment that it names is there, with its length; what the segments hold is for them to say.
    ///
    /// # Errors
    /// If one is missing or has another length, or the disk does not let us see.
    pub fn verify(&self, disk: &dyn Disk, segments: &Path) -> Result<()> {
        for segment in self.steps.iter().flat_map(|step| &step.segments) {
            let path = segments.join(&segment.file);
            let missing = || Error::new("a segment of the snapshot is missing").at(path.display());
            let length = match disk.open(&path).and_then(|file| file.length()) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    return Err(missing().because(format!("{} names it", self.id())));
                }
                length => length.map_err(|why| disk_error("cannot open a segment", path.display(), why))?,
            };
            if length != segment.bytes {
                let why = format!("it has {length} bytes, and {} names {}", self.id(), segment.bytes);
                return Err(Error::new("a segment is damaged").at(path.display()).because(why));
            }
        }
        Ok(())
    }
}

/// The manifests in a directory, by epoch.
///
/// # Errors
/// If the disk does not let us see.
pub fn list(disk: &dyn Disk, directory: &Path) -> Result<Vec<ManifestId>> {
    let names = disk.list(directory).map_err(|why| disk_error("cannot list manifests", directory.display(), why))?;
    let mut ids: Vec<_> = names.iter().filter_map(|name| ManifestId::parse(name)).collect();
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recovery::changes;

    fn step(kind: &str, detail: &str, fingerprint: u64) -> StepPrint {
        StepPrint { kind: kind.into(), name: kind.into(), detail: detail.into(), fingerprint }
    }

    fn print(steps: [StepPrint; 5]) -> QueryPrint {
        QueryPrint { build: "b".into(), flags: Vec::new(), steps: steps.into() }
    }

    #[test]
    fn a_print_of_version_1_is_that_of_today_if_only_code_has_moved() {
        let earlier = print([
            step("source", "csv in of mine.csv of app::model::Sale", 7),
            step("window", "Tumbling { size: 10s }, late by 1s: alloc::string::String -> (i64, i128)", 11),
            step("table", "the last: app::Key -> app::Value", 12),
            step("sink", "csv totals.csv of app::rows::Total", 13),
            step("window2", "state by key: app::Key -> app::State", 14),
        ]);
        let today = print([
            step("source", "csv in of mine.csv", 7),
            step("window", "Tumbling { size: 10s }, late by 1s", 21),
            step("table", "the last", 22),
            step("sink", "csv totals.csv", 23),
            step("window2", "state by key", 24),
        ]);
        let mut upgraded = earlier.clone();
        upgraded.upgrade(2);
        assert_eq!(upgraded, earlier);
        upgraded.upgrade(1);
        assert_eq!(changes(&upgraded, &today), Vec::<String>::new());
        // What a detail and the identity of a source say counts as before.
        let mut other = today.clone();
        other.steps[1].detail = "Tumbling { size: 20s }, late by 1s".into();
        other.steps[0].fingerprint = 8;
        assert_eq!(changes(&upgraded, &other).len(), 2);
        // Of today's prints shapes count too.
        let mut other = today.clone();
        other.steps[2].fingerprint = 99;
        assert_eq!(changes(&today, &other), ["the step table table has other types"]);
    }
}
