//! Query 6: average selling price. The average, in whole cents, of each winning bid of a seller and of up to ten before it,
//! in the order of the bids' times.
//!
//! Flink's SQL has this query, and cannot run it: its `OVER` takes no corrections. Auctions do not end in the order of their
//! winning bids, so a sale may come between earlier ones: then averages are corrected.
//!
//! ```sql
//! SELECT seller, SUM(price) OVER eleven // COUNT(*) OVER eleven AS avg_price
//! FROM (
//!   SELECT a.id, a.seller, b.price, b.date_time
//!   FROM auction a JOIN bid b ON a.id = b.auction AND b.date_time BETWEEN a.date_time AND a.expires
//!   QUALIFY ROW_NUMBER() OVER (PARTITION BY a.id ORDER BY b.price DESC, b.date_time) = 1
//! )
//! WINDOW eleven AS (PARTITION BY seller ORDER BY date_time, id ROWS BETWEEN 10 PRECEDING AND CURRENT ROW)
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Collection, Stream};

use crate::model::Event;
use crate::winning::sales;

/// Sales that are averaged.
const SALES: usize = 11;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    seller: u64,
    avg_price: i64,
}

/// Returns the average at each sale.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    let sold = sales(events, |auction| (auction.seller, auction.id), |_| ());
    let by_seller = sold.map(|sale| {
        let (seller, auction) = sale.auction;
        (seller, (sale.date_time, auction, sale.price))
    });
    let averages = by_seller.collect("sales").reduce(|_, sales| {
        let prices: Vec<i64> = sales.iter().map(|((.., price), _)| *price).collect();
        let frames = (1..=prices.len()).map(|end| &prices[end.saturating_sub(SALES)..end]);
        // The number keeps equal averages of a seller apart.
        let averages = frames.map(|frame| frame.iter().sum::<i64>() / frame.len() as i64);
        (0_u64..).zip(averages).collect::<Vec<_>>()
    });
    averages.map(|(seller, (_, avg_price))| Row { seller, avg_price })
}
