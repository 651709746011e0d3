//! The journal in files: one thread of the process writes and syncs for all its workers.
//!
//! * **Group commit**: the thread takes all queued frames, appends them in one write, syncs, and then tells each worker
//!   up to which epoch its frames are durable. Frames queued meanwhile wait for the next round.
//! * When a file has reached [`JournalConfig::file_limit`], the next round begins a new one. Its header records the
//!   length of the old file, which is all synced by then.
//! * **Truncating** the journal removes whole files, oldest first, and never the one that is being written.
//!
//! Invariants: a worker's frames are written in the order of its epochs; an epoch is reported as synced only when its
//! frame and the name of its file are; after a failure nothing more is written, as the state of the disk is then
//! unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Instant;

use super::format::{BEFORE_BODY, ENVELOPE, FileId, JournalHeader, PreviousFile, encode_body, put, salt};
use super::{Frame, Journal};
use crate::durable::disk::{Disk, DiskFile};
use crate::durable::recovery::AcceptedFile;
use crate::durable::{FencingCheck, StateId, disk_error};
use crate::error::{Error, Result};
use crate::metrics::{SPAN_TARGET, SyncMetrics};
use crate::thread::{self, ThreadHandle, ThreadRole};
use crate::time::Epoch;

/// The place and the owner of a journal.
#[derive(Clone)]
pub(crate) struct JournalConfig {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The directory of the journal, which must exist.
    pub directory: PathBuf,
    /// The state.
    pub state: StateId,
    /// The incarnation that writes.
    pub incarnation: u64,
    /// The process of that incarnation.
    pub process: u32,
    /// Number of workers of the incarnation, in all its processes.
    pub workers: usize,
    /// Length in bytes after which the next file is begun.
    pub file_limit: u64,
    /// Files of earlier incarnations that this process removes once no replay needs them.
    pub inherited: Vec<AcceptedFile>,
    /// Asked before anything is written or removed.
    pub still_current: FencingCheck,
}

impl JournalConfig {
    /// The default length after which a new file is begun: 1 MiB.
    pub(crate) const DEFAULT_FILE_LIMIT: u64 = 1 << 20;
}

impl fmt::Debug for JournalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("directory", &self.directory)
            .field("incarnation", &self.incarnation)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

/// A journal that is written to files.
#[derive(Debug)]
pub(crate) struct FileJournal {
    shared: Arc<JournalShared>,
    thread: Mutex<Option<ThreadHandle>>,
}

/// State shared by the workers and the writing thread.
#[derive(Debug)]
struct JournalShared {
    queue: Mutex<JournalQueue>,
    /// Notified when there is work in the queue.
    ready: Condvar,
    /// For each worker, one more than its greatest epoch that is synced; 0 if there is none.
    synced: Vec<AtomicU64>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    threads: Mutex<BTreeMap<usize, Thread>>,
    /// The number, bytes and duration of syncs.
    syncs: Arc<SyncMetrics>,
}

#[derive(Debug, Default)]
struct JournalQueue {
    waiting: Vec<QueuedFrame>,
    /// The last epoch that each worker has appended.
    appended: Vec<Option<Epoch>>,
    /// The first epoch of the incarnation, once a worker has committed it.
    first: Option<Epoch>,
    truncate: Option<Epoch>,
    closing: bool,
}

