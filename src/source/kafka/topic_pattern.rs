//! Patterns of topics: which names match, and in what words a state that does not fit is refused.
//!
//! A pattern is a regular expression that has to match a whole name, as in subscriptions of Kafka's consumers. Topics
//! that are not for people never match: names that begin with two underscores, which are the brokers' own, and the
//! topics in which sinks keep their progress.
//!
//! Invariant: nothing here asks brokers.

use regex_lite::Regex;

use super::client::TopicConfig;
use crate::durable::journal::TopicPartition;
use crate::error::{Error, ErrorKind, Result};

/// Suffix of the names of topics in which sinks keep their progress.
pub(crate) const PROGRESS_SUFFIX: &str = "-tidegate-progress";

/// A pattern of names of topics.
#[derive(Clone, Debug)]
pub(super) struct TopicPattern {
    text: String,
    whole: Regex,
}

impl TopicPattern {
    /// Parses a regular expression.
    ///
    /// # Errors
    /// Fails if it is none. The error is one of usage.
    pub(super) fn parse(text: &str) -> Result<Self> {
        // By itself, too: `a)(b` is no expression, but would be one in parentheses.
        let whole = Regex::new(text).and_then(|_| Regex::new(&format!("^(?:{text})$")));
        let whole = whole.map_err(|why| {
            let error = Error::usage(format!("the pattern of topics {text} is no regular expression")).because(why);
            error.help(r"escape the dot in names: orders\..* matches orders.eu and orders.us")
        })?;
        if text.is_empty() {
            let error = Error::usage("the pattern of topics is empty");
            return Err(error.help(r"name a regular expression, such as orders\..*"));
        }
        Ok(TopicPattern { text: text.to_owned(), whole })
    }

    /// `true` if topics of this name are read.
    pub(super) fn is_match(&self, topic: &str) -> bool {
        !topic.starts_with("__") && !topic.ends_with(PROGRESS_SUFFIX) && self.whole.is_match(topic)
    }

    /// Returns the identity of the source, which depends on the pattern alone: the state knows the ids of its topics.
    pub(super) fn identity(&self) -> String {
        format!("topics matching {}", self.text)
    }

    /// Describes the source for people.
    pub(super) fn describe(text: &str, brokers: &str) -> String {
        format!("topics matching {text} at {brokers}")
    }
}

/// Returns the error for a pattern that matches no topic, in a job that ends.
pub(super) fn no_match(describe: &str) -> Error {
    let error = Error::of(ErrorKind::SourceUnreachable, "no topic matches the pattern").at(describe);
    let error = error.because("the job reads to an end, so it waits for no topic");
    error.help("check the pattern, which has to match whole names, or create a topic")
}

/// Returns the error for a state whose topics the pattern does not match.
pub(super) fn not_matched(describe: &str, topic: &str) -> Error {
    let what = format!("the state has read the topic {topic}, which the pattern does not match");
    let error = Error::of(ErrorKind::SourceChanged, what).at(describe);
    error.help("name a pattern that matches all topics of the state, or start with a new --state")
}

/// Returns the error for a state of a single topic, or of a list, that is to go on with a pattern.
pub(super) fn not_of_pattern(describe: &str) -> Error {
    let error = Error::of(ErrorKind::SourceChanged, "the state has read a topic, or a list, and no pattern");
    let error = error.at(describe).because("it does not say which topic its partitions are of");
    error.help("name the topics as before, or start with a new --state")
}

/// Returns the error for a state of a pattern that is to go on with a single topic or a list.
pub(super) fn of_pattern(describe: &str, known: &TopicPartition) -> Error {
    let error = Error::of(ErrorKind::SourceChanged, "the state has read topics by a pattern").at(describe);
    let error = error.because(format!("its partitions have other numbers, such as that of {known}"));
    error.help("name the pattern as before, or start with a new --state")
}

/// Returns the error for a topic of a state that is not there any more.
pub(super) fn gone(topic_config: &TopicConfig) -> Error {
    let what = format!("the topic {}, which the state has read, does not exist", topic_config.topic);
    let error = Error::of(ErrorKind::SourceChanged, what).at(&topic_config.brokers);
    error.because("the results may depend on records of it that were not read").help("start with a new --state")
}

/// Returns the error for a topic of a state that was made again while nobody read it.
pub(super) fn made_again(topic_config: &TopicConfig) -> Error {
    let what = format!("the topic {} was deleted and created again since the state has read it", topic_config.topic);
    let error = Error::of(ErrorKind::SourceChanged, what).at(&topic_config.brokers);
    error.because("it has another id").help("start again with a new --state and new outputs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names_and_none_that_are_not_for_people() {
        let pattern = TopicPattern::parse(r"orders\..*|pay").unwrap();
        for (name, is_match) in [
            ("orders.eu", true),
            ("orders.", true),
            ("pay", true),
            ("orders", false),
            ("ordersXeu", false),
            ("my.orders.eu", false),
            ("payments", false),
            ("repay", false),
            ("orders.eu-tidegate-progress", false),
        ] {
            assert_eq!(pattern.is_match(name), is_match, "{name}");
        }
        let all = TopicPattern::parse(".*").unwrap();
        assert!(all.is_match("a") && all.is_match("_a") && !all.is_match("__consumer_offsets"));
        // Anchors of one's own change nothing.
        assert!(TopicPattern::parse("^a.$").unwrap().is_match("ab"));
    }

    #[test]
    fn what_is_no_expression_is_wrong_usage() {
        for text in ["", "(", "a)(b", "*", r"\"] {
            let error = TopicPattern::parse(text).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains("pattern of topics"), "{text}: {error}");
        }
    }
}
