//! The values by which the workers of a process read the sources.
//!
//! The workers that read a file share its chunks by the value that they are lent. A query that makes the value itself
//! makes one for each worker, and each would read the whole file: results would be doubled in silence.
//!
//! Invariant: all workers of a process read a source of a name by one value, if its kind shares work by its value.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// The numbers of the values, by the name under which the flow reads the source.
#[derive(Debug, Default)]
pub(crate) struct SourceValues(Mutex<BTreeMap<String, u64>>);

impl SourceValues {
    /// Notes that a worker reads a source of this name by the value with this number.
    ///
    /// # Errors
    /// Fails if another worker reads it by another value.
    pub(super) fn add(&self, name: &str, number: u64, described: &str) -> Result<()> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *known.entry(name.to_owned()).or_insert(number) == number {
            return Ok(());
        }
        let error = Error::usage(format!("each worker has a source `{name}` of its own")).at(described);
        let because = "the workers share the work by the value, and each would read all of it";
        Err(error.because(because).help("make the source before the query, and let its closure borrow it"))
    }
}
