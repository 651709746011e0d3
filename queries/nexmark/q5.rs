//! Query 5: hot items. The auctions with the most bids of the last ten seconds, every two seconds.
//!
//! ```sql
//! SELECT auction, num
//! FROM (
//!   SELECT auction, window_end, COUNT(*) AS num
//!   FROM (
//!     SELECT auction, UNNEST(generate_series(
//!       time_bucket(INTERVAL '2 seconds', date_time) + INTERVAL '2 seconds',
//!       time_bucket(INTERVAL '2 seconds', date_time) + INTERVAL '10 seconds',
//!       INTERVAL '2 seconds')) AS window_end
//!     FROM bid
//!   )
//!   GROUP BY auction, window_end
//! )
//! QUALIFY num = MAX(num) OVER (PARTITION BY window_end)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::stream::aggregate::Each;
use tidegate::{Stream, Window};

use crate::greatest::Greatest;
use crate::model::{Event, bids};

const SIZE: Duration = Duration::from_secs(10);
const SLIDE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    num: i64,
}

/// Returns the auctions with the most bids of each window.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let counts = bids(events)
        .map(|bid| bid.auction)
        .key_by(|auction| *auction)
        .window(Window::sliding(SIZE, SLIDE))
        .aggregate("bids", Each::count)
        .on_close();
    // The counts of a window happen in its last millisecond: those of one window, and no others, in two seconds.
    let greatest = counts
        .key_by(|_| ())
        .window(Window::tumbling(SLIDE))
        .aggregate("hottest", |each| each.merge(|count| Greatest::of(count.value, count.key)))
        .on_close();
    greatest.flat_map(|row| {
        let num = row.value.rank;
        row.value.into_values().map(move |auction| Row { auction, num })
    })
}
