//! Query 13: bounded side input. Each bid with the text that a table of ten thousand rows has for its auction.
//!
//! The table is read first, so that no bid misses its row.
//!
//! ```sql
//! SELECT b.auction, b.bidder, b.price, b.date_time, s.value
//! FROM bid b JOIN side_input s ON b.auction % 10000 = s.key
//! ```

use serde::{Deserialize, Serialize};
use tidegate::source::memory::MemorySource;
use tidegate::{EventTime, Flow, Stream};

use crate::model::{Event, bids};

/// Rows of the table.
const ROWS: u64 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    date_time: EventTime,
    value: String,
}

/// Returns the rows of the side input: a key, and its text.
pub(crate) fn side_input() -> impl Iterator<Item = (u64, String)> {
    (0..ROWS).map(|key| (key, key.to_string()))
}

/// Returns the side input as a source.
pub(crate) fn side_source() -> MemorySource<(u64, Option<String>)> {
    let rows = side_input().map(|(key, value)| (key, Some(value))).collect();
    MemorySource::new(vec![rows], |_| 0)
}

/// Returns the bids with their texts.
pub(crate) fn query<'f>(
    flow: &Flow<'f>,
    events: Stream<'f, Event>,
    side: &MemorySource<(u64, Option<String>)>,
) -> Stream<'f, Row> {
    let side = flow.table_first("side_input", side);
    let bids = bids(events).map(|bid| (bid.auction, bid.bidder, bid.price, bid.date_time));
    bids.key_by(|(auction, ..)| auction % ROWS)
        .join_table(side)
        .map(|((auction, bidder, price, date_time), value)| Row { auction, bidder, price, date_time, value })
}
