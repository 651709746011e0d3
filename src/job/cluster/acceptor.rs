//! Takes the connections of other processes, among those of strangers.
//!
//! All who have connected are heard at the same time, none for longer than a handshake may take, and at most [`MOST`]: when
//! one more comes, one of those has to go who have not greeted as processes do. So who knows the port and says nothing, or
//! something else, or little by little, delays nobody. Strangers are logged once, and counted.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::Hello;
use super::handshake::{Caller, Progress, Terms};
use super::wire::Wire;

/// How many callers are heard at a time: so many that a process has files left to open.
const MOST: usize = 128;
/// How long there is between two looks at who has connected, while there are callers and while there are none.
const BUSY: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(20);
/// How many are taken in at a time.
const AT_ONCE: usize = 256;

/// A process that has proved who it is.
pub(super) struct Arrival {
    pub(super) process: usize,
    pub(super) wire: Wire,
    /// What it would run, if it has come to process 0.
    pub(super) hello: Option<Box<Hello>>,
}

/// Hears those who connect.
pub(super) struct Acceptor {
    listener: Arc<TcpListener>,
    terms: Terms,
    callers: VecDeque<(SocketAddr, Caller)>,
    refused: u64,
    /// `true` once it was told that nobody can be taken in.
    failed: bool,
}

impl Acceptor {
    pub(super) fn new(listener: Arc<TcpListener>, terms: Terms) -> Self {
        Acceptor { listener, terms, callers: VecDeque::new(), refused: 0, failed: false }
    }

    /// Takes in who has connected, hears all, and answers who has arrived; it does not wait.
    pub(super) fn poll(&mut self) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for (address, caller) in std::mem::take(&mut self.callers) {
            self.hear(address, caller, &mut arrivals);
        }
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, address)) => {
                    if let Ok(caller) = Caller::new(stream) {
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

    /// How long to wait before the next look.
    pub(super) fn pause(&self) -> Duration {
        if self.callers.is_empty() { IDLE } else { BUSY }
    }

    fn hear(&mut self, address: SocketAddr, mut caller: Caller, arrivals: &mut Vec<Arrival>) {
        let progress = caller.advance(&self.terms);
        if let Some(why) = caller.refused() {
            self.refuse(address, &why);
        }
        match progress {
            Progress::Gone => {}
            Progress::Waits => {
                self.callers.push_back((address, caller));
                if self.callers.len() > MOST {
                    self.let_go("more have connected than are heard at a time");
                }
            }
            Progress::Refused(why) => self.refuse(address, &why),
            Progress::Arrived(process, hello) => match caller.into_wire().into_blocking() {
                Ok(wire) => arrivals.push(Arrival { process, wire, hello }),
                Err(why) => self.refuse(address, &why.to_string()),
            },
        }
    }

    /// Lets one go: who has said nothing that a process says, before who has, and of those who has waited longest.
    fn let_go(&mut self, why: &str) {
        let mute = self.callers.iter().position(|(_, caller)| !caller.has_greeted());
        if let Some((address, _)) = self.callers.remove(mute.unwrap_or(0)) {
            self.refuse(address, why);
        }
    }

    /// Lets somebody go, as nobody can be taken in: this process may have no more open files than it has.
    fn make_room(&mut self, why: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!("cannot take in a connection of another process: {why}; it is tried again");
        }
        self.let_go("no more connections can be taken in");
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
