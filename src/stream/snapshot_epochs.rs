//! The epochs of snapshots, as the flow on one worker knows them.
//!
//! Invariant: they are the same on every worker, and known before they are complete.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::time::Epoch;

/// The epochs at which checkpointed operators are sealed: the same on every worker, known before they are complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotEpochs(Rc<RefCell<BTreeSet<u64>>>);

impl SnapshotEpochs {
    /// Adds an epoch that is not complete yet.
    pub(crate) fn add(&self, epoch: Epoch) {
        self.0.borrow_mut().insert(epoch.0);
    }

    /// Removes the epochs before `epoch`, which are sealed.
    pub(crate) fn forget_before(&self, epoch: Epoch) {
        let mut seals = self.0.borrow_mut();
        *seals = seals.split_off(&epoch.0);
    }

    pub(super) fn contains(&self, epoch: u64) -> bool {
        self.0.borrow().contains(&epoch)
    }

    pub(super) fn after(&self, epoch: u64) -> Vec<u64> {
        self.0.borrow().range(epoch + 1..).copied().collect()
    }
}
