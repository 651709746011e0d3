//! Blocking administrative requests to brokers.

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;

use super::client::{TopicConfig, client_not_created};
use crate::error::Result;

/// Blocks this thread until a future is ready.
pub(crate) use pollster::block_on;

/// Creates an admin client of a topic's brokers. The client library warns of properties that are for other clients, which
/// are ignored then; a transactional id would make it take part in transactions.
///
/// The properties are the user's own: the text that `ClientConfig::config_map` has for a secret is no secret.
///
/// # Errors
/// Fails if the client library refuses the properties.
pub(crate) fn administrator(topic_config: &TopicConfig) -> Result<AdminClient<DefaultClientContext>> {
    let own = topic_config.without_transactions();
    own.configure(&[], &[])?.create().map_err(|error| client_not_created(&own, &error))
}
