//! Messages between processes: the configuration with which one joins, the reply, the decision to start, and failures.
//!
//! Each is sent as its `serde` form ([`framed`](super::framed)), so a change of one is a new version of the protocol
//! ([`handshake`](super::handshake)).

use serde::{Deserialize, Serialize};

use crate::durable::manifest::QueryFingerprint;
use crate::durable::recovery::changes;
use crate::error::{Error, ErrorKind, Result};

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
    pub(super) fn check(&self, other: &JoinRequest, processes: usize) -> Result<()> {
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

/// Answer of process 0 to a [`JoinRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum JoinReply {
    /// The process is accepted, and waits for the others.
    Welcome,
    /// Another process of its number is connected.
    AlreadyConnected,
    /// The processes cannot run together.
    Refused(FailureReport),
}

/// Decision of process 0, sent to all processes that are connected, if they can run together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum StartMessage {
    /// Start: the number for the dataflow's connections, the incarnation of the state, and whether process 0 has views.
    Begin { number: u64, life: Option<u64>, views: bool },
    /// The state is complete: there is nothing to run.
    Ended,
    /// Process 0 was asked to stop before the start.
    Stopped,
}

/// The failure of a process, as sent to the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FailureReport {
    process: usize,
    /// `true` for a usage error.
    usage: bool,
    why: String,
}

impl FailureReport {
    /// Reports the error that this process fails with.
    pub(super) fn new(process: usize, error: &Error) -> Self {
        FailureReport { process, usage: error.kind() == ErrorKind::Usage, why: error.to_string() }
    }

    /// Returns the error with which a process that receives this fails.
    pub(super) fn error(&self) -> Error {
        if self.usage {
            return Error::usage(&self.why);
        }
        Error::new(format!("process {} failed", self.process)).because(&self.why)
    }
}
