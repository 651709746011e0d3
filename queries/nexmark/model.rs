//! The three kinds of events of an auction house, and the stream of each kind.

use serde::{Deserialize, Serialize};
use tidegate::{EventTime, Stream};

/// A person who registers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Person {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) email_address: String,
    pub(crate) credit_card: String,
    pub(crate) city: String,
    /// Abbreviation of a state of the USA.
    pub(crate) state: String,
    pub(crate) date_time: EventTime,
    /// Filler, so that events have the size of real ones.
    pub(crate) extra: String,
}

/// An item that a person offers for sale.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Auction {
    pub(crate) id: u64,
    pub(crate) item_name: String,
    pub(crate) description: String,
    pub(crate) initial_bid: i64,
    pub(crate) reserve: i64,
    pub(crate) date_time: EventTime,
    /// The last moment at which a bid counts.
    pub(crate) expires: EventTime,
    /// Id of the person who sells.
    pub(crate) seller: u64,
    pub(crate) category: u64,
    pub(crate) extra: String,
}

/// A price that a person bids in an auction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Bid {
    /// Id of the auction.
    pub(crate) auction: u64,
    /// Id of the person who bids.
    pub(crate) bidder: u64,
    /// Price in cents.
    pub(crate) price: i64,
    /// Name of the site on which the bid was made.
    pub(crate) channel: String,
    pub(crate) url: String,
    pub(crate) date_time: EventTime,
    pub(crate) extra: String,
}

/// An event; in JSON an object whose only key is the kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Event {
    Person(Person),
    Auction(Auction),
    Bid(Bid),
}

impl Event {
    /// Returns the event time.
    pub(crate) fn date_time(&self) -> EventTime {
        match self {
            Event::Person(person) => person.date_time,
            Event::Auction(auction) => auction.date_time,
            Event::Bid(bid) => bid.date_time,
        }
    }
}

/// Returns the bids.
pub(crate) fn bids(events: Stream<'_, Event>) -> Stream<'_, Bid> {
    events.flat_map(|event| if let Event::Bid(bid) = event { Some(bid) } else { None })
}

/// Returns the persons and the auctions.
pub(crate) fn persons_and_auctions(events: Stream<'_, Event>) -> (Stream<'_, Person>, Stream<'_, Auction>) {
    events.split(|event| match event {
        Event::Person(person) => (Some(person), None),
        Event::Auction(auction) => (None, Some(auction)),
        Event::Bid(_) => (None, None),
    })
}

/// Returns the bids and the auctions.
pub(crate) fn bids_and_auctions(events: Stream<'_, Event>) -> (Stream<'_, Bid>, Stream<'_, Auction>) {
    events.split(|event| match event {
        Event::Person(_) => (None, None),
        Event::Auction(auction) => (None, Some(auction)),
        Event::Bid(bid) => (Some(bid), None),
    })
}
