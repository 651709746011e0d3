//! How results leave the dataflow: an epoch is shown whole, by the worker that owns the sink's shard.
//!
//! Rows are gathered where the shard's writer is, wait until their epoch is complete, and are consolidated, sorted and
//! shown in order of epochs. The probe behind this operator passes an epoch only when it has been shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::consolidation::consolidate;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::generic::operator::Operator;

use crate::durable::Life;
use crate::record::Record;
use crate::sink::{Rows, Shard, Sink};
use crate::stream::{Fault, Flow, Stream};
use crate::time::Epoch;

/// A row of a sink: what it is, the epoch at which its number changed, and by how much.
pub(crate) type Change<D> = (D, u64, isize);

/// Shows rows in a sink.
pub(crate) fn write<'f, D: Record>(
    flow: &Flow<'f>,
    name: &str,
    kind: Rows,
    rows: TimelyStream<'f, u64, Vec<Change<D>>>,
    sink: &impl Sink<D>,
) {
    let build = &flow.build;
    build.step("sink", name, format!("{} of {}", sink.describe(), std::any::type_name::<D>()));
    if let Err(error) = sink.check(kind) {
        build.failure.set(error.at(format!("sink `{name}`")));
        return;
    }
    // One shard, so that the number of workers decides nothing; sinks are spread over workers by their order.
    let sinks = build.plan.borrow().iter().filter(|step| step.kind == "sink").count();
    let owner = (sinks - 1) % flow.scope.peers();
    let shard = Shard::new(&build.place.job, name, kind);
    let mut writer = None;
    // Opening empties files: not for a job that has failed already, at its source for one.
    if !build.dry && owner == flow.scope.index() && build.failure.get().is_none() {
        let begun = sink.open(&shard).and_then(|mut writer| {
            writer.shown()?;
            writer.begin(&Life::without_state()).map(|()| writer)
        });
        match begun {
            Ok(opened) => writer = Some(opened),
            Err(error) => build.failure.set(error),
        }
    }
    let (failure, metrics) = (Arc::clone(&build.failure), build.metrics.sink(name));
    let early = flow.fault(Fault::ShowEarly);
    let to_owner = Exchange::new(move |_row: &Change<D>| owner as u64);
    let shown = rows.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        to_owner,
        &format!("Write: {name}"),
        move |_capability, _info| {
            let mut waiting = BTreeMap::new();
            move |(input, frontier), _output| {
                input.for_each(|capability, rows| {
                    // A container may hold changes of several epochs, all at or after the capability's.
                    for (row, epoch, diff) in rows.drain(..) {
                        let entry = waiting.entry(epoch).or_insert_with(|| (capability.delayed(&epoch, 0), Vec::new()));
                        entry.1.push((row, diff));
                    }
                });
                let complete = |epoch: &u64| early || !frontier.less_equal(epoch);
                while let Some(entry) = waiting.first_entry().filter(|entry| complete(entry.key())) {
                    let (epoch, (_capability, mut rows)): (_, (_, Vec<(D, isize)>)) = entry.remove_entry();
                    consolidate(&mut rows);
                    let Some(writer) = writer.as_mut().filter(|_| !rows.is_empty() && failure.get().is_none()) else {
                        continue;
                    };
                    match writer.write(Epoch(epoch), &rows).and_then(|()| writer.show()) {
                        Ok(()) => {
                            metrics.rows.add(rows.len() as u64);
                            metrics.epochs.add(1);
                        }
                        Err(error) => failure.set(error),
                    }
                }
                if frontier.is_empty()
                    && let Some(mut writer) = writer.take()
                    && failure.get().is_none()
                    && let Err(error) = writer.finish()
                {
                    failure.set(error);
                }
            }
        },
    );
    let _shown = shown.probe_with(&build.probe);
}

impl<'f, D: Record> Stream<'f, D> {
    /// Writes the records to a sink, epoch by epoch, each epoch whole, its rows sorted.
    pub fn write(self, name: &str, sink: &impl Sink<D>) {
        let rows = self.events.unary(timely::dataflow::channels::pact::Pipeline, "Rows", |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    let Some(&epoch) = capability.least() else { return };
                    made.extend(events.drain(..).map(|event| (event.data, epoch, 1)));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        write(&self.flow, name, Rows::Events, rows, sink);
    }
}
