//! The processes of a job: how they connect, agree on what to run, and detect failures of each other.
//!
//! * [`Cluster`]: the addresses of the processes, and the number of this one.
//! * [`handshake`], [`secret`], [`acceptor`]: every connection starts with mutual authentication; strangers are
//!   refused.
//! * [`gather`](Cluster::gather): every process connects to process 0 and sends its configuration. Process 0 compares
//!   the configurations, starts the incarnation of the state alone, and tells all processes to start, or why not.
//! * [`connect`](Gathered::connect): then every two processes connect, for the dataflow. A number drawn by process 0
//!   keeps out processes of an earlier attempt.
//! * [`control_channel::ControlChannel`]: the connections to process 0 stay open beside the dataflow: they report
//!   failures, detect dead processes, and agree on the end of the job.
//! * [`data_connection::DataConnection`]: a connection of the dataflow, which notices that the other end is gone
//!   before the dataflow does.
//! * [`heartbeat`]: heartbeats on all of these connections, and silence, measured by the time in which this process
//!   ran.
//!
//! The state needs no other agreement than this: all that processes share is in the state directory, and in the
//! progress tracking of the dataflow.
//!
//! Invariants: no process runs a query that another one does not; no record is read before all processes are connected;
//! a process that has lost another one ends, with one line that names the one that was lost first; every wait for
//! another process is bounded by a timeout, or by its heartbeats.

mod acceptor;
pub(crate) mod control_channel;
mod data_connection;
mod framed;
mod handshake;
mod heartbeat;
pub(crate) mod secret;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use self::acceptor::{AcceptedPeer, Acceptor};
use self::control_channel::ControlChannel;
use self::data_connection::DataConnection;
use self::handshake::{
    ATTEMPT_TIMEOUT, AcceptPolicy, ConnectError, ConnectionPurpose, DialOptions, HANDSHAKE_TIMEOUT, JoinReply,
    introduce,
};
use self::heartbeat::{HEARTBEAT_INTERVAL, RunningTime};
use self::secret::{Secret, random};
use crate::durable::manifest::QueryFingerprint;
use crate::durable::recovery::changes;
use crate::error::{Error, ErrorKind, Result};
use crate::job::StopHandle;
use crate::thread::{self, JobFailure, ThreadRole};

/// Pause between two attempts to reach a process.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Silence after which a connected process is replaced by another one of its number.
const REPLACE_AFTER: Duration = HEARTBEAT_INTERVAL.saturating_mul(4);
/// Port of process 0 without a host file; process `p` has the port `FIRST_PORT + p`.
const FIRST_PORT: u16 = 2101;

/// The processes of a job, and the number of this one.
#[derive(Clone, Debug)]
pub struct Cluster {
    process: usize,
    addresses: Vec<String>,
    /// Socket that this process listens on, if it is open already.
    listener: Option<Arc<TcpListener>>,
    connect_timeout: Duration,
    heartbeat_timeout: Duration,
    secret: Option<Secret>,
}

impl Cluster {
    /// Makes this process number `process`, counted from 0, of those at these addresses, each `HOST:PORT`.
    ///
    /// # Errors
    /// Fails if there is no such process.
    pub fn new(process: usize, addresses: Vec<String>) -> Result<Self> {
        if process >= addresses.len() {
            let error = Error::usage(format!("there is no process {process} of {}", addresses.len()));
            return Err(error.help("processes are numbered from 0"));
        }
        let (connect_timeout, heartbeat_timeout) = (Duration::from_secs(60), Duration::from_secs(30));
        Ok(Cluster { process, addresses, listener: None, connect_timeout, heartbeat_timeout, secret: None })
    }

    /// Creates `processes` processes at free ports of this machine, all within this operating system process: for
    /// tests.
    pub(crate) fn within(processes: usize) -> Result<Vec<Self>> {
        let cannot = |why: io::Error| Error::new("cannot listen on this machine").because(why);
        let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").map_err(cannot)).collect();
        let listeners: Vec<_> = listeners.into_iter().collect::<Result<_>>()?;
        let addresses = listeners.iter().map(|listener| Ok(listener.local_addr().map_err(cannot)?.to_string()));
        let addresses: Vec<_> = addresses.collect::<Result<_>>()?;
        let all = listeners.into_iter().enumerate().map(|(process, listener)| {
            Cluster::new(process, addresses.clone())
                .map(|cluster| Cluster { listener: Some(Arc::new(listener)), ..cluster })
        });
        all.collect()
    }

