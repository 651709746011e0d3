//! A small HTTP server: answers questions about a running job, and keeps some answers open for events.
//!
//! It holds no knowledge of jobs: what it is asked it passes on to a function. A few threads answer; an answer that stays
//! open gets one of its own, and there are at most [`OPEN`] of those.
//!
//! [`get`] asks such a server from another process.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tiny_http::{Header, Method, Request, Response, StatusCode};

use crate::error::{Error, Result};

/// How many threads answer.
const ANSWERING: usize = 3;
/// How many answers may be open at a time.
const OPEN: usize = 64;
/// How long a thread waits for a question before it looks whether the server ends.
const WAIT: Duration = Duration::from_millis(200);

/// What somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The path, as `/status`.
    pub(crate) path: String,
    /// The parameters, in their order.
    pub(crate) parameters: Vec<(String, String)>,
    /// Whether a stream of events is wanted.
    pub(crate) events: bool,
}

impl Asked {
    fn new(url: &str, events: bool) -> Self {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let pairs = form_urlencoded::parse(query.as_bytes());
        let parameters = pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        Asked { path, parameters, events }
    }

    /// The value of a parameter, if it was given.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Writes events until it is over, or who reads is gone.
pub(crate) type Events = Box<dyn FnOnce(&mut dyn Write, &dyn Fn() -> bool) -> io::Result<()> + Send>;

/// An answer.
pub(crate) enum Reply {
    /// Complete: a status, what kind of text it is, and the text.
    Whole(u16, &'static str, String),
    /// Server-sent events, written by a function, which ends soon after the other one it gets says that all is over.
    Events(Events),
}

impl Reply {
    /// A line of text.
    pub(crate) fn text(status: u16, text: impl fmt::Display) -> Self {
        Reply::Whole(status, "text/plain; charset=utf-8", format!("{text}\n"))
    }

    /// A JSON document.
    pub(crate) fn json(status: u16, value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(text) => Reply::Whole(status, "application/json", text + "\n"),
            Err(why) => Reply::text(500, format_args!("the answer cannot be written: {why}")),
        }
    }
}

/// What answers.
pub(crate) type Answering = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// A server at work; it ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens at an address, `HOST:PORT`; port 0 is any free one.
    ///
    /// # Errors
    /// If nobody can listen there.
    pub(crate) fn start(address: &str, answering: &Answering) -> Result<Self> {
        let cannot = |why: &dyn fmt::Display| {
            let error = Error::new("cannot serve HTTP").at(address).because(why);
            error.help("is the port taken? `--http 127.0.0.1:0` takes a free one")
        };
        let server = tiny_http::Server::http(address).map_err(|why| cannot(&why))?;
        let Some(address) = server.server_addr().to_ip() else { return Err(cannot(&"it is no address of a network")) };
        let (server, ending, open) = (Arc::new(server), Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut own = Server { address, ending, threads: Vec::new() };
        for _ in 0..ANSWERING {
            let (server, ending, open) = (Arc::clone(&server), Arc::clone(&own.ending), Arc::clone(&open));
            let answering = Arc::clone(answering);
            let body = move || {
                while !ending.load(Ordering::Acquire) {
                    if let Ok(Some(request)) = server.recv_timeout(WAIT) {
                        answer(request, &answering, (&ending, &open));
                    }
                }
            };
            let thread = std::thread::Builder::new().name("http".into()).spawn(body);
            own.threads.push(thread.map_err(|why| cannot(&why))?);
        }
        Ok(own)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // One that panicked has nothing to add.
            let _ = thread.join();
        }
    }
}

/// Answers a request. That who asks is gone is nothing to tell anybody.
fn answer(request: Request, answering: &Answering, (ending, open): (&Arc<AtomicBool>, &Arc<AtomicUsize>)) {
    if !matches!(request.method(), Method::Get | Method::Head) {
        let _ = respond(request, 405, "text/plain", String::from("only GET is answered\n"));
        return;
    }
    let wants = |header: &Header| header.field.equiv("Accept") && header.value.as_str().contains("text/event-stream");
    let asked = Asked::new(request.url(), request.headers().iter().any(wants));
    match answering(&asked) {
        Reply::Whole(status, kind, text) => {
            let _ = respond(request, status, kind, text);
        }
        Reply::Events(events) => {
            if open.fetch_add(1, Ordering::AcqRel) >= OPEN {
                open.fetch_sub(1, Ordering::AcqRel);
                let _ = respond(request, 503, "text/plain", format!("{OPEN} streams of events are open already\n"));
                return;
            }
            let (ending, open) = (Arc::clone(ending), Arc::clone(open));
            let body = move || {
                let mut writer = request.into_writer();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
                            Transfer-Encoding: chunked\r\n\r\n";
                let mut chunks = Chunks { writer: &mut *writer, chunk: Vec::new() };
                let begun = chunks.writer.write_all(head.as_bytes()).and_then(|()| chunks.writer.flush());
                // Who reads may go at any time.
                let written = begun.and_then(|()| events(&mut chunks, &|| ending.load(Ordering::Acquire)));
                let _ = written.and_then(|()| chunks.end());
                open.fetch_sub(1, Ordering::AcqRel);
            };
            // Without a thread the connection is closed, which who asks sees.
            let _ = std::thread::Builder::new().name("http events".into()).spawn(body);
        }
    }
}

