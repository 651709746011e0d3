//! The only way to start a thread: a panic fails the job instead of stalling it.
//!
//! * [`start`] starts a thread: `start(ThreadRole::Watch, "watch", body)?` returns a [`ThreadHandle`]. The thread
//!   inherits the [`JobFailure`] of the thread that starts it. If `body` panics, that failure is set: the error names
//!   the thread, the place of the panic and its message. [`start_reporting`] also passes the error to a closure, for a
//!   channel or a slot that another thread waits for.
//! * [`mark_iteration`] is called once in every iteration of a thread's loop. Tests make a thread panic there: the
//!   environment variable [`PANIC_VARIABLE`]`=ROLE:N` panics in the `N`th iteration of the threads of a role; the start
//!   of a thread is its first iteration.
//! * [`guard`] runs a closure on this thread and catches its panic: for threads that a library starts.
//! * [`JobFailure::enter`] makes a failure the current one of this thread, and of all threads that it starts.
//! * [`adopt`] is for a library's thread that calls our code without running a closure of ours: if it panics, the
//!   failure is set at once.
//!
//! A new thread needs a [`ThreadRole`], and each role a case in `tests/panics.rs`. `tests/architecture.rs` keeps other
//! ways to start a thread out of the library.
//!
//! Invariants: a thread of ours that ends by a panic has set its failure before it can be joined; a panic on such a
//! thread prints nothing by itself, unless a backtrace is requested; nothing waits without a limit for work that only a
//! panicked thread would do.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::thread::{Builder, JoinHandle, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind, Result};

/// The purpose of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    not(any(feature = "testing", all(feature = "cli", feature = "http", feature = "registry"))),
    expect(dead_code, reason = "some threads belong to features")
)]
pub(crate) enum ThreadRole {
    /// Writes the results of one sink.
    Sink,
    /// Writes and syncs the journal.
    Journal,
    /// Writes segments of snapshots.
    Segments,
    /// Writes manifests of snapshots.
    Manifests,
    /// Merges segments.
    Merges,
    /// Reports when a job publishes nothing for a while.
    Watch,
    /// Serves HTTP.
    Http,
    /// Asks brokers for new partitions of a topic.
    KafkaWatch,
    /// Runs a broker in memory.
    EmbeddedBroker,
    /// Receives control messages of one other process.
    Process,
    /// Sends control messages and heartbeats to one other process.
    ToProcess,
    /// Connects to one other process.
    Dial,
    /// Sends heartbeats on the connections of the dataflow, and detects processes that do not answer.
    Processes,
    /// Closes the connections of the dataflow.
    Connections,
    /// Receives signals, and stops the command.
    Signals,
    /// Displays the progress of a job.
    Progress,
    /// Forwards the output of one process of `tidegate up`.
    Relay,
    /// Ends the program when the process that started it ends.
    Parent,
    /// Sends one request to a schema registry.
    Registry,
}

impl ThreadRole {
    /// All roles.
    #[cfg(feature = "testing")]
    pub(crate) const ALL: [ThreadRole; 19] = [
        ThreadRole::Sink,
        ThreadRole::Journal,
        ThreadRole::Segments,
        ThreadRole::Manifests,
        ThreadRole::Merges,
        ThreadRole::Watch,
        ThreadRole::Http,
        ThreadRole::KafkaWatch,
        ThreadRole::EmbeddedBroker,
        ThreadRole::Process,
        ThreadRole::ToProcess,
        ThreadRole::Dial,
        ThreadRole::Processes,
        ThreadRole::Connections,
        ThreadRole::Signals,
        ThreadRole::Progress,
        ThreadRole::Relay,
        ThreadRole::Parent,
        ThreadRole::Registry,
    ];

    /// The role's name, as used in the environment variable for tests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ThreadRole::Sink => "sink",
            ThreadRole::Journal => "journal",
            ThreadRole::Segments => "segments",
            ThreadRole::Manifests => "manifests",
            ThreadRole::Merges => "merges",
            ThreadRole::Watch => "watch",
            ThreadRole::Http => "http",
            ThreadRole::KafkaWatch => "kafka-watch",
            ThreadRole::EmbeddedBroker => "embedded-broker",
            ThreadRole::Process => "process",
            ThreadRole::ToProcess => "to-process",
            ThreadRole::Dial => "dial",
            ThreadRole::Processes => "processes",
            ThreadRole::Connections => "connections",
            ThreadRole::Signals => "signals",
            ThreadRole::Progress => "progress",
            ThreadRole::Relay => "relay",
            ThreadRole::Parent => "parent",
            ThreadRole::Registry => "registry",
        }
    }
}

