//! The first operator of a step that groups by key and event time, on the worker that read the record: it judges whether a
//! record is late, finds where it belongs, takes what the step needs of it, and sends that to the worker of its key.
//!
//! * A [`Judge`] knows what *late* means for the step and where a record belongs: [`BySlot`] for windows that lie on the
//!   line of event time whatever the records are, [`ByTime`] for steps that the records' own times drive.
//! * What a record is judged by is the greater of its own partition's watermark just before it and the partition's floor.
//!   Records of a partition whose floor is not known yet wait here until their epoch is complete. Those that are late by the
//!   floor alone are counted apart.
//!
//! Invariant: a record that is on time never touches what has closed at the stream's watermark of the epoch before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, CapabilityTrait};

use crate::metrics::StepMetrics;
use crate::record::{Event, Origin, Record};
use crate::stream::slot::{Found, Slot, Windows};
use crate::stream::window::KeysOf;
use crate::stream::{Pool, Stream, Wanted, route};
use crate::time::watermark::PartitionId;
use crate::time::{EventTime, Span};

/// A record on its way to the worker of its key: key, where it belongs, what the step needs of it.
pub(crate) type Routed<K, T, P> = (K, T, P);
/// Records for a worker, and which: so that they cross threads as they are, many at a time.
pub(crate) type Parcel<K, T, P> = (u64, Vec<Routed<K, T, P>>);

/// What breaks ties of event time: source, partition, offset.
pub(crate) type At = (u16, u32, u64);

/// Says where records belong, and which are late.
pub(crate) trait Judge<D>: 'static {
    /// Where a record belongs.
    type Place: Record + Copy;

    /// Where this record belongs; `None` if it is late. `mark` is what it is judged by.
    fn place(&mut self, event: &Event<D>, mark: EventTime) -> Option<Self::Place>;
}

/// Finds the slot of a record. It is late when even the last window of the slot is over.
pub(crate) struct BySlot<T> {
    windows: Windows,
    lateness: Span,
    /// The slot that was found last, most often the same one.
    last: Found,
    slots: std::marker::PhantomData<T>,
}

impl<T> BySlot<T> {
    pub(crate) fn new(windows: Windows, lateness: Span) -> Self {
        BySlot { windows, lateness, last: Found::NOTHING, slots: std::marker::PhantomData }
    }
}

impl<D, T: Slot> Judge<D> for BySlot<T> {
    type Place = T;

    #[inline]
    fn place(&mut self, event: &Event<D>, mark: EventTime) -> Option<T> {
        if event.time < self.last.times.start || event.time >= self.last.times.end {
            self.last = self.windows.find(event.time);
        }
        let Found { first, last, .. } = self.last;
        let over = mark.minus(self.lateness);
        if last <= over {
            return None;
        }
        let first = if T::RANGES && first <= over { self.windows.end_after(over) } else { first };
        Some(T::new(first, last))
    }
}

/// When a record happened, and what breaks ties.
pub(crate) type Stamp = (EventTime, At);

/// Stamps records. One is late when its time is.
pub(crate) struct ByTime(pub(crate) Span);

impl<D> Judge<D> for ByTime {
    type Place = Stamp;

    #[inline]
    fn place(&mut self, event: &Event<D>, mark: EventTime) -> Option<Stamp> {
        (event.time >= mark.minus(self.0)).then(|| (event.time, event.origin.place()))
    }
}

/// What [`assign`] needs of a step.
pub(crate) struct Assign<K, D, P, J: Judge<D>> {
    pub(crate) keys: KeysOf<K, D>,
    pub(crate) judge: J,
    /// Appends what the step needs of a record.
    pub(crate) part: P,
    pub(crate) wants_late: Wanted,
    pub(crate) metrics: Arc<StepMetrics>,
    pub(crate) forget_floor: bool,
    /// Records at this epoch or before are in the snapshot that the job went on from.
    pub(crate) gate: Option<u64>,
    /// How many workers there are to send records to.
    pub(crate) peers: usize,
}

