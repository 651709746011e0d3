//! Query 9: winning bids. Each auction that had a bid, with the highest one; it is emitted when the auction is over.
//!
//! ```sql
//! SELECT a.id, a.item_name, a.description, a.initial_bid, a.reserve, a.date_time, a.expires, a.seller, a.category, a.extra,
//!   b.auction, b.bidder, b.price, b.date_time AS bid_date_time, b.extra AS bid_extra
//! FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
//! QUALIFY ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time, b.bidder, b.extra) = 1
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{EventTime, Stream};

use crate::model::Event;
use crate::winning::sales;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    id: u64,
    item_name: String,
    description: String,
    initial_bid: i64,
    reserve: i64,
    date_time: EventTime,
    expires: EventTime,
    seller: u64,
    category: u64,
    extra: String,
    auction: u64,
    bidder: u64,
    price: i64,
    bid_date_time: EventTime,
    bid_extra: String,
}

/// Returns the auctions with their winning bids.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    sales(events, |auction| auction, |bid| (bid.bidder, bid.extra)).map(|sale| {
        let (auction, (bidder, bid_extra)) = (sale.auction, sale.bid);
        Row {
            id: auction.id,
            item_name: auction.item_name,
            description: auction.description,
            initial_bid: auction.initial_bid,
            reserve: auction.reserve,
            date_time: auction.date_time,
            expires: auction.expires,
            seller: auction.seller,
            category: auction.category,
            extra: auction.extra,
            auction: auction.id,
            bidder,
            price: sale.price,
            bid_date_time: sale.date_time,
            bid_extra,
        }
    })
}
