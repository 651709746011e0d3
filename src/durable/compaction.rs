//! Compaction: many small segments of a step become few large ones, and what the watermark has passed goes away.
//!
//! Merging segments is consolidation: rows of equal keys are added up, and adding is commutative and associative, so any
//! segments of a step may be merged, in any order, and a step's state is the sum of its segments before as after.
//!
//! * The **level** of a segment follows from its length, in powers of [`FACTOR`](crate::durable::segment::FACTOR). Four
//!   or more of a level are merged, into one that is mostly of the next level: so a row is written about once a level,
//!   and a step has a few segments a level.
//! * A row is **dead** when its window can no longer change nor be shown. Dead rows, and rows that add up to nothing,
//!   are left out of what a merge writes; a segment all of whose rows are dead need not be merged, nor read.
//!
//! Invariants: compaction changes no answer; inputs stay as they are, as kept manifests may name them; memory is
//! bounded by a block of each input.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::durable::codec::{Codec, Rows};
use crate::durable::disk::Disk;
use crate::durable::segment::{BlockBuilder, Label, RawBlock, SegmentInfo, SegmentReader, SegmentWriter};
use crate::error::Result;
use crate::time::EventTime;

/// How many segments of a level are merged at least.
pub const FEWEST: usize = 4;
/// How many are merged at most: what bounds memory, and how long one merge takes.
pub const MOST: usize = 16;

/// What is to be done with the segments of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Have no row that is not dead: the next manifest need not name them.
    pub dead: Vec<SegmentInfo>,
    /// To be merged, each group into one.
    pub merges: Vec<Vec<SegmentInfo>>,
}

/// Decides what to do with segments, of one step or of several. Rows of windows that end at `dead` or before are dead.
pub fn choose(segments: &[SegmentInfo], dead: EventTime) -> Plan {
    let mut plan = Plan::default();
    let mut levels = BTreeMap::<(&str, u8), Vec<&SegmentInfo>>::new();
    for segment in segments {
        if segment.is_dead(dead) {
            plan.dead.push(segment.clone());
        } else {
            levels.entry((&segment.step, segment.level)).or_default().push(segment);
        }
    }
    for mut alike in levels.into_values() {
        // Neighbours in time die at about the same time.
        alike.sort_by_key(|segment| (segment.from, segment.to, &segment.file));
        let groups = alike.chunks(MOST).filter(|group| group.len() >= FEWEST);
        plan.merges.extend(groups.map(|group| group.iter().copied().cloned().collect()));
    }
    plan
}

/// How the rows of a step are merged.
pub struct Merging<'a, T> {
    /// How they are written.
    pub codec: Arc<dyn Codec<T>>,
    /// The order of their keys; rows of equal keys are added up.
    pub order: fn(&T, &T) -> Ordering,
    /// Adds the second to the first.
    pub add: fn(&mut T, &T),
    /// The end of a row's window; [`EventTime::MAX`] for rows of none.
    pub window: fn(&T) -> EventTime,
    /// Whether a sum is worth keeping: rows that add up to nothing are not.
    pub keep: &'a dyn Fn(&T) -> bool,
    /// Rows of windows that end here or before are dead, and left out.
    pub dead: EventTime,
}

impl<T> fmt::Debug for Merging<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merging").field("codec", &self.codec).field("dead", &self.dead).finish_non_exhaustive()
    }
}

/// Writes the sum of some segments of a step as one, under `label`. Returns nothing, and writes no file, if nothing is
/// left. The inputs stay.
///
/// # Errors
/// When an input is damaged or is not what `merging` says, or the output cannot be written.
pub fn merge<T: Clone + 'static>(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    inputs: &[SegmentInfo],
    label: &Label,
    merging: &Merging<'_, T>,
) -> Result<Option<SegmentInfo>> {
    assert!(inputs.iter().all(|input| input.step == label.step), "only segments of one step are merged");
    let mut cursors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let reader = SegmentReader::open_named(&**disk, directory, input)?;
        cursors.push(Cursor::new(reader, merging)?);
    }
    let builder = BlockBuilder::new(Arc::clone(&merging.codec));
    let mut output = Output { disk, directory, label, merging, builder, writer: None };
    match output.fill(cursors) {
        Ok(()) => output.writer.map(SegmentWriter::finish).transpose(),
        Err(why) => {
            output.writer.into_iter().for_each(SegmentWriter::abandon);
            Err(why)
        }
    }
}