/// An answer in chunks (RFC 9112, 7.1): each flush ends one, so that who reads knows where the answer ends, though the
/// connection stays.
struct Chunks<'a> {
    writer: &'a mut dyn Write,
    chunk: Vec<u8>,
}

impl Chunks<'_> {
    fn end(mut self) -> io::Result<()> {
        self.flush()?;
        self.writer.write_all(b"0\r\n\r\n")?;
        self.writer.flush()
    }
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            write!(self.writer, "{:x}\r\n", self.chunk.len())?;
            self.writer.write_all(&self.chunk)?;
            self.writer.write_all(b"\r\n")?;
            self.chunk.clear();
        }
        self.writer.flush()
    }
}

fn respond(request: Request, status: u16, kind: &str, text: String) -> io::Result<()> {
    let mut response = Response::from_string(text).with_status_code(StatusCode(status));
    for (name, value) in [("Content-Type", kind), ("Cache-Control", "no-store")] {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    request.respond(response)
}

/// Asks a server for a path: the status and the text of its answer.
///
/// # Errors
/// If nobody answers there within `patience`.
pub(crate) fn get(address: &str, path: &str, patience: Duration) -> Result<(u16, String)> {
    let failed = |why: &dyn fmt::Display| Error::new("cannot ask").at(format!("http://{address}{path}")).because(why);
    let ask = || -> io::Result<String> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no such host");
        for place in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&place, patience) {
                Err(why) => last = why,
                Ok(mut stream) => {
                    stream.set_read_timeout(Some(patience))?;
                    stream.set_write_timeout(Some(patience))?;
                    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
                    let mut text = String::new();
                    stream.read_to_string(&mut text)?;
                    return Ok(text);
                }
            }
        }
        Err(last)
    };
    let text = ask().map_err(|why| failed(&why))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed(&"the answer is not HTTP"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| failed(&"the answer is not HTTP"))?, body.to_owned()))
}

/// A text as part of a URL's query.
pub(crate) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn server(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        let answering: Answering = Arc::new(answer);
        Server::start("127.0.0.1:0", &answering).unwrap()
    }

    #[test]
    fn a_question_comes_as_it_was_asked_and_the_answer_as_it_was_given() {
        let server = server(|asked| Reply::text(203, format_args!("{asked:?}")));
        let path = format!("/views/a%20b+c?key={}&x=", encoded("ü&=+ 1"));
        let (status, text) = get(&server.address().to_string(), &path, SOON).unwrap();
        let parameters = vec![("key".into(), "ü&=+ 1".into()), ("x".into(), String::new())];
        let expected = Asked { path: "/views/a b+c".into(), parameters, events: false };
        assert_eq!((status, text), (203, format!("{expected:?}\n")));
    }

    #[test]
    fn events_come_while_the_answer_is_open_and_end_with_the_server() {
        let server = server(|asked| {
            if !asked.events {
                return Reply::text(200, "no events");
            }
            Reply::Events(Box::new(|writer, is_over| {
                while !is_over() {
                    writer.write_all(b"data: 1\n\n")?;
                    writer.flush()?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                writer.write_all(b"data: over\n\n")
            }))
        });
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut start = [0; 160];
        stream.read_exact(&mut start).unwrap();
        let start = String::from_utf8_lossy(&start).into_owned();
        assert!(start.contains("text/event-stream") && start.contains("9\r\ndata: 1\n\n\r\n"), "{start}");
        drop(server);
        let mut rest = String::new();
        while !rest.ends_with("c\r\ndata: over\n\n\r\n0\r\n\r\n") {
            let mut piece = [0; 100];
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "{rest}");
            rest += std::str::from_utf8(&piece[..read]).unwrap();
        }
    }

    #[test]
    fn a_server_that_has_ended_answers_nobody() {
        let server = server(|_| Reply::text(200, ""));
        let address = server.address().to_string();
        assert_eq!(get(&address, "/", SOON).unwrap().0, 200);
        drop(server);
        assert!(get(&address, "/", Duration::from_millis(500)).is_err());
    }

    #[test]
    fn who_cannot_be_asked_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = get(&address, "/status", SOON).unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("/status"), "{error}");
        let other = server(|_| Reply::text(200, ""));
        let taken = other.address().to_string();
        let answering: Answering = Arc::new(|_: &Asked| Reply::text(200, ""));
        assert!(Server::start(&taken, &answering).err().unwrap().to_string().contains(&taken));
    }
}
