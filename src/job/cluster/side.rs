//! What processes tell each other beside the dataflow.
//!
//! Every process has a connection to process 0, which passes on what the others have to know:
//!
//! * who **fails** says why; all others then end with that line;
//! * who **dies** is missed: by process 0 here, and by all others on their links. What was missed first counts. As a
//!   failure and the end of the connection may be seen in either order, a process waits a moment for the reason;
//! * who is **silent** for too long is taken for dead: its machine may be off;
//! * at the **end**, every process tells process 0 what it has done, when all its files are closed; process 0 then closes
//!   the state, and says that it is over.
//!
//! Invariant: the first failure of a process is what it ends with, and what all others hear of.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::wire::{Wire, send};
use super::{Cluster, Told};
use crate::error::{Error, Result};
use crate::metrics::Summary;
use crate::status::{Board, ProcessStatus};
use crate::thread::{self, Failure, Handle, Role};

/// How often what is to be told, and who is missed, is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often a process gives a sign.
const SIGN: Duration = Duration::from_millis(500);
/// How long a process that has lost another waits for the reason.
const GRACE: Duration = Duration::from_millis(500);

/// What is said.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Word {
    /// The process is there, and at this.
    Alive(Option<Box<ProcessStatus>>),
    /// A process has failed, and with what.
    Failed(Told),
    /// A process is gone, and how that was seen.
    Lost { process: usize, why: String },
    /// The process has done its part.
    Done(Summary),
    /// The job is over.
    Over,
}

/// The connections of a process beside the dataflow.
pub(crate) struct Side {
    cluster: Cluster,
    failure: Arc<Failure>,
    /// By process: to all others in process 0, to process 0 in the others.
    senders: Vec<Option<Mutex<TcpStream>>>,
    state: Mutex<State>,
    changed: Condvar,
    threads: Mutex<Vec<Handle>>,
    /// Where this process's workers say what they are at, once they have begun.
    board: OnceLock<Arc<Board>>,
}

struct State {
    /// When each was heard last.
    heard: Vec<Instant>,
    /// What each has said last that it is at.
    at: Vec<ProcessStatus>,
    /// What each that is done has done.
    done: Vec<Option<Summary>>,
    /// Who is missed: how that was seen, and when.
    missed: Option<(usize, String, Instant)>,
    /// Why the job fails, if another process or the loss of one is the reason.
    reason: Option<Word>,
    told: bool,
    over: bool,
    closing: bool,
}

impl State {
    fn new(processes: usize) -> Self {
        State {
            heard: vec![Instant::now(); processes],
            at: (0..processes).map(|process| ProcessStatus { process, ..ProcessStatus::default() }).collect(),
            done: vec![None; processes],
            missed: None,
            reason: None,
            told: false,
            over: false,
            closing: false,
        }
    }

    /// Takes what a process says that it is at.
    fn put(&mut self, status: ProcessStatus) {
        if let Some(known) = self.at.get_mut(status.process) {
            *known = status;
        }
    }

    /// What a process has said last that it is at, or what is known of one that has said nothing.
    fn of(&self, process: usize, silent_ms: u64) -> ProcessStatus {
        ProcessStatus { silent_ms, ..self.at[process].clone() }
    }
}

