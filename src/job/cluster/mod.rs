//! The processes of a job: how they connect, agree on what to run, and detect failures of each other.
//!
//! * [`Cluster`]: the addresses of the processes, and the number of this one. [`messages`]: what processes send to each
//!   other while they meet.
//! * [`handshake`], [`secret`], [`acceptor`]: every connection starts with mutual authentication; strangers are
//!   refused.
//! * [`gather`](Cluster::gather): every process connects to process 0 and sends its configuration. Process 0 compares
//!   the configurations, starts the incarnation of the state alone, and tells all processes to start, or why not.
//! * [`connect`](Gathered::connect): then every two processes connect, for the dataflow. A number drawn by process 0
//!   keeps out processes of an earlier attempt.
//! * [`control_channel::ControlChannel`]: the connections to process 0 stay open beside the dataflow: they report
//!   failures, detect dead processes, and agree on the end of the job.
//! * [`data_connection::DataConnection`]: a connection of the dataflow, which notices that the other end is gone
//!   before the dataflow does, and notes it where the control channel looks ([`losses`]).
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
mod channel_state;
pub(crate) mod control_channel;
mod data_connection;
mod framed;
mod handshake;
mod heartbeat;
mod losses;
pub(super) mod messages;
pub(super) mod options;
pub(crate) mod secret;

use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use self::acceptor::{AcceptedPeer, Acceptor};
use self::control_channel::ControlChannel;
use self::data_connection::DataConnection;
use self::handshake::{
    AcceptPolicy, CONNECT_TIMEOUT, ConnectError, ConnectionPurpose, DialOptions, HANDSHAKE_TIMEOUT, introduce,
};
use self::heartbeat::{HEARTBEAT_INTERVAL, RunningTime};
use self::messages::{FailureReport, JoinReply, JoinRequest, StartMessage};
use self::options::Cluster;
use self::secret::random;
use crate::error::{Error, ErrorKind, Result};
use crate::job::stop_handle::StopHandle;
use crate::thread::{self, JobFailure, ThreadRole};

/// Pause between two attempts to reach a process.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Silence after which a connected process is replaced by another one of its number.
const REPLACE_AFTER: Duration = HEARTBEAT_INTERVAL.saturating_mul(4);

