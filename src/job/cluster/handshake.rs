//! Mutual authentication of two processes, before anything else is sent on a connection.
//!
//! | | from | to | bytes |
//! | --- | --- | --- | --- |
//! | greeting | dialer | acceptor | magic and version 8, purpose 1, from 4, to 4, number 8, secured 1, nonce 32 |
//! | challenge | acceptor | dialer | magic and version 8, secured 1, nonce 32 |
//! | proof | dialer | acceptor | HMAC over greeting and challenge 32 |
//! | verdict | acceptor | dialer | accepted 1, HMAC over the same, for the other end 32 |
//!
//! A connection to process 0 continues with its [`JoinRequest`], which a [`JoinReply`] answers. Both ends bound the
//! whole handshake by [`HANDSHAKE_TIMEOUT`], counted while they run. Without a secret the same bytes are sent, and
//! prove only that both ends are there.
//!
//! A peer of another version learns this one's version from the first bytes of any answer; versions 2 and 3, which have
//! no challenge, are answered in their own format.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::framed::{Framed, encoded};
use super::heartbeat::RunningTime;
use super::messages::{JoinReply, JoinRequest};
use super::secret::{ConnectionEnd, PROOF, Secret, is_proof, proof, random};
use crate::error::Error;

/// Handshake timeout.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connect timeout, of each of an address's hosts: the longest time for which a dialer does not read the clock.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of a [`JoinRequest`], in bytes.
const MAX_JOIN_REQUEST: usize = 1 << 20;
/// Maximum number of bytes read on a connection whose caller has been refused.
const MAX_DISCARDED: u64 = 2 << 20;

/// First bytes of every connection: name and version of the protocol.
const MAGIC: [u8; 8] = *b"TGPROC\0\x06";
/// The oldest and the newest of the versions without a challenge.
const OLDEST: u8 = 2;
const BEFORE_CHALLENGES: u8 = 3;

const NONCE: usize = 32;
const GREETING: usize = 8 + 1 + 4 + 4 + 8 + 1 + NONCE;
const CHALLENGE: usize = 8 + 1 + NONCE;
const VERDICT: usize = 1 + PROOF;

/// Purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionPurpose {
    /// Control messages to and from process 0.
    Control,
    /// The dataflow.
    Data,
}

/// First message on a connection: purpose, sender and recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) purpose: ConnectionPurpose,
    pub(super) from: u32,
    pub(super) to: u32,
    /// Number that process 0 drew for the connections of the dataflow; 0 on others.
    pub(super) number: u64,
    /// `true` if the dialer has a secret.
    pub(super) secured: bool,
    pub(super) nonce: [u8; NONCE],
}

impl Greeting {
    fn bytes(&self) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = u8::from(self.purpose == ConnectionPurpose::Data);
        bytes[9..13].copy_from_slice(&self.from.to_le_bytes());
        bytes[13..17].copy_from_slice(&self.to.to_le_bytes());
        bytes[17..25].copy_from_slice(&self.number.to_le_bytes());
        bytes[25] = u8::from(self.secured);
        bytes[26..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads a greeting of this version.
    fn read(bytes: &[u8; GREETING]) -> Self {
        let (mut from, mut to, mut number, mut nonce) = ([0; 4], [0; 4], [0; 8], [0; NONCE]);
        from.copy_from_slice(&bytes[9..13]);
        to.copy_from_slice(&bytes[13..17]);
        number.copy_from_slice(&bytes[17..25]);
        nonce.copy_from_slice(&bytes[26..]);
        Greeting {
            purpose: if bytes[8] == 0 { ConnectionPurpose::Control } else { ConnectionPurpose::Data },
            from: u32::from_le_bytes(from),
            to: u32::from_le_bytes(to),
            number: u64::from_le_bytes(number),
            secured: bytes[25] != 0,
            nonce,
        }
    }
}

/// Returns the version that a peer speaks, from its first bytes; `None` if it is no process of a job.
fn version(first: &[u8]) -> Option<u8> {
    let (name, version) = first.get(..8)?.split_at(7);
    (name == &MAGIC[..7]).then_some(version[0])
}

fn other_version(version: u8) -> String {
    format!("it speaks version {version} of what processes say to each other, this one speaks {}", MAGIC[7])
}

/// Reason why a process is refused while another one of its number is connected.
pub(super) const ALREADY_CONNECTED: &str = "another process of this number is there";

/// Failure of an attempt to reach a process.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// A retry may succeed.
    Retryable(String),
    /// A retry is of no use.
    Fatal(Error),
}

