//! Dead letters of messages that were decoded: what is wrong with them is found by a later step.

use super::message::Message;
use crate::source::rejected::{DeadLetter, Rejected};

impl DeadLetter {
    /// Makes a dead letter of a message that was decoded, for a reason found later: `step` is the name of the step that
    /// cannot use it. A decoder that keeps the message (`kafka::Decode::with_meta`) makes such letters possible.
    ///
    /// ```
    /// use tidegate::kafka::{self, DeadLetter, Decode, Message};
    ///
    /// // Each record comes with the letter that it becomes if it is late.
    /// let readings = kafka::Source::new(
    ///     "localhost:9092",
    ///     "reading",
    ///     kafka::json().with_meta(|celsius: i64, message: &Message<'_>| (celsius, DeadLetter::of(message, "hourly", "late"))),
    /// )
    /// .event_time_of_message();
    /// let letters = kafka::Sink::dead_letters("localhost:9092", "reading-late");
    /// ```
    pub fn of(message: &Message<'_>, step: &str, reason: &str) -> Self {
        let place = (message.topic(), message.partition(), message.offset());
        let rejected = Rejected::new(step, place, reason, message.value().unwrap_or_default());
        DeadLetter { rejected, message: Some(message.to_rejected()) }
    }
}
