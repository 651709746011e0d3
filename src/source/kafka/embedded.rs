//! An in-memory broker inside this process, for demonstrations and quick tests.
//!
//! It is librdkafka's mock cluster. It keeps about 5 MiB of a partition and drops older records; it accepts
//! transactions without isolating them; it knows no offsets at times, so that a start at a time is the end; its records
//! are lost with it. Nothing about durability can be concluded from
//! it.

use std::sync::mpsc::{Receiver, Sender, channel};

use rdkafka::mocking::MockCluster;

use super::broker_errors::error_text;
use crate::error::{Error, Result};
use crate::thread::{self, ThreadHandle, ThreadRole};

type CommandReply = Sender<Result<()>>;

enum BrokerCommand {
    Create(String, i32, CommandReply),
    Reachable(bool, CommandReply),
}

/// A running in-memory broker; it stops when dropped.
pub struct EmbeddedBroker {
    servers: String,
    orders: Option<Sender<BrokerCommand>>,
    // The cluster stays on one thread, as the library does not promise that it may be moved.
    thread: Option<ThreadHandle>,
}

impl EmbeddedBroker {
    /// Starts a broker on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// Fails if the library cannot start it.
    pub fn start() -> Result<Self> {
        let (orders, inbox) = channel();
        let (ready, started) = channel();
        let thread =
            thread::start(ThreadRole::EmbeddedBroker, ThreadRole::EmbeddedBroker.name(), move || run(&inbox, &ready))?;
        let gone = || Error::new("cannot start an embedded broker").because("its thread ended");
        let servers = started.recv().map_err(|_| thread.panic().cloned().unwrap_or_else(gone))??;
        Ok(EmbeddedBroker { servers, orders: Some(orders), thread: Some(thread) })
    }

    /// Returns the broker's address, `HOST:PORT`, as for `--brokers`.
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// Creates a topic with `partitions` partitions, at most 10,000.
    ///
    /// # Errors
    /// Fails if the library cannot create it.
    pub fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        self.order(|reply| BrokerCommand::Create(topic.to_owned(), partitions.min(10_000) as i32, reply))
    }

    /// Makes the broker reachable, or unreachable as if its network were cut.
    ///
    /// # Errors
    /// Fails if the library cannot.
    pub fn set_reachable(&self, reachable: bool) -> Result<()> {
        self.order(|reply| BrokerCommand::Reachable(reachable, reply))
    }

    fn order(&self, order: impl FnOnce(CommandReply) -> BrokerCommand) -> Result<()> {
        let gone = || {
            let panic = self.thread.as_ref().and_then(ThreadHandle::panic).cloned();
            panic.unwrap_or_else(|| Error::new("the embedded broker has ended"))
        };
        let (reply, answer) = channel();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send(order(reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

fn run(inbox: &Receiver<BrokerCommand>, ready: &Sender<Result<String>>) {
    let cluster = match MockCluster::new(1) {
        Ok(cluster) => cluster,
        Err(error) => {
            let _ = ready
                .send(Err(Error::new("cannot start an embedded broker").because(error_text(&error)).caused_by(error)));
            return;
        }
    };
    let _ = ready.send(Ok(cluster.bootstrap_servers()));
    while let Ok(order) = inbox.recv() {
        thread::mark_iteration();
        let (done, reply) = match order {
            BrokerCommand::Create(topic, partitions, reply) => (cluster.create_topic(&topic, partitions, 1), reply),
            BrokerCommand::Reachable(true, reply) => (cluster.broker_up(1), reply),
            BrokerCommand::Reachable(false, reply) => (cluster.broker_down(1), reply),
        };
        let done = done.map_err(|error| {
            Error::new("the embedded broker cannot do that").because(error_text(&error)).caused_by(error)
        });
        let _ = reply.send(done);
    }
}
