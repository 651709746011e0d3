//! A network between processes that does what networks do: it loses bytes in one direction or both, stands still, closes.
//!
//! A [`Proxy`] stands between a process that connects and the one that it connects to. What it does is changed at any time
//! for all of its connections, or planned for the moment at which so many bytes have passed one of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest time between two looks at what is to be done.
const TICK: Duration = Duration::from_millis(10);

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They arrive.
    Pass,
    /// They wait, and arrive when they may, as over a network that is off for a while.
    Wait,
    /// They vanish, and so do all that follow on their connection: nobody is told.
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

/// What is planned for a connection: from that many bytes on in a direction, this fate, in that direction or in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub toward: Toward,
    pub after: usize,
    pub fate: Fate,
    pub both: bool,
    /// How many connections it is for, from the first one on.
    pub connections: usize,
}

/// Fates by direction, as they are now.
#[derive(Clone, Copy, Debug)]
struct Now {
    to_acceptor: Fate,
    to_dialer: Fate,
}

/// A way from one process to another.
pub struct Proxy {
    address: SocketAddr,
    now: Arc<Mutex<Now>>,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// A way to an address, with a plan for its connections.
    pub fn to(target: &str, plan: Option<Plan>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let now = Arc::new(Mutex::new(Now { to_acceptor: Fate::Pass, to_dialer: Fate::Pass }));
        let over = Arc::new(AtomicBool::new(false));
        let (fates, ended, target) = (Arc::clone(&now), Arc::clone(&over), target.to_owned());
        std::thread::spawn(move || {
            let mut connections = 0;
            while !ended.load(Ordering::Relaxed) {
                let Ok((dialer, _)) = listener.accept() else {
                    std::thread::sleep(TICK);
                    continue;
                };
                // Whoever is not there yet, or no more, closes.
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

    /// Changes what becomes of bytes in a direction, or in both.
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

/// Carries what goes over one connection, in both directions.
fn carry(dialer: &TcpStream, acceptor: &TcpStream, plan: Option<Plan>, now: &Arc<Mutex<Now>>, over: &Arc<AtomicBool>) {
    // By direction: how many bytes have passed.
    let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    for toward in [Toward::Acceptor, Toward::Dialer] {
        let (from, to) = match toward {
            Toward::Acceptor => (dialer, acceptor),
            Toward::Dialer => (acceptor, dialer),
        };
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let way = Way { toward, plan, passed: Arc::clone(&passed), now: Arc::clone(now), over: Arc::clone(over) };
        std::thread::spawn(move || way.carry(from, to));
    }
}

/// One direction of a connection.
struct Way {
    toward: Toward,
    plan: Option<Plan>,
    passed: Arc<[AtomicUsize; 2]>,
    now: Arc<Mutex<Now>>,
    over: Arc<AtomicBool>,
}

impl Way {
    /// What becomes of the next bytes, and how many they are at most until that changes.
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
                // An end vanishes as bytes do.
                Ok(0) if fate == Fate::Vanish => std::thread::sleep(TICK),
                Ok(0) => break,
                // What was decided before the bytes came may hold no more.
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