/// Records of an epoch whose partitions' floors are not known yet.
struct Held<D> {
    events: Vec<Event<D>>,
    records: Capability<u64>,
    late: Capability<u64>,
}

type ByPartition<V> = HashMap<PartitionId, V, foldhash::fast::FixedState>;

/// The floors of a stream's partitions, as far as they are known.
#[derive(Default)]
struct Floors {
    now: ByPartition<EventTime>,
    /// Those that come into force at a later epoch.
    coming: BTreeMap<u64, Vec<(PartitionId, EventTime)>>,
}

impl Floors {
    fn through(&mut self, epoch: u64) -> &ByPartition<EventTime> {
        while let Some(entry) = self.coming.first_entry().filter(|entry| *entry.key() <= epoch) {
            self.now.extend(entry.remove());
        }
        &self.now
    }
}

/// Records on their way to the worker of their key, and late ones.
pub(crate) type Assigned<'f, K, D, T, P> =
    (TimelyStream<'f, u64, Vec<Parcel<K, T, P>>>, TimelyStream<'f, u64, Vec<Event<D>>>);

/// Finds where each record belongs, and parts those that are on time from those that are late. `pool` is where containers
/// come back from: from this worker's second operator, whoever filled them.
pub(crate) fn assign<'f, K: Record, D: Record, P: Record, J: Judge<D>>(
    stream: Stream<'f, D>,
    name: &str,
    step: Assign<K, D, impl Fn(&Event<D>) -> P + 'static, J>,
    pool: Pool<Routed<K, J::Place, P>>,
) -> Assigned<'f, K, D, J::Place, P> {
    let mut builder = OperatorBuilder::new(format!("Assign: {name}"), stream.events.scope());
    let (board, worker) = (Arc::clone(&stream.flow.build.board), stream.events.scope().index());
    let number = board.number(name);
    let emptied = stream.pool;
    let mut events = builder.new_input(stream.events, Pipeline);
    let mut marks = builder.new_input(stream.marks.stream, Pipeline);
    let (records, record_stream) = builder.new_output();
    let (late, late_stream) = builder.new_output();
    let mut records = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(records);
    let mut late = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(late);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut floors = Floors::default();
        let mut held = BTreeMap::<u64, Held<D>>::new();
        let mut sorter = Sorter::new(step, pool);
        move |frontiers| {
            let _doing = board.enter(worker, number);
            marks.for_each(|capability, marks| {
                let Some(&epoch) = capability.least() else { return };
                let news = marks.drain(..).flat_map(|mark| mark.floors);
                floors.coming.entry(epoch).or_default().extend(news);
            });
            let (mut records, mut late) = (records.activate(), late.activate());
            events.for_each(|capability, events| {
                let Some(&epoch) = capability.least() else { return };
                if sorter.step.gate >= Some(epoch) {
                    events.clear();
                    return;
                }
                sorter.step.metrics.taken.add(events.len() as u64);
                let forget = sorter.step.forget_floor;
                sorter.sort(events, |origin| if origin.fresh && !forget { None } else { Some(EventTime::MIN) });
                emptied.give(std::mem::take(events));
                if !sorter.waiting.is_empty() {
                    let waiting = held.entry(epoch).or_insert_with(|| Held {
                        events: Vec::new(),
                        records: capability.delayed(&epoch, 0),
                        late: capability.delayed(&epoch, 1),
                    });
                    waiting.events.append(&mut sorter.waiting);
                }
                sorter.give(&mut records.session(&capability), &mut late.session(&capability));
            });
            let incomplete = |epoch: u64| frontiers.iter().any(|frontier| frontier.less_equal(&epoch));
            while let Some(entry) = held.first_entry().filter(|entry| !incomplete(*entry.key())) {
                let (epoch, mut waited) = entry.remove_entry();
                let known = floors.through(epoch);
                let floor = |origin: Origin| Some(known.get(&origin.partition_id()).copied().unwrap_or(EventTime::MIN));
                sorter.sort(&mut waited.events, floor);
                sorter.give(&mut records.session(&waited.records), &mut late.session(&waited.late));
            }
        }
    });
    (record_stream, late_stream)
}

