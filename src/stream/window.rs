//! Windows: which records belong together, which are late, and when results are final.
//!
//! * A **window** is an interval [start, end) of event time. It **closes** when the stream's watermark is at least
//!   end + L, where L is the allowed lateness, zero by default.
//! * A window **fires** when the watermark is at least its end. From then on until it closes, late records that are
//!   still allowed correct it.
//! * A record is **late** for a window if end + L ≤ max(its own partition's watermark just before it, the partition's
//!   activation watermark). A partition that has existed from the start and never was idle has no **activation
//!   watermark**: whether its records are late depends on the data alone, not on epochs, workers, or other
//!   partitions' speed. A partition that was discovered later, or becomes active after it was idle, has the stream's
//!   watermark at the epoch before as its activation watermark: windows up to it have closed without the partition.
//!   Records that are late only by it are counted separately (`late_after_idle`); a longer idle timeout avoids them.
//! * A [`Closed`] row is a window's final result for a key, emitted once.
//! * An [`Open`] row is a window's current result for a key; in a collection, it is retracted when it changes or
//!   closes.
//!
//! A windowed step is two operators. The first, on the worker that read the record, finds the window, decides
//! lateness and extracts what the aggregate needs (`super::assign`). The second, on the worker of the key,
//! aggregates (`super::window_operator`, `super::arrange`).
//!
//! Invariant: **output is a function of the data: any workers, any epochs.** And with it: per step, in = counted +
//! late, where `in` and `late` are counted in the first operator and `counted` from the rows of the second.

use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
#[cfg(feature = "abomonation")]
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::operators::vec::Filter;

use crate::error::{Error, Result};
use crate::record::Record;
use crate::stream::aggregate::{Aggregate, Each};
use crate::stream::collection::NotRecoverable;
use crate::stream::panes::{CalendarUnit, WindowAssigner, check_overlap, whole_millis};
use crate::stream::window_row::PeriodicRow;
use crate::stream::window_type::{Codecs, WindowKind, WindowedOutputs, WindowedStep};
use crate::stream::{Collection, Stream};
use crate::time::{EventTime, Span};

pub use crate::stream::interval::Interval;
pub use crate::stream::keyed_stream::Keyed;
pub use crate::stream::window_row::{Closed, Open};
pub use crate::stream::window_type::{AnyType, Counts, Disjoint, FixedWindows, Overlapping, Sessions, WindowType};

/// A rule that groups records into windows.
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
///
/// A window carries its type `W`, and a step is compiled for that type alone. `Window` without a type is a window of any
/// type, which can be chosen while the program runs:
///
/// ```
/// # use std::time::Duration;
/// # use tidegate::Window;
/// fn choose(by_session: bool) -> Window {
///     let minute = Duration::from_secs(60);
///     if by_session { Window::session(minute).any() } else { Window::tumbling(minute).any() }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window<W = AnyType> {
    kind: WindowKind,
    offset: Duration,
    window_type: PhantomData<fn() -> W>,
}

impl<W> Window<W> {
    const fn of(kind: WindowKind) -> Self {
        Window { kind, offset: Duration::ZERO, window_type: PhantomData }
    }

    /// The same windows without their type: windows that are chosen while the program runs are all of the type
    /// [`AnyType`].
    #[must_use]
    pub const fn any(self) -> Window {
        let Window { kind, offset, .. } = self;
        Window { kind, offset, window_type: PhantomData }
    }

    /// Shifts the windows by `offset`, a whole number of milliseconds. It has no effect on days, months, sessions,
    /// count windows and the window of all time.
    #[must_use]
    pub const fn offset(self, offset: Duration) -> Self {
        Window { offset, ..self }
    }

    /// Returns the windows if they are fixed on the line of event time, as those of a join have to be.
    pub(super) fn fixed(self) -> Result<WindowAssigner> {
        match self.kind {
            WindowKind::Session { .. } | WindowKind::Count { .. } => {
                let error = Error::usage("two streams cannot be joined in sessions or count windows");
                Err(error.help("join them in windows that are fixed in time, or within a span by `join_within`"))
            }
            _ => self.windows(),
        }
    }

