//! State directories as Tidegate's own tests open them. Not part of the interface: anything here may change or go.

use std::path::Path;
use std::sync::Arc;

use crate::durable::disk::Disk;
use crate::durable::journal::{FileId, Frame, JournalFile};
use crate::durable::manifest::{Manifest, ManifestId};
use crate::durable::state::StateDir;
use crate::error::Result;
use crate::time::Epoch;

/// A state directory that a test has opened.
#[derive(Debug)]
pub struct OpenedState(StateDir);

/// The intact part of a file of a state's journal.
#[derive(Clone, Debug)]
pub struct StoredJournal {
    /// The incarnation that wrote it.
    pub incarnation: u64,
    /// The process of that incarnation.
    pub process: u32,
    /// Positions in bytes of the ends of the header and of each frame.
    pub ends: Vec<usize>,
    /// The frames.
    pub frames: Vec<Frame>,
}

impl OpenedState {
    /// Opens and locks a state directory, and creates it if there is none.
    ///
    /// # Errors
    /// Fails if the directory cannot be used, or if another process holds it.
    pub fn open(disk: Arc<dyn Disk>, path: impl AsRef<Path>) -> Result<OpenedState> {
        StateDir::open(disk, path.as_ref(), false).map(OpenedState)
    }

    /// Opens an existing state directory without locking it.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn join(disk: Arc<dyn Disk>, path: impl AsRef<Path>) -> Result<OpenedState> {
        StateDir::join(disk, path.as_ref()).map(OpenedState)
    }

    /// Takes the number of the next incarnation.
    ///
    /// # Errors
    /// Fails if the directory cannot be written to.
    pub fn begin_incarnation(&self) -> Result<u64> {
        self.0.begin_incarnation()
    }

    /// Reads a file of the journal from its bytes; `None` if `name` is not the name of such a file.
    ///
    /// # Errors
    /// Fails if the file is another state's, or of another format.
    pub fn read_journal(&self, name: &str, bytes: &[u8]) -> Result<Option<StoredJournal>> {
        let Some(id) = FileId::parse(name) else { return Ok(None) };
        let file = JournalFile::read(self.0.id(), id, bytes)?;
        let ends = [file.header_length].into_iter().chain(file.entries.iter().map(|entry| entry.end));
        Ok(Some(StoredJournal {
            incarnation: id.incarnation,
            process: id.process,
            ends: ends.map(|end| end as usize).collect(),
            frames: file.entries.iter().map(|entry| entry.frame.clone()).collect(),
        }))
    }

    /// Counts the rows that each snapshot keeps of the query's `step`-th step.
    ///
    /// # Errors
    /// Fails if a manifest cannot be read.
    pub fn rows_of_step(&self, step: usize) -> Result<Vec<u64>> {
        let count =
            |manifest: Result<Manifest>| Ok(manifest?.steps[step].segments.iter().map(|segment| segment.rows).sum());
        self.0.scan(false)?.manifests.into_values().map(count).collect()
    }
}

/// Returns the epoch of the snapshot whose manifest has this file name; `None` if it is no manifest's.
pub fn snapshot_epoch(name: &str) -> Option<Epoch> {
    ManifestId::parse(name).map(|id| id.epoch)
}
