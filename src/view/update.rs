//! Updates of a subscription: its first rows, the changes of later epochs, progress, and the reason for its end.

use std::fmt;

use crate::time::Epoch;
use crate::view::answer::Answer;

/// An update of a subscription.
#[derive(Debug)]
pub enum ViewUpdate {
    /// All rows, as of one epoch.
    State(Answer),
    /// All changes of one epoch, consolidated: each row with the change of its count.
    Changes(Answer),
    /// Nothing else has changed up to this epoch.
    Progress(Epoch),
    /// No further update follows.
    End(SubscriptionEnd),
}

/// The reason for which a subscription has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// The job is over.
    Over,
    /// The subscriber did not keep up; it may subscribe again.
    Behind {
        /// Maximum number of changes that could be queued for it.
        most: usize,
    },
}

impl fmt::Display for SubscriptionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubscriptionEnd::Over => f.write_str("the job is over"),
            SubscriptionEnd::Behind { most } => {
                write!(f, "the subscriber is too far behind: more than {most} changes waited for it")
            }
        }
    }
}