/// A frame in the queue.
#[derive(Debug)]
struct QueuedFrame {
    worker: usize,
    epoch: Epoch,
    body: Vec<u8>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FileJournal {
    /// Creates the first file of a process of an incarnation, and starts the writing thread.
    ///
    /// # Errors
    /// Fails if a disk operation fails, or if the process has a journal of this incarnation already.
    pub(crate) fn begin(place: JournalConfig) -> Result<FileJournal> {
        let (journal, writer) = FileJournal::prepare(place)?;
        // Without this, workers would wait for ever for a thread that has panicked.
        let shared = Arc::clone(&journal.shared);
        let told = move |error| shared.fail(error);
        let thread =
            thread::start_reporting(ThreadRole::Journal, ThreadRole::Journal.name(), told, move || writer.run())?;
        *locked(&journal.thread) = Some(thread);
        Ok(journal)
    }

    /// A journal and its writer, before the thread is started.
    pub(in crate::durable) fn prepare(place: JournalConfig) -> Result<(FileJournal, JournalWriter)> {
        let shared = Arc::new(JournalShared {
            queue: Mutex::new(JournalQueue { appended: vec![None; place.workers], ..JournalQueue::default() }),
            ready: Condvar::new(),
            synced: (0..place.workers).map(|_| AtomicU64::new(0)).collect(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            threads: Mutex::new(BTreeMap::new()),
            syncs: Arc::default(),
        });
        let writer = JournalWriter::begin(place, shared.clone())?;
        Ok((FileJournal { shared, thread: Mutex::default() }, writer))
    }

    /// Has the thread write and sync all queued frames, and waits for its end.
    fn end(&self) {
        locked(&self.shared.queue).closing = true;
        self.shared.ready.notify_one();
        let thread = locked(&self.thread).take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

/// Ends a journal that its owner did not close; failures of this last write are not reported.
impl Drop for FileJournal {
    fn drop(&mut self) {
        self.end();
    }
}

impl Journal for FileJournal {
    fn append(&self, worker: usize, frame: Frame) -> Result<()> {
        self.check()?;
        let epoch = frame.epoch;
        let number = u32::try_from(worker).map_err(|_| Error::usage("there cannot be so many workers"))?;
        let body = encode_body(number, &frame)?;
        let mut queue = locked(&self.shared.queue);
        assert!(queue.appended[worker] < Some(epoch), "a worker binds its epochs in order, each once");
        if queue.appended[worker].is_none() {
            // Input of an incarnation counts only if all its workers have a frame for its first epoch.
            assert_eq!(
                *queue.first.get_or_insert(epoch),
                epoch,
                "all workers commit the first epoch of an incarnation"
            );
        }
        queue.appended[worker] = Some(epoch);
        queue.waiting.push(QueuedFrame { worker, epoch, body });
        drop(queue);
        self.shared.ready.notify_one();
        Ok(())
    }

    fn synced(&self, worker: usize) -> Option<Epoch> {
        let synced = self.shared.synced.get(worker)?.load(Ordering::Acquire);
        synced.checked_sub(1).map(Epoch)
    }

    fn wake(&self, worker: usize, thread: Thread) {
        locked(&self.shared.threads).insert(worker, thread);
    }

    fn check(&self) -> Result<()> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        locked(&self.shared.failure).clone().map_or(Ok(()), Err)
    }

    fn truncate(&self, through: Epoch) {
        let mut queue = locked(&self.shared.queue);
        queue.truncate = queue.truncate.max(Some(through));
        drop(queue);
        self.shared.ready.notify_one();
    }

    fn syncs(&self) -> Arc<SyncMetrics> {
        Arc::clone(&self.shared.syncs)
    }

    fn close(&self) -> Result<()> {
        self.end();
        self.check()
    }
}

impl JournalShared {
    /// Waits for work, and takes all of it.
    fn take(&self) -> JournalQueue {
        let mut queue = locked(&self.queue);
        while queue.waiting.is_empty() && queue.truncate.is_none() && !queue.closing {
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (waiting, truncate) = (std::mem::take(&mut queue.waiting), queue.truncate.take());
        JournalQueue { waiting, truncate, closing: queue.closing, ..JournalQueue::default() }
    }

    /// Keeps the first failure, and wakes all workers, which then check for it.
    fn fail(&self, why: Error) {
        locked(&self.failure).get_or_insert(why);
        self.failed.store(true, Ordering::Release);
        locked(&self.threads).values().for_each(Thread::unpark);
    }

    /// Reports to workers up to which epoch their frames are synced, and wakes them.
    fn publish(&self, written: &[QueuedFrame]) {
        let mut news = BTreeMap::new();
        for frame in written {
            news.insert(frame.worker, frame.epoch.0 + 1);
        }
        for (worker, synced) in &news {
            self.synced[*worker].store(*synced, Ordering::Release);
        }
        let threads = locked(&self.threads);
        news.keys().filter_map(|worker| threads.get(worker)).for_each(Thread::unpark);
    }
}

/// The work of the writing thread.
pub(in crate::durable) struct JournalWriter {
    config: JournalConfig,
    shared: Arc<JournalShared>,
    file: Box<dyn DiskFile>,
    id: FileId,
    salt: u32,
    /// Length of the file in bytes, all of it synced.
    length: u64,
    /// The greatest epoch in the file and in those of this process before it.
    last: Option<Epoch>,
    /// The earlier files, oldest first, each with the greatest epoch in it and in files before it. Files of one process
    /// of an incarnation are removed in their order.
    old: BTreeMap<FileId, Option<Epoch>>,
}

impl JournalWriter {
    fn begin(config: JournalConfig, shared: Arc<JournalShared>) -> Result<JournalWriter> {
        let id = FileId { incarnation: config.incarnation, process: config.process, number: 0 };
        let old = config.inherited.iter().map(|inherited| (inherited.file, inherited.last)).collect();
        let names = config.disk.list(&config.directory);
        let names = names.map_err(|why| disk_error("cannot list the journal", config.directory.display(), why))?;
        if names.contains(&id.to_string()) {
            return Err(Error::new("this incarnation of the state has a journal already").at(id));
        }
        let (file, length) = begin_file(&config, id, None)?;
        let salt = salt(config.state, id);
        Ok(JournalWriter { config, shared, file, id, salt, length, last: None, old })
    }

    fn run(mut self) {
        while self.step() {
            thread::mark_iteration();
        }
    }

    /// Waits for work and does it; returns `false` after the journal was closed or has failed.
    pub(in crate::durable) fn step(&mut self) -> bool {
        let work = self.shared.take();
        if let Err(why) = self.round(&work) {
            self.shared.fail(why);
            return false;
        }
        !work.closing
    }

    fn round(&mut self, work: &JournalQueue) -> Result<()> {
        if !work.waiting.is_empty() {
            let last = work.waiting.last().map_or(0, |frame| frame.epoch.0);
            let (incarnation, process) = (self.config.incarnation, self.config.process);
            // A root: a trace of all epochs of an incarnation would have no end.
            let span = tracing::debug_span!(
                target: SPAN_TARGET, parent: None, "epoch_commit",
                incarnation, process, epoch = last, frames = work.waiting.len()
            );
            let _entered = span.enter();
            (self.config.still_current)()?;
            if self.length >= self.config.file_limit {
                self.rotate()?;
            }
            self.commit(&work.waiting)?;
            self.shared.publish(&work.waiting);
        }
        if let Some(through) = work.truncate {
            self.truncate(through)?;
        }
        if work.closing {
            // A closing frame without content proves that everything before it was synced, even if the file is damaged
            // later.
            let mut bytes = Vec::new();
            put(&mut bytes, self.salt, self.length, self.length, &[]);
            self.write(&bytes)?;
        }
        Ok(())
    }

    fn commit(&mut self, frames: &[QueuedFrame]) -> Result<()> {
        let mut bytes = Vec::with_capacity(frames.iter().map(|frame| frame.body.len() + BEFORE_BODY).sum());
        for frame in frames {
            let position = self.length + bytes.len() as u64;
            put(&mut bytes, self.salt, position, self.length, &frame.body);
            self.last = self.last.max(Some(frame.epoch));
        }
        self.write(&bytes)
    }

    /// Appends and syncs.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let begun = Instant::now();
        let written = self.file.append(bytes).and_then(|()| self.file.sync());
        self.shared.syncs.add(bytes.len() as u64, begun.elapsed());
        let path = self.config.directory.join(self.id.to_string());
        written.map_err(|why| disk_error("cannot write the journal", path.display(), why))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let next = FileId { number: self.id.number + 1, ..self.id };
        let before = PreviousFile { length: self.length, last: self.last };
        let (file, length) = begin_file(&self.config, next, Some(before))?;
        self.old.insert(self.id, self.last);
        (self.file, self.length, self.id, self.salt) = (file, length, next, salt(self.config.state, next));
        Ok(())
    }

    fn truncate(&mut self, through: Epoch) -> Result<()> {
        let mut held = None;
        let mut going = Vec::new();
        for (id, last) in &self.old {
            let process = (id.incarnation, id.process);
            if held == Some(process) {
                continue;
            }
            if *last <= Some(through) {
                going.push(*id);
            } else {
                held = Some(process);
            }
        }
        if going.is_empty() {
            return Ok(());
        }
        (self.config.still_current)()?;
        for id in going {
            let path = self.config.directory.join(id.to_string());
            match self.config.disk.remove(&path) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => {
                    return Err(disk_error("cannot remove an old file of the journal", path.display(), why));
                }
                _ => self.old.remove(&id),
            };
        }
        // The removals need not survive a crash.
        Ok(())
    }
}

/// Creates a journal file with its header durably; returns it with its length.
fn begin_file(place: &JournalConfig, file: FileId, before: Option<PreviousFile>) -> Result<(Box<dyn DiskFile>, u64)> {
    let workers = u32::try_from(place.workers).map_err(|_| Error::usage("there cannot be so many workers"))?;
    let header = ENVELOPE.seal(&JournalHeader { state: place.state, file, workers, before })?;
    let path = place.directory.join(file.to_string());
    let begun = place.disk.create(&path).and_then(|mut made| {
        made.append(&header)?;
        made.sync()?;
        place.disk.sync_directory(&place.directory)?;
        Ok(made)
    });
    let begun = begun.map_err(|why| disk_error("cannot begin a file of the journal", path.display(), why))?;
    Ok((begun, header.len() as u64))
}