/// How many events are sorted at a time: so few that they stay in the processor's nearest cache meanwhile.
const PIECE: usize = 128;

/// Sorts records into those that are on time, by the worker that has their key, and those that are late.
struct Sorter<K, D, F, P, J: Judge<D>> {
    step: Assign<K, D, F, J>,
    pool: Pool<Routed<K, J::Place, P>>,
    keys: Vec<K>,
    /// For each worker.
    on_time: Vec<Vec<Routed<K, J::Place, P>>>,
    parcels: Vec<Parcel<K, J::Place, P>>,
    late: Vec<Event<D>>,
    /// Those that cannot be judged yet.
    waiting: Vec<Event<D>>,
}

/// Where [`Sorter::give`] gives records.
type Session<'a, 'b, D, C> =
    timely::dataflow::operators::generic::Session<'a, 'b, u64, CapacityContainerBuilder<Vec<D>>, C>;

impl<K: Record, D: Record, P: Record, F: Fn(&Event<D>) -> P, J: Judge<D>> Sorter<K, D, F, P, J> {
    fn new(step: Assign<K, D, F, J>, pool: Pool<Routed<K, J::Place, P>>) -> Self {
        let on_time = (0..step.peers).map(|_| Vec::new()).collect();
        let (keys, parcels, late, waiting) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Sorter { step, pool, keys, on_time, parcels, late, waiting }
    }

    /// Judges records, each by its own partition's watermark before it and the partition's floor; `None` for a floor that
    /// is not known yet.
    fn sort(&mut self, events: &mut Vec<Event<D>>, floor: impl Fn(Origin) -> Option<EventTime>) {
        let expected = events.len() / self.step.peers + events.len() / 8;
        for on_time in &mut self.on_time {
            if on_time.capacity() == 0 {
                *on_time = self.pool.take();
                on_time.reserve(expected);
            }
        }
        match self.step.peers as u64 {
            1 => self.sort_by(events, floor, |_| 0),
            peers => self.sort_by(events, floor, |key| route::worker_of(key, peers) as usize),
        }
    }

    #[inline]
    fn sort_by(
        &mut self,
        events: &mut Vec<Event<D>>,
        floor: impl Fn(Origin) -> Option<EventTime>,
        worker_of: impl Fn(&K) -> usize,
    ) {
        let Assign { judge, keys, part, wants_late, .. } = &mut self.step;
        let (mut late, mut late_after_idle) = (0, 0);
        for piece in events.chunks(PIECE) {
            keys(piece, &mut self.keys);
            for (event, key) in piece.iter().zip(self.keys.drain(..)) {
                let Some(floor) = floor(event.origin) else {
                    self.waiting.push(event.clone());
                    continue;
                };
                if let Some(place) = judge.place(event, event.mark.max(floor)) {
                    self.on_time[worker_of(&key)].push((key, place, part(event)));
                } else {
                    late += 1;
                    let by_floor = event.mark < floor && judge.place(event, event.mark).is_some();
                    late_after_idle += u64::from(by_floor || event.origin.raised);
                    if wants_late.get() {
                        self.late.push(event.clone());
                    }
                }
            }
        }
        events.clear();
        if late > 0 {
            self.step.metrics.late.add(late);
            self.step.metrics.late_after_idle.add(late_after_idle);
        }
    }

    /// Sends what was sorted.
    fn give<C: CapabilityTrait<u64>>(
        &mut self,
        records: &mut Session<'_, '_, Parcel<K, J::Place, P>, C>,
        late: &mut Session<'_, '_, Event<D>, C>,
    ) {
        for (worker, on_time) in self.on_time.iter_mut().enumerate().filter(|(_, on_time)| !on_time.is_empty()) {
            self.parcels.push((worker as u64, std::mem::take(on_time)));
        }
        if !self.parcels.is_empty() {
            records.give_container(&mut self.parcels);
            self.parcels.clear();
        }
        if !self.late.is_empty() {
            late.give_container(&mut self.late);
            self.late.clear();
        }
    }
}
