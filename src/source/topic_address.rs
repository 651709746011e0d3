//! Addresses of topics: a source and a sink name theirs, and a job that would read what it writes is refused.
//!
//! Invariant: two addresses are the same only if their topics have one name and their brokers are of one cluster: they
//! name a broker alike, or the brokers say so. Brokers that cannot be asked are taken for different ones.

use std::fmt;
use std::sync::Arc;

/// Function that returns `true` for the name of a topic that is meant.
type NameMatcher = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A topic at brokers, as a source reads it or a sink writes it; or all topics of some names there.
#[derive(Clone)]
pub struct TopicAddress {
    topic: String,
    brokers: String,
    /// `true` for the names of the topics; `None` if it is the one topic.
    names: Option<NameMatcher>,
    cluster: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl TopicAddress {
    /// Creates the address of a topic at these brokers, `HOST:PORT` with commas between them. `cluster` asks the brokers for
    /// the id of their cluster; `None` if they do not answer.
    pub fn new(
        topic: impl Into<String>,
        brokers: impl Into<String>,
        cluster: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        TopicAddress { topic: topic.into(), brokers: brokers.into(), names: None, cluster: Arc::new(cluster) }
    }

    /// Makes it the address of all topics for whose names `names` returns `true`; its topic then describes them, such as
    /// "matching a.*".
    #[must_use]
    pub fn matching(self, names: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        TopicAddress { names: Some(Arc::new(names)), ..self }
    }

    /// `true` if both are one topic, or one of them is among the topics of the other.
    pub(crate) fn is_same_as(&self, other: &TopicAddress) -> bool {
        let is_named_so = match (&self.names, &other.names) {
            (None, None) => self.topic == other.topic,
            (Some(names), None) => names(&other.topic),
            (None, Some(names)) => names(&self.topic),
            (Some(_), Some(_)) => false, // Nothing is written to all topics of some names.
        };
        is_named_so && (self.names_a_broker_of(other) || self.is_in_cluster_of(other))
    }

    fn names_a_broker_of(&self, other: &TopicAddress) -> bool {
        let brokers = |address: &TopicAddress| -> Vec<String> {
            address.brokers.split(',').map(|broker| broker.trim().to_lowercase()).collect()
        };
        let theirs = brokers(other);
        brokers(self).iter().any(|broker| theirs.contains(broker))
    }

    fn is_in_cluster_of(&self, other: &TopicAddress) -> bool {
        (self.cluster)().is_some_and(|cluster| Some(cluster) == (other.cluster)())
    }
}

/// The topic and its brokers, for people.
impl fmt::Display for TopicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {} at {}", self.topic, self.brokers)
    }
}

impl fmt::Debug for TopicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_one_name_are_the_same_at_a_common_broker_or_in_one_cluster() {
        let address = |brokers: &str, topic: &str, cluster: Option<&str>| {
            let cluster = cluster.map(str::to_owned);
            TopicAddress::new(topic, brokers, move || cluster.clone())
        };
        let one = address("a:1, B:2", "t", Some("x"));
        assert!(one.is_same_as(&address("b:2", "t", None)));
        assert!(!one.is_same_as(&address("b:2", "u", Some("x"))));
        assert!(one.is_same_as(&address("c:3", "t", Some("x"))));
        assert!(!one.is_same_as(&address("c:3", "t", Some("y"))));
        assert!(!one.is_same_as(&address("c:3", "t", None)));
        let several = address("a:1", "matching t.*", None).matching(|name| name.starts_with('t'));
        for (topic, is_same) in [("t", true), ("tu", true), ("u", false), ("matching t.*", false)] {
            let other = address("a:1", topic, None);
            assert_eq!((several.is_same_as(&other), other.is_same_as(&several)), (is_same, is_same), "{topic}");
        }
        assert!(!several.is_same_as(&address("c:3", "t", None)));
        let silent = address("a:1", "t", None);
        assert!(!silent.is_same_as(&address("c:3", "t", None)));
    }
}
