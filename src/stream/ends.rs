//! Ends of journals on their way to the sinks: each worker's frames, told to the process that publishes.
//!
//! An [`EndsInput`] is the side of a worker: for every epoch that is not released it holds a capability, as sources do. When
//! the worker hands a frame to the journal, it sends that at the frame's epoch. An [`EndsOutput`] is the side of a sink: it
//! takes in the ends of complete epochs, in order.
//!
//! Invariant: an end is sent before the capability of its epoch is released, and that is released when the frame is
//! synced. So what a sink has taken in of complete epochs is on record, and nothing of them is missing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::ActivateCapability;
use timely::dataflow::operators::core::{UnorderedHandle, UnorderedInput};
use timely::dataflow::{Scope, Stream as TimelyStream};

use crate::durable::journal::{JournalEnds, WorkerEnd};
use crate::time::Epoch;

/// An end on its way: to which worker, and of which.
pub(crate) type EndMessage = (u64, WorkerEnd);

/// What a worker tells of its journal.
pub(crate) struct EndsInput {
    handle: UnorderedHandle<u64, CapacityContainerBuilder<Vec<EndMessage>>>,
    /// Epochs that are not released, oldest first; before the first one, the capability of the start.
    open: VecDeque<(Epoch, ActivateCapability<u64>)>,
    /// The last epoch that was released. Its capability makes the next one, and is kept until that has begun.
    released: Epoch,
    process: u32,
    worker: u32,
    /// The workers of the process that publishes: those from 0 on.
    publishers: u64,
}

impl EndsInput {
    /// An input in a job whose processes have so many `threads` each, and the stream of what all workers tell.
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

    /// Tells that the worker has written a frame for an epoch.
    pub(crate) fn tell(&mut self, epoch: Epoch) {
        let Some((_, capability)) = self.open.iter().find(|open| open.0 == epoch) else {
            unreachable!("a frame is written before its epoch is released");
        };
        let end = WorkerEnd { process: self.process, worker: self.worker, epoch };
        let mut output = self.handle.activate();
        output.session_with_builder(capability).give_iterator((0..self.publishers).map(|to| (to, end)));
    }

    /// Lets go of an epoch, and of all before it. The last one is kept until another begins.
    pub(crate) fn release(&mut self, epoch: Epoch) {
        self.released = self.released.max(epoch);
        while self.open.len() > 1 && self.open.front().is_some_and(|open| open.0 <= epoch) {
            self.open.pop_front();
        }
    }
}

/// What a sink knows of journals.
#[derive(Debug, Default)]
pub(crate) struct EndsOutput {
    waiting: BTreeMap<u64, Vec<WorkerEnd>>,
    known: Arc<JournalEnds>,
}

impl EndsOutput {
    /// Takes messages in.
    pub(crate) fn take(&mut self, messages: impl Iterator<Item = EndMessage>) {
        messages.for_each(|(_, end)| self.waiting.entry(end.epoch.0).or_default().push(end));
    }

    /// The ends at an epoch that is complete; epochs are asked for in ascending order.
    pub(crate) fn at(&mut self, epoch: u64) -> Arc<JournalEnds> {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= epoch) {
            let known = Arc::make_mut(&mut self.known);
            entry.remove().into_iter().for_each(|end| known.note(end));
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