/// The first failure of a job, which stops all of its workers, and the request to stop it.
#[derive(Debug, Default)]
pub(crate) struct JobFailure {
    /// The failure of an enclosing job or test, which fails this one too.
    outer: Option<Arc<JobFailure>>,
    slot: OnceLock<Error>,
    failed: AtomicBool,
    /// See [`JobFailure::explain_by`].
    explanation: OnceLock<Explanation>,
    /// The request to stop the job, which waits look at.
    stop: OnceLock<Arc<AtomicBool>>,
    /// When a wait has first seen the request.
    #[cfg(feature = "registry")]
    stop_seen: OnceLock<Instant>,
}

/// Returns the cause of an error that follows from it, or the error itself.
struct Explanation(Box<dyn Fn(Error) -> Error + Send + Sync>);

impl fmt::Debug for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Explanation")
    }
}

impl JobFailure {
    /// A new failure that is also set whenever the current failure of this thread is.
    pub(crate) fn within_current() -> Arc<Self> {
        Arc::new(JobFailure { outer: JobFailure::current(), ..JobFailure::default() })
    }

    /// The current failure of this thread; `None` if it has none.
    pub(crate) fn current() -> Option<Arc<JobFailure>> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// Makes this the current failure of this thread, until the result is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> FailureScope {
        FailureScope(CURRENT.with(|current| current.replace(Some(Arc::clone(self)))))
    }

    /// Fails the job with the explanation of an error; only the first failure is kept.
    pub(crate) fn set(&self, error: Error) {
        let _ = self.slot.set(self.explained(error));
        self.failed.store(true, Ordering::Release);
    }

    /// Sets how errors are explained from now on: `explanation` returns the cause of an error that follows from it, or the
    /// error itself.
    pub(crate) fn explain_by(&self, explanation: impl Fn(Error) -> Error + Send + Sync + 'static) {
        // Set once: a job has one incarnation.
        let _ = self.explanation.set(Explanation(Box::new(explanation)));
    }

    /// Returns the explanation of an error.
    pub(crate) fn explained(&self, error: Error) -> Error {
        match self.explanation.get() {
            Some(explanation) => (explanation.0)(error),
            None => error,
        }
    }

    /// Returns the first failure; `None` if there is none.
    pub(crate) fn get(&self) -> Option<&Error> {
        let own = if self.failed.load(Ordering::Acquire) { self.slot.get() } else { None };
        own.or_else(|| self.outer.as_ref()?.get())
    }

    /// Sets the request to stop the job.
    pub(crate) fn set_stop(&self, stop: Arc<AtomicBool>) {
        // Set once: a job runs once.
        let _ = self.stop.set(stop);
    }

    /// Returns when a wait of the job has first seen that the job is to stop; `None` if it is not to.
    #[cfg(feature = "registry")]
    pub(crate) fn stop_asked_at(&self) -> Option<Instant> {
        let asked = self.stop.get().is_some_and(|stop| stop.load(Ordering::Acquire));
        let own = asked.then(|| *self.stop_seen.get_or_init(Instant::now));
        own.or_else(|| self.outer.as_ref()?.stop_asked_at())
    }
}

/// The failure that was current before another one was entered; restored when this is dropped.
pub(crate) struct FailureScope(Option<Arc<JobFailure>>);

impl Drop for FailureScope {
    fn drop(&mut self) {
        let before = self.0.take();
        let _ = CURRENT.try_with(|current| drop(current.replace(before)));
    }
}

thread_local! {
    /// The current failure of this thread.
    static CURRENT: RefCell<Option<Arc<JobFailure>>> = const { RefCell::new(None) };
    /// The last panic on this thread.
    static LAST: RefCell<Option<Panic>> = const { RefCell::new(None) };
    /// Number of calls of [`guard`] that this thread is in.
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    /// `true` if a panic on this thread sets its failure at once.
    static ADOPTED: Cell<bool> = const { Cell::new(false) };
    /// The role of this thread.
    static ROLE: Cell<Option<ThreadRole>> = const { Cell::new(None) };
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panic {
    message: String,
    /// The position, such as `src/main.rs:10:5`; `None` if it is unknown.
    place: Option<String>,
}

impl Panic {
    /// The panic that is unwinding this thread.
    fn of(payload: &(dyn Any + Send)) -> Self {
        let message = message_of(payload);
        let last = LAST.try_with(|last| last.borrow_mut().take()).ok().flatten();
        // A panic that other code has caught since then has another message.
        last.filter(|last| last.message == message).unwrap_or(Panic { message, place: None })
    }

    /// The error of a job that this panic fails; `thread` names the thread, and its activity if that is known.
    pub(crate) fn error(&self, thread: impl fmt::Display) -> Error {
        let error = Error::of(ErrorKind::Panicked, format!("the thread {thread} panicked")).because(&self.message);
        let error = match &self.place {
            Some(place) => error.at(place),
            None => error,
        };
        error.help("this is a fault of the query or of the engine: RUST_BACKTRACE=1 shows the way to it")
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}

/// Installs a panic hook before the process's own, once per process; it records panics of our threads.
fn install() {
    static ONCE: Once = Once::new();
    if std::thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !note(info) || std::env::var_os("RUST_BACKTRACE").is_some_and(|wanted| wanted != "0") {
                before(info);
            }
        }));
    });
}

