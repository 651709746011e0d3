//! The error type of the whole crate: what failed, where, and what to do.
//!
//! Invariant: an error prints as one line that a user can act on; it never prints a value in its `Debug` form.

use std::borrow::Cow;
use std::sync::Arc;
use std::{fmt, io};

/// The result of every fallible operation of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a failure, for programs that act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is invalid: an option, a query, a flag (exit code 2).
    Usage,
    /// Another process holds the state.
    StateInUse,
    /// There is no state, or no snapshot of it, where one was expected.
    StateMissing,
    /// The state is of another kind than the program expects: another format, other row types, another state.
    StateIncompatible,
    /// A file of the state is damaged or missing.
    StateDamaged,
    /// A later incarnation has taken over the state or the output.
    Superseded,
    /// The query differs from the one that the state is of.
    QueryChanged,
    /// A source cannot be opened or read: a file, a topic, its brokers.
    SourceUnreachable,
    /// A source is not the one that the state has read, or has lost records that are still needed.
    SourceChanged,
    /// Brokers refuse access.
    AccessRefused,
    /// A schema registry lacks a schema that is needed, or refuses one, such as an incompatible one.
    SchemaRefused,
    /// A record was rejected, and the job was told to fail then.
    RecordRejected,
    /// An output has published less than the state knows.
    SinkBehind,
    /// An output has published more than the state knows.
    SinkAhead,
    /// An output cannot be opened or written.
    SinkFailed,
    /// A disk is full.
    DiskFull,
    /// A value cannot be computed, such as a sum that is too large.
    ValueFailed,
    /// A process of the job is gone or cannot be reached.
    ProcessLost,
    /// A thread panicked, in the query or in the engine.
    Panicked,
    /// Anything else.
    Other,
}

/// An error: the failed operation, its place, the cause and the remedy.
#[derive(Clone, Debug)]
pub struct Error {
    inner: Box<ErrorParts>,
}

#[derive(Clone, Debug)]
struct ErrorParts {
    kind: ErrorKind,
    what: String,
    place: Option<String>,
    step: Option<String>,
    partition: Option<u32>,
    cause: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    remedy: Option<String>,
    is_transient: bool,
    is_interruption: bool,
}

impl ErrorParts {
    /// Returns all that two equal errors have in common; sources cannot be compared, and their texts are in the cause.
    fn comparable(&self) -> impl PartialEq + '_ {
        let places = (&self.place, &self.step, self.partition);
        (self.kind, &self.what, places, &self.cause, &self.remedy, self.is_transient, self.is_interruption)
    }
}

impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        self.inner.comparable() == other.inner.comparable()
    }
}

impl Eq for Error {}

impl Error {
    /// A failed operation; `what` is a clause without a full stop, such as "cannot open the results file".
    pub fn new(what: impl Into<String>) -> Self {
        Error::of(ErrorKind::Other, what)
    }

    /// A failed operation of this kind; `what` is a clause without a full stop.
    pub fn of(kind: ErrorKind, what: impl Into<String>) -> Self {
        let inner = ErrorParts {
            kind,
            what: what.into(),
            place: None,
            step: None,
            partition: None,
            cause: None,
            source: None,
            remedy: None,
            is_transient: false,
            is_interruption: false,
        };
        Error { inner: Box::new(inner) }
    }

    /// An invalid request.
    pub fn usage(what: impl Into<String>) -> Self {
        Error::of(ErrorKind::Usage, what)
    }

