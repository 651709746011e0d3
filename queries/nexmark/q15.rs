//! Query 15: bidding statistics. Bids, bidders and auctions of each day, by the level of the price.
//!
//! A day's row is final: it is emitted when the day is over. (In SQL it is corrected with each bid.)
//!
//! ```sql
//! SELECT strftime(date_time, '%Y-%m-%d') AS day,
//!   COUNT(*) AS total_bids,
//!   COUNT(*) FILTER (price < 10000) AS rank1_bids,
//!   COUNT(*) FILTER (price >= 10000 AND price < 1000000) AS rank2_bids,
//!   COUNT(*) FILTER (price >= 1000000) AS rank3_bids,
//!   COUNT(DISTINCT bidder) AS total_bidders,
//!   COUNT(DISTINCT bidder) FILTER (price < 10000) AS rank1_bidders,
//!   COUNT(DISTINCT bidder) FILTER (price >= 10000 AND price < 1000000) AS rank2_bidders,
//!   COUNT(DISTINCT bidder) FILTER (price >= 1000000) AS rank3_bidders,
//!   COUNT(DISTINCT auction) AS total_auctions,
//!   COUNT(DISTINCT auction) FILTER (price < 10000) AS rank1_auctions,
//!   COUNT(DISTINCT auction) FILTER (price >= 10000 AND price < 1000000) AS rank2_auctions,
//!   COUNT(DISTINCT auction) FILTER (price >= 1000000) AS rank3_auctions
//! FROM bid
//! GROUP BY day
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Stream, Window};

use crate::calendar::day;
use crate::model::{Event, bids};
use crate::ranks::{levels, statistics};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    day: String,
    total_bids: i64,
    rank1_bids: i64,
    rank2_bids: i64,
    rank3_bids: i64,
    total_bidders: i64,
    rank1_bidders: i64,
    rank2_bidders: i64,
    rank3_bidders: i64,
    total_auctions: i64,
    rank1_auctions: i64,
    rank2_auctions: i64,
    rank3_auctions: i64,
}

/// Returns the statistics of each day.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let days = bids(events).key_by(|_| ()).window(Window::days("UTC")).aggregate("statistics", statistics);
    days.on_close().map(|row| {
        let statistics = row.value;
        let [bids, bidders, auctions] = levels(statistics);
        let [total_bids, rank1_bids, rank2_bids, rank3_bids] = bids;
        let [total_bidders, rank1_bidders, rank2_bidders, rank3_bidders] = bidders;
        let [total_auctions, rank1_auctions, rank2_auctions, rank3_auctions] = auctions;
        Row {
            day: day(row.window.start),
            total_bids,
            rank1_bids,
            rank2_bids,
            rank3_bids,
            total_bidders,
            rank1_bidders,
            rank2_bidders,
            rank3_bidders,
            total_auctions,
            rank1_auctions,
            rank2_auctions,
            rank3_auctions,
        }
    })
}
