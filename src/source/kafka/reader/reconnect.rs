//! Another client in the place of one that hears nothing any more: see `replacement`.
//!
//! Invariant: with another client each partition goes on at the first offset that was not taken, on the same topic.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::super::fetched_partition::FetchedPartition;
use super::super::identity::recreated;
use super::super::replacement::{ClientReplacement, LOST_AFTER, discard};
use super::super::statistics::{ConsumerEvents, TopicStatus};
use super::{KafkaReader, start_watch};
use crate::error::Result;
use crate::record::Record;
use crate::source::PartitionTracker;

impl<T: Record> KafkaReader<T> {
    /// Looks for another client if this one has been connected to no broker of its partitions for long, and goes on with
    /// it once it is found. A client whose queues are full is connected and hears nothing, and is not lost.
    ///
    /// # Errors
    /// Fails if the topic is another one, or if the client library fails.
    pub(super) fn replace_lost_client(&mut self, now: Instant, intake: &PartitionTracker<T>) -> Result<()> {
        let passed = |since: Instant| now.saturating_duration_since(since) >= LOST_AFTER;
        let mut read = self.partitions.iter().filter(|partition| partition.unread_handle(intake).is_some());
        let is_lost = passed(self.client_since)
            && read.clone().next().is_some()
            && read.clone().all(|partition| partition.lost_since.is_some_and(passed));
        if !is_lost {
            self.replacement = None;
            return Ok(());
        }
        let Some(replacement) = &self.replacement else {
            let Some(first) = read.next() else { return Ok(()) };
            let place = (&self.target, &*self.place.job);
            self.replacement = Some(ClientReplacement::start(place, self.limits, first.id)?);
            return Ok(());
        };
        match replacement.take() {
            Some(client) => self.go_on_with(client, now, intake),
            None => Ok(()),
        }
    }

