//! Access of the tool to a running job over HTTP: its address, its token, and the certificates to trust.
//!
//! Invariant: a token goes to this machine, or to a host that the user names. An address that is read from a state is
//! what somebody wrote there.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::error::{Error, Result};
use crate::view::http::{HttpTarget, get, read_token};

/// Flags of commands that ask a running job.
#[derive(Clone, Debug, Default, Args)]
pub struct JobAccessArgs {
    /// File with the token that the job asks for (its --http-token-file)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// File with the certificate of a job that serves HTTPS, or with one that this rests upon (PEM)
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

impl JobAccessArgs {
    /// Returns the job at an address that was read from its state. The token goes only to this machine.
    ///
    /// # Errors
    /// Fails as [`JobAccessArgs::target`] does, and if the token would go to another machine.
    pub(super) fn recorded_target(&self, address: String, is_encrypted: bool) -> Result<HttpTarget> {
        if self.token_file.is_some() && !is_this_machine(&address) {
            let scheme = if is_encrypted { "https://" } else { "" };
            let error = Error::usage("the token is not sent to an address that only the state names").at(&address);
            let error = error.because("it is of another machine, and whoever can write the state could be there");
            return Err(error.help(format!("if the job is there, name it instead of the state: {scheme}{address}")));
        }
        self.target(address, is_encrypted)
    }

    /// Returns the job at an address, with the token that it asks for.
    ///
    /// # Errors
    /// Fails if the file of the token cannot be read, or has none.
    pub(super) fn target(&self, address: String, is_encrypted: bool) -> Result<HttpTarget> {
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        Ok(HttpTarget { address, is_encrypted, ca_file: self.ca_file.clone(), token })
    }
}

/// `true` if `HOST:PORT` names this machine by a loopback address, or by the address of a server that listens at all of
/// its addresses, which connects to the loopback interface. A name is resolved by whoever answers for it, so none counts.
fn is_this_machine(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    ip.is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified())
}

/// Asks a job for a path; returns the status code and the body.
///
/// # Errors
/// Fails if the job does not answer within `timeout`, or does not accept the token.
pub(super) fn ask(target: &HttpTarget, path: &str, timeout: Duration) -> Result<(u16, String)> {
    let (status, answer) = get(target, path, timeout)?;
    if status == 401 {
        let (what, help) = match target.token {
            None => ("the job asks for a token", "add --token-file FILE, the file of the job's --http-token-file"),
            Some(_) => ("the job has another token", "name the file of the job's --http-token-file"),
        };
        return Err(Error::new(what).at(&target.address).help(help));
    }
    Ok((status, answer))
}

/// Returns the `HOST:PORT` of a URL, or of an address that is not a path, and `true` for HTTPS; `None` for a state
/// directory.
pub(super) fn server_at(place: &str, exists: impl Fn(&Path) -> bool) -> Option<(String, bool)> {
    for (scheme, port) in [("http://", 80), ("https://", 443)] {
        if let Some(rest) = place.strip_prefix(scheme) {
            let address = rest.split(['/', '?', '#']).next().unwrap_or(rest);
            let after = address.rfind(']').map_or(0, |at| at + 1);
            let has_port = address[after..].contains(':');
            return Some((if has_port { address.to_owned() } else { format!("{address}:{port}") }, port == 443));
        }
    }
    let (host, port) = place.rsplit_once(':')?;
    let is_one = !host.is_empty() && !host.contains(['/', '\\']) && port.parse::<u16>().is_ok();
    (is_one && !exists(Path::new(place))).then(|| (place.to_owned(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_this_machine_or_to_a_host_that_the_user_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "correct-horse-battery").unwrap();
        let (with, without) =
            (JobAccessArgs { token_file: Some(file), ..JobAccessArgs::default() }, JobAccessArgs::default());
        for here in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "[::]:80"] {
            let target = with.recorded_target(here.into(), false).unwrap();
            assert_eq!(target.token.as_deref(), Some("correct-horse-battery"), "{here}");
        }
        for beyond in ["192.0.2.1:80", "[2001:db8::1]:80", "jobs.example:80", "localhost:80", "127.0.0.1.example:80"] {
            let error = with.recorded_target(beyond.into(), true).err().unwrap();
            let said = error.to_string();
            assert!(error.exit_code() == 2 && said.contains(&format!("https://{beyond}")), "{said}");
            assert!(!said.contains("horse"), "{said}");
            assert!(with.target(beyond.into(), true).unwrap().token.is_some(), "the user names it");
            assert!(without.recorded_target(beyond.into(), true).unwrap().token.is_none());
        }
    }
}
