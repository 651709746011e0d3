//! Standard output, as CSV or NDJSON.
//!
//! Each epoch is one write. Invariant: **at least once**, not exactly once. Printed rows can be neither read back nor
//! withdrawn, so a job that starts again prints again, and a reader may see a part of an epoch whose write failed. If
//! the reader goes away, the job fails with an error that says so.

use std::io::{self, Write};

use super::encode::EncodeRows;
use super::{Sink, SinkContext, SinkRows, SinkWriter, csv, ndjson};
use crate::durable::journal::JournalEnds;
use crate::durable::{Incarnation, PublishedEpoch};
use crate::error::{Error, ErrorKind, Result};
use crate::record::Record;
use crate::source::csv::Delimiter;
use crate::time::Epoch;

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub struct Stdout {
    format: StdoutFormat,
}

#[derive(Clone, Copy, Debug)]
enum StdoutFormat {
    Csv(Delimiter),
    Ndjson,
}

impl Stdout {
    /// Prints a CSV header, then one line per row.
    pub fn csv() -> Self {
        Self::csv_between(Delimiter::COMMA)
    }

    /// Prints CSV as [`Stdout::csv`] does, with another character between the fields: see [`Delimiter`].
    pub fn csv_between(delimiter: impl Into<Delimiter>) -> Self {
        Stdout { format: StdoutFormat::Csv(delimiter.into()) }
    }

    /// Prints one JSON object per row, each on a line of its own.
    pub fn ndjson() -> Self {
        Stdout { format: StdoutFormat::Ndjson }
    }
}

impl<D: Record> Sink<D> for Stdout {
    fn describe(&self) -> String {
        "stdout".into()
    }

    fn check(&self, rows: SinkRows) -> Result<()> {
        match self.format {
            StdoutFormat::Csv(delimiter) => {
                delimiter.check()?;
                csv::Encoder::new::<D>(rows).map(drop)
            }
            StdoutFormat::Ndjson => ndjson::Encoder::new::<D>(rows).map(drop),
        }
    }

    fn open(&self, at: &SinkContext) -> Result<Box<dyn SinkWriter<D>>> {
        Ok(match self.format {
            StdoutFormat::Csv(delimiter) => {
                let encoder = csv::Encoder::new::<D>(at.rows)?.delimiter(delimiter);
                Box::new(Printer::start::<D>(io::stdout(), encoder)?)
            }
            StdoutFormat::Ndjson => Box::new(Printer::start::<D>(io::stdout(), ndjson::Encoder::new::<D>(at.rows)?)?),
        })
    }
}

/// Writer that prints epochs.
struct Printer<E, T> {
    target: T,
    encoder: E,
    lines: Vec<u8>,
}

impl<E, T: Write> Printer<E, T> {
    fn start<D: Record>(target: T, encoder: E) -> Result<Self>
    where
        E: EncodeRows<D>,
    {
        let mut lines = Vec::new();
        encoder.header(&mut lines);
        let mut printer = Printer { target, encoder, lines };
        printer.print()?;
        Ok(printer)
    }

    /// Prints the lines. Standard output is locked for the length of one `write_all`.
    fn print(&mut self) -> Result<()> {
        let printed = self.target.write_all(&self.lines).and_then(|()| self.target.flush());
        self.lines.clear();
        printed.map_err(|why| {
            let failed = Error::of(ErrorKind::SinkFailed, "cannot print the results").at("stdout");
            match why.kind() {
                io::ErrorKind::BrokenPipe => failed.because("whoever was reading them has stopped"),
                _ => failed.because(why),
            }
        })
    }
}

impl<D: Record, E: EncodeRows<D>, T: Write + Send> SinkWriter<D> for Printer<E, T> {
    fn published(&mut self) -> Result<Option<PublishedEpoch>> {
        Ok(None)
    }

    fn begin(&mut self, _life: &Incarnation) -> Result<()> {
        Ok(())
    }

    fn publish(&mut self, _ends: &JournalEnds) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: Epoch, rows: &[(D, isize)]) -> Result<()> {
        self.encoder.rows(rows, &mut self.lines).map_err(|error| error.at("stdout"))?;
        self.print()
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Rejected;

    /// Keeps each write.
    #[derive(Default)]
    struct Writes(Vec<String>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_epoch_is_one_write() {
        let encoder = ndjson::Encoder::new::<u32>(SinkRows::Changes).unwrap();
        let mut printer = Printer::start::<u32>(Writes::default(), encoder).unwrap();
        printer.write(Epoch(2), &[(1, 1), (2, -1)]).unwrap(); // Retractions come first.
        printer.write(Epoch(3), &[(2, 1)]).unwrap();
        let expected = ["{\"row\":2,\"diff\":-1}\n{\"row\":1,\"diff\":1}\n", "{\"row\":2,\"diff\":1}\n"];
        assert_eq!(printer.target.0, expected);
        assert_eq!(SinkWriter::<u32>::published(&mut printer).unwrap(), None);
    }

    #[test]
    fn the_header_is_printed_before_there_is_a_row() {
        let encoder = csv::Encoder::new::<Rejected>(SinkRows::Events).unwrap();
        let printer = Printer::start::<Rejected>(Writes::default(), encoder).unwrap();
        assert_eq!(printer.target.0, ["source,place,partition,offset,line,reason,encoding,record\n"]);
    }

    #[test]
    fn a_reader_that_goes_away_is_an_error_that_says_so() {
        let (reader, writer) = io::pipe().unwrap();
        let mut printer =
            Printer::start::<u32>(writer, ndjson::Encoder::new::<u32>(SinkRows::Events).unwrap()).unwrap();
        printer.write(Epoch(2), &[(1, 1)]).unwrap();
        drop(reader);
        let error = printer.write(Epoch(4), &[(1, 1)]).unwrap_err();
        assert_eq!(error.to_string(), "cannot print the results (stdout): whoever was reading them has stopped");
    }

    #[test]
    fn rows_that_a_format_cannot_hold_are_refused() {
        assert!(Sink::<(u8, u8)>::check(&Stdout::csv(), SinkRows::Events).is_err());
        assert!(Sink::<(u8, u8)>::check(&Stdout::ndjson(), SinkRows::Events).is_ok());
        assert!(Sink::<Rejected>::check(&Stdout::csv_between(';'), SinkRows::Events).is_ok());
        assert!(Sink::<Rejected>::check(&Stdout::csv_between('"'), SinkRows::Events).is_err());
    }
}