/// Records a panic; returns `false` on a thread that is not ours.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let guarded = GUARDS.try_with(Cell::get).unwrap_or(0) > 0;
    let adopted = ADOPTED.try_with(Cell::get).unwrap_or(false);
    if !guarded && !adopted {
        return false;
    }
    let place = info.location().map(ToString::to_string);
    let panic = Panic { message: message_of(info.payload()), place };
    if !guarded && let Some(failure) = JobFailure::current() {
        failure.set(panic.error(format_args!("`{}`", std::thread::current().name().unwrap_or("of a library"))));
    }
    let _ = LAST.try_with(|last| last.replace(Some(panic)));
    true
}

/// Runs a closure, and catches its panic.
pub(crate) fn guard<T>(body: impl FnOnce() -> T) -> std::result::Result<T, Panic> {
    install();
    GUARDS.with(|guards| guards.set(guards.get() + 1));
    let done = catch_unwind(AssertUnwindSafe(body));
    GUARDS.with(|guards| guards.set(guards.get() - 1));
    done.map_err(|payload| {
        let panic = Panic::of(&*payload);
        // Dropping the payload runs the panicking code's destructor, which may panic again.
        std::mem::forget(payload);
        panic
    })
}

/// Makes `failure` the current failure of this thread, which a library has started: a panic on it sets the failure at
/// once.
pub(crate) fn adopt(failure: &Arc<JobFailure>) {
    if !ADOPTED.replace(true) {
        install();
        CURRENT.with(|current| current.replace(Some(Arc::clone(failure))));
    }
}

/// A handle of a thread of ours. The thread runs on if the handle is dropped.
#[derive(Debug)]
pub(crate) struct ThreadHandle {
    thread: JoinHandle<()>,
    /// The error of the panic by which the thread has ended.
    panic: Arc<OnceLock<Error>>,
}

impl ThreadHandle {
    /// Waits until the thread has ended, normally or by a panic; returns at once on the thread itself.
    pub(crate) fn join(self) {
        if self.thread.thread().id() != std::thread::current().id() {
            // A panic has been reported already.
            let _ = self.thread.join();
        }
    }

    /// Waits until the thread has ended, and returns the error of its panic; `None` if it has ended normally. For those
    /// who notice by a closed channel that the thread ends: a panic closes its channels before it is reported.
    #[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "the broker in memory uses it"))]
    pub(crate) fn panic(&self) -> Option<&Error> {
        while !self.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.panic.get()
    }

