//! Decisions of worker 0: when an epoch ends, which one has a snapshot, when the job stops; and the requests by which the
//! other processes tell it what they need.
//!
//! In a job with state worker 0 also announces **snapshots**, one at a time: each with the tick that starts its epoch,
//! so that every worker knows of it before the epoch can be complete, and the next only when the manifest of the last
//! one is written. The last epoch of a job that stops cleanly, or ends, has a snapshot, so the next start replays
//! nothing.
//!
//! When all workers of all processes have **caught up**, worker 0 stops the job as if a stop had been requested:
//! sources that stop at the end they had at the start, and have not ended, have nothing more to read in this
//! incarnation.
//!
//! Sources that are **read first** are read alone until all workers have read them to the ends that they had at the
//! start, and have released the epochs in which they did. Worker 0 then starts an epoch from which on all sources are
//! read. That epoch's frames say so; an incarnation whose state does not say so reads first again. So an epoch with
//! records of other sources is never replayed without what was read first.
//!
//! In a job of several processes worker 0 is the first worker of process 0. Flags tell it what its own process needs;
//! the other processes send it **requests**: to end an epoch early, to take a snapshot of new input, to stop the job,
//! and to note that they have caught up, or have read what is read first. It tells them in turn how far their journals
//! may be truncated.
//!
//! Invariants: at most one announced snapshot is pending; after [`Control::Stop`] nothing more is proposed.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::WorkerLoop;
use crate::job::controls::{Control, Request};
use crate::time::Epoch;

impl WorkerLoop {
    /// Worker 0: decides whether the current epoch ends now, and proposes the next one.
    pub(super) fn propose(&mut self) {
        let pending = self.open.back().is_some_and(|open| !open.closed && open.epoch < self.ticker.last);
        if self.stopped.is_some() || self.ending || pending {
            return;
        }
        let repeats = &self.shared.replay_frames;
        if self.proposed < repeats.len() || (!repeats.is_empty() && !self.shared.continues_live) {
            // An epoch of the journal is proposed when this worker has read the one before.
            if self.proposed == self.replayed {
                let control = repeats.get(self.proposed).map_or(Control::Stop, |frame| Control::Tick(frame.epoch.0));
                self.ending = control == Control::Stop;
                self.proposed += 1;
                self.controls.send(control);
            }
            return;
        }
        let is_over = self.shared.snapshots.is_some() && self.drivers.iter().all(|driver| driver.is_complete());
        if (self.shared.stop.is_asked() || is_over) && self.is_free_for_snapshot() {
            return self.end(is_over);
        }
        let due = match self.random.is_due() {
            Some(due) => due,
            None => Instant::now() >= self.ticker.due || self.shared.early_tick.load(Ordering::Relaxed),
        };
        let read_all = self.reading_first.as_ref().is_some_and(|phase| phase.is_over(&self.shared));
        if due || self.open.is_empty() || read_all {
            self.shared.early_tick.store(false, Ordering::Relaxed);
            let epoch = self.ticker.propose();
            if read_all {
                return self.controls.send(Control::ReadAll(epoch.0));
            }
            let snapshot = self.is_snapshot_due();
            self.announce(epoch, snapshot);
        }
    }

    /// Worker 0: takes the requests of other processes, and tells them how far journals may be truncated.
    pub(super) fn take_requests(&mut self) {
        while let Some(request) = self.controls.next_request() {
            match request {
                Request::EarlyTick => self.shared.early_tick.store(true, Ordering::Relaxed),
                Request::Dirty => self.shared.dirty.store(true, Ordering::Release),
                Request::Stop => self.shared.stop.stop(),
                Request::CaughtUp => self.others_caught_up += 1,
                Request::ReadFirst => self.reading_first.iter_mut().for_each(|phase| phase.others += 1),
            }
        }
        let place = &self.shared.place;
        let others = place.processes() - 1;
        if self.all_here_have_caught_up() && self.others_caught_up == others {
            self.shared.stop.stop();
        }
        if place.threads < place.workers
            && !self.ending
            && let Some(cut) = self.shared.snapshots.as_ref().and_then(|snapshots| snapshots.cut())
            && self.cut.replace(cut) != Some(cut)
        {
            self.controls.send(Control::TruncateJournals(cut.0));
        }
    }

    /// Other processes: sends worker 0 the requests that this process's flags stand for.
    pub(super) fn ask(&mut self) {
        if !self.controls.sends_requests() {
            return;
        }
        if self.shared.early_tick.swap(false, Ordering::Relaxed) {
            self.controls.ask(Request::EarlyTick);
        }
        if self.shared.dirty.swap(false, Ordering::AcqRel) {
            self.controls.ask(Request::Dirty);
        }
        if self.shared.stop.is_asked() && !std::mem::replace(&mut self.stop_asked, true) {
            self.controls.ask(Request::Stop);
        }
        if self.all_here_have_caught_up() && !std::mem::replace(&mut self.catch_up_reported, true) {
            self.controls.ask(Request::CaughtUp);
        }
        if let Some(phase) = &mut self.reading_first
            && phase.is_over_here(&self.shared)
            && !std::mem::replace(&mut phase.is_told, true)
        {
            self.controls.ask(Request::ReadFirst);
        }
    }

    fn all_here_have_caught_up(&self) -> bool {
        self.shared.caught_up.load(Ordering::Relaxed) == self.shared.place.threads
    }

    /// Proposes an epoch, with or without a snapshot.
    fn announce(&mut self, epoch: Epoch, snapshot: bool) {
        if snapshot {
            (self.announced, self.announced_at) = (epoch, Instant::now());
            self.shared.board.announced(epoch);
            self.shared.dirty.store(false, Ordering::Release);
        }
        self.controls.send(if snapshot { Control::Snapshot(epoch.0) } else { Control::Tick(epoch.0) });
    }

    /// Ends the job; in a job with state, with a last snapshot. It is always taken, as input that has been read may not
    /// be committed yet.
    fn end(&mut self, is_over: bool) {
        if let Some(snapshots) = self.shared.snapshots.clone() {
            let epoch = self.ticker.propose();
            if is_over {
                snapshots.ends_with(epoch);
            }
            self.announce(epoch, true);
        }
        self.ending = true;
        self.controls.send(Control::Stop);
    }

    /// `true` if no announced snapshot is pending: there is one at a time.
    fn is_free_for_snapshot(&self) -> bool {
        self.shared.snapshots.as_ref().is_none_or(|snapshots| snapshots.committed() >= self.announced)
    }

    /// `true` if the next epoch is to have a snapshot.
    fn is_snapshot_due(&mut self) -> bool {
        if self.shared.snapshots.is_none() || !self.is_free_for_snapshot() {
            return false;
        }
        match self.random.below(3) {
            Some(chance) => chance == 0,
            // Replayed input gets a snapshot at once: even a series of short incarnations does not replay it again and
            // again.
            None => {
                let repeated = self.announced == Epoch(0) && !self.shared.replay_frames.is_empty();
                let due = repeated || self.announced_at.elapsed() >= self.shared.snapshot_every;
                due && self.shared.dirty.load(Ordering::Acquire)
            }
        }
    }
}
