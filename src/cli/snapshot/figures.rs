//! Figures of snapshots, and how they are shown.

use bytesize::ByteSize;

use crate::durable::manifest::Manifest;
use crate::durable::segment::SegmentInfo;
use crate::time::EventTime;

/// Returns the segments of a snapshot.
pub(super) fn segments(manifest: &Manifest) -> impl Iterator<Item = &SegmentInfo> {
    manifest.steps.iter().flat_map(|step| &step.segments)
}

pub(super) fn bytes<'a>(segments: impl Iterator<Item = &'a SegmentInfo>) -> u64 {
    segments.map(|segment| segment.bytes).sum()
}

pub(super) fn rows<'a>(segments: impl Iterator<Item = &'a SegmentInfo>) -> u64 {
    segments.map(|segment| segment.rows).sum()
}

/// Converts a wall clock time to one that prints as RFC 3339.
pub(super) fn wall_clock_time(millis: u64) -> EventTime {
    EventTime::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// Formats a number of things, with a plural `s`.
pub(super) fn pluralized(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}
