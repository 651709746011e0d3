//! Query 21: channel ids. Each bid with the id of its channel: known ones have a number, others tell it in the address;
//! bids without either are left out.
//!
//! ```sql
//! SELECT auction, bidder, price, channel,
//!   CASE lower(channel)
//!     WHEN 'apple' THEN '0'
//!     WHEN 'google' THEN '1'
//!     WHEN 'facebook' THEN '2'
//!     WHEN 'baidu' THEN '3'
//!     ELSE regexp_extract(url, '(&|^)channel_id=([^&]*)', 2)
//!   END AS channel_id
//! FROM bid
//! WHERE lower(channel) IN ('apple', 'google', 'facebook', 'baidu') OR regexp_matches(url, '(&|^)channel_id=')
//! ```

use serde::{Deserialize, Serialize};
use tidegate::Stream;

use crate::model::{Event, bids};

/// Channels whose id is their index.
const KNOWN: [&str; 4] = ["apple", "google", "facebook", "baidu"];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    auction: u64,
    bidder: u64,
    price: i64,
    channel: String,
    channel_id: String,
}

/// Returns the id of a channel.
fn channel_id(channel: &str, url: &str) -> Option<String> {
    match KNOWN.iter().position(|known| channel.eq_ignore_ascii_case(known)) {
        Some(id) => Some(id.to_string()),
        None => url.split('&').find_map(|part| part.strip_prefix("channel_id=")).map(str::to_owned),
    }
}

/// Returns the bids with the ids of their channels.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    bids(events).flat_map(|bid| {
        let channel_id = channel_id(&bid.channel, &bid.url)?;
        Some(Row { auction: bid.auction, bidder: bid.bidder, price: bid.price, channel: bid.channel, channel_id })
    })
}
