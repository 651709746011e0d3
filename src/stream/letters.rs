//! Dead letters of records that a step cannot use, such as late ones: the messages that they were read as.
//!
//! The messages of records in flight are kept by the workers that read them, in their [`MessageStore`]s. A record is sent
//! to the worker that owns its partition, and there, when its epoch is complete, its message is looked up by its origin.
//! Replayed epochs have the same messages, so they give the same letters.
//!
//! A row that steps have made, or a record of a file, was never a message. Its letter has the row as JSON instead.
//!
//! Invariants: of each message there is one letter an epoch, whatever number of records was made of it. A message is
//! looked up before its epoch is released.

use std::rc::Rc;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;

use super::container_pool::ContainerPool;
use super::epochs::EpochBuffer;
use super::events::Stream;
use crate::error::Error;
use crate::record::{Event, Record};
use crate::source::kafka::read_message;
use crate::source::{DeadLetter, MessageStore, Rejected};
use crate::thread::JobFailure;

/// A record in transit to the worker that has its message, with its JSON if it has any.
type UnusedRecord = (u64, Event<Option<String>>);

impl<'f, D: Record> Stream<'f, D> {
    /// Returns the messages of topics that these records were read as, with the reason for which the step named `step`
    /// cannot use them: for a topic from which `tidegate redrive` sends them back (`kafka::Sink::dead_letters`). The
    /// reason is followed by the record's event time and by the watermark that it met.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Order { account: String, at_ms: i64 }
    /// use std::time::Duration;
    /// use tidegate::{Job, Window, kafka};
    ///
    /// let orders = kafka::Source::json("localhost:9092", "orders").event_time(|order: &Order| order.at_ms);
    /// let letters = kafka::Sink::dead_letters("localhost:9092", "orders-late").create(4);
    /// Job::new("orders").state("state/").run(move |flow| {
    ///     let minutes = flow
    ///         .read("orders", &orders)
    ///         .key_by(|order| order.account.clone())
    ///         .window(Window::tumbling(Duration::from_secs(60)))
    ///         .aggregate("minutes", |each| each.count());
    ///     minutes.late().dead_letters("minutes", "late").write("late", &letters);
    ///     // …
    /// })?;
    /// # Ok::<(), tidegate::Error>(())
    /// ```
    ///
    /// A message of which several records were made is one letter an epoch. A record that was not read from a topic, or
    /// a row that a step has made, becomes a letter that names no topic, with its JSON as the value.
    ///
    /// A flow in which this is called keeps the messages of all records of topics until their epochs are complete,
    /// which counts as memory in flight ([`Job::in_flight`](crate::Job::in_flight)).
    pub fn dead_letters(self, step: &str, reason: &str) -> Stream<'f, DeadLetter> {
        let Stream { events, marks, flow, pool } = self;
        let store = Rc::clone(&flow.build.messages);
        let (reader, place) = (store.add_reader(), flow.build.place.clone());
        let unused = events.unary(Pipeline, "Unused records", move |_capability, _info| {
            let mut unused: Vec<UnusedRecord> = Vec::new();
            move |input, output| {
                input.for_each(|capability, events| {
                    unused.extend(events.drain(..).map(|event| {
                        let owner = place.owner(event.origin.partition) as u64;
                        (owner, event.with(|data| serde_json::to_string(&data).ok()))
                    }));
                    pool.give(std::mem::take(events));
                    output.session(&capability).give_container(&mut unused);
                    unused.clear();
                });
            }
        });
        let maker = LetterMaker { step: step.to_owned(), reason: reason.to_owned(), store, reader };
        let events = look_up_messages(unused, maker, Arc::clone(&flow.build.failure));
        Stream { events, marks, flow, pool: ContainerPool::default() }
    }
}

