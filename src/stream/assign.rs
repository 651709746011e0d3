//! The first operator of a step that groups by key and event time, on the worker that read the record: it decides
//! whether a record is late, finds its pane or position, extracts what the step needs, and sends that to the worker
//! of the key.
//!
//! * A [`RecordRouter`] defines *late* for the step, and the routing of records: [`PaneRouter`] for windows that are
//!   fixed on the line of event time, [`TimeRouter`] for steps that are driven by the records' own times.
//! * Lateness is decided by the greater of the watermark of the record's own partition just before it and the
//!   partition's activation watermark. Records of a partition whose activation watermark is unresolved wait here
//!   until their epoch is complete. Records that are late only by the activation watermark are counted separately.
//!
//! Invariant: a record that is on time never touches a window that has closed at the stream's watermark of the epoch
//! before.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, CapabilityTrait};

use crate::metrics::{KEPT, LateExample, StepMetrics};
use crate::record::{Event, Origin, Record};
use crate::stream::epochs::EpochBuffer;
use crate::stream::keyed_stream::KeyExtractor;
use crate::stream::panes::{LocatedPane, Pane, WindowAssigner};
use crate::stream::{ContainerPool, Stream, route};
use crate::time::watermark::PartitionId;
use crate::time::{EventTime, Span};

/// A flag that tells an operator that a result has a consumer; set while the flow is built, read while it runs.
pub(crate) type ConsumerFlag = Rc<Cell<bool>>;

/// A record in transit to the worker of its key: key, routing, and the part of the record that the step needs.
pub(crate) type RoutedRecord<K, T, P> = (K, T, P);
/// A batch of records for one worker, preceded by the worker's number. Batches cross threads as they are, without a
/// copy of each record.
pub(crate) type RecordBatch<K, T, P> = (u64, Vec<RoutedRecord<K, T, P>>);

/// The position of a record, which breaks ties of event time: source, partition, offset.
pub(crate) type SourcePosition = (u16, u32, u64);

/// Routes records, and decides which are late.
pub(crate) trait RecordRouter<D>: 'static {
    /// The pane or position that a record is routed to.
    type Routing: Record + Copy;

    /// Returns the routing of a record; `None` if the record is late. `mark` is the watermark that decides lateness.
    fn route_record(&mut self, event: &Event<D>, mark: EventTime) -> Option<Self::Routing>;
}

/// Routes records to panes. A record is late when even the last window of its pane has closed.
pub(crate) struct PaneRouter<T> {
    windows: WindowAssigner,
    lateness: Span,
    /// The pane that was found last; most records belong to it too.
    last: LocatedPane,
    slots: std::marker::PhantomData<T>,
}

impl<T> PaneRouter<T> {
    pub(crate) fn new(windows: WindowAssigner, lateness: Span) -> Self {
        PaneRouter { windows, lateness, last: LocatedPane::EMPTY, slots: std::marker::PhantomData }
    }
}

impl<D, T: Pane> RecordRouter<D> for PaneRouter<T> {
    type Routing = T;

    #[inline]
    fn route_record(&mut self, event: &Event<D>, mark: EventTime) -> Option<T> {
        if event.time < self.last.times.start || event.time >= self.last.times.end {
            self.last = self.windows.find(event.time);
        }
        let LocatedPane { first, last, .. } = self.last;
        let over = mark.minus(self.lateness);
        if last <= over {
            return None;
        }
        let first = if T::IN_SEVERAL_WINDOWS && first <= over { self.windows.end_after(over) } else { first };
        Some(T::new(first, last))
    }
}

/// The event time of a record, and its position, which breaks ties.
pub(crate) type EventStamp = (EventTime, SourcePosition);

/// Routes records by event time. A record is late when its time is below the watermark by more than the allowed
/// lateness.
pub(crate) struct TimeRouter(pub(crate) Span);

impl<D> RecordRouter<D> for TimeRouter {
    type Routing = EventStamp;

    #[inline]
    fn route_record(&mut self, event: &Event<D>, mark: EventTime) -> Option<EventStamp> {
        (event.time >= mark.minus(self.0)).then(|| (event.time, event.origin.tie_breaker()))
    }
}

/// The configuration of [`assign`] for a step.
pub(crate) struct AssignConfig<K, D, P, J: RecordRouter<D>> {
    pub(crate) keys: KeyExtractor<K, D>,
    pub(crate) router: J,
    /// Extracts the part of a record that the step needs.
    pub(crate) part: P,
    pub(crate) late_subscribed: ConsumerFlag,
    pub(crate) metrics: Arc<StepMetrics>,
    pub(crate) ignore_activation_watermark: bool,
    /// Records at or before this epoch are in the snapshot that the job resumed from; `None` without one.
    pub(crate) gate: Option<u64>,
    /// The watermark that the step had reached in the snapshot. Partitions that the state knows have passed it; those of a
    /// source that is new to it have not, and their records for windows that had closed are late.
    pub(crate) resumed: EventTime,
    /// The number of workers that records are sent to.
    pub(crate) peers: usize,
}

