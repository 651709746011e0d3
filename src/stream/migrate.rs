//! Conversion of the accumulators of windows: [`Aggregated::migrate`].

use std::sync::Arc;

use crate::record::Record;
use crate::stream::BuildMode;
use crate::stream::aggregate::{Accumulator, Aggregate};
use crate::stream::arrange::{Saved, pane_rows};
use crate::stream::checkpoint::{not_its_rows, try_convert_rows};
use crate::stream::count::CountState;
use crate::stream::keyed_rows::{SavedVersion, end_of_version, saved_versions};
use crate::stream::panes::PaneRange;
use crate::stream::session::{Session, end_of_sessions};
use crate::stream::window::Aggregated;
use crate::time::EventTime;

impl<K: Record, D: Record, A: Aggregate<D>> Aggregated<'_, K, D, A> {
    /// Says how accumulators of the type `Old`, which earlier versions of the query kept, become those of today. It is for
    /// changes that serde cannot describe: see "Types that change" in `docs/operations.md`.
    ///
    /// The accumulators of `sum`, `min` and so on are types of [`aggregate`](super::aggregate); a tuple of aggregates has
    /// the tuple of theirs, and `count` has `()`. `Old` is the very type that was stored, with the key of today. A window's
    /// records are added up as `Old` before `convert` is called; afterwards the window's further records are added to its
    /// result. `convert` has to be a function of its argument alone.
    ///
    /// The call may stay, and be repeated for several earlier types: a state that fits the query needs no conversion.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::stream::aggregate::{Greatest, WideSum};
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::Window;
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let sales = MemorySource::new(vec![vec![(7u32, 10i64)]], |sale: &(u32, i64)| sale.1);
    /// let sums = Captured::new();
    /// let output = sums.clone();
    /// TestRun::new().run(move |flow| {
    ///     let keyed = flow.read("sales", &sales).key_by(|sale| sale.0).window(Window::tumbling(Duration::from_secs(1)));
    ///     // There was a sum and a maximum; the maximum is gone.
    ///     let totals = keyed
    ///         .aggregate("totals", |each| (each.count(), each.sum(|sale| sale.1)))
    ///         .migrate(|((), sum, _max): ((), WideSum, Greatest<i64>)| ((), sum));
    ///     totals.on_close().map(|row| (row.key, row.value)).write("totals", &output);
    /// })?;
    /// assert_eq!(sums.all(), [(7, (1, 10))]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn migrate<Old: Accumulator>(self, convert: impl Fn(Old) -> A::Sum + Send + Sync + 'static) -> Self {
        let (flow, name) = (self.made.flow(), &*self.made.name);
        if flow.build.mode == BuildMode::Run {
            return self;
        }
        let convert = Arc::new(convert);
        let by_window = {
            let convert = Arc::clone(&convert);
            move |(row, total): Saved<EventTime, K, Old>| (row, total.map(&*convert))
        };
        let by_range = {
            let convert = Arc::clone(&convert);
            move |(row, total): Saved<PaneRange, K, Old>| (row, total.map(&*convert))
        };
        let by_session = {
            let convert = Arc::clone(&convert);
            move |(key, version): SavedVersion<K, Vec<Session<Old>>>| {
                let sessions = |row: Vec<Session<Old>>| row.into_iter().map(|one| one.map(&*convert)).collect();
                (key, version.map(sessions))
            }
        };
        let by_count = move |(key, version): SavedVersion<K, CountState<Old>>| {
            (key, version.map(|row: CountState<Old>| row.map(&*convert)))
        };
        let end = |saved: &SavedVersion<K, Vec<Session<Old>>>| end_of_version(saved, |row| end_of_sessions(row));
        let found = try_convert_rows::<_, Saved<EventTime, K, A::Sum>>(flow, name, pane_rows(), by_window)
            || try_convert_rows::<_, Saved<PaneRange, K, A::Sum>>(flow, name, pane_rows(), by_range)
            || try_convert_rows::<_, SavedVersion<K, Vec<Session<A::Sum>>>>(
                flow,
                name,
                saved_versions(end),
                by_session,
            )
            || try_convert_rows::<_, SavedVersion<K, CountState<A::Sum>>>(
                flow,
                name,
                saved_versions(|_| EventTime::MAX),
                by_count,
            );
        if !found {
            flow.build.failure.set(not_its_rows(name));
        }
        self
    }
}
