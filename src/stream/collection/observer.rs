//! A sink that calls a function with the rows of every epoch.

use std::fmt;

use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::Result;
use crate::record::Record;
use crate::sink::{Sink, SinkContext, SinkWriter};
use crate::time::Epoch;

/// A function that is called with an epoch's changes.
type EpochFn<D> = std::sync::Arc<dyn Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync>;

/// A sink that calls a function. It is at-least-once: after a crash the function is called again with epochs that are
/// replayed.
pub struct Observer<D>(EpochFn<D>);

impl<D: Record> Observer<D> {
    /// Creates a sink that calls `see` with every epoch that has rows: all of its rows at once, consolidated and
    /// sorted.
    pub fn new(see: impl Fn(Epoch, &[(D, isize)]) -> Result<()> + Send + Sync + 'static) -> Self {
        Observer(std::sync::Arc::new(see))
    }
}

impl<D> fmt::Debug for Observer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observer<{}>", std::any::type_name::<D>())
    }
}

impl<D: Record> Sink<D> for Observer<D> {
    fn describe(&self) -> String {
        String::from("a function of the program")
    }

    fn open(&self, _at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(Box::new(Observer(std::sync::Arc::clone(&self.0))))
    }
}

impl<D: Record> SinkWriter<D> for Observer<D> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        Ok(None)
    }

    fn begin(&mut self, _life: &Incarnation) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, epoch: Epoch, rows: &[(D, isize)]) -> Result<()> {
        (self.0)(epoch, rows)
    }

    fn publish(&mut self, _ends: &JournalEnds) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
