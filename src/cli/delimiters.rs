//! The flags of the characters between the fields of CSV.
//!
//! Invariant: a flag that would change nothing is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::source::csv::Delimiter;

/// The flags of the characters between the fields of CSV that is read and written, in files, in messages and on standard
/// output.
#[derive(Clone, Debug, Default, Args)]
pub struct DelimiterArgs {
    /// Character between the fields of CSV, in files and in messages of the format csv: one ASCII character such as ';' or
    /// '|', or tab [default: a comma]
    #[arg(long, value_name = "CHARACTER")]
    pub delimiter: Option<Delimiter>,

    /// The same for CSV that is written, if it is to have another character than CSV that is read
    #[arg(long, value_name = "CHARACTER")]
    pub out_delimiter: Option<Delimiter>,

    /// The use of the flags so far, by all clones of them.
    #[arg(skip)]
    used: Arc<DelimiterUse>,
}

/// Notes of what the characters are between.
#[derive(Debug, Default)]
struct DelimiterUse {
    reads: AtomicBool,
    writes: AtomicBool,
}

impl DelimiterArgs {
    /// Returns the character between fields that are read.
    pub fn input(&self) -> Delimiter {
        self.delimiter.unwrap_or_default()
    }

    /// Returns the character between fields that are written.
    pub fn output(&self) -> Delimiter {
        self.out_delimiter.unwrap_or_else(|| self.input())
    }

    /// Returns the character between fields that are read, and notes that there are some.
    pub(super) fn for_reading(&self) -> Delimiter {
        self.used.reads.store(true, Ordering::Relaxed);
        self.input()
    }

    /// Returns the character between fields that are written, and notes that there are some.
    pub(super) fn for_writing(&self) -> Delimiter {
        self.used.writes.store(true, Ordering::Relaxed);
        self.output()
    }

    /// Adds the character between the fields of a topic's messages, if these are CSV, to what a state is bound to: messages
    /// that are replayed are decoded again. That of a file is part of the file's identity.
    pub(super) fn bind(&self, job: Job, messages_are_csv: bool) -> Job {
        match self.delimiter.filter(|_| messages_are_csv) {
            Some(delimiter) => job.fingerprint_flag("delimiter", &delimiter.to_string()),
            None => job,
        }
    }

    /// Checks that each flag that is given has been used.
    ///
    /// # Errors
    /// Fails if a flag would change nothing.
    pub(super) fn check_used(&self) -> Result<()> {
        let DelimiterUse { reads, writes } = &*self.used;
        self.check(reads.load(Ordering::Relaxed), writes.load(Ordering::Relaxed))
    }

    /// Checks that each flag that is given is about something; `reads` and `writes` are `true` if CSV is.
    ///
    /// # Errors
    /// Fails if a flag would change nothing.
    pub(super) fn check(&self, reads: bool, writes: bool) -> Result<()> {
        if self.out_delimiter.is_some() && !writes {
            let error = Error::usage("--out-delimiter: nothing that is written is CSV");
            return Err(error.help("leave it out, or write CSV, to a file that ends in .csv or to a topic"));
        }
        let is_about_output = writes && self.out_delimiter.is_none();
        if self.delimiter.is_some() && !reads && !is_about_output {
            let error = Error::usage(match writes {
                true => "--delimiter: nothing that is read is CSV, and --out-delimiter is for what is written",
                false => "--delimiter: nothing that is read or written is CSV",
            });
            return Err(error.help("leave it out, or name the format of what is read: --csv FILE or --format csv"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_is_between_no_fields_is_refused() {
        for (delimiter, out, reads, writes, refused) in [
            (None, None, false, false, None),
            (Some(';'), None, true, false, None),
            (Some(';'), None, false, true, None),
            (Some(';'), Some('|'), true, true, None),
            (None, Some('|'), false, true, None),
            (Some(';'), None, false, false, Some("--delimiter: nothing that is read or written")),
            (Some(';'), Some('|'), false, true, Some("--delimiter: nothing that is read is CSV")),
            (None, Some('|'), true, false, Some("--out-delimiter: ")),
            (Some(';'), Some('|'), true, false, Some("--out-delimiter: ")),
        ] {
            let mut args = DelimiterArgs { delimiter: delimiter.map(Delimiter::from), ..DelimiterArgs::default() };
            args.out_delimiter = out.map(Delimiter::from);
            let error = args.check(reads, writes).err();
            // A clone that is used is a use.
            let clone = args.clone();
            if reads {
                assert_eq!(clone.for_reading(), clone.input());
            }
            if writes {
                assert_eq!(clone.for_writing(), clone.output());
            }
            assert_eq!(args.check_used().err(), error);
            let said = error.as_ref().map(ToString::to_string);
            assert!(error.is_none_or(|error| error.exit_code() == 2));
            match refused {
                None => assert_eq!(said, None),
                Some(why) => assert!(said.as_ref().is_some_and(|said| said.starts_with(why)), "{said:?}"),
            }
        }
    }

    #[test]
    fn what_is_written_is_as_what_is_read_unless_that_is_said_otherwise() {
        let both = |args: &DelimiterArgs| (args.input(), args.output());
        let mut args = DelimiterArgs::default();
        assert_eq!(both(&args), (','.into(), ','.into()));
        args.delimiter = Some('|'.into());
        assert_eq!(both(&args), ('|'.into(), '|'.into()));
        args.out_delimiter = Some(','.into());
        assert_eq!(both(&args), ('|'.into(), ','.into()));
    }
}
