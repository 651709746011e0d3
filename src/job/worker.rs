//! The loop of one worker, which starts and ends epochs.
//!
//! Worker 0 proposes epochs: at every tick it broadcasts the next even epoch, a wall-clock millisecond made greater
//! than all epochs before it. The others follow, so clocks of other machines do not matter. On a proposal a worker
//! stops adding to its epoch, hands the journal the input it has committed to that epoch, and goes on at once. It
//! releases the epoch's capabilities when the journal has synced its frame.
//!
//! An epoch also ends when it is **full**: when a worker has read an eighth of the bytes allowed in flight, it asks
//! worker 0 for an early tick. So several epochs are in flight at a time, and reading goes on while older ones are
//! being finished. In a synchronous job, which processes one record at a time, one record fills an epoch, and nothing
//! is read while one is in flight.
//!
//! To **replay** a journal, worker 0 proposes the journal's epochs instead, and every worker reads their input before
//! it follows to the next. A job that resumes after a crash then reads live input; the replayed epochs are in the
//! journal already.
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
//! and to note that they have caught up, or have read what is read first. It tells them in turn how far their journals may be truncated.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use timely::dataflow::operators::probe;
use timely::worker::Worker;

use crate::durable::journal::{Frame, PartitionProgress};
use crate::error::Result;
use crate::job::commit::commit;
use crate::job::controls::{Control, Controls, Request};
use crate::job::first_phase::FirstPhase;
use crate::job::pacing::{RandomPacer, Ticker};
use crate::job::run_report::Ending;
use crate::job::worker_shared::WorkerShared;
use crate::source::WorkerContext;
use crate::status::{Stage, WorkerReport};
use crate::stream::{BuildContext, BuildMode, Driver, DurableContext, EndsInput, Fault, Flow, SnapshotEpochs};
use crate::time::Epoch;

/// Maximum number of records that a source is asked for per call.
const RECORDS_PER_POLL: usize = 1024;
/// Maximum number of epochs with records that may be read and not yet published.
const EPOCHS_IN_FLIGHT: usize = 64;
/// Time that an idle worker sleeps before it polls its sources again.
const IDLE_SLEEP: Duration = Duration::from_millis(1);

