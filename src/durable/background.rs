//! A background thread that runs tasks which workers must not wait for, in order.
//!
//! Invariants: tasks run one after the other, in the order in which they were queued; dropping the [`Background`] waits
//! until all of them are done, unless [`Background::abandon`] was called. A task that panics fails the job, and no
//! later one runs: a caller that waits for a task must also check the job's failure.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::thread::{self, ThreadHandle, ThreadRole};

type Task = Box<dyn FnOnce() + Send>;

/// A thread with a queue of tasks.
pub(crate) struct Background {
    queue: Mutex<Option<Sender<Task>>>,
    abandoned: Arc<AtomicBool>,
    thread: Mutex<Option<ThreadHandle>>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Background {
    /// Starts a thread of this role.
    ///
    /// # Errors
    /// Fails if the operating system cannot start a thread.
    pub(crate) fn start(role: ThreadRole) -> Result<Self> {
        let (queue, acts): (Sender<Task>, Receiver<Task>) = channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let given_up = Arc::clone(&abandoned);
        let body = move || {
            for act in acts {
                thread::mark_iteration();
                if !given_up.load(Ordering::Acquire) {
                    act();
                }
            }
        };
        let thread = thread::start(role, role.name(), body)?;
        Ok(Background { queue: Mutex::new(Some(queue)), abandoned, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a task, and returns at once.
    pub(crate) fn submit(&self, act: impl FnOnce() + Send + 'static) {
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            // The thread ends only when the queue does, or by a panic, which has failed the job.
            let _ = queue.send(Box::new(act));
        }
    }

    /// Skips the tasks that have not started: the job has failed.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Waits until all queued tasks are done; later tasks are ignored.
    pub(crate) fn finish(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_done_in_order_and_all_of_them() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let background = Background::start(ThreadRole::Segments).unwrap();
        for number in 0..100 {
            let done = Arc::clone(&done);
            background.submit(move || done.lock().unwrap().push(number));
        }
        drop(background);
        assert_eq!(*done.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_abandoned_is_not_done() {
        let (go, wait) = channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let background = Background::start(ThreadRole::Segments).unwrap();
        background.submit(move || wait.recv().unwrap());
        let flag = Arc::clone(&done);
        background.submit(move || flag.store(true, Ordering::Release));
        background.abandon();
        go.send(()).unwrap();
        drop(background);
        assert!(!done.load(Ordering::Acquire));
    }

    #[test]
    fn an_act_that_panics_fails_the_job_and_nobody_waits_for_those_after_it() {
        let failure = Arc::<thread::JobFailure>::default();
        let entered = failure.enter();
        let background = Background::start(ThreadRole::Merges).unwrap();
        drop(entered);
        background.submit(|| panic!("no room"));
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        background.submit(move || flag.store(true, Ordering::Release));
        background.finish();
        let error = failure.get().unwrap().to_string();
        assert!(error.starts_with("the thread `merges` panicked (src/durable/background.rs:"), "{error}");
        assert!(error.contains("): no room; ") && !done.load(Ordering::Acquire), "{error}");
    }
}