impl Side {
    /// Begins to listen to the other processes.
    pub(super) fn begin(cluster: &Cluster, wires: Vec<Option<Wire>>, failure: Arc<Failure>) -> Result<Arc<Self>> {
        let cannot = |why: io::Error| Error::new("cannot listen to the other processes").because(why);
        let mut senders = Vec::new();
        for wire in &wires {
            senders.push(wire.as_ref().map(|wire| wire.sender().map(Mutex::new)).transpose().map_err(cannot)?);
        }
        let side = Arc::new(Side {
            cluster: cluster.clone(),
            failure,
            senders,
            state: Mutex::new(State::new(wires.len())),
            changed: Condvar::new(),
            threads: Mutex::default(),
            board: OnceLock::new(),
        });
        let mut threads = Vec::new();
        for (process, wire) in wires.into_iter().enumerate() {
            let Some(wire) = wire else { continue };
            let own = Arc::clone(&side);
            let body = move || own.listen(process, wire);
            threads.push(thread::start(Role::Process, &format!("process {process}"), body)?);
        }
        let own = Arc::clone(&side);
        threads.push(thread::start(Role::Processes, Role::Processes.name(), move || own.watch())?);
        *side.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(side)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_first(&self) -> bool {
        self.cluster.process() == 0
    }

    /// Has what this process is at told with its signs of life.
    pub(crate) fn tell_of(&self, board: Arc<Board>) {
        // It is told once: a job has one life.
        let _ = self.board.set(board);
    }

    /// What is known of those whom this process has a connection to.
    pub(crate) fn others(&self) -> Vec<ProcessStatus> {
        let state = self.state();
        let others = (0..self.senders.len()).filter(|process| self.senders[*process].is_some());
        let others = others.map(|process| {
            let silent_ms = u64::try_from(state.heard[process].elapsed().as_millis()).unwrap_or(u64::MAX);
            state.of(process, silent_ms)
        });
        others.collect()
    }

    /// What fails the job.
    pub(super) fn failure(&self) -> &Arc<Failure> {
        &self.failure
    }

    /// Says that another process is gone.
    pub(super) fn lost(&self, process: usize, why: &str) {
        let mut state = self.state();
        if !state.closing && !state.over && state.missed.is_none() {
            state.missed = Some((process, why.to_owned(), Instant::now()));
            self.changed.notify_all();
        }
    }

    /// Hears what another process says, until its connection ends.
    fn listen(&self, process: usize, mut wire: Wire) {
        loop {
            thread::turn();
            match wire.receive::<Word>(SIGN) {
                Ok(None) => {
                    if self.state().closing {
                        return;
                    }
                }
                Ok(Some(word)) => self.hear(process, word),
                Err(why) => return self.lost(process, &why.to_string()),
            }
        }
    }

    fn hear(&self, from: usize, word: Word) {
        let mut state = self.state();
        state.heard[from] = Instant::now();
        match word {
            Word::Alive(status) => {
                if let Some(status) = status {
                    state.put(*status);
                }
                return;
            }
            Word::Done(summary) => state.done[from] = Some(summary),
            Word::Over => state.over = true,
            Word::Failed(ref told) => {
                let error = told.error();
                state.reason.get_or_insert(word);
                self.failure.set(error);
            }
            Word::Lost { process, ref why } => {
                self.failure.set(self.cluster.gone(process, why));
                state.reason.get_or_insert(word);
            }
        }
        self.changed.notify_all();
    }

    /// Gives signs, misses who gives none, and tells of failures.
    fn watch(&self) {
        let mut signed = Instant::now();
        let mut state = self.state();
        while !state.closing {
            if !state.over && state.missed.is_none() {
                let silence = self.cluster.silence;
                let silent =
                    |process: &usize| self.senders[*process].is_some() && state.heard[*process].elapsed() > silence;
                if let Some(process) = (0..self.senders.len()).find(silent) {
                    let why = format!("nothing was heard of it for {} s", silence.as_secs());
                    state.missed = Some((process, why, Instant::now() - GRACE));
                }
            }
            if let Some((process, why, since)) = &state.missed
                && state.reason.is_none()
                && !state.over
                && self.failure.get().is_none()
                && since.elapsed() >= GRACE
            {
                let (process, why) = (*process, why.clone());
                self.failure.set(self.cluster.gone(process, &why));
                state.reason = Some(Word::Lost { process, why });
            }
            drop(state);
            thread::turn();
            self.tell_failure();
            if signed.elapsed() >= SIGN {
                signed = Instant::now();
                let status = self.board.get().map(|board| Box::new(board.status()));
                self.tell(&Word::Alive(status));
            }
            state = self.state();
            if !state.closing {
                state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Tells those whom this process has a connection to; who cannot be told is missed anyway.
    fn tell(&self, word: &Word) {
        for sender in self.senders.iter().flatten() {
            let _ = send(&mut sender.lock().unwrap_or_else(PoisonError::into_inner), word);
        }
    }

    /// Tells why the job fails, if it does, once.
    fn tell_failure(&self) {
        let Some(error) = self.failure.get() else { return };
        let mut state = self.state();
        if std::mem::replace(&mut state.told, true) {
            return;
        }
        let own = || Word::Failed(Told::new(self.cluster.process(), error));
        let word = state.reason.clone().unwrap_or_else(own);
        drop(state);
        self.tell(&word);
    }

    /// Process 0: what all other processes have done, when all are done; nothing if the job fails.
    pub(crate) fn all_done(&self) -> Option<Vec<Summary>> {
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

    /// Another process: says what this one has done, and returns when the job is over or has failed.
    pub(crate) fn done(&self, summary: Summary) {
        self.tell(&Word::Done(summary));
        let mut state = self.state();
        while !state.over && self.failure.get().is_none() {
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Closes the connections; process 0 says first that the job is over. A failure is told if it has not been.
    pub(crate) fn close(&self) {
        match self.failure.get() {
            Some(_) => self.tell_failure(),
            None => {
                self.state().over = true;
                if self.is_first() {
                    self.tell(&Word::Over);
                }
            }
        }
        self.state().closing = true;
        self.changed.notify_all();
        for sender in self.senders.iter().flatten() {
            // What has been told is still sent.
            let _ = sender.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Write);
        }
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_said_last_is_what_is_known_of_it() {
        let mut state = State::new(2);
        assert_eq!(state.of(1, 70), ProcessStatus { process: 1, silent_ms: 70, ..ProcessStatus::default() });
        state.put(ProcessStatus { process: 1, shown_ms: 1, ..ProcessStatus::default() });
        state.put(ProcessStatus { process: 1, shown_ms: 2, ..ProcessStatus::default() });
        assert_eq!((state.of(1, 5).shown_ms, state.of(1, 5).silent_ms), (2, 5));
    }
}
