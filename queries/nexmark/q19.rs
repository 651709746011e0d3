//! Query 19: the ten highest bids of each auction, with their ranks. Of equal prices the first bid is the higher one, and of
//! those at one time the least by bidder, channel, address and filler.
//!
//! ```sql
//! SELECT auction, bidder, price, channel, url, date_time, extra,
//!   ROW_NUMBER() OVER (PARTITION BY auction ORDER BY price DESC, date_time, bidder, channel, url, extra) AS rank_number
//! FROM bid
//! QUALIFY rank_number <= 10
//! ```

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use tidegate::{Collection, EventTime, Stream, Window};

use crate::model::{Event, bids};

/// Bids of an auction that are ranked.
const RANKS: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    channel: String,
    url: String,
    date_time: EventTime,
    extra: String,
    rank_number: u64,
}

/// A bid without its auction; the highest one is the least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Offer {
    price: Reverse<i64>,
    date_time: EventTime,
    bidder: u64,
    channel: String,
    url: String,
    extra: String,
}

/// Returns the highest bids of each auction.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    let highest = bids(events)
        .key_by(|bid| bid.auction)
        .window(Window::global())
        .aggregate("highest", |each| {
            each.bottom(RANKS, |bid| Offer {
                price: Reverse(bid.price),
                date_time: bid.date_time,
                bidder: bid.bidder,
                channel: bid.channel.clone(),
                url: bid.url.clone(),
                extra: bid.extra.clone(),
            })
        })
        .on_change();
    highest.flat_map(|row| {
        let (auction, ranked) = (row.key, (1..).zip(row.value));
        ranked.map(move |(rank_number, offer)| Row {
            auction,
            bidder: offer.bidder,
            price: offer.price.0,
            channel: offer.channel,
            url: offer.url,
            date_time: offer.date_time,
            extra: offer.extra,
            rank_number,
        })
    })
}
