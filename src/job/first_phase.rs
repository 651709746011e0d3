//! The phase of a job in which only the sources that are read first are read.
//!
//! A worker has done its part when it has read its share of them to the ends that they had at the start, and has
//! released the epoch in which it did. The phase is over when all workers of all processes have done theirs.
//!
//! Invariant: when it is over, everything that was read first is durable. So no journal has records of a source that
//! waited without all of these.

use std::sync::atomic::Ordering;

use crate::durable::sources;
use crate::job::worker_shared::WorkerShared;
use crate::stream::Driver;
use crate::time::Epoch;

/// The phase, as one worker sees it.
pub(super) struct FirstPhase {
    /// The epoch in which this worker has come to the ends.
    reached_at: Option<Epoch>,
    /// `true` once the worker was counted as done.
    is_counted: bool,
    /// `true` once this process has told worker 0 that it is done.
    pub(super) is_told: bool,
    /// On worker 0: number of other processes that are done.
    pub(super) others: usize,
}

impl FirstPhase {
    /// Begins the phase; `None` if there is nothing to read first, nothing that waits for it, or a state that says that
    /// it is over. Tells the drivers what their state says.
    pub(super) fn begin(drivers: &mut [Box<dyn Driver>], shared: &WorkerShared) -> Option<Self> {
        let base = shared.durable.as_ref().and_then(|durable| durable.base.as_deref());
        let replay = if shared.continues_live { &*shared.replay_frames } else { &[] };
        for driver in drivers.iter_mut().filter(|driver| driver.is_first()) {
            if sources::was_read_first(driver.name(), base, replay) {
                driver.note_read_first(Epoch(0));
            }
        }
        let only_replays = !shared.replay_frames.is_empty() && !shared.continues_live;
        let waits = drivers.iter().any(|driver| !driver.is_first());
        let is_over = drivers.iter().all(|driver| !driver.is_first() || driver.is_noted());
        let phase = FirstPhase { reached_at: None, is_counted: false, is_told: false, others: 0 };
        (waits && !is_over && !only_replays).then_some(phase)
    }

    /// Notes whether this worker, which reads into `epoch`, has come to the ends.
    pub(super) fn look(&mut self, drivers: &[Box<dyn Driver>], epoch: Epoch) {
        let mut first = drivers.iter().filter(|driver| driver.is_first());
        if self.reached_at.is_none() && first.all(|driver| driver.has_reached_initial_end()) {
            self.reached_at = Some(epoch);
        }
    }

    /// Counts this worker as done if it has released the epoch in which it came to the ends.
    pub(super) fn released(&mut self, epoch: Epoch, shared: &WorkerShared) {
        let is_done = self.reached_at.is_some_and(|reached| reached <= epoch);
        if is_done && !std::mem::replace(&mut self.is_counted, true) {
            shared.read_first.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `true` if all workers of this process are done.
    pub(super) fn is_over_here(&self, shared: &WorkerShared) -> bool {
        shared.read_first.load(Ordering::Relaxed) == shared.place.threads
    }

    /// On worker 0: `true` if all workers are done.
    pub(super) fn is_over(&self, shared: &WorkerShared) -> bool {
        self.is_over_here(shared) && self.others == shared.place.processes() - 1
    }
}