impl From<io::Error> for ConnectError {
    fn from(why: io::Error) -> Self {
        ConnectError::Retryable(why.to_string())
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        ConnectError::Fatal(error)
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// Connects to the first of an address's hosts that accepts.
fn connect(address: &str, time: &mut RunningTime) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(why) => last = why,
        }
        time.elapsed();
    }
    Err(last)
}

/// Polls a connection until `look` returns a value; fails [`HANDSHAKE_TIMEOUT`] after `begun`.
fn wait<T>(time: &mut RunningTime, begun: Duration, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    loop {
        if let Some(come) = look()? {
            return Ok(come);
        }
        if time.elapsed() > begun + HANDSHAKE_TIMEOUT {
            let why = format!("it accepts connections, and said nothing for {} s", HANDSHAKE_TIMEOUT.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
}

/// Parameters of a connection to another process.
#[derive(Clone, Copy, Debug)]
pub(super) struct DialOptions<'a> {
    pub(super) purpose: ConnectionPurpose,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) address: &'a str,
    pub(super) number: u64,
    pub(super) secret: Option<&'a Secret>,
}

impl DialOptions<'_> {
    /// Connects, and lets both ends prove that they know the secret; `time` counts the attempt.
    pub(super) fn dial(&self, time: &mut RunningTime) -> Result<Framed, ConnectError> {
        let mut wire = Framed::blocking(connect(self.address, time)?)?;
        let begun = time.elapsed();
        let greeting = Greeting {
            purpose: self.purpose,
            from: self.from as u32,
            to: self.to as u32,
            number: self.number,
            secured: self.secret.is_some(),
            nonce: random()?,
        };
        let greeting = greeting.bytes();
        wire.put(&greeting, HANDSHAKE_TIMEOUT)?;
        let first: [u8; 8] = wait(time, begun, || wire.peek())?;
        match version(&first) {
            Some(version) if version == MAGIC[7] => {}
            Some(version) => {
                let error = Error::usage(format!("process {} is of another version", self.to)).at(self.address);
                let error = error.because(other_version(version));
                return Err(ConnectError::Fatal(error.help("start all with one program")));
            }
            None => return Err(invalid("it is no process of a job").into()),
        }
        let challenge: [u8; CHALLENGE] = wait(time, begun, || wire.take())?;
        match (self.secret.is_some(), challenge[8] != 0) {
            (false, true) => {
                let error = Error::usage(format!("process {} asks for a secret", self.to)).at(self.address);
                let error = error.because("this process has none");
                return Err(ConnectError::Fatal(error.help("give all processes the same --cluster-secret-file")));
            }
            // It may be a stranger, in whose place a process of this job may answer later.
            (true, false) => return Err(invalid("it has no secret, and this process has one").into()),
            _ => {}
        }
        wire.put(&proof(self.secret, ConnectionEnd::Dialer, [&greeting, &challenge]), HANDSHAKE_TIMEOUT)?;
        let verdict: [u8; VERDICT] = wait(time, begun, || wire.take())?;
        let mut proved = [0; PROOF];
        proved.copy_from_slice(&verdict[1..]);
        if verdict[0] == 0 {
            let error = Error::usage(format!("process {} knows another secret", self.to)).at(self.address);
            return Err(ConnectError::Fatal(error.help("give all processes the same --cluster-secret-file")));
        }
        if !is_proof(self.secret, ConnectionEnd::Acceptor, [&greeting, &challenge], &proved) {
            return Err(invalid("it does not know the secret").into());
        }
        Ok(wire)
    }
}

