//! Decoding of a message, and its way into the intake.
//!
//! Invariant: an offset below the intake's next one, or at or past the end, is never taken.

use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::record::Record;
use crate::source::{PartitionHandle, PartitionTracker, RawRecord};
use crate::time::Epoch;

/// Offers a record to the intake. Returns `true` if it was taken.
pub(super) fn offer<T: Record + DeserializeOwned>(
    epoch: Epoch,
    handle: PartitionHandle,
    offset: u64,
    stamped: Option<i64>,
    payload: Option<&[u8]>,
    intake: &mut PartitionTracker<T>,
) -> Result<bool> {
    if offset < intake.next(handle) {
        return Ok(false);
    }
    if let Some(until) = intake.until(handle).filter(|until| offset >= *until) {
        intake.skip_to(handle, until);
        intake.mark_ended(handle);
        return Ok(false);
    }
    let found = RawRecord { offset, next: offset + 1, stamped, line: 0, bytes: payload.unwrap_or_default() };
    match payload.map(serde_json::from_slice) {
        Some(Ok(record)) => intake.accept(epoch, handle, found, record)?,
        Some(Err(error)) => intake.reject(epoch, handle, found, &format!("not the expected JSON: {error}"))?,
        None => intake.reject(epoch, handle, found, "the message has no value (a tombstone)")?,
    }
    Ok(true)
}
