//! Merging of a step's segments into one.
//!
//! Invariants: a row of the output is the sum of all rows of its key in the inputs; rows are in order, and each key is
//! there once; inputs stay as they are; memory is bounded by a block of each input. A merge that fails or is cancelled
//! leaves no file.

use std::cmp::Ordering;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};

use crate::durable::codec::{BlockRows, Codec};
use crate::durable::disk::Disk;
use crate::durable::segment::{BlockBuilder, RawBlock, SegmentInfo, SegmentLabel, SegmentReader, SegmentWriter};
use crate::error::Result;
use crate::time::EventTime;

/// The parameters of a merge of a step's segments.
pub(crate) struct MergeOptions<'a, T> {
    /// The codec of the rows.
    pub codec: Arc<dyn Codec<T>>,
    /// The order of their keys; rows of equal keys are added up.
    pub order: fn(&T, &T) -> Ordering,
    /// Adds the second row to the first.
    pub add: fn(&mut T, &T),
    /// Returns the end of a row's window; [`EventTime::MAX`] for rows without a window.
    pub window: fn(&T) -> EventTime,
    /// `true` if a sum must be written. A sum may be dropped only if it adds nothing to the rows of its key in other
    /// segments, which may be merged at another time.
    pub keep: &'a dyn Fn(&T) -> bool,
    /// Rows of windows that end here or before are expired, and dropped.
    pub expired_through: EventTime,
    /// Set when nobody waits for the merge any more: it stops at the next block.
    pub cancelled: &'a AtomicBool,
}

/// The outcome of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MergeOutcome {
    /// The merged segment.
    Segment(SegmentInfo),
    /// No row is left, and no file was written.
    Empty,
    /// The merge was told to stop, and left no file.
    Cancelled,
}

impl MergeOutcome {
    /// Returns the segment, if there is one.
    pub(crate) fn segment(self) -> Option<SegmentInfo> {
        match self {
            MergeOutcome::Segment(segment) => Some(segment),
            MergeOutcome::Empty | MergeOutcome::Cancelled => None,
        }
    }
}

impl<T> fmt::Debug for MergeOptions<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merging")
            .field("codec", &self.codec)
            .field("dead", &self.expired_through)
            .finish_non_exhaustive()
    }
}

/// Merges segments of one step into one, described by `label`. The inputs stay.
///
/// # Errors
/// Fails if an input is damaged or its rows do not match `merging`, or if the output cannot be written.
pub(crate) fn merge<T: Clone + 'static>(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    inputs: &[SegmentInfo],
    label: &SegmentLabel,
    merging: &MergeOptions<'_, T>,
) -> Result<MergeOutcome> {
    assert!(inputs.iter().all(|input| input.step == label.step), "only segments of one step are merged");
    let mut cursors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let reader = SegmentReader::open_named(&**disk, directory, input)?;
        cursors.push(SegmentCursor::new(reader, merging)?);
    }
    let builder = BlockBuilder::new(Arc::clone(&merging.codec));
    let mut output = MergeWriter { disk, directory, label, merging, builder, writer: None };
    match (output.fill(cursors), output.writer) {
        (Ok(true), Some(writer)) => writer.finish().map(MergeOutcome::Segment),
        (Ok(true), None) => Ok(MergeOutcome::Empty),
        (unfinished, writer) => {
            writer.into_iter().for_each(SegmentWriter::abandon);
            unfinished.map(|_| MergeOutcome::Cancelled)
        }
    }
}

/// The output of a merge; the file is created with the first block.
struct MergeWriter<'a, T> {
    disk: &'a Arc<dyn Disk>,
    directory: &'a Path,
    label: &'a SegmentLabel,
    merging: &'a MergeOptions<'a, T>,
    builder: BlockBuilder<T>,
    writer: Option<SegmentWriter>,
}

impl<T: Clone + 'static> MergeWriter<'_, T> {
    /// Writes all merged rows; returns `false` if it was told to stop before the end.
    fn fill(&mut self, mut cursors: Vec<SegmentCursor<T>>) -> Result<bool> {
        let merging = self.merging;
        // Indices of the cursors that have a row, in descending order of that row.
        let mut waiting = Vec::with_capacity(cursors.len());
        for index in 0..cursors.len() {
            insert_in_order(&mut waiting, &cursors, index, merging.order);
        }
        let mut equal = Vec::with_capacity(cursors.len());
        while let Some(row) = waiting.last().and_then(|&least| cursors[least].row()) {
            let is_equal =
                |other: &usize| cursors[*other].row().is_some_and(|other| (merging.order)(other, row).is_eq());
            let first = waiting.iter().rposition(|other| !is_equal(other)).map_or(0, |greater| greater + 1);
            equal.extend(waiting.drain(first..));
            if equal.len() == 1 {
                self.emit(row)?;
            } else {
                let (mut sum, others) = (row.clone(), equal.iter().rev().skip(1));
                others.filter_map(|&other| cursors[other].row()).for_each(|other| (merging.add)(&mut sum, other));
                self.emit(&sum)?;
            }
            for index in equal.drain(..) {
                if cursors[index].is_at_end_of_block() && merging.cancelled.load(Acquire) {
                    return Ok(false);
                }
                cursors[index].advance(merging)?;
                insert_in_order(&mut waiting, &cursors, index, merging.order);
            }
        }
        if let Some(block) = self.builder.finish() {
            self.append(&block)?;
        }
        Ok(!merging.cancelled.load(Acquire))
    }

