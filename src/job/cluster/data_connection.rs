//! A connection of the dataflow.
//!
//! timely ends a process by panics when a connection breaks. A [`DataConnection`] notes the loss of the other process
//! first ([`LossRecord`]), and then never returns: the thread that sends or receives through it sleeps until the
//! process ends. So nothing is printed but the one line of the job's own failure, and no worker continues with a part of
//! the data.
//!
//! A panic of timely on a thread that reads or writes here still fails the job: see [`adopt`].
//!
//! Bytes are sent in frames: [`DATA`], the length as 4 bytes, and that many bytes of timely's; [`HEARTBEAT`], a
//! heartbeat, which a thread beside the dataflow sends when nothing else is being sent; and [`END`], the last one. So
//! the loss of an idle connection is noticed, too, and a connection that closes without [`END`] is lost.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use timely::communication::allocator::zero_copy::stream::Stream;

use super::framed::is_wait;
use super::heartbeat::{HeartbeatMonitor, POLL, Silence};
use super::losses::LossRecord;
use crate::thread::{JobFailure, adopt};

const HEARTBEAT: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;
/// Size of a frame's header, in bytes.
const HEADER: usize = 5;
/// Maximum number of timely's bytes in a frame.
const LONGEST: usize = 1 << 30;
/// Frames with fewer bytes left than this are read through a buffer, together with the frames that follow.
const BUFFER: usize = 1 << 14;
/// Write timeout of a heartbeat; a full connection needs none.
const HEARTBEAT_WRITE_TIMEOUT: Duration = Duration::from_millis(1);

/// The sending half of a connection.
pub(super) struct Sender {
    stream: TcpStream,
    /// `true` once the last frame is sent. Locked while a frame is sent, so that frames stay whole.
    ended: Mutex<bool>,
}

impl Sender {
    fn ended(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame of timely's bytes.
    fn data(&self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let mut header = [DATA; HEADER];
        header[1..].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        let _whole = self.ended();
        let mut stream = &self.stream;
        let sent = loop {
            match stream.write_vectored(&[IoSlice::new(&header), IoSlice::new(bytes)]) {
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                sent => break sent?,
            }
        };
        if let Some(rest) = header.get(sent..) {
            stream.write_all(rest)?;
        }
        stream.write_all(&bytes[sent.saturating_sub(HEADER)..])?;
        Ok(bytes.len())
    }

    /// Sends a heartbeat, unless something else is being sent.
    pub(super) fn send_heartbeat(&self) {
        let ended = match self.ended.try_lock() {
            Ok(ended) => ended,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !*ended {
            // A peer that receives nothing stops sending its own heartbeats, and is missed by them.
            let _ = self.stream.set_write_timeout(Some(HEARTBEAT_WRITE_TIMEOUT));
            let _ = (&self.stream).write(&[HEARTBEAT]);
            let _ = self.stream.set_write_timeout(None);
        }
    }

    /// Sends the last frame.
    fn end(&self) -> io::Result<()> {
        let mut ended = self.ended();
        if !std::mem::replace(&mut *ended, true) {
            (&self.stream).write_all(&[END])?;
        }
        Ok(())
    }
}

/// A connection to another process, for the dataflow.
pub(crate) struct DataConnection {
    process: usize,
    losses: Arc<LossRecord>,
    failure: Arc<JobFailure>,
    sender: Arc<Sender>,
    silence: Arc<Silence>,
    timeout: Duration,
    receiver: Receiver,
}

impl DataConnection {
    pub(super) fn new(
        stream: TcpStream,
        process: usize,
        timeout: Duration,
        losses: Arc<LossRecord>,
        failure: Arc<JobFailure>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(None)?;
        stream.set_read_timeout(Some(POLL))?;
        let (receiver, silence) = (stream.try_clone()?, Arc::default());
        let sender = Arc::new(Sender { stream, ended: Mutex::new(false) });
        let receiver = Receiver::new(receiver, timeout, &silence);
        Ok(DataConnection { process, losses, failure, sender, silence, timeout, receiver })
    }

    /// Returns the handle that sends heartbeats.
    pub(super) fn sender(&self) -> Arc<Sender> {
        Arc::clone(&self.sender)
    }

    /// Returns the measured silence of the connection.
    pub(super) fn silence(&self) -> Arc<Silence> {
        Arc::clone(&self.silence)
    }

    /// Notes the loss of the other process, and sleeps.
    fn lost(&self, why: &str) -> ! {
        self.losses.note(self.process, why);
        loop {
            std::thread::park();
        }
    }
}

impl Read for DataConnection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        adopt(&self.failure);
        match self.receiver.read(into) {
            Ok(read) => Ok(read),
            Err(why) => self.lost(&why),
        }
    }
}