    /// Checks the rule, and returns the windows that it stands for.
    pub(super) fn windows(self) -> Result<WindowAssigner> {
        let length = |what: &str, duration: Duration| match whole_millis(what, duration)? {
            0 => Err(Error::usage(format!("a window's {what} is zero")).help("make it at least a millisecond")),
            millis => Ok(millis),
        };
        let offset = whole_millis("offset", self.offset)?;
        match self.kind {
            WindowKind::Global => Ok(WindowAssigner::Global),
            WindowKind::Session { gap } => length("gap", gap).map(|_| WindowAssigner::Global),
            WindowKind::Count { size: 0 } => {
                Err(Error::usage("a window of no records").help("make its size at least one record"))
            }
            WindowKind::Count { .. } => Ok(WindowAssigner::Global),
            WindowKind::Tumbling { size } => {
                let size = length("size", size)?;
                Ok(WindowAssigner::Tumbling { size, offset: offset % size })
            }
            WindowKind::Sliding { size, slide } => {
                let (size, slide) = (length("size", size)?, length("slide", slide)?);
                if slide > size {
                    let error = Error::usage("windows that slide by more than their size leave records out");
                    return Err(error.help("make the slide at most the size; filter what is not wanted"));
                }
                check_overlap(size, slide)?;
                Ok(WindowAssigner::Sliding { size, slide, offset: offset % slide })
            }
            WindowKind::Cumulative { size, step } => {
                let (size, step) = (length("size", size)?, length("step", step)?);
                if size % step != 0 {
                    let error = Error::usage("the size of cumulative windows is not a multiple of their step");
                    return Err(error.help("windows end a whole number of steps after they begin"));
                }
                check_overlap(size, step)?;
                Ok(WindowAssigner::Cumulative { size, step, offset: offset % size })
            }
            WindowKind::Calendar { unit, zone } => {
                let found = jiff::tz::TimeZoneDatabase::bundled().get(zone);
                let zone = found.map_err(|why| {
                    let error = Error::usage(format!("there is no time zone `{zone}`")).because(why);
                    error.help("name one as the IANA time zone database does, as `Europe/Lisbon`")
                })?;
                Ok(WindowAssigner::Calendar { unit, zone })
            }
        }
    }
}

impl Window<Disjoint> {
    /// Tumbling windows: windows of one size, side by side. They are aligned to 1970-01-01T00:00:00Z;
    /// [`Window::offset`] shifts them. The size is a whole number of milliseconds, at least one.
    pub const fn tumbling(size: Duration) -> Self {
        Window::of(WindowKind::Tumbling { size })
    }

    /// The days of a time zone, given by its name in the IANA time zone database, such as `Europe/Lisbon` or `UTC`.
    /// Where clocks are put forward or back, a day is shorter or longer than 24 hours. The database is that of the
    /// `jiff` library, compiled in: results do not depend on the machine. [`Window::offset`] does not shift them.
    pub const fn days(zone: &'static str) -> Self {
        Window::of(WindowKind::Calendar { unit: CalendarUnit::Day, zone })
    }

    /// The months of a time zone: see [`Window::days`].
    pub const fn months(zone: &'static str) -> Self {
        Window::of(WindowKind::Calendar { unit: CalendarUnit::Month, zone })
    }

    /// One window for all time. It never closes before its stream ends, which most streams never do: `on_close` then
    /// emits its rows, and the live rows of `on_change` stay as they are.
    pub const fn global() -> Self {
        Window::of(WindowKind::Global)
    }
}

impl Window<Overlapping> {
    /// Sliding windows: windows of one size that begin every `slide`, which is at most the size. A record is in each
    /// window that covers its time. Windows begin at multiples of the slide since 1970-01-01T00:00:00Z;
    /// [`Window::offset`] shifts them. Both are whole numbers of milliseconds, at least one.
    ///
    /// A record is aggregated once, in a pane; a window is the sum of its panes. A record that is late for some of
    /// its windows counts in the others.
    ///
    /// A record is in size / slide windows, rounded up, and leads to as many rows. This number is at most 100,000: a
    /// day by a second, 30 days by half a minute. More is refused when the query is built.
    pub const fn sliding(size: Duration, slide: Duration) -> Self {
        Window::of(WindowKind::Sliding { size, slide })
    }

    /// Cumulative windows: windows that begin together, every `size`, and end one `step` after another, the last
    /// after `size`. They give the hour so far, every minute, for example. `size` is a multiple of `step`, at most
    /// 100,000 times it (see [`Window::sliding`]). They are aligned and shifted like tumbling ones.
    pub const fn cumulative(size: Duration, step: Duration) -> Self {
        Window::of(WindowKind::Cumulative { size, step })
    }
}