/// The meeting of the processes.
impl Cluster {
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
        let channel = ControlChannel::begin(self, Arc::clone(failure))?;
        let gathered =
            Gathered { cluster: self.clone(), listener, channel: Some(channel), failure: Arc::clone(failure) };
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
        let channel = gathered.channel()?;
        let mut acceptor = Acceptor::new(Arc::clone(&gathered.listener), self.terms(ConnectionPurpose::Control, 0));
        let mut time = RunningTime::start();
        while !channel.is_gathered() {
            if let Some(error) = gathered.failure.get() {
                return Err(error.clone());
            }
            if stop.is_asked() {
                channel.answer(StartMessage::Stopped);
                return Ok(false);
            }
            let missing = (1..self.processes()).find(|process| !channel.is_connected(*process));
            if let Some(missing) = missing
                && time.elapsed() > self.connect_timeout
            {
                let error = Error::of(ErrorKind::ProcessLost, format!("process {missing} has not come"))
                    .at(self.address(missing));
                let error = error.because(heartbeat::unheard_for(self.connect_timeout));
                return Err(error.help("start all processes, with one file of hosts"));
            }
            for arrival in acceptor.poll() {
                self.receive(arrival, own, channel)?;
            }
            std::thread::sleep(acceptor.pause());
        }
        Ok(true)
    }

    /// Process 0: checks a process's configuration, and accepts or refuses the process.
    fn receive(&self, arrival: AcceptedPeer, own: &JoinRequest, channel: &Arc<ControlChannel>) -> Result<()> {
        let AcceptedPeer { process, mut wire, hello: Some(hello) } = arrival else { return Ok(()) };
        if let Err(error) = own.check(&hello, self.processes()) {
            let _ = wire.send(&JoinReply::Refused(FailureReport::new(0, &error)), HANDSHAKE_TIMEOUT);
            return Err(error);
        }
        let is_heard = u128::from(channel.silent_ms(process)) < REPLACE_AFTER.as_millis();
        let is_connected = channel.is_connected(process) && is_heard;
        let reply = if is_connected { JoinReply::AlreadyConnected } else { JoinReply::Welcome };
        // A process that is gone already may connect again.
        if wire.send(&reply, HANDSHAKE_TIMEOUT).is_ok() && !is_connected {
            channel.attach(process, wire)
        } else {
            Ok(())
        }
    }

    /// Other processes: connects to process 0; `false` if a stop was requested before.
    fn come(&self, gathered: &Gathered, hello: &JoinRequest, stop: &StopHandle) -> Result<bool> {
        let call = self.call(ConnectionPurpose::Control, 0, 0);
        // The other process of this number may be an earlier connection of this one, whose end process 0 has yet to
        // notice.
        let mut told_first = None;
        let come = |time: &mut RunningTime| match call.dial(time).and_then(|wire| introduce(wire, hello, time)) {
            Err(ConnectError::Retryable(why)) if why == handshake::ALREADY_CONNECTED => {
                let now = time.elapsed();
                if now - *told_first.get_or_insert(now) < 2 * REPLACE_AFTER {
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
        gathered.channel()?.attach(0, wire).map(|()| true)
    }

    /// Reaches another process, which may have yet to start, by repeated attempts; `None` if `is_over` holds before. An
    /// attempt reads the clock as it goes on: a pause of this process counts as little in it as elsewhere.
    fn reach<T>(
        &self,
        process: usize,
        is_over: &dyn Fn() -> bool,
        mut attempt: impl FnMut(&mut RunningTime) -> std::result::Result<T, ConnectError>,
    ) -> Result<Option<T>> {
        let mut time = RunningTime::with_gaps_of(CONNECT_TIMEOUT);
        let mut told: Option<(Instant, String)> = None;
        loop {
            let why = match attempt(&mut time) {
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
}

/// `true` if an address can only be reached from this machine.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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
    channel: Option<Arc<ControlChannel>>,
    failure: Arc<JobFailure>,
}

impl Gathered {
    fn channel(&self) -> Result<&Arc<ControlChannel>> {
        self.channel.as_ref().ok_or_else(|| Error::new("the processes are connected already"))
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
        if let Some(channel) = &self.channel {
            channel.close();
        }
        self.failure.get().cloned().unwrap_or(error)
    }

    fn answer(&self, answer: StartMessage) -> Result<()> {
        if let Some(error) = self.failure.get() {
            return Err(error.clone());
        }
        self.channel()?.answer(answer);
        Ok(())
    }

    /// Other processes: waits for the decision of process 0. It may take as long as a recovery, while process 0 sends
    /// heartbeats.
    pub(crate) fn decided(&mut self, stop: &StopHandle) -> Result<StartDecision> {
        let channel = self.channel()?;
        match (channel.answered(), self.failure.get()) {
            (Some(StartMessage::Stopped), _) => Ok(StartDecision::Stopped),
            (Some(StartMessage::Begin { number, life, views }), _) => Ok(StartDecision::Run { number, life, views }),
            (Some(StartMessage::Ended), _) => Ok(StartDecision::Ended),
            (None, _) if stop.is_asked() && channel.has_lost_process() => Ok(StartDecision::Stopped),
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
        let (process, channel) = (self.cluster.process, Arc::clone(self.channel()?));
        let timeout = self.cluster.heartbeat_timeout;
        let link = |(process, stream): (usize, Option<TcpStream>)| {
            stream
                .map(|stream| {
                    DataConnection::new(stream, process, timeout, channel.losses(), Arc::clone(&self.failure))
                })
                .transpose()
        };
        let links: io::Result<Vec<_>> = streams.into_iter().enumerate().map(link).collect();
        match links {
            Ok(links) => {
                channel.connected(&links);
                self.channel = None;
                Ok(Some(Mesh { process, links, channel }))
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
        if let Some(channel) = self.channel.take() {
            channel.close();
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
                let reached = cluster.reach(process, &|| over.load(Ordering::Acquire), |time| call.dial(time));
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
    pub(crate) channel: Arc<ControlChannel>,
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
