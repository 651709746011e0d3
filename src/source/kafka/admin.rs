//! Blocking administrative requests to brokers.

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::client::{TopicConfig, client_not_created};
use crate::error::Result;

/// Blocks this thread until a future is ready.
pub(crate) use pollster::block_on;

/// Creates an admin client with the connection properties of another client.
///
/// # Errors
/// Fails if the client library refuses the properties.
pub(crate) fn administrator(
    topic_config: &TopicConfig,
    config: &ClientConfig,
) -> Result<AdminClient<DefaultClientContext>> {
    let mut admin_config = ClientConfig::new();
    // An admin client takes the connection properties only.
    for (key, value) in config.config_map() {
        if ["bootstrap.", "security.", "sasl.", "ssl.", "client."].iter().any(|prefix| key.starts_with(prefix)) {
            admin_config.set(key, value);
        }
    }
    admin_config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    admin_config.create().map_err(|error| client_not_created(topic_config, &error))
}