    /// Makes this process number `process` of `processes` on this machine, at ports from 2101 on.
    ///
    /// # Errors
    /// Fails if there is no such process.
    pub fn on_this_machine(process: usize, processes: usize) -> Result<Self> {
        let ports = (FIRST_PORT..).take(processes);
        Cluster::new(process, ports.map(|port| format!("127.0.0.1:{port}")).collect())
    }

    /// Makes this process number `process` of the first `processes` of a file with one address `HOST:PORT` per line.
    /// Empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// Fails if the file cannot be read, has too few addresses or an invalid one, or there is no such process.
    pub fn from_hostfile(process: usize, processes: usize, path: &Path) -> Result<Self> {
        let place = || path.display();
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|why| Error::new("cannot read the file of hosts").at(place()).because(why))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let addresses: Vec<_> = lines.take(processes).map(str::to_owned).collect();
        if addresses.len() < processes {
            let error = Error::usage("the file of hosts has too few addresses").at(place());
            return Err(error.because(format!("it has {}, and there are {processes} processes", addresses.len())));
        }
        let is_address =
            |address: &&String| address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if let Some(bad) = addresses.iter().find(|address| !is_address(address)) {
            let error = Error::usage("a line of the file of hosts is no address").at(place()).because(bad);
            return Err(error.help("write HOST:PORT, one a line"));
        }
        Cluster::new(process, addresses)
    }

    /// Sets the connect timeout, for which a process waits for the others to start (one minute by default), and the
    /// heartbeat timeout, after which a silent process is taken for lost (30 s by default).
    #[must_use]
    pub fn timeouts(mut self, connect_timeout: Duration, heartbeat_timeout: Duration) -> Self {
        (self.connect_timeout, self.heartbeat_timeout) = (connect_timeout, heartbeat_timeout);
        self
    }

    /// Requires all processes to prove to each other that they know a secret of at least 16 bytes, before anything else
    /// is sent. It keeps out strangers who can reach the ports of the processes; the network traffic is not encrypted.
    ///
    /// # Errors
    /// Fails if the secret is too short.
    pub fn secret(mut self, secret: &[u8]) -> Result<Self> {
        self.secret = Some(Secret::new(secret)?);
        Ok(self)
    }

    /// Like [`secret`](Cluster::secret), read from a file; white space at its ends is not part of it.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or the secret is too short.
    pub fn secret_file(mut self, path: &Path) -> Result<Self> {
        self.secret = Some(Secret::from_file(path)?);
        Ok(self)
    }

    /// Returns the number of this process, from 0.
    pub fn process(&self) -> usize {
        self.process
    }

    /// Returns the number of processes.
    pub fn processes(&self) -> usize {
        self.addresses.len()
    }

    fn address(&self, process: usize) -> &str {
        &self.addresses[process]
    }

    /// Gathers all processes at process 0, which compares their configurations; `None` if a stop was requested
    /// meanwhile. Process 0 must continue with [`Gathered::begin`], [`Gathered::ended`] or [`Gathered::refuse`].
    ///
    /// # Errors
    /// Fails if a process does not connect within the connect timeout, or has another configuration.
    pub(crate) fn gather(
        &self,
        hello: &JoinRequest,
        stop: &StopHandle,
        failure: &Arc<JobFailure>,
    ) -> Result<Option<Gathered>> {
        let own = self.address(self.process);
        let listener = self.listener.clone().map_or_else(|| TcpListener::bind(own).map(Arc::new), Ok);
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|why| {
            let error = Error::new(format!("process {} cannot listen", self.process)).at(own).because(why);
            error.help("let the file of hosts name free ports of each machine")
        })?;
        if self.secret.is_none() && !self.addresses.iter().all(|address| is_loopback(address)) {
            tracing::warn!(
                "the processes have no secret: anybody who reaches their ports can take part in the job \
                 (--cluster-secret-file)"
            );
        }
        let side = ControlChannel::begin(self, Arc::clone(failure))?;
        let gathered = Gathered { cluster: self.clone(), listener, side: Some(side), failure: Arc::clone(failure) };
        let all_are_there = match self.process {
            0 => self.receive_all(&gathered, hello, stop),
            _ => self.come(&gathered, hello, stop),
        };
        match all_are_there {
            Ok(true) => Ok(Some(gathered)),
            Ok(false) => Ok(None),
            Err(error) => Err(gathered.refuse(error)),
        }
    }

    /// Process 0: accepts the other processes; `false` if a stop was requested.
    fn receive_all(&self, gathered: &Gathered, own: &JoinRequest, stop: &StopHandle) -> Result<bool> {
        let side = gathered.side()?;
        let mut acceptor = Acceptor::new(Arc::clone(&gathered.listener), self.terms(ConnectionPurpose::Control, 0));
        let mut time = RunningTime::start();
        while !side.is_gathered() {
            if let Some(error) = gathered.failure.get() {
                return Err(error.clone());
            }
            if stop.is_asked() {
                side.answer(StartMessage::Stopped);
                return Ok(false);
            }
            let missing = (1..self.processes()).find(|process| !side.is_connected(*process));
            if let Some(missing) = missing
                && time.elapsed() > self.connect_timeout
            {
                let error = Error::of(ErrorKind::ProcessLost, format!("process {missing} has not come"))
                    .at(self.address(missing));
                let error = error.because(heartbeat::unheard_for(self.connect_timeout));
                return Err(error.help("start all processes, with one file of hosts"));
            }
            for arrival in acceptor.poll() {
                self.receive(arrival, own, side)?;
            }
            std::thread::sleep(acceptor.pause());
        }
        Ok(true)
    }

    /// Process 0: checks a process's configuration, and accepts or refuses the process.
    fn receive(&self, arrival: AcceptedPeer, own: &JoinRequest, side: &Arc<ControlChannel>) -> Result<()> {
        let AcceptedPeer { process, mut wire, hello: Some(hello) } = arrival else { return Ok(()) };
        if let Err(error) = own.check(&hello, self.processes()) {
            let _ = wire.send(&JoinReply::Refused(FailureReport::new(0, &error)), HANDSHAKE_TIMEOUT);
            return Err(error);
        }
        let is_heard = u128::from(side.silent_ms(process)) < REPLACE_AFTER.as_millis();
        let is_connected = side.is_connected(process) && is_heard;
        let reply = if is_connected { JoinReply::AlreadyConnected } else { JoinReply::Welcome };
        // A process that is gone already may connect again.
        if wire.send(&reply, HANDSHAKE_TIMEOUT).is_ok() && !is_connected { side.attach(process, wire) } else { Ok(()) }
    }

    /// Other processes: connects to process 0; `false` if a stop was requested before.
    fn come(&self, gathered: &Gathered, hello: &JoinRequest, stop: &StopHandle) -> Result<bool> {
        let call = self.call(ConnectionPurpose::Control, 0, 0);
        // The other process of this number may be an earlier connection of this one, whose end process 0 has yet to
        // notice.
        let told_first = Cell::new(None::<Instant>);
        let come = || match call.dial().and_then(|wire| introduce(wire, hello)) {
            Err(ConnectError::Retryable(why)) if why == handshake::ALREADY_CONNECTED => {
                let since = told_first.get().unwrap_or_else(Instant::now);
                told_first.set(Some(since));
                if since.elapsed() < 2 * REPLACE_AFTER {
                    return Err(ConnectError::Retryable(why));
                }
                let error = Error::usage(format!("process {} is there already", self.process)).at(self.address(0));
                Err(ConnectError::Fatal(error.help("give each process another -p")))
            }
            other => other,
        };
        let Some(wire) = self.reach(0, &|| stop.is_asked() || gathered.failure.get().is_some(), come)? else {
            return Ok(false);
        };
        gathered.side()?.attach(0, wire).map(|()| true)
    }

    /// Reaches another process, which may have yet to start, by repeated attempts; `None` if `is_over` holds before.
    fn reach<T>(
        &self,
        process: usize,
        is_over: &dyn Fn() -> bool,
        attempt: impl Fn() -> std::result::Result<T, ConnectError>,
    ) -> Result<Option<T>> {
        let mut time = RunningTime::with_gaps_of(ATTEMPT_TIMEOUT);
        let mut told: Option<(Instant, String)> = None;
        loop {
            let why = match attempt() {
                Ok(reached) => return Ok(Some(reached)),
                Err(ConnectError::Fatal(error)) => return Err(error),
                Err(ConnectError::Retryable(why)) => why,
            };
            // A recent answer of the other process tells more than that its connection has closed since.
            if !why.contains("(os error") {
                told = Some((Instant::now(), why.clone()));
            }
            if is_over() {
                return Ok(None);
            }
            if time.elapsed() > self.connect_timeout {
                let error = Error::of(ErrorKind::ProcessLost, format!("process {process} cannot be reached"))
                    .at(self.address(process));
                let told = told.filter(|(since, _)| since.elapsed() < HANDSHAKE_TIMEOUT).map(|(_, told)| told);
                return Err(error.because(told.unwrap_or(why)).help("start all processes, with one file of hosts"));
            }
            std::thread::sleep(RETRY_INTERVAL);
        }
    }

    fn call(&self, purpose: ConnectionPurpose, to: usize, number: u64) -> DialOptions<'_> {
        DialOptions { purpose, from: self.process, to, address: self.address(to), number, secret: self.secret.as_ref() }
    }

    fn terms(&self, purpose: ConnectionPurpose, number: u64) -> AcceptPolicy {
        AcceptPolicy { own: self.process, purpose, number, secret: self.secret.clone() }
    }

    /// Returns the failure of a job that has lost a process, as process `by` has noticed.
    fn gone(&self, process: usize, by: usize, why: &str) -> Error {
        let error = match process {
            lost if lost == self.process => {
                Error::of(ErrorKind::ProcessLost, format!("process {lost} was taken for lost, which is this one"))
            }
            lost => Error::of(ErrorKind::ProcessLost, format!("process {lost} is gone")).at(self.address(lost)),
        };
        let error = if by == self.process { error.because(why) } else { error.because(format!("process {by}: {why}")) };
        error.help("start all processes again: a job with state goes on where its results end")
    }
}

