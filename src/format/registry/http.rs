//! Requests to a schema registry over HTTP: time limits, retries, and what an answer's status means.
//!
//! Limits: 10 s for a request, [`LARGEST_ANSWER`] bytes for an answer. A request that fails for a passing reason (no
//! connection, no answer in time, status 408, 429 or 5xx) is sent again, after 0.1 s at first and 5 s at last, until
//! [`HttpOptions::retry_for`] is over. Every request is one that may be sent twice.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::credentials::{Credentials, split_url};
use crate::error::{Error, ErrorKind, Result, shortened};

/// Time limit of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// First and longest pause before a request is sent again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Maximum length of an answer in bytes.
const LARGEST_ANSWER: u64 = 8 << 20;

/// Content type of bodies.
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Options of requests.
#[derive(Clone, Debug)]
pub(super) struct HttpOptions {
    pub(super) credentials: Credentials,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) retry_for: Duration,
}

/// An answer of a registry: a value, or the registry's own error code and message.
#[derive(Debug)]
pub(super) enum RegistryAnswer {
    Value(Value),
    Refused { code: u64, message: String },
}

/// Sends requests to one registry.
pub(super) struct HttpClient {
    agent: ureq::Agent,
    /// The registry's URL without credentials and without a slash at its end.
    pub(super) base: String,
    authorization: Option<http::HeaderValue>,
    retry_for: Duration,
}

/// Reason why a request failed, and whether the next attempt may succeed.
struct Failure {
    error: Error,
    may_pass: bool,
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
            .max_redirects(3)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(HttpClient { agent: config.new_agent(), base, authorization, retry_for: options.retry_for })
    }

    /// Asks for the value at a path.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access, or is none.
    pub(super) fn get(&self, path: &str) -> Result<RegistryAnswer> {
        self.retried(path, || self.send(path, None))
    }

    /// Sends a value to a path, which may happen twice.
    ///
    /// # Errors
    /// Fails if the registry cannot be reached until retries are over, refuses access, or is none.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<RegistryAnswer> {
        self.retried(path, || self.send(path, Some(body)))
    }

    fn retried(
        &self,
        path: &str,
        send: impl Fn() -> std::result::Result<RegistryAnswer, Failure>,
    ) -> Result<RegistryAnswer> {
        let (begun, mut pause, mut told) = (Instant::now(), PAUSES.0, false);
        loop {
            let failure = match send() {
                Ok(answer) => {
                    if told {
                        tracing::info!(registry = %self.base, "the schema registry answers again");
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            if !failure.may_pass || begun.elapsed() + pause > self.retry_for {
                let error = failure.error.at(format_args!("{}{path}", self.base));
                let help = "start it, or check its URL, and start again";
                return Err(if failure.may_pass { error.help(help) } else { error });
            }
            if !told {
                tracing::warn!(registry = %self.base, "waiting for the schema registry: {}", failure.error);
                told = true;
            }
            // Not all processes of a job ask again at the same time.
            let jitter = getrandom::u32().map_or(0, |random| random % 100);
            std::thread::sleep(pause * (100 + jitter) / 200);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn send(&self, path: &str, body: Option<&Value>) -> std::result::Result<RegistryAnswer, Failure> {
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
                .body(body.to_string())
                .map_err(ureq::Error::from)
                .and_then(|request| self.agent.run(request)),
        };
        let read = sent.and_then(|mut answer| {
            let text = answer.body_mut().with_config().limit(LARGEST_ANSWER).lossy_utf8(true).read_to_string()?;
            Ok((answer.status().as_u16(), text))
        });
        match read {
            Ok((status, text)) => judge(status, &text),
            Err(error) => {
                let may_pass = may_pass(&error);
                let failed = Error::of(ErrorKind::SourceUnreachable, "the schema registry cannot be asked");
                Err(Failure { error: failed.caused_by(error), may_pass })
            }
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

/// `true` if the next attempt may succeed.
fn may_pass(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    matches!(error, E::Io(_) | E::Timeout(_) | E::HostNotFound | E::ConnectionFailed | E::BodyStalled | E::Protocol(_))
}

/// Tells an answer from a failure.
fn judge(status: u16, text: &str) -> std::result::Result<RegistryAnswer, Failure> {
    let body: Option<Value> = serde_json::from_str(text).ok();
    let said = || format!("status {status}: {}", shortened(text.trim(), 300));
    let failed = |kind, what: &str, may_pass| Err(Failure { error: Error::of(kind, what).because(said()), may_pass });
    match (status, body) {
        (200..=299, Some(value)) => Ok(RegistryAnswer::Value(value)),
        (401 | 403, _) => Err(Failure {
            error: Error::of(ErrorKind::AccessRefused, "the schema registry refuses access")
                .because(said())
                .help("check user and password, and what the user may do"),
            may_pass: false,
        }),
        (408 | 429 | 500..=599, _) => failed(ErrorKind::SourceUnreachable, "the schema registry fails", true),
        // A server which knows no such path tells no code of its own.
        (400..=499, Some(value)) if status != 404 || value["error_code"].as_u64().is_some_and(|code| code > 404) => {
            let code = value["error_code"].as_u64().unwrap_or_default();
            let message = value["message"].as_str().unwrap_or_default().to_owned();
            Ok(RegistryAnswer::Refused { code, message })
        }
        _ => Err(Failure {
            error: Error::of(ErrorKind::SourceUnreachable, "there is no schema registry, or another API of it")
                .because(said())
                .help("check the registry's URL and the path in it"),
            may_pass: false,
        }),
    }
}
