//! The sink of a query's late records: as rows, or as the messages that they were read as.

use std::fmt;

use clap::ValueEnum;

use crate::record::Record;
use crate::sink::Sink;
use crate::source::DeadLetter;
use crate::stream::Stream;

/// Forms of late records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[non_exhaustive]
pub enum LateForm {
    /// Rows, as results are.
    #[default]
    Rows,
    /// The messages that the records were read as.
    Messages,
}

/// The sink of late records that the flags name.
pub enum LateSink<D> {
    /// Gets rows.
    Rows(Box<dyn Sink<D>>),
    /// Gets the messages that the records were read as.
    Messages(Box<dyn Sink<DeadLetter>>),
}

impl<D: Record> LateSink<D> {
    /// Writes the late records of the step named `step` to the sink, which the flow knows as `name`.
    pub fn write(&self, name: &str, late: Stream<'_, D>, step: &str) {
        match self {
            LateSink::Rows(rows) => late.write(name, rows),
            LateSink::Messages(letters) => late.dead_letters(step, LATE).write(name, letters),
        }
    }

    /// Writes the late records of both inputs of a join, as [`LateSink::write`] does; `left` and `right` make rows of
    /// them.
    pub fn write_both<'f, L: Record, R: Record>(
        &self,
        name: &str,
        (late_left, left): (Stream<'f, L>, impl Fn(L) -> D + 'static),
        (late_right, right): (Stream<'f, R>, impl Fn(R) -> D + 'static),
        step: &str,
    ) {
        match self {
            LateSink::Rows(rows) => late_left.map(left).concat(late_right.map(right)).write(name, rows),
            LateSink::Messages(letters) => {
                let (left, right) = (late_left.dead_letters(step, LATE), late_right.dead_letters(step, LATE));
                left.concat(right).write(name, letters);
            }
        }
    }
}

impl<D> fmt::Debug for LateSink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LateSink::Rows(_) => "LateSink::Rows",
            LateSink::Messages(_) => "LateSink::Messages",
        })
    }
}

/// Beginning of the reason of a late message.
const LATE: &str = "late";
