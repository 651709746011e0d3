//! Input by epoch: what arrives is kept until its epoch is complete, and is then taken whole, epochs in order.
//!
//! * [`EpochBuffer`] keeps the input of an operator, one value an epoch.
//! * [`is_complete`], [`is_complete_before`] and [`has_ended`] tell what the frontiers of an operator's inputs say.
//!
//! A value may keep a capability: [`EpochBuffer::held_at`] takes it with the first input of an epoch. It is released when
//! whoever took the value drops it, so the epoch's output comes before the epoch is complete downstream.
//!
//! Invariant: epochs leave in ascending order, each once. Input that arrives at an epoch that was taken begins it anew;
//! frontiers exclude that for epochs that were complete.

use std::collections::BTreeMap;

use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::frontier::MutableAntichain;

/// The frontiers of an operator's inputs.
type Frontiers = [MutableAntichain<u64>];

/// Returns `true` if none of the inputs gets anything more at this epoch or before it.
pub(crate) fn is_complete(frontiers: &Frontiers, epoch: u64) -> bool {
    !frontiers.iter().any(|frontier| frontier.less_equal(&epoch))
}

/// Returns `true` if none of the inputs gets anything more before this epoch.
pub(crate) fn is_complete_before(frontiers: &Frontiers, epoch: u64) -> bool {
    !frontiers.iter().any(|frontier| frontier.less_than(&epoch))
}

/// Returns `true` if none of the inputs gets anything more at all.
pub(crate) fn has_ended(frontiers: &Frontiers) -> bool {
    frontiers.iter().all(MutableAntichain::is_empty)
}

/// The input of epochs that were not taken yet, one value an epoch.
#[derive(Debug)]
pub(crate) struct EpochBuffer<T>(BTreeMap<u64, T>);

impl<T> Default for EpochBuffer<T> {
    fn default() -> Self {
        EpochBuffer(BTreeMap::new())
    }
}

impl<T> EpochBuffer<T> {
    /// Returns the value of an epoch, a default one if there is none.
    pub(crate) fn at(&mut self, epoch: u64) -> &mut T
    where
        T: Default,
    {
        self.0.entry(epoch).or_default()
    }

    /// Returns the value of an epoch; `begin` makes it if there is none.
    pub(crate) fn at_or_begin(&mut self, epoch: u64, begin: impl FnOnce() -> T) -> &mut T {
        self.0.entry(epoch).or_insert_with(begin)
    }

