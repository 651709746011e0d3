//! Meaning of the brokers' errors for a producer: errors that last, errors of a producer that was replaced, and advice.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::{Error, ErrorKind};
use crate::source::kafka::broker_errors::error_text;
use crate::source::kafka::client::TopicConfig;

/// Returns the error for a topic that was recreated or has lost records.
pub(super) fn lost_records(topic: &TopicConfig, why: &str) -> Error {
    Error::of(ErrorKind::SinkFailed, "cannot go on with the topic")
        .at(topic.describe())
        .because(why)
        .help("it was recreated or has lost records: start with a new state directory, or name another topic")
}

/// `true` if sending the same message again has the same outcome.
pub(super) fn is_permanent(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::PolicyViolation
            | Code::UnsupportedForMessageFormat
            | Code::InvalidTransactionTimeout
            | Code::SaslAuthenticationFailed
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
}

/// Returns the advice for an error that lasts; `None` if there is none.
pub(super) fn remedy(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            "raise the topic's max.message.bytes, or send smaller messages"
        }
        Code::InvalidRecord => {
            "a compacted topic takes only messages with a key: give the output a key (kafka::Sink::key_by), or \
             write to a topic with cleanup.policy=delete"
        }
        Code::InvalidTimestamp => "the topic limits timestamps: see its message.timestamp settings",
        Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => "check the user's rights and --kafka-config",
        _ => return None,
    })
}

/// `true` if an error means that another producer of the same id was opened.
pub(super) fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

/// Formats an error; the library words those of transactions best itself.
pub(super) fn transaction_error_text(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(error) => error.string(),
        error => error_text(error),
    }
}
