//! Observation of a running job: its answers over HTTP, and its log lines when it produces no output for a while.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | a page that shows the job, if the client accepts HTML, with its parts at `/page/…`; else the paths |
//! | `/healthz` | 200 while all processes send heartbeats and all workers make progress, else 503 with the cause |
//! | `/readyz` | 200 once all workers have started and finished the replay, and all views answer, as long as `/healthz` says 200; else 503 with the cause |
//! | `/status` | the status of the job, as JSON: [`JobStatus`] |
//! | `/graph` | the steps of the query, and the data flow between them, as JSON: [`JobGraph`] |
//! | `/history` | the figures of this process in the last ten minutes, a sample each second, as JSON: [`RecentHistory`](super::history::RecentHistory); with `since=N` those after the sample of number N |
//! | `/why?window=END` | the causes that hold back a window that ends at END (RFC 3339, or milliseconds since 1970), or without it those that hold back the job; text, or JSON with `format=json` |
//! | `/metrics` | metrics of this process, as Prometheus reads them |
//! | `/views…` | the rows of views: see [`view_routes`](super::view_routes) |
//! | `/profile` | time spent in this process, by step, if profiling is enabled; text, or JSON with `format=json` |
//!
//! Process 0 knows the status of all processes, as the others send it with their heartbeats. Another process answers
//! for itself; where the answer needs all processes it refers to process 0, unless process 0 itself is the cause.
//!
//! With a token ([`Job::http_token_file`](crate::Job::http_token_file)) a client that does not carry it gets the page,
//! which asks for it, and whether `/healthz` and `/readyz` say 200, without the cause; all else is refused.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::cluster::control_channel::ControlChannel;
use super::graph::JobGraph;
use super::history::ProcessHistory;
use super::page;
use super::profile::{JobProfile, Profile};
use super::prometheus::Exposition;
use super::view_routes;
use crate::error::{Error, Result};
use crate::metrics::{Counter, Metrics, SyncMetrics};
use crate::status::{
    Blocker, BlockerKind, JobStatus, ProcessStatus, StatusBoard, StepStatus, StreamStatus, Why, WorkerStatus,
    left_out_of_job, why, window_end, windows_of_job,
};
use crate::thread::{self, JobFailure, ThreadHandle, ThreadRole};
use crate::time::{EventTime, Span};
use crate::view::Views;
use crate::view::http::{AnswerKind, Endpoint, HttpReply, HttpRequest, RequestHandler, Server};

/// Interval at which the job is checked for output.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Factor by which the time to the next log line grows.
const BACKOFF: u32 = 2;

/// The paths that are answered.
const PATHS: &str =
    "/status, /why?window=END, /graph, /history, /metrics, /views, /views/NAME?key=KEY, /profile, /healthz, /readyz";

/// The parts of a running job that can be observed.
pub(crate) struct JobMonitor {
    pub(crate) job: String,
    /// Number of this process, and number of processes.
    pub(crate) process: usize,
    pub(crate) processes: usize,
    pub(crate) board: Arc<StatusBoard>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) channel: Option<Arc<ControlChannel>>,
    pub(crate) syncs: Arc<SyncMetrics>,
    pub(crate) idle_timeout: Duration,
    pub(crate) profile: Option<Arc<Profile>>,
    pub(crate) graph: Arc<OnceLock<JobGraph>>,
    pub(crate) history: ProcessHistory,
    pub(crate) views: Arc<Views>,
    pub(crate) failure: Arc<JobFailure>,
    /// Address of the HTTP server, once it listens.
    pub(crate) address: OnceLock<SocketAddr>,
    /// Number of requests to the server that have come with a wrong token.
    pub(crate) wrong_tokens: OnceLock<Arc<Counter>>,
}

