//! Query 1: currency conversion. The price of each bid in euros.
//!
//! ```sql
//! SELECT auction, bidder, CAST(0.908 * price AS DECIMAL(23, 3)) AS price, date_time, extra FROM bid
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Decimal, EventTime, Stream};

use crate::model::{Event, bids};

/// Thousandths of a euro in a dollar.
pub(crate) const RATE: i64 = 908;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: Decimal,
    date_time: EventTime,
    extra: String,
}

/// Returns the bids, in euros.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).map(|bid| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: Decimal::new(bid.price * RATE, 3),
        date_time: bid.date_time,
        extra: bid.extra,
    })
}
