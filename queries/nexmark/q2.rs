//! Query 2: selection. The bids in every 123rd auction.
//!
//! ```sql
//! SELECT auction, price FROM bid WHERE auction % 123 = 0
//! ```

use serde::{Deserialize, Serialize};
use tidegate::Stream;

use crate::model::{Event, bids};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    price: i64,
}

/// Returns the bids in some auctions.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).filter(|bid| bid.auction.is_multiple_of(123)).map(|bid| Row { auction: bid.auction, price: bid.price })
}
