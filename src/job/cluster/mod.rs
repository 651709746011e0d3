//! The processes of a job: how they find each other, agree, and learn what becomes of the others.
//!
//! * [`Cluster`]: where the processes are, and which of them this is.
//! * [`gather`](Cluster::gather): every process comes to process 0 and says what it would run. Process 0 compares, begins
//!   the life of the state alone, and tells all of them to begin, or why not.
//! * [`connect`](Gathered::connect): then every two processes connect, for the dataflow. A number that process 0 has drawn
//!   keeps out who belongs to an earlier attempt.
//! * [`side::Side`]: the connections to process 0 stay, beside the dataflow: who has failed says so there, who dies is
//!   missed there, and the end of the job is agreed there.
//! * [`link::Link`]: a connection of the dataflow, which notices that the other end is gone before the dataflow does.
//!
//! The state needs no other agreement than this: all that processes share is in the directory of the state, and in the
//! progress of the dataflow.
//!
//! Invariants: no process runs a query that another one does not; no record is read before all processes are connected;
//! a process that has lost another one ends, with one line that names the one that was lost first.

mod link;
pub(crate) mod side;
mod wire;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use self::link::Link;
use self::side::Side;
use self::wire::{Greeting, Purpose, Wire};
use crate::durable::manifest::QueryPrint;
use crate::durable::recovery::changes;
use crate::error::{Error, Kind, Result};
use crate::job::Stop;
use crate::thread::{self, Failure, Role};

/// How long a process waits between two attempts.
const BETWEEN: Duration = Duration::from_millis(20);
/// How long somebody who has connected may take to say who it is.
const MANNERS: Duration = Duration::from_secs(2);
/// The port of process 0, and those of the others after it, where no file says otherwise.
const FIRST_PORT: u16 = 2101;

/// The processes of a job, and which of them this is.
#[derive(Clone, Debug)]
pub struct Cluster {
    process: usize,
    addresses: Vec<String>,
    /// Where this process listens, if that is open already.
    listener: Option<Arc<TcpListener>>,
    patience: Duration,
    silence: Duration,
}

