//! The first loss of another process that this one has noticed, on any of its connections.
//!
//! All connections of a process share a [`LossRecord`]: those of the dataflow and the control connections note losses,
//! and the [`control_channel`](super::control_channel) reports the first one to the other processes.

use std::sync::OnceLock;
use std::time::Instant;

/// The loss of another process.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) process: usize,
    /// The reason for which the process is taken for lost.
    pub(super) why: String,
    pub(super) noticed: Instant,
}

/// Record of the first loss; later ones are ignored, as they may be consequences of it.
#[derive(Debug, Default)]
pub(super) struct LossRecord(OnceLock<Loss>);

impl LossRecord {
    /// Notes that a process is lost.
    pub(super) fn note(&self, process: usize, why: &str) {
        // Set once: the first loss counts.
        let _ = self.0.set(Loss { process, why: why.to_owned(), noticed: Instant::now() });
    }

    /// Returns the first loss, if there was one.
    pub(super) fn first(&self) -> Option<&Loss> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_loss_counts() {
        let losses = LossRecord::default();
        assert!(losses.first().is_none());
        losses.note(2, "its connection was closed");
        losses.note(1, "nothing was heard of it for 30 s");
        let first = losses.first().unwrap();
        assert_eq!((first.process, &*first.why), (2, "its connection was closed"));
    }
}
