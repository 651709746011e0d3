//! Changes of database tables, as Debezium writes them in JSON.
//!
//! The value of a message is an **envelope**: the row `before` and `after` a change, and the operation `op`: `c` creates a
//! row, `r` reads one in a first snapshot, `u` updates and `d` deletes one. An envelope may be in a wrapper with its
//! schema, `{"schema": …, "payload": …}`. A delete is followed by a tombstone, so that compaction removes the key.
//!
//! Invariants: an envelope is decoded whole or rejected with its reason; operations that are no change of one row are
//! rejected (`t`, truncation of the table) or skipped (`m`, a message of the application).

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::decode::{Decode, DecodeError};
use super::decoders::json;
use super::mapping::{EventTimeOrigin, MessageMapping};
use super::message::Message;
use super::table::key_of;
use super::{DecodedTopic, Source};
use crate::record::Record;
use crate::source::{CheckedChange, RowBefore};
use crate::time::EventTime;

/// The change of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DebeziumEvent<V> {
    /// The row before the change; `None` for a new row, and where the database does not tell it.
    pub before: Option<V>,
    /// The row after the change; `None` if it was deleted.
    pub after: Option<V>,
    /// The time of the change in the database (`source.ts_ms`); if that is missing, the time at which Debezium handled it,
    /// or the message's timestamp, or 1970.
    pub at: EventTime,
}

impl<V> DebeziumEvent<V> {
    /// Returns the change of the collection of all rows: the row before it once less, the one after it once more.
    pub fn changes(self) -> impl Iterator<Item = (V, isize)> {
        self.before.map(|row| (row, -1)).into_iter().chain(self.after.map(|row| (row, 1)))
    }
}

/// Returns the decoder of Debezium's envelopes. Tombstones are skipped.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// # struct Id { id: u64 }
/// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
/// # struct Account { id: u64, owner: String }
/// use tidegate::kafka;
///
/// let topic = kafka::Source::new("localhost:9092", "bank.public.account", kafka::debezium::<Account>());
/// let accounts = topic.rows(kafka::debezium_key::<Id>());
/// # let run = move |flow: &tidegate::Flow<'_>| {
/// let accounts = flow.table("accounts", &accounts); // a collection of `(Id, Account)`
/// # };
/// ```
pub fn debezium<V: DeserializeOwned + 'static>() -> DebeziumDecoder<V> {
    DebeziumDecoder { needs_before: false, rows: PhantomData }
}

/// Returns the decoder of Debezium's keys, with or without a schema: see [`DecodedTopic::rows`].
pub fn debezium_key<K: DeserializeOwned + 'static>() -> DebeziumKeyDecoder<K> {
    DebeziumKeyDecoder(PhantomData)
}

/// The decoder of Debezium's envelopes: see [`debezium`].
pub struct DebeziumDecoder<V> {
    needs_before: bool,
    rows: PhantomData<fn() -> V>,
}

impl<V> fmt::Debug for DebeziumDecoder<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DebeziumDecoder").field("needs_before", &self.needs_before).finish_non_exhaustive()
    }
}

impl<V> DebeziumDecoder<V> {
    /// Rejects updates and deletes without the row before the change: without it, nothing says which row to retract. In
    /// PostgreSQL `REPLICA IDENTITY FULL` makes databases tell it.
    #[must_use]
    pub fn needs_before(mut self) -> Self {
        self.needs_before = true;
        self
    }
}

/// The decoder of Debezium's keys: see [`debezium_key`].
#[derive(Clone, Debug)]
pub struct DebeziumKeyDecoder<K>(PhantomData<fn() -> K>);

/// The fields of an envelope. `B` is the type of rows before a change, which are not read in a table.
#[derive(Deserialize)]
#[serde(bound = "B: Deserialize<'de>, V: Deserialize<'de>")]
struct DebeziumFields<B, V> {
    op: Option<String>,
    before: Option<B>,
    after: Option<V>,
    source: Option<DebeziumOrigin>,
    ts_ms: Option<i64>,
}