impl Cluster {
    /// Process `process`, from 0, of those at these addresses, each `HOST:PORT`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn new(process: usize, addresses: Vec<String>) -> Result<Self> {
        if process >= addresses.len() {
            let error = Error::usage(format!("there is no process {process} of {}", addresses.len()));
            return Err(error.help("processes are numbered from 0"));
        }
        let (patience, silence) = (Duration::from_secs(60), Duration::from_secs(30));
        Ok(Cluster { process, addresses, listener: None, patience, silence })
    }

    /// As many processes as are asked for, at free ports of this machine, all in this one: for tests.
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

    /// Process `process` of `processes` on this machine, at ports from 2101 on.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn on_this_machine(process: usize, processes: usize) -> Result<Self> {
        let ports = (FIRST_PORT..).take(processes);
        Cluster::new(process, ports.map(|port| format!("127.0.0.1:{port}")).collect())
    }

    /// Process `process` of the first `processes` of a file that has an address a line, `HOST:PORT`; lines that are empty
    /// or begin with `#` are left out.
    ///
    /// # Errors
    /// If the file cannot be read, has too few addresses or one that is none, or there is no such process.
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

    /// How long a process waits for the others to come, one minute unless it is said; and after how long without a sign of
    /// one it is taken for lost, half a minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration, silence: Duration) -> Self {
        (self.patience, self.silence) = (patience, silence);
        self
    }

    /// Which process this is, from 0.
    pub fn process(&self) -> usize {
        self.process
    }

    /// How many there are.
    pub fn processes(&self) -> usize {
        self.addresses.len()
    }

    fn address(&self, process: usize) -> &str {
        &self.addresses[process]
    }

    /// Has all processes come to process 0, which compares what they say; `None` if the job was asked to stop meanwhile.
    /// For process 0 it is for [`Gathered::begin`] or [`Gathered::refuse`] to say how that went on.
    ///
    /// # Errors
    /// If one does not come, or would run something else.
    pub(crate) fn gather(&self, hello: &Hello, stop: &Stop) -> Result<Option<Gathered>> {
        let own = self.address(self.process);
        let listener = self.listener.clone().map_or_else(|| TcpListener::bind(own).map(Arc::new), Ok);
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|why| {
            let error = Error::new(format!("process {} cannot listen", self.process)).at(own).because(why);
            error.help("let the file of hosts name free ports of each machine")
        })?;
        let sides = match self.process {
            0 => self.receive_all(&listener, hello, stop)?,
            _ => self.come(hello, stop)?,
        };
        Ok(sides.map(|sides| Gathered { cluster: self.clone(), listener, sides }))
    }

    /// Process 0: receives the others.
    fn receive_all(&self, listener: &TcpListener, own: &Hello, stop: &Stop) -> Result<Option<Vec<Option<Wire>>>> {
        let begun = Instant::now();
        let mut sides: Vec<Option<Wire>> = self.addresses.iter().map(|_| None).collect();
        loop {
            // Who has gone again may come again.
            sides.iter_mut().filter(|side| side.as_ref().is_some_and(Wire::is_closed)).for_each(|side| *side = None);
            let Some(missing) = (1..sides.len()).find(|process| sides[*process].is_none()) else {
                return Ok(Some(sides));
            };
            if stop.is_asked() {
                sides.iter_mut().flatten().for_each(|side| drop(side.send(&Answer::Stopped)));
                return Ok(None);
            }
            if begun.elapsed() > self.patience {
                let error = Error::new(format!("process {missing} has not come")).at(self.address(missing));
                let error = error.because(format!("nothing was heard of it for {} s", self.patience.as_secs()));
                return Err(refuse(&mut sides, error.help("start all processes, with one file of hosts")));
            }
            match accept(listener)? {
                None => std::thread::sleep(BETWEEN),
                Some(stream) => {
                    // Others who may know the port, a scanner for one, are none of ours.
                    let Some((mut wire, other)) = introduced(stream) else { continue };
                    match own.check(&other, sides.len()) {
                        Ok(()) if sides[other.process].is_none() => sides[other.process] = Some(wire),
                        Ok(()) => {
                            let why = format!("process {} is there already", other.process);
                            let _ = wire.send(&Answer::refusal(&Error::usage(why)));
                        }
                        Err(error) => {
                            let _ = wire.send(&Answer::refusal(&error));
                            return Err(refuse(&mut sides, error));
                        }
                    }
                }
            }
        }
    }

    /// Another process: comes to process 0.
    fn come(&self, hello: &Hello, stop: &Stop) -> Result<Option<Vec<Option<Wire>>>> {
        let Some(stream) = self.reach(0, &[], stop)? else { return Ok(None) };
        let gone = |why: io::Error| self.gone(0, &why);
        let mut wire = Wire::new(stream).map_err(gone)?;
        wire.greet(&Greeting { purpose: Purpose::Side, process: self.process as u32, number: 0 }).map_err(gone)?;
        wire.send(hello).map_err(gone)?;
        let mut sides: Vec<Option<Wire>> = self.addresses.iter().map(|_| None).collect();
        sides[0] = Some(wire);
        Ok(Some(sides))
    }

    /// Connects to another process, which may have yet to start. It need not be waited for if one that has come is gone.
    fn reach(&self, process: usize, sides: &[Option<Wire>], stop: &Stop) -> Result<Option<TcpStream>> {
        let (begun, address) = (Instant::now(), self.address(process));
        loop {
            let why = match connect(address) {
                Ok(stream) => return Ok(Some(stream)),
                Err(why) => why,
            };
            if stop.is_asked() {
                return Ok(None);
            }
            self.all_are_there(sides)?;
            if begun.elapsed() > self.patience {
                let error = Error::new(format!("process {process} cannot be reached")).at(address).because(why);
                return Err(error.help("start all processes, with one file of hosts"));
            }
            std::thread::sleep(BETWEEN);
        }
    }

    /// Fails if one of those who have come is gone again.
    fn all_are_there(&self, sides: &[Option<Wire>]) -> Result<()> {
        let gone = |side: &Option<Wire>| side.as_ref().is_some_and(Wire::is_closed);
        sides.iter().position(gone).map_or(Ok(()), |process| Err(self.gone(process, &"its connection was closed")))
    }

    fn gone(&self, process: usize, why: &dyn fmt::Display) -> Error {
        Error::new(format!("process {process} is gone"))
            .at(self.address(process))
            .because(why)
            .help("start all processes again: a job with state goes on where its results end")
    }
}

