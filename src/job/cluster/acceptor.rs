//! Accepts the connections of other processes, and refuses those of strangers.
//!
//! All callers are served concurrently, none for longer than the handshake timeout, and at most [`MAX_PENDING`] at a
//! time: when one more connects, the oldest caller without a valid greeting is refused to make room. So a stranger who
//! knows the port, and sends nothing, garbage or single bytes, delays nobody. The first refusal is logged, further ones
//! are counted.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::framed::Framed;
use super::handshake::{AcceptPolicy, HandshakeProgress, PendingHandshake};
use super::messages::JoinRequest;

/// Maximum number of concurrent callers; leaves the process enough file descriptors.
const MAX_PENDING: usize = 128;
/// Polling intervals, while there are callers and while there are none.
const BUSY: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(20);
/// Maximum number of connections accepted per poll.
const MAX_ACCEPTED_PER_POLL: usize = 256;

/// A process that has passed the handshake.
pub(super) struct AcceptedPeer {
    pub(super) process: usize,
    pub(super) wire: Framed,
    /// The process's configuration; `None` on connections of the dataflow.
    pub(super) hello: Option<Box<JoinRequest>>,
}

/// Acceptor of connections, and of the handshakes under way.
pub(super) struct Acceptor {
    listener: Arc<TcpListener>,
    terms: AcceptPolicy,
    callers: VecDeque<(SocketAddr, PendingHandshake)>,
    refused: u64,
    /// `true` once a failure to accept connections was logged.
    failed: bool,
}

impl Acceptor {
    pub(super) fn new(listener: Arc<TcpListener>, terms: AcceptPolicy) -> Self {
        Acceptor { listener, terms, callers: VecDeque::new(), refused: 0, failed: false }
    }

    /// Accepts new connections, advances all handshakes, and returns the processes that have passed; it does not block.
    pub(super) fn poll(&mut self) -> Vec<AcceptedPeer> {
        let mut arrivals = Vec::new();
        for (address, caller) in std::mem::take(&mut self.callers) {
            self.hear(address, caller, &mut arrivals);
        }
        for _ in 0..MAX_ACCEPTED_PER_POLL {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    if let Ok(caller) = PendingHandshake::new(stream) {
                        self.hear(address, caller, &mut arrivals);
                    }
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => break,
                Err(why) if matches!(why.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(why) => {
                    self.make_room(&why);
                    break;
                }
            }
        }
        arrivals
    }

    /// Returns the time to wait before the next poll.
    pub(super) fn pause(&self) -> Duration {
        if self.callers.is_empty() { IDLE } else { BUSY }
    }

    fn hear(&mut self, address: SocketAddr, mut caller: PendingHandshake, arrivals: &mut Vec<AcceptedPeer>) {
        let progress = caller.advance(&self.terms);
        if let Some(why) = caller.refused() {
            self.refuse(address, &why);
        }
        match progress {
            HandshakeProgress::Gone => {}
            HandshakeProgress::Waits => {
                self.callers.push_back((address, caller));
                if self.callers.len() > MAX_PENDING {
                    self.evict("too many connections at a time");
                }
            }
            HandshakeProgress::Refused(why) => self.refuse(address, &why),
            HandshakeProgress::Arrived(process, hello) => match caller.into_framed().into_blocking() {
                Ok(wire) => arrivals.push(AcceptedPeer { process, wire, hello }),
                Err(why) => self.refuse(address, &why.to_string()),
            },
        }
    }

    /// Refuses one caller: the oldest without a valid greeting, or else the oldest.
    fn evict(&mut self, why: &str) {
        let mute = self.callers.iter().position(|(_, caller)| !caller.has_greeted());
        if let Some((address, _)) = self.callers.remove(mute.unwrap_or(0)) {
            self.refuse(address, why);
        }
    }

    /// Refuses one caller after a failure to accept: this process may be out of file descriptors.
    fn make_room(&mut self, why: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!("cannot take in a connection of another process: {why}; it is tried again");
        }
        self.evict("no more connections can be taken in");
    }

    fn refuse(&mut self, address: SocketAddr, why: &str) {
        self.refused += 1;
        if self.refused == 1 {
            tracing::warn!(
                "refused a connection from {address}, which is no process of this job: {why}; further ones are counted"
            );
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        if self.refused > 1 {
            tracing::warn!("refused {} connections from others than the processes of this job", self.refused);
        }
    }
}
