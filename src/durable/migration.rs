//! Migration of a step's stored rows to the rows of a changed program.
//!
//! Rows that fit the program as they are stay where they are. Others are read by their stored schema, or by the type that
//! the program names for them, and written anew: segment by segment, in pieces of bounded size, each sorted, as the order
//! of keys may have changed. The new segments take the place of the old ones in a manifest of the new incarnation. So
//! every segment that a job loads or merges has the rows of its program, in order.
//!
//! * Whether rows fit is checked before an incarnation claims a state: nothing is written if one does not.
//! * The new segments are durable before the manifest that names them is written, and only that counts: a crash before it
//!   leaves files that no manifest names, and the next incarnation migrates again.
//! * The old segments and manifests stay as long as snapshots are kept.
//!
//! Rows are routed to workers by their new keys when they are loaded, as all rows are.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::codec::{Codec, RowEncoding, RowFit};
use super::compaction::{self, MergeOptions, MergeOutcome};
use super::disk::Disk;
use super::segment::{BlockBuilder, RawBlock, SegmentInfo, SegmentLabel, SegmentReader, SegmentWriter};
use crate::error::Result;
use crate::time::EventTime;

/// Number of bytes of stored rows, uncompressed, that are sorted at a time.
const PIECE_BYTES: u64 = 32 << 20;

/// The worker that is named in the labels of migrated segments; no worker has this number.
const MIGRATION_WORKER: u32 = u32::MAX - 1;

/// Place and name of migrated segments.
pub(crate) struct MigrationTarget<'a> {
    pub disk: &'a Arc<dyn Disk>,
    /// The directory of segments.
    pub segments: &'a Path,
    /// The incarnation that migrates.
    pub incarnation: u64,
    /// Rows of windows that end here or before have expired, and are dropped.
    pub expired_through: EventTime,
}

/// The way from the stored rows of a step to those of the program.
pub(crate) trait RowMigration: Send + Sync {
    /// Checks that rows of this coding can be read, and how.
    fn fit(&self, written: &RowEncoding) -> Result<RowFit>;

    /// Writes the rows of all segments of the step anew.
    fn migrate(&self, target: &MigrationTarget<'_>, inputs: &[SegmentInfo]) -> Result<Vec<SegmentInfo>>;
}

/// The rows of a step of the program.
pub(crate) struct StepRows {
    /// The step's name.
    pub step: String,
    pub migration: Box<dyn RowMigration>,
}

/// The functions that order and add rows, and the codec that writes them.
pub(crate) struct MigratedRows<T> {
    pub codec: Arc<dyn Codec<T>>,
    pub order: fn(&T, &T) -> Ordering,
    pub add: fn(&mut T, &T),
    pub window: fn(&T) -> EventTime,
    /// Conversions from earlier types of rows, the latest first.
    pub earlier: Vec<Arc<dyn EarlierRows<T>>>,
}

/// An earlier type of a step's rows, named by the program, with its conversion.
pub(crate) trait EarlierRows<T>: Send + Sync {
    /// `true` if rows of this coding are of the type.
    fn is_of(&self, written: &RowEncoding) -> bool;

    /// Reads rows of several segments, adds up those of equal keys, and gives `each` the converted ones.
    fn convert(
        &self,
        target: &MigrationTarget<'_>,
        inputs: &[SegmentInfo],
        each: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()>;
}

impl<T: Send + 'static> RowMigration for MigratedRows<T> {
    fn fit(&self, written: &RowEncoding) -> Result<RowFit> {
        match self.codec.fit(written) {
            Ok(RowFit::Same) => Ok(RowFit::Same),
            // What the program says itself comes before what could be done without it.
            _ if self.earlier.iter().any(|earlier| earlier.is_of(written)) => {
                Ok(RowFit::Converted(vec!["rows are converted by `.migrate`".into()]))
            }
            other => other,
        }
    }

    fn migrate(&self, target: &MigrationTarget<'_>, inputs: &[SegmentInfo]) -> Result<Vec<SegmentInfo>> {
        let Some(first) = inputs.first() else { return Ok(Vec::new()) };
        let written = SegmentReader::open_named(&**target.disk, target.segments, first)?.encoding().clone();
        let fits = self.codec.fit(&written) == Ok(RowFit::Same);
        let earlier = self.earlier.iter().find(|earlier| !fits && earlier.is_of(&written));
        let mut output = MigrationOutput { rows: self, target, pending: Vec::new(), made: Vec::new() };
        if let Some(earlier) = earlier {
            let (mut bytes, average) = (0, average_bytes(inputs));
            earlier.convert(target, inputs, &mut |row| {
                output.pending.push(row);
                bytes += average;
                if bytes >= PIECE_BYTES {
                    bytes = 0;
                    output.write(inputs)?;
                }
                Ok(())
            })?;
            output.write(inputs)?;
            return Ok(output.made);
        }
        for input in inputs {
            let mut reader = SegmentReader::open_named(&**target.disk, target.segments, input)?;
            let is_same = self.codec.fit(reader.encoding())? == RowFit::Same;
            let mut bytes = 0;
            for block in 0..reader.blocks().len() {
                if reader.blocks()[block].greatest <= target.expired_through {
                    continue;
                }
                bytes += u64::from(reader.blocks()[block].raw_length);
                if is_same {
                    reader.read_block(block, &*self.codec, &mut output.pending)?;
                } else {
                    reader.convert_block(block, &*self.codec, &mut output.pending)?;
                }
                if bytes >= PIECE_BYTES {
                    bytes = 0;
                    output.write(std::slice::from_ref(input))?;
                }
            }
            output.write(std::slice::from_ref(input))?;
        }
        Ok(output.made)
    }
}

/// Returns the average number of bytes of a row, at least one.
fn average_bytes(inputs: &[SegmentInfo]) -> u64 {
    let (bytes, rows) = inputs.iter().fold((0, 0), |(bytes, rows), input| (bytes + input.bytes, rows + input.rows));
    (bytes / rows.max(1)).max(1)
}

/// The segments that a migration writes.
struct MigrationOutput<'a, T> {
    rows: &'a MigratedRows<T>,
    target: &'a MigrationTarget<'a>,
    pending: Vec<T>,
    made: Vec<SegmentInfo>,
}