/// The origin of a change.
#[derive(Deserialize)]
struct DebeziumOrigin {
    ts_ms: Option<i64>,
}

/// An envelope, or a wrapper around one.
#[derive(Deserialize)]
#[serde(bound = "B: Deserialize<'de>, V: Deserialize<'de>")]
struct DebeziumMessage<B, V> {
    payload: Option<DebeziumFields<B, V>>,
    op: Option<String>,
    before: Option<B>,
    after: Option<V>,
    source: Option<DebeziumOrigin>,
    ts_ms: Option<i64>,
}

/// A key in a wrapper.
#[derive(Deserialize)]
struct WrappedKey<K> {
    #[serde(rename = "schema")]
    _schema: IgnoredAny,
    payload: K,
}

/// Decodes an envelope; `None` for a message that is no change. The caller handles tombstones.
fn decode_envelope<B, V>(message: &Message<'_>, needs_before: bool) -> Result<Option<EnvelopeChange<B, V>>, DecodeError>
where
    B: DeserializeOwned + 'static,
    V: DeserializeOwned + 'static,
{
    let Some(DebeziumMessage { payload, op, before, after, source, ts_ms }) = json().decode(message)? else {
        return Ok(None);
    };
    let bare = DebeziumFields { op, before, after, source, ts_ms };
    let DebeziumFields { op, before, after, source, ts_ms } = payload.unwrap_or(bare);
    let at = source.and_then(|source| source.ts_ms).or(ts_ms).map(EventTime::from_millis).or(message.timestamp());
    let at = at.unwrap_or(EventTime::from_millis(0));
    let lacks = |what: &str, op: &str| Err(DecodeError::Rejected(format!("the change `{op}` has no row `{what}`")));
    match op.as_deref() {
        Some(op @ ("c" | "r" | "u")) if after.is_none() => lacks("after", op),
        Some("u") if needs_before && before.is_none() => lacks("before", "u"),
        // What a new row replaces is nothing, whatever is written there. A row that is read may be there already.
        Some("c") => Ok(Some((RowBefore::None, after, at))),
        Some("r") => Ok(Some((RowBefore::Any, after, at))),
        Some("u") => Ok(Some((before.map_or(RowBefore::Any, RowBefore::Row), after, at))),
        Some("d") if needs_before && before.is_none() => lacks("before", "d"),
        Some("d") => Ok(Some((before.map_or(RowBefore::Any, RowBefore::Row), None, at))),
        Some("m") => Ok(None),
        Some("t") => Err(DecodeError::from("the table was truncated (`t`), and which rows that deletes is not told")),
        Some(op) => {
            Err(DecodeError::Rejected(format!("the operation `{}` of the change is unknown", op.escape_debug())))
        }
        None => Err(DecodeError::from("not a change of Debezium: it has no `op`")),
    }
}

/// Row before, row after, and time of a change.
type EnvelopeChange<B, V> = (RowBefore<B>, Option<V>, EventTime);

impl<V: DeserializeOwned + 'static> Decode<DebeziumEvent<V>> for DebeziumDecoder<V> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<DebeziumEvent<V>>, DecodeError> {
        if message.value().is_none() {
            return Ok(None);
        }
        let change = decode_envelope(message, self.needs_before)?;
        Ok(change.map(|(before, after, at)| {
            let before = if let RowBefore::Row(row) = before { Some(row) } else { None };
            DebeziumEvent { before, after, at }
        }))
    }
}

impl<K: DeserializeOwned + 'static> Decode<K> for DebeziumKeyDecoder<K> {
    fn decode(&self, message: &Message<'_>) -> Result<Option<K>, DecodeError> {
        match json::<WrappedKey<K>>().decode(message) {
            Ok(key) => Ok(key.map(|key| key.payload)),
            // A key without a schema.
            Err(_) => json().decode(message),
        }
    }
}

/// The decoder of the rows of a table, by key.
struct DebeziumRowDecoder<K, V, KD> {
    key: KD,
    rows: PhantomData<fn() -> (K, V)>,
}

