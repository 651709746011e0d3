//! The way of an ended epoch: its input is committed, its frame synced, its capabilities are released, its results are
//! published.
//!
//! Invariants: epochs are committed and released in order; an epoch is released only when the journal has synced its
//! frame, or when it needs none.

use std::sync::atomic::Ordering;

use super::WorkerLoop;
use crate::durable::journal::{Frame, PartitionProgress};
use crate::error::Result;
use crate::time::Epoch;

impl WorkerLoop {
    /// Collects the input committed to epochs that have ended, and hands it to the journal.
    pub(super) fn commit_input(&mut self) -> Result<()> {
        let on_record = {
            let last = self.shared.replay_frames.last().filter(|_| self.shared.continues_live).map(|last| last.epoch);
            move |epoch: Epoch| Some(epoch) <= last
        };
        for open in self.open.iter_mut().filter(|open| open.closed && !open.written) {
            for (driver, bound) in self.drivers.iter_mut().zip(&mut open.bound) {
                if bound.is_none() {
                    *bound = driver.commit_input(open.epoch)?;
                }
                if bound.is_none() {
                    // Buffered records would keep the epoch open, whether or not anything is polled now.
                    open.bytes += driver.deliver()?;
                }
            }
            if !open.bound.iter().all(Option::is_some) {
                break; // Epochs are committed in order.
            }
            let progress: Vec<PartitionProgress> = open.bound.iter_mut().filter_map(Option::take).flatten().collect();
            open.written = true;
            let live = !on_record(open.epoch);
            // In the first epoch of an incarnation every worker writes a frame: without all of them the journal commits
            // nothing.
            let first = live && self.shared.continues_live && !std::mem::replace(&mut self.bound, true);
            open.needs_sync = live && (!progress.is_empty() || first);
            if open.needs_sync {
                self.shared.dirty.store(true, Ordering::Release);
                if let Some(ends) = &mut self.ends {
                    ends.tell(open.epoch);
                }
                self.shared.journal.append(self.index, Frame { epoch: open.epoch, progress })?;
            }
        }
        Ok(())
    }

    /// Commits the input of epochs that have ended, and releases the epochs that the journal has synced.
    pub(super) fn commit_and_release(&mut self) -> Result<()> {
        self.commit_input()?;
        if self.open.iter().all(|open| open.released || !open.written) {
            return Ok(()); // The journal is shared between threads: not locked without need.
        }
        self.shared.journal.check()?;
        let synced = self.shared.journal.synced(self.index);
        for open in self.open.iter_mut().filter(|open| !open.released) {
            if !open.written || (open.needs_sync && synced < Some(open.epoch)) {
                break;
            }
            open.released = true;
            if let Some(phase) = &mut self.reading_first {
                phase.released(open.epoch, &self.shared);
            }
            for driver in &mut self.drivers {
                driver.release(open.epoch);
            }
            if let Some(ends) = &mut self.ends {
                ends.release(open.epoch);
            }
        }
        Ok(())
    }

    /// Drops the epochs that all sinks have published, and tells the sources.
    pub(super) fn drop_published(&mut self) {
        let mut shown = None;
        // Each epoch is open on all workers: one of a process measures it.
        let measures = self.index.is_multiple_of(self.shared.place.threads);
        while let Some(open) = self.open.front().filter(|open| open.released && !self.probe.less_equal(&open.epoch.0)) {
            shown = Some(open.epoch);
            if measures {
                self.shared.metrics.epoch_latency.add(open.since.elapsed());
            }
            self.open.pop_front();
        }
        if let Some(epoch) = shown.filter(|epoch| self.shown < Some(*epoch)) {
            self.shown = Some(epoch);
            for driver in &mut self.drivers {
                driver.shown(epoch);
            }
        }
    }
}