impl<T: Send + 'static> MigrationOutput<'_, T> {
    /// Writes the pending rows as a segment, in the place of those that they are from: sorted, each key once.
    fn write(&mut self, inputs: &[SegmentInfo]) -> Result<()> {
        let MigratedRows { codec, order, add, window, .. } = self.rows;
        let mut rows = std::mem::take(&mut self.pending);
        rows.retain(|row| window(row) > self.target.expired_through);
        rows.sort_by(order);
        rows.dedup_by(|next, row| {
            let is_equal = order(next, row).is_eq();
            if is_equal {
                add(row, next);
            }
            is_equal
        });
        if rows.is_empty() {
            return Ok(());
        }
        let number = self.made.len() as u64;
        let label = SegmentLabel::of_merge(inputs, self.target.incarnation, MIGRATION_WORKER, number);
        let MigrationTarget { disk, segments, .. } = self.target;
        let mut writer = SegmentWriter::create(disk, segments, &label, &codec.encoding())?;
        let mut builder = BlockBuilder::new(Arc::clone(codec));
        let mut append = |block: Option<RawBlock>| block.map_or(Ok(()), |block| writer.append(&block));
        for row in &rows {
            append(builder.push(row, window(row))?)?;
        }
        append(builder.finish())?;
        self.made.push(writer.finish()?);
        Ok(())
    }
}

/// An earlier type of rows with its conversion.
pub(crate) struct ConvertedRows<Old, F> {
    pub codec: Arc<dyn Codec<Old>>,
    pub order: fn(&Old, &Old) -> Ordering,
    pub add: fn(&mut Old, &Old),
    pub window: fn(&Old) -> EventTime,
    pub convert: F,
}

impl<Old, T, F> EarlierRows<T> for ConvertedRows<Old, F>
where
    Old: Clone + 'static,
    F: Fn(Old) -> T + Send + Sync,
{
    fn is_of(&self, written: &RowEncoding) -> bool {
        self.codec.can_read(written).is_ok()
    }

    fn convert(
        &self,
        target: &MigrationTarget<'_>,
        inputs: &[SegmentInfo],
        each: &mut dyn FnMut(T) -> Result<()>,
    ) -> Result<()> {
        // A key's rows are added up before they are converted: a conversion sees what the key has.
        let merged = match inputs {
            [one] => one.clone(),
            _ => {
                let label = SegmentLabel::of_merge(inputs, target.incarnation, MIGRATION_WORKER, u64::MAX);
                let merging = MergeOptions {
                    codec: Arc::clone(&self.codec),
                    order: self.order,
                    add: self.add,
                    window: self.window,
                    keep: &|_| true,
                    expired_through: target.expired_through,
                    cancelled: &AtomicBool::new(false),
                };
                match compaction::merge(target.disk, target.segments, inputs, &label, &merging)? {
                    MergeOutcome::Segment(merged) => merged,
                    MergeOutcome::Empty | MergeOutcome::Cancelled => return Ok(()),
                }
            }
        };
        let mut reader = SegmentReader::open_named(&**target.disk, target.segments, &merged)?;
        let mut rows = Vec::new();
        for block in 0..reader.blocks().len() {
            reader.read_block(block, &*self.codec, &mut rows)?;
            rows.drain(..).try_for_each(|row| each((self.convert)(row)))?;
        }
        if inputs.len() > 1 {
            // A file that stays is named by no manifest, and removed by the next incarnation.
            let _what_stays_is_harmless = target.disk.remove(&target.segments.join(&merged.file));
        }
        Ok(())
    }
}

/// The result of [`check_rows`]: the steps whose rows have to be converted, with what changes.
pub(crate) type Conversions = Vec<(String, Vec<String>)>;

/// Checks that the rows of all steps fit the program; returns the steps whose rows have to be converted. `steps` are
/// those of the manifest that is resumed, by name, with their segments.
///
/// # Errors
/// Fails with the first step whose rows do not fit, or if a segment cannot be read.
pub(crate) fn check_rows<'a>(
    disk: &dyn Disk,
    segments: &Path,
    steps: impl IntoIterator<Item = (&'a str, &'a [SegmentInfo], EventTime)>,
    rows: &[StepRows],
) -> Result<Conversions> {
    let mut conversions = Conversions::new();
    for (name, infos, closed) in steps {
        let Some(rows) = rows.iter().find(|rows| rows.step == name) else { continue };
        let mut known = Vec::<RowEncoding>::new();
        for info in infos.iter().filter(|info| !info.is_expired(closed)) {
            let reader = SegmentReader::open_named(disk, segments, info)?;
            if known.contains(reader.encoding()) {
                continue;
            }
            known.push(reader.encoding().clone());
            match rows.migration.fit(reader.encoding()).map_err(|error| error.at_step(name))? {
                RowFit::Same => {}
                RowFit::Converted(changes) => match conversions.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => {
                        let new: Vec<_> = changes.into_iter().filter(|change| !known.contains(change)).collect();
                        known.extend(new);
                    }
                    None => conversions.push((name.to_owned(), changes)),
                },
            }
        }
    }
    Ok(conversions)
}
