//! Windows: which records belong together, which are late, and when results are final.
//!
//! * A **window** is an interval [start, end) of event time. It **closes** when the stream's watermark is at least
//!   end + L, where L is the allowed lateness, zero unless the step says otherwise.
//! * A window **fires** when the watermark is at least its end. From then on until it closes, late records that are still
//!   allowed correct it.
//! * A record is **late** for a window if end + L ≤ max(its own partition's watermark just before it, the partition's
//!   floor). A partition that has been there from the start and never was idle has no **floor**: whether its
//!   records are late depends on the data alone, not on epochs, workers, or other partitions' speed. A partition that was
//!   found later, or wakes from idle, has the stream's watermark at the epoch before as its floor: windows up to there have
//!   closed without it. Records that are late by it alone are counted apart (`late_after_idle`); a longer idle time waits
//!   for them.
//! * A [`Closed`] row is a window's final result for a key, emitted once.
//! * An [`Open`] row is what a window holds for a key now; as a collection, it is taken back when it changes or closes.
//!
//! A windowed step is two operators. The first, on the worker that read the record, finds the window, judges lateness
//! and takes what the aggregate needs ([`super::assign`]). The second, on the worker of the key, aggregates ([`super::fold`],
//! [`super::arrange`]).
//!
//! Promise kept here: **output is a function of the data: any workers, any epochs.** And with it: per step,
//! in = counted + late, where `in` and `late` are counted in the first operator and `counted` from the rows of the second.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timely::dataflow::operators::vec::Filter;

use crate::error::{Error, Result};
use crate::record::{Event, Record};
use crate::stream::aggregate::{Aggregate, Each};
use crate::stream::arrange::{Arranged, Saved, Telling};
use crate::stream::assign::{BySlot, ByTime};
use crate::stream::count::Counts;
use crate::stream::cut::{self, CodecCell};
use crate::stream::fold::{self, Made, Shown, Start, Ticked, Wants};
use crate::stream::keyed::{Behaviour, Rows};
use crate::stream::session::Sessions;
use crate::stream::slot::{CalendarUnit, Range, Slot, Windows, check_overlap, whole_millis};
use crate::stream::{Collection, Stream};
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
    pub(crate) const NOTHING: Interval = Interval { start: EventTime::MAX, end: EventTime::MIN };
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
///
/// ```
/// # use std::time::Duration;
/// # use tidegate::Window;
/// let (minute, ten_seconds) = (Duration::from_secs(60), Duration::from_secs(10));
/// let each_minute = Window::tumbling(minute);
/// let the_last_minute_every_ten_seconds = Window::sliding(minute, ten_seconds);
/// let the_minute_so_far_every_ten_seconds = Window::cumulative(minute, ten_seconds);
/// let days = Window::days("Europe/Lisbon");
/// let sessions = Window::session(Duration::from_secs(30));
/// let a_hundred_each = Window::count(100);
/// let all_time = Window::global();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    kind: Kind,
    offset: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tumbling { size: Duration },
    Sliding { size: Duration, slide: Duration },
    Cumulative { size: Duration, step: Duration },
    Calendar { unit: CalendarUnit, zone: &'static str },
    Session { gap: Duration },
    Count { size: u64 },
    Global,
}

impl Window {
    const fn of(kind: Kind) -> Self {
        Window { kind, offset: Duration::ZERO }
    }

    /// Windows of one size, side by side. They are aligned to 1970-01-01T00:00:00Z; [`Window::offset`] shifts them. The
    /// size is a whole number of milliseconds, at least one.
    pub const fn tumbling(size: Duration) -> Self {
        Window::of(Kind::Tumbling { size })
    }

    /// Windows of one size that begin every `slide`, which is at most the size: a record is in each window that covers its
    /// time. Windows begin at multiples of the slide since 1970-01-01T00:00:00Z; [`Window::offset`] shifts them. Both are
    /// whole numbers of milliseconds.
    ///
    /// A record is aggregated once, in a pane; a window is the sum of its panes. A record that is late for some of its windows
    /// counts in the others.
    ///
    /// Size by slide, rounded up, is how many windows a record is in, and by how many rows it is shown in the end. It is at most
    /// 100,000: a day by a second, 30 days by half a minute. More is refused when the query is built.
    pub const fn sliding(size: Duration, slide: Duration) -> Self {
        Window::of(Kind::Sliding { size, slide })
    }

    /// Windows that begin together, every `size`, and end one `step` after another, the last after `size`: what there is so far
    /// of an hour, every minute. `size` is a multiple of `step`, at most 100,000 times it (see [`Window::sliding`]); they are
    /// aligned and shifted as tumbling ones.
    pub const fn cumulative(size: Duration, step: Duration) -> Self {
        Window::of(Kind::Cumulative { size, step })
    }

