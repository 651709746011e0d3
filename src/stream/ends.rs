//! Journal ends on their way to the sinks: the last frame of each worker's journal, sent to the process that
//! publishes.
//!
//! An [`EndsInput`] is a worker's side: like a source, it holds a capability for every epoch that is not released.
//! When the worker hands a frame to the journal, it sends the frame's epoch at that epoch. An [`EndsOutput`] is a
//! sink's side: it applies the ends of complete epochs, in order.
//!
//! Invariant: an end is sent before the capability of its epoch is released, and the capability is released when the
//! frame is synced. So the ends of complete epochs that a sink has applied are durable, and none is missing.

use std::collections::VecDeque;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::ActivateCapability;
use timely::dataflow::operators::core::{UnorderedHandle, UnorderedInput};
use timely::dataflow::{Scope, Stream as TimelyStream};

use crate::durable::journal::{JournalEnds, WorkerEnd};
use crate::stream::epochs::EpochBuffer;
use crate::time::Epoch;

/// A journal end, preceded by the worker that it is sent to.
pub(crate) type EndMessage = (u64, WorkerEnd);

/// The input for the ends of a worker's journal.
pub(crate) struct EndsInput {
    handle: UnorderedHandle<u64, CapacityContainerBuilder<Vec<EndMessage>>>,
    /// Epochs that are not released, oldest first; before the first epoch, the initial capability.
    open: VecDeque<(Epoch, ActivateCapability<u64>)>,
    /// The last released epoch. The capability of the next epoch is made from its own, which is kept until that epoch
    /// begins.
    released: Epoch,
    process: u32,
    worker: u32,
    /// The number of workers of the process that publishes; they have the least numbers.
    publishers: u64,
}

impl EndsInput {
    /// Creates the input, in a job with `threads` workers per process, and the stream of the ends of all workers.
    pub(crate) fn new<'f>(scope: Scope<'f, u64>, threads: usize) -> (Self, TimelyStream<'f, u64, Vec<EndMessage>>) {
        let ((handle, capability), stream) = scope.new_unordered_input();
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (process, worker) = (number(scope.index() / threads.max(1)), number(scope.index()));
        let open = VecDeque::from([(Epoch(0), capability)]);
        (EndsInput { handle, open, released: Epoch(0), process, worker, publishers: threads as u64 }, stream)
    }

    /// Begins an epoch.
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        let Some((last, capability)) = self.open.back() else { return };
        let new = capability.delayed(&epoch.0);
        if *last == Epoch(0) {
            self.open.clear();
        }
        self.open.push_back((epoch, new));
        self.release(self.released);
    }

    /// Sends the end of a frame that the worker has written for `epoch`.
    pub(crate) fn tell(&mut self, epoch: Epoch) {
        let Some((_, capability)) = self.open.iter().find(|open| open.0 == epoch) else {
            unreachable!("a frame is written before its epoch is released");
        };
        let end = WorkerEnd { process: self.process, worker: self.worker, epoch };
        let mut output = self.handle.activate();
        output.session_with_builder(capability).give_iterator((0..self.publishers).map(|to| (to, end)));
    }

    /// Releases an epoch and all before it. The capability of the last one is kept until another epoch begins.
    pub(crate) fn release(&mut self, epoch: Epoch) {
        self.released = self.released.max(epoch);
        while self.open.len() > 1 && self.open.front().is_some_and(|open| open.0 <= epoch) {
            self.open.pop_front();
        }
    }
}

/// The journal ends that a sink knows.
#[derive(Debug, Default)]
pub(crate) struct EndsOutput {
    waiting: EpochBuffer<Vec<WorkerEnd>>,
    known: Arc<JournalEnds>,
}

impl EndsOutput {
    /// Stores messages until their epochs are complete.
    pub(crate) fn take(&mut self, messages: impl Iterator<Item = EndMessage>) {
        messages.for_each(|(_, end)| self.waiting.at(end.epoch.0).push(end));
    }

    /// Returns the ends at a complete epoch; epochs are requested in ascending order.
    pub(crate) fn at(&mut self, epoch: u64) -> Arc<JournalEnds> {
        while let Some((_, ends)) = self.waiting.next_if(|waiting| waiting <= epoch) {
            let known = Arc::make_mut(&mut self.known);
            ends.into_iter().for_each(|end| known.note(end));
        }
        Arc::clone(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_at_an_epoch_have_nothing_of_later_ones() {
        let end = |worker, epoch| (0, WorkerEnd { process: 0, worker, epoch: Epoch(epoch) });
        let mut ends = EndsOutput::default();
        ends.take([end(0, 4), end(1, 2), end(0, 2)].into_iter());
        let at = |ends: &JournalEnds| ends.iter().map(|end| (end.worker, end.epoch.0)).collect::<Vec<_>>();
        let first = ends.at(3);
        assert_eq!(at(&first), [(0, 2), (1, 2)]);
        assert_eq!(at(&ends.at(4)), [(0, 4), (1, 2)]);
        assert_eq!(at(&first), [(0, 2), (1, 2)], "what a sink was given stays as it was");
    }
}
