//! Query 0: passing through. What the bids are, as they come.
//!
//! ```sql
//! SELECT auction, bidder, price, date_time, extra FROM bid
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{EventTime, Stream};

use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    date_time: EventTime,
    extra: String,
}

/// Returns the bids.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).map(|bid| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: bid.price,
        date_time: bid.date_time,
        extra: bid.extra,
    })
}