    /// Returns the first epoch that has a value.
    pub(crate) fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(epoch, _)| *epoch)
    }

    /// Returns the last epoch that has a value.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(epoch, _)| *epoch)
    }

    /// Returns the first epoch that has a value, with the value.
    pub(crate) fn first_mut(&mut self) -> Option<(u64, &mut T)> {
        self.0.first_entry().map(|entry| (*entry.key(), entry.into_mut()))
    }

    /// Returns the first epoch that has a value if it is complete; the epoch that [`EpochBuffer::next_complete`] takes.
    pub(crate) fn first_complete(&self, frontiers: &Frontiers) -> Option<u64> {
        self.first().filter(|epoch| is_complete(frontiers, *epoch))
    }

    /// Removes the first epoch that has a value if it is complete.
    pub(crate) fn next_complete(&mut self, frontiers: &Frontiers) -> Option<(u64, T)> {
        self.next_if(|epoch| is_complete(frontiers, epoch))
    }

    /// Removes the first epoch that has a value if `is_ready` returns `true` for it.
    pub(crate) fn next_if(&mut self, is_ready: impl FnOnce(u64) -> bool) -> Option<(u64, T)> {
        let first = self.0.first_entry().filter(|first| is_ready(*first.key()))?;
        Some(first.remove_entry())
    }

    /// Returns `true` if no epoch has a value.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Default> EpochBuffer<(Capability<u64>, T)> {
    /// Returns the value of an epoch; if there is none, begins one with a capability for the operator's first output at
    /// that epoch, which is not before `capability`'s.
    pub(crate) fn held_at(&mut self, epoch: u64, capability: &InputCapability<u64>) -> &mut T {
        &mut self.at_or_begin(epoch, || (capability.delayed(&epoch, 0), T::default())).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epochs: &[u64]) -> Vec<MutableAntichain<u64>> {
        epochs.iter().map(|epoch| MutableAntichain::from_elem(*epoch)).collect()
    }

    #[test]
    fn an_epoch_is_complete_when_all_frontiers_have_passed_it() {
        let frontiers = at(&[4, 6]);
        assert_eq!([3, 4, 5, 6].map(|epoch| is_complete(&frontiers, epoch)), [true, false, false, false]);
        assert_eq!([3, 4, 5, 6].map(|epoch| is_complete_before(&frontiers, epoch)), [true, true, false, false]);
        assert!(!has_ended(&frontiers));
        let mut frontiers = at(&[4]);
        frontiers.push(MutableAntichain::new());
        assert!(is_complete(&frontiers, 3) && !is_complete(&frontiers, 4) && !has_ended(&frontiers));
        let ended = [MutableAntichain::new(), MutableAntichain::new()];
        assert!(is_complete(&ended, u64::MAX) && is_complete_before(&ended, u64::MAX) && has_ended(&ended));
    }

    #[test]
    fn epochs_are_taken_in_order_each_once_and_only_when_they_are_complete() {
        let mut buffer = EpochBuffer::<Vec<u8>>::default();
        buffer.at(6).push(1);
        buffer.at(2).push(2);
        buffer.at(6).push(3);
        buffer.at_or_begin(4, || vec![9]).push(4);
        buffer.at_or_begin(4, || unreachable!("it is there")).push(5);
        assert_eq!((buffer.first(), buffer.last()), (Some(2), Some(6)));
        assert_eq!(buffer.first_complete(&at(&[2])), None);
        assert_eq!(buffer.next_complete(&at(&[2])), None);
        let frontiers = at(&[6, 5]);
        assert_eq!(buffer.first_complete(&frontiers), Some(2));
        assert_eq!(buffer.next_complete(&frontiers), Some((2, vec![2])));
        assert_eq!(buffer.next_complete(&frontiers), Some((4, vec![9, 4, 5])));
        assert_eq!(buffer.next_complete(&frontiers), None, "6 may get more");
        assert!(!buffer.is_empty());
        assert_eq!(buffer.next_complete(&[MutableAntichain::new()]), Some((6, vec![1, 3])));
        assert_eq!(buffer.next_complete(&[MutableAntichain::new()]), None);
        assert!(buffer.is_empty() && buffer.first().is_none() && buffer.last().is_none());
    }

    /// An epoch that is not ready holds back all later ones, ready or not.
    #[test]
    fn an_epoch_waits_for_all_before_it() {
        let mut buffer = EpochBuffer::<u8>::default();
        *buffer.at(2) = 20;
        *buffer.at(3) = 30;
        assert_eq!(buffer.next_if(|epoch| epoch == 3), None);
        if let Some((epoch, value)) = buffer.first_mut() {
            assert_eq!((epoch, std::mem::replace(value, 21)), (2, 20));
        }
        assert_eq!(buffer.next_if(|epoch| epoch <= 3), Some((2, 21)));
        assert_eq!(buffer.next_if(|epoch| epoch <= 3), Some((3, 30)));
        assert_eq!(buffer.next_if(|_| true), None);
    }

    /// Downstream of an operator that holds an epoch's input, the epoch is incomplete.
    #[test]
    fn a_capability_is_kept_with_the_first_input_of_an_epoch_and_released_by_who_takes_it() {
        use timely::container::CapacityContainerBuilder;
        use timely::dataflow::channels::pact::Pipeline;
        use timely::dataflow::operators::generic::operator::Operator;
        use timely::dataflow::operators::{Input, Probe};

        timely::execute_directly(|worker| {
            let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
                let (input, stream) = scope.new_input::<Vec<u64>>();
                let mut buffer = EpochBuffer::<(Capability<u64>, Vec<u64>)>::default();
                let held = stream.unary_frontier::<CapacityContainerBuilder<Vec<u64>>, _, _, _>(
                    Pipeline,
                    "Hold",
                    move |_capability, _info| {
                        move |(input, frontier), output| {
                            // Each number is input of the epoch that it names.
                            input.for_each(|capability, epochs| {
                                epochs.drain(..).for_each(|epoch| buffer.held_at(epoch, &capability).push(epoch));
                            });
                            while let Some((epoch, (capability, epochs))) =
                                buffer.next_complete(std::slice::from_ref(frontier))
                            {
                                assert_eq!(*capability.time(), epoch);
                                output.session(&capability).give_iterator(epochs.into_iter());
                            }
                        }
                    },
                );
                (input, held.probe().0)
            });
            input.advance_to(2);
            input.send(5);
            input.send(5);
            input.advance_to(5);
            (0..10).for_each(|_| {
                worker.step();
            });
            assert!(!probe.less_than(&5) && probe.less_equal(&5));
            input.advance_to(7);
            (0..10).for_each(|_| {
                worker.step();
            });
            assert!(!probe.less_than(&7));
        });
    }
}
