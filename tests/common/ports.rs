//! Free ports for what cannot take port 0 and tell which one it got: brokers, registries, processes of a job.
//!
//! The system gives ports of its own range to outgoing connections and to whoever asks for any port, at any moment: one
//! of them that was just free may be taken before its user listens at it. So ports are taken from below that range.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports of the tests. Scripts of brokers and registries choose from 20,000 on; the system's range begins at 32,768.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// Returns a free port that nobody else in this test program gets.
pub(crate) fn free_port() -> u16 {
    free_ports(1)
}

/// Returns the address of such a port on this machine.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// Returns the first of so many consecutive free ports that nobody else in this test program gets.
pub(crate) fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Programs that run at a time begin at different places.
    let begin = (std::process::id().wrapping_mul(997) % u32::from(COUNT)) as u16;
    loop {
        let place = NEXT.fetch_add(count, Ordering::Relaxed).wrapping_add(begin) % COUNT;
        let ports = FIRST + place..FIRST + place + count;
        if place + count <= COUNT && ports.clone().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return ports.start;
        }
    }
}
