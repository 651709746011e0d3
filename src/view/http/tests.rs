//! Tests of the server's promises to its clients, and of its limits.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::limits::{
    CONNECTIONS, CONNECTIONS_FOR_A_STREAM, DESCRIPTORS_FOR_ONE, END_TIME, HEADER_BYTES, HEADER_LINES, ROWS,
    STREAM_BYTES, STREAMS, TOKEN_INTERVAL, WRITE_TIME, WRONG_TOKEN_TIME, WRONG_TOKENS,
};
use super::*;
use crate::error::Error;

pub(super) const SOON: Duration = Duration::from_secs(30);

/// Sends a request with a token.
fn get_with(address: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
    let (address, token) = (address.to_string(), token.map(str::to_owned));
    super::get(&HttpTarget { address, token, ..HttpTarget::default() }, path, SOON).unwrap()
}

fn get(address: &str, path: &str, limit: Duration) -> Result<(u16, String)> {
    super::get(&HttpTarget { address: address.to_owned(), ..HttpTarget::default() }, path, limit)
}

fn server(answer: impl Fn(&HttpRequest) -> HttpReply + Send + Sync + 'static) -> Server {
    let answering: RequestHandler = Arc::new(answer);
    let hosts = vec![String::from("jobs.example")];
    let endpoint = Endpoint { address: "127.0.0.1:0".into(), hosts, ..Endpoint::default() };
    Server::start(&endpoint, &answering, |_| false).unwrap()
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// Sends a text, and reads until the server closes the connection.
fn exchange(address: SocketAddr, text: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(text.as_bytes()).unwrap();
    rest(stream)
}

pub(super) fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset connection may have delivered its answer before.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads until a text has been received.
pub(super) fn until(stream: &mut TcpStream, text: &str) -> String {
    let (mut read, mut piece) = (String::new(), [0; 4096]);
    while !read.contains(text) {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the connection is closed after: {read}");
        read += &String::from_utf8_lossy(&piece[..count]);
    }
    read
}

/// A source of events that the test sends.
pub(super) struct Given(pub(super) Receiver<ServerEvent>, pub(super) Arc<std::sync::Mutex<Option<std::task::Waker>>>);

impl Events for Given {
    fn poll(&mut self, context: &mut Context<'_>, progress: bool) -> Poll<ServerEvent> {
        *self.1.lock().unwrap() = Some(context.waker().clone());
        match self.0.try_recv() {
            Ok(event) => Poll::Ready(event),
            Err(_) if progress => Poll::Ready(event("data: progress\n\n")),
            Err(_) => Poll::Pending,
        }
    }
}

pub(super) fn event(text: impl Into<String>) -> ServerEvent {
    ServerEvent { pieces: Box::new(std::iter::once(Ok(text.into().into_bytes()))), last: false }
}

/// Returns the same piece `count` times.
pub(super) fn repeated(piece: usize, count: usize) -> TextPieces {
    Box::new(std::iter::repeat_n("~".repeat(piece), count).map(|piece| Ok(piece.into_bytes())))
}

#[test]
fn a_question_comes_as_it_was_asked_and_the_answer_as_it_was_given() {
    let server = server(|asked| HttpReply::text(203, format_args!("{asked:?}")));
    let path = format!("/views/a%20b+c?key={}&x=", encoded("ü&=+ 1"));
    let (status, text) = get(&server.address().to_string(), &path, SOON).unwrap();
    let parameters = vec![("key".into(), "ü&=+ 1".into()), ("x".into(), String::new())];
    let expected = HttpRequest { path: "/views/a b+c".into(), parameters, events: false, html: false, trusted: true };
    assert_eq!((status, text), (203, format!("{expected:?}\n")));
}

#[test]
fn requests_that_ask_for_something_else_are_refused() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let server = server(|_| {
        ASKED.store(true, Ordering::Relaxed);
        HttpReply::text(200, "secret")
    });
    let address = server.address();
    let port = address.port();
    let long = "x".repeat(HEADER_BYTES);
    let many = "A: b\r\n".repeat(HEADER_LINES + 1);
    for (request, status) in [
        (String::from("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), 421),
        (format!("GET / HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n"), 421),
        (format!("GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"), 421),
        (String::from("GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n"), 421),
        (String::from("GET / HTTP/1.1\r\n\r\n"), 400),
        (String::from("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"), 400),
        (String::from("POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), 405),
        (String::from("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"), 405),
        (String::from("GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"), 413),
        (String::from("GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"), 413),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), 431),
        (String::from("nonsense\r\n\r\n"), 400),
    ] {
        let answer = exchange(address, &request);
        let shown: String = request.chars().take(80).collect();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) || answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{shown}: {answer}"
        );
        assert!(!answer.contains("secret"), "{shown}: {answer}");
        if status == 405 {
            assert!(answer.to_ascii_lowercase().contains("allow: get, head\r\n"), "{answer}");
        }
        if status == 421 {
            assert!(answer.contains("not known as `evil.example") && answer.contains("--http-host"), "{answer}");
        }
    }
    assert!(!ASKED.load(Ordering::Relaxed), "a refused request was passed on");
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", "jobs.example:443"] {
        let answer = exchange(address, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nsecret\n"), "{host}: {answer}");
    }
    let answer = exchange(address, "GET / HTTP/1.0\r\n\r\n");
    assert!(answer.contains("secret"), "{answer}");
    let answer = exchange(address, "HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("content-length: 7\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

/// Each request for what is not public carries the one token; refusals tell nothing of it, nor of what was asked for.
#[test]
fn without_the_token_only_what_is_public_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    let answering: RequestHandler =
        Arc::new(|asked: &HttpRequest| HttpReply::text(200, if asked.trusted { "a secret" } else { "nothing" }));
    let endpoint = Endpoint { address: "127.0.0.1:0".into(), token_file: Some(file), ..Endpoint::default() };
    let server = Server::start(&endpoint, &answering, |asked| asked.path == "/public").unwrap();
    let address = server.address();
    let ask = |path: &str, headers: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        exchange(address, &request)
    };
    let good = "Authorization: Bearer correct-horse-battery\r\n";
    for (path, headers, answer) in [
        ("/", good, "a secret"),
        ("/public", good, "a secret"),
        ("/", "authorization: bearer correct-horse-battery\r\n", "a secret"),
        ("/public", "", "nothing"),
        ("/public", "Authorization: Bearer correct-horse-batterx\r\n", "nothing"),
    ] {
        let said = ask(path, headers);
        assert!(said.starts_with("HTTP/1.1 200 ") && said.contains(answer), "{path} {headers}: {said}");
    }
    for headers in [
        String::new(),
        String::from("Authorization: Bearer correct-horse-batterx\r\n"),
        String::from("Authorization: Bearer correct-horse-batter\r\n"),
        String::from("Authorization: Bearer correct-horse-batteryy\r\n"),
        String::from("Authorization: Basic correct-horse-battery\r\n"),
        String::from("Authorization: Bearer \r\n"),
        String::from("Cookie: token=correct-horse-battery\r\n"),
        format!("Authorization: Bearer x\r\n{good}"),
        format!("{good}Authorization: Bearer x\r\n"),
    ] {
        let paths = ["/", "/nothing", "/public/", "//public", "/%2e/public", "/?token=correct-horse-battery"];
        // At once: who has a wrong token waits.
        let asked = std::thread::scope(|scope| {
            let (ask, headers) = (&ask, &headers);
            let asked = paths.map(|path| (path, scope.spawn(move || ask(path, headers))));
            asked.map(|(path, answer)| (path, answer.join().unwrap()))
        });
        for (path, said) in asked {
            let challenge = "www-authenticate: Bearer realm=\"tidegate\"\r\n";
            assert!(said.starts_with("HTTP/1.1 401 ") && said.contains(challenge), "{path} {headers}: {said}");
            assert!(!said.contains("secret") && !said.contains("horse"), "{path} {headers}: {said}");
            assert!(said.contains("--http-token-file"), "{said}");
        }
    }
    // A server without a token does not look for one.
    let open = self::server(|asked| HttpReply::text(200, asked.trusted));
    let said =
        exchange(open.address(), &format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{good}\r\n"));
    assert!(said.ends_with("\r\n\r\ntrue\n"), "{said}");
    assert_eq!(get_with(server.address(), "/", Some("correct-horse-battery")).0, 200);
    assert_eq!(get(&server.address().to_string(), "/", SOON).unwrap().0, 401);
}

/// Starts a server with a token in a file.
fn server_with_token(file: &std::path::Path) -> Server {
    let answering: RequestHandler = Arc::new(|_: &HttpRequest| HttpReply::text(200, "a secret"));
    let endpoint = Endpoint { address: "127.0.0.1:0".into(), token_file: Some(file.into()), ..Endpoint::default() };
    Server::start(&endpoint, &answering, |asked| asked.path == "/public").unwrap()
}

#[test]
fn another_token_in_the_file_is_the_token_and_a_file_without_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery\n").unwrap();
    let server = server_with_token(&file);
    let status = |token: &str| get_with(server.address(), "/", Some(token)).0;
    let until = |token: &str, expected: u16| {
        let begun = Instant::now();
        while status(token) != expected {
            assert!(begun.elapsed() < Duration::from_secs(60), "{token} is not answered with {expected}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert_eq!(status("correct-horse-battery"), 200);
    std::fs::write(&file, "another-horse-battery\n").unwrap();
    until("another-horse-battery", 200);
    assert_eq!(status("correct-horse-battery"), 401);
    // Neither of these is a token, so the last one stays: as secrets are written and renamed, there may be none for a while.
    for nothing in ["", "short\n", "two words that are long"] {
        std::fs::write(&file, nothing).unwrap();
        std::thread::sleep(TOKEN_INTERVAL + Duration::from_millis(50));
        assert_eq!((status("another-horse-battery"), status(nothing.trim())), (200, 401), "{nothing}");
    }
    std::fs::remove_file(&file).unwrap();
    std::thread::sleep(TOKEN_INTERVAL + Duration::from_millis(50));
    assert_eq!(status("another-horse-battery"), 200);
    std::fs::write(&file, "correct-horse-battery").unwrap();
    until("correct-horse-battery", 200);
}

#[test]
fn guesses_are_counted_wait_and_end_their_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse-battery").unwrap();
    let server = server_with_token(&file);
    let wrong = || server.wrong_tokens().get();
    // Who has no token is refused at once, and has guessed nothing.
    let none = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let begun = Instant::now();
    let said =
        exchange(server.address(), &(none.repeat(20) + &none.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")));
    assert_eq!((said.matches("HTTP/1.1 401 ").count(), wrong()), (21, 0), "{said}");
    // Also where no token is needed: the answer might tell more to who has it.
    let guess = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer incorrect-horse-battery\r\n\r\n")
    };
    let without = begun.elapsed();
    let begun = Instant::now();
    let said = exchange(server.address(), &[guess("/"), guess("/public"), guess("/"), guess("/"), guess("/")].concat());
    let took = begun.elapsed();
    assert_eq!((said.matches("HTTP/1.1 401 ").count(), said.matches("HTTP/1.1 200 ").count()), (2, 1), "{said}");
    assert!(said.matches("connection: close\r\n").count() == 1 && wrong() == u64::from(WRONG_TOKENS), "{said}");
    let least = WRONG_TOKEN_TIME * (1..=WRONG_TOKENS).sum::<u32>();
    assert!(took >= least, "{took:?} for {WRONG_TOKENS} guesses, and {without:?} for 21 requests without one");
    // Who guesses keeps nobody from being answered.
    let mut held = connect(server.address());
    held.write_all(guess("/").as_bytes()).unwrap();
    assert_eq!(get_with(server.address(), "/", Some("correct-horse-battery")).0, 200);
}

#[test]
fn requests_that_come_at_once_on_one_connection_are_all_answered_in_order() {
    let server = server(|asked| {
        let path = asked.path.clone();
        HttpReply::later(AnswerKind::Document, move || HttpReply::text(200, path))
    });
    for _ in 0..20 {
        let mut burst: String = (0..10).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
        burst.push_str("GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(server.address(), &burst);
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 11, "{answer}");
        let places: Vec<_> = (0..10).map(|n| answer.find(&format!("\r\n\r\n/{n}\n")).unwrap()).collect();
        assert!(places.is_sorted() && answer.ends_with("/last\n"), "{answer}");
    }
}

#[test]
fn a_long_answer_is_made_as_it_is_taken() {
    static MADE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    const PIECES: usize = 400;
    let server = server(|asked| {
        let fails = asked.parameter("fails").is_some();
        HttpReply::later(AnswerKind::Rows, move || {
            let pieces = (0..PIECES).map(move |n| {
                MADE.fetch_add(1, Ordering::Relaxed);
                if fails && n == 300 { Err(Error::new("a row cannot be written")) } else { Ok(vec![b'~'; PIECE]) }
            });
            HttpReply::Pieces("text/plain", Box::new(pieces))
        })
    });
    let mut stream = connect(server.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let start = until(&mut stream, "\r\n\r\n");
    let mut before = 0;
    // For a reader that waits, only as much of the answer is made as the system and the server buffer.
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let made = MADE.load(Ordering::Relaxed);
        if made == before {
            break;
        }
        before = made;
    }
    assert!(before < PIECES / 2, "{before} of {PIECES} pieces were made for a reader that took none");
    let answer = start + &rest(stream);
    assert_eq!((answer.matches('~').count(), answer.ends_with("0\r\n\r\n")), (PIECES * PIECE, true));
    // An answer that fails in the middle is visibly cut short.
    let answer = exchange(server.address(), "GET /?fails HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.ends_with("0\r\n\r\n"), "it has an end");
}

#[test]
fn events_come_while_the_answer_is_open_and_end_with_the_server() {
    let server = server(|asked| {
        if !asked.events {
            return HttpReply::text(200, "no events");
        }
        HttpReply::later(AnswerKind::Events, || {
            let (sender, given) = channel();
            sender.send(event("data: 1\n\n")).unwrap();
            sender.send(event("data: 2\n\n")).unwrap();
            HttpReply::Events(Box::new(Given(given, Arc::default())))
        })
    });
    let mut stream = connect(server.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html, text/event-stream;q=1\r\n\r\n").unwrap();
    let start = until(&mut stream, "9\r\ndata: 2\n\n\r\n");
    assert!(start.contains("text/event-stream") && start.contains("9\r\ndata: 1\n\n\r\n"), "{start}");
    until(&mut stream, "data: progress\n\n");
    drop(server);
    let end = rest(stream);
    assert!(end.ends_with("event: end\ndata: {\"reason\":\"the job is over\"}\n\n\r\n0\r\n\r\n"), "{end}");
}

#[test]
fn a_slow_reader_of_events_is_cut_off_and_told() {
    let (sender, given) = channel();
    let (given, waker) = (std::sync::Mutex::new(Some(given)), Arc::default());
    let own: Arc<std::sync::Mutex<Option<std::task::Waker>>> = Arc::clone(&waker);
    let server = server(move |_| {
        let given = Given(given.lock().unwrap().take().unwrap(), Arc::clone(&own));
        HttpReply::later(AnswerKind::Events, || HttpReply::Events(Box::new(given)))
    });
    let mut stream = connect(server.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    until(&mut stream, "\r\n\r\n");
    // The reader takes nothing, while far more is sent than may wait for it; once it is cut off nobody takes any more.
    let mut sent = 0;
    let begun = Instant::now();
    while sender.send(event(format!("data: {}\n\n", "x".repeat(10_000)))).is_ok() {
        sent += 1;
        if let Some(waker) = waker.lock().unwrap().take() {
            waker.wake();
        }
        std::thread::sleep(Duration::from_micros(200));
        assert!(begun.elapsed() < SOON, "after {sent} events it is not cut off");
    }
    // It gets the events that waited, in order and whole, and the reason for the end.
    let text = rest(stream);
    assert!(text.contains("event: end\n") && text.contains("the reader is too slow: more than"), "it was not told");
    let got = text.matches("data: x").count();
    assert!(got * 10_000 >= STREAM_BYTES / 2 && got < sent, "{got} of {sent}");
}

#[test]
fn a_long_event_is_sent_to_a_reader_that_takes_it() {
    let server = server(|_| {
        HttpReply::later(AnswerKind::Events, || {
            let (sender, given) = channel();
            for _ in 0..3 {
                sender.send(ServerEvent { pieces: repeated(PIECE, 4 * STREAM_BYTES / PIECE), last: false }).unwrap();
                sender.send(event("data: short\n\n")).unwrap();
            }
            sender.send(ServerEvent { last: true, ..event("data: last\n\n") }).unwrap();
            HttpReply::Events(Box::new(Given(given, Arc::default())))
        })
    });
    let answer = exchange(server.address(), "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.matches("data: short").count(), 3);
    assert!(answer.matches('~').count() == 12 * STREAM_BYTES && answer.ends_with("data: last\n\n\r\n0\r\n\r\n"));
}

#[test]
fn streams_and_long_answers_have_a_limit_and_others_are_still_answered() {
    let server = server(|asked| match asked.path.as_str() {
        "/events" => HttpReply::later(AnswerKind::Events, || {
            let (sender, given) = channel::<ServerEvent>();
            std::mem::forget(sender);
            HttpReply::Events(Box::new(Given(given, Arc::default())))
        }),
        "/rows" => HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", repeated(PIECE, 1_000))),
        _ => HttpReply::text(200, "ok"),
    });
    let address = server.address();
    let ask = |path: &str| {
        let mut stream = connect(address);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let head = until(&mut stream, "\r\n\r\n");
        (head[9..12].parse::<u16>().unwrap(), stream)
    };
    let streams: Vec<_> = (0..100).map(|_| ask("/events")).collect();
    let open = streams.iter().filter(|(status, _)| *status == 200).count();
    let refused = streams.iter().filter(|(status, _)| *status == 503).count();
    let most = STREAMS.min(server_connections() / CONNECTIONS_FOR_A_STREAM);
    assert_eq!((open, refused), (most.min(100), 100 - most.min(100)));
    let rows: Vec<_> = (0..ROWS).map(|_| ask("/rows")).collect();
    assert!(rows.iter().all(|(status, _)| *status == 200));
    assert_eq!(ask("/rows").0, 503, "it waits for its turn, and is told");
    let begun = Instant::now();
    assert_eq!(ask("/healthz").0, 200);
    println!("{open} streams, {ROWS} long answers, and another one after {:?}", begun.elapsed());
    // Clients that are gone make room.
    drop((streams, rows));
    let begun = Instant::now();
    while ask("/events").0 != 200 || ask("/rows").0 != 200 {
        assert!(begun.elapsed() < SOON, "what was open is not given back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn server_connections() -> usize {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    CONNECTIONS.min((soft / DESCRIPTORS_FOR_ONE) as usize)
}

#[test]
fn connections_that_wait_make_room_for_new_ones() {
    let server = server(|_| HttpReply::text(200, "ok"));
    let address = server.address();
    let most = server_connections();
    let mut idle: Vec<_> = (0..most).map(|_| connect(address)).collect();
    for half in idle.iter_mut().skip(most / 2) {
        half.write_all(b"GET / HTTP/1.1\r\nHost: local").unwrap();
    }
    for _ in 0..20 {
        assert_eq!(get(&address.to_string(), "/", SOON).unwrap(), (200, String::from("ok\n")));
    }
    // The oldest ones were closed to make room.
    assert_eq!(idle[0].read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn the_server_ends_while_clients_do_what_they_like() {
    let server =
        server(|_| HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", repeated(PIECE, 10_000))));
    let address = server.address();
    let mut clients: Vec<_> = (0..100).map(|_| connect(address)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        match n % 4 {
            0 => client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap(),
            1 => client.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap(),
            2 => client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n").unwrap(),
            _ => {}
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    drop(server);
    let took = begun.elapsed();
    println!("the server ended after {took:?}");
    assert!(took < END_TIME + Duration::from_millis(500), "{took:?}");
    assert!(get(&address.to_string(), "/", Duration::from_millis(500)).is_err());
}

/// The answer takes longer to make than the job waits for the server.
#[test]
fn the_server_ends_while_an_answer_is_being_made() {
    let server = server(|_| {
        HttpReply::later(AnswerKind::Rows, || {
            std::thread::sleep(Duration::from_secs(20));
            HttpReply::text(200, "late")
        })
    });
    let mut client = connect(server.address());
    client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_answer_that_panics_costs_one_client_its_answer() {
    let server = server(|asked| {
        let path = asked.path.clone();
        match path.as_str() {
            "/now" => panic!("an answer panics, as the test has it"),
            "/later" => HttpReply::later(AnswerKind::Rows, || panic!("an answer panics, as the test has it")),
            "/pieces" => HttpReply::later(AnswerKind::Rows, || {
                let pieces =
                    (0..100).map(|n| if n < 50 { Ok(vec![b'x'; PIECE]) } else { panic!("as the test has it") });
                HttpReply::Pieces("text/plain", Box::new(pieces))
            }),
            _ => HttpReply::text(200, "ok"),
        }
    });
    for _ in 0..10 {
        for (path, starts) in [("/now", ""), ("/later", "HTTP/1.1 500"), ("/pieces", "HTTP/1.1 200")] {
            let answer = exchange(
                server.address(),
                &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
            );
            assert!(answer.starts_with(starts) && (!starts.is_empty() || answer.is_empty()), "{path}: {answer}");
        }
        assert_eq!(get(&server.address().to_string(), "/", SOON).unwrap().0, 200);
    }
}

#[test]
fn a_reader_that_takes_nothing_is_closed_after_the_write_time() {
    let server =
        server(|_| HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", repeated(PIECE, 1_000))));
    let mut stream = connect(server.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    until(&mut stream, "\r\n\r\n");
    std::thread::sleep(WRITE_TIME + Duration::from_secs(2));
    let answer = rest(stream);
    assert!(!answer.ends_with("0\r\n\r\n") && answer.len() < 500 * PIECE, "it was sent whole");
}

#[test]
fn a_taken_port_is_named() {
    let other = server(|_| HttpReply::text(200, ""));
    let address = other.address().to_string();
    let answering: RequestHandler = Arc::new(|_: &HttpRequest| HttpReply::text(200, ""));
    let taken = Endpoint { address: address.clone(), ..Endpoint::default() };
    let error = Server::start(&taken, &answering, |_| false).err().unwrap().to_string();
    assert!(error.contains(&address) && error.contains("port taken"), "{error}");
    let unknown = Endpoint { address: "127.0.0.1".into(), ..Endpoint::default() };
    assert!(Server::start(&unknown, &answering, |_| false).is_err());
}

/// Sends a request on an open connection; returns the head of the answer, and its body without the framing of pieces.
pub(super) fn ask_raw(mut stream: impl Read + Write, path: &str, headers: &str) -> (String, Vec<u8>) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").unwrap();
    stream.flush().unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_ascii_lowercase();
    let mut rest = &answer[end..];
    if !head.contains("transfer-encoding: chunked") {
        return (head, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        body.extend(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 4 + length..];
    }
    (head, body)
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut text).unwrap();
    text
}

/// Clients that accept gzip get it for all that is long enough, and read what others read; events are never compressed.
#[test]
fn long_answers_are_compressed_for_those_who_accept_it() {
    let server = server(|asked| {
        let size: usize = asked.parameter("size").map_or(0, |size| size.parse().unwrap());
        match asked.path.as_str() {
            "/now" => HttpReply::Whole(200, "text/plain", "abcdefgh".repeat(size / 8)),
            "/document" => HttpReply::later(AnswerKind::Document, move || {
                HttpReply::Whole(503, "text/plain", "abcdefgh".repeat(size / 8))
            }),
            "/rows" => HttpReply::later(AnswerKind::Rows, move || {
                HttpReply::Pieces("text/plain", repeated(PIECE, size / PIECE))
            }),
            _ => HttpReply::later(AnswerKind::Events, move || {
                let (sender, given) = channel();
                sender.send(ServerEvent { last: true, ..event(format!("data: {}\n\n", "x".repeat(size))) }).unwrap();
                HttpReply::Events(Box::new(Given(given, Arc::default())))
            }),
        }
    });
    for (path, is_compressed) in [
        ("/now?size=0", false),
        ("/now?size=1016", false),
        ("/now?size=1024", true),
        ("/document?size=1016", false),
        ("/document?size=30000", true),
        ("/document?size=3000000", true),
        ("/rows?size=0", false),
        ("/rows?size=65536", true),
        ("/rows?size=6553600", true),
        ("/events?size=30000", false),
    ] {
        let (head, plain) = ask_raw(connect(server.address()), path, "");
        assert!(!head.contains("content-encoding"), "{path}: {head}");
        let (refusing, same) = ask_raw(connect(server.address()), path, "Accept-Encoding: br, gzip;q=0\r\n");
        assert!(!refusing.contains("content-encoding") && same == plain, "{path}: {refusing}");
        let (zipped, bytes) = ask_raw(connect(server.address()), path, "Accept-Encoding: gzip, deflate, br\r\n");
        assert_eq!(zipped.contains("content-encoding: gzip\r\n"), is_compressed, "{path}: {zipped}");
        assert!(zipped.contains("vary: accept-encoding\r\n"), "{path}: {zipped}");
        assert_eq!(head.lines().next(), zipped.lines().next(), "{path}");
        if is_compressed {
            assert!(bytes.len() * 5 < plain.len(), "{path}: {} of {} bytes", bytes.len(), plain.len());
            assert!(unzipped(&bytes) == plain, "{path} says something else");
        } else {
            assert!(bytes == plain, "{path}");
        }
    }
}

/// Text that does not get smaller, in pieces, and the number of those that were made.
fn noise(pieces: usize, made: &Arc<std::sync::atomic::AtomicUsize>) -> TextPieces {
    let (mut random, made) = (fastrand::Rng::with_seed(7), Arc::clone(made));
    Box::new((0..pieces).map(move |_| {
        made.fetch_add(1, Ordering::Relaxed);
        Ok(std::iter::repeat_with(|| random.u8(..)).take(PIECE).collect())
    }))
}

#[test]
fn a_long_answer_is_compressed_as_it_is_taken() {
    const PIECES: usize = 400;
    let made = Arc::<std::sync::atomic::AtomicUsize>::default();
    let own = Arc::clone(&made);
    let server = server(move |_| {
        let pieces = noise(PIECES, &own);
        HttpReply::later(AnswerKind::Rows, || HttpReply::Pieces("text/plain", pieces))
    });
    let mut stream = connect(server.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n").unwrap();
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = made.load(Ordering::Relaxed);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    assert!(before < PIECES / 2, "{before} of {PIECES} pieces were made for a reader that took none");
    drop(stream);
    let (_, body) = ask_raw(connect(server.address()), "/", "Accept-Encoding: gzip\r\n");
    assert_eq!(unzipped(&body).len(), PIECES * PIECE);
}

#[test]
fn a_build_without_https_says_so() {
    let error = access::without_https(std::path::Path::new("cert.pem"));
    let said = error.to_string();
    assert_eq!(error.exit_code(), 2);
    assert!(
        said.contains("cargo feature `https`") && said.contains("--http-cert") && said.contains("cert.pem"),
        "{said}"
    );
}
