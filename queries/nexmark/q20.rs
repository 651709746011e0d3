//! Query 20: bids with their auctions, of category 10.
//!
//! A join without a window, kept up to date: a bid may come before its auction.
//!
//! ```sql
//! SELECT b.auction, b.bidder, b.price, b.channel, b.url, b.date_time AS bid_date_time, b.extra AS bid_extra,
//!   a.item_name, a.description, a.initial_bid, a.reserve, a.date_time AS auction_date_time, a.expires, a.seller, a.category,
//!   a.extra AS auction_extra
//! FROM bid b JOIN auction a ON b.auction = a.id
//! WHERE a.category = 10
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Collection, EventTime, Stream};

use crate::model::{Event, bids_and_auctions};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    channel: String,
    url: String,
    bid_date_time: EventTime,
    bid_extra: String,
    item_name: String,
    description: String,
    initial_bid: i64,
    reserve: i64,
    auction_date_time: EventTime,
    expires: EventTime,
    seller: u64,
    category: u64,
    auction_extra: String,
}

/// Returns the bids with their auctions.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    let (bids, auctions) = bids_and_auctions(events);
    let of_category = auctions.filter(|auction| auction.category == 10);
    let offers = bids.map(|bid| (bid.auction, bid)).collect("bids");
    offers.join_map(of_category.map(|auction| (auction.id, auction)).collect("auctions"), |_, bid, auction| Row {
        auction: bid.auction,
        bidder: bid.bidder,
        price: bid.price,
        channel: bid.channel.clone(),
        url: bid.url.clone(),
        bid_date_time: bid.date_time,
        bid_extra: bid.extra.clone(),
        item_name: auction.item_name.clone(),
        description: auction.description.clone(),
        initial_bid: auction.initial_bid,
        reserve: auction.reserve,
        auction_date_time: auction.date_time,
        expires: auction.expires,
        seller: auction.seller,
        category: auction.category,
        auction_extra: auction.extra.clone(),
    })
}