impl Window<Sessions> {
    /// Session windows: a key's records that are less than `gap` apart. `gap` is a whole number of milliseconds, at
    /// least one. A session extends from its first record to `gap` after its last. A record is late when its own time
    /// is, whatever session it would join. [`Window::offset`] does not shift sessions. Their rows are always
    /// serialized by serde: `Aggregated::codec` does not change that.
    pub const fn session(gap: Duration) -> Self {
        Window::of(WindowKind::Session { gap })
    }
}

impl Window<Counts> {
    /// Count windows: the first `size` records of a key by event time, the next ones, and so on. Records of equal
    /// time are ordered by source, partition and offset; records that have none, such as results of windows, by what
    /// the aggregate makes of them. A window extends from its first record to just after its last. One that is not
    /// full extends to the end of time, and `on_close` emits it when its stream ends. A record is late when its own
    /// time is. [`Window::offset`] does not shift count windows; `Aggregated::codec` is ignored as for sessions.
    pub const fn count(size: u64) -> Self {
        Window::of(WindowKind::Count { size })
    }
}

impl<'f, K: Record, D: Record> Keyed<'f, K, D> {
    /// Groups each key's records into windows.
    pub fn window<W: WindowType>(self, window: Window<W>) -> Windowed<'f, K, D, W> {
        Windowed { keyed: self, window }
    }
}

/// A stream grouped by a key and into windows.
pub struct Windowed<'f, K, D, W = AnyType> {
    pub(super) keyed: Keyed<'f, K, D>,
    pub(super) window: Window<W>,
}

impl<K, D, W: fmt::Debug> fmt::Debug for Windowed<'_, K, D, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Windowed<{}, {}> {:?}", std::any::type_name::<K>(), std::any::type_name::<D>(), self.window)
    }
}

impl<'f, K: Record, D: Record, W: WindowType> Windowed<'f, K, D, W> {
    /// Sets how long after its end a window accepts late records, in whole milliseconds. The window closes when the
    /// watermark is that far past its end; only then are records late for it. [`Aggregated::on_fire`] emits a window
    /// when the watermark reaches its end, and every correction; [`Aggregated::on_close`] emits it once, when it
    /// closes.
    #[must_use]
    pub fn allowed_lateness(mut self, lateness: Duration) -> Self {
        self.keyed.lateness = lateness;
        self
    }

    /// Aggregates each window's records with a key. The step's name is unique in the query: state and metrics are
    /// found by it. The closure names the aggregates; a tuple of aggregates is an aggregate too:
    /// `|each| (each.count(), each.sum(|t| t.amount_cents))`. [`Each`] lists all of them.
    pub fn aggregate<A: Aggregate<D>>(self, name: &str, build: impl FnOnce(Each<D>) -> A) -> Aggregated<'f, K, D, A> {
        let Windowed { keyed, window } = self;
        let flow = keyed.stream.flow.clone();
        let lateness_millis = whole_millis("allowed lateness", keyed.lateness);
        let (windows, lateness) = match window.windows().and_then(|windows| Ok((windows, lateness_millis?))) {
            Ok((windows, lateness)) => (windows, Span::saturating_from_millis(lateness)),
            Err(error) => {
                flow.build.failure.set(error.at_step(name));
                (WindowAssigner::Global, Span::ZERO)
            }
        };
        let aggregate = Rc::new(build(Each::new()));
        let names = aggregate.names().0;
        if let Err(error) = aggregate.check().and_then(|()| names.check()) {
            flow.build.failure.set(error.at_step(name));
        }
        flow.build.registry.name_aggregates(name, names);
        // Live rows of windows that nothing closes stay when the stream has ended, but snapshots no longer have them.
        let stays = matches!(window.kind, WindowKind::Global | WindowKind::Count { .. });
        let state = flow.build.durable.as_ref().and_then(|durable| durable.step(name));
        let rows_missing = stays && state.is_some_and(|state| state.closed == EventTime::MAX);
        let codecs = Codecs::postcard();
        let kind = window.kind;
        let step =
            WindowedStep { name, kind, windows, lateness, aggregate, codecs: codecs.clone(), records: PhantomData };
        Aggregated { made: W::build(keyed, step), codecs, rows_missing }
    }
}

