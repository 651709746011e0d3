//! Earlier names of steps, sources and outputs: `.was("old name")`.
//!
//! A state knows steps by name. A step that has got another name, and says which one it had, continues the state of the
//! old name; without it the start is refused, as the state has rows of a step that the query lacks.
//!
//! Rules, checked when the query is built: one old name has one heir, and is no longer a name of the query. A state that
//! does not have the old name is not concerned, so `.was` may stay as long as states with the old name may be resumed.
//! A state that has rows under both names is refused.

use timely::progress::Source as OutputPort;

use crate::durable::declared_changes::NameScope;
use crate::error::Error;
use crate::record::Record;
use crate::stream::{Collection, Flow, Stream};

impl Flow<'_> {
    /// Records an earlier name of the steps that a stream is an output of. Fails the job if it is of none.
    pub(super) fn record_earlier_name(&self, port: &OutputPort, old: &str) {
        if !self.build.registry.rename_output(port, old) {
            let error = Error::usage(format!("`.was(\"{old}\")` is behind nothing that has a name in a state"));
            let help = "put it directly behind `read`, `table`, `aggregate`, `keyed_state`, `last_by_key` and the like";
            self.build.failure.set(error.help(help));
        }
    }

    /// Says that the output `name` was written as `old` by earlier versions of the query: it continues the old one.
    /// The rules of [`Stream::was`] hold.
    ///
    /// A Kafka topic knows its output by name. It goes on to know it by the old one, so the line has to stay as long as the
    /// state is used: without it, the start is refused.
    pub fn output_was(&self, name: &str, old: &str) {
        self.build.registry.rename(NameScope::Output, name, old);
    }
}

impl<D: Record> Stream<'_, D> {
    /// Says that the source or the step that this stream comes directly from had another name in earlier versions of the
    /// query. It continues what a state has under that name: where a source was read up to, the rows of a step.
    ///
    /// A state that has only the new name is resumed as if nothing were said, so the call may stay. It may be repeated,
    /// with further names. The start is refused if the old name is still a name in the query, if two claim one old name,
    /// or if a state has rows under both names.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidegate::source::memory::MemorySource;
    /// use tidegate::testing::{Captured, TestRun};
    /// use tidegate::{State, Window};
    ///
    /// # fn main() -> tidegate::Result<()> {
    /// let clicks = MemorySource::new(vec![vec![("a".to_string(), 10)]], |click: &(String, i64)| click.1);
    /// let counts = Captured::new();
    /// let output = counts.clone();
    /// TestRun::new().run(move |flow| {
    ///     let per_second = flow
    ///         .read("clicks", &clicks)
    ///         .was("events")
    ///         .key_by(|click| click.0.clone())
    ///         .window(Window::tumbling(Duration::from_secs(1)))
    ///         .aggregate("per second", |each| each.count())
    ///         .was("counts");
    ///     per_second.on_close().map(|row| (row.key, row.value)).write("counts", &output);
    /// })?;
    /// assert_eq!(counts.all(), [("a".to_string(), 1)]);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn was(self, old: &str) -> Self {
        self.flow.record_earlier_name(self.events.name(), old);
        self
    }
}

impl<D: Record> Collection<'_, D> {
    /// Says that the table or the step that this collection comes directly from had another name in earlier versions of
    /// the query: see [`Stream::was`]. Behind [`Flow::table`] it is a name of both the source and the table.
    #[must_use]
    pub fn was(self, old: &str) -> Self {
        self.flow.record_earlier_name(self.inner.inner.name(), old);
        self
    }
}
