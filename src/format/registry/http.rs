//! Requests to a schema registry over HTTP: time limits, retries, and what an answer's status means.
//!
//! Limits: [`REQUEST_TIMEOUT`] for a request, [`LARGEST_ANSWER`] bytes for an answer. A request that fails for a passing reason (no
//! connection, no answer in time, status 408, 429 or 5xx) is sent again, after 0.1 s at first and 5 s at last, or when the
//! registry asks for it (`Retry-After`), until [`HttpOptions::retry_for`] is over. Every request is one that may be sent
//! twice. Redirects are not followed: they would lose the credentials, or take them elsewhere.
//!
//! Invariants: no error has credentials in it; a wait ends [`STOP_GRACE`] after the job was asked to stop, and at once
//! when it has failed. So requests are sent on a thread of their own, which is left alone then.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::answer::{Failure, HttpAnswer, LARGEST_ANSWER, REQUEST_TIMEOUT, RegistryAnswer, failure_of, judge};
use super::credentials::{Credentials, split_url};
use crate::error::{Error, ErrorKind, Result};
use crate::thread::{self, JobFailure, ThreadRole};

/// Time for an answer after the job was asked to stop: enough for a registry that is there.
const STOP_GRACE: Duration = Duration::from_millis(300);

/// Interval at which a wait looks at the job.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// First and longest pause before a request is sent again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Content type of bodies.
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Options of requests.
#[derive(Clone, Debug)]
pub(super) struct HttpOptions {
    pub(super) credentials: Credentials,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) retry_for: Duration,
}

/// Sends requests to one registry.
pub(super) struct HttpClient {
    requester: Requester,
    retry_for: Duration,
}

/// Parts of requests that are the same in all of them.
#[derive(Clone)]
struct Requester {
    agent: ureq::Agent,
    /// The registry's URL without credentials and without a slash at its end.
    base: String,
    authorization: Option<http::HeaderValue>,
}

