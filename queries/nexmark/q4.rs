//! Query 4: average price of a category. The average of the winning bids of all auctions of each category, in whole cents.
//!
//! An auction counts when it is over, with its final price: so the average changes when auctions end. (In SQL each
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
use tidegate::{Collection, Stream, Window};

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
    let averages = sold
        .key_by(|sale| sale.auction)
        .window(Window::global())
        .aggregate("prices", |each| (each.sum(|sale| sale.price), each.count()))
        .on_change();
    averages.map(|row| {
        let (sum, count) = row.value;
        Row { category: row.key, average: sum / i128::from(count) }
    })
}
