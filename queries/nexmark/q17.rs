//! Query 17: auction statistics. The bids of each auction and day: how many, by the level of the price, and the least,
//! greatest, average and total price. The average is in whole cents.
//!
//! A row is final: it is emitted when the day is over. (In SQL it is corrected with each bid.)
//!
//! ```sql
//! SELECT auction, strftime(date_time, '%Y-%m-%d') AS day,
//!   COUNT(*) AS total_bids,
//!   COUNT(*) FILTER (price < 10000) AS rank1_bids,
//!   COUNT(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
//!   COUNT(*) FILTER (price >= 1000000) AS rank3_bids,
//!   MIN(price) AS min_price, MAX(price) AS max_price, SUM(price) // COUNT(*) AS avg_price, SUM(price) AS sum_price
//! FROM bid
//! GROUP BY auction, day
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Stream, Window};

use crate::calendar::day;
use crate::model::{Event, bids};
use crate::ranks::MIDDLE;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    day: String,
    total_bids: i64,
    rank1_bids: i64,
    rank2_bids: i64,
    rank3_bids: i64,
    min_price: i64,
    max_price: i64,
    avg_price: i128,
    sum_price: i128,
}

/// Returns the statistics of each auction and day.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let days = bids(events)
        .map(|bid| (bid.auction, bid.price))
        .key_by(|(auction, _)| *auction)
        .window(Window::days("UTC"))
        .aggregate("statistics", |each| {
            (
                each.count(),
                each.count_if(|(_, price)| *price < MIDDLE.start),
                each.count_if(|(_, price)| MIDDLE.contains(price)),
                each.count_if(|(_, price)| *price >= MIDDLE.end),
                each.min(|(_, price)| *price),
                each.max(|(_, price)| *price),
                each.sum(|(_, price)| *price),
            )
        });
    days.on_close().map(|row| {
        let (total_bids, rank1_bids, rank2_bids, rank3_bids, min_price, max_price, sum_price) = row.value;
        Row {
            auction: row.key,
            day: day(row.window.start),
            total_bids,
            rank1_bids,
            rank2_bids,
            rank3_bids,
            min_price,
            max_price,
            avg_price: sum_price / i128::from(total_bids),
            sum_price,
        }
    })
}