impl<K, V, KD> Decode<(K, Option<V>)> for DebeziumRowDecoder<K, V, KD>
where
    K: 'static,
    V: DeserializeOwned + 'static,
    KD: Decode<K>,
{
    fn decode(&self, message: &Message<'_>) -> Result<Option<(K, Option<V>)>, DecodeError> {
        let Some(key) = key_of(&self.key, message)? else { return Ok(None) };
        // Compaction may have left the tombstone alone.
        if message.value().is_none() {
            return Ok(Some((key, None)));
        }
        let change = decode_envelope::<IgnoredAny, V>(message, false)?;
        Ok(change.map(|(_, after, _)| (key, after)))
    }

    fn check(&self) -> Result<(), String> {
        self.key.check().map_err(|why| format!("the key: {why}"))
    }
}

/// The decoder of the changes of a table's rows, by key, with the rows before them.
struct CheckedRowDecoder<K, V, KD> {
    key: KD,
    rows: PhantomData<fn() -> (K, V)>,
}

impl<K, V, KD> Decode<(K, CheckedChange<V>)> for CheckedRowDecoder<K, V, KD>
where
    K: 'static,
    V: DeserializeOwned + 'static,
    KD: Decode<K>,
{
    fn decode(&self, message: &Message<'_>) -> Result<Option<(K, CheckedChange<V>)>, DecodeError> {
        let Some(key) = key_of(&self.key, message)? else { return Ok(None) };
        // A delete is before it.
        if message.value().is_none() {
            return Ok(Some((key, CheckedChange { before: RowBefore::None, after: None })));
        }
        let change = decode_envelope::<V, V>(message, true)?;
        Ok(change.map(|(before, after, _)| (key, CheckedChange { before, after })))
    }

    fn check(&self) -> Result<(), String> {
        self.key.check().map_err(|why| format!("the key: {why}"))
    }
}

impl<V: Record> DecodedTopic<DebeziumEvent<V>, DebeziumDecoder<V>> {
    /// Reads the changes of a database's table by their key, each with the row before it, for
    /// [`Flow::checked_table`](crate::Flow::checked_table): the row before an update or a delete has to be the one that the
    /// changes before it have made, a new row (`c`) and a tombstone need that there is none. A row that a snapshot reads
    /// (`r`) replaces any. An update or a delete that does not tell the row before it is rejected. `key` decodes keys, such
    /// as [`debezium_key`].
    ///
    /// Every change is needed, so a compacted topic is refused.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Id { id: u64 }
    /// # #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    /// # struct Account { id: u64, owner: String }
    /// use tidegate::kafka;
    ///
    /// let topic = kafka::Source::new("localhost:9092", "bank.public.account", kafka::debezium::<Account>());
    /// let accounts = topic.checked_rows(kafka::debezium_key::<Id>());
    /// # let run = move |flow: &tidegate::Flow<'_>| {
    /// let accounts = flow.checked_table("accounts", &accounts);
    /// let rows = accounts.rows(); // a collection of `(Id, Account)`
    /// # };
    /// ```
    pub fn checked_rows<K: Record>(self, key: impl Decode<K>) -> Source<(K, CheckedChange<V>)> {
        let decoder = CheckedRowDecoder { key, rows: PhantomData };
        let mapping = MessageMapping { decoder, event_time: EventTimeOrigin::TimestampIfAny };
        Source::with(self.topic_config, self.topics, Arc::new(mapping))
    }

