//! Strangers who know the port of a process: they delay nobody past the handshake's limit, and end no job.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cluster, Limits, stop};

/// How long the handshake of a connection may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What strangers do, each on connections of its own, again and again.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    Silent,
    Garbage,
    Http,
    /// A byte a second, of what a process would say at first.
    Slow,
    /// Three hundred connections.
    Many,
}

const ALL: [Stranger; 5] = [Stranger::Silent, Stranger::Garbage, Stranger::Http, Stranger::Slow, Stranger::Many];

/// Comes to an address until it is told to end, from when somebody listens there.
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
                    for byte in b"TGPROC\0\x04\0\x01\0\0\0" {
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
            // They are there first.
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
