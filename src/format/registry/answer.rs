//! Meaning of the answers of a schema registry, and of none: a value, the registry's own error, or
//! a failure with what to do about it.
//!
//! Invariant: a failure may pass only if the registry could give another answer to the same request by itself.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde_json::Value;

use super::credentials::split_url;
use crate::error::{Error, ErrorKind, shortened};

/// Time limit of a request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum length of an answer in bytes.
pub(super) const LARGEST_ANSWER: u64 = 8 << 20;

/// An answer of a registry: a value, or the registry's own error code and message.
#[derive(Debug)]
pub(super) enum RegistryAnswer {
    Value(Value),
    Refused { code: u64, message: String },
}

/// An answer as it came.
pub(super) struct HttpAnswer {
    pub(super) status: u16,
    pub(super) text: String,
    /// The header `Retry-After`.
    pub(super) retry_after: Option<String>,
    /// The header `Location`.
    pub(super) location: Option<String>,
}

/// Reason why a request failed, and whether the next attempt may succeed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) may_pass: bool,
    /// Time for which the registry asks to be left alone.
    pub(super) not_before: Option<Duration>,
}

impl Failure {
    /// A failure that stays.
    pub(super) fn of(error: Error) -> Failure {
        Failure { error, may_pass: false, not_before: None }
    }

    fn passing(error: Error) -> Failure {
        Failure { error, may_pass: true, not_before: None }
    }
}

/// Tells what to do about a request that was not answered.
pub(super) fn failure_of(error: ureq::Error) -> Failure {
    use ureq::Error as E;
    let failed = Error::of(ErrorKind::SourceUnreachable, "the schema registry cannot be asked");
    match &error {
        E::Timeout(_) => {
            let cause = format!("no whole answer within {} s", REQUEST_TIMEOUT.as_secs());
            let help = "see whether it is overloaded and what lies between, and start again";
            Failure::passing(failed.because(cause).caused_by(error).help(help))
        }
        E::Io(_) | E::HostNotFound | E::ConnectionFailed | E::BodyStalled | E::Protocol(_) => {
            Failure::passing(failed.caused_by(error).help("start it, or check its URL, and start again"))
        }
        E::BodyExceedsLimit(_) => {
            let cause = format!("its answer is longer than {} MiB", LARGEST_ANSWER >> 20);
            Failure::of(failed.because(cause).caused_by(error).help("check the registry's URL and the path in it"))
        }
        E::NativeTls(_) | E::Tls(_) | E::Pem(_) | E::Der(_) => {
            let help = "name the file of the certificates that its own is signed by (`.ca_file(…)`, \
                        --registry-ca-file), or check its URL";
            let failed =
                Error::of(ErrorKind::SourceUnreachable, "there is no secure connection to the schema registry");
            Failure::of(failed.caused_by(error).help(help))
        }
        _ => Failure::of(failed.caused_by(error).help("check the registry's URL")),
    }
}

/// Tells an answer from a failure. `has_credentials` is `true` if the request had some.
pub(super) fn judge(answer: &HttpAnswer, has_credentials: bool) -> Result<RegistryAnswer, Failure> {
    let HttpAnswer { status, text, retry_after, location } = answer;
    let body: Option<Value> = serde_json::from_str(text).ok();
    let said = || match shortened(text.trim(), 300) {
        text if text.is_empty() => format!("status {status}"),
        text => format!("status {status}: {text}"),
    };
    let failed = |kind, what: &str, help: &str| Error::of(kind, what).because(said()).help(help);
    match (status, body) {
        (200..=299, Some(value)) => Ok(RegistryAnswer::Value(value)),
        (301 | 302 | 303 | 307 | 308, _) => {
            let to = location.as_deref().map_or_else(|| "nowhere".into(), |to| shortened(to, 300));
            let to = split_url(to.split(['?', '#']).next().unwrap_or_default()).0;
            let failed =
                Error::of(ErrorKind::SourceUnreachable, "the schema registry redirects, which is not followed");
            let cause = format!("status {status}, to {to}");
            Err(Failure::of(failed.because(cause).help("name the URL that it leads to, if you trust it")))
        }
        (401, _) => {
            let help = match has_credentials {
                true => "check user and password",
                false => "name user and password: none were given",
            };
            Err(Failure::of(failed(ErrorKind::AccessRefused, "the schema registry refuses access", help)))
        }
        (403, _) => {
            let help = "allow the user what the request asks for, or name another user";
            Err(Failure::of(failed(ErrorKind::AccessRefused, "the schema registry refuses access", help)))
        }
        (429, _) => {
            let what = "the schema registry gets too many requests";
            let error = failed(ErrorKind::SourceUnreachable, what, "raise its limit, or start again later");
            let not_before = retry_after.as_deref().and_then(|text| pause_of(text, Timestamp::now()));
            Err(Failure { error, may_pass: true, not_before })
        }
        (408 | 500..=599, _) => {
            let help = "see the registry's own log, and start again";
            let error = failed(ErrorKind::SourceUnreachable, "the schema registry fails", help);
            let not_before = retry_after.as_deref().and_then(|text| pause_of(text, Timestamp::now()));
            Err(Failure { error, may_pass: true, not_before })
        }
        // A server which knows no such path tells no code of its own.
        (400..=499, Some(value)) if *status != 404 || value["error_code"].as_u64().is_some_and(|code| code > 404) => {
            let code = value["error_code"].as_u64().unwrap_or(u64::from(*status));
            let message = value["message"].as_str().unwrap_or_default().to_owned();
            Ok(RegistryAnswer::Refused { code, message })
        }
        _ => {
            let what = "there is no schema registry, or another API of it";
            let help = "check the registry's URL and the path in it";
            Err(Failure::of(failed(ErrorKind::SourceUnreachable, what, help)))
        }
    }
}

/// Returns the pause that a header `Retry-After` asks for: seconds, or a date. `None` if it is neither.
fn pause_of(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            // The example of RFC 9110.
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(pause_of(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
