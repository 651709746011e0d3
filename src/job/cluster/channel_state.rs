//! State of a control channel: the messages queued for each process, and what the processes have reported.
//!
//! Invariant: a process that connects again gets no message that was queued for its earlier connection.

use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::data_connection::Sender;
use super::heartbeat::Silence;
use super::messages::{FailureReport, StartMessage};
use crate::metrics::JobSummary;
use crate::status::ProcessStatus;

/// A message on a control channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ControlMessage {
    /// Heartbeat, with the process's status once its workers have started.
    Alive(Option<Box<ProcessStatus>>),
    /// Decision of process 0.
    StartMessage(StartMessage),
    /// The failure of a process.
    Failed(FailureReport),
    /// The loss of a process, the process that has noticed it, and the cause.
    Lost { process: usize, by: usize, why: String },
    /// The process has finished, with these counters.
    Done(JobSummary),
    /// The job is over.
    Over,
}

/// A connection of the dataflow, as watched here.
pub(super) struct WatchedConnection {
    pub(super) process: usize,
    /// Sends heartbeats.
    pub(super) sender: Arc<Sender>,
    pub(super) silence: Arc<Silence>,
}

/// Another process, as seen by this one.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) silence: Arc<Silence>,
    pub(super) outbox: Mutex<PeerOutbox>,
    pub(super) filled: Condvar,
}

impl Peer {
    pub(super) fn outbox(&self) -> MutexGuard<'_, PeerOutbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages queued for a process.
#[derive(Default)]
pub(super) struct PeerOutbox {
    pub(super) messages: Vec<ControlMessage>,
    /// Number of the process's connection that the messages are for; a process may connect again.
    pub(super) attempt: u64,
    pub(super) open: bool,
    pub(super) stream: Option<TcpStream>,
}

pub(super) struct ChannelState {
    /// `true` in process 0 until all are connected: until then a process that disconnects may connect again.
    pub(super) gathers: bool,
    /// Decision of process 0.
    pub(super) answer: Option<StartMessage>,
    /// Last reported status of each process.
    pub(super) at: Vec<ProcessStatus>,
    /// The counters of each process that has finished.
    pub(super) done: Vec<Option<JobSummary>>,
    /// The message that tells why the job fails, if another process or the loss of one is the reason.
    pub(super) reason: Option<ControlMessage>,
    pub(super) told: bool,
    pub(super) over: bool,
    pub(super) closing: Option<Instant>,
}

impl ChannelState {
    pub(super) fn new(processes: usize, gathers: bool) -> Self {
        ChannelState {
            gathers,
            answer: None,
            at: (0..processes).map(|process| ProcessStatus { process, ..ProcessStatus::default() }).collect(),
            done: vec![None; processes],
            reason: None,
            told: false,
            over: false,
            closing: None,
        }
    }

    /// Stores the status that a process has reported.
    pub(super) fn put(&mut self, status: ProcessStatus) {
        if let Some(known) = self.at.get_mut(status.process) {
            *known = status;
        }
    }

    /// Returns a process's last reported status, or its default status if it has reported none.
    pub(super) fn of(&self, process: usize, silent_ms: u64) -> ProcessStatus {
        ProcessStatus { silent_ms, ..self.at[process].clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PartitionStatus, WorkerStatus};

    /// The form of a message has no names of fields, so none may be left out.
    #[test]
    fn a_heartbeat_says_the_same_to_the_process_that_receives_it() {
        let partition = |topic: Option<&str>| {
            let topic = topic.map(str::to_owned);
            PartitionStatus { source: "orders".into(), partition: 7, topic, end: Some(5), ..PartitionStatus::default() }
        };
        let partitions = vec![partition(None), partition(Some("orders.eu/3")), partition(None)];
        let worker = WorkerStatus { worker: 1, partitions, in_flight_epochs: 3, ..WorkerStatus::default() };
        let status = ProcessStatus { process: 1, workers: vec![worker], ..ProcessStatus::default() };
        let bytes = postcard::to_stdvec(&ControlMessage::Alive(Some(Box::new(status.clone())))).unwrap();
        let Ok(ControlMessage::Alive(Some(received))) = postcard::from_bytes(&bytes) else { panic!("no heartbeat") };
        assert_eq!(*received, status);
    }

    #[test]
    fn what_a_process_said_last_is_what_is_known_of_it() {
        let mut state = ChannelState::new(2, false);
        assert_eq!(state.of(1, 70), ProcessStatus { process: 1, silent_ms: 70, ..ProcessStatus::default() });
        state.put(ProcessStatus { process: 1, shown_ms: 1, ..ProcessStatus::default() });
        state.put(ProcessStatus { process: 1, shown_ms: 2, ..ProcessStatus::default() });
        assert_eq!((state.of(1, 5).shown_ms, state.of(1, 5).silent_ms), (2, 5));
    }
}
