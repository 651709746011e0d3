//! The server: one thread that accepts connections and serves all of them.
//!
//! A second thread makes the answers that take time, one after the other. The job starts the server and ends it; it
//! waits for the server's end at most [`END_TIME`], and no failure of a client fails the job.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::access::{TokenFile, is_beyond_loopback};
use super::connection::Connections;
use super::end::EndSignal;
use super::host::Hosts;
use super::limits::{CONNECTIONS, DESCRIPTORS_FOR_ONE, END_TIME, GRACE, PAUSE, SOCKET_BYTES};
use super::respond::{AccessPolicy, RequestContext};
use super::{Endpoint, PublicPaths, RequestHandler, TlsFiles};
use crate::error::{Error, Result};
use crate::metrics::Counter;
use crate::thread::{self, ThreadHandle, ThreadRole};

/// Maximum number of connections that the system queues until they are accepted.
const BACKLOG: u32 = 1024;
/// Minimum interval between two log lines about refused connections.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    is_encrypted: bool,
    over: watch::Sender<bool>,
    /// Disconnected when the thread is done.
    done: Receiver<()>,
    thread: Option<ThreadHandle>,
    wrong_tokens: Arc<Counter>,
}

impl Server {
    /// Starts a server at an address.
    ///
    /// # Errors
    /// Fails if it cannot listen there.
    pub(crate) fn start(endpoint: &Endpoint, answering: &RequestHandler, is_public: PublicPaths) -> Result<Self> {
        let cannot = |why: &dyn fmt::Display| {
            let error = Error::new("cannot serve HTTP").at(&endpoint.address).because(why);
            error.help("is the port taken? `--http 127.0.0.1:0` takes a free one")
        };
        let mut builder = Builder::new_current_thread();
        builder.enable_io().enable_time().max_blocking_threads(1).thread_name("http answers");
        let runtime = builder.build().map_err(|why| cannot(&why))?;
        let encryption = endpoint.tls.as_ref().map(TlsFiles::open).transpose()?;
        endpoint.warn_of_exposed_files();
        let token = endpoint.token_file.as_deref().map(TokenFile::open).transpose()?;
        let listener = listen(&runtime, &endpoint.places()?).map_err(|why| cannot(&why))?;
        let address = listener.local_addr().map_err(|why| cannot(&why))?;
        let is_encrypted = encryption.is_some();
        if token.is_some() && !is_encrypted && is_beyond_loopback(&address) {
            tracing::warn!("HTTP at {address}: the token and all answers go over the network without encryption");
        }
        let most = most_connections();
        let policy =
            AccessPolicy { hosts: Hosts::new(&endpoint.address, &endpoint.hosts), token, is_public, encryption };
        let shared = Arc::new(RequestContext::new(Arc::clone(answering), policy, most));
        let wrong_tokens = shared.wrong_tokens();
        let (over, is_over) = EndSignal::new();
        let (finished, done) = channel();
        let body = move || {
            runtime.block_on(serve(listener, shared, most, is_over));
            // An answer that is still being made is abandoned.
            runtime.shutdown_background();
            drop::<std::sync::mpsc::Sender<()>>(finished);
        };
        let thread = thread::start(ThreadRole::Http, ThreadRole::Http.name(), body)?;
        Ok(Server { address, is_encrypted, over, done, thread: Some(thread), wrong_tokens })
    }

    /// Returns the URL of its root, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", if self.is_encrypted { "https" } else { "http" }, self.address)
    }

    /// Returns the number of requests that have come with a wrong token.
    pub(crate) fn wrong_tokens(&self) -> Arc<Counter> {
        Arc::clone(&self.wrong_tokens)
    }

    /// Returns the address that it listens at.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.send_replace(true);
        match (self.done.recv_timeout(END_TIME), self.thread.take()) {
            (Err(RecvTimeoutError::Timeout), _) => {
                tracing::warn!("the HTTP server has not ended within {END_TIME:?}; the job ends without it");
            }
            (_, Some(thread)) => thread.join(),
            (_, None) => {}
        }
    }
}

/// Returns the maximum number of connections: [`CONNECTIONS`], or fewer if the process may have few file descriptors,
/// so that enough are left for the job.
fn most_connections() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(descriptors / DESCRIPTORS_FOR_ONE).unwrap_or(CONNECTIONS).clamp(1, CONNECTIONS)
}

/// Listens at the first of a host's addresses at which that is possible.
fn listen(runtime: &Runtime, places: &[SocketAddr]) -> io::Result<TcpListener> {
    let _inside = runtime.enter();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no such host");
    for place in places {
        let listen = || {
            let socket = if place.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            // Connections inherit the buffer sizes.
            socket.set_send_buffer_size(SOCKET_BYTES)?;
            socket.set_recv_buffer_size(SOCKET_BYTES)?;
            socket.bind(*place)?;
            socket.listen(BACKLOG)
        };
        match listen() {
            Ok(listener) => return Ok(listener),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Logs lines, at most one a minute.
#[derive(Default)]
struct RateLimitedLog {
    last: Option<Instant>,
}

impl RateLimitedLog {
    fn add(&mut self, line: &dyn fmt::Display) {
        if self.last.is_none_or(|last| last.elapsed() >= TOLD_EVERY) {
            self.last = Some(Instant::now());
            tracing::warn!("{line}");
        }
    }
}

/// Accepts connections until the server ends, then gives clients a moment to read the rest of their answers.
async fn serve(listener: TcpListener, shared: Arc<RequestContext>, most: usize, over: EndSignal) {
    let (connections, is_encrypted) = (Connections::new(most), shared.encryption().is_some());
    let (alive, open) = watch::channel(());
    let mut complaints = RateLimitedLog::default();
    {
        let mut ends = pin!(over.clone().wait());
        loop {
            thread::mark_iteration();
            let next = poll_fn(|context| {
                if ends.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                listener.poll_accept(context).map(Some)
            });
            match next.await {
                None => break,
                Some(Ok((stream, _))) => {
                    if Connections::make_room(&connections).await {
                        // If it fails, answers only come later.
                        let _ = stream.set_nodelay(true);
                        Connections::add(&connections, stream, &shared, &over, open.clone());
                    } else {
                        complaints
                            .add(&format_args!("HTTP: {most} connections are being answered; others are refused"));
                        if !is_encrypted {
                            refuse(stream);
                        }
                    }
                }
                Some(Err(why)) if is_of_one(&why) => {}
                Some(Err(why)) => {
                    let spared = Connections::close_one(&connections);
                    let rest = if spared { "; the connection that can best be spared is closed" } else { "" };
                    complaints.add(&format_args!("HTTP: connections cannot be accepted: {why}{rest}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
    drop((listener, open));
    // The remaining connections are dropped with the runtime.
    let _ = tokio::time::timeout(GRACE, alive.closed()).await;
}

/// Answers that there is no room for a connection.
fn refuse(stream: TcpStream) {
    let refusal = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    // A client that does not receive it sees its connection closed.
    let _ = stream.into_std().and_then(|mut stream| stream.write_all(refusal.as_bytes()));
}

/// `true` for the error of a connection that was gone before it was accepted.
fn is_of_one(why: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(why.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
