//! Query 22: directories. Each bid with the first three directories of its address.
//!
//! ```sql
//! SELECT auction, bidder, price, channel,
//!   split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2, split_part(url, '/', 6) AS dir3
//! FROM bid
//! ```

use serde::{Deserialize, Serialize};
use tidegate::Stream;

use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    channel: String,
    dir1: Option<String>,
    dir2: Option<String>,
    dir3: Option<String>,
}

/// Returns the bids with their directories.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).map(|bid| {
        let mut parts = bid.url.split('/').skip(3).map(str::to_owned);
        let [dir1, dir2, dir3] = std::array::from_fn(|_| parts.next());
        Row { auction: bid.auction, bidder: bid.bidder, price: bid.price, channel: bid.channel, dir1, dir2, dir3 }
    })
}
