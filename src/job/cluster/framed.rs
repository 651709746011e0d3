//! Framed messages between processes: a length of 4 bytes, then the message in `postcard`. A connection begins with the
//! [`handshake`](super::handshake), whose messages have fixed lengths.
//!
//! A [`Framed`] consumes no bytes beyond the requested message, as bytes of another format may follow it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::heartbeat::POLL;

/// Maximum size of a message, in bytes.
const LONGEST: usize = 64 << 20;
/// Number of bytes read at a time.
const PIECE: usize = 1 << 16;

/// A connection that carries messages.
pub(super) struct Framed {
    stream: TcpStream,
    /// Bytes received and not consumed yet.
    buffer: Vec<u8>,
    /// Number of bytes received.
    received: u64,
}

impl Framed {
    /// Creates a blocking connection; reads wait for at most [`POLL`].
    pub(super) fn blocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(POLL))?;
        stream.set_nodelay(true)?;
        Ok(Framed { stream, buffer: Vec::new(), received: 0 })
    }

    /// Creates a nonblocking connection.
    pub(super) fn nonblocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Framed { stream, buffer: Vec::new(), received: 0 })
    }

    /// Makes the connection blocking; reads wait for at most [`POLL`].
    pub(super) fn into_blocking(self) -> io::Result<Self> {
        let Framed { stream, buffer, received } = self;
        Ok(Framed { buffer, received, ..Framed::blocking(stream)? })
    }

    /// Returns the connection, for bytes other than messages.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Returns another handle of the connection, for sending.
    pub(super) fn sender(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Returns the number of bytes received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Sends bytes of a handshake; `within` bounds a write that blocks.
    pub(super) fn put(&mut self, bytes: &[u8], within: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(within))?;
        let written = self.stream.write_all(bytes);
        self.stream.set_write_timeout(None)?;
        written
    }

    /// Closes the sending half.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Sends a message; `within` bounds a write that blocks.
    pub(super) fn send(&mut self, message: &impl Serialize, within: Duration) -> io::Result<()> {
        self.put(&encoded(message)?, within)
    }

    /// Returns the next bytes without consuming them; `None` while there are fewer.
    pub(super) fn peek<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        self.read_to(N)?;
        Ok(self.buffer.first_chunk().copied())
    }

    /// Consumes the next bytes of a handshake; `None` while there are fewer.
    pub(super) fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let taken = self.peek()?;
        if taken.is_some() {
            self.buffer.drain(..N);
        }
        Ok(taken)
    }

    /// Reads once and discards the bytes; `false` at the end of the connection.
    pub(super) fn skip(&mut self) -> bool {
        let open = self.read_to(PIECE).is_ok();
        self.buffer.clear();
        open
    }

    /// Consumes the next message of at most `longest` bytes; `None` while it is incomplete.
    pub(super) fn receive_at_most<T: DeserializeOwned>(&mut self, longest: usize) -> io::Result<Option<T>> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        self.read_to(4)?;
        let Some(length) = self.buffer.first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > longest {
            return Err(invalid(format!("a message of {length} bytes is too long")));
        }
        self.read_to(4 + length)?;
        let Some(message) = self.buffer.get(4..4 + length) else { return Ok(None) };
        let message = postcard::from_bytes(message).map_err(|why| invalid(why.to_string()))?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }

    /// Consumes the next message; `None` while it is incomplete.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.receive_at_most(LONGEST)
    }

    /// Reads once if the buffer has fewer than `length` bytes.
    fn read_to(&mut self, length: usize) -> io::Result<()> {
        let held = self.buffer.len();
        if held >= length {
            return Ok(());
        }
        self.buffer.resize(held + (length - held).min(PIECE), 0);
        let read = self.stream.read(&mut self.buffer[held..]);
        self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its connection was closed")),
            Ok(read) => {
                self.received += read as u64;
                Ok(())
            }
            Err(why) if is_wait(&why) => Ok(()),
            Err(why) => Err(why),
        }
    }
}

/// `true` for errors that mean that nothing has arrived yet.
pub(super) fn is_wait(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Encodes a message, with its length.
pub(super) fn encoded(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let invalid = |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, why.to_string());
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(|why| invalid(&why))?;
    let length = u32::try_from(bytes.len() - 4).map_err(|why| invalid(&why))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}
