//! Blocking administrative requests to brokers.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use super::client::{TopicConfig, client_not_created};
use crate::error::Result;

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

/// Waker that unparks the thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks this thread until a future is ready.
pub(crate) fn wait_for<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