/// Runs one worker until the job ends; `None` if the job failed.
pub(crate) fn run(worker: &mut Worker, shared: &Arc<WorkerShared>, query: &dyn Fn(&Flow<'_>)) -> Option<Ending> {
    if let Some(profile) = &shared.profile {
        profile.listen(worker);
    }
    let controls = Controls::new(worker, &shared.place);
    let seals = SnapshotEpochs::default();
    shared.seals.iter().for_each(|epoch| seals.add(*epoch));
    let build = Rc::new(BuildContext {
        place: WorkerContext { worker: worker.index(), ..shared.place.clone() },
        mode: BuildMode::Run,
        failure: Arc::clone(&shared.failure),
        metrics: Arc::clone(&shared.metrics),
        board: Arc::clone(&shared.board),
        drivers: RefCell::default(),
        plan: RefCell::default(),
        probe: probe::Handle::new(),
        snapshot_epochs: seals.clone(),
        fault: shared.fault,
        durable: shared.durable.clone().map(|durable| DurableContext { worker: worker.index(), ..durable }),
        opened: Arc::clone(&shared.opened),
        incarnation: shared.incarnation.clone(),
        shard: shared.shard.clone(),
        views: Arc::clone(&shared.views),
    });
    let ends = worker.dataflow(|scope| {
        let flow = Flow::new(scope, Rc::clone(&build));
        if shared.durable.is_none() {
            query(&flow);
            return None;
        }
        let (ends, told) = EndsInput::new(scope, shared.place.threads);
        let flow = flow.with_ends(told);
        query(&flow);
        commit(flow.snapshot_acks(), shared.snapshots.clone());
        Some(ends)
    });
    shared.journal.wake(worker.index(), std::thread::current());
    let mut drivers = build.drivers.take();
    let reading_first = FirstPhase::begin(&mut drivers, shared);
    let last = shared.replay_frames.iter().map(|frame| frame.epoch).max().unwrap_or_default().max(shared.last);
    let mut turning = WorkerLoop {
        index: worker.index(),
        drivers,
        ends,
        probe: build.probe.clone(),
        shared: Arc::clone(shared),
        controls,
        open: VecDeque::new(),
        shown: None,
        ticker: Ticker::new(shared.epoch, last, shared.clock_behind),
        random: RandomPacer::new(shared.pace, worker.index()),
        proposed: 0,
        replayed: 0,
        exhausted: false,
        caught_up: false,
        others_caught_up: 0,
        catch_up_reported: false,
        reading_first,
        begun: false,
        bound: false,
        seals,
        announced: Epoch(0),
        announced_at: Instant::now(),
        cut: None,
        stop_asked: false,
        ending: false,
        stopped: None,
        reported: Reported::default(),
    };
    let ending = turning.resume().and_then(|()| turning.run_until_end(worker));
    if let Err(error) = &ending {
        shared.failure.set(error.clone());
    }
    if shared.failure.get().is_some() {
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
        return None;
    }
    ending.ok()
}

/// An epoch that this worker has started and that is not published yet.
struct OpenEpoch {
    epoch: Epoch,
    /// For each source, the input committed to the epoch; `None` until it is known.
    bound: Vec<Option<Vec<PartitionProgress>>>,
    /// `true` if nothing is added to it any more.
    closed: bool,
    /// `true` if the journal has its frame, or it needs none.
    written: bool,
    needs_sync: bool,
    released: bool,
    bytes: usize,
}

impl OpenEpoch {
    fn stage(&self) -> Stage {
        match (self.closed, self.written, self.released) {
            (false, ..) => Stage::Reading,
            (true, false, _) => Stage::Binding,
            (true, true, false) => Stage::Syncing,
            (true, true, true) => Stage::Flowing,
        }
    }
}

/// The state of one worker's loop.
struct WorkerLoop {
    index: usize,
    drivers: Vec<Box<dyn Driver>>,
    /// Input that reports how far the worker's journal reaches; `None` in a job without state.
    ends: Option<EndsInput>,
    probe: probe::Handle<u64>,
    shared: Arc<WorkerShared>,
    controls: Controls,
    /// Epochs that are not published, oldest first; the last one is current unless it is closed.
    open: VecDeque<OpenEpoch>,
    shown: Option<Epoch>,
    ticker: Ticker,
    random: RandomPacer,
    /// Number of journal epochs that worker 0 has proposed.
    proposed: usize,
    /// Number of journal frames that have been replayed.
    replayed: usize,
    /// `true` if all sources of this worker are exhausted.
    exhausted: bool,
    /// `true` once this worker has been counted as caught up.
    caught_up: bool,
    /// On worker 0: number of other processes that have reported to have caught up.
    others_caught_up: usize,
    /// `true` once this process has reported to worker 0 that it has caught up.
    catch_up_reported: bool,
    /// The phase in which only the sources that are read first are read; `None` when it is over.
    reading_first: Option<FirstPhase>,
    /// `true` once the first epoch has started.
    begun: bool,
    /// `true` once an epoch of this incarnation has been committed.
    bound: bool,
    seals: SnapshotEpochs,
    /// The last snapshot that worker 0 has announced in this incarnation, and when.
    announced: Epoch,
    announced_at: Instant,
    /// The last epoch up to which worker 0 has asked for journals to be truncated.
    cut: Option<Epoch>,
    /// `true` once this process has requested a stop from worker 0.
    stop_asked: bool,
    /// `true` once worker 0 has announced the last epoch.
    ending: bool,
    /// Set when no further epoch follows.
    stopped: Option<Ending>,
    /// Throttle of this worker's status reports.
    reported: Reported,
}

impl WorkerLoop {
    /// Moves the sources to their positions in the snapshot that the job resumes from.
    fn resume(&mut self) -> Result<()> {
        self.drivers.iter_mut().try_for_each(|driver| driver.resume())
    }

    /// `true` while epochs of a journal are still to be replayed.
    fn is_replaying(&self) -> bool {
        self.replayed < self.shared.replay_frames.len()
    }

    fn run_until_end(&mut self, worker: &mut Worker) -> Result<Ending> {
        loop {
            if let Some(error) = self.shared.failure.get() {
                return Err(error.clone());
            }
            self.follow_controls()?;
            if self.index == 0 {
                self.take_requests();
                self.propose();
            } else {
                self.ask();
            }
            let busy = self.read()?;
            self.commit_and_release()?;
            // In a job with state worker 0 decides when it ends, as it takes a last snapshot then.
            if self.shared.durable.is_none() && self.drivers.iter().all(|driver| driver.is_complete()) {
                self.stopped.get_or_insert(Ending::Complete);
            }
            if let Some(ending) = self.stopped
                && self.finish()?
            {
                while worker.has_dataflows() {
                    if let Some(error) = self.shared.failure.get() {
                        return Err(error.clone());
                    }
                    worker.step_or_park(Some(IDLE_SLEEP));
                }
                // The sources may end in the very epoch that was announced as the last.
                let over = self.drivers.iter().all(|driver| driver.is_complete());
                return Ok(if over { Ending::Complete } else { ending });
            }
            if busy {
                worker.step();
            } else {
                worker.step_or_park(Some(IDLE_SLEEP));
            }
            self.drop_published();
            self.report();
        }
    }

    fn follow_controls(&mut self) -> Result<()> {
        while self.stopped.is_none() && !self.replays_too_fast() && self.replay()? {
            match self.controls.next() {
                None => break,
                Some(Control::Tick(epoch)) => self.begin(Epoch(epoch))?,
                Some(Control::Snapshot(epoch)) => {
                    self.seals.forget_before(self.shown.unwrap_or_default());
                    self.seals.add(Epoch(epoch));
                    self.begin(Epoch(epoch))?;
                }
                Some(Control::ReadAll(epoch)) => {
                    self.begin(Epoch(epoch))?;
                    self.reading_first = None;
                    let first = self.drivers.iter_mut().filter(|driver| driver.is_first());
                    first.for_each(|driver| driver.note_read_first(Epoch(epoch)));
                }
                Some(Control::TruncateJournals(epoch)) => {
                    // Process 0 truncates its own journal where it decides.
                    if self.index > 0 && self.index.is_multiple_of(self.shared.place.threads) {
                        self.shared.journal.truncate(Epoch(epoch));
                    }
                }
                Some(Control::Stop) => {
                    self.end_current();
                    self.stopped = Some(Ending::Stopped);
                }
            }
        }
        Ok(())
    }

    /// `true` if the replay has to wait for the sinks. An epoch that is in flight alone is read on, however large: it
    /// cannot complete before all of it is read.
    fn replays_too_fast(&self) -> bool {
        self.is_replaying() && self.open.len() > 1 && self.is_behind()
    }

    fn end_current(&mut self) {
        let Some(current) = self.open.back_mut().filter(|open| !open.closed) else { return };
        current.closed = true;
        if let Some(snapshots) = self.shared.snapshots.as_ref().filter(|_| current.epoch == self.announced) {
            snapshots.epoch_ended();
        }
    }

    /// Ends the current epoch and starts another. The input of the old one is committed before anything is read into
    /// the new one: its offsets and watermarks must not include later records.
    fn begin(&mut self, epoch: Epoch) -> Result<()> {
        self.end_current();
        self.commit_input()?;
        if self.index == 0 {
            self.shared.metrics.epochs.add(1);
        }
        for driver in &mut self.drivers {
            driver.begin(epoch);
        }
        if let Some(ends) = &mut self.ends {
            ends.begin(epoch);
        }
        if self.shared.fault.is(Fault::ReleaseEarly) {
            for driver in &mut self.drivers {
                driver.release(epoch);
            }
        }
        self.open.push_back(OpenEpoch {
            epoch,
            bound: self.drivers.iter().map(|_| None).collect(),
            closed: false,
            written: false,
            needs_sync: false,
            released: false,
            bytes: 0,
        });
        if !std::mem::replace(&mut self.begun, true) && !self.is_replaying() {
            self.discover_partitions()?;
        }
        Ok(())
    }

    /// Polls every source once in the first epoch, before that can end, so that all workers find the existing
    /// partitions in one epoch. Otherwise the stream's watermark could pass the partitions of a worker that starts
    /// slowly, and the lateness of their records would depend on its speed.
    fn discover_partitions(&mut self) -> Result<()> {
        let faulty = self.shared.fault.is(Fault::DiscoverLate);
        let Some(current) = self.open.back_mut().filter(|_| !faulty) else { return Ok(()) };
        for driver in &mut self.drivers {
            match &self.reading_first {
                Some(_) if !driver.is_first() => driver.keep_alive()?,
                _ => current.bytes += driver.poll(0)?.bytes,
            }
        }
        Ok(())
    }

    /// Reads the input of the current epoch as recorded in the journal. Returns `true` if the worker may follow to the
    /// next epoch.
    fn replay(&mut self) -> Result<bool> {
        let Some(current) = self.open.back().filter(|open| !open.closed).map(|open| open.epoch) else {
            return Ok(true);
        };
        let shared = Arc::clone(&self.shared);
        let Some(frame) = shared.replay_frames.get(self.replayed).filter(|frame| frame.epoch == current) else {
            return Ok(true);
        };
        let (mut reached, mut taken) = (true, 0);
        for driver in &mut self.drivers {
            let (all, bytes) = driver.replay(&frame.progress)?;
            reached &= all;
            taken += bytes;
        }
        if let Some(current) = self.open.back_mut() {
            current.bytes += taken;
        }
        if reached {
            self.replayed += 1;
            self.end_current();
        }
        Ok(reached)
    }

    /// Worker 0: decides whether the current epoch ends now, and proposes the next one.
    fn propose(&mut self) {
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
    fn take_requests(&mut self) {
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
        let others = place.workers / place.threads - 1;
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
    fn ask(&mut self) {
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

    /// `true` if the sinks are behind: reading pauses.
    fn is_behind(&self) -> bool {
        if self.shared.synchronous {
            return self.open.iter().any(|open| open.bytes > 0);
        }
        let allowed = self.shared.in_flight / self.shared.place.threads;
        let in_flight: usize = self.open.iter().map(|open| open.bytes).sum();
        let epochs = self.open.iter().filter(|open| open.bytes > 0).count();
        in_flight > allowed || epochs > EPOCHS_IN_FLIGHT
    }

    /// Reads from the sources into the current epoch. Returns `true` if there may be more to read at once.
    fn read(&mut self) -> Result<bool> {
        if self.is_replaying()
            || self.stopped.is_some()
            || (!self.shared.replay_frames.is_empty() && !self.shared.continues_live)
        {
            return Ok(true);
        }
        let (allowed, behind) = (self.shared.in_flight / self.shared.place.threads, self.is_behind());
        let Some(current) = self.open.back_mut().filter(|open| !open.closed && !behind) else { return Ok(false) };
        let budget = match self.random.amount() {
            Some(None) => return Ok(true), // A stall.
            Some(Some(amount)) => amount,
            None if self.shared.synchronous => 1,
            None => RECORDS_PER_POLL,
        };
        let (mut busy, mut exhausted, mut rests, mut reads) = (false, true, false, false);
        for driver in &mut self.drivers {
            if self.reading_first.is_some() && !driver.is_first() {
                driver.keep_alive()?;
                (exhausted, reads) = (false, true);
                continue;
            }
            let taken = driver.poll(budget)?;
            current.bytes += taken.bytes;
            busy |= taken.busy;
            exhausted &= taken.exhausted;
            rests |= taken.caught_up;
            reads |= !(taken.caught_up || taken.exhausted);
        }
        if rests && !reads && !std::mem::replace(&mut self.caught_up, true) {
            self.shared.caught_up.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(phase) = &mut self.reading_first {
            phase.look(&self.drivers, current.epoch);
        }
        // A worker that has just exhausted its sources ends the epoch early: once, as others may go on reading.
        let just_exhausted = exhausted && !std::mem::replace(&mut self.exhausted, exhausted);
        let full = current.bytes > if self.shared.synchronous { 0 } else { allowed / 8 };
        if full || just_exhausted {
            self.shared.early_tick.store(true, Ordering::Relaxed);
        }
        Ok(busy)
    }

    /// Collects the input committed to epochs that have ended, and hands it to the journal.
    fn commit_input(&mut self) -> Result<()> {
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
    fn commit_and_release(&mut self) -> Result<()> {
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

    /// Drops all capabilities once all input is committed and synced; returns `true` if that is so.
    fn finish(&mut self) -> Result<bool> {
        self.end_current();
        self.commit_and_release()?;
        if !self.open.iter().all(|open| open.released || open.written && !open.needs_sync) {
            return Ok(false);
        }
        self.drivers.iter_mut().for_each(|driver| driver.close());
        self.ends = None;
        self.controls.close();
        Ok(true)
    }

    /// Drops the epochs that all sinks have published, and tells the sources.
    fn drop_published(&mut self) {
        let mut shown = None;
        while let Some(open) = self.open.front().filter(|open| open.released && !self.probe.less_equal(&open.epoch.0)) {
            shown = Some(open.epoch);
            self.open.pop_front();
        }
        if let Some(epoch) = shown.filter(|epoch| self.shown < Some(*epoch)) {
            self.shown = Some(epoch);
            for driver in &mut self.drivers {
                driver.shown(epoch);
            }
        }
    }

    /// Reports that the loop has made an iteration and, at intervals, the worker's status.
    fn report(&mut self) {
        let (board, now) = (&self.shared.board, Instant::now());
        board.turned(self.index, now);
        let front = self.open.front().map(|open| (open.epoch, open.stage()));
        if !self.reported.is_due(front, now) {
            return;
        }
        let in_flight = self.open.iter().filter(|open| open.bytes > 0);
        board.put(
            self.index,
            WorkerReport {
                repeats: self.is_replaying(),
                shown: self.shown,
                front,
                since: self.reported.since,
                in_flight_bytes: in_flight.clone().map(|open| open.bytes as u64).sum(),
                in_flight_epochs: in_flight.count() as u64,
                waits_for_sinks: self.is_behind(),
                reads_first: self.reading_first.is_some(),
                partitions: self.drivers.iter().flat_map(|driver| driver.partitions()).collect(),
            },
        );
        if let Some(snapshots) = self.shared.snapshots.as_ref().filter(|_| self.index == 0) {
            board.committed(snapshots.committed());
        }
    }
}

/// The time of the last status report, and the oldest epoch at that time.
struct Reported {
    at: Option<Instant>,
    front: Option<(Epoch, Stage)>,
    /// Start of the current stage of the oldest epoch.
    since: Instant,
}

impl Default for Reported {
    fn default() -> Self {
        Reported { at: None, front: None, since: Instant::now() }
    }
}

impl Reported {
    /// Interval between two status reports.
    const EVERY: Duration = Duration::from_millis(50);

    /// `true` if a report is due.
    fn is_due(&mut self, front: Option<(Epoch, Stage)>, now: Instant) -> bool {
        if self.front != front {
            (self.front, self.since) = (front, now);
        }
        if self.at.is_some_and(|at| now - at < Self::EVERY) {
            return false;
        }
        self.at = Some(now);
        true
    }
}
