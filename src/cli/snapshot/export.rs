//! `tidegate snapshot export`: exports a snapshot as a savepoint, or its rows as CSV or JSON.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::chosen::{open_for_reading, with_snapshot};
use super::figures::{bytes, segments, size};
use super::rows::{KeyRow, RowLayout, SegmentValue, StepRowCursor, json, step, text_of};
use crate::cli::print_line;
use crate::cli::progress::bytes_bar;
use crate::durable::codec::{DynamicValue, Schema};
use crate::durable::disk::{Disk, DiskFile, OsDisk, parent};
use crate::durable::disk_error;
use crate::durable::manifest::Manifest;
use crate::durable::savepoint;
use crate::durable::state::StateDir;
use crate::error::{Error, Result};

/// Minimum number of bytes per write.
const WRITE_SIZE: usize = 1 << 18;

/// Flags of `tidegate snapshot export`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "A savepoint is one snapshot in a directory of its own, with copies of all its files, verified.
A query starts a new state from it, on any number of workers:
  my_query … --state new-state/ --from-savepoint savepoint/ --out new.csv
Its outputs must be new, and get the results after the savepoint's epoch. Earlier results are in the
outputs of the old state, and stay there.

With --csv or --ndjson rows are written instead: one for each part of a key, see `inspect`. Columns
from and to are the epochs after which and up to which the part changed. Nested values of CSV are JSON.

Examples:
  tidegate snapshot export state/ savepoint/
  tidegate snapshot export state/ --csv totals.csv --step totals")]
pub struct ExportArgs {
    /// The state directory, or a savepoint
    pub state: PathBuf,

    /// Directory of the savepoint, which must be empty or missing
    #[arg(value_name = "DIR", required_unless_present_any = ["csv", "ndjson"], conflicts_with_all = ["csv", "ndjson"])]
    pub to: Option<PathBuf>,

    /// Write rows to this CSV file instead; an existing file is replaced
    #[arg(long, value_name = "FILE", conflicts_with = "ndjson")]
    pub csv: Option<PathBuf>,

    /// Write rows to this file instead, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub ndjson: Option<PathBuf>,

    /// Step whose rows are written; not needed if there is only one
    #[arg(long, value_name = "S", conflicts_with = "to")]
    pub step: Option<String>,

    /// Epoch of the snapshot [default: the newest]
    #[arg(long, value_name = "E")]
    pub epoch: Option<u64>,
}

/// Runs `tidegate snapshot export`; returns the exit code.
pub(super) fn export(args: &ExportArgs) -> Result<u8> {
    let dir = open_for_reading(&args.state)?;
    match (&args.to, &args.csv, &args.ndjson) {
        (Some(to), ..) => with_snapshot(&dir, args.epoch, |manifest| savepoint(&dir, manifest, to))?,
        (_, Some(file), _) => table(&dir, args, file, true)?,
        (_, _, Some(file)) => table(&dir, args, file, false)?,
        _ => return Err(Error::usage("there is nowhere to export to").help("name a directory, --csv or --ndjson")),
    }
    Ok(0)
}

fn savepoint(dir: &StateDir, manifest: &Manifest, to: &Path) -> Result<()> {
    let bar = bytes_bar();
    bar.set_length(bytes(segments(manifest)));
    let done = savepoint::export(dir, manifest.id(), to, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let manifest = done?;
    let (epoch, count) = (manifest.epoch.0, segments(&manifest).count());
    let size = size(bytes(segments(&manifest)));
    print_line(format_args!("{}: a savepoint of epoch {epoch}, {count} segments of {size}", to.display()));
    Ok(())
}

fn table(dir: &StateDir, args: &ExportArgs, path: &Path, is_csv: bool) -> Result<()> {
    let (mut rows, epoch, name) = with_snapshot(dir, args.epoch, |manifest| {
        let step = step(manifest, args.step.as_deref())?;
        Ok((StepRowCursor::open(dir, step)?, manifest.epoch.0, step.name.clone()))
    })?;
    let layout = rows.layout().cloned();
    let mut out = AtomicFile::create(path)?;
    let mut csv = is_csv.then(|| csv::Writer::from_writer(Vec::new()));
    let columns = layout.as_ref().map(columns).unwrap_or_default();
    if let Some(csv) = &mut csv {
        csv.write_record(&columns).map_err(|why| out.failed(why))?;
    }
    let bar = bytes_bar();
    bar.set_length(rows.progress().1);
    let mut count = 0_u64;
    while let (Some(row), Some(layout)) = (rows.next()?, &layout) {
        let KeyRow { window, key, parts } = row;
        for part in parts {
            let cells = cells(layout, window.map(DynamicValue::Time), &key, &part);
            match &mut csv {
                None => {
                    let named = columns.iter().cloned().zip(cells).collect();
                    out.pending.extend(json(&DynamicValue::Fields(named))?.as_bytes());
                    out.pending.push(b'\n');
                }
                Some(csv) => {
                    let cells: Vec<String> = cells.iter().map(text_of).collect::<Result<_>>()?;
                    csv.write_record(&cells).map_err(|why| out.failed(why))?;
                    csv.flush().map_err(|why| out.failed(why))?;
                }
            }
            count += 1;
        }
        bar.set_position(rows.progress().0);
        let is_full = csv.as_ref().map_or(out.pending.len(), |csv| csv.get_ref().len()) > WRITE_SIZE;
        if is_full {
            out.write_pending(&mut csv)?;
        }
    }
    out.write_pending(&mut csv)?;
    out.finish()?;
    bar.finish_and_clear();
    print_line(format_args!("{}: {count} rows of step {name} at epoch {epoch}", path.display()));
    Ok(())
}

/// A file that is written beside its path and renamed when it is complete.
struct AtomicFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    beside: PathBuf,
    file: Option<Box<dyn DiskFile>>,
    pending: Vec<u8>,
}

