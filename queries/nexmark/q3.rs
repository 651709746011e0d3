//! Query 3: local item suggestion. Who sells in Oregon, Idaho or California, in category 10, and in which auctions?
//!
//! A join without a window, kept up to date: an auction may come before its seller.
//!
//! ```sql
//! SELECT p.name, p.city, p.state, a.id
//! FROM auction a JOIN person p ON a.seller = p.id
//! WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')
//! ```

use serde::{Deserialize, Serialize};
use tidegate::{Collection, Stream};

use crate::model::{Event, persons_and_auctions};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    name: String,
    city: String,
    state: String,
    id: u64,
}

/// Returns sellers with their auctions.
pub(crate) fn query(events: Stream<'_, Event>) -> Collection<'_, Row> {
    let (persons, auctions) = persons_and_auctions(events);
    let sellers = persons
        .filter(|person| ["OR", "ID", "CA"].contains(&&*person.state))
        .map(|person| (person.id, (person.name, person.city, person.state)))
        .collect("sellers");
    let offers =
        auctions.filter(|auction| auction.category == 10).map(|auction| (auction.seller, auction.id)).collect("offers");
    offers.join_map(sellers, |_, id, (name, city, state)| Row {
        name: name.clone(),
        city: city.clone(),
        state: state.clone(),
        id: *id,
    })
}