/// Formats as in "process 1 of 3, at 10.0.0.2:2101".
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}, at {}", self.process, self.processes(), self.address(self.process))
    }
}

/// `true` if an address can only be reached from this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A process's configuration, which must agree with that of process 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    pub(crate) process: usize,
    pub(crate) processes: usize,
    /// Number of its worker threads.
    pub(crate) threads: usize,
    pub(crate) job: String,
    /// `true` if it keeps durable state.
    pub(crate) keeps: bool,
    pub(crate) query: QueryFingerprint,
}

impl JoinRequest {
    /// Checks that another process has the same configuration.
    fn check(&self, other: &JoinRequest, processes: usize) -> Result<()> {
        let place = format!("process {}", other.process);
        let differs = |why: String| {
            let error = Error::usage("the processes do not run the same").at(&place).because(why);
            Err(error.help("start all with one program and one command line, but for -p"))
        };
        if other.processes != processes || other.process == 0 || other.process >= processes {
            return differs(format!(
                "it is number {} of {}, and process 0 has {processes}",
                other.process, other.processes
            ));
        }
        if other.threads != self.threads {
            return differs(format!("it has {} workers, and process 0 has {}", other.threads, self.threads));
        }
        if other.job != self.job {
            return differs(format!("its job is {}, and that of process 0 is {}", other.job, self.job));
        }
        if other.keeps != self.keeps {
            return differs(format!("it keeps {} state", if other.keeps { "a" } else { "no" }));
        }
        match changes(&self.query, &other.query) {
            changes if changes.is_empty() => Ok(()),
            changes => differs(format!("compared with process 0, {}", changes.join(", "))),
        }
    }
}

