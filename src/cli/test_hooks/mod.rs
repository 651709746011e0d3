//! Flags by which tests of whole programs inject faults: a kill at a chosen moment, a full disk, a wall clock that is
//! behind. Only the feature `testing` has them; without it [`TestHooks`] has no flags and changes nothing.

#[cfg(feature = "testing")]
mod kill_at;

#[cfg(feature = "testing")]
use std::time::Duration;

#[cfg(feature = "testing")]
use kill_at::KillAt;

use std::sync::Arc;

use clap::Args;

use crate::durable::disk::Disk;
use crate::job::Job;
use crate::record::Record;
use crate::sink::Sink;

/// The flags of tests.
#[derive(Clone, Debug, Args)]
pub struct TestHooks {
    /// Test hook: kill this process at this moment as SIGKILL would, or let its disk be full from then on
    #[cfg(feature = "testing")]
    #[arg(long, value_name = "before:KIND:N", requires = "state", hide = true)]
    pub kill_at: Option<KillAt>,

    /// Test hook: subtracted from the wall clock
    #[cfg(feature = "testing")]
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = super::duration, hide = true)]
    pub clock_behind: Duration,
}

#[cfg(feature = "testing")]
impl TestHooks {
    /// Sets the clock of a job.
    pub(super) fn adjust(&self, job: Job) -> Job {
        job.clock_behind(self.clock_behind)
    }

    /// Wraps a disk so that it injects the fault.
    pub(super) fn wrap_disk(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        match self.kill_at {
            Some(moment) => moment.wrap_disk(disk),
            None => disk,
        }
    }

    /// Wraps a sink so that its writers inject the fault.
    pub(super) fn wrap_sink<D: Record>(&self, sink: Box<dyn Sink<D>>) -> Box<dyn Sink<D>> {
        match self.kill_at {
            Some(moment) => moment.wrap_sink(sink),
            None => sink,
        }
    }
}

#[cfg(not(feature = "testing"))]
#[expect(clippy::unused_self, reason = "the same methods as with the feature `testing`")]
impl TestHooks {
    /// Returns the job unchanged.
    pub(super) fn adjust(&self, job: Job) -> Job {
        job
    }

    /// Returns the disk unchanged.
    pub(super) fn wrap_disk(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        disk
    }

    /// Returns the sink unchanged.
    pub(super) fn wrap_sink<D: Record>(&self, sink: Box<dyn Sink<D>>) -> Box<dyn Sink<D>> {
        sink
    }
}
