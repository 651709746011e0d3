//! Connections: their sockets, their states and their time limits.
//!
//! * A [`ConnectionTracker`] tracks the state of a connection: it waits for a request, receives a header, or answers
//!   a request; and the time since which its client has not read what waits for it.
//! * A [`Socket`] moves bytes, and updates the pulse.
//! * [`Connections`] are all open connections. When a new one exceeds their limit, the most expendable one is closed.
//!
//! Invariant: a connection stays open only until its next deadline, unless its client extends that by requests or by
//! reading its answers.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::limits::{HEADER_BYTES, HEADER_LINES, HEADER_TIME, IDLE_TIME, STUCK, WRITE_BYTES, WRITE_TIME};
use super::respond::{RequestContext, respond};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has been received yet.
    New,
    /// A part of a request's header has been received.
    Header,
    /// A request is being answered.
    Answering,
    /// All answers so far have been sent.
    Idle,
}

/// A period in which bytes wait for the client. Whenever the client has read [`WRITE_BYTES`], a new period begins.
#[derive(Clone, Copy, Debug)]
struct Stall {
    /// The end of the period.
    until: Instant,
    /// Bytes read by the client in this period.
    taken: usize,
    /// The last time that the client has read any.
    moved: Instant,
}

#[derive(Debug)]
struct ConnectionState {
    phase: Phase,
    since: Instant,
    stall: Option<Stall>,
}

/// The shared state of a connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionTracker(Arc<Mutex<ConnectionState>>);

impl ConnectionTracker {
    fn new() -> Self {
        ConnectionTracker(Arc::new(Mutex::new(ConnectionState {
            phase: Phase::New,
            since: Instant::now(),
            stall: None,
        })))
    }

    fn enter(&self, phase: Phase) {
        let mut state = locked(&self.0);
        (state.phase, state.since) = (phase, Instant::now());
    }

    /// Notes that a request has been received.
    pub(super) fn answering(&self) {
        self.enter(Phase::Answering);
    }

    /// Notes that an answer has been sent, or given up.
    pub(super) fn answered(&self) {
        self.enter(Phase::Idle);
    }

    /// Notes that bytes have been received.
    fn has_read(&self) {
        let mut state = locked(&self.0);
        match state.phase {
            Phase::New => state.phase = Phase::Header,
            Phase::Idle => (state.phase, state.since) = (Phase::Header, Instant::now()),
            Phase::Header | Phase::Answering => {}
        }
    }

    /// Notes the outcome of a write.
    fn has_written(&self, outcome: &Poll<io::Result<usize>>) {
        let (mut state, now) = (locked(&self.0), Instant::now());
        match (outcome, &mut state.stall) {
            (Poll::Pending, None) => state.stall = Some(Stall { until: now + WRITE_TIME, taken: 0, moved: now }),
            (Poll::Ready(Ok(taken)), Some(stall)) => {
                (stall.taken, stall.moved) = (stall.taken + taken, now);
                if stall.taken >= WRITE_BYTES {
                    (stall.until, stall.taken) = (now + WRITE_TIME, 0);
                }
            }
            _ => {}
        }
    }

    /// Notes that no bytes wait for the client.
    fn has_written_all(&self) {
        locked(&self.0).stall = None;
    }

    /// Returns the time at which the next limit passes; `None` if there is none.
    fn deadline(&self) -> Option<Instant> {
        let state = locked(&self.0);
        let phase = match state.phase {
            Phase::New | Phase::Header => Some(state.since + HEADER_TIME),
            Phase::Idle => Some(state.since + IDLE_TIME),
            Phase::Answering => None,
        };
        phase.into_iter().chain(state.stall.map(|stall| stall.until)).min()
    }