impl JobMonitor {
    /// Returns the status of the job, as far as this process knows it.
    pub(crate) fn status(&self) -> JobStatus {
        let mut processes: Vec<_> = self.channel.iter().flat_map(|channel| channel.others()).collect();
        let connections = self.channel.as_ref().map(|channel| channel.connections()).unwrap_or_default();
        processes.push(ProcessStatus { connections, ..self.board.status() });
        processes.sort_by_key(|process| process.process);
        // A table's watermark holds nothing back.
        let streams = self.metrics.sources().into_iter().filter(|(_, metrics)| !metrics.is_timeless.is_set());
        let steps = self.metrics.steps();
        let due = |step: &str| {
            let step = steps.iter().find(|(name, _)| name == step).map(|(_, metrics)| metrics);
            let lateness = step.map_or(0, |step| step.lateness_ms.load(Ordering::Relaxed));
            let lateness = Span::saturating_from_millis(i64::try_from(lateness).unwrap_or(i64::MAX));
            (step.map_or(EventTime::MIN, |step| step.watermark.get()), lateness)
        };
        let windows = windows_of_job(processes.iter().flat_map(|process| &process.windows), due);
        let left_out = left_out_of_job(processes.iter().flat_map(|process| &process.left_out));
        JobStatus {
            windows,
            left_out,
            job: self.job.clone(),
            processes,
            streams: streams
                .map(|(source, metrics)| StreamStatus {
                    source,
                    watermark: metrics.watermark.get(),
                    idle_after_ms: metrics.idle_after.millis(),
                })
                .collect(),
            steps: steps
                .iter()
                .map(|(name, metrics)| StepStatus {
                    name: name.clone(),
                    watermark: metrics.watermark.get(),
                    lateness_ms: metrics.lateness_ms.load(Ordering::Relaxed),
                    late_after_idle: metrics.late_after_idle.get(),
                })
                .collect(),
            idle_timeout_ms: u64::try_from(self.idle_timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the causes that hold a window back, or the job; an error if this process cannot know them.
    fn why(&self, window_end: Option<EventTime>) -> std::result::Result<Why, String> {
        let why = why(&self.status(), window_end);
        let first = why.holds.first().map(|hold| hold.cause);
        let knows = self.process == 0 || matches!(first, Some(BlockerKind::Process | BlockerKind::Connection));
        if knows { Ok(why) } else { Err(self.ask_process_0()) }
    }

    fn ask_process_0(&self) -> String {
        format!("this is process {} of {}: ask process 0, which knows of all", self.process, self.processes)
    }

    /// Answers a request.
    fn answer(self: &Arc<Self>, asked: &HttpRequest) -> HttpReply {
        let document = |make: fn(&JobMonitor, &HttpRequest) -> HttpReply| {
            let (watch, asked) = (Arc::clone(self), asked.clone());
            HttpReply::later(AnswerKind::Document, move || make(&watch, &asked))
        };
        match asked.path.as_str() {
            "/" if asked.html => document(|_, _| page::asset(page::INDEX)),
            "/" => HttpReply::text(200, PATHS),
            path if path.starts_with(page::FOLDER) => {
                document(|_, asked| page::asset(&asked.path[page::FOLDER.len()..]))
            }
            "/healthz" => probe_answer(asked, self.unhealthy_cause()),
            "/readyz" => probe_answer(asked, self.unready_cause()),
            "/status" => document(|watch, _| HttpReply::json(200, &watch.status())),
            "/graph" => document(JobMonitor::answer_graph),
            "/history" => document(JobMonitor::answer_history),
            "/why" => document(JobMonitor::answer_why),
            "/metrics" => document(|watch, _| HttpReply::Whole(200, Exposition::KIND, watch.exposition().text())),
            "/profile" => document(JobMonitor::answer_profile),
            path if path == "/views" || path.starts_with("/views/") => {
                view_routes::answer(&self.views, &path["/views".len()..], asked)
            }
            other => HttpReply::text(404, format_args!("there is no {other}; there are {PATHS}")),
        }
    }

    /// Returns the cause, if a process, a connection or a worker makes no progress.
    fn unhealthy_cause(&self) -> Option<Blocker> {
        let causes = [BlockerKind::Process, BlockerKind::Connection, BlockerKind::Worker];
        let ill = why(&self.status(), None).holds.into_iter().find(|hold| causes.contains(&hold.cause));
        ill.filter(|hold| hold.since_ms.is_some())
    }

    /// Returns the reason why the job cannot answer for new data yet; `None` if it can.
    fn unready_cause(&self) -> Option<String> {
        if let Some(error) = self.failure.get() {
            return Some(format!("the job has failed: {error}"));
        }
        if let Some(ill) = self.unhealthy_cause() {
            return Some(ill.to_string());
        }
        let status = self.status();
        // Only process 0 knows the status of all.
        let known = status.processes.iter().filter(|process| self.process == 0 || process.process == self.process);
        let mut found = 0;
        for process in known {
            found += usize::from(!process.workers.is_empty());
            let begun = |worker: &&WorkerStatus| worker.front.is_some() || worker.shown.is_some();
            if let Some(worker) = process.workers.iter().find(|worker| worker.repeats || !begun(worker)) {
                let does = if worker.repeats { "is replaying the journal" } else { "has not started" };
                return Some(format!("worker {} {does}", worker.worker));
            }
        }
        let expected = if self.process == 0 { self.processes } else { 1 };
        if found < expected {
            return Some(format!("nothing is known yet of {} of {expected} processes", expected - found));
        }
        let waiting = self.views.status().into_iter().find(|view| !view.ready);
        waiting.map(|view| match self.views.subscribe(&view.view, Some("")) {
            Err(refusal) => refusal.to_string(),
            Ok(_) => format!("view `{}` is not ready", view.view),
        })
    }

    fn answer_profile(&self, asked: &HttpRequest) -> HttpReply {
        match &self.profile {
            None => HttpReply::text(404, "profiling is off: start the job with --profile"),
            Some(profile) if asked.parameter("format") == Some("json") => HttpReply::json(200, &profile.now()),
            Some(profile) => HttpReply::text(200, profile.now()),
        }
    }

    fn answer_graph(&self, _asked: &HttpRequest) -> HttpReply {
        self.graph
            .get()
            .map_or_else(|| HttpReply::text(503, "the graph is not known yet"), |graph| HttpReply::json(200, graph))
    }

    fn answer_history(&self, asked: &HttpRequest) -> HttpReply {
        match asked.parameter("since").filter(|since| !since.is_empty()).map(str::parse).transpose() {
            Ok(since) => HttpReply::json(200, &self.history.recent(self.process, since)),
            Err(_) => HttpReply::text(400, "since: not the number of a sample; write since=41"),
        }
    }

    fn answer_why(&self, asked: &HttpRequest) -> HttpReply {
        let window = asked.parameter("window").filter(|window| !window.is_empty());
        match window.map(window_end).transpose().map(|end| self.why(end)) {
            Err(why) => HttpReply::text(400, format_args!("window: {why}; write window=2026-01-31T10:00:00Z, its end")),
            Ok(Err(elsewhere)) => HttpReply::text(409, elsewhere),
            Ok(Ok(why)) if asked.parameter("format") == Some("json") => HttpReply::json(200, &why),
            Ok(Ok(why)) => HttpReply::text(200, why),
        }
    }

    /// Returns the metrics of this process.
    fn exposition(&self) -> Exposition {
        let mut figures = Exposition::new(&self.job, self.process);
        figures.add_metrics(&self.metrics);
        figures.add_process(&self.board.status());
        figures.add_journal(&self.syncs);
        if let Some(wrong) = self.wrong_tokens.get() {
            figures.add_server(wrong);
        }
        figures
    }
}

/// `true` for requests that are answered without the server's token: those of probes, and for the page and its files,
/// which are the same in every job.
fn is_public(asked: &HttpRequest) -> bool {
    match asked.path.as_str() {
        "/healthz" | "/readyz" => true,
        "/" => asked.html,
        path => path.starts_with(page::FOLDER),
    }
}

/// Answers a probe; the cause is for clients that may know what the job holds.
fn probe_answer(asked: &HttpRequest, cause: Option<impl fmt::Display>) -> HttpReply {
    match cause {
        None => HttpReply::text(200, "ok"),
        Some(cause) if asked.trusted => HttpReply::text(503, cause),
        Some(_) => HttpReply::text(503, "no; ask with the token for the cause"),
    }
}

/// Handle that reads a job's status from other threads while it runs.
#[derive(Clone, Default)]
pub struct Watcher(Arc<OnceLock<Arc<JobMonitor>>>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.get().map(|watch| &watch.job)).finish()
    }
}

impl Watcher {
    /// Returns the job's status, as far as this process knows it; `None` before the job has started.
    pub fn status(&self) -> Option<JobStatus> {
        self.0.get().map(|watch| watch.status())
    }