/// Records of an epoch whose partitions' activation watermarks are unresolved.
struct UnresolvedRecords<D> {
    events: Vec<Event<D>>,
    records: Capability<u64>,
    late: Capability<u64>,
}

type ByPartition<V> = HashMap<PartitionId, V, foldhash::fast::FixedState>;

/// The activation watermarks of a stream's partitions that are known so far.
#[derive(Default)]
struct ActivationWatermarks {
    now: ByPartition<EventTime>,
    /// Activation watermarks that take effect at a later epoch.
    coming: EpochBuffer<Vec<(PartitionId, EventTime)>>,
}

impl ActivationWatermarks {
    fn through(&mut self, epoch: u64) -> &ByPartition<EventTime> {
        while let Some((_, activation_watermarks)) = self.coming.next_if(|coming| coming <= epoch) {
            self.now.extend(activation_watermarks);
        }
        &self.now
    }
}

/// The activation watermarks that decide lateness while records are sorted. (A value and not a function: the loop over
/// records is compiled once.)
#[derive(Clone, Copy)]
enum Floors<'a> {
    /// No partition has one.
    None,
    /// Records whose partition has an unresolved one have to wait.
    Unresolved,
    /// All of them are known.
    Known(&'a ByPartition<EventTime>),
}

impl Floors<'_> {
    /// Returns the activation watermark of a record's partition; `None` while it is unresolved.
    #[inline]
    fn of(self, origin: Origin) -> Option<EventTime> {
        match self {
            Floors::None => Some(EventTime::MIN),
            Floors::Unresolved => (!origin.unresolved).then_some(EventTime::MIN),
            Floors::Known(known) => Some(known.get(&origin.partition_id()).copied().unwrap_or(EventTime::MIN)),
        }
    }
}

/// The streams of records for the workers of their keys, and of late records.
pub(crate) type AssignedStreams<'f, K, D, T, P> =
    (TimelyStream<'f, u64, Vec<RecordBatch<K, T, P>>>, TimelyStream<'f, u64, Vec<Event<D>>>);

/// Routes each record, and separates late records from those that are on time. `pool` returns the containers that
/// this worker's second operator has emptied, whichever worker filled them.
pub(crate) fn assign<'f, K: Record, D: Record, P: Record, J: RecordRouter<D>>(
    stream: Stream<'f, D>,
    name: &str,
    step: AssignConfig<K, D, impl Fn(&Event<D>) -> P + 'static, J>,
    pool: ContainerPool<RoutedRecord<K, J::Routing, P>>,
) -> AssignedStreams<'f, K, D, J::Routing, P> {
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
        let mut activation_watermarks = ActivationWatermarks::default();
        let mut held = EpochBuffer::<UnresolvedRecords<D>>::default();
        let mut sorter = Sorter::new(step, pool);
        move |frontiers| {
            let _doing = board.enter(worker, number);
            marks.for_each(|capability, marks| {
                let Some(&epoch) = capability.least() else { return };
                let news = marks.drain(..).flat_map(|mark| mark.activation_watermarks);
                activation_watermarks.coming.at(epoch).extend(news);
            });
            let (mut records, mut late) = (records.activate(), late.activate());
            events.for_each(|capability, events| {
                let Some(&epoch) = capability.least() else { return };
                if sorter.step.gate >= Some(epoch) {
                    events.clear();
                    return;
                }
                sorter.step.metrics.received.add(events.len() as u64);
                let floors = match sorter.step.ignore_activation_watermark {
                    true => Floors::None,
                    false => Floors::Unresolved,
                };
                sorter.sort(events, floors);
                emptied.give(std::mem::take(events));
                if !sorter.waiting.is_empty() {
                    let waiting = held.at_or_begin(epoch, || UnresolvedRecords {
                        events: Vec::new(),
                        records: capability.delayed(&epoch, 0),
                        late: capability.delayed(&epoch, 1),
                    });
                    waiting.events.append(&mut sorter.waiting);
                }
                sorter.give(&mut records.session(&capability), &mut late.session(&capability));
            });
            while let Some((epoch, mut waited)) = held.next_complete(frontiers) {
                sorter.sort(&mut waited.events, Floors::Known(activation_watermarks.through(epoch)));
                sorter.give(&mut records.session(&waited.records), &mut late.session(&waited.late));
            }
        }
    });
    (record_stream, late_stream)
}

