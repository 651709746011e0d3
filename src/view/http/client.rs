//! A small blocking HTTP client: one request, one answer, both bounded in time and size.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::limits::ANSWER_BYTES;
use crate::error::{Error, Result};

/// Sends a GET request; returns the status and the text of the answer.
///
/// # Errors
/// Fails if no server answers, the answer is not complete within `limit`, or it is too long.
pub(crate) fn get(address: &str, path: &str, limit: Duration) -> Result<(u16, String)> {
    let failed = |why: &dyn fmt::Display| Error::new("cannot ask").at(format!("http://{address}{path}")).because(why);
    let until = Instant::now() + limit;
    let text = ask(address, path, until, limit).map_err(|why| failed(&why))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed(&"the answer is not HTTP"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|head| head.split(' ').nth(1)?.parse().ok());
    Ok((status.ok_or_else(|| failed(&"the answer is not HTTP"))?, body.to_owned()))
}

/// Sends the request to the first address that accepts a connection, and reads the whole answer.
fn ask(address: &str, path: &str, until: Instant, limit: Duration) -> io::Result<String> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    let left = || Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no such host");
    for place in address.to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&place, left().ok_or_else(late)?) {
            Ok(stream) => stream,
            Err(why) => {
                last = why;
                continue;
            }
        };
        stream.set_write_timeout(Some(left().ok_or_else(late)?))?;
        // In one write: a server that answers before it has read all of the request closes the connection.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let (mut text, mut piece) = (Vec::new(), [0; 8 << 10]);
        loop {
            stream.set_read_timeout(Some(left().ok_or_else(late)?))?;
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => text.extend(&piece[..read]),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Err(late()),
                Err(why) => return Err(why),
            }
            if text.len() as u64 > ANSWER_BYTES {
                return Err(io::Error::other(format!("the answer is longer than {ANSWER_BYTES} bytes")));
            }
        }
        return String::from_utf8(text).map_err(|_| io::Error::other("the answer is not text"));
    }
    Err(last)
}

/// Encodes a text as part of a URL's query.
pub(crate) fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

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
