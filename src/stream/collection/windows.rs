//! Windowed aggregates of collections: rows are grouped by a time of their own, and results follow retractions.
//!
//! No accumulator can take a record back: a maximum does not know the second one. So the value of a window is computed of
//! the rows that are there, by the same accumulators as for streams: every aggregate follows retractions, exactly. It is
//! found in two steps, as the extremes of a key are: the accumulators of each of [`PARTS`] parts of a window's rows,
//! chosen by hash, and their sum. So a change costs the rows of one part and the accumulators of all parts, not all rows
//! of the window.
//!
//! Rows have no position in a source: of equal times, the value breaks ties. A row that is there several times counts as
//! often; one that is there a negative number of times is ignored.
//!
//! A collection has no watermark, so windows neither fire nor close, and no row is late: a window has a row as long as it
//! has records.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::difference::Semigroup;

use super::Collection;
use crate::record::{Event, Origin, Record};
use crate::stream::aggregate::{Accumulator, Aggregate, Each};
use crate::stream::counted::Counted;
use crate::stream::panes::{Pane, PaneRange, WindowAssigner};
use crate::stream::route::route;
use crate::stream::value_reporter::ValueReporter;
use crate::stream::window::Window;
use crate::stream::window_row::Open;
use crate::stream::window_type::FixedWindows;
use crate::time::EventTime;

/// Number of parts into which the rows of a window are divided.
const PARTS: u64 = 64;

impl<'f, D: Record> Collection<'f, D> {
    /// Groups rows by a key, and into the windows of a time of theirs. The windows may be tumbling, sliding, cumulative,
    /// days, months, or all time; sessions and count windows do not compile.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::Window;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (order, (shop, cents, placed at, in ms)); orders are corrected and cancelled.
    /// let orders = [(1, Some(("a", 500, 1_000))), (2, Some(("a", 900, 2_000))), (1, Some(("a", 300, 1_000))), (2, None)];
    /// let orders = orders.map(|(id, order)| (id, order.map(|(shop, cents, at)| (shop.to_string(), cents, at))));
    /// let source = MemorySource::new(vec![orders.to_vec()], |_| 0);
    /// let totals = Captured::<(String, (i64, i64))>::new();
    /// let output = totals.clone();
    /// TestRun::new().run(move |flow| {
    ///     flow.table("orders", &source)
    ///         .window_by(|(_, order)| order.0.clone(), |(_, order)| order.2, Window::tumbling(Duration::from_secs(60)))
    ///         .aggregate("totals", |each| (each.count(), each.max(|(_, order): &(i32, (String, i64, i64))| order.1)))
    ///         .map(|row| (row.key, row.value))
    ///         .write("totals", &output);
    /// })?;
    /// assert_eq!(totals.all(), [("a".to_string(), (1, 300))]);
    /// # Ok(()) }
    /// ```
    pub fn window_by<K: Record, T: Into<EventTime>, W: FixedWindows>(
        self,
        key: impl Fn(&D) -> K + 'static,
        time: impl Fn(&D) -> T + 'static,
        window: Window<W>,
    ) -> WindowedCollection<'f, K, D> {
        let windows = window.windows().unwrap_or_else(|error| {
            self.flow.build.failure.set(error);
            WindowAssigner::Global
        });
        let place = move |row: &D| (key(row), time(row).into());
        WindowedCollection { rows: self, place: Box::new(place), windows }
    }
}

/// A function that returns a row's key and time.
type PlaceOf<K, D> = Box<dyn Fn(&D) -> (K, EventTime)>;

/// A collection grouped by a key and into windows: see [`Collection::window_by`].
pub struct WindowedCollection<'f, K, D: Record> {
    rows: Collection<'f, D>,
    place: PlaceOf<K, D>,
    windows: WindowAssigner,
}

impl<K, D: Record> fmt::Debug for WindowedCollection<'_, K, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowedCollection<{}, {}>", std::any::type_name::<K>(), std::any::type_name::<D>())
    }
}

impl<'f, K: Record, D: Record> WindowedCollection<'f, K, D> {
    /// Aggregates the rows of each key in each window: one row for each window of a key that has any. Every aggregate
    /// follows retractions: its value is that of the rows that are there. The name is that of errors, if a value cannot be
    /// computed; nothing is kept in snapshots.
    ///
    /// `first`, `last` and `collect` order rows by their times, and those of equal times by the values. A change of a row
    /// costs about a 64th of its window's rows; counts and sums of very large windows cost less by
    /// [`Collection::count_by_key`] and [`Collection::sum_by_key`].
    pub fn aggregate<A: Aggregate<D>>(
        self,
        name: &str,
        build: impl FnOnce(Each<D>) -> A,
    ) -> Collection<'f, Open<K, A::Value>> {
        let WindowedCollection { rows, place, windows } = self;
        let aggregate = Rc::new(build(Each::new()));
        let failure = Arc::clone(&rows.flow.build.failure);
        if let Err(error) = aggregate.check() {
            failure.set(error.at_step(name));
        }
        let reporter = ValueReporter { name: name.to_owned(), aggregate: Rc::clone(&aggregate), failure };
        let assigner = windows.clone();
        let in_windows = move |row: D| {
            let (key, time) = place(&row);
            let found = assigner.find(time);
            let range = PaneRange::new(found.first, found.last);
            let part = route(&row) % PARTS;
            let ends: Vec<EventTime> = assigner.ends(range, EventTime::MIN, EventTime::MAX).collect();
            ends.into_iter().map(move |end| (((end, key.clone()), part), (time, row.clone())))
        };
        rows.through(|rows| {
            let parts = rows.flat_map(in_windows);
            let totals = parts.reduce_named("Windows of a part", move |_part, rows, totals| {
                let mut total = None;
                for ((time, row), times) in rows.iter().filter(|(_, times)| *times > 0) {
                    let (time, watermark, origin) = (*time, EventTime::MIN, Origin::default());
                    let event = Event { time, watermark, origin, data: row.clone() };
                    let one = Counted { count: 1, sum: aggregate.lift(aggregate.part(&event)) };
                    add(&mut total, &repeated(one, *times));
                }
                totals.extend(total.map(|total| (total, 1)));
            });
            let totals = totals.map(|((window, _part), total)| (window, total));
            let rows = totals.reduce_named("Windows", move |(end, key), parts, rows| {
                let mut total = None;
                parts.iter().for_each(|(part, times)| add(&mut total, &repeated((*part).clone(), *times)));
                let window = windows.interval(*end);
                let value = total.and_then(|total| reporter.value(window, key, &total));
                rows.extend(value.map(|value| ((window, value), 1)));
            });
            rows.map(|((_end, key), (window, value))| Open { window, key, value })
        })
    }
}

/// Adds a total to what there is.
fn add<S: Accumulator>(total: &mut Option<Counted<S>>, other: &Counted<S>) {
    match total {
        Some(total) => total.plus_equals(other),
        none => *none = Some(other.clone()),
    }
}

/// Returns `times` times a total, at least once, by doubling it.
fn repeated<S: Accumulator>(total: Counted<S>, times: isize) -> Counted<S> {
    let (mut power, mut all, mut left) = (total, None, times.max(1));
    while left > 1 {
        if left % 2 == 1 {
            add(&mut all, &power);
        }
        let half = power.clone();
        power.plus_equals(&half);
        left /= 2;
    }
    if let Some(all) = all {
        power.plus_equals(&all);
    }
    power
}
