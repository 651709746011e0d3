//! Gates: limits on the answers of a kind that are made and sent at a time, and on the requests that wait for their
//! turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::TURN_TIME;

/// The permit to make and send an answer; returned when it is dropped.
pub(super) type Permit = OwnedSemaphorePermit;

/// A limit on answers of one kind.
pub(super) struct Gate {
    free: Arc<Semaphore>,
    most: usize,
    waiting: AtomicUsize,
    most_waiting: usize,
    /// The message for requests that are refused.
    full: String,
}

/// Guard that counts a request as waiting until it is dropped.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// Creates a gate for `most` answers at a time and `most_waiting` waiting requests; `what` describes the answers in
    /// messages.
    pub(super) fn new(most: usize, most_waiting: usize, what: &str) -> Self {
        let full = format!("{most} {what} already; ask again a little later");
        Gate { free: Arc::new(Semaphore::new(most)), most, waiting: AtomicUsize::new(0), most_waiting, full }
    }

    /// Returns the number of permits that are taken.
    pub(super) fn taken(&self) -> usize {
        self.most - self.free.available_permits()
    }

    /// Takes a permit without waiting.
    ///
    /// # Errors
    /// Fails if none is free.
    pub(super) fn enter_now(&self) -> Result<Permit, &str> {
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| &*self.full)
    }

    /// Takes a permit, waiting for a free one.
    ///
    /// # Errors
    /// Fails if too many requests wait, or none became free within [`TURN_TIME`].
    pub(super) async fn enter(&self) -> Result<Permit, &str> {
        if let Ok(permit) = self.enter_now() {
            return Ok(permit);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.most_waiting {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(&self.full);
        }
        let _waiting = WaitingGuard(&self.waiting);
        self.enter_within(TURN_TIME).await
    }

    /// Takes a permit, however many requests wait.
    ///
    /// # Errors
    /// Fails if none became free within `limit`.
    pub(super) async fn enter_within(&self, limit: Duration) -> Result<Permit, &str> {
        let free = tokio::time::timeout(limit, Arc::clone(&self.free).acquire_owned()).await;
        free.ok().and_then(Result::ok).ok_or(&*self.full)
    }
}
