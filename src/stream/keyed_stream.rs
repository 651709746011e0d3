//! A stream grouped by a key: what windows, keyed state, tables and lookups begin with.
//!
//! [`Keyed`] has a stream and the function that extracts its keys; records move to the workers of their keys only in
//! the step that follows. Each step's file adds its own methods to `Keyed`.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::record::{Event, Record};
use crate::stream::Stream;

/// Appends the keys of some events. It takes many events per call, as a dynamic call costs more than most keys.
pub(super) type KeyExtractor<K, D> = Rc<dyn Fn(&[Event<D>], &mut Vec<K>)>;

/// A stream grouped by a key.
pub struct Keyed<'f, K, D> {
    pub(super) stream: Stream<'f, D>,
    pub(super) keys: KeyExtractor<K, D>,
    pub(super) lateness: Duration,
}

impl<K, D> fmt::Debug for Keyed<'_, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyed<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<D>())
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    fn new(stream: Stream<'f, D>, key: impl Fn(&D) -> K + 'static) -> Self {
        let keys: KeyExtractor<K, D> =
            Rc::new(move |events, keys| keys.extend(events.iter().map(|event| key(&event.data))));
        Keyed { stream, keys, lateness: Duration::ZERO }
    }

    /// Sets how long after a window's end late records are accepted: see
    /// [`Windowed::allowed_lateness`](super::Windowed::allowed_lateness). Keyed state processes records later by the
    /// same span.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.lateness = lateness;
        self
    }
}

impl<'f, D: Record> Stream<'f, D> {
    /// Groups the records by a key.
    pub fn key_by<K: Record>(self, key: impl Fn(&D) -> K + 'static) -> Keyed<'f, K, D> {
        Keyed::new(self, key)
    }
}