/// Events that are sorted at a time: few enough to stay in the processor's L1 cache meanwhile.
const PIECE: usize = 128;

/// Sorts records into late ones and those that are on time, by the worker of their key.
struct Sorter<K, D, F, P, J: RecordRouter<D>> {
    step: AssignConfig<K, D, F, J>,
    pool: ContainerPool<RoutedRecord<K, J::Routing, P>>,
    keys: Vec<K>,
    /// Records that are on time, for each worker.
    on_time: Vec<Vec<RoutedRecord<K, J::Routing, P>>>,
    batches: Vec<RecordBatch<K, J::Routing, P>>,
    late: Vec<Event<D>>,
    /// Records whose lateness cannot be decided yet.
    waiting: Vec<Event<D>>,
    /// Some of the late records of the batch, for people: each is at the place of its number in the batch, modulo [`KEPT`].
    examples: [Option<LateExample>; KEPT],
}

/// The output session that [`Sorter::give`] writes to.
type OutputSession<'a, 'b, D, C> =
    timely::dataflow::operators::generic::Session<'a, 'b, u64, CapacityContainerBuilder<Vec<D>>, C>;

impl<K: Record, D: Record, P: Record, F: Fn(&Event<D>) -> P, J: RecordRouter<D>> Sorter<K, D, F, P, J> {
    fn new(step: AssignConfig<K, D, F, J>, pool: ContainerPool<RoutedRecord<K, J::Routing, P>>) -> Self {
        let on_time = (0..step.peers).map(|_| Vec::new()).collect();
        let (keys, batches, late, waiting) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Sorter { step, pool, keys, on_time, batches, late, waiting, examples: [None; KEPT] }
    }

    /// Routes records. Lateness is decided by the watermark of a record's own partition before it and by the partition's
    /// activation watermark.
    fn sort(&mut self, events: &mut Vec<Event<D>>, floors: Floors<'_>) {
        let expected = events.len() / self.step.peers + events.len() / 8;
        for on_time in &mut self.on_time {
            if on_time.capacity() == 0 {
                *on_time = self.pool.take();
                on_time.reserve(expected);
            }
        }
        match self.step.peers as u64 {
            1 => self.sort_by(events, floors, |_| 0),
            peers => self.sort_by(events, floors, |key| route::worker_of(key, peers) as usize),
        }
    }

    #[inline]
    fn sort_by(&mut self, events: &mut Vec<Event<D>>, floors: Floors<'_>, worker_of: impl Fn(&K) -> usize) {
        let AssignConfig { router, keys, part, late_subscribed, resumed, .. } = &mut self.step;
        let (mut late, mut late_after_idle) = (0u64, 0);
        for piece in events.chunks(PIECE) {
            keys(piece, &mut self.keys);
            for (event, key) in piece.iter().zip(self.keys.drain(..)) {
                let Some(floor) = floors.of(event.origin) else {
                    self.waiting.push(event.clone());
                    continue;
                };
                let floor = floor.max(*resumed);
                let watermark = event.watermark.max(floor);
                if let Some(place) = router.route_record(event, watermark) {
                    self.on_time[worker_of(&key)].push((key, place, part(event)));
                } else {
                    let Origin { source, partition, offset, .. } = event.origin;
                    let example = LateExample { source, partition, offset, time: event.time, watermark };
                    self.examples[late as usize % KEPT] = Some(example);
                    late += 1;
                    let by_floor = event.watermark < floor && router.route_record(event, event.watermark).is_some();
                    late_after_idle += u64::from(by_floor || event.origin.raised);
                    if late_subscribed.get() {
                        self.late.push(event.clone());
                    }
                }
            }
        }
        events.clear();
        if late > 0 {
            self.step.metrics.late.add(late);
            self.step.metrics.late_after_idle.add(late_after_idle);
            let oldest = late as usize % KEPT;
            let (newer, older) = self.examples.split_at_mut(oldest);
            self.step.metrics.recent_late.extend(older.iter_mut().chain(newer).filter_map(Option::take));
        }
    }

    /// Emits the sorted records.
    fn give<C: CapabilityTrait<u64>>(
        &mut self,
        records: &mut OutputSession<'_, '_, RecordBatch<K, J::Routing, P>, C>,
        late: &mut OutputSession<'_, '_, Event<D>, C>,
    ) {
        for (worker, on_time) in self.on_time.iter_mut().enumerate().filter(|(_, on_time)| !on_time.is_empty()) {
            self.batches.push((worker as u64, std::mem::take(on_time)));
        }
        if !self.batches.is_empty() {
            records.give_container(&mut self.batches);
            self.batches.clear();
        }
        if !self.late.is_empty() {
            late.give_container(&mut self.late);
            self.late.clear();
        }
    }
}
