//! The rows of one step of a snapshot, read without its types: in the order of their keys, with all parts of a key
//! together.
//!
//! * A **row** is shown as window, key and value if it is a pair of (end of a window, key) and value, as the rows of
//!   windowed steps are; as key and value if it is any other pair; otherwise all of it is the key.
//! * A **part** is a key's value in one segment. As in a job that resumes from the snapshot, rows that are expired by
//!   the snapshot's watermark are left out.
//!
//! Invariant: one block of each segment is in memory at a time.

use std::collections::VecDeque;

use crate::durable::codec::{DynamicValue, Schema};
use crate::durable::manifest::{Manifest, StepState};
use crate::durable::segment::{SegmentInfo, SegmentReader};
use crate::durable::state::StateDir;
use crate::error::{Error, Result};
use crate::time::{Epoch, EventTime};

/// A key with its parts in all segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRow {
    /// The end of the window; `None` if the step has no windows.
    pub(super) window: Option<EventTime>,
    pub(super) key: DynamicValue,
    pub(super) parts: Vec<SegmentValue>,
}

/// A key's value in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentValue {
    /// Epoch after which the value changed, excluded.
    pub(super) from: Epoch,
    /// Epoch up to which the value changed, included.
    pub(super) to: Epoch,
    pub(super) value: DynamicValue,
}

/// Layout of the rows of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowLayout {
    pub(super) windowed: bool,
    pub(super) key: Schema,
    pub(super) value: Schema,
}

impl RowLayout {
    fn of(rows: &Schema) -> RowLayout {
        let Some([first, value]) = pair(rows) else {
            return RowLayout { windowed: false, key: rows.clone(), value: Schema::Unit };
        };
        match pair(first) {
            Some([Schema::Time, key]) => RowLayout { windowed: true, key: key.clone(), value: value.clone() },
            _ => RowLayout { windowed: false, key: first.clone(), value: value.clone() },
        }
    }

    /// Splits a row into window, key and value.
    fn split(&self, row: DynamicValue) -> (Option<EventTime>, DynamicValue, DynamicValue) {
        let (first, value) = match row {
            DynamicValue::List(pair) if self.value != Schema::Unit => match <[DynamicValue; 2]>::try_from(pair) {
                Ok([first, value]) => (first, value),
                Err(all) => return (None, DynamicValue::List(all), DynamicValue::Nothing),
            },
            row => return (None, row, DynamicValue::Nothing),
        };
        match first {
            DynamicValue::List(pair) if self.windowed => match <[DynamicValue; 2]>::try_from(pair) {
                Ok([DynamicValue::Time(end), key]) => (Some(end), key, value),
                Ok(pair) => (None, DynamicValue::List(pair.into()), value),
                Err(all) => (None, DynamicValue::List(all), value),
            },
            key => (None, key, value),
        }
    }
}

fn pair(schema: &Schema) -> Option<[&Schema; 2]> {
    match schema {
        Schema::Tuple(parts) => match &parts[..] {
            [first, second] => Some([first, second]),
            _ => None,
        },
        _ => None,
    }
}

/// Cursor over the rows of a step.
#[derive(Debug)]
pub(super) struct StepRowCursor {
    closed: EventTime,
    segments: Vec<StepSegment>,
    /// Number of bytes read so far.
    read: u64,
}

#[derive(Debug)]
struct StepSegment {
    info: SegmentInfo,
    reader: SegmentReader,
    layout: RowLayout,
    /// Index of the next block.
    block: usize,
    rows: VecDeque<(Option<EventTime>, DynamicValue, DynamicValue)>,
}

impl StepRowCursor {
    /// Opens the segments of a step.
    ///
    /// # Errors
    /// Fails if one cannot be read, or is damaged.
    pub(super) fn open(dir: &StateDir, step: &StepState) -> Result<StepRowCursor> {
        let mut segments = Vec::new();
        for info in step.segments.iter().filter(|info| !info.is_expired(step.closed)) {
            let reader = SegmentReader::open_named(&**dir.disk(), &dir.segments(), info)?;
            let layout = RowLayout::of(&reader.encoding().schema);
            segments.push(StepSegment { info: info.clone(), reader, layout, block: 0, rows: VecDeque::new() });
        }
        segments.sort_by_key(|segment| (segment.info.to, segment.info.from));
        Ok(StepRowCursor { closed: step.closed, segments, read: 0 })
    }