/// Sends this process's configuration, and returns the connection if process 0 accepts it; `time` counts the attempt.
pub(super) fn introduce(mut wire: Framed, hello: &JoinRequest, time: &mut RunningTime) -> Result<Framed, ConnectError> {
    wire.send(hello, HANDSHAKE_TIMEOUT)?;
    let begun = time.elapsed();
    match wait(time, begun, || wire.receive())? {
        JoinReply::Welcome => Ok(wire),
        JoinReply::AlreadyConnected => Err(ConnectError::Retryable(ALREADY_CONNECTED.into())),
        JoinReply::Refused(told) => Err(ConnectError::Fatal(told.error())),
    }
}

/// Conditions under which an acceptor accepts a caller.
#[derive(Clone, Debug)]
pub(super) struct AcceptPolicy {
    pub(super) own: usize,
    pub(super) purpose: ConnectionPurpose,
    pub(super) number: u64,
    pub(super) secret: Option<Secret>,
}

/// A caller that has connected and not yet passed the handshake. Nothing here blocks.
pub(super) struct PendingHandshake {
    wire: Framed,
    time: RunningTime,
    stage: HandshakeStage,
}

/// Next message expected from a caller.
enum HandshakeStage {
    Greeting,
    Proof {
        greeting: [u8; GREETING],
        challenge: [u8; CHALLENGE],
    },
    JoinRequest {
        from: usize,
    },
    /// Nothing: it was refused, for a reason that has not been taken yet. Its bytes are read until it closes, so that
    /// the answer reaches it.
    Refused(Option<String>),
}

/// State of a caller's handshake.
pub(super) enum HandshakeProgress {
    /// More bytes are needed.
    Waits,
    /// It has passed the handshake as this process, with its configuration on a connection to process 0.
    Arrived(usize, Option<Box<JoinRequest>>),
    /// It was refused, with the reason.
    Refused(String),
    /// It was refused before, and is gone.
    Gone,
}

