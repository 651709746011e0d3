//! A topic as the sink of a job with state: what is shown at once is one transaction.
//!
//! Its id is that of the state and the sink, so to open it fences whatever process wrote under it before: what that one
//! had not committed is aborted, and it can neither send nor commit from then on. Only then is it read what is shown.
//!
//! Invariants: the record of an epoch's number is committed with its rows, or not at all. A life begins with a record of
//! its own, so a copy of the state's directory that begins the same life again is found out. After a failure nothing is
//! sent any more: what was committed is known only to the topic, and asked by the next life.

use super::progress::{self, Progress};
use super::publisher::Publisher;
use crate::durable::journal::JournalEnds;
use crate::durable::{Life, Published, StateId};
use crate::error::{Error, Result};
use crate::source::kafka::client::Target;
use crate::time::Epoch;

/// Shows epochs in transactions.
pub(super) struct Transactions {
    pub(super) publisher: Publisher,
    output: Target,
    progress: Target,
    key: String,
    /// What was found when it was asked what is shown.
    found: Option<Option<Progress>>,
    life: Option<Life>,
    /// The last epoch that was begun.
    last: Option<Epoch>,
    /// Whether anything is to be shown.
    unshown: bool,
    /// Whether something failed.
    broken: bool,
}

impl Transactions {
    /// Fences those before it, and makes sure that both topics are there.
    pub(super) fn open(output: &Target, create: Option<u32>, state: StateId, sink: &str) -> Result<Self> {
        let (progress, key) = (progress::topic_of(output), progress::key(state, sink));
        let publisher = Publisher::transactional(output.clone(), create, &format!("tidegate-{key}"))?;
        publisher.prepare(&progress, 1, progress::SETTINGS)?;
        let output = output.clone();
        let (found, life, last) = (None, None, None);
        Ok(Transactions { publisher, output, progress, key, found, life, last, unshown: false, broken: false })
    }

    /// What is shown, as the topics know it.
    pub(super) fn shown(&mut self) -> Result<Option<Published>> {
        let found = progress::read(&self.progress, &self.key)?;
        if let Some(progress) = &found {
            progress::check_output(&self.output, progress)?;
        }
        self.last = found.as_ref().and_then(|progress| progress.epoch);
        let published = found.as_ref().and_then(Progress::published);
        self.found = Some(found);
        Ok(published)
    }

    /// Begins a life, and puts that on record.
    pub(super) fn begin(&mut self, life: &Life) -> Result<()> {
        if self.found.is_none() {
            self.shown()?;
        }
        if let Some(Some(found)) = self
            .found
            .as_ref()
            .filter(|found| found.as_ref().is_some_and(|found| found.incarnation >= life.incarnation))
        {
            let (theirs, ours) = (found.incarnation, life.incarnation);
            return Err(Error::new("cannot go on with the topic")
                .at(self.output.describe())
                .because(format!("life {theirs} of the state wrote to it, and this is only life {ours}"))
                .help("use the newest copy of the state directory"));
        }
        self.life = Some(life.clone());
        self.unshown = true;
        self.show(&JournalEnds::default())
    }

    /// Begins an epoch, and a transaction if there is none.
    pub(super) fn next(&mut self, epoch: Epoch) -> Result<()> {
        if self.life.is_none() {
            return Err(self.bug("a topic was to be written to before it was begun"));
        }
        if self.last.is_some_and(|last| last >= epoch) {
            return Err(self.bug(&format!("epoch {epoch} was to be shown again, or out of order")));
        }
        self.usable()?;
        self.publisher.begin().map_err(|error| self.give_up(error))?;
        (self.last, self.unshown) = (Some(epoch), true);
        Ok(())
    }

    /// Commits what was sent, with the number of the last epoch.
    pub(super) fn show(&mut self, journal: &JournalEnds) -> Result<()> {
        if !self.unshown {
            return Ok(());
        }
        self.usable()?;
        self.commit(journal).map_err(|error| self.give_up(error))?;
        self.unshown = false;
        Ok(())
    }

    fn commit(&mut self, journal: &JournalEnds) -> Result<()> {
        let Some(life) = &self.life else { return Err(self.bug("a topic was to be shown before it was begun")) };
        // Acknowledgements that have not come yet are not waited for: that would take half as long again.
        let mut ends = self.found.iter().flatten().map(|found| found.ends.clone()).next().unwrap_or_default();
        for (partition, end) in self.publisher.ends() {
            let known = ends.entry(partition).or_insert(0);
            *known = (*known).max(end);
        }
        let progress = Progress { incarnation: life.incarnation, epoch: self.last, ends, journal: journal.clone() };
        let value = progress.to_value();
        let value =
            value.map_err(|why| Error::new("cannot write progress").at(self.progress.describe()).because(why))?;
        self.publisher.begin()?;
        self.publisher.send_aside(&self.progress.topic, self.key.as_bytes(), &value)?;
        self.publisher.settle()?;
        (life.still_current)()?;
        self.publisher.commit()
    }

    fn usable(&self) -> Result<()> {
        if self.broken {
            let error = Error::new("cannot show the results").at(self.output.describe());
            return Err(error.because("showing earlier ones failed"));
        }
        Ok(())
    }

    /// After a failure: nothing more is sent.
    pub(super) fn give_up(&mut self, error: Error) -> Error {
        self.broken = true;
        self.publisher.abort();
        error
    }

    fn bug(&self, what: &str) -> Error {
        Error::new(what).at(self.output.describe()).help("this is a bug in Tidegate: please report it")
    }
}

impl Drop for Transactions {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}
