//! Rows of panes, as the arrangement and its snapshots have them.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::stream::counted::Counted;

/// The key of a row: pane-major.
pub(super) type PaneRow<T, K> = (T, K);
/// A row as snapshots keep it.
pub(crate) type Saved<T, K, S> = (PaneRow<T, K>, Counted<S>);
/// The rows of one pane, or of one window, by key.
pub(super) type PaneMap<K, S> = HashMap<K, Counted<S>, FixedState>;