impl HttpClient {
    /// Prepares requests; connects to nothing.
    ///
    /// # Errors
    /// Fails if the URL, the credentials or the certificates cannot be used.
    pub(super) fn new(url: &str, options: &HttpOptions) -> Result<HttpClient> {
        let (bare, of_url) = split_url(url);
        let base = bare.trim_end_matches('/').to_owned();
        let refused = |why: &str| Error::usage("not the URL of a schema registry").at(&base).because(why);
        let parsed: http::Uri = base.parse().map_err(|why: http::uri::InvalidUri| refused(&why.to_string()))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none_or(str::is_empty) {
            return Err(refused("it does not begin with http://HOST or https://HOST"));
        }
        if parsed.query().is_some() || base.contains('#') {
            return Err(refused("it has a query or a fragment"));
        }
        let placed = |error: Error| if error.place().is_none() { error.at(&base) } else { error };
        let authorization = options.credentials.header(of_url).map_err(placed)?;
        let authorization = authorization.map(|text| {
            let mut value = http::HeaderValue::from_str(&text)?;
            value.set_sensitive(true);
            Ok::<_, http::header::InvalidHeaderValue>(value)
        });
        let authorization = authorization.transpose().map_err(|_| refused("its credentials cannot be sent"))?;
        let roots = match &options.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(path) => roots_of(path)?,
        };
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
        let config = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        let requester = Requester { agent: config.new_agent(), base, authorization };
        Ok(HttpClient { requester, retry_for: options.retry_for })
    }

    /// Asks for the value at a path.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access, or is none.
    pub(super) fn get(&self, path: &str) -> Result<RegistryAnswer> {
        self.retried(path, None)
    }

    /// Sends a value to a path, which may happen twice.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access, or is none.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<RegistryAnswer> {
        self.retried(path, Some(body))
    }

    fn retried(&self, path: &str, body: Option<&Value>) -> Result<RegistryAnswer> {
        let registry = &self.requester.base;
        let (begun, mut pause, mut told) = (Instant::now(), PAUSES.0, false);
        loop {
            let failure = match self.send(path, body, begun)? {
                Ok(answer) => {
                    if told {
                        tracing::info!(%registry, "the schema registry answers again");
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let wait = failure.not_before.unwrap_or_default().max(pause);
            if !failure.may_pass || begun.elapsed() + wait > self.retry_for {
                return Err(failure.error.at(format_args!("{registry}{path}")));
            }
            if !told {
                tracing::warn!(%registry, "waiting for the schema registry: {}", failure.error);
                told = true;
            }
            // Not all processes of a job ask again at the same time.
            let jitter = getrandom::u32().map_or(0, |random| random % 100);
            let wait = failure.not_before.unwrap_or_default().max(pause * (100 + jitter) / 200);
            let due = Instant::now() + wait;
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                self.check_job(path, begun)?;
                std::thread::sleep(left.min(STOP_INTERVAL));
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Sends a request, and waits for the answer for as long as the job goes on.
    ///
    /// # Errors
    /// Fails if the wait was ended.
    fn send(
        &self,
        path: &str,
        body: Option<&Value>,
        begun: Instant,
    ) -> Result<std::result::Result<RegistryAnswer, Failure>> {
        let (requester, path_sent, body) = (self.requester.clone(), path.to_owned(), body.map(Value::to_string));
        let (answer, answered) = channel();
        let panicked = answer.clone();
        // Nobody may listen any more.
        let tell = move |error| drop(panicked.send(Err(Failure::of(error))));
        let ask = move || drop(answer.send(requester.send(&path_sent, body)));
        let role = ThreadRole::Registry;
        thread::start_reporting(role, role.name(), tell, ask)?;
        loop {
            match answered.recv_timeout(STOP_INTERVAL) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) => self.check_job(path, begun)?,
                Err(RecvTimeoutError::Disconnected) => {
                    unreachable!("the thread sends an answer, or is reported to have panicked")
                }
            }
        }
    }

    /// Fails if a wait that has begun at this time is to end: see [`interruption`].
    fn check_job(&self, path: &str, begun: Instant) -> Result<()> {
        interruption(begun, format_args!("{}{path}", self.requester.base)).map_or(Ok(()), Err)
    }
}

/// Returns the error of a wait for a registry that has begun at this time, if it is to end because the job of this thread
/// has failed or was asked to stop.
pub(super) fn interruption(begun: Instant, place: impl fmt::Display) -> Option<Error> {
    let job = JobFailure::current()?;
    if let Some(error) = job.get() {
        return Some(error.clone().interruption());
    }
    let asked = job.stop_asked_at()?;
    if asked.elapsed() < STOP_GRACE || begun.elapsed() < STOP_GRACE {
        return None;
    }
    let error = Error::of(ErrorKind::SourceUnreachable, "stopped while the schema registry was waited for");
    Some(error.at(place).help("the next start asks it again").interruption())
}

impl Requester {
    fn send(&self, path: &str, body: Option<String>) -> std::result::Result<RegistryAnswer, Failure> {
        let uri = format!("{}{path}", self.base);
        let method = if body.is_some() { http::Method::POST } else { http::Method::GET };
        let request = http::Request::builder().method(method).uri(uri).header("Accept", CONTENT_TYPE);
        let request = match &self.authorization {
            Some(value) => request.header(http::header::AUTHORIZATION, value),
            None => request,
        };
        let sent = match body {
            None => request.body(()).map_err(ureq::Error::from).and_then(|request| self.agent.run(request)),
            Some(body) => request
                .header(http::header::CONTENT_TYPE, CONTENT_TYPE)
                .body(body)
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(request)),
        };
        let read = sent.and_then(|mut answer| {
            let text = answer.body_mut().with_config().limit(LARGEST_ANSWER).lossy_utf8(true).read_to_string()?;
            let header = |name: http::HeaderName| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
            let (retry_after, location) = (header(http::header::RETRY_AFTER), header(http::header::LOCATION));
            Ok(HttpAnswer { status: answer.status().as_u16(), text, retry_after, location })
        });
        match read {
            Ok(answer) => judge(&answer, self.authorization.is_some()),
            Err(error) => Err(failure_of(error)),
        }
    }
}

/// Reads the certificates of a file.
fn roots_of(path: &std::path::Path) -> Result<RootCerts> {
    let failed = || Error::usage("the certificates of the schema registry cannot be read").at(path.display());
    let pem = std::fs::read(path).map_err(|why| failed().caused_by(why))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
            Ok(_) => None,
            Err(why) => Some(Err(failed().caused_by(why))),
        })
        .collect::<Result<_>>()?;
    if certificates.is_empty() {
        return Err(failed().because("there is no certificate in the file").help("it holds certificates as PEM"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
