//! A real broker of a benchmark's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A real broker, started as in the integration tests; stopped, and its data removed, on drop.
pub(crate) struct Broker {
    /// `HOST:PORT`.
    pub(crate) address: String,
    script: PathBuf,
    data: PathBuf,
}

impl Broker {
    /// Starts the broker on a free port, with its data below a directory.
    pub(crate) fn start(dir: &Path) -> Result<Broker, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/broker");
        let data = dir.join("broker");
        let started = Command::new(&script)
            .args(["start", "-p", "0", "-d"])
            .arg(&data)
            .stderr(Stdio::piped())
            .output()
            .map_err(|why| format!("cannot run {}: {why}", script.display()))?;
        if !started.status.success() {
            return Err(String::from_utf8_lossy(&started.stderr).trim().to_owned());
        }
        let address = String::from_utf8_lossy(&started.stdout).trim().to_owned();
        Ok(Broker { address, script, data })
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for command in ["stop", "wipe"] {
            let mut call = Command::new(&self.script);
            let _ = call.args([command, "-d"]).arg(&self.data).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
