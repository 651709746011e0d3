//! Bids by the level of their price: what queries 15 and 16 count.

use tidegate::stream::aggregate::{Aggregate, Each};

use crate::model::Bid;

/// Numbers of all bids, and of those below 10,000 cents, below 1,000,000 and above.
pub(crate) type Levels = [i64; 4];

/// Values of [`statistics`]: bids, distinct bidders, distinct auctions.
pub(crate) type Statistics =
    ((i64, i64, i64, i64), (i64, Option<i64>, Option<i64>, Option<i64>), (i64, Option<i64>, Option<i64>, Option<i64>));

/// Prices of the second level.
pub(crate) const MIDDLE: std::ops::Range<i64> = 10_000..1_000_000;

/// Counts bids, bidders and auctions, by level.
pub(crate) fn statistics(each: Each<Bid>) -> impl Aggregate<Bid, Value = Statistics> {
    let low = |bid: &Bid| bid.price < MIDDLE.start;
    let middle = |bid: &Bid| MIDDLE.contains(&bid.price);
    let high = |bid: &Bid| bid.price >= MIDDLE.end;
    (
        (each.count(), each.count_if(low), each.count_if(middle), each.count_if(high)),
        (
            each.count_distinct(|bid| bid.bidder),
            each.filter(low, |each| each.count_distinct(|bid| bid.bidder)),
            each.filter(middle, |each| each.count_distinct(|bid| bid.bidder)),
            each.filter(high, |each| each.count_distinct(|bid| bid.bidder)),
        ),
        (
            each.count_distinct(|bid| bid.auction),
            each.filter(low, |each| each.count_distinct(|bid| bid.auction)),
            each.filter(middle, |each| each.count_distinct(|bid| bid.auction)),
            each.filter(high, |each| each.count_distinct(|bid| bid.auction)),
        ),
    )
}

/// Returns bids, bidders and auctions by level.
pub(crate) fn levels((bids, bidders, auctions): Statistics) -> [Levels; 3] {
    let distinct = |(all, low, middle, high): (i64, Option<i64>, Option<i64>, Option<i64>)| {
        [all, low.unwrap_or(0), middle.unwrap_or(0), high.unwrap_or(0)]
    };
    [[bids.0, bids.1, bids.2, bids.3], distinct(bidders), distinct(auctions)]
}
