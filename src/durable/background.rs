//! A thread that does what workers must not wait for, in the order in which it was asked.
//!
//! Invariants: acts are done one after the other, in order; when the [`Background`] is dropped, all that it was asked to
//! do has been done, unless it was told to [`Background::abandon`] the rest.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

type Act = Box<dyn FnOnce() + Send>;

/// A thread with a queue of acts.
pub struct Background {
    queue: Mutex<Option<Sender<Act>>>,
    abandoned: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Background {
    /// Starts a thread of this name.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(name: &str) -> Result<Self> {
        let (queue, acts): (Sender<Act>, Receiver<Act>) = channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let given_up = Arc::clone(&abandoned);
        let body = move || {
            for act in acts {
                if !given_up.load(Ordering::Acquire) {
                    act();
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|why| Error::new("cannot start a thread").at(name).because(why))?;
        Ok(Background { queue: Mutex::new(Some(queue)), abandoned, thread: Mutex::new(Some(thread)) })
    }

    /// Asks for an act, and returns at once.
    pub fn ask(&self, act: impl FnOnce() + Send + 'static) {
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            // The thread ends only when the queue does, or by a panic, which is noticed where its results are missed.
            let _ = queue.send(Box::new(act));
        }
    }

    /// Lets go of what has not begun: the job has failed.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Returns when all that was asked for is done; nothing can be asked for any more.
    pub fn finish(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
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
        let background = Background::start("test").unwrap();
        for number in 0..100 {
            let done = Arc::clone(&done);
            background.ask(move || done.lock().unwrap().push(number));
        }
        drop(background);
        assert_eq!(*done.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_abandoned_is_not_done() {
        let (go, wait) = channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let background = Background::start("test").unwrap();
        background.ask(move || wait.recv().unwrap());
        let flag = Arc::clone(&done);
        background.ask(move || flag.store(true, Ordering::Release));
        background.abandon();
        go.send(()).unwrap();
        drop(background);
        assert!(!done.load(Ordering::Acquire));
    }
}
