//! Access of the tool to a running job over HTTP: its address, its token, and the certificates to trust.

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
    /// Returns the job at an address, with the token that it asks for.
    ///
    /// # Errors
    /// Fails if the file of the token cannot be read, or has none.
    pub(super) fn target(&self, address: String, is_encrypted: bool) -> Result<HttpTarget> {
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        Ok(HttpTarget { address, is_encrypted, ca_file: self.ca_file.clone(), token })
    }
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