    /// The days of a time zone, by its name in the IANA time zone database, as `Europe/Lisbon` or `UTC`. Where clocks are put
    /// forward or back, a day is shorter or longer than 24 hours. The database is that of the `jiff` library, compiled in:
    /// results do not depend on the machine. [`Window::offset`] does not shift them.
    pub const fn days(zone: &'static str) -> Self {
        Window::of(Kind::Calendar { unit: CalendarUnit::Day, zone })
    }

    /// The months of a time zone: see [`Window::days`].
    pub const fn months(zone: &'static str) -> Self {
        Window::of(Kind::Calendar { unit: CalendarUnit::Month, zone })
    }

    /// Sessions: a key's records that are less than `gap` apart, a whole number of milliseconds. A session is from its first record to
    /// `gap` after its last. A record is late when its own time is, whatever session it would join. [`Window::offset`] does not shift
    /// them. Their rows are kept by serde: [`Aggregated::codec`] does not change that.
    pub const fn session(gap: Duration) -> Self {
        Window::of(Kind::Session { gap })
    }

    /// Windows of so many records of a key: its first ones by event time, the next ones, and so on; those of one time are in the
    /// order of source, partition and offset, and those that have none, as the results of windows, in the order of what the aggregate
    /// makes of them. A window is from its first record to just after its last; one that is not full
    /// ends with all time, and `on_close` shows it when its stream is over. A record is late when its own time is.
    /// [`Window::offset`] does not shift them; [`Aggregated::codec`] is as for sessions.
    pub const fn count(size: u64) -> Self {
        Window::of(Kind::Count { size })
    }

    /// One window for all time. It never closes: when its stream is over, which for most streams is never, `on_close`
    /// shows its rows, and the live rows of `on_change` stay as they are.
    pub const fn global() -> Self {
        Window::of(Kind::Global)
    }

    /// Windows that begin so much later; a whole number of milliseconds. Days, months and the window of all time stay.
    #[must_use]
    pub const fn offset(self, offset: Duration) -> Self {
        Window { kind: self.kind, offset }
    }

    fn windows(self) -> Result<Windows> {
        let length = |what: &str, duration: Duration| match whole_millis(what, duration)? {
            0 => Err(Error::usage(format!("a window's {what} is zero")).help("make it at least a millisecond")),
            millis => Ok(millis),
        };
        let offset = whole_millis("offset", self.offset)?;
        match self.kind {
            Kind::Global => Ok(Windows::Global),
            Kind::Session { gap } => length("gap", gap).map(|_| Windows::Global),
            Kind::Count { size: 0 } => {
                Err(Error::usage("a window of no records").help("make its size at least one record"))
            }
            Kind::Count { .. } => Ok(Windows::Global),
            Kind::Tumbling { size } => {
                let size = length("size", size)?;
                Ok(Windows::Tumbling { size, offset: offset % size })
            }
            Kind::Sliding { size, slide } => {
                let (size, slide) = (length("size", size)?, length("slide", slide)?);
                if slide > size {
                    let error = Error::usage("windows that slide by more than their size leave records out");
                    return Err(error.help("make the slide at most the size; filter what is not wanted"));
                }
                check_overlap(size, slide)?;
                Ok(Windows::Sliding { size, slide, offset: offset % slide })
            }
            Kind::Cumulative { size, step } => {
                let (size, step) = (length("size", size)?, length("step", step)?);
                if size % step != 0 {
                    let error = Error::usage("the size of cumulative windows is not a multiple of their step");
                    return Err(error.help("windows end a whole number of steps after they begin"));
                }
                check_overlap(size, step)?;
                Ok(Windows::Cumulative { size, step, offset: offset % size })
            }
            Kind::Calendar { unit, zone } => {
                let found = jiff::tz::TimeZoneDatabase::bundled().get(zone);
                let zone = found.map_err(|why| {
                    let error = Error::usage(format!("there is no time zone `{zone}`")).because(why);
                    error.help("name one as the IANA time zone database does, as `Europe/Lisbon`")
                })?;
                Ok(Windows::Calendar { unit, zone })
            }
        }
    }
}

/// Appends the keys of some events; of many at a time, as calling a function that is not known costs more than most
/// keys.
pub(super) type KeysOf<K, D> = Rc<dyn Fn(&[Event<D>], &mut Vec<K>)>;

/// A stream grouped by a key.
pub struct Keyed<'f, K, D> {
    pub(super) stream: Stream<'f, D>,
    pub(super) keys: KeysOf<K, D>,
    pub(super) lateness: Duration,
}

