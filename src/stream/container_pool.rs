//! Memory of containers, used again.
//!
//! Invariant: a pool belongs to one worker, and keeps no more than a few empty containers.

use std::cell::RefCell;
use std::rc::Rc;

/// A pool of emptied containers that are filled again: their memory is in the processor's cache and need not be
/// allocated anew. It belongs to one worker and keeps at most `KEPT` containers.
pub(crate) struct ContainerPool<T>(Rc<RefCell<Vec<Vec<T>>>>);

impl<T> Default for ContainerPool<T> {
    fn default() -> Self {
        ContainerPool(Rc::default())
    }
}

impl<T> Clone for ContainerPool<T> {
    fn clone(&self) -> Self {
        ContainerPool(Rc::clone(&self.0))
    }
}

impl<T> ContainerPool<T> {
    const KEPT: usize = 16;

    /// Returns an empty container, with memory if the pool has one.
    pub(super) fn take(&self) -> Vec<T> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Returns a container to the pool.
    pub(super) fn give(&self, mut container: Vec<T>) {
        let mut kept = self.0.borrow_mut();
        if container.capacity() > 0 && kept.len() < Self::KEPT {
            container.clear();
            kept.push(container);
        }
    }
}