impl Write for DataConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        adopt(&self.failure);
        match self.sender.data(bytes) {
            Ok(sent) => Ok(sent),
            Err(why) => self.lost(&why.to_string()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for DataConnection {
    fn try_clone(&self) -> io::Result<Self> {
        let receiver = Receiver::new(self.receiver.stream.try_clone()?, self.timeout, &self.silence);
        Ok(DataConnection {
            process: self.process,
            losses: Arc::clone(&self.losses),
            failure: Arc::clone(&self.failure),
            sender: self.sender(),
            silence: self.silence(),
            timeout: self.timeout,
            receiver,
        })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.sender.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let Err(why) = self.sender.end() {
            self.lost(&why.to_string());
        }
        // All has been sent: it does not matter whether the other end has closed already.
        let _ = self.sender.stream.shutdown(how);
        Ok(())
    }
}

/// The receiving half of a connection: takes timely's bytes out of their frames.
struct Receiver {
    stream: TcpStream,
    monitor: HeartbeatMonitor,
    /// Bytes read and not yet consumed: `buffer[taken..held]`.
    buffer: Vec<u8>,
    taken: usize,
    held: usize,
    /// Bytes left of the current frame.
    left: usize,
    ended: bool,
}

impl Receiver {
    fn new(stream: TcpStream, timeout: Duration, silence: &Arc<Silence>) -> Self {
        let monitor = HeartbeatMonitor::new(timeout, Arc::clone(silence));
        Receiver { stream, monitor, buffer: Vec::new(), taken: 0, held: 0, left: 0, ended: false }
    }

    /// Reads bytes of timely's, at least one; none at the end. Fails with the reason for which the other process is
    /// lost.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, String> {
        while !self.ended {
            let waiting = &self.buffer[self.taken..self.held];
            match (self.left, waiting) {
                (0, [DATA, a, b, c, d, ..]) => {
                    self.left = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
                    self.taken += HEADER;
                }
                (0, [HEARTBEAT, ..]) => self.taken += 1,
                (0, [END, ..]) => self.ended = true,
                (0, [] | [DATA, ..]) => self.fill()?,
                (0, _) => return Err(String::from("it sends what no process sends")),
                (left, []) if left >= BUFFER && into.len() >= BUFFER => {
                    let most = left.min(into.len());
                    let read = receive(&mut self.stream, &mut self.monitor, &mut into[..most])?;
                    self.left -= read;
                    return Ok(read);
                }
                (_, []) => self.fill()?,
                (left, waiting) => {
                    let read = left.min(waiting.len()).min(into.len());
                    into[..read].copy_from_slice(&waiting[..read]);
                    self.taken += read;
                    self.left -= read;
                    return Ok(read);
                }
            }
        }
        Ok(0)
    }

    /// Reads more bytes into the buffer.
    fn fill(&mut self) -> Result<(), String> {
        self.buffer.resize(BUFFER, 0);
        self.buffer.copy_within(self.taken..self.held, 0);
        (self.taken, self.held) = (0, self.held - self.taken);
        self.held += receive(&mut self.stream, &mut self.monitor, &mut self.buffer[self.held..])?;
        Ok(())
    }
}

/// Waits for bytes, for at most the heartbeat timeout.
fn receive(stream: &mut TcpStream, monitor: &mut HeartbeatMonitor, into: &mut [u8]) -> Result<usize, String> {
    loop {
        match stream.read(into) {
            Ok(0) => return Err(String::from("its connection was closed")),
            Ok(read) => {
                monitor.heard();
                return Ok(read);
            }
            Err(why) if is_wait(&why) => monitor.unheard()?,
            Err(why) => return Err(why.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Sender, Receiver) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let receiver = Receiver::new(accepted, Duration::from_millis(200), &Arc::default());
        (Sender { stream, ended: Mutex::new(false) }, receiver)
    }

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_is_between_them() {
        let (sender, mut receiver) = pair();
        let sent: Vec<u8> = (0..400_000u32).map(|at| (at * 7 / 3) as u8).collect();
        let mut random = fastrand::Rng::with_seed(3);
        let all = sent.clone();
        let sending = std::thread::spawn(move || {
            let mut left = &all[..];
            while !left.is_empty() {
                let most = [3, 100, 70_000][random.usize(0..3)];
                let (now, later) = left.split_at(random.usize(1..=most).min(left.len()));
                assert_eq!(sender.data(now).unwrap(), now.len());
                (0..random.usize(0..3)).for_each(|_| sender.send_heartbeat());
                left = later;
            }
            sender.end().unwrap();
            sender.send_heartbeat();
            sender
        });
        let (mut come, mut random) = (Vec::<u8>::new(), fastrand::Rng::with_seed(4));
        loop {
            let mut into = vec![0; random.usize(1..60_000)];
            match receiver.read(&mut into).unwrap() {
                0 => break,
                read => come.extend(&into[..read]),
            }
        }
        assert!(come == sent, "{} bytes of {}", come.len(), sent.len());
        drop(sending.join().unwrap());
        assert_eq!(receiver.read(&mut [0; 8]), Ok(0));
    }

    #[test]
    fn who_is_silent_is_lost_and_who_only_gives_signs_is_not() {
        let (sender, mut receiver) = pair();
        let signing = std::thread::spawn(move || {
            for _ in 0..40 {
                sender.send_heartbeat();
                std::thread::sleep(Duration::from_millis(10));
            }
            sender.data(b"x").unwrap();
            sender
        });
        assert_eq!(receiver.read(&mut [0; 8]), Ok(1));
        let sender = signing.join().unwrap();
        assert_eq!(receiver.read(&mut [0; 8]), Err("nothing was heard of it for 0.2 s".into()));
        drop(sender);
        assert_eq!(receiver.read(&mut [0; 8]), Err("its connection was closed".into()));
    }

    #[test]
    fn a_connection_that_is_full_takes_no_sign_and_keeps_its_frames_whole() {
        let (sender, mut receiver) = pair();
        sender.stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        // Fills it with heartbeats alone, as no frame may be cut.
        let begun = std::time::Instant::now();
        let filling = vec![HEARTBEAT; 1 << 20];
        while (&sender.stream).write(&filling).is_ok() {}
        sender.send_heartbeat();
        assert!(begun.elapsed() < Duration::from_secs(20));
        let sending = std::thread::spawn(move || sender.data(b"abc").map(|_| sender));
        assert_eq!(receiver.read(&mut [0; 8]), Ok(3));
        drop(sending.join().unwrap());
    }
}
