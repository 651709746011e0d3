//! HTTP: serves requests about a running job; answers may be streams of server-sent events.
//!
//! It knows nothing of jobs: a request ([`HttpRequest`]) is passed to a function that returns the answer
//! ([`HttpReply`]). The server is in [`server`]; [`client`] sends a request from another process. Without the cargo
//! feature `http` there is no server, and starting one fails with an error that says so.
//!
//! Invariant: **clients never harm the job**. Everything that a client can hold has a limit, listed in [`limits`]: a
//! client that reads slowly, sends half a request or opens connections without end costs the job no file descriptors or
//! memory beyond these limits, and no time at its end. Only requests that name the server by its address or by an
//! allowed host name are answered (see `host`), so that no foreign web page can read a job through a browser. With a
//! token only those that carry it are answered, and without one no other machine reaches the server (see `endpoint`).
#![cfg_attr(not(feature = "http"), expect(dead_code, reason = "without a server nobody asks"))]

mod access;
#[cfg(feature = "http")]
mod body;
#[cfg(feature = "cli")]
mod client;
#[cfg(feature = "http")]
mod connection;
#[cfg(feature = "http")]
mod end;
mod endpoint;
#[cfg(feature = "http")]
mod events;
#[cfg(feature = "http")]
mod gate;
#[cfg(feature = "http")]
mod gzip;
mod host;
mod limits;
#[cfg(feature = "http")]
mod respond;
#[cfg(feature = "http")]
mod server;
#[cfg(not(feature = "http"))]
#[path = "http/absent.rs"]
mod server;
#[cfg(feature = "http")]
mod socket;
#[cfg(test)]
#[cfg(feature = "http")]
mod tests;
#[cfg(feature = "https")]
mod tls;
#[cfg(all(feature = "http", not(feature = "https")))]
#[path = "http/tls_absent.rs"]
mod tls;
#[cfg(all(feature = "cli", feature = "https"))]
mod tls_client;
#[cfg(test)]
#[cfg(feature = "https")]
mod tls_tests;
#[cfg(feature = "http")]
mod tracker;

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use percent_encoding::percent_decode_str;

use crate::error::Result;

#[cfg(feature = "cli")]
pub(crate) use access::read_token;
#[cfg(feature = "cli")]
pub(crate) use client::{HttpTarget, encoded, get};
pub(crate) use endpoint::{Endpoint, TlsFiles};
pub(crate) use limits::PIECE;
#[cfg(not(feature = "http"))]
pub(crate) use server::AbsentServer as Server;
#[cfg(feature = "http")]
pub(crate) use server::Server;
#[cfg(all(feature = "http", not(feature = "https")))]
pub(crate) use tls::AbsentEncryption as Encryption;
#[cfg(feature = "https")]
pub(crate) use tls::Encryption;

/// A request: a path, its parameters, and the kinds of answers that the client accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpRequest {
    /// The path, such as `/status`.
    pub(crate) path: String,
    /// The parameters, in order.
    pub(crate) parameters: Vec<(String, String)>,
    /// `true` if a stream of events is accepted.
    pub(crate) events: bool,
    /// `true` if a page in HTML is accepted.
    pub(crate) html: bool,
    /// `true` if the client may know what the job holds: it has the server's token, or the server asks for none.
    pub(crate) trusted: bool,
}

impl HttpRequest {
    /// Parses the path and query of a URL.
    fn new(path: &str, query: &str, accepts: impl Fn(&str) -> bool) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        let parameters = pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        HttpRequest {
            path,
            parameters,
            events: accepts("text/event-stream"),
            html: accepts("text/html"),
            trusted: false,
        }
    }

    /// Returns the value of a parameter, if it was given.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A long text in pieces of about [`PIECE`] bytes, each made when the previous one is being sent.
pub(crate) type TextPieces = Box<dyn Iterator<Item = Result<Vec<u8>>> + Send>;

/// One server-sent event.
pub(crate) struct ServerEvent {
    /// Its text, framed: `event: NAME`, `data: …` and an empty line.
    pub(crate) pieces: TextPieces,
    /// `true` if it is the last one.
    pub(crate) last: bool,
}

/// A source of server-sent events.
pub(crate) trait Events: Send {
    /// Returns the next event; if there is none, the context's waker is woken when one arrives. With `progress` it may
    /// also return an event that reports the progress.
    fn poll(&mut self, context: &mut Context<'_>, progress: bool) -> Poll<ServerEvent>;
}

/// Builds the last event of a stream, which carries the reason for its end.
pub(crate) fn end_event(reason: &dyn fmt::Display) -> String {
    let reason = serde_json::json!({ "reason": reason.to_string() });
    format!("event: end\ndata: {reason}\n\n")
}

/// The kinds of answers that are made on demand. Each kind has its own limit on how many are sent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    /// A text about the job as a whole.
    Document,
    /// Rows of a view.
    Rows,
    /// A stream of events, which begins with rows of a view.
    Events,
}

/// Builds an answer.
pub(crate) type DeferredReply = Box<dyn FnOnce() -> HttpReply + Send>;

/// An answer.
pub(crate) enum HttpReply {
    /// A complete text: the status, the content type and the text.
    Whole(u16, &'static str, String),
    /// A text in pieces, with status 200: the content type and the pieces.
    Pieces(&'static str, TextPieces),
    /// Server-sent events.
    Events(Box<dyn Events>),
    /// An answer that may be large or take long to make: it is made on another thread, when its turn comes. The
    /// function must not return `Later` again.
    Later(AnswerKind, DeferredReply),
}

impl HttpReply {
    /// Returns a line of plain text.
    pub(crate) fn text(status: u16, text: impl fmt::Display) -> Self {
        HttpReply::Whole(status, "text/plain; charset=utf-8", format!("{text}\n"))
    }

    /// Returns a JSON document.
    pub(crate) fn json(status: u16, value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => HttpReply::Whole(status, "application/json", text + "\n"),
            Err(why) => HttpReply::text(500, format_args!("the answer cannot be written: {why}")),
        }
    }

    /// Returns an answer that is made on demand.
    pub(crate) fn later(kind: AnswerKind, make: impl FnOnce() -> HttpReply + Send + 'static) -> Self {
        HttpReply::Later(kind, Box::new(make))
    }
}

/// Handler of requests. It runs on the server's only thread, and so defers slow answers with [`HttpReply::Later`].
pub(crate) type RequestHandler = Arc<dyn Fn(&HttpRequest) -> HttpReply + Send + Sync>;

/// Test of requests that are passed to the handler without the server's token, as not trusted.
pub(crate) type PublicPaths = fn(&HttpRequest) -> bool;