/// Sends records to the workers that own their partitions, and makes letters of them there.
fn look_up_messages<'f>(
    unused: TimelyStream<'f, u64, Vec<UnusedRecord>>,
    maker: LetterMaker,
    failure: Arc<JobFailure>,
) -> TimelyStream<'f, u64, Vec<Event<DeadLetter>>> {
    let mut builder = OperatorBuilder::new(format!("Dead letters: {}", maker.step), unused.scope());
    let mut unused = builder.new_input(unused, Exchange::new(|(owner, _): &UnusedRecord| *owner));
    let (output, letters) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut waiting = EpochBuffer::<(Capability<u64>, Vec<Event<Option<String>>>)>::default();
        // Holds the frontier at the epoch that failed, so that it is not written without a letter.
        let mut failed = None;
        move |frontiers| {
            unused.for_each(|capability, records| {
                let Some(&epoch) = capability.least() else { return };
                waiting.held_at(epoch, &capability).extend(records.drain(..).map(|(_, record)| record));
            });
            let mut output = output.activate();
            while let Some((epoch, (capability, records))) = waiting.next_complete(frontiers) {
                match maker.letters(epoch, records) {
                    Ok(letters) => output.session(&capability).give_iterator(letters.into_iter()),
                    Err(error) => {
                        failure.set(error);
                        failed.get_or_insert(capability);
                    }
                }
            }
            maker.store.release(maker.reader, frontiers[0].frontier().first().copied());
        }
    });
    letters
}

/// Makes letters of the records that a step cannot use.
struct LetterMaker {
    step: String,
    reason: String,
    store: Rc<MessageStore>,
    /// Number of this reader of the store.
    reader: usize,
}

impl LetterMaker {
    /// Returns the letters of an epoch's records whose partitions this worker owns, in any order.
    ///
    /// # Errors
    /// Fails if a record was never a message, and cannot be written as JSON either.
    fn letters(&self, epoch: u64, mut records: Vec<Event<Option<String>>>) -> Result<Vec<Event<DeadLetter>>, Error> {
        // Whichever of a message's records arrive first, the letter is the same.
        records.sort_unstable_by(|a, b| {
            let order = |of: &Event<_>| (of.origin.tie_breaker(), of.time, of.watermark);
            order(a).cmp(&order(b)).then_with(|| a.data.cmp(&b.data))
        });
        let (mut letters, mut last) = (Vec::with_capacity(records.len()), None);
        for record in records {
            let Event { time, watermark, origin, .. } = record;
            let reason = format!("{} (event time {time}, watermark {watermark})", self.reason);
            let message = self.store.find(epoch, (origin, time), |bytes| {
                let parts = read_message(bytes)?;
                Some(DeadLetter::of(&parts.message(), &self.step, &reason))
            });
            let is_repeated = message.is_some() && last.replace(origin.tie_breaker()) == Some(origin.tie_breaker());
            if is_repeated {
                continue;
            }
            let letter = match (message.flatten(), record.data) {
                (Some(letter), _) => letter,
                (None, Some(json)) => {
                    let place = ("", origin.partition, origin.offset);
                    DeadLetter { rejected: Rejected::new(&self.step, place, &reason, json.as_bytes()), message: None }
                }
                (None, None) => {
                    let error = Error::new("a record cannot be a dead letter").at_step(&self.step);
                    let why = "it was read from no topic, and cannot be written as JSON";
                    return Err(error.because(why).help("map such records to types whose keys are texts before"));
                }
            };
            letters.push(Event { time, watermark, origin, data: letter });
        }
        Ok(letters)
    }
}

#[cfg(test)]
mod tests {
    use timely::dataflow::operators::{Capture, Input, Probe};

    use super::*;
    use crate::durable::journal::JournaledRecord;
    use crate::record::Origin;
    use crate::source::kafka::{Message, write_message};
    use crate::time::{Epoch, EventTime};

    fn record(offset: u64, json: Option<&str>) -> Event<Option<String>> {
        let (time, watermark) = (EventTime::from_millis(offset as i64), EventTime::from_millis(9));
        let origin = Origin { partition: 3, offset, ..Origin::default() };
        Event { time, watermark, origin, data: json.map(str::to_owned) }
    }

