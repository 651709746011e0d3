//! A connection of the dataflow.
//!
//! timely ends a process by panics when a connection breaks. A [`Link`] says first that the other process is gone, and then
//! never returns: the thread that sends or receives by it sleeps until the process ends. So nothing is printed but the one
//! line of the job's own failure, and no worker goes on with half of what was sent.
//!
//! If timely panics all the same, on a thread that reads or writes here, that fails the job: see [`adopt`].
//!
//! A connection that ends in order has, as its last bytes, timely's empty header: [`END`] zeros.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use timely::communication::allocator::zero_copy::stream::Stream;

use super::side::Side;
use crate::thread::adopt;

/// The length of timely's message header, which is zero throughout at the end of a connection.
const END: usize = 48;

/// A connection to another process, for the dataflow.
pub(crate) struct Link {
    stream: TcpStream,
    process: usize,
    side: Arc<Side>,
    /// How many zeros came last, `END` at most.
    zeros: usize,
}

impl Link {
    pub(super) fn new(stream: TcpStream, process: usize, side: Arc<Side>) -> Self {
        Link { stream, process, side, zeros: 0 }
    }

    /// Says that the other process is gone, and sleeps.
    fn lost(&self, why: &io::Error) -> ! {
        self.side.lost(self.process, &why.to_string());
        loop {
            std::thread::park();
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        adopt(self.side.failure());
        loop {
            match self.stream.read(buffer) {
                Ok(0) if self.zeros < END => {
                    self.lost(&io::Error::new(io::ErrorKind::UnexpectedEof, "its connection was closed"));
                }
                Ok(read) => {
                    let zeros = buffer[..read].iter().rev().take(END).take_while(|byte| **byte == 0).count();
                    self.zeros = if zeros == read { END.min(self.zeros + zeros) } else { zeros };
                    return Ok(read);
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => self.lost(&why),
            }
        }
    }
}

impl Write for Link {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        adopt(self.side.failure());
        loop {
            match self.stream.write(buffer) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => self.lost(&why),
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        let (stream, side) = (self.stream.try_clone()?, Arc::clone(&self.side));
        Ok(Link { stream, process: self.process, side, zeros: 0 })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // All has been sent: that the other end is closed already is its own affair.
        let _ = self.stream.shutdown(how);
        Ok(())
    }
}