/// Decision of process 0, sent to all processes that are connected, if they can run together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum StartMessage {
    /// Start: the number for the dataflow's connections, the incarnation of the state, and whether process 0 has views.
    Begin { number: u64, life: Option<u64>, views: bool },
    /// The state is complete: there is nothing to run.
    Ended,
    /// Process 0 was asked to stop before the start.
    Stopped,
}

/// The failure of a process, as sent to the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct FailureReport {
    process: usize,
    /// `true` for a usage error.
    usage: bool,
    why: String,
}

impl FailureReport {
    fn new(process: usize, error: &Error) -> Self {
        FailureReport { process, usage: error.kind() == ErrorKind::Usage, why: error.to_string() }
    }

    /// Returns the error with which a process that receives this fails.
    fn error(&self) -> Error {
        if self.usage {
            return Error::usage(&self.why);
        }
        Error::new(format!("process {} failed", self.process)).because(&self.why)
    }
}

/// The decision of process 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartDecision {
    /// Run, as this incarnation of the state if there is one, and with views if process 0 has them.
    Run { number: u64, life: Option<u64>, views: bool },
    /// The state is complete.
    Ended,
    /// A stop was requested before the start.
    Stopped,
}

/// Processes that have gathered. If this is dropped before they are connected, the other processes end with this one's
/// failure, or take this one for lost.
pub(crate) struct Gathered {
    cluster: Cluster,
    listener: Arc<TcpListener>,
    side: Option<Arc<ControlChannel>>,
    failure: Arc<JobFailure>,
}

