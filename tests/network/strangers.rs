//! Strangers that connect to the port of a process: they delay no process beyond the handshake timeout, and end no job.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cluster, Limits, stop};

/// Handshake timeout of a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Behaviour of a stranger, repeated on new connections.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    Silent,
    Garbage,
    Http,
    /// A byte per second of a process's first message.
    Slow,
    /// Three hundred connections.
    Many,
}

const ALL: [Stranger; 5] = [Stranger::Silent, Stranger::Garbage, Stranger::Http, Stranger::Slow, Stranger::Many];

/// Starts a stranger that connects as soon as a process listens, until `over` is set; returns the number of its
/// connections.
fn come(stranger: Stranger, address: String, over: Arc<AtomicBool>) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut connections = 0;
        let mut held = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let Ok(mut stream) = TcpStream::connect(&address) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            connections += 1;
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            match stranger {
                Stranger::Silent => drop(stream.read(&mut [0])),
                Stranger::Garbage => drop(stream.write_all(&[0xa5; 4_000]).and_then(|()| stream.read(&mut [0]))),
                Stranger::Http => {
                    let request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n";
                    drop(stream.write_all(request).and_then(|()| stream.read(&mut [0])));
                }
                Stranger::Slow => {
                    for byte in b"TGPROC\0\x06\0\x01\0\0\0" {
                        if over.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                            break;
                        }
                        std::thread::sleep(Duration::from_secs(1));
                    }
                }
                Stranger::Many => {
                    held.push(stream);
                    if held.len() >= 300 {
                        held.drain(..100);
                    }
                }
            }
        }
        connections
    })
}

#[test]
fn strangers_on_the_ports_delay_nobody_past_the_handshakes_limit_and_end_no_job() {
    let limits = Limits { join: Duration::from_secs(60), heartbeat: Duration::from_secs(30) };
    let start = |strangers: &[Stranger]| {
        let mut cluster = Cluster::new(7, 3, limits, |_, _| None);
        let over = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let mut all = vec![cluster.start(0), cluster.start(1)];
        let visits = strangers.iter().flat_map(|stranger| (0..2).map(move |process| (*stranger, process)));
        let visits = visits.map(|(stranger, process)| come(stranger, cluster.address(process), Arc::clone(&over)));
        let visits: Vec<_> = visits.collect();
        if !visits.is_empty() {
            // The strangers connect first.
            std::thread::sleep(Duration::from_millis(500));
        }
        all.push(cluster.start(2));
        cluster.until_more_than(&mut all, 1_000);
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        let connections: u64 = visits.into_iter().map(|visit| visit.join().unwrap()).sum();
        stop(all);
        cluster.check();
        (took, connections)
    };
    let (alone, _) = start(&[]);
    let (took, connections) = start(&ALL);
    println!("{alone:?} without strangers, {took:?} with {connections} connections of them");
    assert!(connections > 300, "{connections} connections");
    assert!(took < alone + HANDSHAKE + Duration::from_secs(5), "{alone:?} without strangers, {took:?} with them");
}
