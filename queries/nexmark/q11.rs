//! Query 11: user sessions. The number of bids of each bidder that are less than ten seconds apart.
//!
//! ```sql
//! SELECT bidder, COUNT(*) AS bid_count, MIN(date_time) AS starttime, MAX(date_time) + INTERVAL '10 seconds' AS endtime
//! FROM (
//!   SELECT bidder, date_time, SUM(is_first) OVER (PARTITION BY bidder ORDER BY date_time, seq) AS session
//!   FROM (
//!     SELECT bidder, date_time, seq, CASE
//!       WHEN date_time - LAG(date_time) OVER (PARTITION BY bidder ORDER BY date_time, seq) < INTERVAL '10 seconds' THEN 0
//!       ELSE 1
//!     END AS is_first
//!     FROM bid
//!   )
//! )
//! GROUP BY bidder, session
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

/// Returns the sessions of each bidder.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let sessions = bids(events)
        .map(|bid| bid.bidder)
        .key_by(|bidder| *bidder)
        .window(Window::session(Duration::from_secs(10)))
        .aggregate("sessions", Each::count);
    sessions.on_close().map(|row| Row {
        bidder: row.key,
        bid_count: row.value,
        starttime: row.window.start,
        endtime: row.window.end,
    })
}
