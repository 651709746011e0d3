//! Query 4: average price of a category. The average of the winning bids of all auctions of each category, in whole cents.
//!
//! An auction counts when it is over, with its final price: so the average changes once for each auction. (In SQL each
//! greater bid changes it; the last answer is the same.)
//!
//! ```sql
//! SELECT category, SUM(final) // COUNT(*) AS average
//! FROM (
//!   SELECT a.category, MAX(b.price) AS final
//!   FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
//!   GROUP BY a.id, a.category
//! )
//! GROUP BY category
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Collection, Stream};

use crate::model::Event;
use crate::winning::sales;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    category: u64,
    average: i128,
}

/// Returns the average of each category.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    let sold = sales(events, |auction| auction.category, |_| ());
    let prices = sold.map(|sale| (sale.auction, sale.price)).collect("prices");
    let numbers = prices.clone().count_by_key();
    prices
        .sum_by_key(|price| *price)
        .join_map(numbers, |category, sum, number| Row { category: *category, average: sum / i128::from(*number) })
}
