//! The watermark updates of a stream.
//!
//! Invariants: streams with equal names have equal updates, epoch by epoch. Updates are the same on every worker: one
//! message at each epoch at which the watermark moved or a partition got an activation watermark.

use std::rc::Rc;

use timely::dataflow::operators::generic::operator::empty;
use timely::dataflow::{Scope, Stream as TimelyStream};

use crate::record::Event;
use crate::time::watermark::WatermarkUpdate;

/// The watermark updates of a stream.
#[derive(Clone)]
pub(crate) struct WatermarkStream<'f> {
    pub(crate) stream: TimelyStream<'f, u64, Vec<WatermarkUpdate>>,
    /// The name of the stream, or of the streams that were combined.
    pub(super) name: Rc<str>,
}

impl<'f> WatermarkStream<'f> {
    /// Creates the updates of a source.
    pub(crate) fn of_source(stream: TimelyStream<'f, u64, Vec<WatermarkUpdate>>, name: &str) -> Self {
        WatermarkStream { stream, name: format!("`{name}`").into() }
    }

    /// Creates the updates of a stream that has none.
    pub(crate) fn none(scope: Scope<'f, u64>) -> Self {
        WatermarkStream { stream: empty(scope), name: "nothing".into() }
    }
}

/// The events of a stream, and its watermark updates.
pub(crate) type EventsAndWatermarks<'f, D> = (TimelyStream<'f, u64, Vec<Event<D>>>, WatermarkStream<'f>);