impl<K, D> fmt::Debug for Keyed<'_, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyed<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<D>())
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    pub(crate) fn new(stream: Stream<'f, D>, key: impl Fn(&D) -> K + 'static) -> Self {
        let keys: KeysOf<K, D> = Rc::new(move |events, keys| keys.extend(events.iter().map(|event| key(&event.data))));
        Keyed { stream, keys, lateness: Duration::ZERO }
    }

    /// Cuts each key's records into windows.
    pub fn window(self, window: Window) -> Windowed<'f, K, D> {
        Windowed { keyed: self, window }
    }

    /// How long a step waits for records that come late: see [`Windowed::allowed_lateness`]. Records of a key's own state are passed
    /// so much later.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.lateness = lateness;
        self
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
    /// How long after its end a window is kept open for records that come late: it closes when the watermark is so far past
    /// its end, and a record is late for it only then. [`Aggregated::on_fire`] shows a window when the watermark reaches its
    /// end, and every correction; [`Aggregated::on_close`] shows it once, when it closes. Whole milliseconds.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.keyed.lateness = lateness;
        self
    }

    /// Aggregates each window's records with a key. The step's name is unique in the query: state and metrics are found
    /// by it. The closure names the aggregates, and tuples of them are one:
    /// `|each| (each.count(), each.sum(|t| t.amount_cents))`. All that there are is in [`Each`].
    pub fn aggregate<A: Aggregate<D>>(self, name: &str, build: impl FnOnce(Each<D>) -> A) -> Aggregated<'f, K, D, A> {
        let Windowed { keyed, window } = self;
        let flow = keyed.stream.flow.clone();
        let lateness_millis = whole_millis("allowed lateness", keyed.lateness);
        let (windows, lateness) = match window.windows().and_then(|windows| Ok((windows, lateness_millis?))) {
            Ok((windows, lateness)) => (windows, Span::from_length(lateness)),
            Err(error) => {
                flow.build.failure.set(error.at(format!("step `{name}`")));
                (Windows::Global, Span::ZERO)
            }
        };
        let aggregate = Rc::new(build(Each::new()));
        if let Err(error) = aggregate.check() {
            flow.build.failure.set(error.at(format!("step `{name}`")));
        }
        // Live rows of windows that nothing closes stay when the stream is over, but snapshots do not have them any more.
        let stays = matches!(window.kind, Kind::Global | Kind::Count { .. });
        let state = flow.build.durable.as_ref().and_then(|durable| durable.step(name));
        let lost = stays && state.is_some_and(|state| state.closed == EventTime::MAX);
        let (by_window, by_range) = (cut::postcard(), cut::postcard());
        let step = (name, windows, lateness, aggregate);
        let made = match (window.kind, step.1.overlap()) {
            (Kind::Session { gap }, _) => {
                let gap = Span::from(gap);
                let said = format!("sessions {} ms apart", gap.millis());
                by_time(keyed, step, &said, |telling| Sessions { gap, telling, types: PhantomData })
            }
            (Kind::Count { size }, _) => {
                let said = format!("windows of {size} records");
                let size = i64::try_from(size).unwrap_or(i64::MAX);
                by_time(keyed, step, &said, |telling| Counts { size, telling, types: PhantomData })
            }
            (_, true) => arranged::<Range, _, _, _>(keyed, step, Rc::clone(&by_range)),
            (_, false) => arranged::<EventTime, _, _, _>(keyed, step, Rc::clone(&by_window)),
        };
        Aggregated { made, codecs: (by_window, by_range), lost }
    }
}

/// Aggregates in slots of one kind.
fn arranged<'f, T: Slot, K: Record, D: Record, A: Aggregate<D>>(
    keyed: Keyed<'f, K, D>,
    (name, windows, lateness, aggregate): (&str, Windows, Span, Rc<A>),
    codec: CodecCell<Saved<T, K, A::Sum>>,
) -> Made<'f, Shown<K, A::Value>, K, A::Value, D> {
    let build = Rc::clone(&keyed.stream.flow.build);
    let (wants, part) = (Wants::default(), Rc::clone(&aggregate));
    let (metrics, fault) = (build.metrics.step(name), build.fault);
    let telling = Telling { name: name.to_owned(), aggregate, failure: Arc::clone(&build.failure) };
    let (of_windows, of_step) = (windows.clone(), wants.clone());
    let begin = move |start: Start<'_>| {
        Arranged::<T, K, D, A>::begin(start, of_windows, telling, of_step, lateness, metrics, fault)
    };
    let detail = format!("{windows:?}{}", fold::said(lateness));
    let judge = BySlot::<T>::new(windows, lateness);
    fold::step(keyed, (name, detail), (wants, lateness), codec, judge, move |event: &Event<D>| part.part(event), begin)
}

