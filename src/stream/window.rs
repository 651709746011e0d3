//! Windows: which records belong together, which are late, and when results are final.
//!
//! * A **window** is an interval [start, end) of event time. It **closes** when the stream's watermark is at least
//!   end + L, where L is the allowed lateness (at present zero).
//! * A record is **late** for a window if end + L ≤ max(its own partition's watermark just before it, the partition's
//!   floor). So whether a record is late depends on the data alone: not on epochs, workers, or other partitions' speed.
//! * A [`Closed`] row is a window's final result for a key, emitted once.
//! * An [`Open`] row is what a window holds for a key now; as a collection, it is taken back when it changes or closes.
//!
//! A windowed step is two operators. The first, on the worker that read the record, finds the window, judges lateness
//! and takes what the aggregate needs ([`assign`]). The second, on the worker of the key, aggregates ([`super::arrange`]).
//! Records of a partition whose floor is not known yet wait in the first until their epoch is complete.
//!
//! Promise kept here: **output is a function of the data: any workers, any epochs.** And with it: per step,
//! in = counted + late, where `in` and `late` are counted in the first operator and `counted` from the rows of the second.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use differential_dataflow::AsCollection;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream as TimelyStream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Capability, CapabilityTrait, Probe};

use crate::durable::codec::{Codec, Postcard};
use crate::error::{Error, Result};
use crate::metrics::StepMetrics;
use crate::record::{Event, Origin, Record};
use crate::stream::aggregate::{Aggregate, Each};
use crate::stream::arrange::{self, Parcel, Routed, Row, Saved, Step};
use crate::stream::cut::{self, CodecCell, Durable};
use crate::stream::{Collection, Fault, Flow, Pool, Stream, Wanted};
use crate::time::watermark::{Mark, PartitionId};
use crate::time::{EventTime, Span};

/// An interval [start, end) of event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// The first moment in it.
    pub start: EventTime,
    /// The first moment after it.
    pub end: EventTime,
}

impl Interval {
    /// An interval that no time is in.
    const NOTHING: Interval = Interval { start: EventTime::MAX, end: EventTime::MIN };
}

/// The final result of a window for a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Closed<K, V> {
    /// The window.
    pub window: Interval,
    /// The key.
    pub key: K,
    /// What the aggregate shows of the window's records with that key.
    pub value: V,
}

/// What a window holds for a key so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Open<K, V> {
    /// The window.
    pub window: Interval,
    /// The key.
    pub key: K,
    /// What the aggregate shows of the window's records with that key, so far.
    pub value: V,
}

/// Which records belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tumbling { size: Duration, offset: Duration },
    Global,
}

impl Window {
    /// Windows of one size, side by side. They are aligned to 1970-01-01T00:00:00Z; [`Window::offset`] shifts them. The
    /// size is a whole number of milliseconds, at least one.
    pub const fn tumbling(size: Duration) -> Self {
        Window { kind: Kind::Tumbling { size, offset: Duration::ZERO } }
    }

    /// One window for all time. It never closes: when its stream is over, which for most streams is never, `on_close`
    /// shows its rows, and the live rows of `on_change` stay as they are.
    pub const fn global() -> Self {
        Window { kind: Kind::Global }
    }

    /// Windows that begin so much later; a whole number of milliseconds.
    #[must_use]
    pub const fn offset(self, offset: Duration) -> Self {
        match self.kind {
            Kind::Tumbling { size, .. } => Window { kind: Kind::Tumbling { size, offset } },
            Kind::Global => self,
        }
    }

    fn assigner(self) -> Result<Assigner> {
        let whole = |what: &str, duration: Duration| {
            let millis =
                i64::try_from(duration.as_millis()).ok().filter(|_| duration.subsec_nanos().is_multiple_of(1_000_000));
            millis.ok_or_else(|| {
                let written = humantime::format_duration(duration);
                Error::usage(format!("a window's {what} of {written} is not a whole number of milliseconds"))
            })
        };
        match self.kind {
            Kind::Global => Ok(Assigner { size: i64::MAX, offset: 0 }),
            Kind::Tumbling { size, offset } => match (whole("size", size)?, whole("offset", offset)?) {
                (0, _) => Err(Error::usage("a window's size is zero").help("make it at least a millisecond")),
                (size, offset) => Ok(Assigner { size, offset: offset % size }),
            },
        }
    }
}

/// Finds windows. A size of `i64::MAX` stands for all time.
#[derive(Clone, Copy, Debug)]
struct Assigner {
    size: i64,
    offset: i64,
}

impl Assigner {
    /// The window that `time` is in.
    fn find(self, time: EventTime) -> Interval {
        if self.size == i64::MAX {
            return self.interval(EventTime::MAX);
        }
        let into = time.millis().saturating_sub(self.offset).rem_euclid(self.size);
        self.interval(EventTime::from_millis(time.millis().saturating_add(self.size - into)))
    }

