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
use tidegate::{Collection, EventTime, Stream};

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
    let offers = bids(events).map(|bid| {
        let (price, date_time, bidder) = (Reverse(bid.price), bid.date_time, bid.bidder);
        (bid.auction, Offer { price, date_time, bidder, channel: bid.channel, url: bid.url, extra: bid.extra })
    });
    let ranked = offers.collect("offers").bottom_by_key(RANKS).reduce(|_, highest| {
        let each = highest.iter().flat_map(|(offer, times)| std::iter::repeat_n(*offer, *times as usize));
        (1_u64..).zip(each.cloned()).collect::<Vec<_>>()
    });
    ranked.map(|(auction, (rank_number, offer))| Row {
        auction,
        bidder: offer.bidder,
        price: offer.price.0,
        channel: offer.channel,
        url: offer.url,
        date_time: offer.date_time,
        extra: offer.extra,
        rank_number,
    })
}