/// As in "process 1 of 3, at 10.0.0.2:2101".
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}, at {}", self.process, self.processes(), self.address(self.process))
    }
}

/// Connects within a few seconds.
fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, MANNERS) {
            Ok(stream) => return Ok(stream),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Who has connected, if anybody has.
fn accept(listener: &TcpListener) -> Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(stream.set_nonblocking(false).is_ok().then_some(stream)),
        // Of one who has gone again.
        Err(why) if matches!(why.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => Ok(None),
        Err(why) if why.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(why) => Err(Error::new("cannot listen for other processes").because(why)),
    }
}

/// A process of the job that has come to process 0, and what it says.
fn introduced(stream: TcpStream) -> Option<(Wire, Hello)> {
    let mut wire = Wire::new(stream).ok()?;
    let greeting = wire.greeted(MANNERS).ok().flatten()?;
    let hello: Hello = wire.receive(MANNERS).ok().flatten()?;
    (greeting.purpose == Purpose::Side && greeting.process as usize == hello.process).then_some((wire, hello))
}

/// Tells all who have come why nothing begins.
fn refuse(sides: &mut [Option<Wire>], error: Error) -> Error {
    for side in sides.iter_mut().flatten() {
        let _ = side.send(&Answer::refusal(&error));
    }
    error
}

/// What a process would run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) process: usize,
    pub(crate) processes: usize,
    /// Its workers.
    pub(crate) threads: usize,
    pub(crate) job: String,
    /// Whether it keeps state.
    pub(crate) keeps: bool,
    pub(crate) query: QueryPrint,
}

impl Hello {
    /// Whether another process would run the same.
    fn check(&self, other: &Hello, processes: usize) -> Result<()> {
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

/// What process 0 says to those who have come.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Answer {
    /// To connect, with this number, and to run as this life of the state; and whether process 0 keeps views.
    Begin { number: u64, life: Option<u64>, views: bool },
    /// The state has ended: there is nothing to run.
    Ended,
    /// Process 0 was asked to stop before anything began.
    Stopped,
    /// Why nothing begins.
    Refused(Told),
}

impl Answer {
    fn refusal(error: &Error) -> Self {
        Answer::Refused(Told::new(0, error))
    }
}

/// What a process fails with, for the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    process: usize,
    /// Whether it is for who started it to mend.
    usage: bool,
    why: String,
}

impl Told {
    fn new(process: usize, error: &Error) -> Self {
        Told { process, usage: error.kind() == Kind::Usage, why: error.to_string() }
    }

    /// What a process fails with that is told this.
    fn error(&self) -> Error {
        if self.usage {
            return Error::usage(&self.why);
        }
        Error::new(format!("process {} failed", self.process)).because(&self.why)
    }
}

/// How process 0 has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// To run, as this life of the state if there is one, and with views if process 0 keeps them.
    Run { number: u64, life: Option<u64>, views: bool },
    /// The state has ended.
    Ended,
    /// The job was asked to stop before anything began.
    Stopped,
}

/// Processes that have come together.
pub(crate) struct Gathered {
    cluster: Cluster,
    listener: Arc<TcpListener>,
    sides: Vec<Option<Wire>>,
}

impl Gathered {
    /// Process 0: has all begin, as this life of the state if there is one, and with views if they are wanted.
    pub(crate) fn begin(&mut self, life: Option<u64>, views: bool) -> Result<Decided> {
        let number = RandomState::new().build_hasher().finish();
        self.answer(&Answer::Begin { number, life, views })?;
        Ok(Decided::Run { number, life, views })
    }

    /// Process 0: tells all that the state has ended.
    pub(crate) fn ended(&mut self) -> Result<()> {
        self.answer(&Answer::Ended)
    }

    /// Process 0: tells all why nothing begins.
    pub(crate) fn refuse(&mut self, error: Error) -> Error {
        refuse(&mut self.sides, error)
    }

    fn answer(&mut self, answer: &Answer) -> Result<()> {
        let Gathered { cluster, sides, .. } = self;
        for (process, side) in sides.iter_mut().enumerate() {
            let sent = side.as_mut().map_or(Ok(()), |side| side.send(answer));
            sent.map_err(|why| cluster.gone(process, &why))?;
        }
        Ok(())
    }

