//! Blocking administrative requests to brokers.
//!
//! Invariant: no request is repeated for longer than the caller allows.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::broker_errors::code_of;
use super::client::{TopicConfig, client_not_created};
use crate::error::Result;

/// Blocks this thread until a future is ready.
pub(crate) use pollster::block_on;

/// Longest wait for the answer to one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a request is repeated.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Result of a request of the client library.
type RequestResult<T> = std::result::Result<T, KafkaError>;

/// Makes a request, and repeats it, each time with a new client, while it fails with a code that may pass, `passes` being
/// asked with the time since the first request. Brokers that pause, or whose cluster names none of them for a moment, so
/// delay the request and do not fail it. Whether a request that was not answered has taken effect is unknown.
///
/// # Errors
/// Fails if the client library refuses the properties. The inner result is the last answer.
pub(crate) fn request<T>(
    topic_config: &TopicConfig,
    passes: impl Fn(RDKafkaErrorCode, Duration) -> bool,
    ask: impl Fn(&AdminClient<DefaultClientContext>, &AdminOptions) -> RequestResult<T>,
) -> Result<RequestResult<T>> {
    let begun = Instant::now();
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    loop {
        let answer = ask(&administrator(topic_config)?, &options);
        let code = answer.as_ref().err().and_then(code_of);
        if !code.is_some_and(|code| passes(code, begun.elapsed())) {
            return Ok(answer);
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Creates an admin client of a topic's brokers. The client library warns of properties that are for other clients, which
/// are ignored then; a transactional id would make it take part in transactions.
///
/// The properties are the user's own: the text that `ClientConfig::config_map` has for a secret is no secret.
///
/// # Errors
/// Fails if the client library refuses the properties.
fn administrator(topic_config: &TopicConfig) -> Result<AdminClient<DefaultClientContext>> {
    let own = topic_config.without_transactions();
    own.configure(&[], &[])?.create().map_err(|error| client_not_created(&own, &error))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_request_is_repeated_while_its_failure_may_pass_and_no_longer() {
        let topic = TopicConfig::new("localhost:1", "t");
        let asked = Cell::new(0);
        let fail_with = |codes: &[RDKafkaErrorCode]| {
            asked.set(asked.get() + 1);
            codes.get(asked.get() - 1).map_or(Ok(7), |code| Err(KafkaError::AdminOp(*code)))
        };
        let time_outs = [RDKafkaErrorCode::OperationTimedOut; 2];
        let passes = |code, _| code == RDKafkaErrorCode::OperationTimedOut;
        assert_eq!(request(&topic, passes, |_, _| fail_with(&time_outs)).unwrap(), Ok(7));
        assert_eq!(asked.replace(0), 3);
        let refused = RDKafkaErrorCode::TopicAuthorizationFailed;
        let answer = request(&topic, passes, |_, _| fail_with(&[time_outs[0], refused])).unwrap();
        assert_eq!((answer, asked.replace(0)), (Err(KafkaError::AdminOp(refused)), 2));
        let soon = |_, since| since < RETRY_PAUSE;
        let answer = request(&topic, soon, |_, _| fail_with(&[time_outs[0]; 9])).unwrap();
        assert_eq!((answer, asked.get()), (Err(KafkaError::AdminOp(time_outs[0])), 2));
    }
}
