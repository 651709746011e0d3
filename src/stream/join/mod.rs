//! Joins of two keyed streams by event time.
//!
//! Each of them is a step with two inputs whose results are a function of the data: of the records' times, and of which
//! of them are late. They do not depend on arrival, epochs or workers, as [`Keyed::join_table`](super::Keyed::join_table)
//! does, which pairs a record with the table at its arrival.
//!
//! * [`Keyed::join_within`](super::Keyed::join_within) pairs records whose times are close to each other.
//!
//! Both streams are brought under their combined watermark ([`super::watermarks`]), as for `concat`. Lateness is decided
//! by the partition of the record, and late records of either side are told apart. State expires by the watermark.

mod joined;
mod side;
mod within;

pub use joined::Joined;
pub use within::JoinWithin;
