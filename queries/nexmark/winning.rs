//! The winning bid of each auction: what queries 4, 6 and 9 have in common.
//!
//! The winning bid is the greatest one between the auction's begin and its end, both included; of equal ones the first, and
//! of those at one time the least by what is kept of it. It is known when the watermark has passed the auction's end, and
//! emitted once, a millisecond after it. An auction without a bid has none.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tidegate::{EventTime, Record, Stream};

use crate::model::{Auction, Bid, Event};

/// An auction with its winning bid: what is kept of both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "A: Record, B: Record")]
pub(crate) struct Sale<A, B> {
    pub(crate) auction: A,
    pub(crate) price: i64,
    /// Event time of the bid.
    pub(crate) date_time: EventTime,
    pub(crate) bid: B,
}

/// A bid, ordered so that the least one wins.
type Rank<B> = (Reverse<i64>, EventTime, B);

/// Step in the life of an auction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "A: Record, B: Record")]
enum Step<A, B> {
    Opened { id: u64, expires: EventTime, auction: A },
    Offered { id: u64, rank: Rank<B> },
}

/// An auction that is open, or bids that came in a millisecond before their auction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(bound = "A: Record, B: Record")]
struct Standing<A, B> {
    auction: Option<A>,
    best: Option<Rank<B>>,
}

/// Returns the sale of each auction that has a bid; `of_auction` and `of_bid` say what is kept.
pub(crate) fn sales<A: Record, B: Record>(
    events: Stream<'_, Event>,
    of_auction: impl Fn(Auction) -> A + 'static,
    of_bid: impl Fn(Bid) -> B + 'static,
) -> Stream<'_, Sale<A, B>> {
    let steps = events.flat_map(move |event| match event {
        Event::Person(_) => None,
        Event::Auction(auction) => {
            Some(Step::Opened { id: auction.id, expires: auction.expires, auction: of_auction(auction) })
        }
        Event::Bid(bid) => {
            Some(Step::Offered { id: bid.auction, rank: (Reverse(bid.price), bid.date_time, of_bid(bid)) })
        }
    });
    let by_auction = steps.key_by(|step| match step {
        Step::Opened { id, .. } | Step::Offered { id, .. } => *id,
    });
    let sold = by_auction.keyed_state(
        "auctions",
        |at, standing: &mut Option<Standing<A, B>>, step| {
            let now = at.now();
            match (step, standing.take()) {
                (Step::Opened { expires, auction, .. }, before) => {
                    // Bids of this millisecond count, though they came before the auction.
                    let best = before.and_then(|before| before.best).filter(|(_, time, _)| *time == now);
                    *standing = Some(Standing { auction: Some(auction), best });
                    at.clear_timers();
                    at.set_timer(EventTime::from_millis(expires.millis().saturating_add(1)));
                }
                (Step::Offered { rank, .. }, Some(Standing { auction, best })) => {
                    let best = best.map_or(rank.clone(), |best| best.min(rank));
                    *standing = Some(Standing { auction, best: Some(best) });
                }
                (Step::Offered { rank, .. }, None) => {
                    *standing = Some(Standing { auction: None, best: Some(rank) });
                    at.set_timer_in(Duration::from_millis(1));
                }
            }
        },
        |at, standing| {
            let sale = standing.take().and_then(|Standing { auction, best }| Some((auction?, best?)));
            if let Some((auction, (Reverse(price), date_time, bid))) = sale {
                at.emit(Sale { auction, price, date_time, bid });
            }
        },
    );
    sold.emitted()
}
