//! Writers of sinks that are opened before a job runs.
//!
//! Invariant: what a sink has published is read once, before the job decides where to resume; the flow that runs takes the
//! same writers.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::durable::PublishedEpoch;
use crate::durable::recovery::ReportedSink;
use crate::record::Record;
use crate::sink::SinkWriter;

/// Writers of sinks that were opened before the flow is built: a job with state reads what all of them have published
/// before it decides where to resume.
#[derive(Default)]
pub(crate) struct OpenedSinks {
    sinks: Mutex<BTreeMap<String, OpenedSink>>,
    /// Earlier names of sinks, under which their targets know them, by name.
    earlier_names: BTreeMap<String, String>,
}

/// An opened sink.
pub(crate) struct OpenedSink {
    /// The last epoch that the sink has published, if it knows one.
    pub(crate) published: Option<PublishedEpoch>,
    /// `true` if the sink gets the changes of a collection.
    pub(crate) on_change: bool,
    /// The writer, a `Box<dyn SinkWriter<D>>`.
    pub(super) writer: Box<dyn Any + Send>,
}

impl OpenedSinks {
    /// Creates an empty set of writers. `earlier_names` has pairs of a sink's name and the one that its target knows.
    pub(crate) fn new(earlier_names: impl IntoIterator<Item = (String, String)>) -> Self {
        OpenedSinks { sinks: Mutex::default(), earlier_names: earlier_names.into_iter().collect() }
    }

    /// Returns the name under which the target of a sink knows it.
    pub(super) fn name_at_target<'a>(&'a self, name: &'a str) -> &'a str {
        self.earlier_names.get(name).map_or(name, String::as_str)
    }

    pub(super) fn put(&self, name: &str, sink: OpenedSink) {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sink);
    }

    pub(super) fn take<D: Record>(&self, name: &str) -> Option<(Option<PublishedEpoch>, Box<dyn SinkWriter<D>>)> {
        let opened = self.sinks.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        let writer = opened.writer.downcast::<Box<dyn SinkWriter<D>>>().ok()?;
        Some((opened.published, *writer))
    }

    /// Returns what each sink has published, by name.
    pub(crate) fn published(&self) -> Vec<ReportedSink> {
        let opened = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |(name, sink): (&String, &OpenedSink)| ReportedSink {
            name: name.clone(),
            published: sink.published.clone(),
            on_change: sink.on_change,
        };
        opened.iter().map(found).collect()
    }
}
