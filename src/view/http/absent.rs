//! Substitute of the server in a build without the cargo feature `http`.

use std::convert::Infallible;
use std::net::SocketAddr;

use super::{Answering, Endpoint};
use crate::error::{Error, Result};

/// A server, which this build cannot create.
pub(crate) struct Server(Infallible);

impl Server {
    /// Fails: this build has no server.
    ///
    /// # Errors
    /// Always fails.
    pub(crate) fn start(endpoint: &Endpoint, _answering: &Answering) -> Result<Self> {
        endpoint.check()?;
        Err(Error::usage("cannot serve HTTP without an address"))
    }

    /// Returns the address that it listens at.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.0 {}
    }
}
