//! Pacing of a worker's loop: when epochs end, and how much is read in each.
//!
//! A job runs by the clock: [`Ticker`]. Tests let seeded random numbers decide instead: [`RandomPacer`].

use std::time::{Duration, Instant, SystemTime};

use crate::time::Epoch;

/// The pacing of epochs: when they end, and how much is read in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Epochs end by the clock.
    Clock,
    /// Epochs follow a seeded sequence of random numbers: random ticks, random amounts, random stalls.
    #[cfg(feature = "testing")]
    Random(u64),
}

/// The schedule by which worker 0 proposes epochs.
pub(crate) struct Ticker {
    started: Instant,
    started_at: SystemTime,
    /// The time at which the current epoch ends.
    pub(crate) due: Instant,
    every: Duration,
    /// The last proposed epoch.
    pub(crate) last: Epoch,
}

impl Ticker {
    /// Creates the schedule of epochs after `last`, by a wall clock that is `clock_behind` behind the machine's.
    pub(crate) fn new(every: Duration, last: Epoch, clock_behind: Duration) -> Self {
        let now = Instant::now();
        let started_at = SystemTime::now().checked_sub(clock_behind).unwrap_or(SystemTime::UNIX_EPOCH);
        Ticker { started: now, started_at, due: now, every, last }
    }

    /// Returns the epoch to propose now. The elapsed time is measured on a monotonic clock.
    pub(crate) fn propose(&mut self) -> Epoch {
        let now = Instant::now();
        let wall = self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + (now - self.started);
        self.last = self.last.next_at(u64::try_from(wall.as_millis()).unwrap_or_default());
        self.due = now + self.every;
        self.last
    }
}

/// Seeded random numbers that pace the loop in tests. Some seeds make many short epochs, some few long ones. No question
/// has an answer if the clock sets the pace, nor without the feature `testing`.
pub(crate) struct RandomPacer {
    #[cfg(feature = "testing")]
    random: Option<fastrand::Rng>,
    /// Average number of iterations after which worker 0 ends an epoch.
    turns: u64,
    /// Maximum number of records to ask for.
    records: u64,
}

impl RandomPacer {
    pub(crate) fn new(pace: Pace, worker: usize) -> Self {
        #[cfg(feature = "testing")]
        if let Pace::Random(seed) = pace {
            let random = fastrand::Rng::with_seed(seed ^ (worker as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let (turns, records) = ([2, 4, 8, 20], [2, 6, 15, 40]);
            let (turns, records) = (turns[seed as usize % 4], records[seed as usize / 4 % 4]);
            return RandomPacer { random: Some(random), turns, records };
        }
        let _ = (pace, worker);
        RandomPacer {
            #[cfg(feature = "testing")]
            random: None,
            turns: 1,
            records: 1,
        }
    }

    /// Returns a number below `bound`.
    #[cfg(feature = "testing")]
    pub(crate) fn below(&mut self, bound: u64) -> Option<u64> {
        Some(self.random.as_mut()?.u64(..bound))
    }

    /// Returns no number.
    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, reason = "it has a number with the feature `testing`")]
    pub(crate) fn below(&mut self, _bound: u64) -> Option<u64> {
        None
    }

    /// Returns `true` if an epoch ends now.
    pub(crate) fn is_due(&mut self) -> Option<bool> {
        self.below(self.turns).map(|chance| chance == 0)
    }

    /// Returns the number of records to ask for, `Some(None)` for a stall.
    pub(crate) fn amount(&mut self) -> Option<Option<usize>> {
        let stalled = self.below(4)? == 0;
        let amount = self.below(self.records)? + 1;
        Some((!stalled).then_some(amount as usize))
    }
}
