//! A proxy between clients and a broker that can hold back one Kafka request, and take the brokers out of the answers to
//! requests for metadata. It parses only the length and the head of requests, and those answers. A broker started with
//! `--proxied` advertises the proxy's address.
//!
//! A request that is held is removed from its connection, which breaks. It reaches the broker only when the test
//! delivers it, over a connection of its own, like a packet that was delayed in a network.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::ports::free_port;

/// API keys of requests.
pub const PRODUCE: i16 = 0;
pub const END_TXN: i16 = 26;
pub const CREATE_TOPICS: i16 = 19;
const METADATA: i16 = 3;

/// The error of a partition without a leader.
const LEADER_NOT_AVAILABLE: i16 = 5;

/// Version of the metadata API from which on its answers are compact.
const COMPACT_METADATA: i16 = 9;

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
    /// `true` while no broker is named in metadata.
    names_no_broker: AtomicBool,
    /// Number of answers from which brokers were taken out.
    emptied: AtomicUsize,
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
            names_no_broker: AtomicBool::new(false),
            emptied: AtomicUsize::new(0),
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

    /// Takes the brokers out of metadata, as a cluster does whose only broker has missed its heartbeats, or no more.
    pub fn name_no_broker(&self, none: bool) {
        self.shared.names_no_broker.store(none, Ordering::SeqCst);
    }

    /// Returns the number of answers so far from which brokers were taken out.
    pub fn emptied(&self) -> usize {
        self.shared.emptied.load(Ordering::SeqCst)
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
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let asking = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Some(request) = frame(&mut from) {
                let [api, version] = [4, 6].map(|at| i16::from_be_bytes([request[at], request[at + 1]]));
                if api == METADATA && version >= COMPACT_METADATA {
                    asking.lock().unwrap().insert(request[8..12].to_vec());
                }
                if there.hold_if_wanted(&request) || to.write_all(&request).is_err() {
                    break;
                }
            }
            there.break_up(&from, &to);
        });
        let (mut from, mut to, there) = (broker, client, Arc::clone(self));
        std::thread::spawn(move || {
            while let Some(mut answer) = frame(&mut from) {
                let is_metadata = asked.lock().unwrap().remove(&answer[4..8]);
                if is_metadata && there.names_no_broker.load(Ordering::SeqCst) {
                    answer = without_brokers(&answer);
                    there.emptied.fetch_add(1, Ordering::SeqCst);
                }
                if to.write_all(&answer).is_err() {
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

/// Takes the brokers and the leaders of partitions out of a compact answer to a request for metadata, all of whose
/// lengths are a byte.
fn without_brokers(answer: &[u8]) -> Vec<u8> {
    let (mut changed, mut at) = (answer.to_vec(), 0);
    // A compact length is one more than the number of what follows; zero stands for nothing.
    let count = |at: usize| usize::from(answer[at]).saturating_sub(1);
    at += 4 + 4 + 1 + 4; // Length, number of the request, tags, time of throttling.
    let brokers = at;
    at += 1;
    for _ in 0..count(brokers) {
        at += 4; // Node,
        at += 1 + count(at) + 4; // host and port,
        at += 1 + count(at) + 1; // rack and tags.
    }
    let rest = at;
    at += 1 + count(at) + 4; // Cluster and controller.
    let topics = count(at);
    at += 1;
    for _ in 0..topics {
        at += 2; // Error,
        at += 1 + count(at) + 16 + 1; // name, id, and whether it is internal.
        let partitions = count(at);
        at += 1;
        for _ in 0..partitions {
            changed[at..at + 2].copy_from_slice(&LEADER_NOT_AVAILABLE.to_be_bytes());
            changed[at + 6..at + 10].copy_from_slice(&(-1_i32).to_be_bytes());
            at += 2 + 4 + 4 + 4; // Error, number, leader, its epoch,
            for _replicas in 0..3 {
                at += 1 + 4 * count(at); // replicas, those in sync, those offline,
            }
            at += 1; // tags.
        }
        at += 4 + 1; // Operations and tags.
    }
    changed.drain(brokers + 1..rest);
    changed[brokers] = 1;
    let length = (changed.len() - 4) as u32;
    changed[..4].copy_from_slice(&length.to_be_bytes());
    changed
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
