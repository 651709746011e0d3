//! Query 8: new users. The persons who registered and sold something in the same ten seconds.
//!
//! ```sql
//! SELECT DISTINCT p.id, p.name, time_bucket(INTERVAL '10 seconds', p.date_time) AS starttime
//! FROM person p
//! JOIN auction a
//!   ON p.id = a.seller
//!  AND time_bucket(INTERVAL '10 seconds', p.date_time) = time_bucket(INTERVAL '10 seconds', a.date_time)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate::stream::aggregate::Each;
use tidegate::{EventTime, Stream, Window};

use crate::model::{Event, persons_and_auctions};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row {
    id: u64,
    name: String,
    starttime: EventTime,
}

/// Returns the new sellers of each window.
pub(crate) fn query(events: Stream<'_, Event>) -> Stream<'_, Row> {
    let window = Window::tumbling(Duration::from_secs(10));
    let (persons, auctions) = persons_and_auctions(events);
    // One row for each seller of a window, in its last millisecond.
    let sellers = auctions
        .map(|auction| auction.seller)
        .key_by(|seller| *seller)
        .window(window)
        .aggregate("sellers", Each::count)
        .on_close()
        .key_by(|row| row.key);
    persons
        .map(|person| (person.id, person.name))
        .key_by(|(id, _)| *id)
        .join_windowed("new sellers", sellers, window)
        .inner(|window, id, (_, name), _| Row { id: *id, name: name.clone(), starttime: window.start })
        .results()
}