impl Gathered {
    fn side(&self) -> Result<&Arc<ControlChannel>> {
        self.side.as_ref().ok_or_else(|| Error::new("the processes are connected already"))
    }

    /// Process 0: tells all to start, as this incarnation of the state if there is one, and with views if they are
    /// wanted.
    ///
    /// # Errors
    /// Fails if a process is gone meanwhile.
    pub(crate) fn begin(&mut self, life: Option<u64>, views: bool) -> Result<StartDecision> {
        let number = u64::from_le_bytes(random()?);
        self.answer(StartMessage::Begin { number, life, views })?;
        Ok(StartDecision::Run { number, life, views })
    }

    /// Process 0: tells all that the state is complete.
    pub(crate) fn ended(&mut self) -> Result<()> {
        self.answer(StartMessage::Ended)
    }

    /// Tells all processes that the start has failed, and returns the first failure.
    pub(crate) fn refuse(&self, error: Error) -> Error {
        self.failure.set(error.clone());
        if let Some(side) = &self.side {
            side.close();
        }
        self.failure.get().cloned().unwrap_or(error)
    }

    fn answer(&self, answer: StartMessage) -> Result<()> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        self.side()?.answer(answer);
        Ok(())
    }

    /// Other processes: waits for the decision of process 0. It may take as long as a recovery, while process 0 sends
    /// heartbeats.
    pub(crate) fn decided(&mut self, stop: &StopHandle) -> Result<StartDecision> {
        let side = self.side()?;
        match (side.answered(), self.failure.get()) {
            (Some(StartMessage::Stopped), _) => Ok(StartDecision::Stopped),
            (Some(StartMessage::Begin { number, life, views }), _) => Ok(StartDecision::Run { number, life, views }),
            (Some(StartMessage::Ended), _) => Ok(StartDecision::Ended),
            (None, _) if stop.is_asked() && side.has_lost_process() => Ok(StartDecision::Stopped),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Err(Error::new("process 0 has decided nothing")),
        }
    }

    /// Connects every two processes; `None` if a stop was requested.
    ///
    /// # Errors
    /// Fails if a process is gone, or does not connect.
    pub(crate) fn connect(mut self, number: u64, stop: &StopHandle) -> Result<Option<Mesh>> {
        let streams = match self.streams(number, stop) {
            Ok(Some(streams)) => streams,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.refuse(error)),
        };
        // All processes are connected: the listener is closed.
        self.cluster.listener = None;
        let (process, side) = (self.cluster.process, Arc::clone(self.side()?));
        let timeout = self.cluster.heartbeat_timeout;
        let link = |(process, stream): (usize, Option<TcpStream>)| {
            stream.map(|stream| DataConnection::new(stream, process, timeout, Arc::clone(&side))).transpose()
        };
        let links: io::Result<Vec<_>> = streams.into_iter().enumerate().map(link).collect();
        match links {
            Ok(links) => {
                side.connected(&links);
                self.side = None;
                Ok(Some(Mesh { process, links, side }))
            }
            Err(why) => Err(self.refuse(Error::new("cannot connect the processes").because(why))),
        }
    }

    /// Returns the connections to all other processes; `None` if a stop was requested.
    fn streams(&self, number: u64, stop: &StopHandle) -> Result<Option<Vec<Option<TcpStream>>>> {
        let (own, processes) = (self.cluster.process, self.cluster.processes());
        let mut streams: Vec<Option<TcpStream>> = (0..processes).map(|_| None).collect();
        let dialing = DialThreads::start(&self.cluster, number)?;
        let mut acceptor =
            Acceptor::new(Arc::clone(&self.listener), self.cluster.terms(ConnectionPurpose::Data, number));
        let mut time = RunningTime::start();
        loop {
            for (process, reached) in dialing.reached.try_iter() {
                streams[process] = Some(reached?);
            }
            for arrival in acceptor.poll() {
                if arrival.process > own && arrival.process < processes {
                    streams[arrival.process] = Some(arrival.wire.into_stream());
                }
            }
            let Some(missing) = (0..processes).find(|process| *process != own && streams[*process].is_none()) else {
                return Ok(Some(streams));
            };
            if let Some(error) = self.failure.get() {
                return Err(error.clone());
            }
            if stop.is_asked() {
                return Ok(None);
            }
            // The thread that dials a lower-numbered process reports its absence.
            if missing > own && time.elapsed() > self.cluster.connect_timeout {
                return Err(self.cluster.gone(missing, own, "it does not connect"));
            }
            std::thread::sleep(acceptor.pause());
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        if let Some(side) = self.side.take() {
            side.close();
        }
    }
}

