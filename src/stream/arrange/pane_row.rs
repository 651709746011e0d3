//! Rows of panes, as the arrangement and its snapshots have them.

use crate::stream::counted::Counted;

/// The key of a row: pane-major.
pub(super) type PaneRow<T, K> = (T, K);
/// A row as snapshots keep it.
pub(crate) type Saved<T, K, S> = (PaneRow<T, K>, Counted<S>);