    /// The end of the window that `time` is in; `last` is the window that was found last, most often the same one.
    #[inline]
    fn end(self, time: EventTime, last: &mut Interval) -> EventTime {
        if time < last.start || time >= last.end {
            *last = self.find(time);
        }
        last.end
    }

    /// The window that ends there.
    fn interval(self, end: EventTime) -> Interval {
        let start = if self.size == i64::MAX { EventTime::MIN } else { end.minus(Span::from_length(self.size)) };
        Interval { start, end }
    }
}

/// Appends the keys of some events; of many at a time, as calling a function that is not known costs more than most
/// keys.
pub(super) type KeysOf<K, D> = Rc<dyn Fn(&[Event<D>], &mut Vec<K>)>;

/// A stream grouped by a key.
pub struct Keyed<'f, K, D> {
    pub(super) stream: Stream<'f, D>,
    pub(super) keys: KeysOf<K, D>,
}

impl<K, D> fmt::Debug for Keyed<'_, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyed<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<D>())
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    pub(crate) fn new(stream: Stream<'f, D>, key: impl Fn(&D) -> K + 'static) -> Self {
        let keys: KeysOf<K, D> = Rc::new(move |events, keys| keys.extend(events.iter().map(|event| key(&event.data))));
        Keyed { stream, keys }
    }

    /// Cuts each key's records into windows.
    pub fn window(self, window: Window) -> Windowed<'f, K, D> {
        Windowed { keyed: self, window }
    }
}

/// A stream grouped by a key and cut into windows.
pub struct Windowed<'f, K, D> {
    keyed: Keyed<'f, K, D>,
    window: Window,
}

impl<K, D> fmt::Debug for Windowed<'_, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Windowed<{}, {}> {:?}", std::any::type_name::<K>(), std::any::type_name::<D>(), self.window)
    }
}

impl<'f, K: Record, D: Record> Windowed<'f, K, D> {
    /// Aggregates each window's records with a key. The step's name is unique in the query: state and metrics are found
    /// by it. The closure names the aggregates, and tuples of them are one:
    /// `|each| (each.count(), each.sum(|t| t.amount_cents))`. All that there are is in [`Each`].
    pub fn aggregate<A: Aggregate<D>>(self, name: &str, build: impl FnOnce(Each<D>) -> A) -> Aggregated<'f, K, D, A> {
        let Windowed { keyed: Keyed { stream, keys }, window } = self;
        let flow = stream.flow.clone();
        let types = (std::any::type_name::<K>(), std::any::type_name::<A::Sum>());
        let fingerprint = Codec::<Saved<K, A::Sum>>::fingerprint(&Postcard);
        flow.build.step("window", name, format!("{window:?}: {} -> {}", types.0, types.1), fingerprint);
        cut::check_rows::<Saved<K, A::Sum>>(&flow, name);
        let assigner = window.assigner().unwrap_or_else(|error| {
            flow.build.failure.set(error.at(format!("step `{name}`")));
            Assigner { size: 1, offset: 0 }
        });
        let aggregate = Rc::new(build(Each::new()));
        if let Err(error) = aggregate.check() {
            flow.build.failure.set(error.at(format!("step `{name}`")));
        }
        let metrics = flow.build.metrics.step(name);
        let pool = Pool::default();
        let wants_late = Wanted::default();
        let live = Wanted::default();
        let codec = cut::postcard::<Saved<K, A::Sum>>();
        let assign = Assign {
            assigner,
            keys,
            aggregate: Rc::clone(&aggregate),
            wants_late: Rc::clone(&wants_late),
            metrics: Arc::clone(&metrics),
            forget_floor: flow.fault(Fault::ForgetFloor),
            gate: flow.build.durable.as_ref().and_then(Durable::gate).filter(|_| !flow.fault(Fault::OpenGate)),
            peers: flow.scope.peers(),
            pool: pool.clone(),
        };
        let marks = stream.marks.clone();
        let (records, late) = assign_windows(stream, name, assign);
        let step = Step {
            codec: Rc::clone(&codec),
            name: name.to_owned(),
            aggregate,
            live: Rc::clone(&live),
            seals: flow.build.seals.clone(),
            failure: Arc::clone(&flow.build.failure),
            metrics,
            fault: flow.build.fault,
            pool,
        };
        let (closed, changed) = arrange::windowed::<K, D, A>(&flow, records, marks.clone(), step);
        // Reading waits for this step too: it may be all there is to wait for.
        let closed = closed.probe_with(&flow.build.probe);
        Aggregated { closed, changed, late, marks, flow, assigner, live, wants_late, codec }
    }
}

/// A step's closed rows.
type Rows<'f, K, V> = TimelyStream<'f, u64, Vec<(Row<K>, V)>>;
/// A step's live rows, as changes.
type Changed<K, V> = ((Row<K>, V), u64, isize);

