//! Substitute of the server in a build without the cargo feature `http`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Endpoint, PublicPaths, RequestHandler};
use crate::error::{Error, Result};
use crate::metrics::Counter;

/// A server, which this build cannot create.
pub(crate) struct AbsentServer(Infallible);

impl AbsentServer {
    /// Fails: this build has no server.
    ///
    /// # Errors
    /// Always fails.
    pub(crate) fn start(endpoint: &Endpoint, _answering: &RequestHandler, _is_public: PublicPaths) -> Result<Self> {
        endpoint.check()?;
        Err(Error::usage("cannot serve HTTP without an address"))
    }

    /// Returns the number of requests that have come with a wrong token.
    pub(crate) fn wrong_tokens(&self) -> Arc<Counter> {
        match self.0 {}
    }

    /// Returns the address that it listens at.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.0 {}
    }

    /// Returns the URL of its root.
    pub(crate) fn url(&self) -> String {
        match self.0 {}
    }
}