    fn emit(&mut self, row: &T) -> Result<()> {
        let window = (self.merging.window)(row);
        if window <= self.merging.expired_through || !(self.merging.keep)(row) {
            return Ok(());
        }
        match self.builder.push(row, window)? {
            Some(block) => self.append(&block),
            None => Ok(()),
        }
    }

    fn append(&mut self, block: &RawBlock) -> Result<()> {
        if self.writer.is_none() {
            let encoding = self.merging.codec.encoding();
            self.writer = Some(SegmentWriter::create(self.disk, self.directory, self.label, &encoding)?);
        }
        self.writer.as_mut().map_or(Ok(()), |writer| writer.append(block))
    }
}

/// Inserts a cursor that has a row into `waiting`, which is in descending order of rows.
fn insert_in_order<T: 'static>(
    waiting: &mut Vec<usize>,
    cursors: &[SegmentCursor<T>],
    index: usize,
    order: fn(&T, &T) -> Ordering,
) {
    if let Some(row) = cursors[index].row() {
        let greater = |other: &usize| cursors[*other].row().is_some_and(|other| order(other, row).is_gt());
        waiting.insert(waiting.partition_point(greater), index);
    }
}

/// Iterates over the rows of an input, except for blocks that have only expired rows.
struct SegmentCursor<T> {
    reader: SegmentReader,
    /// Number of the next block.
    next: usize,
    rows: BlockRows<T>,
    /// Index of the current row in `rows`.
    at: usize,
}

impl<T: 'static> SegmentCursor<T> {
    fn new(reader: SegmentReader, merging: &MergeOptions<'_, T>) -> Result<Self> {
        reader.check_codec(&*merging.codec)?;
        let mut cursor = SegmentCursor { reader, next: 0, rows: BlockRows::decoded(Vec::new()), at: 0 };
        cursor.load(merging)?;
        Ok(cursor)
    }

    /// Returns the current row; `None` after the last.
    fn row(&self) -> Option<&T> {
        self.rows.as_slice().get(self.at)
    }

    /// `true` if the row is the last one of its block: advancing reads another block, or ends the input.
    fn is_at_end_of_block(&self) -> bool {
        self.at + 1 >= self.rows.as_slice().len()
    }

    /// Advances to the next row.
    fn advance(&mut self, merging: &MergeOptions<'_, T>) -> Result<()> {
        self.at += 1;
        if self.at < self.rows.as_slice().len() { Ok(()) } else { self.load(merging) }
    }

    /// Loads the next block that has rows which are not expired; none is left after the last.
    fn load(&mut self, merging: &MergeOptions<'_, T>) -> Result<()> {
        let blocks = self.reader.blocks().iter().enumerate().skip(self.next);
        let Some((number, &block)) = blocks.into_iter().find(|(_, block)| block.greatest > merging.expired_through)
        else {
            (self.rows, self.at) = (BlockRows::decoded(Vec::new()), 0);
            self.next = self.reader.blocks().len();
            return Ok(());
        };
        let rows = self.reader.open_block(number, &*merging.codec)?;
        let ascend = |pair: &[T]| (merging.order)(&pair[0], &pair[1]).is_lt();
        let behind = match (self.rows.as_slice().last(), rows.as_slice().first()) {
            (Some(last), Some(first)) => (merging.order)(last, first).is_lt(),
            _ => true,
        };
        if !behind || !rows.as_slice().windows(2).all(ascend) {
            return Err(self.reader.refuse(number, "its rows are not in order"));
        }
        let windows = block.least..=block.greatest;
        if !rows.as_slice().iter().all(|row| windows.contains(&(merging.window)(row))) {
            return Err(self.reader.refuse(number, "it has a row of a window that it should not have"));
        }
        (self.next, self.rows, self.at) = (number + 1, rows, 0);
        Ok(())
    }
}