/// The results of a windowed aggregate, in whichever form they are wanted.
pub struct Aggregated<'f, K: Record, D, A: Aggregate<D>> {
    closed: Rows<'f, K, A::Value>,
    changed: TimelyStream<'f, u64, Vec<Changed<K, A::Value>>>,
    late: TimelyStream<'f, u64, Vec<Event<D>>>,
    marks: TimelyStream<'f, u64, Vec<Mark>>,
    flow: Flow<'f>,
    assigner: Assigner,
    live: Wanted,
    wants_late: Wanted,
    #[cfg_attr(not(feature = "abomonation"), expect(dead_code, reason = "there is only one codec"))]
    codec: CodecCell<Saved<K, A::Sum>>,
}

impl<K: Record, D, A: Aggregate<D>> fmt::Debug for Aggregated<'_, K, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aggregated<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<A::Value>())
    }
}

impl<'f, K: Record, D: Record, A: Aggregate<D>> Aggregated<'f, K, D, A> {
    /// The final results, once each, when their window closes. As events they happened in the window's last millisecond,
    /// and are never late downstream: windows can be chained.
    pub fn on_close(&self) -> Stream<'f, Closed<K, A::Value>> {
        let assigner = self.assigner;
        let events = self.closed.clone().unary(Pipeline, "OnClose", move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, rows| {
                    made.extend(rows.drain(..).map(|((end, key), value)| {
                        // The end of all time is moved too: no window ends after it, and the row is not to be late.
                        let time = EventTime::from_millis(end.millis().saturating_sub(1));
                        let data = Closed { window: assigner.interval(end), key, value };
                        Event { time, mark: time, origin: Origin::default(), data }
                    }));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        let marks = without_floors(self.marks.clone());
        Stream { events, marks, flow: self.flow.clone(), pool: Pool::default() }
    }

    /// The live rows of open windows: a row is there from its first record on, is replaced when it changes, and is taken
    /// back when its window closes.
    pub fn on_change(&self) -> Collection<'f, Open<K, A::Value>> {
        self.live.set(true);
        let assigner = self.assigner;
        let changes = self.changed.clone().unary(Pipeline, "OnChange", move |_capability, _info| {
            let mut made = Vec::new();
            move |input, output| {
                input.for_each(|capability, changes| {
                    made.extend(changes.drain(..).map(|(((end, key), value), epoch, diff)| {
                        (Open { window: assigner.interval(end), key, value }, epoch, diff)
                    }));
                    output.session(&capability).give_container(&mut made);
                    made.clear();
                });
            }
        });
        Collection::new(changes.as_collection(), self.flow.clone())
    }

    /// How snapshots keep the step's rows: as they lie in memory, instead of by serde. It is read back by this very
    /// program alone; what it buys is said at [`crate::durable::codec`]. [`in_place!`](crate::in_place) makes types of
    /// your own fit for it.
    #[cfg(feature = "abomonation")]
    #[must_use]
    pub fn codec(self, codec: crate::durable::codec::Abomonation) -> Self
    where
        K: crate::durable::codec::abomonation::InPlace,
        A::Sum: crate::durable::codec::abomonation::InPlace,
    {
        *self.codec.borrow_mut() = Arc::new(codec);
        self
    }

    /// The records that came too late for their window, as they are.
    pub fn late(&self) -> Stream<'f, D> {
        self.wants_late.set(true);
        Stream { events: self.late.clone(), marks: self.marks.clone(), flow: self.flow.clone(), pool: Pool::default() }
    }
}