    /// Reads the rows of a database's table by their key, for [`Flow::table`](crate::Flow::table): a change sets the row
    /// of its key, or deletes it, and so does a tombstone. Rows before a change are not looked at. `key` decodes keys,
    /// such as [`debezium_key`].
    pub fn rows<K: Record>(self, key: impl Decode<K>) -> Source<(K, Option<V>)> {
        let decoder = DebeziumRowDecoder { key, rows: PhantomData };
        let mapping = MessageMapping { decoder, event_time: EventTimeOrigin::TimestampIfAny };
        Source::with(self.topic_config, self.topics, Arc::new(mapping)).compacted(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::journal::JournaledRecord;
    use crate::record::records;

    records! {
        struct Customer { id: i64, first_name: String, email: Option<String> }
    }

    /// An update as the connector's documentation has it, in short.
    const BARE: &str = r#"{
        "before": {"id": 1004, "first_name": "Anne", "email": null, "other": 1.5},
        "after": {"id": 1004, "first_name": "Anne Marie", "email": "a@b.org"},
        "source": {"version": "3.0", "connector": "postgresql", "name": "dbserver1", "ts_ms": 1559033904863,
                   "snapshot": "false", "db": "inventory", "table": "customers", "lsn": 24023128, "xmin": null},
        "transaction": null, "op": "u", "ts_ms": 1559033905000, "ts_us": 1559033905000000
    }"#;

    fn customer(name: &str, email: Option<&str>) -> Customer {
        Customer { id: 1004, first_name: name.into(), email: email.map(str::to_owned) }
    }

    fn record(key: &str, value: Option<&str>) -> JournaledRecord {
        let bytes = |text: &str| text.as_bytes().to_vec();
        JournaledRecord { key: Some(bytes(key)), payload: value.map(bytes), ..JournaledRecord::default() }
    }

    fn decoded<T>(decoder: &impl Decode<T>, value: Option<&str>) -> Result<Option<T>, String> {
        let message = record(r#"{"id": 1004}"#, value);
        decoder.decode(&Message::of_record("t", 0, &message)).map_err(|error| error.to_string())
    }

    fn wrapped(envelope: &str) -> String {
        format!(r#"{{"schema": {{"type": "struct", "fields": [], "op": 3}}, "payload": {envelope}}}"#)
    }

    #[test]
    fn an_envelope_is_an_insert_an_update_or_a_delete_with_a_schema_or_without() {
        let decoder = debezium::<Customer>();
        let (old, new) = (customer("Anne", None), customer("Anne Marie", Some("a@b.org")));
        let event = |before, after| DebeziumEvent { before, after, at: EventTime::from_millis(1_559_033_904_863) };
        for text in [BARE.to_owned(), wrapped(BARE)] {
            let change = |op: &str| decoded(&decoder, Some(&text.replace(r#""op": "u""#, &format!(r#""op": "{op}""#))));
            assert_eq!(change("u"), Ok(Some(event(Some(old.clone()), Some(new.clone())))));
            assert_eq!(change("c"), Ok(Some(event(None, Some(new.clone())))));
            assert_eq!(change("r"), Ok(Some(event(None, Some(new.clone())))));
            assert_eq!(change("d"), Ok(Some(event(Some(old.clone()), None))));
            assert_eq!(change("m"), Ok(None));
            assert!(change("t").unwrap_err().contains("truncated"));
            assert_eq!(change("x").unwrap_err(), "the operation `x` of the change is unknown");
        }
        assert_eq!(decoded(&decoder, None), Ok(None), "a tombstone");
        let changes: Vec<_> = event(Some(old.clone()), Some(new.clone())).changes().collect();
        assert_eq!(changes, [(old, -1), (new, 1)]);
    }

    #[test]
    fn what_an_envelope_lacks_is_told() {
        let decoder = debezium::<Customer>();
        for (text, expected) in [
            ("{}", "it has no `op`"),
            (r#"{"schema": {}, "payload": null}"#, "it has no `op`"),
            (r#"{"op": "c", "before": null, "after": null}"#, "the change `c` has no row `after`"),
            (r#"{"op": "u", "after": {"id": 1}}"#, "not the expected JSON: missing field"),
            ("[1]", "not the expected JSON"),
            ("", "not the expected JSON"),
        ] {
            let why = decoded(&decoder, Some(text)).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        // PostgreSQL tells no row before a change by default.
        let update = BARE.replacen(
            r#""before": {"id": 1004, "first_name": "Anne", "email": null, "other": 1.5}"#,
            r#""before": null"#,
            1,
        );
        assert_eq!(decoded(&decoder, Some(&update)).unwrap().unwrap().before, None);
        let strict = debezium::<Customer>().needs_before();
        assert_eq!(decoded(&strict, Some(&update)).unwrap_err(), "the change `u` has no row `before`");
        let delete = r#"{"op": "d", "before": null, "after": null, "ts_ms": 7}"#;
        assert_eq!(decoded(&strict, Some(delete)).unwrap_err(), "the change `d` has no row `before`");
        assert_eq!(decoded(&decoder, Some(delete)).unwrap().unwrap().at, EventTime::from_millis(7));
    }

    #[test]
    fn a_checked_change_has_the_row_before_it_or_says_that_there_is_none() {
        records! {
            struct Id { id: i64 }
        }
        let decoder = CheckedRowDecoder::<Id, Customer, _> { key: debezium_key::<Id>(), rows: PhantomData };
        let (old, new) = (customer("Anne", None), customer("Anne Marie", Some("a@b.org")));
        let change = |op: &str| decoded(&decoder, Some(&BARE.replace(r#""op": "u""#, &format!(r#""op": "{op}""#))));
        let expected = |before, after| Ok(Some((Id { id: 1004 }, CheckedChange { before, after })));
        assert_eq!(change("u"), expected(RowBefore::Row(old.clone()), Some(new.clone())));
        assert_eq!(change("d"), expected(RowBefore::Row(old.clone()), None));
        assert_eq!(change("c"), expected(RowBefore::None, Some(new.clone())));
        assert_eq!(change("r"), expected(RowBefore::Any, Some(new)));
        assert_eq!(change("m"), Ok(None));
        assert_eq!(decoded(&decoder, None), expected(RowBefore::None, None));
        for op in ["u", "d"] {
            let text = format!(r#"{{"op": "{op}", "before": null, "after": {{"id": 1004, "first_name": "A"}}}}"#);
            let why = format!("the change `{op}` has no row `before`");
            assert_eq!(decoded(&decoder, Some(&text)).unwrap_err(), why);
        }
        let allows = |before: RowBefore<u8>, row: Option<u8>| before.allows(row.as_ref());
        assert!(allows(RowBefore::Any, None) && allows(RowBefore::Any, Some(1)));
        assert!(allows(RowBefore::None, None) && !allows(RowBefore::None, Some(1)));
        assert!(
            allows(RowBefore::Row(1), Some(1))
                && !allows(RowBefore::Row(1), None)
                && !allows(RowBefore::Row(1), Some(2))
        );
    }

    #[test]
    fn a_row_is_found_by_its_key_and_rows_before_are_not_looked_at() {
        records! {
            struct Id { id: i64 }
        }
        let decoder = DebeziumRowDecoder::<Id, Customer, _> { key: debezium_key::<Id>(), rows: PhantomData };
        let new = customer("Anne Marie", Some("a@b.org"));
        // Of a deleted row only the key is there, the rest is null.
        let partial = BARE.replacen(r#""first_name": "Anne","#, r#""first_name": null,"#, 1);
        assert_eq!(decoded(&decoder, Some(&partial)), Ok(Some((Id { id: 1004 }, Some(new)))));
        let delete = partial.replace(r#""op": "u""#, r#""op": "d""#);
        assert_eq!(decoded(&decoder, Some(&wrapped(&delete))), Ok(Some((Id { id: 1004 }, None))));
        assert_eq!(decoded(&decoder, None), Ok(Some((Id { id: 1004 }, None))));
        let keys = debezium_key::<Id>();
        for (key, expected) in [
            (r#"{"id": 5}"#, Some(5)),
            (r#"{"schema": {"type": "struct"}, "payload": {"id": 6}}"#, Some(6)),
            (r#"{"schema": {}}"#, None),
            ("5", None),
        ] {
            let record = record(key, None);
            let found = keys.decode(&Message::of_record("t", 0, &record).of_key());
            assert_eq!(found.ok().flatten().map(|key| key.id), expected, "{key}");
        }
    }
}