    /// Sets the place: a file, a topic, a process.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.inner.place = Some(place.to_string());
        self
    }

    /// Sets the place to a step of the query.
    #[must_use]
    pub fn at_step(mut self, name: &str) -> Self {
        self.inner.step = Some(name.to_owned());
        self.at(format_args!("step `{name}`"))
    }

    /// Sets the place to a partition of a source.
    #[must_use]
    pub fn at_partition(mut self, source: impl fmt::Display, partition: u32) -> Self {
        self.inner.partition = Some(partition);
        self.at(format_args!("{source}, partition {partition}"))
    }

    /// Sets the cause: the message of the operating system or of a library.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.inner.cause = Some(cause.to_string());
        self
    }

    /// Keeps the error of the operating system or of a library as the [source](std::error::Error::source). It is the cause as
    /// well, unless one is set. A full disk decides the kind.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let as_any: &dyn std::any::Any = &source;
        if as_any.downcast_ref::<io::Error>().is_some_and(is_full) {
            self.inner.kind = ErrorKind::DiskFull;
        }
        self.inner.cause.get_or_insert_with(|| source.to_string());
        self.inner.source = Some(Arc::new(source));
        self
    }

    /// Keeps the error of a library as the [source](std::error::Error::source), and leaves the cause as it is: for errors
    /// whose own words say as much.
    #[must_use]
    #[cfg(feature = "kafka")]
    pub(crate) fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.inner.source = Some(Arc::new(source));
        self
    }

    /// Sets the remedy.
    #[must_use]
    pub fn help(mut self, remedy: impl fmt::Display) -> Self {
        self.inner.remedy = Some(remedy.to_string());
        self
    }

    /// Marks an error as transient, so that the operation is retried: a broker is unreachable, a transaction was
    /// aborted.
    #[must_use]
    #[cfg(feature = "kafka")]
    pub(crate) fn transient(mut self) -> Self {
        self.inner.is_transient = true;
        self
    }

    /// `true` if the error is transient: the next attempt may succeed.
    #[cfg(feature = "kafka")]
    pub(crate) fn is_transient(&self) -> bool {
        self.inner.is_transient
    }

    /// Marks an error as the end of a wait because the job stops, or has failed: what was waited for may be there at the
    /// next start.
    #[must_use]
    #[cfg(feature = "registry")]
    pub(crate) fn interruption(mut self) -> Self {
        self.inner.is_interruption = true;
        self
    }

    /// `true` if the error is the end of a wait because the job stops, or has failed.
    pub(crate) fn is_interruption(&self) -> bool {
        self.inner.is_interruption
    }

    /// Returns the kind of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns the place of the failure, as the error prints it; `None` if it has none.
    pub fn place(&self) -> Option<&str> {
        self.inner.place.as_deref()
    }

    /// Returns the name of the query's step that failed; `None` if it was no step.
    pub fn step(&self) -> Option<&str> {
        self.inner.step.as_deref()
    }

    /// Returns the number of the partition that failed; `None` if it was no partition.
    pub fn partition(&self) -> Option<u32> {
        self.inner.partition
    }

    /// The exit code of a program that fails with this error: 2 for an invalid request, else 1.
    pub fn exit_code(&self) -> u8 {
        if self.inner.kind == ErrorKind::Usage { 2 } else { 1 }
    }
}

/// `true` if the disk, or the user's part of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Maximum number of characters printed of each part of an error: a library may quote a whole record in it.
const PRINTED: usize = 1_000;

/// Shortens a text of more than `most` characters to its first and last ones, and the number of characters left out.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let length = text.chars().count();
    if length <= most {
        return Cow::Borrowed(text);
    }
    let end = most / 4;
    let first = text.chars().take(most - end);
    let last = text.chars().skip(length - end);
    let between = format!("… ({} characters more) …", length - most);
    Cow::Owned(first.chain(between.chars()).chain(last).collect())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorParts { what, place, cause, remedy, .. } = &*self.inner;
        let mut line = shortened(what, PRINTED).into_owned();
        if let Some(place) = place {
            line.push_str(&format!(" ({})", shortened(place, PRINTED)));
        }
        if let Some(cause) = cause {
            line.push_str(&format!(": {}", shortened(cause, PRINTED)));
        }
        if let Some(remedy) = remedy {
            line.push_str(&format!("; {remedy}"));
        }
        // One line, whatever a library put into its own message.
        f.write_str(&line.replace(['\n', '\r'], " "))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_printed_in_part() {
        let cause = format!("begin{}end", "ü".repeat(1 << 20));
        let error = Error::new("w").because(&cause).to_string();
        assert!(error.len() < 4_000 && error.starts_with("w: begin") && error.ends_with("end"), "{error}");
        assert!(error.contains("(1047584 characters more)"), "{error}");
        assert_eq!(shortened("üü", 2), "üü");
    }

    #[test]
    fn an_error_is_one_line_that_says_what_where_why_and_what_to_do() {
        let error = Error::new("cannot open the input").at("a.csv").because("no\nsuch file").help("check --csv");
        assert_eq!(error.to_string(), "cannot open the input (a.csv): no such file; check --csv");
        assert_eq!((error.exit_code(), Error::usage("no").exit_code()), (1, 2));
    }

    #[test]
    fn kinds_places_and_sources_can_be_matched() {
        use std::error::Error as _;
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::of(ErrorKind::SinkFailed, "cannot write").at("a.csv").caused_by(full());
        assert_eq!((error.kind(), error.exit_code(), error.place()), (ErrorKind::DiskFull, 1, Some("a.csv")));
        let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::StorageFull));
        assert_eq!(error, Error::of(ErrorKind::DiskFull, "cannot write").at("a.csv").because(full()));
        let denied = Error::new("w").because("as said").caused_by(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!((denied.kind(), denied.to_string()), (ErrorKind::Other, "w: as said".into()));
        let step = Error::new("w").at_step("totals");
        assert_eq!((step.step(), step.to_string()), (Some("totals"), "w (step `totals`)".into()));
        let partition = Error::new("w").at_partition("topic t at b", 3);
        assert_eq!((partition.partition(), partition.to_string()), (Some(3), "w (topic t at b, partition 3)".into()));
        assert_ne!(step, partition);
        assert_eq!(Error::usage("w").kind(), ErrorKind::Usage);
    }
}
