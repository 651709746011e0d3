//! Substitute of encryption in a build without the cargo feature `https`.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use super::access::without_https;
use super::socket::{ByteStream, TrackedStream};
use crate::error::Result;

/// Encryption, which this build does not have.
#[derive(Clone)]
pub(crate) struct AbsentEncryption(Infallible);

impl AbsentEncryption {
    /// Fails: this build has no encryption.
    ///
    /// # Errors
    /// Always fails.
    pub(super) fn new(certificate: &Path, _key: &Path) -> Result<Self> {
        Err(without_https(certificate))
    }

    /// Completes no handshake.
    pub(super) async fn accept(&self, _stream: TrackedStream) -> io::Result<Box<dyn ByteStream>> {
        match self.0 {}
    }
}
