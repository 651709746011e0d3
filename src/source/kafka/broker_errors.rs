//! Meaning of the client library's errors: their codes in words, the kinds of codes, and the last error that it reported.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Returns the code of an error, also of an administrative request, for which the library returns none.
pub(crate) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// Formats an error of the library without its constant's name.
pub(crate) fn error_text(error: &KafkaError) -> String {
    code_of(error).map_or_else(|| error.to_string(), code_text)
}

/// Describes an error code in words.
pub(crate) fn code_text(code: RDKafkaErrorCode) -> String {
    let text = code.to_string();
    let words = text.split_once(" (").and_then(|(_, words)| words.strip_suffix(')'));
    words.map_or_else(|| text.clone(), |words| words.strip_prefix("Local: ").unwrap_or(words).to_owned())
}

/// Removes OpenSSL's codes from a reason: "error:0A000086:SSL routines::…" becomes "SSL routines: …".
pub(super) fn without_codes(reason: &str) -> String {
    let mut words = String::new();
    let mut rest = reason;
    while let Some((before, after)) = rest.split_once("error:") {
        words.push_str(before);
        let code = after.find(':').filter(|at| *at > 0 && after[..*at].bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code {
            Some(at) => rest = &after[at + 1..],
            None => {
                words.push_str("error:");
                rest = after;
            }
        }
    }
    (words + rest).replace("::", ": ")
}

/// `true` if an error goes away once the brokers are reachable again.
pub(crate) fn is_transient(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::MessageTimedOut
            | Code::TimedOutQueue
            | Code::Resolve
            | Code::NodeUpdate
            // A broker that the metadata no longer names: another one takes its requests.
            | Code::BrokerDestroy
            | Code::DestroyBroker
            | Code::WaitingForCoordinator
            | Code::WaitCache
            | Code::Retry
            | Code::InProgress
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::KafkaStorageError
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::PreferredLeaderNotAvailable
    )
}

/// `true` if an error reports that the topic, or a partition of it, does not exist.
pub(crate) fn is_unknown(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicId)
}

/// `true` if an error reports that the user is not authorised.
pub(crate) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// `true` if an error reports that the user may not use a consumer group. Groups serve only lag monitors here.
pub(crate) fn is_group_refusal(code: RDKafkaErrorCode) -> bool {
    code == RDKafkaErrorCode::GroupAuthorizationFailed
}

/// Groups that were reported as not usable.
static WARNED_GROUPS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Warns, once per group, that the group may not be used.
pub(crate) fn warn_unusable_group(group: &str) {
    if WARNED_GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned()) {
        tracing::warn!(
            "the brokers do not let the group {group} be used, so lag monitors do not see how far it has read; results are \
             not affected: grant READ on the group, or name another one: --kafka-config group.id=NAME"
        );
    }
}

/// Last error that the library reported, to explain a request that failed or had no answer.
#[derive(Debug, Default)]
pub(crate) struct LastError {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    /// Last reason that contains an address which a broker has advertised.
    of_advertised: Mutex<Option<String>>,
}

impl LastError {
    pub(crate) fn set(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // "… failed: Connection refused (after 0ms in state CONNECT, 1 identical error(s) suppressed)"
        let words = without_codes(reason.split(" (after ").next().unwrap_or_default());
        if advertised_in(&words).is_some() {
            *self.of_advertised.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.clone());
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" is less helpful than the cause of the last failed connection.
        if code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((code, words));
        }
    }

    /// Returns the cause of the last failed connection, with its address: "127.0.0.1:9/1: Connect to ipv4#127.0.0.1:9
    /// failed: …".
    pub(crate) fn reason(&self) -> Option<String> {
        self.get().map(|(_, reason)| reason)
    }

    /// Returns the address of the last failed connection to an address that a broker has advertised, and the cause.
    pub(super) fn reason_of_advertised(&self) -> Option<(String, String)> {
        let reason = self.of_advertised.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        advertised_in(&reason).map(|address| (address, reason))
    }

    pub(crate) fn get(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Extracts the address from a reason of the library: "127.0.0.1:9/1: Connect to …". `None` if no broker has advertised
/// it.
fn advertised_in(reason: &str) -> Option<String> {
    let (address, rest) = reason.split_once(": ")?.0.rsplit_once('/')?;
    let is_number = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let address = address.split_once("://").map_or(address, |(_, address)| address);
    is_number.then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_put_in_words() {
        assert_eq!(code_text(RDKafkaErrorCode::AllBrokersDown), "All broker connections are down");
        assert_eq!(code_text(RDKafkaErrorCode::OffsetOutOfRange), "Broker: Offset out of range");
    }

    #[test]
    fn a_reason_is_told_in_words() {
        let reason = "ssl://b:1/bootstrap: error:0A000086:SSL routines::certificate verify failed";
        assert_eq!(without_codes(reason), "ssl://b:1/bootstrap: SSL routines: certificate verify failed");
        for reason in ["an error: none", "Connect failed: Connection refused", ""] {
            assert_eq!(without_codes(reason), reason);
        }
    }

    #[test]
    fn an_address_that_is_advertised_is_told_from_one_that_was_given() {
        for (reason, expected) in [
            ("127.0.0.1:9/1: Connect to ipv4#127.0.0.1:9 failed: Connection refused", Some("127.0.0.1:9")),
            ("sasl_ssl://kafka:9094/12: SSL handshake failed", Some("kafka:9094")),
            ("kafka:9094/bootstrap: Connect to ipv4#10.0.0.1:9094 failed", None),
            ("no reason", None),
        ] {
            assert_eq!(advertised_in(reason).as_deref(), expected, "{reason}");
        }
    }
}