    /// Another process: waits for what process 0 decides, which may take as long as a recovery.
    pub(crate) fn decided(&mut self, stop: &Stop) -> Result<Decided> {
        let Gathered { cluster, sides, .. } = self;
        let Some(side) = &mut sides[0] else { return Err(cluster.gone(0, &"there is no connection")) };
        // Whoever has come waits for the answer, also when it is asked to stop: process 0 may have begun with it.
        loop {
            let answer = match side.receive(Duration::from_millis(100)) {
                Err(_) if stop.is_asked() => return Ok(Decided::Stopped),
                answer => answer.map_err(|why| cluster.gone(0, &why))?,
            };
            return match answer {
                None => continue,
                Some(Answer::Stopped) => Ok(Decided::Stopped),
                Some(Answer::Begin { number, life, views }) => Ok(Decided::Run { number, life, views }),
                Some(Answer::Ended) => Ok(Decided::Ended),
                Some(Answer::Refused(told)) => Err(told.error()),
            };
        }
    }

    /// Connects every two processes, and begins to listen beside.
    ///
    /// # Errors
    /// If one is gone, or does not come.
    pub(crate) fn connect(self, number: u64, failure: Arc<Failure>, stop: &Stop) -> Result<Option<Mesh>> {
        let Gathered { mut cluster, listener, sides } = self;
        let (own, processes) = (cluster.process, cluster.processes());
        let mut streams: Vec<Option<TcpStream>> = (0..processes).map(|_| None).collect();
        for (process, slot) in streams.iter_mut().enumerate().take(own) {
            let Some(stream) = cluster.reach(process, &sides, stop)? else { return Ok(None) };
            let greeting = Greeting { purpose: Purpose::Data, process: own as u32, number };
            let greeted = Wire::new(stream).and_then(|mut wire| wire.greet(&greeting).map(|()| wire));
            *slot = Some(greeted.and_then(Wire::into_stream).map_err(|why| cluster.gone(process, &why))?);
        }
        let begun = Instant::now();
        while let Some(missing) = (own + 1..processes).find(|process| streams[*process].is_none()) {
            if stop.is_asked() {
                return Ok(None);
            }
            if begun.elapsed() > cluster.patience {
                return Err(cluster.gone(missing, &"it does not connect"));
            }
            let Some(stream) = accept(&listener)? else {
                cluster.all_are_there(&sides)?;
                std::thread::sleep(BETWEEN);
                continue;
            };
            let Ok(mut wire) = Wire::new(stream) else { continue };
            let Ok(Some(greeting)) = wire.greeted(MANNERS) else { continue };
            let process = greeting.process as usize;
            let is_ours = greeting.purpose == Purpose::Data && greeting.number == number;
            if is_ours && process > own && process < processes {
                streams[process] = wire.into_stream().ok();
            }
        }
        // All who should be here are.
        drop((listener, cluster.listener.take()));
        let side = Side::begin(&cluster, sides, failure)?;
        let links = streams.into_iter().enumerate();
        let links = links.map(|(process, stream)| stream.map(|stream| Link::new(stream, process, Arc::clone(&side))));
        Ok(Some(Mesh { process: own, links: links.collect(), side }))
    }
}

/// Connected processes.
pub(crate) struct Mesh {
    pub(crate) process: usize,
    /// To each other process, for the dataflow.
    pub(crate) links: Vec<Option<Link>>,
    pub(crate) side: Arc<Side>,
}

impl Mesh {
    /// What this process's workers are built with, and the threads that send and receive for them.
    pub(crate) fn builders(self, threads: usize) -> Result<(Vec<AllocatorBuilder>, Connections)> {
        let Hooks { refill, spill, .. } = Hooks::default();
        let within = ProcessBuilder::new_typed_vector(threads, refill, spill);
        let connected = initialize_networking_from_sockets(within, self.links, self.process, threads, Hooks::default());
        let (builders, guard) =
            connected.map_err(|why| Error::new("cannot connect the workers of all processes").because(why))?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Connections(guard)))
    }
}

/// The threads that send and receive for the workers of a process.
pub(crate) struct Connections(CommsGuard);

impl Connections {
    /// Returns when all has been sent and received; at once when the job fails, as a thread whose other end is gone waits
    /// for ever.
    pub(crate) fn finish(self, failure: &Failure) {
        let Ok(ending) = thread::start(Role::Connections, Role::Connections.name(), move || drop(self.0)) else {
            return;
        };
        while !ending.is_finished() && failure.get().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
