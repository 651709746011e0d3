//! The values by which the workers of a process read the sources.
//!
//! The workers that read a file share its chunks by the value that they are lent. A query that makes the value itself
//! makes one for each worker, and each would read the whole file: results would be doubled in silence.
//!
//! Invariant: all workers of a process read a source of a name by one value, if its kind shares work by its value.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::source::Source;

/// The numbers of the values, by the name under which the flow reads the source.
#[derive(Debug, Default)]
pub(crate) struct SourceValues(Mutex<BTreeMap<String, u64>>);

impl SourceValues {
    /// Notes that a worker reads the source of this name by a value.
    ///
    /// # Errors
    /// Fails if another worker reads it by another value, and the work is shared by the value.
    pub(super) fn add(&self, name: &str, source: &impl Source) -> Result<()> {
        let Some(number) = source.value_number() else { return Ok(()) };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *known.entry(name.to_owned()).or_insert(number) == number {
            return Ok(());
        }
        let error = Error::usage(format!("each worker has a source `{name}` of its own")).at(source.describe());
        let because = "the workers share the work by the value, and each would read all of it";
        Err(error.because(because).help("make the source before the query, and let its closure borrow it"))
    }
}
