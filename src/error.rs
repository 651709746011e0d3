//! The error type of the whole crate: what failed, where, and what to do.
//!
//! Invariant: an error prints as one line that a user can act on; it never prints a value in its `Debug` form.

use std::borrow::Cow;
use std::fmt;

/// The result of every fallible operation of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The side that has to act, which decides the exit code of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// An operation failed (exit code 1).
    Failed,
    /// The request is invalid (exit code 2).
    Usage,
}

/// An error: the failed operation, its place, the cause and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    inner: Box<ErrorParts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ErrorParts {
    kind: ErrorClass,
    what: String,
    place: Option<String>,
    cause: Option<String>,
    remedy: Option<String>,
    is_transient: bool,
}

impl Error {
    /// A failed operation; `what` is a clause without a full stop, such as "cannot open the results file".
    pub fn new(what: impl Into<String>) -> Self {
        let (place, cause, remedy) = (None, None, None);
        let inner =
            ErrorParts { kind: ErrorClass::Failed, what: what.into(), place, cause, remedy, is_transient: false };
        Error { inner: Box::new(inner) }
    }

    /// An invalid request.
    pub fn usage(what: impl Into<String>) -> Self {
        let mut error = Error::new(what);
        error.inner.kind = ErrorClass::Usage;
        error
    }

    /// Sets the place: a file, a topic and partition, a step of the query.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.inner.place = Some(place.to_string());
        self
    }

    /// Sets the cause: the message of the operating system or of a library.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.inner.cause = Some(cause.to_string());
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
    pub(crate) fn transient(mut self) -> Self {
        self.inner.is_transient = true;
        self
    }

    /// `true` if the error is transient: the next attempt may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        self.inner.is_transient
    }

    /// The side that has to act.
    pub fn kind(&self) -> ErrorClass {
        self.inner.kind
    }

    /// The exit code of a program that fails with this error.
    pub fn exit_code(&self) -> u8 {
        match self.inner.kind {
            ErrorClass::Failed => 1,
            ErrorClass::Usage => 2,
        }
    }
}

/// Maximum number of characters printed of each part of an error: a library may quote a whole record in it.
const PRINTED: usize = 1_000;

/// Shortens a text of more than `most` characters to its first and last ones, and the number of characters left out.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
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

impl std::error::Error for Error {}

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
}