    /// Returns the address at which this process serves HTTP ([`Job::http`](crate::Job::http)), with the port that it has
    /// got if any free one was asked for; `None` before it listens, and in a job without HTTP.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.0.get()?.address.get().copied()
    }

    /// `true` once all workers of this process run: records may have been read.
    #[cfg(feature = "cli")]
    pub(crate) fn has_begun(&self) -> bool {
        self.0.get().is_some_and(|watch| watch.board.has_begun())
    }

    /// Returns the time spent in this process so far, and the sizes of its arrangements; `None` before the job has
    /// started, and without profiling ([`Job::profile`](crate::Job::profile)).
    pub fn profile(&self) -> Option<JobProfile> {
        self.0.get()?.profile.as_ref().map(|profile| profile.now())
    }

    pub(crate) fn begin(&self, watch: Arc<JobMonitor>) {
        // Set once: a job runs once.
        let _ = self.0.set(watch);
    }
}

/// The server and the thread that observe a job, until this is dropped.
pub(crate) struct MonitorHandle {
    over: Arc<AtomicBool>,
    thread: Option<ThreadHandle>,
    server: Option<Server>,
}

impl MonitorHandle {
    /// Returns the URL of the server, if there is one.
    pub(crate) fn url(&self) -> Option<String> {
        self.server.as_ref().map(Server::url)
    }

