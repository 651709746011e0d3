//! The state of a connection, and its time limits.
//!
//! A [`ConnectionTracker`] knows the **phase** of a connection: it waits for a request, receives a header, or answers a
//! request; and its **stall**: the time since which the client has not read what waits for it. Whoever reads, answers
//! and writes notes it there; whoever serves the connection asks for its next deadline.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use super::limits::{HEADER_TIME, IDLE_TIME, STUCK, WRITE_BYTES, WRITE_TIME};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has been received yet.
    New,
    /// A part of a request's header has been received.
    Header,
    /// A request is being answered.
    Answering,
    /// All answers so far have been sent.
    Idle,
}

/// A period in which bytes wait for the client. Whenever the client has read [`WRITE_BYTES`], a new period begins.
#[derive(Clone, Copy, Debug)]
struct Stall {
    /// The end of the period.
    until: Instant,
    /// Bytes read by the client in this period.
    taken: usize,
    /// The last time that the client has read any.
    moved: Instant,
}

#[derive(Debug)]
struct ConnectionState {
    phase: Phase,
    since: Instant,
    stall: Option<Stall>,
    /// Number of requests with a wrong token.
    wrong_tokens: u32,
}

/// The shared state of a connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionTracker(Arc<Mutex<ConnectionState>>);

impl ConnectionTracker {
    /// Starts with a connection that has just been accepted.
    pub(super) fn new() -> Self {
        ConnectionTracker(Arc::new(Mutex::new(ConnectionState {
            phase: Phase::New,
            since: Instant::now(),
            stall: None,
            wrong_tokens: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        (state.phase, state.since) = (phase, Instant::now());
    }

    /// Counts a request with a wrong token; returns the number of those on this connection.
    pub(super) fn count_wrong_token(&self) -> u32 {
        let mut state = self.state();
        state.wrong_tokens = state.wrong_tokens.saturating_add(1);
        state.wrong_tokens
    }

    /// Notes that a request has been received.
    pub(super) fn answering(&self) {
        self.enter(Phase::Answering);
    }

    /// Notes that an answer has been sent, or given up.
    pub(super) fn answered(&self) {
        self.enter(Phase::Idle);
    }

    /// Notes that bytes have been received.
    pub(super) fn has_read(&self) {
        let mut state = self.state();
        match state.phase {
            Phase::New => state.phase = Phase::Header,
            Phase::Idle => (state.phase, state.since) = (Phase::Header, Instant::now()),
            Phase::Header | Phase::Answering => {}
        }
    }

    /// Notes the outcome of a write.
    pub(super) fn has_written(&self, outcome: &Poll<io::Result<usize>>) {
        let (mut state, now) = (self.state(), Instant::now());
        match (outcome, &mut state.stall) {
            (Poll::Pending, None) => state.stall = Some(Stall { until: now + WRITE_TIME, taken: 0, moved: now }),
            (Poll::Ready(Ok(taken)), Some(stall)) => {
                (stall.taken, stall.moved) = (stall.taken + taken, now);
                if stall.taken >= WRITE_BYTES {
                    (stall.until, stall.taken) = (now + WRITE_TIME, 0);
                }
            }
            _ => {}
        }
    }

    /// Notes that no bytes wait for the client.
    pub(super) fn has_written_all(&self) {
        self.state().stall = None;
    }

    /// Returns the time at which the next limit passes; `None` if there is none.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::New | Phase::Header => Some(state.since + HEADER_TIME),
            Phase::Idle => Some(state.since + IDLE_TIME),
            Phase::Answering => None,
        };
        phase.into_iter().chain(state.stall.map(|stall| stall.until)).min()
    }

    /// `true` if a limit has passed.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns the time since which the connection is expendable; `None` if it is not.
    pub(super) fn spare_since(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        match (state.phase, state.stall) {
            (_, Some(stall)) if stall.moved + STUCK <= now => Some(stall.moved),
            (Phase::Answering, _) => None,
            (Phase::New | Phase::Header | Phase::Idle, _) => Some(state.since),
        }
    }
}