/// What a merge writes, begun when there is something to write.
struct Output<'a, T> {
    disk: &'a Arc<dyn Disk>,
    directory: &'a Path,
    label: &'a Label,
    merging: &'a Merging<'a, T>,
    builder: BlockBuilder<T>,
    writer: Option<SegmentWriter>,
}

impl<T: Clone + 'static> Output<'_, T> {
    fn fill(&mut self, mut cursors: Vec<Cursor<T>>) -> Result<()> {
        let merging = self.merging;
        // Those with a row, by that row, the least one last.
        let mut waiting = Vec::with_capacity(cursors.len());
        for index in 0..cursors.len() {
            wait(&mut waiting, &cursors, index, merging.order);
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
                cursors[index].advance(merging)?;
                wait(&mut waiting, &cursors, index, merging.order);
            }
        }
        match self.builder.finish() {
            Some(block) => self.append(&block),
            None => Ok(()),
        }
    }

    fn emit(&mut self, row: &T) -> Result<()> {
        let window = (self.merging.window)(row);
        if window <= self.merging.dead || !(self.merging.keep)(row) {
            return Ok(());
        }
        match self.builder.push(row, window)? {
            Some(block) => self.append(&block),
            None => Ok(()),
        }
    }

    fn append(&mut self, block: &RawBlock) -> Result<()> {
        if self.writer.is_none() {
            let coding = self.merging.codec.coding();
            self.writer = Some(SegmentWriter::create(self.disk, self.directory, self.label, &coding)?);
        }
        self.writer.as_mut().map_or(Ok(()), |writer| writer.append(block))
    }
}

/// Puts a cursor that has a row where it belongs among those that wait, which are in descending order.
fn wait<T: 'static>(waiting: &mut Vec<usize>, cursors: &[Cursor<T>], index: usize, order: fn(&T, &T) -> Ordering) {
    if let Some(row) = cursors[index].row() {
        let greater = |other: &usize| cursors[*other].row().is_some_and(|other| order(other, row).is_gt());
        waiting.insert(waiting.partition_point(greater), index);
    }
}

/// Walks over the rows of an input that are not in blocks of dead rows alone.
struct Cursor<T> {
    reader: SegmentReader,
    /// The block that comes next.
    next: usize,
    rows: Rows<T>,
    /// Which of the rows.
    at: usize,
}

impl<T: 'static> Cursor<T> {
    fn new(reader: SegmentReader, merging: &Merging<'_, T>) -> Result<Self> {
        reader.accept(&*merging.codec)?;
        let mut cursor = Cursor { reader, next: 0, rows: Rows::decoded(Vec::new()), at: 0 };
        cursor.load(merging)?;
        Ok(cursor)
    }

    /// The row that it stands on; nothing behind the last.
    fn row(&self) -> Option<&T> {
        self.rows.as_slice().get(self.at)
    }

    /// Goes on to the next row.
    fn advance(&mut self, merging: &Merging<'_, T>) -> Result<()> {
        self.at += 1;
        if self.at < self.rows.as_slice().len() { Ok(()) } else { self.load(merging) }
    }

    /// Goes on to the first row of the next block that is not dead.
    fn load(&mut self, merging: &Merging<'_, T>) -> Result<()> {
        let blocks = self.reader.blocks().iter().enumerate().skip(self.next);
        let Some((number, &block)) = blocks.into_iter().find(|(_, block)| block.greatest > merging.dead) else {
            (self.rows, self.at) = (Rows::decoded(Vec::new()), 0);
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
