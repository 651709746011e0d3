//! Joins of two keyed streams by event time.
//!
//! Each of them is a step with two inputs whose results are a function of the data: of the records' times, and of which
//! of them are late. They do not depend on arrival, epochs or workers, as [`Keyed::join_table`](super::Keyed::join_table)
//! does, which pairs a record with the table at its arrival.
//!
//! * [`Keyed::join_within`](super::Keyed::join_within) pairs records whose times are close to each other.
//! * [`Keyed::join_as_of`](super::Keyed::join_as_of) pairs a record with the version of the other stream at its time.
//! * [`Keyed::join_windowed`](super::Keyed::join_windowed) pairs records that are in the same window.
//! * [`Keyed::keyed_state_with`](super::Keyed::keyed_state_with) calls functions of the query with the records of both, in
//!   the order of event time.
//!
//! Both streams are brought under their combined watermark, as for `concat`. Lateness is decided by the partition of the
//! record, and late records of either side are told apart. State expires by the watermark.

mod as_of;
mod backward;
mod joined;
mod side;
mod single_windows;
mod sweep;
mod time_wheel;
mod two_inputs;
mod versions;
mod waiting_keys;
mod windowed;
mod within;

pub use as_of::JoinAsOf;
pub use joined::Joined;
pub use windowed::JoinWindowed;
pub use within::JoinWithin;