    /// `true` if a limit has passed.
    fn is_late(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns the time since which the connection is expendable; `None` if it is not.
    fn spare_since(&self, now: Instant) -> Option<Instant> {
        let state = locked(&self.0);
        match (state.phase, state.stall) {
            (_, Some(stall)) if stall.moved + STUCK <= now => Some(stall.moved),
            (Phase::Answering, _) => None,
            (Phase::New | Phase::Header | Phase::Idle, _) => Some(state.since),
        }
    }
}

/// A client's socket.
struct Socket {
    stream: TcpStream,
    pulse: ConnectionTracker,
}

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; 4 << 10];
        let room = piece.len().min(buffer.remaining());
        let mut piece = ReadBuf::new(&mut piece[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
        if !piece.filled().is_empty() {
            self.pulse.has_read();
            buffer.put_slice(piece.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.pulse.has_written(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.pulse.has_written(&outcome);
        outcome
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pulse.has_written_all();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Waits until the server ends.
pub(super) async fn ended(mut over: watch::Receiver<bool>) {
    // A dropped sender means that the server has ended, too.
    let _ = over.wait_for(|over| *over).await;
}

/// Serves a connection until its client is done, a limit has passed, or the server ends.
async fn serve(socket: Socket, shared: Arc<RequestContext>, over: watch::Receiver<bool>) {
    let pulse = socket.pulse.clone();
    let service = {
        let (pulse, over) = (pulse.clone(), over.clone());
        hyper::service::service_fn(move |request| respond(Arc::clone(&shared), pulse.clone(), over.clone(), request))
    };
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEADER_BYTES).max_headers(HEADER_LINES);
    builder.max_buf_size(4 * HEADER_BYTES);
    let mut connection = pin!(builder.serve_connection(socket, service));
    let mut over = pin!(ended(over));
    let mut sleep = pin!(tokio::time::sleep(HEADER_TIME));
    let mut ends = false;
    poll_fn(|context| {
        if !ends && over.as_mut().poll(context).is_ready() {
            ends = true;
            connection.as_mut().graceful_shutdown();
        }
        // An error means that the client is gone, or does not speak HTTP, in which case hyper has answered it.
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let now = Instant::now();
            if pulse.is_late(now) {
                tracing::debug!("a client of the HTTP server is cut off: it was too slow");
                return Poll::Ready(());
            }
            let Some(deadline) = pulse.deadline() else { return Poll::Pending };
            sleep.as_mut().reset(deadline.into());
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// All open connections.
pub(super) struct Connections {
    most: usize,
    next: u64,
    /// Number of open sockets: those of `open`, and of connections that are being closed.
    sockets: usize,
    open: BTreeMap<u64, (ConnectionTracker, AbortHandle)>,
}

/// Guard that removes a connection from the list when it is dropped.
struct ListGuard {
    id: u64,
    all: Arc<Mutex<Connections>>,
}

impl Drop for ListGuard {
    fn drop(&mut self) {
        let mut all = locked(&self.all);
        all.open.remove(&self.id);
        all.sockets -= 1;
    }
}

impl Connections {
    /// Creates an empty list with room for `most` connections.
    pub(super) fn new(most: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Connections { most, next: 0, sockets: 0, open: BTreeMap::new() }))
    }

    /// Makes room for one more connection, if there is none, by closing the one that has been expendable for longest;
    /// returns when its socket is closed. Returns `false` if none is expendable.
    pub(super) async fn make_room(all: &Mutex<Self>) -> bool {
        loop {
            let is_full = {
                let own = locked(all);
                own.open.len() >= own.most
            };
            if is_full && !Self::close_one(all) {
                return false;
            }
            let has_room = {
                let own = locked(all);
                own.sockets < own.most
            };
            if has_room {
                return true;
            }
            // A closed connection's socket is dropped when its task runs next.
            tokio::task::yield_now().await;
        }
    }

    /// Closes the connection that has been expendable for longest; returns `false` if none is.
    pub(super) fn close_one(all: &Mutex<Self>) -> bool {
        let now = Instant::now();
        let mut own = locked(all);
        let spare = own.open.iter().filter_map(|(id, (pulse, _))| Some((pulse.spare_since(now)?, *id)));
        let Some((_, id)) = spare.min() else { return false };
        let closed = own.open.remove(&id);
        drop(own);
        if let Some((_, task)) = closed {
            task.abort();
        }
        true
    }

    /// Serves one more connection; `alive` is dropped when it is over.
    pub(super) fn add(
        all: &Arc<Mutex<Self>>,
        stream: TcpStream,
        shared: &Arc<RequestContext>,
        over: &watch::Receiver<bool>,
        alive: watch::Receiver<()>,
    ) {
        let pulse = ConnectionTracker::new();
        let mut own = locked(all);
        (own.next, own.sockets) = (own.next + 1, own.sockets + 1);
        let listed = ListGuard { id: own.next, all: Arc::clone(all) };
        let (socket, shared, over) = (Socket { stream, pulse: pulse.clone() }, Arc::clone(shared), over.clone());
        let id = own.next;
        let serving = serve(socket, shared, over);
        let task = tokio::spawn(async move {
            // Dropped at the end, after the socket.
            let _open = (listed, alive);
            serving.await;
        });
        own.open.insert(id, (pulse, task.abort_handle()));
    }
}