    /// Starts the server, if there is an endpoint, and the thread that keeps the history for it and, in process 0, logs
    /// the cause after each `report_after` time without output.
    pub(crate) fn start(watch: &Arc<JobMonitor>, http: Option<&Endpoint>, report_after: Duration) -> Result<Self> {
        let mut watching = MonitorHandle { over: Arc::default(), thread: None, server: None };
        if let Some(endpoint) = http {
            let answering: RequestHandler = {
                let watch = Arc::clone(watch);
                Arc::new(move |asked: &HttpRequest| watch.answer(asked))
            };
            let address = own_address(&endpoint.address, watch.process)?;
            let server = Server::start(&Endpoint { address, ..endpoint.clone() }, &answering, is_public)?;
            tracing::info!("watch it at {} ({PATHS})", server.url());
            let _ = watch.address.set(server.address());
            let _ = watch.wrong_tokens.set(server.wrong_tokens());
            watching.server = Some(server);
        }
        let serves = watching.server.is_some();
        if watch.process == 0 || serves {
            let (watch, over) = (Arc::clone(watch), Arc::clone(&watching.over));
            let body = move || {
                let mut silence = (watch.process == 0).then(|| StallDetector::new(report_after));
                while !over.load(Ordering::Acquire) {
                    thread::mark_iteration();
                    if let Some(line) = silence.as_mut().and_then(|silence| silence.line(&watch)) {
                        tracing::warn!("{line}");
                    }
                    if serves {
                        watch.history.sample(Instant::now(), &watch.metrics, || watch.board.status());
                    }
                    std::thread::park_timeout(CHECK_INTERVAL);
                }
            };
            watching.thread = Some(thread::start(ThreadRole::Watch, ThreadRole::Watch.name(), body)?);
        }
        Ok(watching)
    }
}

impl Drop for MonitorHandle {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            thread.join();
        }
        self.server = None;
    }
}

/// Returns the address of a process's own server: the port of process 0 plus the process's number; port 0 stays 0.
fn own_address(address: &str, process: usize) -> Result<String> {
    let wrong = || {
        let error = Error::usage(format!("--http {address} is no address to listen at"));
        error.help("write it as 127.0.0.1:8080; of several processes each takes the port that is its number further on")
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let own = match port {
        0 => 0,
        port => u16::try_from(process).ok().and_then(|process| port.checked_add(process)).ok_or_else(wrong)?,
    };
    Ok(format!("{}:{own}", if host.is_empty() { "127.0.0.1" } else { host }))
}

/// Detector of a job that produces no output.
struct StallDetector {
    /// Time without output before the next line, and before the first one.
    report_after: Duration,
    first: Duration,
    since: Instant,
    /// Number of rows published as of the last check.
    rows: u64,
}

impl StallDetector {
    fn new(first: Duration) -> Self {
        StallDetector { report_after: first, first, since: Instant::now(), rows: 0 }
    }

    /// Returns the line to log now, if one is due: the cause that holds the job back.
    fn line(&mut self, watch: &JobMonitor) -> Option<String> {
        let rows = watch.metrics.published_rows();
        if rows != self.rows {
            *self = StallDetector { rows, ..StallDetector::new(self.first) };
        }
        if self.since.elapsed() < self.report_after {
            return None;
        }
        let why = why(&watch.status(), None);
        // Causes are younger than the silence, in a job that has just started for one: none may last long enough yet.
        if why.holds.is_empty() && self.since.elapsed() < self.report_after.saturating_mul(BACKOFF) {
            return None;
        }
        let quiet_s = self.since.elapsed().as_secs();
        self.report_after = self.report_after.saturating_mul(BACKOFF);
        let first = why.holds.first().map_or(String::new(), |hold| format!(". {hold}"));
        Some(format!("nothing was published for {quiet_s} s; {}{first}", why.summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_token_a_probe_tells_no_cause() {
        let answer = |trusted: bool, cause: Option<&str>| {
            let asked = HttpRequest { path: "/readyz".into(), parameters: vec![], events: false, html: false, trusted };
            assert!(is_public(&asked));
            match probe_answer(&asked, cause) {
                HttpReply::Whole(status, _, text) => (status, text),
                _ => panic!("no text"),
            }
        };
        assert_eq!(answer(true, Some("partition 2 of payments")), (503, "partition 2 of payments\n".into()));
        let (status, text) = answer(false, Some("partition 2 of payments"));
        assert!(status == 503 && !text.contains("payments") && text.contains("token"), "{text}");
        assert_eq!((answer(true, None).0, answer(false, None).0), (200, 200));
    }

    #[test]
    fn each_process_has_an_address_of_its_own() {
        assert_eq!(own_address("127.0.0.1:8080", 2).unwrap(), "127.0.0.1:8082");
        assert_eq!(own_address(":8080", 0).unwrap(), "127.0.0.1:8080");
        assert_eq!(own_address("[::1]:0", 2).unwrap(), "[::1]:0");
        for wrong in ["8080", "127.0.0.1:x", "127.0.0.1:65535"] {
            assert_eq!(own_address(wrong, 1).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }
}