impl PendingHandshake {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(PendingHandshake {
            wire: Framed::nonblocking(stream)?,
            time: RunningTime::start(),
            stage: HandshakeStage::Greeting,
        })
    }

    pub(super) fn into_framed(self) -> Framed {
        self.wire
    }

    /// `true` if it has sent a valid greeting.
    pub(super) fn has_greeted(&self) -> bool {
        matches!(self.stage, HandshakeStage::Proof { .. } | HandshakeStage::JoinRequest { .. })
    }

    /// Returns the reason of its refusal, once.
    pub(super) fn refused(&mut self) -> Option<String> {
        if let HandshakeStage::Refused(why) = &mut self.stage { why.take() } else { None }
    }

    /// Processes the bytes that have arrived.
    pub(super) fn advance(&mut self, terms: &AcceptPolicy) -> HandshakeProgress {
        let advanced = loop {
            match self.step(terms) {
                Ok(Some(HandshakeProgress::Waits)) => {}
                other => break other,
            }
        };
        match advanced {
            Ok(Some(progress)) => progress,
            Ok(None) if self.time.elapsed() <= HANDSHAKE_TIMEOUT => HandshakeProgress::Waits,
            Ok(None) if matches!(self.stage, HandshakeStage::Refused(None)) => HandshakeProgress::Gone,
            Ok(None) => HandshakeProgress::Refused(format!(
                "it has not proved who it is within {} s",
                HANDSHAKE_TIMEOUT.as_secs()
            )),
            Err(why) => HandshakeProgress::Refused(why.to_string()),
        }
    }

    /// Processes the caller's next message: `None` while it is incomplete, `Waits` if another one may follow.
    fn step(&mut self, terms: &AcceptPolicy) -> io::Result<Option<HandshakeProgress>> {
        match &self.stage {
            HandshakeStage::Greeting => {
                let Some(first) = self.wire.peek::<8>()? else { return Ok(None) };
                match version(&first) {
                    None => return Err(invalid("it is no process of a job")),
                    Some(version) if version != MAGIC[7] => {
                        self.wire.put(&answer_for(version, terms.own)?, HANDSHAKE_TIMEOUT)?;
                        self.end(other_version(version))?;
                    }
                    Some(_) => {
                        let Some(greeting) = self.wire.take::<GREETING>()? else { return Ok(None) };
                        self.challenge(greeting, terms)?;
                    }
                }
            }
            HandshakeStage::Proof { greeting, challenge } => {
                let Some(proved) = self.wire.take::<PROOF>()? else { return Ok(None) };
                let (said, secret) = ([&greeting[..], &challenge[..]], terms.secret.as_ref());
                let accepted = is_proof(secret, ConnectionEnd::Dialer, said, &proved);
                let mut verdict = [0; VERDICT];
                if accepted {
                    verdict[0] = 1;
                    verdict[1..].copy_from_slice(&proof(secret, ConnectionEnd::Acceptor, said));
                }
                let from = Greeting::read(greeting).from as usize;
                self.wire.put(&verdict, HANDSHAKE_TIMEOUT)?;
                match terms.purpose {
                    _ if !accepted => self.end(String::from("it does not know the secret"))?,
                    ConnectionPurpose::Data => return Ok(Some(HandshakeProgress::Arrived(from, None))),
                    ConnectionPurpose::Control => self.stage = HandshakeStage::JoinRequest { from },
                }
            }
            HandshakeStage::JoinRequest { from } => {
                let from = *from;
                let Some(hello) = self.wire.receive_at_most::<JoinRequest>(MAX_JOIN_REQUEST)? else { return Ok(None) };
                if hello.process != from {
                    return Err(invalid("it says that it is two processes"));
                }
                return Ok(Some(HandshakeProgress::Arrived(from, Some(Box::new(hello)))));
            }
            HandshakeStage::Refused(_) => {
                let read_on = self.wire.received() < MAX_DISCARDED;
                return Ok(if read_on && self.wire.skip() { None } else { Some(HandshakeProgress::Gone) });
            }
        }
        Ok(Some(HandshakeProgress::Waits))
    }

    /// Sends a challenge, if the greeting is meant for this process.
    fn challenge(&mut self, greeting: [u8; GREETING], terms: &AcceptPolicy) -> io::Result<()> {
        let said = Greeting::read(&greeting);
        if said.purpose != terms.purpose || said.to as usize != terms.own || said.number != terms.number {
            return Err(invalid("it belongs to another attempt to begin, or to another job"));
        }
        let mut challenge = [0; CHALLENGE];
        challenge[..8].copy_from_slice(&MAGIC);
        challenge[8] = u8::from(terms.secret.is_some());
        challenge[9..].copy_from_slice(&random::<NONCE>().map_err(|why| io::Error::other(why.to_string()))?);
        self.wire.put(&challenge, HANDSHAKE_TIMEOUT)?;
        if said.secured != terms.secret.is_some() {
            let which = if said.secured { "it has a secret, and this process has none" } else { "it has no secret" };
            return self.end(which.into());
        }
        self.stage = HandshakeStage::Proof { greeting, challenge };
        Ok(())
    }

    /// Refuses the caller: sends no more.
    fn end(&mut self, why: String) -> io::Result<()> {
        self.stage = HandshakeStage::Refused(Some(why));
        self.wire.finish()
    }
}

/// Returns the answer to a peer of another version, in a format that it can read and report.
fn answer_for(version: u8, own: usize) -> io::Result<Vec<u8>> {
    if !(OLDEST..=BEFORE_CHALLENGES).contains(&version) {
        return Ok(MAGIC.to_vec());
    }
    // In the format of those versions: the variant of the answer, the process that sends it, whether it is a usage
    // error, and the text.
    let why = format!(
        "process {own} speaks version {} of what processes say to each other, this one speaks {version}: \
         start all with one program",
        MAGIC[7]
    );
    encoded(&(3u32, own, true, why))
}

#[cfg(test)]
mod tests;