    /// Reads with another client from where this one has come to.
    fn go_on_with(
        &mut self,
        client: Arc<BaseConsumer<ConsumerEvents>>,
        now: Instant,
        intake: &PartitionTracker<T>,
    ) -> Result<()> {
        self.replacement = None;
        if let (Some(before), Some(after)) = (&self.id, client.context().id())
            && *before != after
        {
            return Err(recreated(&self.target));
        }
        tracing::info!("{} is read by another client: the brokers answer it", self.target.describe());
        let (mut assigned, mut queues) = (Vec::new(), Vec::new());
        for partition in &mut self.partitions {
            let queue = FetchedPartition::open_queue(&client, &self.target, partition.id)?;
            queues.push(std::mem::replace(&mut partition.queue, queue));
            (partition.at_end, partition.silent_since, partition.lost_since) = (false, None, None);
            partition.reset_idleness();
            let Some(handle) = partition.unread_handle(intake) else { continue };
            let held = partition.held.as_ref().map_or(0, |held| held.offset + 1);
            assigned.push((partition.id, intake.next(handle).max(held)));
        }
        let known = self.partitions.iter().map(|partition| partition.id).collect();
        let watch = start_watch(&client, &self.target, &self.numbers, &self.place, known)?;
        let former = (std::mem::replace(&mut self.watch, watch), std::mem::replace(&mut self.consumer, client), queues);
        discard(former);
        self.confirmation.asked = None;
        (self.status, self.client_since) = (TopicStatus::default(), now);
        self.assign(&assigned)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use rdkafka::config::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::super::super::message::Message;
    use super::super::super::partition_numbers::PartitionNumbers;
    use super::super::super::positions::ReadOptions;
    use super::super::super::{EmbeddedBroker, Source, text};
    use super::*;
    use crate::metrics::SourceMetrics;
    use crate::record::Event;
    use crate::source::{Options, Reader, WatermarkView, WorkerContext};
    use crate::time::Epoch;

    const TOPIC: &str = "t";
    const PARTITIONS: u32 = 3;
    const EPOCH: Epoch = Epoch(1);

    /// A reader of a topic that takes a few records at a time, and what it has taken of each partition.
    struct SteppedReader {
        reader: KafkaReader<String>,
        intake: PartitionTracker<String>,
        taken: Vec<Vec<(u64, String)>>,
        /// Time since which the client counts as lost, whenever it is judged.
        judged_at: Instant,
    }

    impl SteppedReader {
        fn open(broker: &EmbeddedBroker) -> Self {
            let source: Source<String> = Source::new(broker.servers(), TOPIC, text()).event_time_of_message();
            let place = WorkerContext {
                worker: 0,
                workers: 1,
                threads: 1,
                job: String::from("test"),
                options: Options::default(),
                known_partitions: Arc::default(),
            };
            let (view, metrics) = (Rc::new(WatermarkView::default()), Arc::new(SourceMetrics::default()));
            let intake = crate::source::track(&source, ("s", 0), &place.options, view, metrics);
            let numbers = (PartitionNumbers::Following(0), 1);
            let (mapping, options) = (Arc::clone(&source.mapping), ReadOptions::default());
            let reader = KafkaReader::open(&source.topic_config, mapping, options, numbers, &place).unwrap();
            let taken = vec![Vec::new(); PARTITIONS as usize];
            SteppedReader { reader, intake, taken, judged_at: Instant::now() }
        }

        fn read_some(&mut self, budget: usize) {
            self.reader.poll(EPOCH, budget, &mut self.intake).unwrap();
            let (_bytes, events, rejects) = self.intake.finish_poll();
            assert!(rejects.is_empty());
            for Event { origin, data, .. } in events.drain(..) {
                self.taken[origin.partition as usize].push((origin.offset, data));
            }
        }

        /// Reads until `total` records are taken.
        fn read_until(&mut self, total: usize, budget: usize) {
            let begun = Instant::now();
            while self.taken.iter().map(Vec::len).sum::<usize>() < total {
                assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", self.taken);
                self.read_some(budget);
            }
        }

        /// Takes a record of a partition from its client before its epoch, as a replay does.
        fn hold_one(&mut self, at: usize) {
            let begun = Instant::now();
            let partition = &mut self.reader.partitions[at];
            while partition.held.is_none() && begun.elapsed() < Duration::from_secs(30) {
                if let Some(Ok(message)) = partition.queue.poll(Duration::from_millis(10)) {
                    partition.held = Some(Message::fetched(TOPIC, partition.id, &message).to_record());
                }
            }
            assert!(partition.held.is_some());
        }

        /// Judges the client as if it had been connected to none of its brokers for long; returns `true` once another one
        /// is used.
        fn judge_lost(&mut self) -> Result<bool> {
            let before = Arc::clone(&self.reader.consumer);
            for partition in &mut self.reader.partitions {
                partition.lost_since = Some(self.judged_at);
            }
            let later = self.judged_at + LOST_AFTER;
            self.reader.client_since = self.judged_at;
            self.reader.replace_lost_client(later, &self.intake)?;
            Ok(!Arc::ptr_eq(&before, &self.reader.consumer))
        }

        /// Loses the client, and waits for another one.
        fn change_client(&mut self) -> Result<()> {
            let begun = Instant::now();
            while !self.judge_lost()? {
                assert!(begun.elapsed() < Duration::from_secs(60), "no client was found");
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }
    }

    /// Writes `count` records to each partition: their offsets.
    fn fill(broker: &EmbeddedBroker, count: u64) {
        broker.create_topic(TOPIC, PARTITIONS).unwrap();
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker.servers()).create().unwrap();
        for partition in 0..PARTITIONS as i32 {
            for offset in 0..count {
                let value = offset.to_string();
                producer.send(BaseRecord::<(), str>::to(TOPIC).partition(partition).payload(&value)).unwrap();
            }
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn whenever_a_client_is_replaced_each_record_is_taken_once_and_in_order() {
        const COUNT: u64 = 400;
        let broker = EmbeddedBroker::start().unwrap();
        fill(&broker, COUNT);
        let total = COUNT as usize * PARTITIONS as usize;
        // Before the first record, with many in the queues of the client, with a record held, at the end of all.
        for (seed, stops) in [[0, 1, 7], [100, 500, 900], [total - 1, total, total]].into_iter().enumerate() {
            let mut run = SteppedReader::open(&broker);
            run.read_some(0);
            for (number, stop) in stops.into_iter().enumerate() {
                run.read_until(stop, 1 + number * 6);
                let at = (seed + number) % PARTITIONS as usize;
                if run.taken[at].len() < COUNT as usize && number > 0 {
                    run.hold_one(at);
                }
                run.change_client().unwrap();
            }
            run.read_until(total, 50);
            run.read_some(50);
            let expected: Vec<_> = (0..COUNT).map(|offset| (offset, offset.to_string())).collect();
            for taken in run.taken {
                assert_eq!(taken, expected, "clients replaced after {stops:?} records");
            }
        }
    }

    #[test]
    fn a_client_is_replaced_only_if_all_that_is_still_read_is_lost_and_another_one_is_answered() {
        let broker = EmbeddedBroker::start().unwrap();
        fill(&broker, 2);
        let mut run = SteppedReader::open(&broker);
        // Nothing is read yet.
        assert!(!run.judge_lost().unwrap() && run.reader.replacement.is_none());
        run.read_until(2 * PARTITIONS as usize, 1);
        assert!(!run.judge_lost().unwrap() && run.reader.replacement.is_some());
        // A connection of one partition is enough to end the search.
        run.reader.partitions[1].lost_since = None;
        run.reader.replace_lost_client(run.judged_at + LOST_AFTER, &run.intake).unwrap();
        assert!(run.reader.replacement.is_none());
        // So is one that was connected a moment ago, and a client that is new.
        for partition in &mut run.reader.partitions {
            partition.lost_since = Some(run.judged_at);
        }
        let early = run.judged_at + LOST_AFTER - Duration::from_millis(1);
        run.reader.replace_lost_client(early, &run.intake).unwrap();
        assert!(run.reader.replacement.is_none());
        run.reader.client_since = run.judged_at + Duration::from_millis(1);
        run.reader.replace_lost_client(run.judged_at + LOST_AFTER, &run.intake).unwrap();
        assert!(run.reader.replacement.is_none());
        // No client is answered while no broker is there.
        broker.set_reachable(false).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            assert!(!run.judge_lost().unwrap() && run.reader.replacement.is_some());
            std::thread::sleep(Duration::from_millis(20));
        }
        broker.set_reachable(true).unwrap();
        run.change_client().unwrap();
        assert!(run.reader.replacement.is_none());
    }

    #[test]
    fn another_client_does_not_go_on_with_another_topic_of_the_same_name() {
        let broker = EmbeddedBroker::start().unwrap();
        fill(&broker, 1);
        let mut run = SteppedReader::open(&broker);
        run.read_until(PARTITIONS as usize, 5);
        run.reader.id = Some(String::from("the id of the topic that was read"));
        let error = run.change_client().unwrap_err().to_string();
        assert!(error.contains("was deleted and created again"), "{error}");
    }
}
