//! Query 7: highest bid. The highest bids of every ten seconds.
//!
//! Windows are half-open, here as everywhere. (Flink's SQL compares with `BETWEEN`: there a bid at the very end of a window
//! is one of the window, too, if it is as high.)
//!
//! ```sql
//! SELECT auction, bidder, price, date_time, extra FROM bid
//! QUALIFY price = MAX(price) OVER (PARTITION BY time_bucket(INTERVAL '10 seconds', date_time))
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::{EventTime, Stream, Window};

use crate::greatest::Greatest;
use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    date_time: EventTime,
    extra: String,
}

/// Returns the highest bids of each window.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let rows = bids(events).map(|bid| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: bid.price,
        date_time: bid.date_time,
        extra: bid.extra,
    });
    rows.key_by(|_| ())
        .window(Window::tumbling(Duration::from_secs(10)))
        .aggregate("highest", |each| each.merge(|bid| Greatest::of(bid.price, bid.clone())))
        .on_close()
        .flat_map(|row| row.value.into_values())
}
