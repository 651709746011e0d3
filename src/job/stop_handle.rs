//! The request to stop a running job, as all of its threads see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Handle that asks a running job to stop; usable from any thread, such as a signal handler's.
#[derive(Clone, Debug, Default)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// Asks the job to stop: it finishes and publishes its current epoch, and ends without firing open windows.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// `true` if a stop was requested.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
    /// Returns the flag of the request, for waits of lower layers.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
