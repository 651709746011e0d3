//! The loop of one worker: it starts and ends epochs, and reads. What worker 0 decides, and tells the others, is in
//! `proposals`; the way of an ended epoch to its publication is in `releases`.
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

mod proposals;
mod releases;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use timely::dataflow::operators::probe;
use timely::worker::Worker;

use crate::durable::sources::known_partitions;
use crate::error::Result;
use crate::job::commit::commit;
use crate::job::controls::{Control, Controls};
use crate::job::first_phase::FirstPhase;
use crate::job::open_epoch::OpenEpoch;
use crate::job::pacing::{RandomPacer, Ticker};
use crate::job::report_throttle::ReportThrottle;
use crate::job::run_report::Ending;
use crate::job::worker_shared::WorkerShared;
use crate::source::WorkerContext;
use crate::status::WorkerReport;
use crate::stream::{
    BuildContext, BuildMode, Driver, DurableContext, EndsInput, Fault, Flow, SnapshotEpochs, StepRegistry,
};
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
    let base = shared.durable.as_ref().and_then(|durable| durable.base.as_deref());
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
        known_partitions: known_partitions(base, &shared.replay_frames),
        opened: Arc::clone(&shared.opened),
        source_values: Arc::clone(&shared.source_values),
        incarnation: shared.incarnation.clone(),
        shard: shared.shard.clone(),
        views: Arc::clone(&shared.views),
        registry: StepRegistry::default(),
        #[cfg(feature = "kafka")]
        messages: Rc::default(),
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
        reported: ReportThrottle::default(),
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
    reported: ReportThrottle,
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
                // What the last epochs were given is published now.
                self.drop_published();
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
            since: Instant::now(),
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