/// The results of a windowed aggregate, in any of several forms.
pub struct Aggregated<'f, K: Record, D, A: Aggregate<D>> {
    pub(super) made: WindowedOutputs<'f, K, D, A::Value>,
    #[cfg_attr(not(feature = "abomonation"), expect(dead_code, reason = "there is only one codec"))]
    codecs: Codecs<K, A::Sum>,
    /// `true` if live rows that were emitted before are missing from the snapshot.
    rows_missing: bool,
}

impl<K: Record, D, A: Aggregate<D>> fmt::Debug for Aggregated<'_, K, D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aggregated<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<A::Value>())
    }
}

impl<'f, K: Record, D: Record, A: Aggregate<D>> Aggregated<'f, K, D, A> {
    /// Says that the step had another name in earlier versions of the query, whose rows it continues: see
    /// [`Stream::was`](super::Stream::was).
    #[must_use]
    pub fn was(self, old: &str) -> Self {
        self.made.record_earlier_name(old);
        self
    }

    /// Returns the final results, each once, when its window closes. As events they happen in the window's last
    /// millisecond, and are never late downstream: windows can be chained.
    pub fn on_close(&self) -> Stream<'f, Closed<K, A::Value>> {
        self.made.events(self.made.results.closed.clone(), "OnClose", |(window, key, value)| {
            // The end of time is moved too: no window ends after it, and the row must not be late.
            let time = EventTime::from_millis(window.end.millis().saturating_sub(1));
            (time, Closed { window, key, value })
        })
    }

    /// Returns the live rows of open windows: a row is inserted with its first record, replaced when it changes, and
    /// retracted when its window closes.
    pub fn on_change(&self) -> Collection<'f, Open<K, A::Value>> {
        self.made.subscriptions.live.set(true);
        if self.rows_missing {
            self.made.flow().build.views.mark_not_recoverable();
        }
        self.made.collection(self.made.results.live.clone(), "OnChange")
    }

    /// Returns the rows of windows that have fired. A row is inserted when the watermark reaches the end of its
    /// window, replaced when a late record corrects it, and stays when the window closes. Without
    /// [`Windowed::allowed_lateness`] there is nothing to correct, and rows are inserted when their window closes.
    ///
    /// The corrections that are seen depend on the epochs of the records; every row is exact, and the last one of a
    /// window and key is what [`Aggregated::on_close`] emits.
    ///
    /// Snapshots keep only the rows of open windows. So in a job with state, this collection can be changed row by
    /// row and written to a sink, which keeps the earlier rows. Operators that need the rows of closed windows after
    /// a crash (`count`, `distinct`, joins, `reduce`, `through`) are refused.
    pub fn on_fire(&self) -> Collection<'f, Open<K, A::Value>> {
        self.made.subscriptions.fired.set(true);
        self.made.collection(self.made.results.fired.clone(), "OnFire").not_recoverable(NotRecoverable::Fired)
    }

    /// Returns the rows of all open windows, each time the watermark has passed a multiple of `period`, counted from
    /// 1970: the current results, by event time, never by the clock. As events they happen at that multiple. If the
    /// watermark passes several multiples at once, rows are emitted for the last. A period is a whole number of
    /// milliseconds, at least one.
    ///
    /// The states that are seen depend on the epochs of the records; every row is exact.
    pub fn every(&self, period: Duration) -> Stream<'f, Open<K, A::Value>> {
        let index = self.made.period(period);
        let rows = self.made.results.ticked.clone().filter(move |row: &PeriodicRow<K, A::Value>| row.0 == index);
        self.made.events(rows, "Every", |(_, at, (window, key, value))| (at, Open { window, key, value }))
    }

    /// Makes snapshots store the step's rows in their memory layout, instead of by serde. Only this very program can
    /// read them back; [`crate::durable::codec`] describes what that gains. [`in_place!`](crate::in_place) prepares
    /// types of your own for it.
    #[cfg(feature = "abomonation")]
    #[must_use]
    pub fn codec(self, codec: crate::durable::codec::Abomonation) -> Self
    where
        K: crate::durable::codec::abomonation::InPlace,
        A::Sum: crate::durable::codec::abomonation::InPlace,
    {
        *self.codecs.by_window.borrow_mut() = Arc::new(codec);
        *self.codecs.by_range.borrow_mut() = Arc::new(codec);
        self
    }

    /// Returns the records that are late for all of their windows, unchanged.
    pub fn late(&self) -> Stream<'f, D> {
        self.made.late()
    }
}