/// Dials all processes with lower numbers, each on a thread of its own, until this is dropped.
struct DialThreads {
    reached: mpsc::Receiver<(usize, Result<TcpStream>)>,
    over: Arc<AtomicBool>,
}

impl DialThreads {
    fn start(cluster: &Cluster, number: u64) -> Result<Self> {
        let (tell, reached) = mpsc::channel();
        let dialing = DialThreads { reached, over: Arc::default() };
        for process in 0..cluster.process {
            let (cluster, tell, over) = (cluster.clone(), tell.clone(), Arc::clone(&dialing.over));
            let dial = move || {
                let call = cluster.call(ConnectionPurpose::Data, process, number);
                let reached = cluster.reach(process, &|| over.load(Ordering::Acquire), || call.dial());
                if let Some(reached) = reached.transpose() {
                    // The receiver may be gone already.
                    let _ = tell.send((process, reached.map(framed::Framed::into_stream)));
                }
            };
            // The thread ends by itself once this is dropped.
            drop(thread::start(ThreadRole::Dial, &format!("dial process {process}"), dial)?);
        }
        Ok(dialing)
    }
}

impl Drop for DialThreads {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Connected processes.
pub(crate) struct Mesh {
    pub(crate) process: usize,
    /// The connection to each other process, for the dataflow.
    pub(crate) links: Vec<Option<DataConnection>>,
    pub(crate) side: Arc<ControlChannel>,
}

impl Mesh {
    /// Returns the builders of this process's workers, and the threads that send and receive for them.
    pub(crate) fn builders(self, threads: usize) -> Result<(Vec<AllocatorBuilder>, DataflowThreads)> {
        let Hooks { refill, spill, .. } = Hooks::default();
        let within = ProcessBuilder::new_typed_vector(threads, refill, spill);
        let connected = initialize_networking_from_sockets(within, self.links, self.process, threads, Hooks::default());
        let (builders, guard) =
            connected.map_err(|why| Error::new("cannot connect the workers of all processes").because(why))?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), DataflowThreads(guard)))
    }
}

/// The threads that send and receive for the workers of a process.
pub(crate) struct DataflowThreads(CommsGuard);

impl DataflowThreads {
    /// Waits until all has been sent and received; returns at once when the job fails, as a thread whose other end is
    /// gone waits for ever.
    pub(crate) fn finish(self, failure: &JobFailure) {
        let Ok(ending) = thread::start(ThreadRole::Connections, ThreadRole::Connections.name(), move || drop(self.0))
        else {
            return;
        };
        while !ending.is_finished() && failure.get().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