/// Marks for a stream whose events have no partitions of a source.
fn without_floors(marks: TimelyStream<'_, u64, Vec<Mark>>) -> TimelyStream<'_, u64, Vec<Mark>> {
    marks.unary(Pipeline, "DerivedMarks", move |_capability, _info| {
        move |input, output| {
            input.for_each(|capability, marks| {
                marks.iter_mut().for_each(|mark| mark.floors.clear());
                output.session(&capability).give_container(marks);
            });
        }
    })
}

/// What [`assign_windows`] needs of a step.
struct Assign<K, D, A: Aggregate<D>> {
    assigner: Assigner,
    keys: KeysOf<K, D>,
    aggregate: Rc<A>,
    wants_late: Wanted,
    metrics: Arc<StepMetrics>,
    forget_floor: bool,
    /// Records at this epoch or before are in the snapshot that the job went on from.
    gate: Option<u64>,
    /// How many workers there are to send records to.
    peers: usize,
    /// Where containers come back from: from this worker's aggregating, whoever filled them.
    pool: Pool<Routed<K, A::Part>>,
}

/// Records of an epoch whose partitions' floors are not known yet.
struct Held<D> {
    events: Vec<Event<D>>,
    records: Capability<u64>,
    late: Capability<u64>,
}

/// The floors of a stream's partitions, as far as they are known.
#[derive(Default)]
struct Floors {
    now: HashMap<PartitionId, EventTime, foldhash::fast::FixedState>,
    /// Those that come into force at a later epoch.
    coming: BTreeMap<u64, Vec<(PartitionId, EventTime)>>,
}

impl Floors {
    fn through(&mut self, epoch: u64) -> &HashMap<PartitionId, EventTime, foldhash::fast::FixedState> {
        while let Some(entry) = self.coming.first_entry().filter(|entry| *entry.key() <= epoch) {
            self.now.extend(entry.remove());
        }
        &self.now
    }
}

/// Records on their way to the worker of their key, and late ones.
type Assigned<'f, K, D, P> = (TimelyStream<'f, u64, Vec<Parcel<K, P>>>, TimelyStream<'f, u64, Vec<Event<D>>>);

/// Finds each record's window, and parts those that are on time from those that are late.
fn assign_windows<'f, K: Record, D: Record, A: Aggregate<D>>(
    stream: Stream<'f, D>,
    name: &str,
    step: Assign<K, D, A>,
) -> Assigned<'f, K, D, A::Part> {
    let mut builder = OperatorBuilder::new(format!("Assign: {name}"), stream.events.scope());
    let emptied = stream.pool;
    let mut events = builder.new_input(stream.events, Pipeline);
    let mut marks = builder.new_input(stream.marks, Pipeline);
    let (records, record_stream) = builder.new_output();
    let (late, late_stream) = builder.new_output();
    let mut records = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(records);
    let mut late = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(late);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut floors = Floors::default();
        let mut held = BTreeMap::<u64, Held<D>>::new();
        let mut sorter = Sorter::new(step);
        move |frontiers| {
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
struct Sorter<K, D, A: Aggregate<D>> {
    step: Assign<K, D, A>,
    /// The window that was found last.
    last: Interval,
    keys: Vec<K>,
    /// For each worker.
    on_time: Vec<Vec<Routed<K, A::Part>>>,
    parcels: Vec<Parcel<K, A::Part>>,
    late: Vec<Event<D>>,
    /// Those that cannot be judged yet.
    waiting: Vec<Event<D>>,
}

/// Where [`Sorter::give`] gives records.
type Session<'a, 'b, D, C> =
    timely::dataflow::operators::generic::Session<'a, 'b, u64, CapacityContainerBuilder<Vec<D>>, C>;

impl<K: Record, D: Record, A: Aggregate<D>> Sorter<K, D, A> {
    fn new(step: Assign<K, D, A>) -> Self {
        let on_time = (0..step.peers).map(|_| Vec::new()).collect();
        let (keys, parcels, late, waiting) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Sorter { step, last: Interval::NOTHING, keys, on_time, parcels, late, waiting }
    }

    /// Judges records, each by its own partition's watermark before it and the partition's floor; `None` for a floor that
    /// is not known yet.
    fn sort(&mut self, events: &mut Vec<Event<D>>, floor: impl Fn(Origin) -> Option<EventTime>) {
        let expected = events.len() / self.step.peers + events.len() / 8;
        for on_time in &mut self.on_time {
            if on_time.capacity() == 0 {
                *on_time = self.step.pool.take();
                on_time.reserve(expected);
            }
        }
        match self.step.peers as u64 {
            1 => self.sort_by(events, floor, |_| 0),
            peers => self.sort_by(events, floor, |key| arrange::worker_of(key, peers) as usize),
        }
    }

    #[inline]
    fn sort_by(
        &mut self,
        events: &mut Vec<Event<D>>,
        floor: impl Fn(Origin) -> Option<EventTime>,
        worker_of: impl Fn(&K) -> usize,
    ) {
        let Assign { assigner, keys, aggregate, wants_late, .. } = &self.step;
        let (mut last, mut late) = (self.last, 0);
        for piece in events.chunks(PIECE) {
            keys(piece, &mut self.keys);
            for (event, key) in piece.iter().zip(self.keys.drain(..)) {
                let Some(floor) = floor(event.origin) else {
                    self.waiting.push(event.clone());
                    continue;
                };
                let end = assigner.end(event.time, &mut last);
                if end > event.mark.max(floor) {
                    self.on_time[worker_of(&key)].push((key, end, aggregate.part(event)));
                } else {
                    late += 1;
                    if wants_late.get() {
                        self.late.push(event.clone());
                    }
                }
            }
        }
        events.clear();
        self.last = last;
        if late > 0 {
            self.step.metrics.late.add(late);
        }
    }

    /// Sends what was sorted.
    fn give<C: CapabilityTrait<u64>>(
        &mut self,
        records: &mut Session<'_, '_, Parcel<K, A::Part>, C>,
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
