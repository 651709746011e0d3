//! Messages between processes: each is its length and then what `postcard` makes of it.
//!
//! A connection begins with a [`Greeting`] of fixed length, so that who speaks another version, or is no process of ours,
//! is known by its first bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What every connection begins with: the name and the version of how processes speak.
const MAGIC: [u8; 8] = *b"TGPROC\0\x03";
/// How many bytes a message has at most.
const LONGEST: usize = 64 << 20;
/// How long a write may take: the messages are short, and what is not read for so long is not read at all.
const WRITING: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Messages to process 0 and from it.
    Side,
    /// The dataflow.
    Data,
}

/// Who connects, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) purpose: Purpose,
    pub(super) process: u32,
    /// What process 0 has drawn, for who is to connect by it; else 0.
    pub(super) number: u64,
}

impl Greeting {
    const LENGTH: usize = 8 + 1 + 4 + 8;

    fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = u8::from(self.purpose == Purpose::Data);
        bytes[9..13].copy_from_slice(&self.process.to_le_bytes());
        bytes[13..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Self> {
        let (magic, rest) = bytes.split_at(8);
        if magic != MAGIC {
            let why = if magic[..7] == MAGIC[..7] {
                format!(
                    "it speaks version {} of what processes say to each other, this one speaks {}",
                    magic[7], MAGIC[7]
                )
            } else {
                String::from("it is no process of a job")
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let purpose = if rest[0] == 0 { Purpose::Side } else { Purpose::Data };
        let (mut process, mut number) = ([0; 4], [0; 8]);
        process.copy_from_slice(&rest[1..5]);
        number.copy_from_slice(&rest[5..13]);
        Ok(Greeting { purpose, process: u32::from_le_bytes(process), number: u64::from_le_bytes(number) })
    }
}

/// One end of a connection by which messages go.
pub(super) struct Wire {
    stream: TcpStream,
    /// What has come and is no whole message yet.
    buffer: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITING))?;
        Ok(Wire { stream, buffer: Vec::new() })
    }

    /// The connection, for other bytes than messages.
    pub(super) fn into_stream(self) -> io::Result<TcpStream> {
        self.stream.set_write_timeout(None)?;
        self.stream.set_read_timeout(None)?;
        Ok(self.stream)
    }

    /// Another handle of it, to send by.
    pub(super) fn sender(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Whether the other end is closed.
    pub(super) fn is_closed(&self) -> bool {
        let peeked = self.stream.set_nonblocking(true).and_then(|()| {
            let peeked = self.stream.peek(&mut [0]);
            self.stream.set_nonblocking(false).and(peeked)
        });
        match peeked {
            Ok(length) => length == 0,
            Err(why) => why.kind() != io::ErrorKind::WouldBlock,
        }
    }

    pub(super) fn greet(&mut self, greeting: &Greeting) -> io::Result<()> {
        self.stream.write_all(&greeting.bytes())
    }

    /// How the other end greets, within this time.
    pub(super) fn greeted(&mut self, within: Duration) -> io::Result<Option<Greeting>> {
        if !self.fill(Greeting::LENGTH, within)? {
            return Ok(None);
        }
        let greeting = Greeting::read(&self.buffer[..Greeting::LENGTH])?;
        self.buffer.drain(..Greeting::LENGTH);
        Ok(Some(greeting))
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        send(&mut self.stream, message)
    }

    /// The next message, if it comes within this time.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, within: Duration) -> io::Result<Option<T>> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        if !self.fill(4, within)? {
            return Ok(None);
        }
        let mut length = [0; 4];
        length.copy_from_slice(&self.buffer[..4]);
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(invalid(format!("a message of {length} bytes is too long")));
        }
        if !self.fill(4 + length, within)? {
            return Ok(None);
        }
        let message = postcard::from_bytes(&self.buffer[4..4 + length]).map_err(|why| invalid(why.to_string()))?;
        self.buffer.drain(..4 + length);
        Ok(Some(message))
    }

    /// Reads until the buffer has so many bytes; whether it has, in this time from one byte to the next.
    fn fill(&mut self, length: usize, within: Duration) -> io::Result<bool> {
        self.stream.set_read_timeout(Some(within))?;
        while self.buffer.len() < length {
            let mut piece = [0; 4096];
            let most = piece.len().min(length - self.buffer.len());
            match self.stream.read(&mut piece[..most]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its connection was closed")),
                Ok(read) => self.buffer.extend(&piece[..read]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(why) => return Err(why),
            }
        }
        Ok(true)
    }
}

/// Sends a message.
pub(super) fn send(stream: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    bytes = postcard::to_extend(message, bytes).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    let length = u32::try_from(bytes.len() - 4).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&bytes)
}