impl AtomicFile {
    fn create(path: &Path) -> Result<AtomicFile> {
        let disk = OsDisk::shared();
        let cannot = |why| disk_error("cannot write the rows", path.display(), why);
        let beside = disk.write_temporary(path, b"").map_err(cannot)?;
        let file = disk.open(&beside).map_err(cannot)?;
        Ok(AtomicFile { disk, path: path.to_owned(), beside, file: Some(file), pending: Vec::new() })
    }

    fn failed(&self, why: impl std::fmt::Display) -> Error {
        Error::new("cannot write the rows").at(self.path.display()).because(why)
    }

    fn cannot(&self) -> impl Fn(std::io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |why| disk_error("cannot write the rows", path.display(), why)
    }

    /// Writes all pending bytes, those of a CSV writer included.
    fn write_pending(&mut self, csv: &mut Option<csv::Writer<Vec<u8>>>) -> Result<()> {
        if let Some(writer) = csv.take() {
            self.pending.append(&mut writer.into_inner().map_err(|why| self.failed(why))?);
            *csv = Some(csv::WriterBuilder::new().from_writer(Vec::new()));
        }
        let cannot = self.cannot();
        if let Some(file) = &mut self.file {
            file.append(&self.pending).map_err(cannot)?;
        }
        self.pending.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let cannot = self.cannot();
        if let Some(mut file) = self.file.take() {
            file.sync().map_err(&cannot)?;
        }
        self.disk.rename(&self.beside, &self.path).map_err(&cannot)?;
        self.disk.sync_directory(parent(&self.path)).map_err(&cannot)
    }
}

/// Removes an incomplete file.
impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _what_stays_is_in_nobodys_way = self.disk.remove(&self.beside);
        }
    }
}

/// Returns the names of the columns.
fn columns(layout: &RowLayout) -> Vec<String> {
    let mut names = Vec::new();
    if layout.windowed {
        names.push("window_end".to_owned());
    }
    name(&layout.key, "key", &mut names);
    names.extend(["from".to_owned(), "to".to_owned()]);
    name(&layout.value, "", &mut names);
    names
}

fn name(schema: &Schema, above: &str, names: &mut Vec<String>) {
    let below = |name: &str| if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") };
    match schema {
        Schema::Unit => {}
        Schema::Struct(_, fields) => fields.iter().for_each(|(field, schema)| name(schema, &below(field), names)),
        Schema::Tuple(parts) => {
            (0..).zip(parts).for_each(|(number, schema): (usize, _)| name(schema, &below(&number.to_string()), names));
        }
        _ if above.is_empty() => names.push("value".to_owned()),
        _ => names.push(above.to_owned()),
    }
}

/// Returns the values of the columns, in the order of [`columns`].
fn cells(
    layout: &RowLayout,
    window: Option<DynamicValue>,
    key: &DynamicValue,
    part: &SegmentValue,
) -> Vec<DynamicValue> {
    let mut cells = Vec::new();
    if layout.windowed {
        cells.push(window.unwrap_or(DynamicValue::Nothing));
    }
    flatten(&layout.key, key, &mut cells);
    cells.extend([DynamicValue::Natural(part.from.0), DynamicValue::Natural(part.to.0)]);
    flatten(&layout.value, &part.value, &mut cells);
    cells
}

fn flatten(schema: &Schema, value: &DynamicValue, cells: &mut Vec<DynamicValue>) {
    match (schema, value) {
        (Schema::Unit, _) => {}
        (Schema::Struct(_, schemas), DynamicValue::Fields(fields)) => {
            schemas.iter().zip(fields).for_each(|((_, schema), (_, value))| flatten(schema, value, cells));
        }
        (Schema::Tuple(schemas), DynamicValue::List(values)) => {
            schemas.iter().zip(values).for_each(|(schema, value)| flatten(schema, value, cells));
        }
        (_, value) => cells.push(value.clone()),
    }
}