/// Aggregates in windows that the records' own times make.
fn by_time<'f, K, D, A, B>(
    keyed: Keyed<'f, K, D>,
    (name, _, lateness, aggregate): (&str, Windows, Span, Rc<A>),
    said: &str,
    behaviour: impl FnOnce(Telling<A>) -> B,
) -> Made<'f, Shown<K, A::Value>, K, A::Value, D>
where
    K: Record,
    D: Record,
    A: Aggregate<D>,
    B: Behaviour<Key = K, Part = A::Part, Closed = Shown<K, A::Value>, Value = A::Value>,
{
    let build = Rc::clone(&keyed.stream.flow.build);
    let (wants, part) = (Wants::default(), Rc::clone(&aggregate));
    let metrics = build.metrics.step(name);
    let behaviour = behaviour(Telling { name: name.to_owned(), aggregate, failure: Arc::clone(&build.failure) });
    let of_step = wants.clone();
    let begin =
        move |start: Start<'_>| Rows::begin(behaviour, (start.closed, start.durable), (of_step, lateness), metrics);
    let detail = format!("{said}{}", fold::said(lateness));
    let part = move |event: &Event<D>| part.part(event);
    fold::step(keyed, (name, detail), (wants, lateness), cut::postcard(), ByTime(lateness), part, begin)
}

/// How rows are bytes, of slots of either kind; one of the two is used.
type Codecs<K, S> = (CodecCell<Saved<EventTime, K, S>>, CodecCell<Saved<Range, K, S>>);

/// The results of a windowed aggregate, in whichever form they are wanted.
pub struct Aggregated<'f, K: Record, D, A: Aggregate<D>> {
    made: Made<'f, Shown<K, A::Value>, K, A::Value, D>,
    #[cfg_attr(not(feature = "abomonation"), expect(dead_code, reason = "there is only one codec"))]
    codecs: Codecs<K, A::Sum>,
    /// Whether there are live rows that are not there again.
    lost: bool,
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
        self.made.events(self.made.results.closed.clone(), "OnClose", |(window, key, value)| {
            // The end of all time is moved too: no window ends after it, and the row is not to be late.
            let time = EventTime::from_millis(window.end.millis().saturating_sub(1));
            (time, Closed { window, key, value })
        })
    }

    /// The live rows of open windows: a row is there from its first record on, is replaced when it changes, and is taken
    /// back when its window closes.
    pub fn on_change(&self) -> Collection<'f, Open<K, A::Value>> {
        self.made.wants.live.set(true);
        if self.lost {
            self.made.flow().build.views.lose();
        }
        self.made.collection(self.made.results.live.clone(), "OnChange")
    }

    /// The rows of windows that have fired: a row is there from the moment on when the watermark reaches the end of its
    /// window, is replaced when a late record corrects it, and stays when the window closes. Without
    /// [`Windowed::allowed_lateness`] there is nothing to correct, and rows come when their window closes.
    ///
    /// Which corrections are seen depends on the epochs that records come in; every row is exact, and the last one of a window
    /// and key is what [`Aggregated::on_close`] shows.
    ///
    /// Snapshots keep the rows of open windows alone. So in a job with state, what is computed of this collection row by row can
    /// be written to a sink, which has what was there before; what would need the rows of closed windows again after a crash
    /// (`count`, `distinct`, joins, `reduce`, `through`) is refused.
    pub fn on_fire(&self) -> Collection<'f, Open<K, A::Value>> {
        self.made.wants.fired.set(true);
        self.made.collection(self.made.results.fired.clone(), "OnFire").passing()
    }

    /// The rows of all open windows, each time the watermark has come past a multiple of `period`, counted from 1970: what
    /// windows hold so far, by event time, never by the clock. As events they happened at that multiple. If the watermark comes
    /// past several at once, they are shown for the last. A period is a whole number of milliseconds.
    ///
    /// What is seen depends on the epochs that records come in; every row is exact.
    pub fn every(&self, period: Duration) -> Stream<'f, Open<K, A::Value>> {
        let index = self.made.period(period);
        let rows = self.made.results.ticked.clone().filter(move |row: &Ticked<K, A::Value>| row.0 == index);
        self.made.events(rows, "Every", |(_, at, (window, key, value))| (at, Open { window, key, value }))
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
        *self.codecs.0.borrow_mut() = Arc::new(codec);
        *self.codecs.1.borrow_mut() = Arc::new(codec);
        self
    }

    /// The records that came too late for all of their windows, as they are.
    pub fn late(&self) -> Stream<'f, D> {
        self.made.late()
    }
}
