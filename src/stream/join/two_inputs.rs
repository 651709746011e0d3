//! Keyed state of two streams: see [`Keyed::keyed_state_with`].

use std::marker::PhantomData;

use super::joined::{JoinInputs, Joined};
use super::side::JoinSide;
use crate::record::Record;
use crate::stream::assign::TimeRouter;
use crate::stream::keyed_rows::KeyedRows;
use crate::stream::keyed_stream::Keyed;
use crate::stream::operator_state::Subscriptions;
use crate::stream::state::{StateContext, StateFunctions};

impl<'f, K: Record, L: Record> Keyed<'f, K, L> {
    /// Keeps a value for each key of two streams: [`Keyed::keyed_state`] with a second input. `on_left` is called with the
    /// records of this stream, `on_right` with those of the other: all of them in the order of event time, those of equal
    /// time by source, partition and offset, when the watermark of both streams has passed them. A left record comes before
    /// a right one where nothing else tells them apart. All three
    /// functions get the key's value, `None` until one of them sets it. So any join can be written that the others are
    /// not.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// // (door, event time): which doors were opened by whom, if the badge was read less than 5 s before?
    /// let badges = MemorySource::new(vec![vec![('a', "Ann", 0), ('b', "Bea", 1_000)]].into_iter().map(own).collect(), at);
    /// let doors = MemorySource::new(vec![vec![('a', "", 4_000), ('b', "", 9_000)]].into_iter().map(own).collect(), at);
    /// let opened = Captured::<(char, Option<String>)>::new();
    /// let output = opened.clone();
    /// TestRun::new().run(move |flow| {
    ///     let doors = flow.read("doors", &doors).key_by(|door| door.0);
    ///     let badges = flow.read("badges", &badges).key_by(|badge| badge.0);
    ///     let opened = badges.keyed_state_with(
    ///         "who",
    ///         doors,
    ///         |at, last: &mut Option<String>, (_, person, _)| {
    ///             *last = Some(person);
    ///             at.clear_timers();
    ///             at.set_timer_in(Duration::from_secs(5));
    ///         },
    ///         |at, last, (door, ..)| at.emit((door, last.clone())),
    ///         |_, last| *last = None,
    ///     );
    ///     opened.results().write("opened", &output);
    /// })?;
    /// assert_eq!(opened.all(), [('a', Some("Ann".to_string())), ('b', None)]);
    /// # Ok(()) }
    ///
    /// fn at(record: &(char, String, i64)) -> i64 {
    ///     record.2
    /// }
    ///
    /// fn own(rows: Vec<(char, &str, i64)>) -> Vec<(char, String, i64)> {
    ///     rows.into_iter().map(|(door, person, at)| (door, person.to_string(), at)).collect()
    /// }
    /// ```
    pub fn keyed_state_with<R: Record, S: Record, O: Record>(
        self,
        name: &str,
        other: Keyed<'f, K, R>,
        on_left: impl Fn(&mut StateContext<'_, K, O>, &mut Option<S>, L) + 'static,
        on_right: impl Fn(&mut StateContext<'_, K, O>, &mut Option<S>, R) + 'static,
        on_timer: impl Fn(&mut StateContext<'_, K, O>, &mut Option<S>) + 'static,
    ) -> Joined<'f, L, R, O> {
        let inputs = JoinInputs { name: name.to_owned(), left: self, right: other };
        let lateness = inputs.lateness();
        let metrics = inputs.left.stream.flow.build.metrics.step(name);
        let on_record = move |at: &mut StateContext<'_, K, O>, state: &mut Option<S>, record| match record {
            JoinSide::Left(record) => on_left(at, state, record),
            JoinSide::Right(record) => on_right(at, state, record),
        };
        let functions = StateFunctions { on_record, on_timer, types: PhantomData };
        inputs.step(
            "state by key of two streams",
            lateness,
            (TimeRouter(lateness), TimeRouter(lateness)),
            move |start| {
                KeyedRows::begin(
                    functions,
                    (start.closed, start.durable),
                    (Subscriptions::default(), lateness),
                    metrics,
                )
            },
        )
    }
}
