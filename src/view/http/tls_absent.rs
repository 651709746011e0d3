//! Substitute of encryption in a build without the cargo feature `https`.

use std::convert::Infallible;
use std::io;

use super::TlsFiles;
use super::socket::{ByteStream, TrackedStream};
use crate::error::Result;

/// Encryption, which this build does not have.
#[derive(Clone)]
pub(super) struct AbsentEncryption(Infallible);

impl AbsentEncryption {
    /// Fails: this build has no encryption.
    ///
    /// # Errors
    /// Always fails.
    pub(super) fn new(files: &TlsFiles) -> Result<Self> {
        Err(files.refusal())
    }

    /// Completes no handshake.
    pub(super) async fn accept(&self, _stream: TrackedStream) -> io::Result<Box<dyn ByteStream>> {
        match self.0 {}
    }
}
