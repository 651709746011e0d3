//! Query 14: calculation. The bids of a range of prices in euros, with the time of the day, and the number of letters c in
//! their filler. In Flink's SQL the letters are counted by a function in Java; here the whole query is Rust.
//!
//! ```sql
//! SELECT auction, bidder, CAST(0.908 * price AS DECIMAL(23, 3)) AS price,
//!   CASE
//!     WHEN hour(date_time) BETWEEN 8 AND 18 THEN 'dayTime'
//!     WHEN hour(date_time) <= 6 OR hour(date_time) >= 20 THEN 'nightTime'
//!     ELSE 'otherTime'
//!   END AS bid_time_type,
//!   date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
//! FROM bid
//! WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Decimal, EventTime, Stream};

use crate::model::{Event, bids};
use crate::q1::RATE;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: Decimal,
    bid_time_type: String,
    date_time: EventTime,
    extra: String,
    c_counts: u64,
}

/// Returns the name of the time of the day.
fn time_type(time: EventTime) -> &'static str {
    match time.millis().div_euclid(3_600_000).rem_euclid(24) {
        8..=18 => "dayTime",
        0..=6 | 20.. => "nightTime",
        _ => "otherTime",
    }
}

/// Returns the bids of the range.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let range = |bid: &_| {
        let Event::Bid(bid) = bid else { return false };
        let price = bid.price * RATE;
        price > 1_000_000_000 && price < 50_000_000_000
    };
    bids(events.filter(range)).map(|bid| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: Decimal::new(bid.price * RATE, 3),
        bid_time_type: time_type(bid.date_time).to_owned(),
        date_time: bid.date_time,
        c_counts: bid.extra.bytes().filter(|byte| *byte == b'c').count() as u64,
        extra: bid.extra,
    })
}