    /// Like [`ThreadHandle::join`], but waits no longer than `limit`.
    #[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "the command-line tool uses it"))]
    pub(crate) fn join_within(self, limit: Duration) {
        let begun = Instant::now();
        while !self.is_finished() {
            if begun.elapsed() >= limit {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.join();
    }

    /// `true` if the thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Returns the thread, to unpark it.
    pub(crate) fn thread(&self) -> &Thread {
        self.thread.thread()
    }
}

/// Starts a thread of this role and name.
///
/// # Errors
/// Fails if the operating system cannot start a thread.
pub(crate) fn start(role: ThreadRole, name: &str, body: impl FnOnce() + Send + 'static) -> Result<ThreadHandle> {
    start_reporting(role, name, |_error| {}, body)
}

/// Like [`start`], but also calls `told` with the error of a panic, after the failure was set.
///
/// # Errors
/// Fails if the operating system cannot start a thread.
pub(crate) fn start_reporting(
    role: ThreadRole,
    name: &str,
    told: impl FnOnce(Error) + Send + 'static,
    body: impl FnOnce() + Send + 'static,
) -> Result<ThreadHandle> {
    install();
    let (failure, own) = (JobFailure::current(), name.to_owned());
    let panic = Arc::<OnceLock<Error>>::default();
    let panicked = Arc::clone(&panic);
    let guarded = move || {
        let _entered = failure.as_ref().map(JobFailure::enter);
        ROLE.set(Some(role));
        let work = || {
            mark_iteration();
            body();
        };
        if let Err(panic) = guard(work) {
            let error = panic.error(format_args!("`{own}`"));
            // Set once: a thread panics once.
            let _ = panicked.set(error.clone());
            match failure {
                Some(failure) => failure.set(error.clone()),
                None => tracing::error!("{error}"),
            }
            told(error);
        }
    };
    let thread = Builder::new().name(name.to_owned()).spawn(guarded);
    thread
        .map(|thread| ThreadHandle { thread, panic })
        .map_err(|why| Error::new("cannot start a thread").at(name).because(why))
}

/// Environment variable that makes a thread panic, for tests: `ROLE:N`.
pub(crate) const PANIC_VARIABLE: &str = "TIDEGATE_PANIC";

/// Marks another iteration of this thread's loop; panics if a test requests that.
pub(crate) fn mark_iteration() {
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TURNS: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var(PANIC_VARIABLE).ok()?;
        let (role, number) = wanted.split_once(':')?;
        Some((role.to_owned(), number.parse().ok()?))
    });
    let Some((role, number)) = wanted else { return };
    if ROLE.get().is_some_and(|own| own.name() == role) && TURNS.fetch_add(1, Ordering::Relaxed) + 1 == *number {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        panic!("as the test wants it, at {} ms", now.as_millis());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_sets_the_failure_that_the_thread_works_for_and_says_where_it_was() {
        let failure = Arc::<JobFailure>::default();
        let (sender, told) = std::sync::mpsc::channel();
        let entered = failure.enter();
        let tell = move |error| drop(sender.send(error));
        // A thread that the thread starts has the same failure.
        let body = || start_reporting(ThreadRole::Watch, "inner", tell, || panic!("no {}", 7)).unwrap().join();
        start(ThreadRole::Watch, "outer", body).unwrap().join();
        drop(entered);
        let error = failure.get().unwrap().to_string();
        assert!(error.starts_with("the thread `inner` panicked (src/thread.rs:"), "{error}");
        assert!(error.contains("): no 7; "), "{error}");
        assert_eq!(told.recv().unwrap().to_string(), error);
        assert!(JobFailure::current().is_none());
    }

    #[test]
    fn who_notices_the_end_of_a_thread_by_its_channel_learns_of_its_panic() {
        let (sender, received) = std::sync::mpsc::channel::<()>();
        // Unwinding takes a while after the channel has closed, as on a machine that is busy.
        let slow = SlowToDrop;
        let body = move || {
            let (_slow, _sender) = (slow, sender);
            panic!("at once");
        };
        let thread = start(ThreadRole::Watch, "short", body).unwrap();
        assert!(received.recv().is_err());
        let error = thread.panic().unwrap().to_string();
        assert!(error.contains("the thread `short` panicked") && error.contains("at once"), "{error}");
        assert_eq!(start(ThreadRole::Watch, "normal", || ()).unwrap().panic(), None);
    }

    struct SlowToDrop;

    impl Drop for SlowToDrop {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn an_outer_failure_is_a_failure_and_an_inner_one_is_none_outside() {
        let outer = Arc::<JobFailure>::default();
        let entered = outer.enter();
        let (first, second) = (JobFailure::within_current(), JobFailure::within_current());
        drop(entered);
        first.set(Error::new("inner"));
        assert_eq!((outer.get(), second.get()), (None, None));
        outer.set(Error::new("outer"));
        assert_eq!(second.get(), Some(&Error::new("outer")));
        assert_eq!(first.get(), Some(&Error::new("inner")));
    }

    #[test]
    fn a_panic_that_a_query_catches_by_itself_is_none_of_ours() {
        let caught = guard(|| {
            let own = catch_unwind(|| panic!("its own"));
            assert!(own.is_err());
            std::panic::resume_unwind(Box::new("another"));
        });
        assert_eq!(caught.map(|()| 0), Err(Panic { message: "another".into(), place: None }));
        assert_eq!(guard(|| 3), Ok(3));
    }

    #[test]
    fn a_panic_on_a_thread_of_a_library_sets_the_failure_that_it_was_adopted_for() {
        let failure = Arc::<JobFailure>::default();
        let own = Arc::clone(&failure);
        let body = move || {
            adopt(&own);
            panic!("in the library");
        };
        let thread = Builder::new().name("library".into()).spawn(body).unwrap();
        assert!(thread.join().is_err());
        let error = failure.get().unwrap().to_string();
        assert!(error.starts_with("the thread `library` panicked (src/thread.rs:"), "{error}");
    }

    #[test]
    fn a_payload_whose_drop_panics_harms_nobody() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("again");
            }
        }
        let caught = guard(|| std::panic::panic_any(Bomb));
        assert_eq!(caught.unwrap_err().message, "no message");
    }

    #[test]
    fn roles_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = ThreadRole::ALL.iter().map(|role| role.name()).collect();
        assert_eq!(names.len(), ThreadRole::ALL.len());
    }
}
