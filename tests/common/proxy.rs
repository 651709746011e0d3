//! A proxy between clients and a broker that can hold back one Kafka request. It parses only the length and the API key
//! of requests. A broker started with `--proxied` advertises the proxy's address.
//!
//! A request that is held is removed from its connection, which breaks. It reaches the broker only when the test
//! delivers it, over a connection of its own, like a packet that was delayed in a network.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ports::free_port;

/// API keys of requests.
pub const PRODUCE: i16 = 0;
pub const END_TXN: i16 = 26;

/// Maximum wait for a request, or for a broker's answer to one.
const PATIENCE: Duration = Duration::from_secs(60);

/// A listening proxy. It ends with the process.
pub struct Proxy {
    /// Address for clients.
    pub servers: String,
    port: u16,
    shared: Arc<ProxyState>,
}

struct ProxyState {
    /// The port of the broker.
    broker: AtomicU16,
    /// `true` while the network is down: no connection is made.
    is_down: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    /// API key of the next request to hold.
    wanted: Mutex<Option<i16>>,
    held: Mutex<Option<Vec<u8>>>,
}

impl Proxy {
    /// Listens at a free port, for a broker that is to listen at another.
    pub fn listen() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(ProxyState {
            broker: AtomicU16::new(free_port()),
            is_down: AtomicBool::new(false),
            connections: Mutex::default(),
            wanted: Mutex::default(),
            held: Mutex::default(),
        });
        let there = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                there.pass_on(client);
            }
        });
        Proxy { servers: format!("127.0.0.1:{port}"), port, shared }
    }

    /// Returns the ports of a broker behind the proxy, in the format of the broker's script.
    pub fn ports(&self) -> String {
        format!("{}:{}", self.shared.broker.load(Ordering::SeqCst), self.port)
    }

    /// Returns the address of the broker itself, past the proxy.
    pub fn bypass(&self) -> String {
        format!("127.0.0.1:{}", self.shared.broker.load(Ordering::SeqCst))
    }

    /// Breaks all connections; makes no more until the network is up again.
    pub fn go_down(&self) {
        self.shared.is_down.store(true, Ordering::SeqCst);
        for link in self.shared.connections.lock().unwrap().drain(..) {
            let _ = link.shutdown(Shutdown::Both);
        }
    }

    pub fn go_up(&self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
    }

    /// Holds the next request of this API, and breaks its connection.
    pub fn hold(&self, api: i16) {
        *self.shared.held.lock().unwrap() = None;
        *self.shared.wanted.lock().unwrap() = Some(api);
    }

    /// Returns `true` if a request is held.
    pub fn holds(&self) -> bool {
        self.shared.held.lock().unwrap().is_some()
    }

    /// Waits until a request is held.
    pub fn until_held(&self) {
        let begun = Instant::now();
        while !self.holds() {
            assert!(begun.elapsed() < PATIENCE, "no such request has come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Delivers the held request; returns the broker's answer, without the length.
    pub fn deliver(&self) -> Vec<u8> {
        let request = self.shared.held.lock().unwrap().take().expect("a request is held");
        let mut broker = self.shared.connect().unwrap();
        broker.set_read_timeout(Some(PATIENCE)).unwrap();
        broker.write_all(&request).unwrap();
        frame(&mut broker).unwrap().split_off(4)
    }
}

impl ProxyState {
    fn connect(&self) -> std::io::Result<TcpStream> {
        let broker = TcpStream::connect(("127.0.0.1", self.broker.load(Ordering::SeqCst)))?;
        broker.set_nodelay(true)?;
        Ok(broker)
    }

    fn pass_on(self: &Arc<Self>, client: TcpStream) {
        let Ok(broker) = self.connect() else { return };
        client.set_nodelay(true).unwrap();
        let ends = [client.try_clone().unwrap(), broker.try_clone().unwrap()];
        self.connections.lock().unwrap().extend(ends);
        if self.is_down.load(Ordering::SeqCst) {
            return self.break_up(&client, &broker);
        }
        let (mut from, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
        let there = Arc::clone(self);
        std::thread::spawn(move || {
            while let Some(request) = frame(&mut from) {
                if there.hold_if_wanted(&request) || to.write_all(&request).is_err() {
                    break;
                }
            }
            there.break_up(&from, &to);
        });
        let (mut from, mut to, there) = (broker, client, Arc::clone(self));
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from.read(&mut bytes) {
                if to.write_all(&bytes[..length]).is_err() {
                    break;
                }
            }
            there.break_up(&from, &to);
        });
    }

    /// Takes a request if it is to be held; returns `true` if it was taken.
    fn hold_if_wanted(&self, request: &[u8]) -> bool {
        let api = i16::from_be_bytes([request[4], request[5]]);
        let mut wanted = self.wanted.lock().unwrap();
        if *wanted != Some(api) {
            return false;
        }
        *wanted = None;
        *self.held.lock().unwrap() = Some(request.to_vec());
        true
    }

    fn break_up(&self, client: &TcpStream, broker: &TcpStream) {
        for end in [client, broker] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Reads a request or an answer, with its length before it; `None` at the end.
fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).ok()?;
    let mut frame = vec![0; 4 + u32::from_be_bytes(length) as usize];
    frame[..4].copy_from_slice(&length);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}
