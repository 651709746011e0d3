//! Addresses of topics, to detect a job that reads what it writes.
//!
//! Invariant: two addresses are the same only if their topics have the same name and their brokers belong to one
//! cluster: both lists name the same broker, or the brokers report the same cluster id. Brokers that do not answer
//! count as different ones.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::Target;

/// Longest wait for brokers to report their cluster id.
const PATIENCE: Duration = Duration::from_secs(5);

/// Address of a topic that a source reads or a sink writes: its brokers and its name.
#[derive(Clone, Debug)]
pub struct Address(Target);

impl Address {
    pub(crate) fn of(target: &Target) -> Self {
        Address(target.clone())
    }

    /// Describes the topic and its brokers for people.
    pub(crate) fn describe(&self) -> String {
        self.0.describe()
    }

    /// `true` if both are addresses of one topic.
    pub(crate) fn is_same_as(&self, other: &Address) -> bool {
        self.0.topic == other.0.topic && (self.names_a_broker_of(other) || self.is_in_cluster_of(other))
    }

    fn names_a_broker_of(&self, other: &Address) -> bool {
        let brokers = |address: &Address| -> Vec<String> {
            address.0.brokers.split(',').map(|broker| broker.trim().to_lowercase()).collect()
        };
        let theirs = brokers(other);
        brokers(self).iter().any(|broker| theirs.contains(broker))
    }

    fn is_in_cluster_of(&self, other: &Address) -> bool {
        self.cluster().is_some_and(|cluster| Some(cluster) == other.cluster())
    }

    /// Asks the brokers for the id of their cluster; `None` if they do not answer.
    fn cluster(&self) -> Option<String> {
        let mut target = self.0.clone();
        target.properties.retain(|key, _| !key.starts_with("transaction"));
        let consumer: BaseConsumer = target.configure(&[("group.id", "tidegate")], &[]).ok()?.create().ok()?;
        consumer.client().fetch_cluster_id(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_broker_makes_topics_of_one_name_the_same() {
        let address = |brokers: &str, topic: &str| Address(Target::new(brokers, topic));
        let one = address("a:1, B:2", "t");
        assert!(one.is_same_as(&address("b:2", "t")));
        assert!(!one.is_same_as(&address("b:2", "u")));
        assert!(!one.names_a_broker_of(&address("c:3", "t")));
    }
}
