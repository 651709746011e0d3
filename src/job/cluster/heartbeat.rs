//! Running time, and the silence of connections measured by it.
//!
//! A process may be stopped for a while, alone or with all others: by a signal, with its container, or when its machine
//! sleeps. It receives nothing in that time, although no peer was silent. So timeouts count only the time in which the
//! waiting thread itself ran: it reads the clock often, and of a longer gap between two readings only [`LONGEST_GAP`]
//! counts.
//!
//! Invariant: a connection counts as silent only for the time in which its reader has waited for bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Maximum time that a reader waits for bytes before it checks the clock.
pub(super) const POLL: Duration = Duration::from_millis(250);
/// Heartbeat interval of each process on each connection.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum time that counts of a gap between two readings of the clock. A gap and two missed heartbeats together do not
/// exceed the shortest `--heartbeat-timeout`, 2 s.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// Time that has passed while the calling thread ran.
#[derive(Debug)]
pub(super) struct RunningTime {
    longest_gap: Duration,
    looked: Instant,
    counted: Duration,
}

impl RunningTime {
    /// Starts now, for a thread that reads the clock several times a second.
    pub(super) fn start() -> Self {
        RunningTime::with_gaps_of(LONGEST_GAP)
    }

    /// Starts now, for a thread that reads the clock at least once in `longest_gap`.
    pub(super) fn with_gaps_of(longest_gap: Duration) -> Self {
        RunningTime { longest_gap, looked: Instant::now(), counted: Duration::ZERO }
    }

    /// Reads the clock, and returns the counted time since the start.
    pub(super) fn elapsed(&mut self) -> Duration {
        self.elapsed_at(Instant::now())
    }

    fn elapsed_at(&mut self, now: Instant) -> Duration {
        self.counted += now.saturating_duration_since(self.looked).min(self.longest_gap);
        self.looked = now;
        self.counted
    }
}

/// Milliseconds since anything was received on a connection, for those that report it.
#[derive(Debug, Default)]
pub(super) struct Silence(AtomicU64);

impl Silence {
    pub(super) fn millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, silent: Duration) {
        self.0.store(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Measures the silence of a connection; it belongs to the thread that reads.
pub(super) struct HeartbeatMonitor {
    time: RunningTime,
    silence: Arc<Silence>,
    timeout: Duration,
}

impl HeartbeatMonitor {
    pub(super) fn new(timeout: Duration, silence: Arc<Silence>) -> Self {
        HeartbeatMonitor { time: RunningTime::start(), silence, timeout }
    }

    /// Notes that bytes have arrived.
    pub(super) fn heard(&mut self) {
        self.time = RunningTime::start();
        self.silence.set(Duration::ZERO);
    }

    /// Notes that the reader has waited in vain. Fails if the connection has been silent for longer than the timeout.
    pub(super) fn unheard(&mut self) -> Result<(), String> {
        let silent = self.time.elapsed();
        self.silence.set(silent);
        if silent > self.timeout { Err(unheard_for(self.timeout)) } else { Ok(()) }
    }
}

/// Returns the reason for which a silent process is given up.
pub(super) fn unheard_for(timeout: Duration) -> String {
    format!("nothing was heard of it for {} s", timeout.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pause_only_the_longest_gap_counts() {
        let mut time = RunningTime::start();
        let begun = time.looked;
        for quarter in 1..=8 {
            time.elapsed_at(begun + quarter * POLL);
        }
        assert_eq!(time.counted, Duration::from_secs(2));
        let woken = begun + Duration::from_secs(100);
        assert_eq!(time.elapsed_at(woken), Duration::from_secs(3));
        assert_eq!(time.elapsed_at(woken + POLL), Duration::from_secs(3) + POLL);
    }

    #[test]
    fn who_is_heard_is_silent_no_more_and_who_is_not_is_told_after_the_timeout() {
        let silence = Arc::<Silence>::default();
        let mut monitor = HeartbeatMonitor::new(Duration::from_millis(20), Arc::clone(&silence));
        assert_eq!(monitor.unheard(), Ok(()));
        std::thread::sleep(Duration::from_millis(25));
        assert_eq!(monitor.unheard(), Err("nothing was heard of it for 0.02 s".into()));
        assert!(silence.millis() >= 25);
        monitor.heard();
        assert_eq!((silence.millis(), monitor.unheard()), (0, Ok(())));
    }
}
