//! Joins of a stream with a table: each event is paired with the rows that its key has at the event's epoch.
//!
//! * The **table** is a collection of pairs: the result of [`Keyed::last_by_key`], or anything computed from
//!   collections.
//! * An event at epoch e sees the table *as of e*: after all changes of e and before those of any later epoch. The
//!   result is an event again, at e, with the same event time, watermark and origin: it can be windowed, written or
//!   looked up once more, and is late exactly where the event itself was.
//!
//! The journal records the epochs of events and changes: equal journals, equal results. An event does not see the
//! table as of its event time: so the result of a lookup depends on how the input was divided into epochs.
//!
//! The operator holds the table's visible rows, by key, on the worker of the key. Events of epoch e wait until the
//! table is complete through e, changes of e wait until all events before e have been answered. The operator is not
//! durable: after a crash the whole table enters the flow at the snapshot's epoch c, and events of c see it as
//! before; their results are dropped by the checkpointed operators and sinks downstream, which drop input through c.
//! Events of earlier epochs are not replayed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::FixedState;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::progress::Antichain;

use crate::record::{Event, Record};
use crate::stream::epochs::{self, EpochBuffer};
use crate::stream::keyed_stream::{KeyExtractor, Keyed};
use crate::stream::route::route;
use crate::stream::{Collection, ContainerPool, Fault, Stream};

