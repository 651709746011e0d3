//! Query 12: bids of each bidder in every ten seconds.
//!
//! The benchmark asks for ten seconds of processing time. Nothing in Tidegate reads a clock, so that equal input gives equal
//! output: here they are ten seconds of event time, by the windows that begin at whole ten seconds.
//!
//! ```sql
//! SELECT bidder, COUNT(*) AS bid_count, starttime, starttime + INTERVAL '10 seconds' AS endtime
//! FROM (SELECT bidder, time_bucket(INTERVAL '10 seconds', date_time) AS starttime FROM bid)
//! GROUP BY bidder, starttime
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::stream::aggregate::Each;
use tidegate::{EventTime, Stream, Window};

use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    bidder: u64,
    bid_count: i64,
    starttime: EventTime,
    endtime: EventTime,
}

/// Returns the number of bids of each bidder and window.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let counts = bids(events)
        .map(|bid| bid.bidder)
        .key_by(|bidder| *bidder)
        .window(Window::tumbling(Duration::from_secs(10)))
        .aggregate("counts", Each::count);
    counts.on_close().map(|row| Row {
        bidder: row.key,
        bid_count: row.value,
        starttime: row.window.start,
        endtime: row.window.end,
    })
}