    /// Returns the layout of the rows; `None` if the step has no segments.
    pub(super) fn layout(&self) -> Option<&RowLayout> {
        self.segments.last().map(|segment| &segment.layout)
    }

    /// Returns the number of bytes read so far, and that of all segments.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.read, self.segments.iter().map(|segment| segment.info.bytes).sum())
    }

    /// Returns the next key, in order; `None` at the end.
    ///
    /// # Errors
    /// Fails if a block is damaged, or cannot be decoded without its types.
    pub(super) fn next(&mut self) -> Result<Option<KeyRow>> {
        for segment in &mut self.segments {
            self.read += segment.fill(self.closed)?;
        }
        let heads = self.segments.iter().filter_map(|segment| segment.rows.front());
        let Some((window, key)) = heads.map(|(window, key, _)| (window, key)).min() else { return Ok(None) };
        let mut row = KeyRow { window: *window, key: key.clone(), parts: Vec::new() };
        for segment in &mut self.segments {
            let is_it = |head: &mut (Option<EventTime>, DynamicValue, DynamicValue)| {
                (head.0, &head.1) == (row.window, &row.key)
            };
            if let Some((_, _, value)) = segment.rows.pop_front_if(is_it) {
                row.parts.push(SegmentValue { from: segment.info.from, to: segment.info.to, value });
            }
        }
        Ok(Some(row))
    }
}

impl StepSegment {
    /// Reads blocks until a row is pending or the segment is at its end; returns the number of bytes read.
    fn fill(&mut self, closed: EventTime) -> Result<u64> {
        let mut read = 0;
        while self.rows.is_empty() && self.block < self.reader.blocks().len() {
            let rows = self.reader.values(self.block)?.into_iter().map(|row| self.layout.split(row));
            self.rows.extend(rows.filter(|(window, ..)| window.is_none_or(|end| end > closed)));
            read += u64::from(self.reader.blocks()[self.block].stored_length);
            self.block += 1;
        }
        Ok(read)
    }
}

/// Returns the step of a snapshot with this name; without a name, its only step.
///
/// # Errors
/// Fails if there is no such step, or several to choose from.
pub(super) fn step<'m>(manifest: &'m Manifest, name: Option<&str>) -> Result<&'m StepState> {
    let names: Vec<&str> = manifest.steps.iter().map(|step| step.name.as_str()).collect();
    let known = || if names.is_empty() { "there are none".into() } else { format!("there are {}", names.join(", ")) };
    match (name, &manifest.steps[..]) {
        (None, [only]) => Ok(only),
        (None, _) => {
            Err(Error::usage("which step's rows?").because(known()).help("name one: STEP of inspect, --step of export"))
        }
        (Some(name), steps) => steps.iter().find(|step| step.name == name).ok_or_else(|| {
            Error::new(format!("the snapshot has no step `{name}`")).because(known()).help("name one of those")
        }),
    }
}

/// Formats a value as a cell of a table, and for comparison with a key that was typed.
pub(super) fn text_of(value: &DynamicValue) -> Result<String> {
    Ok(match value {
        DynamicValue::Nothing => String::new(),
        DynamicValue::Text(text) => text.clone(),
        DynamicValue::Time(time) => time.to_string(),
        DynamicValue::Variant(_, name, body) if **body == DynamicValue::Nothing => name.clone(),
        value => match json(value)? {
            // JSON has wide integers as strings; a table has them as numbers.
            text if matches!(value, DynamicValue::Wide(_) | DynamicValue::WideNatural(_)) => {
                text.trim_matches('"').to_owned()
            }
            text => text,
        },
    })
}

/// Formats a value as JSON.
pub(super) fn json(value: &DynamicValue) -> Result<String> {
    serde_json::to_string(value).map_err(|why| Error::new("cannot write a value as JSON").because(why))
}
