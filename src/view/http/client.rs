//! A small blocking HTTP client: one request, one answer, both bounded in time and size.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::limits::ANSWER_BYTES;
#[cfg(feature = "https")]
use super::tls_client::{encrypted, trusting};
use crate::error::{Error, Result};

/// A server to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpTarget {
    /// `HOST:PORT`.
    pub(crate) address: String,
    /// `true` if it serves HTTPS.
    pub(crate) is_encrypted: bool,
    /// File with the certificates that its own has to rest upon, for HTTPS.
    pub(crate) ca_file: Option<PathBuf>,
    /// The token that it asks for.
    pub(crate) token: Option<String>,
}

impl HttpTarget {
    /// Returns the URL of a path.
    fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.is_encrypted { "https" } else { "http" }, self.address)
    }
}

/// A connection whose reads and writes end in time.
#[derive(Debug)]
struct TimedStream {
    stream: TcpStream,
    until: Instant,
    limit: Duration,
}

impl TimedStream {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late(self.limit)) } else { Ok(Some(left)) }
    }

    fn outcome<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|why| if why.kind() == io::ErrorKind::WouldBlock { late(self.limit) } else { why })
    }
}

impl Read for TimedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let read = self.stream.read(buffer);
        self.outcome(read)
    }
}

impl Write for TimedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let written = self.stream.write(bytes);
        self.outcome(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))
}

/// Sends a GET request; returns the status and the text of the answer.
///
/// # Errors
/// Fails if no server answers, the answer is not complete within `limit`, or it is too long; for HTTPS also if the
/// server's certificate is not trusted, or this program was built without it.
pub(crate) fn get(target: &HttpTarget, path: &str, limit: Duration) -> Result<(u16, String)> {
    let failed = |why: &dyn fmt::Display| Error::new("cannot ask").at(target.url(path)).because(why);
    let request = request(target, path);
    let text = if target.is_encrypted {
        #[cfg(not(feature = "https"))]
        return Err(Error::usage("cannot ask over HTTPS")
            .because("this program was built without it")
            .help("build it with the cargo feature `https`"));
        #[cfg(feature = "https")]
        {
            let trust = trusting(target.ca_file.as_deref())?;
            let host = target.address.rsplit_once(':').map_or(&*target.address, |(host, _)| host);
            connect(&target.address, limit).and_then(|stream| exchange(encrypted(&trust, host, stream)?, &request))
        }
    } else {
        connect(&target.address, limit).and_then(|stream| exchange(stream, &request))
    };
    let text = text.map_err(|why| failed(&why))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed(&"the answer is not HTTP"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|head| head.split(' ').nth(1)?.parse().ok());
    Ok((status.ok_or_else(|| failed(&"the answer is not HTTP"))?, body.to_owned()))
}

fn request(target: &HttpTarget, path: &str) -> String {
    let token = target.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{token}Connection: close\r\n\r\n", target.address)
}

/// Connects to the first address of a host that accepts a connection.
fn connect(address: &str, limit: Duration) -> io::Result<TimedStream> {
    let until = Instant::now() + limit;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no such host");
    for place in address.to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late(limit));
        }
        match TcpStream::connect_timeout(&place, left) {
            Ok(stream) => return Ok(TimedStream { stream, until, limit }),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Sends the request, and reads the whole answer.
fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
    // In one write: a server that answers before it has read all of the request closes the connection.
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let (mut text, mut piece) = (Vec::new(), [0; 8 << 10]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => text.extend(&piece[..read]),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
        if text.len() as u64 > ANSWER_BYTES {
            return Err(io::Error::other(format!("the answer is longer than {ANSWER_BYTES} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| io::Error::other("the answer is not text"))
}

/// Encodes a text as part of a URL's query.
pub(crate) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn get(address: &str, path: &str, limit: Duration) -> Result<(u16, String)> {
        super::get(&HttpTarget { address: address.to_owned(), ..HttpTarget::default() }, path, limit)
    }

    /// Serves one connection: sends a text `times` times, or until the client closes the connection.
    fn server(text: &'static str, times: usize, pause: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1 << 10]).unwrap();
            for _ in 0..times {
                if stream.write_all(text.as_bytes()).is_err() {
                    return;
                }
                std::thread::sleep(pause);
            }
        });
        address
    }

    #[test]
    fn an_answer_that_never_ends_is_not_waited_for() {
        let address = server("HTTP/1.0 200 OK\r\n\r\n", 10_000, Duration::from_millis(20));
        let begun = Instant::now();
        let error = get(&address, "/", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("no answer within 300ms") && error.contains(&address), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[test]
    fn an_answer_without_end_is_not_kept() {
        let long: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
        let address = server(long, 200, Duration::ZERO);
        let error = get(&address, "/", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("longer than 67108864 bytes"), "{error}");
    }

    #[test]
    fn what_is_no_answer_is_refused_and_who_cannot_be_asked_is_named() {
        for (text, why) in [("hello", "not HTTP"), ("SSH-2.0 200 x\r\n\r\n", "not HTTP"), ("", "not HTTP")] {
            let error = get(&server(text, 1, Duration::ZERO), "/", Duration::from_secs(5)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = get(&address, "/status", Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains(&address) && error.contains("/status"), "{error}");
    }
}
