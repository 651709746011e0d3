//! A simulated network between processes: it loses bytes in one direction or both, stalls, and closes connections.
//!
//! A [`Proxy`] stands between a process that connects and its target. Its behaviour can be changed at any time for all
//! of its connections, or planned for the moment at which so many bytes have passed one of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Polling interval of changes.
const TICK: Duration = Duration::from_millis(10);

/// Fate of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They arrive.
    Pass,
    /// They wait, and arrive later, as over a network that is down for a while.
    Wait,
    /// They vanish, and so do all later ones on their connection, without an error.
    Vanish,
    /// The connection is closed in both directions.
    Close,
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// From the process that has connected.
    Acceptor,
    /// To the process that has connected.
    Dialer,
}

/// A planned fault of connections: from byte `after` in direction `toward` on, `fate` holds in that direction, or in
/// both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub toward: Toward,
    pub after: usize,
    pub fate: Fate,
    pub both: bool,
    /// Number of connections with this fault, from the first one on.
    pub connections: usize,
}

/// Current fates by direction.
#[derive(Clone, Copy, Debug)]
struct CurrentFates {
    to_acceptor: Fate,
    to_dialer: Fate,
}

/// A proxy from one process to another.
pub struct Proxy {
    address: SocketAddr,
    now: Arc<Mutex<CurrentFates>>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts a proxy to an address, with a plan for its connections.
    pub fn to(target: &str, plan: Option<Plan>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let now = Arc::new(Mutex::new(CurrentFates { to_acceptor: Fate::Pass, to_dialer: Fate::Pass }));
        let over = Arc::new(AtomicBool::new(false));
        let (fates, ended, target) = (Arc::clone(&now), Arc::clone(&over), target.to_owned());
        std::thread::spawn(move || {
            let mut connections = 0;
            while !ended.load(Ordering::Relaxed) {
                let Ok((dialer, _)) = listener.accept() else {
                    std::thread::sleep(TICK);
                    continue;
                };
                // If the target does not listen, the connection is closed.
                let Ok(acceptor) = TcpStream::connect(&target) else { continue };
                let plan = plan.filter(|plan| connections < plan.connections);
                connections += 1;
                carry(&dialer, &acceptor, plan, &fates, &ended);
            }
        });
        Proxy { address, now, over }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes the fate of bytes in a direction, or in both.
    pub fn set(&self, toward: Option<Toward>, fate: Fate) {
        let mut now = self.now.lock().unwrap();
        if toward != Some(Toward::Dialer) {
            now.to_acceptor = fate;
        }
        if toward != Some(Toward::Acceptor) {
            now.to_dialer = fate;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Forwards one connection in both directions.
fn carry(
    dialer: &TcpStream,
    acceptor: &TcpStream,
    plan: Option<Plan>,
    now: &Arc<Mutex<CurrentFates>>,
    over: &Arc<AtomicBool>,
) {
    // Number of bytes that have passed, by direction.
    let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    for toward in [Toward::Acceptor, Toward::Dialer] {
        let (from, to) = match toward {
            Toward::Acceptor => (dialer, acceptor),
            Toward::Dialer => (acceptor, dialer),
        };
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let way =
            ProxyDirection { toward, plan, passed: Arc::clone(&passed), now: Arc::clone(now), over: Arc::clone(over) };
        std::thread::spawn(move || way.carry(from, to));
    }
}

/// One direction of a connection.
struct ProxyDirection {
    toward: Toward,
    plan: Option<Plan>,
    passed: Arc<[AtomicUsize; 2]>,
    now: Arc<Mutex<CurrentFates>>,
    over: Arc<AtomicBool>,
}

impl ProxyDirection {
    /// Returns the fate of the next bytes, and the maximum number of bytes until that changes.
    fn fate(&self) -> (Fate, usize) {
        let now = *self.now.lock().unwrap();
        let now = if self.toward == Toward::Acceptor { now.to_acceptor } else { now.to_dialer };
        let Some(plan) = self.plan.filter(|plan| now == Fate::Pass && (plan.both || plan.toward == self.toward)) else {
            return (now, usize::MAX);
        };
        match plan.after.saturating_sub(self.passed[plan.toward as usize].load(Ordering::SeqCst)) {
            0 => (plan.fate, usize::MAX),
            left if plan.toward == self.toward => (Fate::Pass, left),
            _ => (Fate::Pass, usize::MAX),
        }
    }

    fn carry(self, mut from: TcpStream, mut to: TcpStream) {
        let (mut vanished, mut bytes) = (false, [0; 1 << 14]);
        from.set_nonblocking(false).unwrap();
        from.set_read_timeout(Some(TICK)).unwrap();
        to.set_nodelay(true).unwrap();
        while !self.over.load(Ordering::Relaxed) {
            let (fate, most) = if vanished { (Fate::Vanish, usize::MAX) } else { self.fate() };
            match fate {
                Fate::Close => break,
                Fate::Wait => {
                    std::thread::sleep(TICK);
                    continue;
                }
                Fate::Pass | Fate::Vanish => {}
            }
            let most = bytes.len().min(most);
            match from.read(&mut bytes[..most]) {
                // The end of a stream vanishes like bytes.
                Ok(0) if fate == Fate::Vanish => std::thread::sleep(TICK),
                Ok(0) => break,
                // The fate may have changed while the bytes were awaited.
                Ok(read) => match self.fate().0 {
                    _ if fate == Fate::Vanish => vanished = true,
                    Fate::Vanish => vanished = true,
                    Fate::Close => break,
                    Fate::Pass | Fate::Wait => {
                        if to.write_all(&bytes[..read]).is_err() {
                            break;
                        }
                        self.passed[self.toward as usize].fetch_add(read, Ordering::SeqCst);
                    }
                },
                Err(why)
                    if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
        if !vanished && self.fate().0 == Fate::Close {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        }
    }
}
