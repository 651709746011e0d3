//! The check that a written collection has at most one row of each key at the end of every epoch.
//!
//! Invariant: an epoch at which a key has a second row is never complete for the sink, in any process of the job, so it
//! is not written. The counts of keys are those of the collection, recovered as it is.

use std::sync::Arc;

use differential_dataflow::VecCollection;
use differential_dataflow::operators::CountTotal;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::operator::Operator;

use crate::record::Record;
use crate::sink::UniqueKey;
use crate::sink::unique_key::two_rows;
use crate::stream::Flow;
use crate::stream::output::RowChange;

/// Returns the changes of a collection; fails the job when a key has more than one row. Rows without a key are left to
/// the sink.
pub(super) fn refuse_second_rows<'f, D: Record>(
    flow: &Flow<'f>,
    name: &str,
    rows: VecCollection<'f, u64, D, isize>,
    key_of: UniqueKey<D>,
) -> TimelyStream<'f, u64, Vec<RowChange<D>>> {
    let counts = rows.clone().flat_map(move |row| key_of(&row)).count_total();
    let (failure, sink) = (Arc::clone(&flow.build.failure), format!("sink `{name}`"));
    let checked = counts.inner.unary(Pipeline, &format!("Unique keys: {name}"), move |_capability, _info| {
        // Holds the frontier at the epoch of the second row.
        let mut held = None;
        move |input, output| {
            input.for_each(|capability, counts| {
                for ((key, count), _epoch, diff) in counts.drain(..) {
                    if count > 1 && diff > 0 {
                        failure.set(two_rows(&key).at(&sink));
                        held.get_or_insert_with(|| capability.retain_least(0));
                    }
                }
                let _nothing = output.session(&capability);
            });
        }
    });
    rows.inner.concat(checked)
}
