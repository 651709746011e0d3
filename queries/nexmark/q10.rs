//! Query 10: a log. Each bid with the day and the minute by which files would be divided.
//!
//! In Flink's SQL the last two columns are those by which a file sink names its directories. Here they are columns of one
//! output, which is published epoch by epoch.
//!
//! ```sql
//! SELECT auction, bidder, price, date_time, extra, strftime(date_time, '%Y-%m-%d') AS dt, strftime(date_time, '%H:%M') AS hm
//! FROM bid
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{EventTime, Stream};

use crate::calendar::{day, minute};
use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    date_time: EventTime,
    extra: String,
    dt: String,
    hm: String,
}

/// Returns the bids with their day and minute.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).map(|bid| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: bid.price,
        date_time: bid.date_time,
        extra: bid.extra,
        dt: day(bid.date_time),
        hm: minute(bid.date_time),
    })
}
