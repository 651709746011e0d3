//! Manifests: each names one consistent cut of a job at an epoch, and every file that belongs to it.
//!
//! A **snapshot** is a manifest and the files that it names. A manifest holds what replaying the journal's later epochs
//! needs: source positions, the segments of the durable steps, the windows that had closed, and the last epochs that
//! the sinks had published.
//!
//! Promise kept here: **a manifest is one cut, and no sink is behind it**. It is written whole under a name of its own,
//! by the current incarnation of the state, after all files that it names are durable.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::envelope::{Envelope, EnvelopeError};
use super::journal::{PartitionProgress, TopicPartition};
use super::segment::SegmentInfo;
use super::{FencingCheck, StateId, disk_error, replace_while_current};
use crate::error::{Error, ErrorKind, Result};
use crate::time::{Epoch, EventTime};

/// A manifest, and behind it [`ManifestTopics`], which version 2 lacks. Version 1 also differs in the contents of a
/// [`StepFingerprint`].
const KIND: Envelope = Envelope { magic: *b"TGMANIF", version: 3, name: "manifest" };

/// Topics of partitions: the indexes of the source and of its `PartitionProgress`, and the topic.
type ManifestTopics = Vec<(u32, u32, TopicPartition)>;

/// One consistent cut of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The state.
    pub state: StateId,
    /// The job's name.
    pub job: String,
    /// The incarnation that wrote it.
    pub incarnation: u64,
    /// The epoch of the cut: it includes everything up to this epoch, and nothing after it.
    pub epoch: Epoch,
    /// Wall-clock time of its creation, in milliseconds since 1970; for users.
    #[serde(rename = "made_ms")]
    pub created_ms: u64,
    /// `true` if all sources had ended and all windows had closed: no job resumes from it.
    pub ended: bool,
    /// The fingerprint of the query that made it.
    pub query: QueryFingerprint,
    /// The progress of the sources, and the watermarks of combined streams.
    pub sources: Vec<SourceState>,
    /// The states of the durable steps.
    pub steps: Vec<StepState>,
    /// The progress of the sinks.
    pub sinks: Vec<SinkState>,
}

/// A query's fingerprint: runs with equal ones give equal output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QueryFingerprint {
    /// The program's build id.
    pub build: String,
    /// Every flag that affects output, with its value.
    pub flags: Vec<(String, String)>,
    /// The query's steps, in order.
    pub steps: Vec<StepFingerprint>,
}

/// The kind of a source's step.
pub(super) const SOURCE_KIND: &str = "source";

/// A step's part of its query's fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct StepFingerprint {
    /// The kind of step, such as "aggregate".
    pub kind: String,
    /// Its name in the query.
    pub name: String,
    /// The step's parameters, such as "tumbling 10s".
    pub detail: String,
    /// A hash of the shape of the rows that the step keeps or may retract, or of the identity of a source; 0 if it is
    /// unknown or does not apply.
    pub fingerprint: u64,
}

impl QueryFingerprint {
    /// Converts the fingerprint of a file of this version to the present form. In version 1 the compiler's names of
    /// types were part of details and, except for sources, of fingerprints. Segments still record the shape of their
    /// rows.
    pub(super) fn upgrade(&mut self, version: u8) {
        if version > 1 {
            return;
        }
        for step in &mut self.steps {
            let before_types = if step.keeps_rows() { ": " } else { " of " };
            if let Some((detail, _)) = step.detail.rsplit_once(before_types) {
                step.detail = detail.to_owned();
            }
            if step.kind != SOURCE_KIND {
                step.fingerprint = 0;
            }
        }
    }
}

impl StepFingerprint {
    /// `true` if snapshots have rows of the step.
    pub(super) fn keeps_rows(&self) -> bool {
        !matches!(&*self.kind, SOURCE_KIND | "sink" | "view")
    }

    /// `true` if the shapes of both steps' rows are known and differ.
    pub(super) fn differs_in_shape(&self, other: &StepFingerprint) -> bool {
        self.fingerprint != other.fingerprint && self.fingerprint != 0 && other.fingerprint != 0
    }
}

/// Name prefix of those [`SourceState`]s that are no sources, but watermarks of combined streams.
pub(crate) const COMBINED: &str = "concat of ";

/// The progress of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceState {
    /// The name under which the flow reads it.
    pub name: String,
    /// The progress of each partition at the epoch.
    #[serde(rename = "bounds")]
    pub progress: Vec<PartitionProgress>,
    /// The stream's watermark at the epoch.
    pub watermark: EventTime,
    /// Activation watermarks, by partition number.
    #[serde(rename = "floors")]
    pub activation_watermarks: Vec<(u32, EventTime)>,
}

