//! Connections: how they are served and closed.
//!
//! [`Connections`] are all open connections. When a new one exceeds their limit, the most expendable one is closed.
//!
//! Invariant: a connection stays open only until its next deadline, unless its client extends that by requests or by
//! reading its answers.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::server::conn::http1;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::end::EndSignal;
use super::limits::{HEADER_BYTES, HEADER_LINES, HEADER_TIME};
use super::respond::{RequestContext, respond};
use super::socket::{ByteStream, Socket, TrackedStream};
use super::tracker::ConnectionTracker;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a connection until its client is done, a limit has passed, or the server ends.
async fn serve(stream: TrackedStream, shared: Arc<RequestContext>, over: EndSignal) {
    let pulse = stream.pulse();
    let mut ended = pin!(over.clone().wait());
    let stream: Box<dyn ByteStream> = match shared.encryption() {
        None => Box::new(stream),
        Some(encryption) => {
            let mut handshake = pin!(encryption.accept(stream));
            let accepted = within_limits(&pulse, |context| {
                if ended.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                // An error means that the client is gone, or does not speak TLS.
                handshake.as_mut().poll(context).map(io::Result::ok)
            });
            let Some(Some(stream)) = accepted.await else { return };
            stream
        }
    };
    let socket = Socket::new(stream, pulse.clone());
    let service = {
        let (pulse, over) = (pulse.clone(), over.clone());
        hyper::service::service_fn(move |request| respond(Arc::clone(&shared), pulse.clone(), over.clone(), request))
    };
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_header_size(HEADER_BYTES).max_headers(HEADER_LINES);
    builder.max_buf_size(4 * HEADER_BYTES);
    let mut connection = pin!(builder.serve_connection(socket, service));
    let mut ended = pin!(over.wait());
    let mut ends = false;
    let served = within_limits(&pulse, |context| {
        if !ends && ended.as_mut().poll(context).is_ready() {
            ends = true;
            connection.as_mut().graceful_shutdown();
        }
        // An error means that the client is gone, or does not speak HTTP, in which case hyper has answered it.
        connection.as_mut().poll(context).map(drop)
    });
    served.await;
}

/// Polls until there is an outcome; returns `None` when a limit of the connection has passed before.
async fn within_limits<T>(pulse: &ConnectionTracker, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    let mut sleep = pin!(tokio::time::sleep(HEADER_TIME));
    poll_fn(|context| {
        if let Poll::Ready(outcome) = poll(context) {
            return Poll::Ready(Some(outcome));
        }
        loop {
            let now = Instant::now();
            if pulse.is_late(now) {
                tracing::debug!("a client of the HTTP server is cut off: it was too slow");
                return Poll::Ready(None);
            }
            let Some(deadline) = pulse.deadline() else { return Poll::Pending };
            sleep.as_mut().reset(deadline.into());
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
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
        over: &EndSignal,
        alive: watch::Receiver<()>,
    ) {
        let pulse = ConnectionTracker::new();
        let mut own = locked(all);
        (own.next, own.sockets) = (own.next + 1, own.sockets + 1);
        let listed = ListGuard { id: own.next, all: Arc::clone(all) };
        let stream = TrackedStream::new(stream, pulse.clone());
        let id = own.next;
        let serving = serve(stream, Arc::clone(shared), over.clone());
        let task = tokio::spawn(async move {
            // Dropped at the end, after the socket.
            let _open = (listed, alive);
            serving.await;
        });
        own.open.insert(id, (pulse, task.abort_handle()));
    }
}
