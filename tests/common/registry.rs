//! A real schema registry for tests, and clients of Kafka in Python that we did not write. `tests/kafka/registry` runs
//! the registry; it ends with the test process, even if that is killed.
//!
//! Without Java or Python, tests that need them are skipped with a line on standard error; with `CI=true` they fail.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::broker::Broker;
use crate::ports::free_port;
use crate::python::{Python, printed, script};

/// Broker, registry and clients, shared by the tests of a program.
pub struct Parts {
    pub broker: &'static Broker,
    /// Address of the broker's secure listener, if it has one.
    pub secure: Option<String>,
    pub registry: RunningRegistry,
    pub python: Python,
}

impl Parts {
    /// Returns them; `None` if there can be none on this machine.
    pub fn shared() -> Option<&'static Parts> {
        static SHARED: OnceLock<Option<Parts>> = OnceLock::new();
        SHARED.get_or_init(|| Parts::start(Broker::shared, None)).as_ref()
    }

    /// Returns them with a broker that has a secure listener too.
    pub fn secured() -> Option<&'static Parts> {
        static SECURED: OnceLock<Option<Parts>> = OnceLock::new();
        let start = || {
            let port = free_port().to_string();
            let secure = format!("127.0.0.1:{port}");
            let broker = || Broker::start_with(&["--secure", &port]).map(|broker| &*Box::leak(Box::new(broker)));
            Parts::start(broker, Some(secure))
        };
        SECURED.get_or_init(start).as_ref()
    }

    fn start(broker: impl FnOnce() -> Option<&'static Broker>, secure: Option<String>) -> Option<Parts> {
        let python = Python::find()?;
        let registry = std::thread::spawn(RunningRegistry::start);
        let broker = broker();
        Some(Parts { broker: broker?, secure, registry: registry.join().unwrap()?, python })
    }
}

/// A running schema registry.
pub struct RunningRegistry {
    pub url: String,
    /// Kills the registry and removes its files when its standard input ends.
    _watchdog: Child,
}

impl RunningRegistry {
    /// Starts a registry; `None` if there can be none on this machine.
    pub fn start() -> Option<RunningRegistry> {
        let data = tempfile::Builder::new().prefix("tidegate-registry-").tempdir().unwrap().keep();
        // In a session of its own, so that it survives an interrupt from the keyboard.
        let wipe = r#"while read -r _; do :; done; "$0" kill -d "$1" >/dev/null 2>&1; rm -rf -- "$1""#;
        let mut watchdog = Command::new("setsid");
        watchdog.args(["bash", "-c", wipe]).arg(script("registry")).arg(&data).stdin(Stdio::piped());
        let mut watchdog = watchdog.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let output = Command::new(script("registry")).args(["start", "-d"]).arg(&data).output().unwrap();
        match printed(&output, "schema registry") {
            Some(url) => Some(RunningRegistry { url, _watchdog: watchdog }),
            None => {
                drop(watchdog.stdin.take());
                watchdog.wait().unwrap();
                None
            }
        }
    }
}