impl SourceState {
    /// `true` for the watermark of combined streams, which has no partitions of its own.
    pub(crate) fn is_combined(&self) -> bool {
        self.progress.is_empty() && self.name.starts_with(COMBINED)
    }
}

/// The state of a durable step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepState {
    /// Its name in the query.
    pub name: String,
    /// Windows that end here or before have expired.
    pub closed: EventTime,
    /// The segments of its rows.
    pub segments: Vec<SegmentInfo>,
}

/// The progress of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SinkState {
    /// Its name in the query.
    pub name: String,
    /// The last epoch that it had published; `None` if it had published none.
    #[serde(rename = "shown")]
    pub published: Option<Epoch>,
    /// `true` if it holds a collection whose rows may still be retracted.
    pub on_change: bool,
}

/// The identity of a manifest, from which its file name follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ManifestId {
    /// The epoch of the cut.
    pub epoch: Epoch,
    /// The incarnation that wrote it.
    pub incarnation: u64,
}

impl ManifestId {
    /// Parses a file name; `None` if it is not the name of a manifest.
    pub(crate) fn parse(name: &str) -> Option<ManifestId> {
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
    /// The manifest's identity.
    pub(crate) fn id(&self) -> ManifestId {
        ManifestId { epoch: self.epoch, incarnation: self.incarnation }
    }

    /// The steps with rows: names, segments, and the time through which their windows have expired.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, &[SegmentInfo], EventTime)> {
        self.steps.iter().map(|step| (&*step.name, &*step.segments, step.closed))
    }

    /// The names of the segments that it names.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().flat_map(|step| &step.segments).map(|segment| segment.file.as_str())
    }

    /// Writes the manifest durably into the directory of manifests, if the incarnation is still the current one just
    /// before the file gets its name.
    ///
    /// # Errors
    /// Fails if the manifest is inconsistent, if a later incarnation has begun, or if a disk operation fails.
    pub(crate) fn write(&self, disk: &dyn Disk, directory: &Path, still_current: &FencingCheck) -> Result<ManifestId> {
        self.check()?;
        let path = directory.join(self.id().to_string());
        let cannot = |why: io::Error| disk_error("cannot write the manifest", path.display(), why);
        let bytes = KIND.seal(&(self, self.named_topics()))?;
        replace_while_current(disk, &path, &bytes, still_current, cannot).map(|()| self.id())
    }

    /// Lists the topics of partitions, which are no part of a serialized `PartitionProgress`.
    fn named_topics(&self) -> Vec<(u32, u32, &TopicPartition)> {
        let sources = (0..).zip(&self.sources);
        let bounds = sources.flat_map(|(at, source)| (0..).zip(&source.progress).map(move |bound| (at, bound)));
        bounds.filter_map(|(at, (number, bound))| Some((at, number, bound.topic.as_ref()?))).collect()
    }

    /// Decodes a manifest of this version or an earlier one; returns it with its version.
    fn decode(bytes: &[u8]) -> std::result::Result<(Manifest, u8), EnvelopeError> {
        if KIND.as_written(bytes).version < 3 {
            return KIND.open_any(bytes);
        }
        let ((mut manifest, topics), version): ((Manifest, ManifestTopics), u8) = KIND.open_any(bytes)?;
        for (source, number, topic) in topics {
            let source = manifest.sources.get_mut(source as usize);
            let bound = source.and_then(|source| source.progress.get_mut(number as usize));
            bound.ok_or(EnvelopeError::Damaged("it has the topic of a partition that is not there"))?.topic =
                Some(topic);
        }
        Ok((manifest, version))
    }

    /// Decodes the manifest `id` of a state.
    ///
    /// # Errors
    /// Fails if the bytes are damaged, in another format, or those of another manifest or state.
    pub(crate) fn read(state: StateId, id: ManifestId, bytes: &[u8]) -> Result<Manifest> {
        let (mut manifest, version) = Manifest::decode(bytes).map_err(|broken| KIND.error_for(broken, id))?;
        manifest.query.upgrade(version);
        if manifest.state != state {
            let why = format!("it belongs to the state {}, and this is {state}", manifest.state);
            return Err(Error::of(ErrorKind::StateIncompatible, "a manifest is of another state").at(id).because(why));
        }
        if manifest.id() != id {
            let why = format!("it was written as {}", manifest.id());
            return Err(Error::of(ErrorKind::StateDamaged, "a manifest has the name of another").at(id).because(why));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks the manifest's internal consistency, when it is written and when it is read.
    fn check(&self) -> Result<()> {
        let wrong = |why: String| {
            Err(Error::of(ErrorKind::StateDamaged, "the manifest contradicts itself").at(self.id()).because(why))
        };
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

    /// Checks that every segment that it names exists with the right length; the segments' contents are not read.
    ///
    /// # Errors
    /// Fails if one is missing or has another length, or if a disk operation fails.
    pub(crate) fn verify(&self, disk: &dyn Disk, segments: &Path) -> Result<()> {
        for segment in self.steps.iter().flat_map(|step| &step.segments) {
            let path = segments.join(&segment.file);
            let missing =
                || Error::of(ErrorKind::StateDamaged, "a segment of the snapshot is missing").at(path.display());
            let length = match disk.open(&path).and_then(|file| file.length()) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    return Err(missing().because(format!("{} names it", self.id())));
                }
                length => length.map_err(|why| disk_error("cannot open a segment", path.display(), why))?,
            };
            if length != segment.bytes {
                let why = format!("it has {length} bytes, and {} names {}", self.id(), segment.bytes);
                return Err(Error::of(ErrorKind::StateDamaged, "a segment is damaged").at(path.display()).because(why));
            }
        }
        Ok(())
    }
}