    fn store_message(store: &MessageStore, epoch: u64, offset: u64) {
        let payload = Some(format!("value {offset}").into_bytes());
        let kept = JournaledRecord { offset, payload, ..JournaledRecord::default() };
        store
            .add(Epoch(epoch), &record(offset, None), |bytes| write_message(&Message::of_record("t", 3, &kept), bytes));
    }

    /// A message is there until its epoch is complete, and no longer: memory is bounded by what is in flight.
    #[test]
    fn messages_are_dropped_when_their_epochs_are_complete() {
        let failure = Arc::<JobFailure>::default();
        let found = Arc::clone(&failure);
        let letters = timely::execute_directly(move |worker| {
            let store = Rc::<MessageStore>::default();
            let (mut input, letters, probe) = worker.dataflow::<u64, _, _>(|scope| {
                let (input, unused) = scope.new_input::<Vec<UnusedRecord>>();
                let (store, reader) = (Rc::clone(&store), store.add_reader());
                let maker = LetterMaker { step: "step".to_owned(), reason: "late".to_owned(), store, reader };
                let letters = look_up_messages(unused, maker, found);
                (input, letters.clone().capture(), letters.probe().0)
            });
            let is_stored = |epoch, offset| {
                let record = record(offset, None);
                store.find(epoch, (record.origin, record.time), |_| ()).is_some()
            };
            for epoch in [2, 4, 6] {
                input.advance_to(epoch);
                (0..3).for_each(|n| store_message(&store, epoch, 10 * epoch + n));
                // Of one message two records, and a row that was never a message.
                for record in [record(10 * epoch, None), record(10 * epoch, Some("7")), record(1, Some("{}"))] {
                    input.send((0, record));
                }
                input.flush();
                (0..10).for_each(|_| {
                    worker.step();
                });
                assert!(is_stored(epoch, 10 * epoch) && is_stored(epoch, 10 * epoch + 2), "the epoch is not complete");
                assert!(epoch == 2 || !is_stored(epoch - 2, 10 * (epoch - 2)), "the epoch before is");
            }
            drop(input);
            while !probe.done() {
                worker.step();
            }
            assert!(!is_stored(6, 60));
            letters
        });
        let letters: Vec<_> = letters.try_iter().collect();
        let letters = letters.into_iter().filter_map(|message| match message {
            timely::dataflow::operators::capture::Event::Messages(stamp, letters) => Some((*stamp.least()?, letters)),
            timely::dataflow::operators::capture::Event::Progress(_) => None,
        });
        let told = letters.flat_map(|(epoch, letters)| {
            letters.into_iter().map(move |Event { data: DeadLetter { rejected, message }, .. }| {
                (epoch, message.map(|message| message.topic), rejected.offset, rejected.record)
            })
        });
        let mut told: Vec<_> = told.collect();
        told.sort();
        let topic = || Some("t".to_owned());
        let expected = [2, 4, 6].map(|epoch| {
            [(epoch, None, 1, "{}".to_owned()), (epoch, topic(), 10 * epoch, format!("value {}", 10 * epoch))]
        });
        assert_eq!(told, expected.concat());
        assert!(failure.get().is_none());
    }

    #[test]
    fn a_row_that_is_neither_a_message_nor_json_fails_by_the_name_of_the_step() {
        let store = Rc::<MessageStore>::default();
        let maker = LetterMaker { step: "totals".to_owned(), reason: "late".to_owned(), store, reader: 0 };
        let error = maker.letters(2, vec![record(1, None)]).unwrap_err().to_string();
        assert!(error.contains("step `totals`") && error.contains("cannot be written as JSON"), "{error}");
        let letters = maker.letters(2, vec![record(1, Some("1"))]).unwrap();
        assert!(letters[0].data.rejected.reason.starts_with("late (event time 1970-01-01T00:00:00.001Z, watermark "));
    }
}
