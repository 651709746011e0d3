//! The processes of a job as every one of them is told: addresses, timeouts, and the secret that they share.
//!
//! A [`Cluster`] connects nothing. How the processes meet is in the [module above](super).

use std::fmt;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::secret::Secret;
use crate::error::{Error, ErrorKind, Result};

/// Port of process 0 without a host file; process `p` has the port `FIRST_PORT + p`.
const FIRST_PORT: u16 = 2101;

/// The processes of a job, and the number of this one.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) process: usize,
    pub(super) addresses: Vec<String>,
    /// Socket that this process listens on, if it is open already.
    pub(super) listener: Option<Arc<TcpListener>>,
    pub(super) connect_timeout: Duration,
    pub(super) heartbeat_timeout: Duration,
    pub(super) secret: Option<Secret>,
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
    #[cfg(feature = "testing")]
    pub(crate) fn within(processes: usize) -> Result<Vec<Self>> {
        let cannot = |why: std::io::Error| Error::new("cannot listen on this machine").because(why);
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

    /// Returns the address of a process.
    pub(super) fn address(&self, process: usize) -> &str {
        &self.addresses[process]
    }

    /// Returns the failure of a job that has lost a process, as process `by` has noticed.
    pub(super) fn gone(&self, process: usize, by: usize, why: &str) -> Error {
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