/// Lists the manifests in a directory, in order of epochs.
///
/// # Errors
/// Fails if the directory cannot be listed.
pub(crate) fn list(disk: &dyn Disk, directory: &Path) -> Result<Vec<ManifestId>> {
    let names = disk.list(directory).map_err(|why| disk_error("cannot list manifests", directory.display(), why))?;
    let mut ids: Vec<_> = names.iter().filter_map(|name| ManifestId::parse(name)).collect();
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recovery::changes;

    fn step(kind: &str, detail: &str, fingerprint: u64) -> StepFingerprint {
        StepFingerprint { kind: kind.into(), name: kind.into(), detail: detail.into(), fingerprint }
    }

    fn print(steps: [StepFingerprint; 5]) -> QueryFingerprint {
        QueryFingerprint { build: "b".into(), flags: Vec::new(), steps: steps.into() }
    }

    #[test]
    fn a_manifest_names_topics_and_one_of_an_earlier_version_has_none() {
        let bound = |partition, topic: Option<&str>| PartitionProgress {
            source: "s".into(),
            partition,
            start_offset: None,
            next_offset: 7,
            watermark: EventTime::MIN,
            idle: false,
            end_offset: None,
            ended: false,
            check: None,
            values: None,
            topic: topic.map(|topic| TopicPartition { topic: topic.into(), id: Some("id".into()), number: 1 }),
            rejected_for_now: Vec::new(),
        };
        let source = |name: &str, progress| SourceState {
            name: name.into(),
            progress,
            watermark: EventTime::MIN,
            activation_watermarks: Vec::new(),
        };
        let of = |topic: Option<&str>| Manifest {
            state: StateId(1),
            job: "j".into(),
            incarnation: 1,
            epoch: Epoch(2),
            created_ms: 0,
            ended: false,
            query: QueryFingerprint::default(),
            sources: vec![source("a", vec![bound(0, None)]), source("b", vec![bound(0, None), bound(8, topic)])],
            steps: Vec::new(),
            sinks: Vec::new(),
        };
        let named = of(Some("orders.eu"));
        let bytes = KIND.seal(&(&named, named.named_topics())).unwrap();
        assert_eq!(Manifest::read(StateId(1), named.id(), &bytes).unwrap(), named);
        let earlier = Envelope { version: 2, ..KIND }.seal(&named).unwrap();
        assert_eq!(Manifest::read(StateId(1), named.id(), &earlier).unwrap(), of(None));
        let misplaced = KIND.seal(&(&named, vec![(1u32, 2u32, named.named_topics()[0].2)])).unwrap();
        let error = Manifest::read(StateId(1), named.id(), &misplaced).unwrap_err().to_string();
        assert!(error.contains("a partition that is not there"), "{error}");
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
        // A step's parameters and a source's identity count as before.
        let mut other = today.clone();
        other.steps[1].detail = "Tumbling { size: 20s }, late by 1s".into();
        other.steps[0].fingerprint = 8;
        assert_eq!(changes(&upgraded, &other).len(), 2);
        // Between fingerprints of the present form, shapes count too.
        let mut other = today.clone();
        other.steps[2].fingerprint = 99;
        assert_eq!(changes(&today, &other), ["the step table table has other types"]);
    }
}
