//! Query 18: the last bid of each bidder in each auction. Of several at one time it is the last one of the stream.
//!
//! ```sql
//! SELECT auction, bidder, price, channel, url, date_time, extra FROM bid
//! QUALIFY ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY date_time DESC, seq DESC) = 1
//! ```

use tidegate::{Collection, Stream};

use crate::model::{Bid, Event, bids};

/// A row of the answer.
pub(crate) type Row = Bid;

/// Returns the last bids.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    bids(events).key_by(|bid| (bid.bidder, bid.auction)).last_by_key("last bids").map(|(_, bid)| bid)
}
