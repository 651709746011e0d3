//! Names of subjects: the lists of versions that a registry keeps schemas in.

/// Strategy by which the subject of a message's schema is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubjectNaming {
    /// `TOPIC-value`: the topic has messages of one schema and its versions.
    #[default]
    Topic,
    /// The full name of the record or message type: it has the same versions in all topics.
    Record,
    /// `TOPIC-TYPE`: the topic has messages of several types, each with its versions.
    TopicRecord,
}

impl SubjectNaming {
    /// Returns the subject of a topic's values of this type; `is_key` for that of its keys, which only
    /// [`SubjectNaming::Topic`] tells apart.
    pub fn subject(self, topic: &str, type_name: &str, is_key: bool) -> String {
        match self {
            SubjectNaming::Topic => format!("{topic}-{}", if is_key { "key" } else { "value" }),
            SubjectNaming::Record => type_name.to_owned(),
            SubjectNaming::TopicRecord => format!("{topic}-{type_name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_named_as_other_clients_name_them() {
        let named = |naming: SubjectNaming, is_key| naming.subject("t", "com.acme.Paid", is_key);
        assert_eq!(named(SubjectNaming::Topic, false), "t-value");
        assert_eq!(named(SubjectNaming::Topic, true), "t-key");
        assert_eq!(named(SubjectNaming::Record, true), "com.acme.Paid");
        assert_eq!(named(SubjectNaming::TopicRecord, false), "t-com.acme.Paid");
    }
}
