//! The stream's watermark as a source sees it.

use std::cell::Cell;

use crate::time::{Epoch, EventTime};

/// A stream's watermark as the flow publishes it to the worker's readers, for watermark alignment and activation
/// watermarks.
#[derive(Debug, Default)]
pub struct WatermarkView {
    watermark: Cell<Option<EventTime>>,
    complete: Cell<Option<Epoch>>,
}

impl WatermarkView {
    /// Publishes the stream's watermark, which is final for all epochs up to `epoch`.
    pub fn publish(&self, epoch: Epoch, watermark: EventTime) {
        self.watermark.set(Some(watermark));
        self.complete.set(Some(epoch));
    }

    /// Returns the stream's watermark as far as this worker knows; [`EventTime::MIN`] before the first one.
    pub fn watermark(&self) -> EventTime {
        self.watermark.get().unwrap_or(EventTime::MIN)
    }

    /// Returns the last epoch at which the watermark is known; `None` before the first.
    pub fn complete(&self) -> Option<Epoch> {
        self.complete.get()
    }
}
