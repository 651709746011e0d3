//! The bytes of blocks that wait to be written, within a limit: a worker that is faster than the disk encodes no more
//! before it is woken.
//!
//! Invariant: whoever has seen that the limit is passed is woken after that: a block that has been written says so as long
//! as the limit was passed before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A shared count of bytes that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct QueuedBytes(Arc<AtomicUsize>);

impl QueuedBytes {
    /// The number of bytes from which on no more blocks are encoded.
    pub(super) const MOST: usize = 4 << 20;

    /// `true` if no more blocks should be queued for now: [`QueuedBytes::written`] tells when to look again.
    pub(super) fn is_full(&self) -> bool {
        self.0.load(Ordering::Acquire) > Self::MOST
    }

    /// Adds a block.
    pub(super) fn queue(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Removes a block. Returns `true` if somebody may wait for that.
    #[must_use]
    pub(super) fn written(&self, bytes: usize) -> bool {
        self.0.fetch_sub(bytes, Ordering::AcqRel) > Self::MOST
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// One that queues stops when the limit is passed, goes on when it is woken, and never waits in vain.
    #[test]
    fn one_that_is_faster_than_the_disk_stops_and_is_woken() {
        const BLOCK: usize = QueuedBytes::MOST / 10;
        let queued = QueuedBytes::default();
        let ((blocks, to_write), (wake, woken)) = (channel::<usize>(), channel::<()>());
        let count = queued.clone();
        let writer = std::thread::spawn(move || {
            for bytes in to_write {
                std::thread::yield_now();
                if count.written(bytes) {
                    wake.send(()).unwrap();
                }
            }
        });
        let mut stops = 0;
        for _ in 0..2000 {
            while queued.is_full() {
                stops += 1;
                woken.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
            }
            queued.queue(BLOCK);
            assert!(queued.0.load(Ordering::Acquire) <= QueuedBytes::MOST + BLOCK);
            blocks.send(BLOCK).unwrap();
        }
        drop(blocks);
        writer.join().unwrap();
        assert!(stops > 0 && queued.0.load(Ordering::Acquire) == 0, "{stops} stops");
    }
}
