//! The control channel of a process: messages between processes beside the dataflow.
//!
//! Every process keeps a connection to process 0 from the handshake on. Process 0 passes on what concerns the others:
//!
//! * the **decision** of process 0 when all processes are connected;
//! * **failures**: a process that fails reports why, and all others end with that error;
//! * **losses**: a process that dies is noticed by process 0 here, and by all others on their links, which share a
//!   [`LossRecord`] with the channel. The first loss noticed counts. As a failure report and the end of the connection
//!   may arrive in either order, a process waits a moment for the report;
//! * **silence**: a process that sends nothing for the heartbeat timeout, here or on a link, is taken for dead: its
//!   machine or its network may be down;
//! * the **end**: every process sends its counters to process 0 once all its files are closed; process 0 then closes
//!   the state, and tells all that the job is over.
//!
//! Each connection has two threads. One sends queued messages and a heartbeat at intervals; only this thread blocks
//! when the other end reads nothing, and only the newest status is sent then. The other one reads, and measures
//! silence.
//!
//! Invariant: a process ends with its first failure, and all others hear of that one.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::channel_state::{ChannelState, ControlMessage, Peer, PeerOutbox, WatchedConnection};
use super::data_connection::DataConnection;
use super::framed::{Framed, encoded};
use super::heartbeat::{HEARTBEAT_INTERVAL, HeartbeatMonitor};
use super::losses::{Loss, LossRecord};
use super::messages::{FailureReport, StartMessage};
use super::options::Cluster;
use crate::error::{Error, Result};
use crate::metrics::JobSummary;
use crate::status::{ConnectionStatus, ProcessStatus, StatusBoard};
use crate::thread::{self, JobFailure, ThreadHandle, ThreadRole};

/// Interval at which failures and losses are checked.
const TICK: Duration = Duration::from_millis(50);
/// Time that a process which has lost another waits for a failure report.
const FAILURE_REPORT_GRACE: Duration = Duration::from_millis(500);
/// Maximum time to send and read the last messages.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The control channel of a process.
pub(crate) struct ControlChannel {
    cluster: Cluster,
    failure: Arc<JobFailure>,
    /// Losses noticed here and on the connections of the dataflow.
    losses: Arc<LossRecord>,
    /// By process number: all others in process 0, only process 0 in the others. Messages are queued only for connected
    /// ones.
    peers: Vec<Peer>,
    state: Mutex<ChannelState>,
    changed: Condvar,
    threads: Mutex<Vec<ThreadHandle>>,
    /// The status of this process's workers, once they have started.
    board: OnceLock<Arc<StatusBoard>>,
    /// The connections of the dataflow, once there are any.
    links: OnceLock<Vec<WatchedConnection>>,
}

impl ControlChannel {
    /// Creates the channel and starts its watching thread; no process is connected yet.
    pub(super) fn begin(cluster: &Cluster, failure: Arc<JobFailure>) -> Result<Arc<Self>> {
        let channel = Arc::new(ControlChannel::new(cluster, failure));
        let own = Arc::clone(&channel);
        channel.spawn(ThreadRole::Processes, ThreadRole::Processes.name(), move || own.watch())?;
        Ok(channel)
    }

    fn new(cluster: &Cluster, failure: Arc<JobFailure>) -> Self {
        let (processes, is_first) = (cluster.processes(), cluster.process() == 0);
        ControlChannel {
            cluster: cluster.clone(),
            failure,
            losses: Arc::default(),
            peers: (0..processes).map(|_| Peer::default()).collect(),
            state: Mutex::new(ChannelState::new(processes, is_first)),
            changed: Condvar::new(),
            threads: Mutex::default(),
            board: OnceLock::new(),
            links: OnceLock::new(),
        }
    }

    fn spawn(&self, role: ThreadRole, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        self.keep(thread::start(role, name, body)?);
        Ok(())
    }

