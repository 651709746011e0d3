//! Messages between processes: each is its length and then what `postcard` makes of it. A connection begins with the
//! [`handshake`](super::handshake), whose parts have fixed lengths.
//!
//! A [`Wire`] reads no further than the part or message that is asked for, as other bytes may follow it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::heartbeat::POLL;

/// How many bytes a message has at most.
const LONGEST: usize = 64 << 20;
/// How many bytes are read at a time.
const PIECE: usize = 1 << 16;

/// One end of a connection by which messages go.
pub(super) struct Wire {
    stream: TcpStream,
    /// What has come and is no whole message yet.
    buffer: Vec<u8>,
    /// How many bytes have come.
    received: u64,
}

impl Wire {
    /// Reads wait for [`POLL`] at most.
    pub(super) fn blocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(POLL))?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, buffer: Vec::new(), received: 0 })
    }

    /// Neither reads nor writes wait.
    pub(super) fn nonblocking(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Wire { stream, buffer: Vec::new(), received: 0 })
    }

    /// Has reads wait from now on, for [`POLL`] at most.
    pub(super) fn into_blocking(self) -> io::Result<Self> {
        let Wire { stream, buffer, received } = self;
        Ok(Wire { buffer, received, ..Wire::blocking(stream)? })
    }

    /// The connection, for other bytes than messages.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Another handle of it, to send by.
    pub(super) fn sender(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// How many bytes have come over it.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Sends the parts of a handshake; `within` bounds a write that waits.
    pub(super) fn put(&mut self, bytes: &[u8], within: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(within))?;
        let written = self.stream.write_all(bytes);
        self.stream.set_write_timeout(None)?;
        written
    }

    /// Ends what is sent by this end.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Sends a message; `within` bounds a write that waits.
    pub(super) fn send(&mut self, message: &impl Serialize, within: Duration) -> io::Result<()> {
        self.put(&encoded(message)?, within)
    }

    /// The first bytes that have not been taken, without taking them; `None` while there are fewer.
    pub(super) fn peek<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        self.read_to(N)?;
        Ok(self.buffer.first_chunk().copied())
    }

    /// Takes the next part of a handshake; `None` while it has not come.
    pub(super) fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let taken = self.peek()?;
        if taken.is_some() {
            self.buffer.drain(..N);
        }
        Ok(taken)
    }

    /// Reads once and forgets what has come; `false` at the end of the connection.
    pub(super) fn skip(&mut self) -> bool {
        let open = self.read_to(PIECE).is_ok();
        self.buffer.clear();
        open
    }

    /// Takes the next message of at most `longest` bytes; `None` while it has not come.
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

    /// Takes the next message; `None` while it has not come.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.receive_at_most(LONGEST)
    }

    /// Reads once, towards so many bytes in the buffer, unless they are there.
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

/// `true` for errors that say that nothing has come yet.
pub(super) fn is_wait(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// A message, as it is sent.
pub(super) fn encoded(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let invalid = |why: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, why.to_string());
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(|why| invalid(&why))?;
    let length = u32::try_from(bytes.len() - 4).map_err(|why| invalid(&why))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}