/// The rows of a key, in order, each with its multiplicity.
type CountedRows<V> = Vec<(V, isize)>;
/// A change of the table: row, epoch, difference.
type LookupChange<K, V> = ((K, V), u64, isize);
/// An event in transit to the worker of its key.
type KeyedEvent<K, D> = (K, Event<D>);

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    /// Pairs each record with the row that its key has in a table as of the record's **epoch**, so the result depends
    /// on how the input was divided into epochs, not on the data alone. A key with several rows gives a pair for
    /// each. Records whose key has no row are dropped: see [`Keyed::left_join_table`].
    ///
    /// Records keep their event time, but see the table as of the epoch in which they arrive, not as of their event
    /// time. Two runs over the same data may pair a record with another row, or drop it, if the table's source was
    /// read sooner or later; a replay from the journal gives the same result. A table that exists already, such as a
    /// compacted topic, is whole when the first records are looked up if its source is read first
    /// ([`Flow::table_first`](crate::Flow::table_first), [`Flow::read_first`](crate::Flow::read_first)); otherwise it may
    /// still be read then. [`Keyed::join_as_of`] looks records up as of their event time: its
    /// result is a function of the data.
    ///
    /// ```
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun, Script};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (currency, rate, event time), and sales of an amount.
    /// let rates = vec![vec![("USD", 90, 0), ("USD", 95, 70)]].into_iter().map(own).collect();
    /// let rates = MemorySource::new(rates, |rate| rate.2);
    /// let sales = vec![vec![("USD", 2, 80), ("EUR", 5, 81), ("USD", 4, 82)]].into_iter().map(own).collect();
    /// let sales = MemorySource::new(sales, |sale| sale.2);
    /// let prices = Captured::new();
    /// let output = prices.clone();
    /// // The second sale in USD comes in the epoch in which the second rate comes, and sees it.
    /// let of_rates = Script::new().epoch(|e| e.take(0, 1)).epoch(|e| e.take(0, 1).end(0));
    /// let of_sales = Script::new().epoch(|e| e.take(0, 2)).epoch(|e| e.take(0, 1).end(0));
    /// TestRun::new().script("rates", of_rates).script("sales", of_sales).run(move |flow| {
    ///     let rates = flow.read("rates", &rates).key_by(|rate| rate.0.clone());
    ///     let rates = rates.last_by_key_with("rates", |(_, rate, _)| Some(rate));
    ///     flow.read("sales", &sales)
    ///         .key_by(|sale| sale.0.clone())
    ///         .join_table(rates)
    ///         .map(|((currency, amount, at), rate)| (currency, at, amount * rate))
    ///         .write("prices", &output);
    /// })?;
    /// assert_eq!(prices.all(), [("USD".to_string(), 80, 180), ("USD".to_string(), 82, 380)]);
    /// # Ok(()) }
    ///
    /// fn own(rows: Vec<(&str, i64, i64)>) -> Vec<(String, i64, i64)> {
    ///     rows.into_iter().map(|(currency, number, at)| (currency.to_string(), number, at)).collect()
    /// }
    /// ```
    pub fn join_table<V: Record>(self, table: Collection<'f, (K, V)>) -> Stream<'f, (D, V)> {
        look_up(self, table, |data, row| row.map(|row| (data, row)))
    }

    /// Like [`Keyed::join_table`], and like it dependent on how the input was divided into epochs, but keeps records
    /// whose key has no row, with `None`.
    pub fn left_join_table<V: Record>(self, table: Collection<'f, (K, V)>) -> Stream<'f, (D, Option<V>)> {
        look_up(self, table, |data, row| Some((data, row)))
    }
}

/// The input of one epoch that is not complete yet.
struct PendingLookups<K, D, V> {
    asking: Vec<KeyedEvent<K, D>>,
    /// `None` while no event has arrived.
    capability: Option<Capability<u64>>,
    changes: Vec<((K, V), isize)>,
}

impl<K, D, V> Default for PendingLookups<K, D, V> {
    fn default() -> Self {
        PendingLookups { asking: Vec::new(), capability: None, changes: Vec::new() }
    }
}

/// The visible rows of one worker's keys.
struct VisibleRows<K, V>(HashMap<K, CountedRows<V>, FixedState>);

impl<K: Record, V: Record> VisibleRows<K, V> {
    /// Applies an epoch's changes. Multiplicities may be negative in between, but not afterwards: rows of
    /// multiplicity zero are removed at the end.
    fn change(&mut self, changes: Vec<((K, V), isize)>) {
        let mut gone = Vec::new();
        for ((key, row), diff) in changes {
            let Some(rows) = self.0.get_mut(&key) else {
                self.0.insert(key, vec![(row, diff)]);
                continue;
            };
            match rows.binary_search_by(|(known, _)| known.cmp(&row)) {
                Err(at) => rows.insert(at, (row, diff)),
                Ok(at) => {
                    rows[at].1 += diff;
                    if rows[at].1 == 0 {
                        gone.push(key);
                    }
                }
            }
        }
        for key in gone {
            if let Entry::Occupied(mut rows) = self.0.entry(key) {
                rows.get_mut().retain(|(_, times)| *times != 0);
                if rows.get().is_empty() {
                    rows.remove();
                }
            }
        }
    }

    /// Calls `give` with the event paired with each row of its key, or with `None` if there are none.
    fn answer<D: Record, D2>(
        &self,
        (key, event): KeyedEvent<K, D>,
        pair: impl Fn(D, Option<V>) -> Option<D2>,
        mut give: impl FnMut(Event<D2>),
    ) {
        let rows = self.0.get(&key).map(Vec::as_slice).unwrap_or_default();
        let Event { time, watermark, origin, data } = event;
        let mut answer = |data: D, row: Option<V>| {
            if let Some(data) = pair(data, row) {
                give(Event { time, watermark, origin, data });
            }
        };
        match rows {
            [(row, 1)] => answer(data, Some(row.clone())),
            rows if rows.iter().all(|(_, times)| *times <= 0) => answer(data, None),
            rows => rows.iter().for_each(|(row, times)| {
                (0..*times).for_each(|_| answer(data.clone(), Some(row.clone())));
            }),
        }
    }
}

/// Builds the operator that pairs each event with the rows of its key, or with `None`, as of the event's epoch.
fn look_up<'f, K: Record, D: Record, V: Record, D2: Record>(
    events: Keyed<'f, K, D>,
    table: Collection<'f, (K, V)>,
    pair: impl Fn(D, Option<V>) -> Option<D2> + 'static,
) -> Stream<'f, D2> {
    table.check_recoverable();
    let Keyed { stream, keys, .. } = events;
    stream.flow.check_exchangeable::<((K, D), V)>("stream that is joined with a table of", std::any::type_name::<V>());
    let Stream { events, marks, flow, pool } = stream;
    let keyed_events = keyed(events, keys, pool);
    let hasty = flow.has_fault(Fault::LookUpEarly);
    let mut builder = OperatorBuilder::new(String::from("Look up"), flow.scope);
    let mut keyed_events = builder.new_input(keyed_events, Exchange::new(|(key, _): &KeyedEvent<K, D>| route(key)));
    let mut table =
        builder.new_input(table.inner.inner, Exchange::new(|((key, _), ..): &LookupChange<K, V>| route(key)));
    // Changes alone cause no output: their epochs need no capability.
    let (answers, events) = builder.new_output_connection([(0, Antichain::from_elem(0))]);
    let mut answers = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(answers);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut turns = EpochBuffer::<PendingLookups<K, D, V>>::default();
        let mut visible = VisibleRows(HashMap::default());
        move |frontiers| {
            keyed_events.for_each(|capability, keyed_events| {
                let Some(&epoch) = capability.least() else { return };
                let turn = turns.at(epoch);
                turn.capability.get_or_insert_with(|| capability.delayed(&epoch, 0));
                turn.asking.append(keyed_events);
            });
            table.for_each(|_capability, changes| {
                for (row, epoch, diff) in changes.drain(..) {
                    turns.at(epoch).changes.push((row, diff));
                }
            });
            let (of_events, of_table) = frontiers.split_at(1);
            let is_next = |epoch: u64| {
                (hasty || epochs::is_complete(of_table, epoch)) && epochs::is_complete_before(of_events, epoch)
            };
            let mut answers = answers.activate();
            while let Some((_, PendingLookups { asking, capability, changes })) = turns.next_if(is_next) {
                visible.change(changes);
                let Some(capability) = capability else { continue };
                let mut session = answers.session(&capability);
                asking
                    .into_iter()
                    .for_each(|keyed_events| visible.answer(keyed_events, &pair, |event| session.give(event)));
            }
        }
    });
    Stream { events, marks, flow, pool: ContainerPool::default() }
}

/// Pairs events with their keys.
fn keyed<'f, K: Record, D: Record>(
    events: TimelyStream<'f, u64, Vec<Event<D>>>,
    keys_of: KeyExtractor<K, D>,
    pool: ContainerPool<Event<D>>,
) -> TimelyStream<'f, u64, Vec<KeyedEvent<K, D>>> {
    events.unary(Pipeline, "Key", move |_capability, _info| {
        let (mut keys, mut made) = (Vec::new(), Vec::new());
        move |input, output| {
            input.for_each(|capability, events| {
                keys_of(events, &mut keys);
                made.extend(keys.drain(..).zip(events.drain(..)));
                pool.give(std::mem::take(events));
                output.session(&capability).give_container(&mut made);
                made.clear();
            });
        }
    })
}