    /// Keeps a thread, to be joined at the end.
    fn keep(&self, thread: ThreadHandle) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }

    /// Starts the threads of a process's connection, which replaces its earlier one, if it had any.
    pub(super) fn attach(self: &Arc<Self>, process: usize, wire: Framed) -> Result<()> {
        let cannot = |why: io::Error| Error::new("cannot listen to the other processes").because(why);
        let (sender, kept) = (wire.sender().map_err(cannot)?, wire.sender().map_err(cannot)?);
        let last = wire.sender().map_err(cannot)?;
        let attempt = {
            let mut outbox = self.peers[process].outbox();
            if let Some(before) = outbox.stream.take() {
                let _ = before.shutdown(Shutdown::Both);
            }
            *outbox = PeerOutbox { messages: Vec::new(), attempt: outbox.attempt + 1, open: true, stream: Some(kept) };
            outbox.attempt
        };
        self.peers[process].filled.notify_all();
        let timeout = self.cluster.heartbeat_timeout;
        let monitor = HeartbeatMonitor::new(timeout, Arc::clone(&self.peers[process].silence));
        let own = Arc::clone(self);
        let receive_loop = move || own.receive_loop((process, attempt), wire, monitor);
        self.spawn(ThreadRole::Process, &format!("process {process}"), receive_loop)?;
        let own = Arc::clone(self);
        let name = format!("to process {process}");
        let (from, mut last) = (self.cluster.process(), last);
        // This thread sends the reports of failures, so it reports its own panic by itself.
        let told = move |error: Error| {
            let word = ControlMessage::Failed(FailureReport::new(from, &error));
            let _ = encoded(&word).and_then(|bytes| last.write_all(&bytes));
            let _ = last.shutdown(Shutdown::Write);
        };
        let send_loop = move || own.send_loop((process, attempt), sender);
        self.keep(thread::start_reporting(ThreadRole::ToProcess, &name, told, send_loop)?);
        Ok(())
    }

    /// Closes a connection, so that the process may connect again. The caller holds the state's lock, so that the
    /// process does not count as gathered meanwhile.
    fn detach(&self, (process, attempt): (usize, u64)) {
        let mut outbox = self.peers[process].outbox();
        if outbox.attempt == attempt {
            outbox.open = false;
            if let Some(stream) = outbox.stream.take() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            self.peers[process].filled.notify_all();
        }
    }

    /// `true` if a process is connected.
    pub(super) fn is_connected(&self, process: usize) -> bool {
        self.peers[process].outbox().open
    }

    /// Returns the milliseconds since anything was received from a connected process.
    pub(super) fn silent_ms(&self, process: usize) -> u64 {
        self.peers[process].silence.millis()
    }

    /// Process 0: `true` if all are connected; a process that disconnects from then on is lost.
    pub(super) fn is_gathered(&self) -> bool {
        let mut state = self.state();
        let all = (1..self.peers.len()).all(|process| self.is_connected(process));
        state.gathers = !all;
        all
    }

    /// Process 0: sends its decision.
    pub(super) fn answer(&self, answer: StartMessage) {
        self.broadcast(&ControlMessage::StartMessage(answer));
    }

    /// Other processes: waits for the decision of process 0; `None` after a failure. A stop request does not end the
    /// wait, as process 0 may have started the job already.
    pub(super) fn answered(&self) -> Option<StartMessage> {
        let mut state = self.state();
        loop {
            if state.answer.is_some() || self.failure.get().is_some() {
                return state.answer.take();
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// `true` if the job fails because a process was lost.
    pub(super) fn has_lost_process(&self) -> bool {
        matches!(self.state().reason, Some(ControlMessage::Lost { .. }))
    }

    /// Sends heartbeats on the connections of the dataflow, too, and reports their silence.
    pub(super) fn connected(&self, links: &[Option<DataConnection>]) {
        let links = links.iter().enumerate().filter_map(|(process, link)| {
            let link = link.as_ref()?;
            Some(WatchedConnection { process, sender: link.sender(), silence: link.silence() })
        });
        // Set once: a job runs one incarnation.
        let _ = self.links.set(links.collect());
    }

    fn state(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_first(&self) -> bool {
        self.cluster.process() == 0
    }

    /// Sends this process's status with its heartbeats from now on.
    pub(crate) fn attach_board(&self, board: Arc<StatusBoard>) {
        // Set once: a job runs one incarnation.
        let _ = self.board.set(board);
    }

    /// Returns the last status of each process that this one has a control connection to.
    pub(crate) fn others(&self) -> Vec<ProcessStatus> {
        let state = self.state();
        let others = (0..self.peers.len()).filter(|process| (*process == 0) != self.is_first());
        others.map(|process| state.of(process, self.silent_ms(process))).collect()
    }

    /// Returns the silence of each connection of the dataflow, as this process measures it.
    pub(crate) fn connections(&self) -> Vec<ConnectionStatus> {
        let links = self.links.get().into_iter().flatten();
        let hears =
            |link: &WatchedConnection| ConnectionStatus { process: link.process, silent_ms: link.silence.millis() };
        links.map(hears).collect()
    }

    /// Returns the record of losses, for the connections of the dataflow.
    pub(super) fn losses(&self) -> Arc<LossRecord> {
        Arc::clone(&self.losses)
    }

    /// Notes that a control connection is lost.
    fn lost(&self, of: (usize, u64), why: &str) {
        let state = self.state();
        if state.gathers {
            return self.detach(of);
        }
        drop(state);
        self.losses.note(of.0, why);
    }

    /// Receives the messages of another process, until its connection ends.
    fn receive_loop(&self, of: (usize, u64), mut wire: Framed, mut monitor: HeartbeatMonitor) {
        loop {
            thread::mark_iteration();
            let before = wire.received();
            let received = wire.receive::<ControlMessage>();
            if wire.received() > before {
                monitor.heard();
            }
            match received {
                Ok(Some(word)) => self.handle_message(of, word),
                Ok(None) if wire.received() > before => {}
                Ok(None) => {
                    if let Err(why) = monitor.unheard() {
                        return self.lost(of, &why);
                    }
                }
                Err(why) => return self.lost(of, &why.to_string()),
            }
            if self.state().closing.is_some_and(|since| since.elapsed() > CLOSE_TIMEOUT) {
                return;
            }
        }
    }

    fn handle_message(&self, of: (usize, u64), word: ControlMessage) {
        let mut state = self.state();
        match word {
            ControlMessage::Alive(status) => {
                if let Some(status) = status {
                    state.put(*status);
                }
                return;
            }
            ControlMessage::Failed(_) | ControlMessage::Lost { .. } if state.gathers => return self.detach(of),
            ControlMessage::StartMessage(answer) => state.answer = Some(answer),
            ControlMessage::Done(summary) => state.done[of.0] = Some(summary),
            ControlMessage::Over => state.over = true,
            ControlMessage::Failed(ref told) => {
                let error = told.error();
                state.reason.get_or_insert(word);
                self.failure.set(error);
            }
            ControlMessage::Lost { process, by, ref why } => {
                self.failure.set(self.cluster.gone(process, by, why));
                state.reason.get_or_insert(word);
            }
        }
        self.changed.notify_all();
    }

    /// Sends queued messages and heartbeats to another process, until the channel is closed.
    fn send_loop(&self, of: (usize, u64), mut stream: TcpStream) {
        let (peer, mut signed) = (&self.peers[of.0], None::<Instant>);
        loop {
            thread::mark_iteration();
            let is_due = |signed: &Option<Instant>| signed.is_none_or(|signed| signed.elapsed() >= HEARTBEAT_INTERVAL);
            let mut outbox = peer.outbox();
            while outbox.attempt == of.1 && outbox.open && outbox.messages.is_empty() && !is_due(&signed) {
                outbox = peer.filled.wait_timeout(outbox, HEARTBEAT_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            }
            if outbox.attempt != of.1 {
                return;
            }
            let (mut messages, open) = (std::mem::take(&mut outbox.messages), outbox.open);
            drop(outbox);
            if open && is_due(&signed) {
                messages.push(ControlMessage::Alive(self.status()));
                signed = Some(Instant::now());
            }
            let sent = messages.iter().try_for_each(|word| stream.write_all(&encoded(word)?));
            if let Err(why) = sent {
                return self.lost(of, &why.to_string());
            }
            if !open && peer.outbox().messages.is_empty() {
                let _ = stream.shutdown(Shutdown::Write);
                return;
            }
        }
    }

    /// Returns this process's status; `None` before its workers have started.
    fn status(&self) -> Option<Box<ProcessStatus>> {
        let board = self.board.get()?;
        Some(Box::new(ProcessStatus { connections: self.connections(), ..board.status() }))
    }

    /// Sends heartbeats on the dataflow's connections, and reports losses and failures, until the channel is closed.
    fn watch(&self) {
        let mut signed = Instant::now();
        let mut state = self.state();
        while state.closing.is_none() {
            if let Some(Loss { process, why, noticed }) = self.losses.first()
                && state.reason.is_none()
                && !state.over
                && self.failure.get().is_none()
                && noticed.elapsed() >= FAILURE_REPORT_GRACE
            {
                let (process, by, why) = (*process, self.cluster.process(), why.clone());
                self.failure.set(self.cluster.gone(process, by, &why));
                state.reason = Some(ControlMessage::Lost { process, by, why });
            }
            drop(state);
            thread::mark_iteration();
            self.broadcast_failure();
            if signed.elapsed() >= HEARTBEAT_INTERVAL {
                signed = Instant::now();
                self.links.get().into_iter().flatten().for_each(|link| link.sender.send_heartbeat());
            }
            state = self.state();
            if state.closing.is_none() {
                state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Queues a message for all connected processes; a process that cannot be reached is missed anyway.
    fn broadcast(&self, word: &ControlMessage) {
        for peer in &self.peers {
            let mut outbox = peer.outbox();
            if outbox.open {
                outbox.messages.push(word.clone());
                peer.filled.notify_all();
            }
        }
    }

    /// Queues the reason of the job's failure for all others, if it has failed, once. On return it is queued, whichever
    /// thread did it: then the channel may be closed.
    fn broadcast_failure(&self) {
        let Some(error) = self.failure.get() else { return };
        let mut state = self.state();
        if std::mem::replace(&mut state.told, true) {
            return;
        }
        let own = || ControlMessage::Failed(FailureReport::new(self.cluster.process(), error));
        let word = state.reason.clone().unwrap_or_else(own);
        // Another thread that finds it told goes on to close the channel, so the lock is held until it is queued.
        self.broadcast(&word);
    }

    /// Process 0: waits for the counters of all other processes; `None` if the job fails.
    pub(crate) fn wait_for_summaries(&self) -> Option<Vec<JobSummary>> {
        let mut state = self.state();
        loop {
            if self.failure.get().is_some() {
                return None;
            }
            if state.done[1..].iter().all(Option::is_some) {
                return Some(state.done.iter().flatten().cloned().collect());
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Other processes: sends this process's counters, and waits until the job is over or has failed. A failed process
    /// sends none.
    pub(crate) fn done(&self, summary: JobSummary) {
        if self.failure.get().is_some() {
            return;
        }
        self.broadcast(&ControlMessage::Done(summary));
        let mut state = self.state();
        while !state.over && self.failure.get().is_none() {
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Closes the connections; process 0 first tells all that the job is over, or any process reports its failure.
    /// Queued messages are still sent and read, for at most [`CLOSE_TIMEOUT`].
    pub(crate) fn close(&self) {
        match self.failure.get() {
            Some(_) => self.broadcast_failure(),
            None => {
                self.state().over = true;
                if self.is_first() {
                    self.broadcast(&ControlMessage::Over);
                }
            }
        }
        let since = *self.state().closing.get_or_insert_with(Instant::now);
        self.changed.notify_all();
        for peer in &self.peers {
            peer.outbox().open = false;
            peer.filled.notify_all();
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        while !threads.iter().all(ThreadHandle::is_finished) && since.elapsed() < CLOSE_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        for peer in &self.peers {
            if let Some(stream) = peer.outbox().stream.take() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        threads.into_iter().for_each(ThreadHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_failure_is_queued_for_the_others_before_any_thread_may_close_the_channel() {
        let cluster = Cluster::new(0, vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()]).unwrap();
        for round in 0..2_000 {
            let failure = Arc::<JobFailure>::default();
            failure.set(Error::new("the disk is full"));
            let channel = ControlChannel::new(&cluster, failure);
            channel.peers[1].outbox().open = true;
            let both = Barrier::new(2);
            let report = || {
                both.wait();
                channel.broadcast_failure();
                channel.peers[1].outbox().messages.len()
            };
            let queued = std::thread::scope(|scope| {
                let other = scope.spawn(report);
                (report(), other.join().unwrap())
            });
            assert_eq!(queued, (1, 1), "round {round}");
        }
    }
}
