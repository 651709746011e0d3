//! Options of a server, and their check: the address, the clients that it answers, and encryption.
//!
//! Invariant: a server that asks for no token listens on this machine alone, unless that is wanted otherwise.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

#[cfg(feature = "http")]
use super::Encryption;
use super::access::is_beyond_loopback;
#[cfg(feature = "http")]
use super::access::read_token;
use crate::error::{Error, Result};

/// Permission bits that let others than the owner read or change a file.
const OTHERS: u32 = 0o077;

/// The address of a server, the host names by which clients may call it, and who is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `HOST:PORT`; port 0 is any free one.
    pub(crate) address: String,
    /// Host names that are allowed beside IP addresses and the names of the loopback interface; `*` allows every name.
    pub(crate) hosts: Vec<String>,
    /// File with the token that requests have to carry.
    pub(crate) token_file: Option<PathBuf>,
    /// `true` if a server without a token may listen where other machines reach it.
    pub(crate) open: bool,
    /// Files for encryption.
    pub(crate) tls: Option<TlsFiles>,
}

/// The files with which a server encrypts its connections, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The server's certificate, and those that it rests upon.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// Fails if they cannot be used, and in a build that cannot encrypt.
    #[cfg(feature = "http")]
    pub(super) fn open(&self) -> Result<Encryption> {
        Encryption::new(&self.certificate, &self.key)
    }
}

impl Endpoint {
    /// `true` if a server is wanted.
    pub(crate) fn is_some(&self) -> bool {
        !self.address.is_empty()
    }

    /// Checks that this build has a server, if one is wanted, and that it may listen at its address.
    ///
    /// # Errors
    /// Fails if this build has no server, if the token cannot be read, or if other machines could reach the server
    /// unasked for.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.is_some() {
            return Ok(());
        }
        #[cfg(feature = "http")]
        {
            self.token_file.as_deref().map(read_token).transpose()?;
            self.tls.as_ref().map(TlsFiles::open).transpose()?;
            // A host that is not known is reported when the server starts.
            self.places().map(|_| ()).or_else(|error| if error.exit_code() == 2 { Err(error) } else { Ok(()) })
        }
        #[cfg(not(feature = "http"))]
        self.refusal()
    }

    /// Fails: this build has no server.
    #[cfg(not(feature = "http"))]
    fn refusal(&self) -> Result<()> {
        let error = Error::usage("cannot serve HTTP").at(&self.address).because("this program was built without it");
        Err(error.help("build it with the cargo feature `http`, or start it without --http"))
    }

    /// Warns about files with secrets that others than their owner may read or change.
    pub(super) fn warn_of_exposed_files(&self) {
        let key = self.tls.as_ref().map(|files| (&files.key, "the key of HTTPS"));
        for (path, what) in self.token_file.iter().map(|path| (path, "the token of HTTP")).chain(key) {
            if fs::metadata(path).is_ok_and(|file| file.permissions().mode() & OTHERS != 0) {
                tracing::warn!("{}: others than its owner may read or change {what}: chmod 600", path.display());
            }
        }
    }

    /// Returns the addresses at which a server may listen, in the order in which they are tried.
    ///
    /// # Errors
    /// Fails if the host is unknown, or if one of its addresses can be reached from other machines, and neither a token
    /// is asked for nor that is wanted.
    pub(super) fn places(&self) -> Result<Vec<SocketAddr>> {
        let named =
            if self.address.starts_with(':') { format!("127.0.0.1{}", self.address) } else { self.address.clone() };
        let cannot = |why| Error::new("cannot serve HTTP").at(&self.address).because(why);
        let places: Vec<_> = named.to_socket_addrs().map_err(cannot)?.collect();
        if self.token_file.is_none() && !self.open && places.iter().any(is_beyond_loopback) {
            let error = Error::usage(format!("--http {} can be reached from other machines", self.address));
            let error = error.because("whoever reaches it could read all that the job holds");
            return Err(error.help(
                "name a file with a token that requests have to carry: --http-token-file FILE; or listen at 127.0.0.1; \
                 or add --http-open, if all who reach it may read it",
            ));
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_token_is_of_this_machine_unless_that_is_wanted() {
        let at = |address: &str| Endpoint { address: address.into(), ..Endpoint::default() };
        for here in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:0", "localhost:80", ":8080", "[::ffff:127.0.0.1]:80"] {
            assert!(at(here).places().is_ok_and(|places| !places.is_empty()), "{here}");
        }
        for beyond in ["0.0.0.0:0", "[::]:8080", "192.0.2.1:80", "[2001:db8::1]:80", "[::ffff:192.0.2.1]:80"] {
            let error = at(beyond).places().unwrap_err();
            let said = error.to_string();
            assert_eq!(error.exit_code(), 2, "{said}");
            for part in [beyond, "--http-token-file", "--http-open", "127.0.0.1"] {
                assert!(said.contains(part), "{said}");
            }
            assert!(Endpoint { open: true, ..at(beyond) }.places().is_ok(), "{beyond}");
            assert!(Endpoint { token_file: Some("token".into()), ..at(beyond) }.places().is_ok(), "{beyond}");
        }
    }
}
